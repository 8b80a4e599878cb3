"""Measures certification and training against PyTorch, alternating the two in one run.

    pip install .[bench]
    python experiments/benchmark.py
    python experiments/benchmark.py --what=scaling

Random series of the data sets' shapes and networks with fresh weights: neither changes the time.
Only how often masks agree depends on them, so a consensus is measured with --run_dir, a trained
run. Without PyTorch the JAX side is measured alone. Writes one table (.md, .csv) and one plot
(.png).
"""

import dataclasses
import datetime
import itertools
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import cli

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from comparison import tables
from comparison.contenders import (
    CERTIFIERS,
    COARSER,
    DATASETS,
    MANY,
    MEMBERS,
    Case,
    Run,
    consensus_counter,
    device,
    forward_flop,
    jax_certifier,
    jax_training,
    peak_memory,
    timed,
    torch,
    torch_baseline,
    torch_training,
    torch_with,
    tune_certification,
    tune_training,
    untuned,
)
from comparison.tables import Row

from selfens_jax import backend, models, runs, training
from selfens_jax.errors import UserError

SMOKE = {  # what --smoke sets, unless the flag is given
    "models": ["lstm_fcn"],
    "datasets": ["tiny"],
    "what": list(tables.PARTS),
    "num_draws": 40,
    "num_masks": 2,
    "repeats": 1,
    "torch_compile": False,
    "memory": False,
}

flags.DEFINE_list("models", list(models.NAMES), "Architectures.")
flags.DEFINE_list("datasets", list(DATASETS)[:3], "Data sets whose shapes the series have.")
cli.define_path(
    "run_dir", None, "A trained run, whose network and test series are measured in certify."
)
cli.define_path("data_dir", None, "With --run_dir: a folder in the archive's layout.")
flags.DEFINE_integer("consensus", 2, "With --run_dir: masks of the consensus measured beside.")
flags.DEFINE_list("what", ["certify", "train"], f"Any of {', '.join(tables.PARTS)}.")
flags.DEFINE_integer("num_draws", 1000, "n, noise draws an example.")
flags.DEFINE_integer("num_masks", 5, "m, masks of the self-ensemble.")
flags.DEFINE_integer("num_examples", 1, "Examples certified in each repeat.")
flags.DEFINE_integer("repeats", 5, "How often each side's turn comes.")
cli.define_time_limit("Minutes after which nothing new is started.")
flags.DEFINE_bool("memory", True, "Measure peak memory, each contender in a process of its own.")
flags.DEFINE_bool("torch_compile", True, "Try torch.compile, which takes minutes to compile.")
flags.DEFINE_bool("smoke", False, "Tiny sizes, to see that it runs; the times mean nothing.")
cli.define_path("output_dir", "experiments/results/benchmark", "Where the results go.")
flags.DEFINE_bool("compilation_cache", False, "Keep compiled programs; hides compile times.")
FLAGS = flags.FLAGS


class Clock:
    """Says when the time limit is reached, and keeps what it left unmeasured."""

    def __init__(self, minutes: float | None) -> None:
        self._deadline = time.monotonic() + 60 * (math.inf if minutes is None else minutes)
        self.left_out: list[str] = []

    def is_over(self) -> bool:
        return time.monotonic() > self._deadline

    def facts(self) -> dict[str, str]:
        return {"left out at the time limit": ", ".join(self.left_out)} if self.left_out else {}


def main() -> None:
    if FLAGS.smoke:
        for name, value in SMOKE.items():
            if not FLAGS[name].present:
                FLAGS[name].value = value
    check_flags()
    if torch is None:
        cli.say("PyTorch is not installed (pip install .[bench]): measuring JAX alone")
    else:
        torch.backends.cudnn.benchmark = True

    clock = Clock(FLAGS.time_limit)
    started = datetime.datetime.now()
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    stem = f"{started:%Y-%m-%d-%H%M%S}-{jax.default_backend()}{'-smoke' * FLAGS.smoke}"
    path = Path(FLAGS.output_dir) / stem
    measures = {"certify": certify, "train": train, "scaling": scale}
    facts = {
        "date": f"{started:%Y-%m-%d %H:%M}",
        "command": " ".join(["python experiments/benchmark.py", *sys.argv[1:]]),
        **processor(),
        "load average before the start": load,
        "versions": ", ".join(f"{k} {v}" for k, v in runs.versions().items()),
        "PyTorch": "not installed: JAX alone was measured" if torch is None else torch_facts(),
    }
    if FLAGS.smoke:
        facts["smoke"] = "tiny sizes: these times say nothing"
    rows: list[Row] = []
    try:
        for what, dataset, model in itertools.product(FLAGS.what, FLAGS.datasets, FLAGS.models):
            if what == "scaling" and dataset != FLAGS.datasets[0]:
                continue
            if clock.is_over():
                clock.left_out.append(f"{what} {model} {dataset}")
                continue
            cli.say(f"{what}: {model}, {dataset}")
            rows += measures[what](model, dataset, clock)
            tables.write(path, rows, facts | clock.facts())
    except KeyboardInterrupt:
        cli.say("interrupted; what was measured is kept")
    if not rows:
        raise UserError("nothing was measured: the time limit is too short")
    tables.write(path, rows, facts | clock.facts())
    print(f"written to {path}.md (.csv, .png)")


