"""certify.py --target_radius: is each example certified at one radius, with few draws?

The statement and its proof are in `selfens_jax.sequential`; here are the loop over batches of
draws, the files, and what is printed.
"""

import itertools
from typing import Any

import jax
import numpy as np
from absl import flags
from common import cli, counting, trained

from selfens_jax import metrics, runs, sequential
from selfens_jax.certificates import ABSTAIN
from selfens_jax.errors import UserError
from selfens_jax.smoothing import default_batch_size, default_draws_per_block

FLAGS = flags.FLAGS

NAMES = {
    sequential.CERTIFIED: "certified",
    sequential.REJECTED: "rejected",
    sequential.OPEN: "undecided",
}


def define_flags() -> None:
    flags.DEFINE_float(
        "target_radius", None, "Decide only whether this radius is certified, with few draws."
    )
    flags.DEFINE_integer(
        "max_draws", 2000, "With --target_radius: draws after which an example stays undecided."
    )
    flags.DEFINE_float(
        "alpha_futility", 0.05, "With --target_radius: probability of giving up an example wrongly."
    )


def decide(processes: tuple[int, int]) -> None:
    """Decides the examples that the flags name; writes and prints what came out.

    Raises:
      UserError: for flags outside their range, or a budget with which nothing could be certified.
    """
    block = default_draws_per_block()
    edges = sequential.batches(block, block, max_draws=FLAGS.max_draws, block=block)
    run, config = trained.find_run(noisy=True)
    try:
        p0 = sequential.certified_share(FLAGS.target_radius, config["sigma"])
        sequential.check_budget(edges, p0, FLAGS.alpha)
    except UserError as error:
        raise UserError(
            f"--target_radius={FLAGS.target_radius:g} --max_draws={FLAGS.max_draws}: {error}"
        ) from None
    # On a CPU one block a call, whose one program serves every batch.
    on_cpu = jax.default_backend() == "cpu"
    job = counting.prepare(run, config, block, block if on_cpu else default_batch_size())
    settings = {
        **job.settings,
        "target_radius": FLAGS.target_radius,
        "alpha": FLAGS.alpha,
        "alpha_futility": FLAGS.alpha_futility,
        "batches": list(edges),
    }
    labels = job.dataset.y_test
    seen = np.zeros(len(NAMES), int)

    def measure(some: np.ndarray) -> list[tuple[int, ...]]:
        state, forwards = run_tests(job, some, edges, p0)
        columns = (forwards, state.candidate, state.successes, state.draws, state.decision)
        return [tuple(map(int, row)) for row in np.column_stack(columns)]

    def show(new: dict[int, runs.Entry]) -> str:
        for entry in new.values():
            seen[entry.values[-1]] += 1
        return ", ".join(f"{name} {seen[which]}" for which, name in NAMES.items())

    entries = counting.measure_examples(
        processes,
        job.folder / f"decisions-{counting.short(settings)}",
        settings,
        lambda values: len(values) == 5 and values[-1] in NAMES,
        job.chosen,
        max(1, job.batch_size // 1000),
        measure,
        show,
    )
    values = np.array([entries[i].values for i in job.chosen])
    seconds = [entries[i].seconds for i in job.chosen]
    report(job, settings, values, seconds, labels[job.chosen], edges[0])


def run_tests(
    job: counting.Job, some: np.ndarray, edges: tuple[int, ...], p0: float
) -> tuple[sequential.State, np.ndarray]:
    """The final state of some examples, and the forward passes (M,) that each took."""
    selection, forwards = job.count(some, 0, edges[0])
    state = sequential.begin(selection, p0, FLAGS.alpha, FLAGS.alpha_futility)
    for start, stop in itertools.pairwise(edges):
        if not len(state.open):
            break
        still_open = state.open
        counts, cost = job.count(some[still_open], start, stop - start)
        forwards[still_open] += cost
        state = sequential.step(state, counts)
    return state, forwards


def report(
    job: counting.Job,
    settings: dict[str, Any],
    values: np.ndarray,
    seconds: list[float],
    labels: np.ndarray,
    num_selection: int,
) -> None:
    """Writes the decisions and their record; prints what they come to."""
    source, members = settings["data"], job.num_members
    names = cli.class_names(source)
    forwards, candidate, _, tested, decision = values.T
    draws = num_selection + tested
    certified = decision == sequential.CERTIFIED
    prediction = np.where(certified, candidate, ABSTAIN)
    correct = prediction == labels

    name = counting.short([settings, job.chosen.tolist()])
    stem = job.folder / f"target-r{settings['target_radius']:g}-{len(values)}ex-{name}"
    rows = [["idx", "label", "predict", "decision", "draws", "forwards", "correct", "time"]]
    rows += [
        [
            str(job.chosen[i]),
            names[labels[i]],
            names[prediction[i]],
            NAMES[decision[i]],
            str(draws[i]),
            str(forwards[i]),
            str(int(correct[i])),
            runs.seconds_text(seconds[i]),
        ]
        for i in range(len(values))
    ]
    statement = (
        f"a class marked certified holds for every change with L2 norm up to "
        f"{settings['target_radius']:g}, each with probability at least {1 - settings['alpha']:g} "
        "(anytime-valid test on fresh draws)"
    )
    fixed = 1000 * members
    table = [
        (f"certified accuracy at r = {settings['target_radius']:g}", correct.mean(), ".2%"),
        ("series of the most frequent class", metrics.most_frequent_share(labels), ".2%"),
        *[(NAMES[which], (decision == which).mean(), ".2%") for which in NAMES],
        ("draws an example, mean", draws.mean(), ".1f"),
        ("draws an example, median", np.median(draws), ".0f"),
        ("forward passes an example, mean", forwards.mean(), ".1f"),
        (f"n = 1000 with every member ({fixed}), times as many", fixed / forwards.mean(), ".1f"),
    ]
    runs.write_bytes(stem.with_name(stem.name + ".tsv"), runs.file_text(rows))
    runs.write_json(
        stem.with_name(stem.name + ".json"),
        {
            "statement": statement,
            "valid": True,
            "alpha": settings["alpha"],
            "radius_units": f"L2 norm, in the units of the series (scaling: {source['scaling']})",
            "num_examples": len(values),
            "abstain": names[ABSTAIN],
            "settings": settings,
            "summary": {what: float(value) for what, value, _ in table},
        },
    )
    title = counting.title_of(settings, len(values))
    cli.print_summary(title, statement, source, table, f"{stem}.tsv (.json)")
