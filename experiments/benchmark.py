"""Measures certification and training against PyTorch, alternating the two in one run.

    pip install .[bench]
    python experiments/benchmark.py
    python experiments/benchmark.py --what=scaling

Random series of the data sets' shapes and networks with fresh weights: neither changes the time.
Only how often masks agree depends on them, so a consensus is measured with --run_dir, a trained
run. Without PyTorch the JAX side is measured alone. Writes one table (.md, .csv) and one plot
(.png).
"""

import csv
import dataclasses
import datetime
import functools
import io
import itertools
import math
import multiprocessing
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

# Else JAX takes most of a GPU's memory and leaves PyTorch none.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# Else torch.compile starts processes that warn of what they leave behind.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import cli
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from selfens_jax import data, masks, models, plots, runs, smoothing, training
from selfens_jax.errors import UserError
from selfens_jax.models import convolution

try:
    import torch
    import torch_baseline
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    torch = None


@dataclasses.dataclass(frozen=True)
class Shape:
    length: int
    num_classes: int
    num_train: int


DATASETS = {
    "CBF": Shape(128, 3, 30),
    "SyntheticControl": Shape(60, 6, 300),
    "CricketX": Shape(300, 12, 390),
    "tiny": Shape(16, 2, 6),  # no data set: for trying the benchmark out
}
WHAT = ("certify", "train", "scaling")
SMOKE = {  # what --smoke sets, unless the flag is given
    "models": ["lstm_fcn"],
    "datasets": ["tiny"],
    "what": list(WHAT),
    "num_draws": 40,
    "num_masks": 2,
    "repeats": 1,
    "torch_compile": False,
    "memory": False,
}
SIGMA, KEEP, MEMBERS = 0.8, 0.9, 5

flags.DEFINE_list("models", list(models.NAMES), "Architectures.")
flags.DEFINE_list("datasets", list(DATASETS)[:3], "Data sets whose shapes the series have.")
flags.DEFINE_string(
    "run_dir", None, "A trained run, whose network and test series are measured in certify."
)
flags.DEFINE_string("data_dir", None, "With --run_dir: a folder in the archive's layout.")
flags.DEFINE_integer("consensus", 2, "With --run_dir: masks of the consensus measured beside.")
flags.DEFINE_list("what", ["certify", "train"], f"Any of {', '.join(WHAT)}.")
flags.DEFINE_integer("num_draws", 1000, "n, noise draws an example.")
flags.DEFINE_integer("num_masks", 5, "m, masks of the self-ensemble.")
flags.DEFINE_integer("num_examples", 1, "Examples certified in each repeat.")
flags.DEFINE_integer("repeats", 5, "How often each side's turn comes.")
flags.DEFINE_float("time_limit", None, "Minutes after which nothing new is started.")
flags.DEFINE_bool("memory", True, "Measure peak memory, each contender in a process of its own.")
flags.DEFINE_bool("torch_compile", True, "Try torch.compile, which takes minutes to compile.")
flags.DEFINE_bool("smoke", False, "Tiny sizes, to see that it runs; the times mean nothing.")
flags.DEFINE_string("output_dir", "experiments/results/benchmark", "Where the results go.")
flags.DEFINE_bool("compilation_cache", False, "Keep compiled programs; hides compile times.")
FLAGS = flags.FLAGS


@dataclasses.dataclass
class Row:
    """One line of the table. Times are seconds an example (certify) or a training step (train)."""

    what: str
    model: str
    dataset: str
    contender: str
    num_draws: int | None = None
    num_masks: int | None = None
    num_examples: int | None = None
    repeats: int = 0
    median_seconds: float | None = None
    min_seconds: float | None = None
    max_seconds: float | None = None
    ratio_to_jax: float | None = None
    forwards_per_second: float | None = None
    gflop_per_second: float | None = None
    share_of_matrix_rate: float | None = None
    compile_seconds: float | None = None
    peak_megabytes: float | None = None
    note: str = ""