def check_flags() -> None:
    parts = tables.PARTS
    for name, known in (("models", models.NAMES), ("datasets", DATASETS), ("what", parts)):
        values = getattr(FLAGS, name)
        for value in values:
            if value not in known:
                raise UserError(f"--{name}: unknown {value!r}; choose from {', '.join(known)}")
        if not values:
            raise UserError(f"--{name} is empty")
    if FLAGS.run_dir is not None:
        check_run()
    for name in ("num_draws", "num_masks", "num_examples", "repeats"):
        if (value := getattr(FLAGS, name)) < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")


def check_run() -> None:
    """The run must be the one that --models and --datasets name, of a single network."""
    config = runs.read_config(Path(FLAGS.run_dir))
    asked = {"models": [config["model"]], "datasets": [config["data"]["name"]]}
    for name, value in asked.items():
        if FLAGS[name].present and FLAGS[name].value != value:
            raise UserError(
                f"--run_dir is of --{name}={value[0]}, not {','.join(getattr(FLAGS, name))}"
            )
        FLAGS[name].value = value
    if config["num_members"] != 1 or FLAGS.datasets[0] not in DATASETS:
        raise UserError(f"--run_dir must be one network on one of {', '.join(DATASETS)}")
    if not 2 <= FLAGS.consensus < FLAGS.num_masks:
        raise UserError(
            f"--consensus must be from 2 to {FLAGS.num_masks - 1}, not {FLAGS.consensus}"
        )


def torch_options() -> tuple[str, ...]:
    """What is tried to make PyTorch faster, in this order."""
    coarser = ("bfloat16",) if device() == "cpu" else COARSER
    return ("channels_last", *(["compiled"] if FLAGS.torch_compile else []), *coarser)


# Timing


def alternate(
    contenders: dict[str, Callable[[], Any]], repeats: int, clock: Clock
) -> dict[str, list[float]]:
    """Seconds of each contender's every turn. All take a turn before any takes the next."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            if clock.is_over():
                clock.left_out.append(name)
                return seconds
            seconds[name].append(timed(run))
            cli.say(f"  {name:<24} {seconds[name][-1]:9.3f} s")
    return seconds


def fill(row: Row, seconds: Sequence[float], per: int) -> Row:
    """The row with the median and spread of `seconds`, each over `per` examples or steps."""
    each = [value / per for value in seconds]
    if not each:
        return dataclasses.replace(row, note=f"not measured; {row.note}".rstrip("; "))
    return dataclasses.replace(
        row,
        repeats=len(each),
        median_seconds=statistics.median(each),
        min_seconds=min(each),
        max_seconds=max(each),
    )


def matrix_products(size: int) -> dict[str, Callable[[], Any]]:
    """Square float32 products in both frameworks: what the machine can do at best."""
    ones = np.ones((size, size), np.float32)
    left, product = jnp.asarray(ones), jax.jit(lambda a: a @ a)
    found = {"matrix product, jax": lambda: product(left).block_until_ready()}
    if torch is not None:
        right = torch.tensor(ones, device=device())

        def multiply() -> None:
            torch.matmul(right, right)
            torch_baseline.synchronise(device())

        found["matrix product, torch"] = multiply
    for run in found.values():
        run()
    return found


def matrix_size() -> int:
    return 256 if FLAGS.smoke else 2048 if backend.on_cpu() else 8192


def matrix_rows(
    what: str, model: str, dataset: str, seconds: dict[str, list[float]]
) -> tuple[list[Row], float | None]:
    """A row for each framework's matrix product, and the higher of their rates in GFLOP/s."""
    rows = []
    for name in [name for name in seconds if name.startswith("matrix product")]:
        size = matrix_size()
        row = fill(Row(what, model, dataset, name, note=f"{size} x {size}"), seconds[name], 1)
        if row.median_seconds:
            row.gflop_per_second = 2 * size**3 / row.median_seconds / 1e9
        rows.append(row)
    return rows, max((r.gflop_per_second for r in rows if r.gflop_per_second), default=None)


