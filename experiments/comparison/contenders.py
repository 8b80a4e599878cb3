"""What the benchmark measures: certification and training, in JAX and in PyTorch.

A contender is a function that returns when its result is on the host. PyTorch is tuned first, so
that it is measured at its best and not only as published.
"""

import dataclasses
import functools
import itertools
import math
import multiprocessing
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Else JAX takes most of a GPU's memory and leaves PyTorch none.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# Else torch.compile starts processes that warn of what they leave behind.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

from common import flop

import jax
import jax.numpy as jnp
import numpy as np

from selfens_jax import backend, blocks, counting, data, masks, models, runs, smoothing, training

if TYPE_CHECKING:
    import torch
    from comparison import torch_baseline
else:
    try:
        import torch
        from comparison import torch_baseline
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        torch = torch_baseline = None


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
SIGMA, KEEP, MEMBERS = 0.8, 0.9, 5
COARSER = blocks.PRECISIONS[1:]  # on an accelerator
MANY = 25  # networks that are trained side by side


def timed(run: Callable[[], Any]) -> float:
    """Seconds until `run` has its result; every contender returns values on the host."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


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

    def variables(self) -> dict[str, Any]:
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
            return x[counting.evenly_spaced(self.num_examples, len(x))]
        shape = (self.num_examples, self.shape.length, 1)
        return np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def torch_net(self) -> Any:
        variables = jax.tree.map(np.asarray, self.variables())
        return torch_baseline.from_flax(
            self.model, variables, self.shape.num_classes, 1, self.shape.length
        ).to(device())


@functools.cache
def fresh_variables(net: Any, length: int) -> dict[str, Any]:
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles several times faster than the default
    return jax.jit(net.init)(key, jnp.zeros((1, length, 1)))


Run = Callable[[np.ndarray], np.ndarray]  # series (N, T, 1) -> counts (N, K)


def jax_certifier(case: Case, precision: str = "float32") -> Run:
    predict = jax_ensemble(case)
    return lambda x: smoothing.count_votes(predict, x, precision=precision, **noise(case))


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


def torch_with(case: Case, forward: Callable[..., Any], draws_per_batch: int) -> Run:
    masks_ = torch.tensor(case.masks(), device=device())
    return lambda x: on_each(
        x,
        lambda series: torch_baseline.count_votes(
            forward, series, masks_, SIGMA, case.num_draws, draws_per_batch
        ),
    )


def on_each(x: np.ndarray, count: Callable[..., Any]) -> np.ndarray:
    """Counts one example after another: (N, T, C) -> (N, K)."""
    series = torch.tensor(x.swapaxes(1, 2).copy(), device=device())
    return np.stack([count(one).cpu().numpy() for one in series])


# By name, for the process of their own in which memory is measured. One that must be tuned first
# takes its setup as a second argument.
CERTIFIERS: dict[str, Callable[..., Run]] = {
    "jax": jax_certifier,
    **{f"jax {p}": functools.partial(jax_certifier, precision=p) for p in COARSER},
    "jax consensus": jax_consensus,
    "torch published": torch_published,
    **{f"torch best {p}": torch_best for p in blocks.PRECISIONS},
}


def untuned(case: Case) -> list[str]:
    """The certifiers that are measured as they are, JAX's in float32 first."""
    names = ["jax", *(() if backend.on_cpu() else (f"jax {p}" for p in COARSER))]
    names += ["jax consensus"] if case.run else []
    return names if torch is None else [*names, "torch published"]


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


# PyTorch at its best


def tune_certification(
    case: Case, options: tuple[str, ...]
) -> tuple[dict[str, tuple[Any, Callable[..., Any], float]], str]:
    """PyTorch's best setups: name -> (setup, network, seconds of its first call); all trials.

    Those of coarser precisions only where they are faster than float32's.
    """
    torch.compiler.reset()
    net, masks_ = case.torch_net(), torch.tensor(case.masks(), device=device())
    series = torch.tensor(case.series()[0].T.copy(), device=device())
    kept: dict[Any, tuple[Any, Callable[..., Any], float]] = {}
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
    found, trials = torch_baseline.tune(seconds_per_draw, sizes, options)
    tuned = {f"torch best {precision}": kept[setup] for precision, setup in found.items()}
    return tuned, "; ".join(f"{setup}: {outcome(result, 'draw')}" for setup, result in trials)


def outcome(result: float | str, per: str) -> str:
    if isinstance(result, str):
        return f"failed ({result[:60]})"
    return f"{1e3 * result:.3g} ms a {per}"


# Training


def jax_training(
    case: Case,
    x: np.ndarray,
    y: np.ndarray,
    ensemble: str,
    members: int,
    epochs: int,
    turns: int,
    precision: str = "float32",
) -> Callable[[], Any]:
    config = training.TrainConfig(
        ensemble=ensemble,
        precision=precision,
        sigma=SIGMA,
        keep=KEEP,
        num_members=members,
        epochs=turns * epochs,
    )
    trainer = training.Trainer(case.net, config, len(x))
    states = training.init_states(trainer, x)
    reports = training.train(trainer, x, y, states, epochs_per_report=epochs)
    return lambda: jax.block_until_ready(next(reports)[0])


def torch_training(
    case: Case, batches: list[Any], weights: np.ndarray, setup: Any, members: int, steps: int
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


def tune_training(
    case: Case, batches: list[Any], weights: np.ndarray, options: tuple[str, ...]
) -> tuple[dict[str, Any], str]:
    """PyTorch's best setup for each precision, as in `tune_certification`; all trials."""
    torch.compiler.reset()

    def seconds_per_step(setup: Any) -> float:
        trainer = torch_trainer(case, weights, setup)

        def step() -> None:
            trainer.step(*batches[0])
            torch_baseline.synchronise(device())

        step()
        return min(timed(step) for _ in range(3))

    start = (torch_baseline.Setup().draws_per_batch,)  # means nothing in training
    found, trials = torch_baseline.tune(seconds_per_step, start, options)
    return found, "; ".join(f"{s.options}: {outcome(result, 'step')}" for s, result in trials)


# Work and memory


def forward_flop(case: Case) -> float:
    """Floating-point operations of one series' forward pass: the same for every contender."""
    return flop.of_forward_pass(case.net, case.shape.length)


def peak_memory(name: str, case: Case, arguments: tuple[Any, ...] = ()) -> float | None:
    """Megabytes at the highest during a warm run, beyond the imported libraries.

    On the host it is resident memory, in a fresh process; on a GPU what the framework allocated.
    None where the system does not tell.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_memory_here, (name, case, arguments))


def _peak_memory_here(name: str, case: Case, arguments: tuple[Any, ...]) -> float | None:
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