class Clock:
    """Says when the time limit is reached, and keeps what it left unmeasured."""

    def __init__(self, minutes: float | None) -> None:
        self._deadline = time.monotonic() + 60 * (math.inf if minutes is None else minutes)
        self.left_out: list[str] = []

    def is_over(self) -> bool:
        return time.monotonic() > self._deadline


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
        **machine(),
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
            write(path, rows, facts, clock)
    except KeyboardInterrupt:
        cli.say("interrupted; what was measured is kept")
    if not rows:
        raise UserError("nothing was measured: the time limit is too short")
    write(path, rows, facts, clock)
    print(f"written to {path}.md (.csv, .png)")


def check_flags() -> None:
    for name, known in (("models", models.NAMES), ("datasets", DATASETS), ("what", WHAT)):
        for value in FLAGS[name].value:
            if value not in known:
                raise UserError(f"--{name}: unknown {value!r}; choose from {', '.join(known)}")
        if not FLAGS[name].value:
            raise UserError(f"--{name} is empty")
    if FLAGS.run_dir is not None:
        check_run()
    for name in ("num_draws", "num_masks", "num_examples", "repeats"):
        if FLAGS[name].value < 1:
            raise UserError(f"--{name} must be at least 1, not {FLAGS[name].value}")


def check_run() -> None:
    """The run must be the one that --models and --datasets name, of a single network."""
    config = runs.read_json(Path(FLAGS.run_dir) / "config.json")
    asked = {"models": [config["model"]], "datasets": [config["data"]["name"]]}
    for name, value in asked.items():
        if FLAGS[name].present and FLAGS[name].value != value:
            raise UserError(
                f"--run_dir is of --{name}={value[0]}, not {','.join(FLAGS[name].value)}"
            )
        FLAGS[name].value = value
    if config["num_members"] != 1 or FLAGS.datasets[0] not in DATASETS:
        raise UserError(f"--run_dir must be one network on one of {', '.join(DATASETS)}")
    if not 2 <= FLAGS.consensus < FLAGS.num_masks:
        raise UserError(
            f"--consensus must be from 2 to {FLAGS.num_masks - 1}, not {FLAGS.consensus}"
        )


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