# Certification


def certify(model: str, dataset: str, clock: Clock) -> list[Row]:
    """Seconds an example of every contender."""
    case = Case(
        model,
        dataset,
        FLAGS.num_draws,
        FLAGS.num_masks,
        FLAGS.num_examples,
        FLAGS.run_dir or "",
        FLAGS.data_dir,
        FLAGS.consensus,
    )
    contenders: dict[str, Run] = {}
    arguments: dict[str, tuple[Any, ...]] = {}
    compile_seconds: dict[str, float] = {}
    notes = dict.fromkeys(CERTIFIERS, "")
    for name in untuned(case):
        contenders[name], arguments[name] = CERTIFIERS[name](case), ()
    if torch is not None:
        tuned, trials = tune_certification(case, torch_options())
        for name, (setup, forward, first) in tuned.items():
            contenders[name] = torch_with(case, forward, setup.draws_per_batch)
            arguments[name], notes[name] = (setup,), str(setup)
            if setup.compiled:
                compile_seconds[name] = first
        notes["torch best float32"] += f" (tried: {trials})"
        for precision in COARSER:
            if precision in torch_options() and f"torch best {precision}" not in tuned:
                notes["torch best float32"] += f"; {precision} was not faster"

    x = case.series()
    first_call = {name: timed(lambda run=run: run(x[:1])) for name, run in contenders.items()}
    turns = {name: (lambda run=run: run(x)) for name, run in contenders.items()}
    seconds = alternate(turns | matrix_products(matrix_size()), FLAGS.repeats, clock)
    products, best_rate = matrix_rows("certify", model, dataset, seconds)

    flop = forward_flop(case)
    rows = []
    for name in contenders:
        row = Row(
            "certify",
            model,
            dataset,
            name,
            case.num_draws,
            case.num_masks,
            case.num_examples,
            compile_seconds=compile_seconds.get(name),
            note=notes[name],
        )
        row = fill(row, seconds[name], case.num_examples)
        if row.median_seconds:
            forwards = case.num_draws * case.num_masks
            if name == "jax consensus":
                asked_all = consensus_counter(case)(x)[1].mean()
                forwards = case.num_draws * case.consensus
                forwards += asked_all * (case.num_masks - case.consensus)
                row.note = f"{forwards / case.num_draws:.3f} forward passes a draw"
            row.forwards_per_second = rate = forwards / row.median_seconds
            row.gflop_per_second = gflop = rate * flop / 1e9
            if best_rate:
                row.share_of_matrix_rate = gflop / best_rate
            if name.startswith("jax"):
                row.compile_seconds = max(0.0, first_call[name] - row.median_seconds)
            if FLAGS.memory and not clock.is_over():
                row.peak_megabytes = peak_memory(name, case, arguments[name])
        rows.append(row)
    return with_ratio(rows) + products


def with_ratio(rows: list[Row]) -> list[Row]:
    reference = rows[0].median_seconds
    for row in rows:
        if row.median_seconds and reference:
            row.ratio_to_jax = row.median_seconds / reference
    return rows


# Training


