"""certify.py --burst: its flags, what it checks before the work, and what it writes.

The statement and its proof are in `selfens_jax.bursts`.
"""

from pathlib import Path
from typing import Any

from common import cli, summaries

import numpy as np
from absl import flags

from selfens_jax import backend, bursts, certificates, counting, noise, plots, runs
from selfens_jax.bursts import Bursts, Windows
from selfens_jax.counting import Entries, Job, Share
from selfens_jax.errors import UserError
from selfens_jax.runs import records
from selfens_jax.runs.records import BurstResults

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_list(
        "burst",
        [],
        "Certify that the answer stays whatever replaces so many consecutive steps; several "
        "lengths, separated by commas. With --num_draws, under noise as well.",
    )
    flags.DEFINE_integer(
        "stride",
        None,
        "With --burst: steps between the windows that are hidden; a twentieth of the series if not "
        "given.",
    )


def under_noise() -> bool:
    """Whether a burst and a radius are to be certified at once."""
    return bool(FLAGS["num_draws"].present)


def check_flags() -> None:
    """Raises UserError for flags that do not go with --burst."""
    asked = ["target_radius", "from_counts", "consensus", "alpha_total", "interval", "bound"]
    asked += ["paper", "explain", "report", "max_draws", "alpha_futility"]
    of_votes = ["alpha", "noise_seed", "noise", "grid", "precision"]
    for name in asked if under_noise() else asked + of_votes:
        if FLAGS[name].present:
            votes = " without --num_draws" if name in of_votes else ""
            raise UserError(f"--burst{votes} has no use for --{name}; leave it out")


def check_budget(config: dict[str, Any]) -> list[Windows]:
    """The windows of each length of --burst.

    Raises:
      UserError: if bursts of a run of this config cannot be certified.
    """
    described = config["data"]
    bursts.refuse_own_scaling(described["scaling"], "train with --scaling=none")
    if under_noise() and config["sigma"] == 0:
        raise UserError("--burst with --num_draws needs noise: the run was trained with sigma 0")
    lengths = cli.numbers(FLAGS, "burst", int, 1)
    found = []
    for burst in sorted(lengths):
        try:
            found.append(bursts.windows(described["length"], burst, FLAGS.stride))
            if under_noise():
                alpha = FLAGS.alpha / len(found[-1].kept)
                certificates.check_budget(FLAGS.num_draws, alpha, len(described["classes"]))
        except UserError as error:
            raise UserError(f"--burst={burst}: {error}") from None
    return found


def certify(
    job: Job, windows: list[Windows], folder: Path, share: Share
) -> tuple[BurstResults, list[Bursts]] | None:
    """What double masking says of the job's examples, found now or by earlier calls.

    Returns:
      The examples, and their certificates for each of `windows`; None in every process but the
      first.
    """
    settings = {
        "precision": "float32",
        **job.settings,
        "bursts": [each.burst for each in windows],
        "strides": [each.stride for each in windows],
        **({"num_draws": FLAGS.num_draws} if under_noise() else {}),
    }
    shapes = [shape_of(each, settings) for each in windows]
    ends = np.cumsum([np.prod(shape) for shape in shapes])

    def measure(examples: np.ndarray) -> list[tuple[int, ...]]:
        found = [found_under(job, each, examples) for each in windows]
        rows = np.concatenate([each.reshape(len(examples), -1) for each in found], axis=1)
        return [tuple(map(int, row)) for row in rows]

    def certificates_of(values: np.ndarray, examples: np.ndarray) -> list[Bursts]:
        parts = np.split(values, ends[:-1], axis=1)
        return [
            from_values(part.reshape(-1, *shape), each, settings, job.x[examples])
            for part, shape, each in zip(parts, shapes, windows, strict=True)
        ]

    seen, certified = np.zeros(1), np.zeros(len(windows))

    def show(new: Entries) -> str:
        values = np.array([entry.values for entry in new.values()])
        latest = certificates_of(values, np.array(list(new)))
        seen[:] += len(new)
        certified[:] += [each.certified.sum() for each in latest]
        told = zip(windows, certified / seen, strict=True)
        return "certified " + ", ".join(f"b = {each.burst}: {share:.0%}" for each, share in told)

    entries = counting.measure_examples(
        share,
        folder / f"bursts-{records.short_id(settings)}",
        settings,
        lambda values: len(values) == ends[-1],
        job.chosen,
        1 if backend.on_cpu() else 64,
        measure,
        show,
    )
    if entries is None:
        return None
    values = np.array([entries[i].values for i in job.chosen])
    results = BurstResults(
        indices=job.chosen,
        labels=job.labels[job.chosen].astype(np.int64),
        settings=settings,
        seconds=np.array([entries[i].seconds for i in job.chosen]),
        series_sha256=job.series_sha256(),
    )
    return results, certificates_of(values, job.chosen)