def timed(run: Callable[[], Any]) -> float:
    """Seconds until `run` has its result; every contender returns values on the host."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


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
            right @ right
            torch_baseline.synchronise(device())

        found["matrix product, torch"] = multiply
    for run in found.values():
        run()
    return found


def matrix_size() -> int:
    return 256 if FLAGS.smoke else 2048 if jax.default_backend() == "cpu" else 8192


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


# Work


@dataclasses.dataclass(frozen=True)
class Case:
    """What every contender is given: a network, masks and series."""

    model: str
    dataset: str
    num_draws: int
    num_masks: int
    num_examples: int
    run: str = ""  # a trained run, instead of fresh weights and random series
    data_dir: str | None = None
    consensus: int = 0

    @property
    def shape(self) -> Shape:
        return DATASETS[self.dataset]

    @property
    def net(self) -> Any:
        return models.create(self.model, self.shape.num_classes)

    def variables(self) -> dict:
        if not self.run:
            return fresh_variables(self.net, self.shape.length)
        _, stacked, _ = runs.load_networks(Path(self.run))
        return models.unstack(stacked)[0]

    def masks(self) -> np.ndarray:
        return np.asarray(
            masks.continuous(jax.random.key(1), self.num_masks, self.shape.length, KEEP)
        )

    def series(self) -> np.ndarray:
        if self.run:
            x = data.load(self.dataset, self.data_dir).x_test
            return x[runs.evenly_spaced(self.num_examples, len(x))]
        shape = (self.num_examples, self.shape.length, 1)
        return np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def torch_net(self) -> Any:
        variables = jax.tree.map(np.asarray, self.variables())
        return torch_baseline.from_flax(
            self.model, variables, self.shape.num_classes, 1, self.shape.length
        ).to(device())


@functools.cache
def fresh_variables(net: Any, length: int) -> dict:
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles several times faster than the default
    return jax.jit(net.init)(key, jnp.zeros((1, length, 1)))


Run = Callable[[np.ndarray], np.ndarray]  # series (N, T, 1) -> counts (N, K)


def jax_certifier(case: Case) -> Run:
    predict = jax_ensemble(case)
    return lambda x: smoothing.count_votes(predict, x, **noise(case))


def jax_consensus(case: Case) -> Run:
    count = consensus_counter(case)
    return lambda x: count(x)[0]


def consensus_counter(case: Case) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """As `jax_consensus`, with the number of draws that needed every mask."""
    predict = smoothing.consensus(jax_ensemble(case), case.consensus)
    return lambda x: smoothing.count_consensus_votes(predict, x, **noise(case))


def jax_ensemble(case: Case) -> smoothing.SelfEnsemble:
    return smoothing.self_ensemble(case.net, case.variables(), case.masks())


def noise(case: Case) -> dict[str, Any]:
    return {"sigma": SIGMA, "num_draws": case.num_draws, "key": jax.random.key(2)}


def torch_published(case: Case) -> Run:
    net, masks_ = case.torch_net(), torch.tensor(case.masks(), device=device())
    return lambda x: on_each(
        x,
        lambda series: torch_baseline.count_votes_as_published(
            net, series, masks_, SIGMA, case.num_draws
        ),
    )


def torch_best(case: Case, setup: Any) -> Run:
    forward = torch_baseline.prepare(case.torch_net(), setup)
    return torch_with(case, forward, setup.draws_per_batch)


def torch_with(case: Case, forward: Callable, draws_per_batch: int) -> Run:
    masks_ = torch.tensor(case.masks(), device=device())
    return lambda x: on_each(
        x,
        lambda series: torch_baseline.count_votes(
            forward, series, masks_, SIGMA, case.num_draws, draws_per_batch
        ),
    )


def on_each(x: np.ndarray, count: Callable) -> np.ndarray:
    """Counts one example after another: (N, T, C) -> (N, K)."""
    series = torch.tensor(x.swapaxes(1, 2).copy(), device=device())
    return np.stack([count(one).cpu().numpy() for one in series])


# Every contender, by name. One that must be tuned first takes its setup as a second argument.
CERTIFIERS: dict[str, Callable[..., Run]] = {
    "jax": jax_certifier,
    "jax consensus": jax_consensus,
    "torch published": torch_published,
    "torch best float32": torch_best,
    "torch best": torch_best,
}


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


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
    arguments: dict[str, tuple] = {}
    compile_seconds: dict[str, float] = {}
    notes = dict.fromkeys(CERTIFIERS, "")
    for name in CERTIFIERS:
        if (
            name == "jax"
            or (name == "jax consensus" and case.run)
            or (torch is not None and name == "torch published")
        ):
            contenders[name], arguments[name] = CERTIFIERS[name](case), ()
    if torch is not None:
        tuned, trials = tune_certification(case)
        for name, (setup, forward, first) in tuned.items():
            contenders[name] = torch_with(case, forward, setup.draws_per_batch)
            arguments[name], notes[name] = (setup,), str(setup)
            if setup.compiled:
                compile_seconds[name] = first
        notes["torch best float32"] += f" (tried: {trials})"
        if "torch best" not in tuned:
            notes["torch best float32"] += "; bfloat16 was not faster"

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
            row.forwards_per_second = forwards / row.median_seconds
            row.gflop_per_second = row.forwards_per_second * flop / 1e9
            if best_rate:
                row.share_of_matrix_rate = row.gflop_per_second / best_rate
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


def tune_certification(case: Case) -> tuple[dict[str, tuple[Any, Callable, float]], str]:
    """PyTorch's best setups: name -> (setup, network, seconds of its first call); all trials."""
    torch.compiler.reset()
    net, masks_ = case.torch_net(), torch.tensor(case.masks(), device=device())
    series = torch.tensor(case.series()[0].T.copy(), device=device())
    kept: dict[Any, tuple[Any, Callable, float]] = {}
    measured: list[float] = []

    def seconds_per_draw(setup: Any) -> float:
        forward = torch_baseline.prepare(net, setup)
        size = setup.draws_per_batch

        def one_batch() -> None:
            torch_baseline.count_votes(forward, series, masks_, SIGMA, size, size)
            torch_baseline.synchronise(device())

        first = timed(one_batch)
        kept[setup] = (setup, forward, first)
        seconds = [timed(one_batch) / size]
        if seconds[0] < 2 * min(measured, default=math.inf):  # else it is out of the question
            turns = 3 * min(10, max(1, 100 // size)) - 1
            seconds += [timed(one_batch) / size for _ in range(turns)]
        measured.append(min(seconds))
        return measured[-1]

    sizes = (20, 50, 100, 200) if device() == "cpu" else (100, 250, 500, 1000)
    sizes = tuple(size for size in sizes if size <= case.num_draws) or (case.num_draws,)
    best_float32, best, trials = torch_baseline.tune(seconds_per_draw, sizes, options())
    tuned = {"torch best float32": kept[best_float32]}
    if best != best_float32:
        tuned["torch best"] = kept[best]
    return tuned, "; ".join(f"{setup}: {outcome(result, 'draw')}" for setup, result in trials)


def options() -> tuple[str, ...]:
    return ("channels_last", *(["compiled"] if FLAGS.torch_compile else []), "bfloat16")


def outcome(result: float | str, per: str) -> str:
    if isinstance(result, str):
        return f"failed ({result[:60]})"
    return f"{1e3 * result:.3g} ms a {per}"


def forward_flop(case: Case) -> float:
    """Floating-point operations of one series' forward pass, multiply and add counted apart.

    Counts the direct convolutions, whichever way they are computed, padding included, and the
    matrix products: the same work for every contender.
    """
    x = jnp.zeros((1, case.shape.length, 1))
    with mock.patch.object(convolution, "SHORTEST", math.inf):
        variables = jax.eval_shape(case.net.init, jax.random.key(0), x)
        traced = jax.make_jaxpr(lambda v: case.net.apply(v, x, train=False))(variables)
    return 2.0 * _multiply_adds(traced.jaxpr)


def _multiply_adds(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        outputs = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            filters = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += outputs * math.prod(kernel) // filters
        elif name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += outputs * math.prod(equation.invars[0].aval.shape[d] for d in contracted)
        for inner in jax.tree.leaves(
            list(params.values()), is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                total += params.get("length", 1) * _multiply_adds(inner)
    return total


# Memory


def peak_memory(name: str, case: Case, arguments: tuple = ()) -> float | None:
    """Megabytes at the highest during a warm run, beyond the imported libraries.

    On the host it is resident memory, in a fresh process; on a GPU what the framework allocated.
    None where the system does not tell.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_memory_here, (name, case, arguments))


def _peak_memory_here(name: str, case: Case, arguments: tuple) -> float | None:
    on_gpu = jax.default_backend() == "gpu"
    jnp.zeros(1).block_until_ready()
    before = _status_megabytes("VmRSS")
    run, x = CERTIFIERS[name](case, *arguments), case.series()
    run(x[:1])
    if on_gpu and name.startswith("torch"):
        torch.cuda.reset_peak_memory_stats()
        run(x)
        return torch.cuda.max_memory_allocated() / 1e6
    if on_gpu:
        run(x)
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 1e6
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    except OSError:
        return None
    run(x)
    after = _status_megabytes("VmHWM")
    return None if before is None or after is None else after - before


def _status_megabytes(field: str) -> float | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else None


# Training


def train(model: str, dataset: str, clock: Clock) -> list[Row]:
    """Seconds a training step, and of a deep ensemble's step in all its members."""
    shape = DATASETS[dataset]
    case = Case(model, dataset, 1, 1, shape.num_train)
    x = case.series()
    y = np.arange(shape.num_train) % shape.num_classes
    trainer = training.Trainer(case.net, training.TrainConfig(), len(x))
    steps_per_epoch, batch_size = trainer.steps_per_epoch, trainer.batch_size
    epochs = 1 if FLAGS.smoke else -(-10 // steps_per_epoch)
    steps = epochs * steps_per_epoch
    contenders: dict[str, Callable[[], Any]] = {
        "jax": jax_training(case, x, y, "mc", 1, epochs),
        "jax, no masks": jax_training(case, x, y, "single", 1, epochs),
        f"jax, {MEMBERS} members": jax_training(case, x, y, "de", MEMBERS, epochs),
    }
    notes = {}
    if torch is not None:
        rows = [range(s, s + batch_size) for s in range(0, len(x) - batch_size + 1, batch_size)]
        batches = [(x[list(r)].swapaxes(1, 2).copy(), y[list(r)]) for r in rows]
        tensors = [tuple(torch.tensor(a, device=device()) for a in batch) for batch in batches]
        weights = training.class_weights(y, shape.num_classes)
        setup, trials = tune_training(case, tensors, weights)
        plain = torch_baseline.Setup()
        contenders["torch"] = torch_training(case, tensors, weights, plain, 1, steps)
        if setup != plain:
            contenders["torch best"] = torch_training(case, tensors, weights, setup, 1, steps)
        contenders[f"torch, {MEMBERS} members"] = torch_training(
            case, tensors, weights, plain, MEMBERS, steps
        )
        notes["torch"] = f"tried: {trials}"
        notes["torch best"] = setup.options

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


def jax_training(
    case: Case, x: np.ndarray, y: np.ndarray, ensemble: str, members: int, epochs: int
) -> Callable[[], Any]:
    config = training.TrainConfig(
        ensemble=ensemble,
        sigma=SIGMA,
        keep=KEEP,
        num_members=members,
        epochs=epochs * (FLAGS.repeats + 1),
    )
    trainer = training.Trainer(case.net, config, len(x))
    states = training.init_states(trainer, x)
    reports = training.train(trainer, x, y, states, epochs_per_report=epochs)
    return lambda: jax.block_until_ready(next(reports)[0])


def torch_training(
    case: Case, batches: list, weights: np.ndarray, setup: Any, members: int, steps: int
) -> Callable[[], Any]:
    trainers = [torch_trainer(case, weights, setup) for _ in range(members)]

    def run() -> None:
        for trainer in trainers:
            for _, (x, y) in zip(range(steps), itertools.cycle(batches), strict=False):
                trainer.step(x, y)
        torch_baseline.synchronise(device())

    return run


def torch_trainer(case: Case, weights: np.ndarray, setup: Any) -> Any:
    pool = np.asarray(masks.continuous(jax.random.key(3), 256, case.shape.length, KEEP))
    return torch_baseline.Trainer(
        case.torch_net(),
        setup,
        SIGMA,
        torch.tensor(pool, device=device()),
        torch.tensor(weights, device=device()),
    )


def tune_training(case: Case, batches: list, weights: np.ndarray) -> tuple[Any, str]:
    torch.compiler.reset()

    def seconds_per_step(setup: Any) -> float:
        trainer = torch_trainer(case, weights, setup)

        def step() -> None:
            trainer.step(*batches[0])
            torch_baseline.synchronise(device())

        step()
        return min(timed(step) for _ in range(3))

    start = (torch_baseline.Setup().draws_per_batch,)  # means nothing in training
    _, best, trials = torch_baseline.tune(seconds_per_step, start, options())
    return best, "; ".join(f"{s.options}: {outcome(result, 'step')}" for s, result in trials)


# Scaling


def scale(model: str, dataset: str, clock: Clock) -> list[Row]:
    """JAX's time against n, m and the number of examples, and its memory against n and examples."""
    n, m = FLAGS.num_draws, FLAGS.num_masks
    few = max(1, n // 5)  # of n = 1000 a whole number of blocks of draws, as all sizes here
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


def straight_line(rows: list[Row], varied: str) -> str:
    """How far the measured times are from a line: a sentence."""
    points = [
        (getattr(row, varied), row.median_seconds)
        for row in rows
        if row.note == varied and row.median_seconds
    ]
    if len(points) < 3:
        return f"{varied}: too few points"
    sizes, seconds = np.array(points, float).T
    slope, start = np.polyfit(sizes, seconds, 1, w=1 / seconds)
    off = np.abs((start + slope * sizes) / seconds - 1).max()
    return (
        f"{varied}: {start:.3g} s + {slope:.3g} s each; the farthest point is {off:.1%} off the "
        "line"
    )


# Output


def write(path: Path, rows: list[Row], facts: dict[str, str], clock: Clock) -> None:
    facts = dict(facts)
    if clock.left_out:
        facts["left out at the time limit"] = ", ".join(clock.left_out)
    names = [field.name for field in dataclasses.fields(Row)]
    text = io.StringIO()
    for key, value in facts.items():
        text.write(f"# {key}: {value}\n")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    runs.write_bytes(path.with_name(path.name + ".csv"), text.getvalue().encode())
    runs.write_bytes(path.with_name(path.name + ".md"), markdown(rows, facts).encode())
    runs.write_bytes(path.with_name(path.name + ".png"), figure(rows, facts))


def machine() -> dict[str, str]:
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
        where += f", {torch.cuda.get_device_name()}, TF32 as PyTorch's defaults have it"
    return f"{torch.__version__} ({where})"


TABLE_HEADS = {
    "certify": "One example certified",
    "train": "One training step",
    "scaling": "Time for all examples of one call",
}
_WHO = (("model", "model", "{}"), ("dataset", "series", "{}"), ("contender", "contender", "{}"))


def _spread(form: str) -> tuple[tuple[str, str, str], ...]:
    heads = {"median_seconds": "s", "min_seconds": "min", "max_seconds": "max"}
    return tuple((name, head, form) for name, head in heads.items())


_RATIO, _COMPILE = (
    ("ratio_to_jax", "times jax", "{:.2f}"),
    ("compile_seconds", "compile s", "{:.1f}"),
)
_PEAK = ("peak_megabytes", "peak MB", "{:.0f}")
COLUMNS = {  # field of a row, its head, its format
    "certify": (
        *_WHO,
        *_spread("{:.3f}"),
        _RATIO,
        ("forwards_per_second", "forwards/s", "{:.0f}"),
        ("gflop_per_second", "GFLOP/s", "{:.1f}"),
        ("share_of_matrix_rate", "of matrix rate", "{:.0%}"),
        _PEAK,
        _COMPILE,
    ),
    "train": (*_WHO, *_spread("{:.4f}"), _RATIO, _COMPILE, ("note", "", "{}")),
    "scaling": (
        ("model", "model", "{}"),
        ("note", "varied", "{}"),
        ("num_draws", "n", "{}"),
        ("num_masks", "m", "{}"),
        ("num_examples", "examples", "{}"),
        *_spread("{:.3f}"),
        _PEAK,
    ),
}


def markdown(rows: list[Row], facts: dict[str, str]) -> str:
    lines = ["# Benchmark", "", *(f"- {key}: {value}" for key, value in facts.items())]
    for what, head in TABLE_HEADS.items():
        some = [row for row in rows if row.what == what]
        if not some:
            continue
        columns = COLUMNS[what]
        lines += ["", f"## {head}", ""]
        if what == "certify":
            lines += [
                f"n = {FLAGS.num_draws}, m = {FLAGS.num_masks}, {FLAGS.num_examples} example(s), "
                f"{FLAGS.repeats} turns in alternation; medians, with the fastest and the slowest "
                "turn. Peak MB: highest during a warm run, beyond the imported libraries.",
                "",
            ]
        lines.append("| " + " | ".join(title for _, title, _ in columns) + " |")
        lines.append("|" + "---|" * len(columns))
        for row in some:
            cells = [
                "" if getattr(row, name) is None else form.format(getattr(row, name))
                for name, _, form in columns
            ]
            lines.append("| " + " | ".join(cells) + " |")
        if what == "certify":
            lines += [""] + [
                f"- {row.model}, {row.dataset}, {row.contender}: {row.note}"
                for row in some
                if row.note and not row.contender.startswith("matrix")
            ]
        if what == "scaling":
            for model in dict.fromkeys(row.model for row in some):
                of_model = [row for row in some if row.model == model]
                lines += [""] + [
                    f"- {model}, {straight_line(of_model, varied)}"
                    for varied in ("num_draws", "num_masks", "num_examples")
                ]
    return "\n".join(lines) + "\n"


def figure(rows: list[Row], facts: dict[str, str]) -> bytes:
    """A PNG with one line of panels for certification, one for training, one for scaling."""
    parts = [what for what in WHAT if any(row.what == what for row in rows)]
    drawn = plots.new_figure(9.6, 3.6 * len(parts))
    panels = drawn.subfigures(len(parts), 1, squeeze=False)[:, 0]
    for what, part in zip(parts, panels, strict=True):
        some = [row for row in rows if row.what == what and row.median_seconds]
        some = [row for row in some if not row.contender.startswith("matrix")]
        (_lines if what == "scaling" else _points)(part, some, what)
    note = "; ".join(
        f"{key}: {facts[key]}" for key in ("date", "processor", "PyTorch") if key in facts
    )
    return plots.png(drawn, "Benchmark", note)


def _points(part: Any, rows: list[Row], what: str) -> None:
    axes = part.subplots()
    groups = list(dict.fromkeys((row.model, row.dataset) for row in rows))
    names = list(dict.fromkeys(row.contender for row in rows))
    width = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        some = [row for row in rows if row.contender == name]
        place = [groups.index((r.model, r.dataset)) + (number + 0.5) * width for r in some]
        middle = np.array([row.median_seconds for row in some])
        spread = [
            middle - [row.min_seconds for row in some],
            [row.max_seconds for row in some] - middle,
        ]
        colour = plots.COLOURS[number % len(plots.COLOURS)]
        axes.errorbar(place, middle, spread, fmt="o", color=colour, capsize=3, label=name)
    axes.set_xticks(
        np.arange(len(groups)) + 0.4, [f"{model}\n{data}" for model, data in groups], fontsize=7
    )
    unit = "an example" if what == "certify" else "a step"
    axes.set(yscale="log", ylabel=f"seconds {unit}", title=TABLE_HEADS[what])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=7, ncols=max(1, len(names)), loc="upper left")
    axes.margins(y=0.25)


def _lines(part: Any, rows: list[Row], what: str) -> None:
    panels = part.subplots(1, 4)
    for number, model in enumerate(dict.fromkeys(row.model for row in rows)):
        colour = plots.COLOURS[number % len(plots.COLOURS)]
        for axes, varied in zip(
            panels[:3], ("num_draws", "num_masks", "num_examples"), strict=True
        ):
            some = [row for row in rows if row.note == varied and row.model == model]
            x = [getattr(row, varied) for row in some]
            axes.plot(x, [row.median_seconds for row in some], "o-", color=colour, label=model)
            axes.set(xlabel=varied)
        for varied, style in (("num_draws", "o-"), ("num_examples", "s--")):
            some = [row for row in rows if row.note == varied and row.model == model]
            some = [row for row in some if row.peak_megabytes is not None]
            x = [row.num_draws * row.num_examples for row in some]
            label = f"{model}, {varied}"
            y = [row.peak_megabytes for row in some]
            panels[3].plot(x, y, style, color=colour, label=label)
    panels[0].set(ylabel="seconds", title="Time")
    panels[3].set(xlabel="n x examples", ylabel="peak MB", title="Memory")
    for axes in panels:
        axes.grid(alpha=0.3)
        # Room above the points, however flat they lie.
        axes.set(xlim=(0, 1.1 * axes.get_xlim()[1]), ylim=(0, 1.1 * axes.get_ylim()[1]))
    panels[0].legend(frameon=False, fontsize=7)
    panels[3].legend(frameon=False, fontsize=6)


if __name__ == "__main__":
    cli.run(main)