def train(model: str, dataset: str, clock: Clock) -> list[Row]:
    """Seconds a training step, and of a deep ensemble's step in all its members.

    On an accelerator, where members are side by side in one program, also of many.
    """
    shape = DATASETS[dataset]
    case = Case(model, dataset, 1, 1, shape.num_train)
    x = case.series()
    y = np.arange(shape.num_train) % shape.num_classes
    trainer = training.Trainer(case.net, training.TrainConfig(), len(x))
    steps_per_epoch, batch_size = trainer.steps_per_epoch, trainer.step.batch_size
    epochs = 1 if FLAGS.smoke else -(-10 // steps_per_epoch)
    steps = epochs * steps_per_epoch
    turns = FLAGS.repeats + 1  # the first compiles
    contenders: dict[str, Callable[[], Any]] = {
        "jax": jax_training(case, x, y, "mc", 1, epochs, turns),
        "jax, no masks": jax_training(case, x, y, "single", 1, epochs, turns),
    }
    for precision in () if backend.on_cpu() else COARSER:
        sizes = (1, epochs, turns)
        contenders[f"jax, {precision}"] = jax_training(case, x, y, "mc", *sizes, precision)
    for members in (MEMBERS,) if backend.on_cpu() else (MEMBERS, MANY):
        contenders[f"jax, {members} members"] = jax_training(
            case, x, y, "de", members, epochs, turns
        )
    notes: dict[str, str] = {}
    if torch is not None:
        rows = [range(s, s + batch_size) for s in range(0, len(x) - batch_size + 1, batch_size)]
        batches = [(x[list(r)].swapaxes(1, 2).copy(), y[list(r)]) for r in rows]
        tensors = [tuple(torch.tensor(a, device=device()) for a in batch) for batch in batches]
        weights = training.class_weights(y, shape.num_classes)
        tuned, trials = tune_training(case, tensors, weights, torch_options())
        plain = torch_baseline.Setup()
        contenders["torch"] = torch_training(case, tensors, weights, plain, 1, steps)
        for precision, setup in tuned.items():
            if setup != plain:
                name = f"torch best {precision}"
                contenders[name] = torch_training(case, tensors, weights, setup, 1, steps)
                notes[name] = setup.options
        contenders[f"torch, {MEMBERS} members"] = torch_training(
            case, tensors, weights, plain, MEMBERS, steps
        )
        notes["torch"] = f"tried: {trials}"

    first_call = {name: timed(run) for name, run in contenders.items()}
    seconds = alternate(contenders, FLAGS.repeats, clock)
    found = []
    for name in contenders:
        row = Row("train", model, dataset, name, note=notes.get(name, ""))
        row = fill(row, seconds[name], steps)
        row.note = f"batch {batch_size}; {row.note}".rstrip("; ")
        if name.startswith("jax") and row.median_seconds:
            row.compile_seconds = max(0.0, first_call[name] - steps * row.median_seconds)
        found.append(row)
    medians = {row.contender: row.median_seconds for row in found}
    for row in found:
        single = medians.get("jax, no masks" if row.contender.startswith("jax") else "torch")
        if "members" in row.contender and row.median_seconds and single:
            row.note += f"; {row.median_seconds / single:.2f} times one network"
    return with_ratio(found)


# Scaling


def scale(model: str, dataset: str, clock: Clock) -> list[Row]:
    """JAX's time against n, m and the number of examples, and its memory against n and examples."""
    n, m = FLAGS.num_draws, FLAGS.num_masks
    few = max(1, n // 5)  # of n = 1000 a multiple of a block's draws, as all sizes here
    lines = {
        "num_draws": [(value, m, 1) for value in (few, max(1, n // 2), n, 2 * n)],
        "num_masks": [(few, value, 1) for value in sorted({1, m, 2 * m})],
        "num_examples": [(few, m, value) for value in (1, 2, 4, 8)],
    }
    cases = {
        (varied, sizes): Case(model, dataset, *sizes)
        for varied, points in lines.items()
        for sizes in points
    }
    turns = {}
    for (varied, sizes), case in cases.items():
        run, x = jax_certifier(case), case.series()
        run(x[:1])
        name = f"{varied} {sizes[tuple(lines).index(varied)]}"
        turns[name] = lambda run=run, x=x: run(x)
    seconds = alternate(turns, FLAGS.repeats, clock)
    rows = []
    for name, ((varied, sizes), case) in zip(turns, cases.items(), strict=True):
        row = fill(Row("scaling", model, dataset, "jax", *sizes, note=varied), seconds[name], 1)
        if FLAGS.memory and varied != "num_masks" and row.median_seconds and not clock.is_over():
            row.peak_megabytes = peak_memory("jax", case)
        rows.append(row)
    return rows


# Facts


def processor() -> dict[str, str]:
    facts = {"cores": str(os.cpu_count())}
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        info = ""
    for key, name in (("model name", "processor"), ("flags", "vector instructions")):
        found = re.search(rf"^{key}\s*: (.*)$", info, re.MULTILINE)
        if found and key == "flags":
            vector = [f for f in found[1].split() if re.match(r"(fma|avx|amx)", f)]
            facts[name] = " ".join(vector)
        elif found:
            facts[name] = found[1]
    return facts


def torch_facts() -> str:
    where = f"{device()}, {torch.get_num_threads()} threads"
    if device() == "cuda":
        where += f", {torch.cuda.get_device_name()}; as published with PyTorch's default products"
    return f"{torch.__version__} ({where})"


if __name__ == "__main__":
    cli.run(main)