def shape_of(windows: Windows, settings: dict[str, Any]) -> tuple[int, ...]:
    """The shape of what is found for one example: a class, or votes, for each pair of windows."""
    pairs = len(windows.kept)
    return (pairs, len(settings["data"]["classes"])) if under_noise() else (pairs,)


def found_under(job: Job, windows: Windows, examples: np.ndarray) -> np.ndarray:
    """Classes (M, P) or votes (M, P, K) of examples (M,) under each pair of windows."""
    if under_noise():
        return bursts.count_pair_votes(
            job.predict, job.x[examples], windows, **job.how(examples, 0, FLAGS.num_draws)
        )
    i, j = windows.pairs
    return bursts.pair_classes(job.predict, job.x[examples], windows)[:, i, j]


def from_values(
    values: np.ndarray, windows: Windows, settings: dict[str, Any], x: np.ndarray
) -> Bursts:
    """The certificates of what `found_under` found for series x (M, T, C)."""
    if under_noise():
        given_up = noise.given_up(settings)
        return bursts.certify_pair_votes(values, windows, settings["sigma"], FLAGS.alpha, given_up)
    _, lacking = bursts.known_values(x)
    return bursts.from_classes(windows.table(values), windows, lacking)


def certified_share(found: Bursts, labels: np.ndarray) -> float:
    """Of the series that lack nothing, or of all if each lacks something, those certified.

    And right, if there are labels.
    """
    counted = found.certified & ((found.prediction == labels) | (labels < 0).any())
    return counted[found.lacks if found.lacks.all() else ~found.lacks].mean()


def summary(
    results: BurstResults, found: list[Bursts], num_members: int
) -> list[tuple[str, float, str]]:
    """What the certificates come to: (what, value, its format).

    num_members: forward passes of one call of the classifier.
    """
    labels, length = results.labels, results.settings["data"]["length"]
    table = []
    for each in found:
        complete = ~each.lacks
        burst = each.windows.burst
        what = f"b = {burst} ({burst / length:.1%})"
        right = each.prediction == labels
        if (labels >= 0).all() and each.radius is None:
            table.append((f"{what}: right answers", right.mean(), ".2%"))
        certified = each.certified
        if complete.any():
            table.append((f"{what}: certified", certified[complete].mean(), ".2%"))
            if (labels >= 0).all():
                share = certified_share(each, labels)
                table.append((f"{what}: certified and right", share, ".2%"))
        if each.lacks.any():
            share = certified[each.lacks].mean()
            table.append((f"{what}: certified whatever they lack", share, ".2%"))
        if each.radius is not None:
            radius = float(each.radius.mean())
            table.append((f"{what}: mean radius", radius, ".4f"))
            table += summaries.in_own_units(radius, results.settings)
        passes = len(each.windows.kept) * num_members * results.settings.get("num_draws", 1)
        table.append((f"{what}: forward passes a series", passes, ".0f"))
    return [(what, float(value), form) for what, value, form in table]


def write(results: BurstResults, found: list[Bursts], folder: Path, num_members: int) -> None:
    """Writes the certificates, their record and curve; prints what they come to."""
    table = summary(results, found, num_members)
    alpha = FLAGS.alpha if under_noise() else None
    lacks = found[0].lacks
    statement = bursts.statement("b", alpha, bool(lacks.any()))
    records.write_bursts(folder, results, found, table, alpha)
    labelled = (results.labels >= 0).all()
    shares = [certified_share(each, results.labels) for each in found]
    title = counting.title(results.settings, len(results.indices))
    image = plots.burst_curve(
        np.array([each.windows.burst for each in found]),
        np.array(shares),
        results.settings["data"]["length"],
        title,
        note=f"{statement}; series: {cli.provenance(results.settings)}",
        what="certified accuracy" if labelled else "series certified",
    )
    runs.write_bytes(folder / f"{results.stem(alpha)}.png", image)
    cli.print_summary(
        title,
        statement,
        results.settings,
        table,
        f"{folder / results.stem(alpha)}.tsv (.json, .png)",
        radii=alpha is not None,
    )
