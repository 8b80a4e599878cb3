"""train.py and certify.py, run as a user runs them: every number they write is worked out again.

What is expected here comes from loops over single draws, from SciPy's distributions and from sums
written out, not from the code that is tested: networks are read from their checkpoints by Orbax and
applied one mask at a time. No flag has its default, labels follow no rule, and votes are not
unanimous, so that another value, example, class, seed or draw that a script hands on shows.
`test_recomputed_decisions`, `_attack` and `_margins` do the same for the other commands.
"""

import concurrent.futures
import csv
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import zlib
from collections.abc import Callable

import forked
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import grid_noise, read_record, to_grid
from orbax.checkpoint import v1 as ocp
from PIL import Image
from scipy import optimize, stats
from test_scripts import ROOT

from selfens_jax import masks, plots
from selfens_jax.models.lstm_fcn import LSTMFCN
from selfens_jax.noise import deviation
from selfens_jax.streams import stream

LENGTH, CHANNELS, CLASSES = 16, 2, ("a", "b", "c")
MODEL = LSTMFCN(len(CLASSES))
SIGMA, KEEP, SEED, MASK_SEED, NOISE_SEED, NUM_MASKS = 0.7, 0.8, 3, 5, 7, 3
SIGMA_SHOWN = np.nextafter(np.float32(SIGMA), np.float32(1))  # float32 has no 0.7: the next above
GRID = 2.0**-7  # of the noise; the usual one is 2^-14
ALPHA, NUM_DRAWS = 0.03, 130
CHOSEN = np.array([0, 1, 2, 4, 5, 7, 8, 10, 11])  # 9 of 13, evenly spaced
Y_TRAIN = np.array(list("bcabbacbbcabbcbab"))
Y_TEST = np.array(list("cabbcbaabbccb"))
LABELS = np.array([CLASSES.index(label) for label in Y_TEST])

OWN = ("--dataset=own.npz", "--model=lstm_fcn", f"--seed={SEED}")
MC = (*OWN, f"--sigma={SIGMA}", f"--keep={KEEP}")
DE = (*OWN, f"--sigma={SIGMA}", "--ensemble=de", "--scaling=z_score")
BENIGN = (*OWN, "--sigma=0", "--ensemble=single")
EPOCHS, BATCH_SIZE, LEARNING_RATE, STEPS = 3, 5, 0.01, 4  # 17 series are 4 batches
OF_TRAINING = (f"--epochs={EPOCHS}", f"--batch_size={BATCH_SIZE}")
OF_TRAINING += (f"--learning_rate={LEARNING_RATE}",)
OF_MC = (f"--mask_seed={MASK_SEED}", f"--noise_seed={NOISE_SEED}", f"--num_masks={NUM_MASKS}")
OF_GRID = (f"--grid={GRID}",)


# What is given, and how commands are run


def make_data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)

    def series(labels: np.ndarray) -> np.ndarray:
        time = np.linspace(-1, 1, LENGTH)[:, None] * np.ones(CHANNELS)
        shapes = {"a": 0.5 * time, "b": 0.3 + 0 * time, "c": -0.5 * time}
        means = np.stack([shapes[label] for label in labels])
        return means + rng.normal(scale=0.6, size=means.shape)

    splits = {"train": Y_TRAIN, "test": Y_TEST}
    return {
        name: value
        for split, labels in splits.items()
        for name, value in ((f"X_{split}", series(labels)), (f"y_{split}", labels))
    }


def script(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a script with its flags in the folder; programs are compiled in less time than usual."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    name, *others = arguments
    done = forked.run(ROOT / "experiments" / f"{name}.py", others, folder, XLA_FLAGS=flags)
    assert done.returncode == 0, done.stderr
    return done


def run_all(folder: pathlib.Path, commands: dict) -> dict[str, subprocess.CompletedProcess]:
    """What the commands said, run two at a time."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda arguments: script(folder, *arguments), commands.values())
        return dict(zip(commands, done, strict=True))


OF_RUNS = {
    "mc": MC,
    "de": (*DE, "--num_members=2", "--class_weights=none"),
    "single": BENIGN,
}


@functools.cache
def train(folder: pathlib.Path, ensemble: str) -> subprocess.CompletedProcess:
    """What train.py said; once in a folder."""
    return script(folder, "train", *OF_RUNS[ensemble], *OF_TRAINING)


def prepare(factory: pytest.TempPathFactory, *ensembles: str) -> pathlib.Path:
    """The folder in which all commands run, with own.npz and these runs of it."""
    folder = factory.getbasetemp() / "recomputed"
    if not folder.exists():
        folder.mkdir()
        np.savez(folder / "own.npz", **make_data())
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(functools.partial(train, folder), ensembles))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return prepare(tmp_path_factory, *OF_RUNS)


def run_of(ensemble: str, sigma: float = SIGMA) -> str:
    return f"runs/own/lstm_fcn/{ensemble}/sigma={sigma:g}/seed={SEED}"


def x_of(split: str, scaling: str = "none") -> np.ndarray:
    x = make_data()[f"X_{split}"]
    if scaling == "z_score":
        x = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, ddof=1, keepdims=True)
    return x.astype(np.float32)


# Networks, masks and noise


def checkpoint(run: pathlib.Path, members: int) -> dict:
    """The variables in a run's checkpoint, as they are: members first."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    example = jnp.zeros((1, LENGTH, CHANNELS))
    like = jax.eval_shape(MODEL.init, jax.random.key(0), example)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((members, *leaf.shape), leaf.dtype, sharding=sharding),
        dict(like),
    )
    return jax.tree.map(np.asarray, ocp.load(run / "checkpoint", abstract))


def digest(tree: dict | np.ndarray) -> str:
    """sha256 of arrays with their places, types and shapes, as records have it of weights."""
    sha = hashlib.sha256()

    def add(value, place: str) -> None:
        if isinstance(value, dict):
            for name in sorted(value):
                add(value[name], f"{place}['{name}']")
        else:
            sha.update(f"{place}{value.dtype.str}{value.shape}".encode() + value.tobytes())

    add(tree, "")
    return sha.hexdigest()


_apply = jax.jit(lambda variables, x: MODEL.apply(variables, x, train=False))


def networks(run: pathlib.Path, members: int = 1) -> list[Callable]:
    """The run's networks, each a function of series (B, T, C) that gives logits (B, K)."""
    stacked = checkpoint(run, members)
    each = [jax.tree.map(lambda leaf, m=m: leaf[m], stacked) for m in range(members)]
    return [functools.partial(_apply, variables) for variables in each]


def the_masks(number: int = NUM_MASKS) -> np.ndarray:
    return np.asarray(masks.continuous(stream(MASK_SEED, "masks"), number, LENGTH, KEEP))


def under_masks(network: Callable, of_masks: np.ndarray) -> list[Callable]:
    return [lambda x, mask=mask: network(mask[:, None] * x) for mask in of_masks]


def noised(series: np.ndarray, index: int, num_draws: int, grid: float | None) -> np.ndarray:
    """(n, T, C): the series with each draw's noise, which has a key of its own.

    grid: of series and noise; None for noise in float32.
    """
    of_example = jax.random.fold_in(stream(NOISE_SEED, "certification"), index)
    keys = [jax.random.fold_in(of_example, draw) for draw in range(num_draws)]
    if grid is None:
        noise = [np.asarray(jax.random.normal(key, series.shape)) for key in keys]
        return series + SIGMA_SHOWN * np.stack(noise)
    noise = [grid_noise(key, series.shape, SIGMA, grid) for key in keys]
    return (to_grid(series, grid) + np.stack(noise)).astype(np.float32)


def member_logits(
    members: list[Callable], x: np.ndarray, indices, num_draws: int, grid: float | None = GRID
) -> np.ndarray:
    """(N, n, members, K), not averaged."""
    of_examples = []
    for series, index in zip(x, indices, strict=True):
        shown = noised(series, index, num_draws, grid)
        of_examples.append(np.stack([np.asarray(one(shown)) for one in members], axis=1))
    return np.stack(of_examples)


def vote(logits: np.ndarray, first: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Of logits (N, n, members, K): the votes (N, n) and the forward passes that each takes.

    With `first`, of a consensus of so many members.
    """
    logits = logits.astype(np.float64)
    votes, of_first = logits.mean(axis=2).argmax(axis=2), logits[:, :, :first].argmax(axis=3)
    agreed = (of_first == of_first[:, :, :1]).all(axis=2) & (first is not None)
    # Rounding may turn a draw whose best two classes tie; these draws have none.
    together = np.concatenate([logits.mean(axis=2, keepdims=True), logits], axis=2)
    best_two = np.sort(together if first else together[:, :, :1], axis=3)[..., -2:]
    assert np.diff(best_two).min() > 1e-5
    members = logits.shape[2]
    return np.where(agreed, of_first[..., 0], votes), np.where(agreed, first or 0, members)


def tally(votes: np.ndarray) -> np.ndarray:
    """(N, K) counts of votes (N, n)."""
    return np.stack([(votes == which).sum(axis=1) for which in range(len(CLASSES))], axis=1)


# Records


def data_record(scaling: str = "none") -> dict:
    """What records say of the data; the hash is of the classes, the shapes and the arrays."""
    x_train, x_test = x_of("train", scaling), x_of("test", scaling)
    y_train, y_test = (
        np.searchsorted(CLASSES, labels).astype(np.int32) for labels in (Y_TRAIN, Y_TEST)
    )
    arrays = (x_train, y_train, x_test, y_test)
    header = json.dumps({"classes": CLASSES, "shapes": [array.shape for array in arrays]})
    content = header.encode() + b"".join(array.tobytes() for array in arrays)
    return {
        "name": "own",
        "source": "file",
        "scaling": scaling,
        "sha256": hashlib.sha256(content).hexdigest(),
        "num_train": len(Y_TRAIN),
        "num_test": len(Y_TEST),
        "length": LENGTH,
        "num_channels": CHANNELS,
        "classes": list(CLASSES),
    }


def settings_record(run: pathlib.Path, ensemble: str, **more) -> dict:
    """What records say of the classifier and its noise, and more."""
    if ensemble == "de":
        of_members = {"num_members": 2}
    else:
        of_masks = the_masks() if ensemble == "mc" else np.ones((1, LENGTH), np.float32)
        of_members = {
            "num_masks": len(of_masks),
            "keep": KEEP if ensemble == "mc" else 1.0,
            "mask_seed": MASK_SEED,
            "masks_sha256": digest(of_masks),
        }
    scaling = "z_score" if ensemble == "de" else "none"
    if ensemble != "single":  # which has no noise
        more = {"grid": GRID} | more
    return {
        "model": "lstm_fcn",
        "ensemble": ensemble,
        "weights_sha256": digest(checkpoint(run, 2 if ensemble == "de" else 1)),
        **of_members,
        "data": data_record(scaling),
        "sigma": 0.0 if ensemble == "single" else SIGMA,
        "noise_seed": NOISE_SEED,
        "platform": jax.default_backend(),
        "versions": {name: importlib.metadata.version(name) for name in ("selfens_jax", "jax")},
        **more,
    }


def short(value) -> str:
    """The name of a value in a file's name."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def read_table(path: pathlib.Path) -> list[list[str]]:
    with path.open() as file:
        return list(csv.reader(file, delimiter="\t"))


def read_log(path: pathlib.Path, settings: dict) -> dict[int, list[str]]:
    """The lines of a log by example: seconds, then values. Each ends with its CRC-32."""
    header, *lines = path.read_text().splitlines()
    assert json.loads(header) == settings
    cells = []
    for line in lines:
        fields, _, checksum = line.rpartition("\t#")
        assert checksum == f"{zlib.crc32(fields.encode()):08x}"
        cells.append(fields.split("\t"))
    return {int(index): values for index, *values in cells}


def seconds_of(text: str) -> float:
    hours, minutes, seconds = text.split(":")
    assert re.fullmatch(r"\d\d\.\d{6}", seconds)
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def assert_figure(path: pathlib.Path, drawn: bytes, title: str, note: str) -> None:
    """The file is this figure, to the pixel, and its texts are these."""
    with Image.open(path) as image:
        assert (image.text["Title"], image.text["Description"]) == (title, note)
    assert path.read_bytes() == drawn


def printed(
    title: str, statement: str, scaling: str, table: list, written, on_grid: bool = True
) -> str:
    """What certify.py prints; table: (what, value, format of the value)."""
    less_sure = "  noise: in float32, for which this is not proven whatever the classifier is"
    lines = [f"  {what:<44} {value:{form}}" for what, value, form in table]
    return "\n".join(
        [
            title,
            f"  {statement}",
            *([] if on_grid else [less_sure]),
            f"  series: own (file), scaling {scaling}; radii are L2 norms in their units",
            *lines,
            f"  written to {written}",
            "",
        ]
    )


def assert_summary(found: dict, table: list) -> None:
    """A record holds the table's numbers, as text where JSON has none."""
    values = {what: value if np.isfinite(value) else str(value) for what, value, _ in table}
    assert list(found) == list(values)
    for what, value in values.items():
        assert found[what] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-9))


# Training

PACKAGES = ["selfens_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy"]
RUNS = {  # sigma, keep, members, class weights, scaling
    "mc": (SIGMA, KEEP, 1, "balanced", "none"),
    "de": (SIGMA, 0.9, 2, "none", "z_score"),
    "single": (0.0, 0.9, 1, "balanced", "none"),
}


@pytest.mark.parametrize("ensemble", RUNS)
def test_the_record_of_a_training_says_what_was_asked(folder, ensemble):
    sigma, keep, members, weights, scaling = RUNS[ensemble]
    run = folder / run_of(ensemble, sigma)
    assert train(folder, ensemble).stdout == f"{run}\n"
    config = read_record(run / "config.json")
    assert config["versions"].pop("device")
    assert config["versions"].pop("xla_flags").endswith("--xla_backend_optimization_level=0")
    assert config == {
        "model": "lstm_fcn",
        "ensemble": ensemble,
        "sigma": sigma,
        "keep": keep,
        "num_members": members,
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "class_weights": weights,
        "learning_rate": LEARNING_RATE,
        "plateau_factor": 0.5,
        "plateau_patience": 50,
        "plateau_floor": 1e-4,
        "recalibration_passes": 100,
        "seed": SEED,
        "data": data_record(scaling),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
            "platform": jax.default_backend(),
            "machine": platform.machine(),
        },
    }
    assert json.loads((run / "training_time.json").read_text())["seconds"] > 0


QUICKLY = {"xla_backend_optimization_level": 0}  # most of the time here is compilation
_init = jax.jit(MODEL.init, compiler_options=QUICKLY)


@functools.partial(jax.jit, compiler_options=QUICKLY)
def _pass(params, batch_stats, shown, labels, weights, dropout):
    """((loss, (accuracy, the statistics after it)), the gradient) of a batch."""

    def loss_of(params):
        logits, updated = MODEL.apply(
            {"params": params, "batch_stats": batch_stats},
            shown,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout},
        )
        right = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
        weight = weights[labels]
        loss = -(weight * right).sum() / weight.sum()
        return loss, ((logits.argmax(axis=1) == labels).mean(), updated["batch_stats"])

    return jax.value_and_grad(loss_of, has_aux=True)(params)


def batch_of(x: np.ndarray, ensemble: str, key: jax.Array, step: int):
    """The rows of a step's batch, what of them the network is shown, and the key of its dropout."""
    epoch, position = divmod(step, STEPS)
    order_key, step_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    order = np.asarray(jax.random.permutation(jax.random.fold_in(order_key, epoch), len(x)))
    rows = order[(position * BATCH_SIZE + np.arange(BATCH_SIZE)) % len(x)]
    inputs_key, dropout_key = jax.random.split(jax.random.fold_in(step_key, step))
    noise_key, mask_key = jax.random.split(inputs_key)
    noise = np.asarray(jax.random.normal(noise_key, (BATCH_SIZE, LENGTH, CHANNELS)))
    shown = x[rows] + np.float32(SIGMA) * noise
    if ensemble == "mc":
        shown = shown * np.asarray(masks.continuous(mask_key, BATCH_SIZE, LENGTH, KEEP))[..., None]
    return rows, shown, dropout_key


def adam(param, first, second, first_scale: float, second_scale: float):
    """A parameter after a step; the scales correct for averages that began at zero."""
    return param - LEARNING_RATE * (first / first_scale) / (np.sqrt(second / second_scale) + 1e-8)


def train_by_hand(x, y, ensemble: str, member: int, weights: np.ndarray):
    """Algorithm 1 with Adam, one step after another: the variables, and (loss, accuracy)s."""
    variables = _init(stream(SEED, "initialization", member), np.zeros((1, *x.shape[1:])))
    variables = jax.tree.map(np.asarray, variables)
    params, batch_stats = variables["params"], variables["batch_stats"]
    first = second = jax.tree.map(np.zeros_like, params)
    history = []
    for step in range(EPOCHS * STEPS):
        rows, shown, dropout = batch_of(x, ensemble, stream(SEED, "training", member), step)
        (loss, (accuracy, batch_stats)), gradient = _pass(
            params, batch_stats, shown, y[rows], weights, dropout
        )
        gradient = jax.tree.map(np.asarray, gradient)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, gradient)
        first_scale, second_scale = 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)
        move = functools.partial(adam, first_scale=first_scale, second_scale=second_scale)
        params = jax.tree.map(move, params, first, second)
        history.append((float(loss), float(accuracy)))
    # The statistics again: the mean over 100 batches, of which each moves them by a tenth.
    total = zero = jax.tree.map(np.zeros_like, batch_stats)
    for step in range(100):
        rows, shown, dropout = batch_of(x, ensemble, stream(SEED, "recalibration", member), step)
        (_, (_, moved)), _ = _pass(params, zero, shown, y[rows], weights, dropout)
        total = jax.tree.map(lambda t, u: t + np.asarray(u) / 0.1 / 100, total, moved)
    return {"params": params, "batch_stats": total}, np.array(history)


@pytest.mark.parametrize("ensemble", ["mc", "de"])
def test_a_training_is_that_of_single_steps(folder, ensemble):
    *_, members, kind, scaling = RUNS[ensemble]
    run, x = folder / run_of(ensemble), x_of("train", scaling)
    y = np.searchsorted(CLASSES, Y_TRAIN)
    weights = np.ones(3) if kind == "none" else len(y) / (3 * np.bincount(y))
    with (run / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["member"]) for row in rows] == [
        (str(epoch), str(member)) for epoch in (1, 2, 3) for member in range(members)
    ]
    assert {float(row["learning_rate"]) for row in rows} == {float(np.float32(LEARNING_RATE))}
    last = {
        name: np.mean([float(row[name]) for row in rows[-members:]])
        for name in ("loss", "accuracy")
    }
    line = f"final training loss {last['loss']:.4f}, accuracy {last['accuracy']:.3f}\n"
    assert train(folder, ensemble).stderr.endswith(line)
    for member, network in enumerate(networks(run, members)):
        variables, history = train_by_hand(x, y, ensemble, member, weights.astype(np.float32))
        loss, accuracy = history.reshape(EPOCHS, STEPS, 2).mean(axis=1).T
        of_member = [row for row in rows if row["member"] == str(member)]
        np.testing.assert_allclose([float(row["loss"]) for row in of_member], loss, rtol=1e-3)
        np.testing.assert_allclose([float(row["accuracy"]) for row in of_member], accuracy)
        test = x_of("test", scaling)
        # Adam makes much of rounding where a gradient is zero.
        np.testing.assert_allclose(network(test), _apply(variables, test), atol=0.05)


# Certification


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A certification: its flags, and whose votes it counts."""

    flags: tuple[str, ...]
    ensemble: str
    chosen: np.ndarray
    first: int | None = None  # of a consensus
    grid: float | None = GRID  # None for noise in float32

    @property
    def scaling(self) -> str:
        return RUNS[self.ensemble][-1]

    @property
    def title(self) -> str:
        consensus = "" if self.first is None else f" (consensus of {self.first})"
        return f"own, lstm_fcn, {self.ensemble}{consensus}, sigma 0.7, {len(self.chosen)} examples"

    def logits(self, folder: pathlib.Path, num_draws: int) -> np.ndarray:
        """(N, n, members, K)"""
        run = folder / run_of(self.ensemble)
        if self.ensemble == "de":
            members = networks(run, 2)
        else:
            members = under_masks(networks(run)[0], the_masks())
        x = x_of("test", self.scaling)[self.chosen]
        return member_logits(members, x, self.chosen, num_draws, self.grid)

    def settings(self, folder: pathlib.Path, **more) -> dict:
        if self.first is not None:
            more["consensus"] = self.first
        block = 20 if jax.default_backend() == "cpu" else 100
        run = folder / run_of(self.ensemble)
        settings = settings_record(
            run, self.ensemble, draws_per_block=block, precision="float32", **more
        )
        if self.grid is None:  # as in the files of earlier versions
            del settings["grid"]
        return settings

    def hashes(self) -> list[str]:
        """How the sha256 of each series begins: of its shape and its values."""
        shape = json.dumps([LENGTH, CHANNELS]).encode()
        x = x_of("test", self.scaling)[self.chosen]
        return [hashlib.sha256(shape + series.tobytes()).hexdigest()[:16] for series in x]

    def given_up(self) -> tuple[float, float]:
        """What the grid takes off radii and off probabilities."""
        if self.grid is None:
            return 0.0, 0.0
        values = LENGTH * CHANNELS
        return self.grid * np.sqrt(values), deviation(SIGMA / self.grid, values)


CASES = {
    "masks": Case((*MC, *OF_MC, *OF_GRID, "--num_examples=9"), "mc", CHOSEN),
    "consensus": Case(
        (*MC, *OF_MC, *OF_GRID, "--consensus=2", "--num_examples=5"),
        "mc",
        np.array([0, 2, 5, 7, 10]),
        first=2,
    ),
    "members": Case(
        (*DE, *OF_MC, *OF_GRID, "--num_examples=6"), "de", np.array([0, 2, 4, 6, 8, 10])
    ),
    "noise in float32": Case(
        (*MC, *OF_MC, "--noise=float32", "--num_examples=4"),
        "mc",
        np.array([0, 3, 6, 9]),
        grid=None,
    ),
}
OF_COUNTING = (f"--num_draws={NUM_DRAWS}", "--batch_size=400", f"--alpha={ALPHA}")


def clopper_pearson(counts: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    k, n = counts.max(axis=1), counts.sum(axis=1)
    p_a = stats.beta.ppf(alpha / 2, k, n - k + 1)
    return p_a, 1 - p_a


def goodman(counts: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the score test of each class at alpha / 3 ends."""
    n, z = counts.sum(axis=1, keepdims=True), stats.norm.isf(alpha / 3 / 2)
    share = counts / n
    middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + (z / n / 2) ** 2)
    return top_and_next(counts, (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n))


def sison_glaz(counts: np.ndarray, alpha: float, in_r=False) -> tuple[np.ndarray, np.ndarray]:
    """Sison and Glaz (1995), as May and Johnson (2000) write it; R leaves the last term out."""
    bounds = []
    for row in counts:
        n = row.sum()

        def coverage(c: int, row=row, n=n) -> float:
            mass, moments = 1.0, []
            for x in row:
                k = np.arange(x - c, x + c + 1)
                p = stats.poisson.pmf(k, x)
                mass, p = mass * p.sum(), p / p.sum()
                mean = (k * p).sum()
                moments.append([mean, *(((k - mean) ** r * p).sum() for r in (2, 3, 4))])
            mean, variance, third, fourth = np.transpose(moments)
            deviation = np.sqrt(variance.sum())
            z, skew = (n - mean.sum()) / deviation, third.sum() / deviation**3
            excess = (fourth - 3 * variance**2).sum() / deviation**4
            series = 1 + skew / 6 * (z**3 - 3 * z) + excess / 24 * (z**4 - 6 * z**2 + 3)
            if not in_r:
                series += skew**2 / 72 * (z**6 - 15 * z**4 + 45 * z**2 - 15)
            return mass * series * stats.norm.pdf(z) / deviation / stats.poisson.pmf(n, n)

        c = next(c for c in range(n) if coverage(c + 1) > 1 - alpha)
        before = coverage(c) if c else 0.0
        delta = (1 - alpha - before) / (coverage(c + 1) - before)
        bounds.append([(row - c) / n, (row + c + 2 * delta) / n])
    return top_and_next(counts, *np.clip(np.moveaxis(bounds, 1, 0), 0, 1))


def top_and_next(counts, low, high) -> tuple[np.ndarray, np.ndarray]:
    """The lower bound of the most voted class, and the largest upper bound of the others."""
    rows, top = np.arange(len(counts)), counts.argmax(axis=1)
    others = high.copy()
    others[rows, top] = 0
    return low[rows, top], others.max(axis=1)


def cohen(p_a: float, p_b: float) -> float:
    return SIGMA / 2 * (stats.norm.ppf(p_a) - stats.norm.ppf(p_b))


def renyi(p_a: float, p_b: float, orders=None) -> float:
    """The paper's Eq. (6) at the best order, or the best of these."""

    def radius(order: float) -> float:
        mean = ((p_a ** (1 - order) + p_b ** (1 - order)) / 2) ** (1 / (1 - order))
        return SIGMA * np.sqrt(-2 / order * np.log(1 - p_a - p_b + 2 * mean))

    if orders is not None:
        return max(radius(order) for order in orders)
    found = optimize.minimize_scalar(
        lambda order: -radius(order), bounds=(1.0001, 100), method="bounded", options={"xatol": 0}
    )
    return -found.fun


@dataclasses.dataclass(frozen=True, eq=False)
class How:
    """A way from counts to certificates, and what is said of it."""

    flags: tuple[str, ...]
    name: str  # in file names
    alpha: float
    interval: str
    bound: str
    statement: str
    bounds: Callable
    radius: Callable


ORDERS = np.linspace(1.01, 2, 100)
HOWS = {
    "at the level": How(
        (),
        "alpha0.03",
        ALPHA,
        "clopper_pearson",
        "cohen",
        "clopper_pearson interval, cohen bound: each holds with probability at least 1 - 0.03",
        clopper_pearson,
        cohen,
    ),
    "goodman": How(
        ("--alpha=0.1", "--interval=goodman", "--bound=renyi"),
        "alpha0.1-goodman-renyi",
        0.1,
        "goodman",
        "renyi",
        "goodman interval, renyi bound: approximate, not proven to hold with probability 1 - 0.1",
        goodman,
        renyi,
    ),
    "sison and glaz": How(
        ("--alpha=0.01", "--interval=sison_glaz"),
        "alpha0.01-sison_glaz-cohen",
        0.01,
        "sison_glaz",
        "cohen",
        "sison_glaz interval, cohen bound: NOT valid certificates, they fail far more often than "
        "0.01",
        sison_glaz,
        cohen,
    ),
    "paper": How(
        ("--paper",),
        "paper",
        0.05,
        "sison_glaz",
        "renyi",
        "as published (Sison-Glaz at 0.05, renyi bound on a grid, no abstention): NOT valid "
        "certificates",
        functools.partial(sison_glaz, in_r=True),
        functools.partial(renyi, orders=ORDERS),
    ),
}


@functools.cache
def certified(folder: pathlib.Path) -> dict[str, subprocess.CompletedProcess]:
    """What certify.py said of each case, of two processes, and each other way of one's counts."""
    both = (
        *CASES["masks"].flags,
        *OF_COUNTING,
        "--output_dir=two",
        "--num_processes=2",
        "--wait=120",
    )
    commands = {f"process {i}": ("certify", *both, f"--process_id={i}") for i in (1, 0)}
    commands |= {name: ("certify", *case.flags, *OF_COUNTING) for name, case in CASES.items()}
    said = run_all(folder, commands)
    file, _ = read_counts(folder, "masks")
    again = list(HOWS)[1:]
    return said | run_all(
        folder,
        {how: ("certify", f"--from_counts={file}", *HOWS[how].flags) for how in again},
    )


def read_counts(folder: pathlib.Path, case: str) -> tuple[pathlib.Path, dict]:
    """The counts file of a case, and its arrays."""
    number, ensemble = len(CASES[case].chosen), CASES[case].ensemble
    size = "-m3" if ensemble == "mc" else ""
    (file,) = (folder / run_of(ensemble)).glob(f"counts-n130{size}-{number}ex-*.npz")
    with np.load(file) as arrays:
        return file, dict(arrays)


@pytest.mark.parametrize("name", CASES)
def test_votes_are_those_of_single_draws(folder, name):
    certified(folder)
    case, (file, arrays) = CASES[name], read_counts(folder, name)
    settings = case.settings(folder, num_draws=NUM_DRAWS)
    assert json.loads(str(arrays["settings"])) == settings
    assert file.stem.endswith(f"ex-{short([settings, case.chosen.tolist()])}")
    np.testing.assert_array_equal(arrays["indices"], case.chosen)
    np.testing.assert_array_equal(arrays["labels"], LABELS[case.chosen])
    assert arrays["series_sha256"].tolist() == case.hashes()
    votes, forwards = vote(case.logits(folder, NUM_DRAWS), case.first)
    counts = tally(votes)
    assert ((counts > 0).sum(axis=1) > 1).sum() > len(counts) / 3  # many are not unanimous
    np.testing.assert_array_equal(arrays["counts"], counts)
    np.testing.assert_array_equal(arrays["forwards"], forwards.sum(axis=1))
    log = read_log(file.parent / f"votes-{short(settings)}.tsv", settings)
    for index, row, cost in zip(case.chosen, arrays["counts"], arrays["forwards"], strict=True):
        assert log[index][1:] == [str(cost), *map(str, row)]
    if case.ensemble == "mc":
        with np.load(file.parent / "masks-m3-seed5.npz") as stored:
            np.testing.assert_array_equal(stored["masks"], the_masks())


def summary(
    counts, forwards, prediction, radius, labels, alpha: float | None
) -> list[tuple[str, float, str]]:
    """What certify.py says certificates come to: (what, value, format).

    alpha: None for certificates that do not hold, of which it says no more.
    """
    n = len(labels)
    right = prediction == labels
    in_truth = []
    if alpha is not None:
        # At most so many are false with probability 0.999, as they are independent.
        false = next(q for q in range(n + 1) if stats.binom.sf(q, n, alpha) <= 0.001)
        what = "truly so, with probability 0.999, at least"
        in_truth = [(what, max(0, sum(right) - false) / n, ".2%")]
    credited = sum(radius[right]) / n
    most = max(list(labels).count(label) for label in labels)
    rows = [
        ("accuracy of the most voted class", sum(counts.argmax(axis=1) == labels) / n, ".2%"),
        ("certified and correct", sum(right) / n, ".2%"),
        *in_truth,
        ("abstentions", sum(prediction == -1) / n, ".2%"),
        ("series of the most frequent class", most / n, ".2%"),
        ("ACR (wrong or abstained = 0)", credited, ".4f"),
        ("mean radius, all predictions", sum(radius) / n, ".4f"),
        ("mean radius, correct predictions", credited * n / sum(right), ".4f"),
    ]
    for r in ("0.175", "0.35", "0.7", "1.05", "1.4"):  # in sigmas 1/4, 1/2, 1, 3/2 and 2
        share = sum(right & (radius >= float(r))) / n
        rows.append((f"certified accuracy at r = {r}", share, ".2%"))
    return [*rows, ("forward passes a draw", forwards.sum() / n / NUM_DRAWS, ".2f")]


CERTIFICATES = [(name, "at the level") for name in CASES]
CERTIFICATES += [("masks", how) for how in HOWS if how != "at the level"]


@pytest.mark.parametrize(("name", "how"), CERTIFICATES)
def test_certificates_are_those_of_the_counts(folder, name, how):
    said = certified(folder)[name if how == "at the level" else how]
    case, (file, arrays), how = CASES[name], read_counts(folder, name), HOWS[how]
    counts, labels = arrays["counts"], LABELS[case.chosen]
    p_a, p_b = how.bounds(counts, how.alpha)
    rounding, doubt = case.given_up() if how.name != "paper" else (0.0, 0.0)
    p_a, p_b = p_a - doubt, p_b + doubt
    holds = (p_a > p_b) | (how.name == "paper")  # which never abstains
    prediction = np.where(holds, counts.argmax(axis=1), -1)
    whole = np.array([how.radius(a, b) for a, b in zip(p_a, p_b, strict=True)])
    radius = holds * np.maximum(whole - rounding, 0)

    stem = file.with_name(f"{file.stem.replace('counts', 'certificates')}-{how.name}")
    header, *rows = read_table(stem.with_name(f"{stem.name}.tsv"))
    assert header == ["idx", "label", "predict", "radius", "correct", "time"]
    names = (*CLASSES, "-1")
    assert [row[:3] + row[4:5] for row in rows] == [
        [str(i), names[label], names[guess], str(int(label == guess))]
        for i, label, guess in zip(case.chosen, labels, prediction, strict=True)
    ]
    for row, exact in zip(rows, radius, strict=True):
        written = float(row[3])
        assert written <= exact
        assert written == exact or exact - written < 1.001e-6
    settings = case.settings(folder, num_draws=NUM_DRAWS)
    log = read_log(file.parent / f"votes-{short(settings)}.tsv", settings)
    for index, row in zip(case.chosen, rows, strict=True):
        seconds = float(log[index][0]) if said is certified(folder)[name] else 0.0
        assert seconds_of(row[5]) == pytest.approx(seconds, abs=1e-4)

    valid = how.interval == "clopper_pearson"
    level = how.alpha if valid else None
    table = summary(counts, arrays["forwards"], prediction, radius, labels, level)
    record = read_record(stem.with_name(f"{stem.name}.json"))
    assert_summary(record.pop("summary"), table)
    if valid:  # what the radii cover; test_covered_scripts works it out
        covered = record.pop("covered")
        np.testing.assert_allclose(covered["radius"], [float(row[3]) for row in rows], rtol=2e-5)
    assert record == {
        "statement": how.statement,
        "valid": valid,
        "alpha": how.alpha,
        "interval": how.interval,
        "bound": how.bound,
        "radius_units": f"L2 norm, in the units of the series (scaling: {case.scaling})",
        "num_examples": len(case.chosen),
        "abstain": "-1",
        "counts": file.name,
        "settings": settings,
        "series_sha256": case.hashes(),
    }
    written, on_grid = f"{stem}.tsv (.json, .png)", "grid" in settings
    lines = printed(case.title, how.statement, case.scaling, table, written, on_grid)
    assert said.stdout.startswith(lines)
    assert len(said.stdout.removeprefix(lines).splitlines()) == 7 * valid
    note = f"{how.statement}; series: own (file), scaling {case.scaling}"
    curve = {"n = 130": (radius, prediction == labels)}
    drawn = plots.certified_accuracy_curve(curve, case.title, note)
    assert_figure(stem.with_name(f"{stem.name}.png"), drawn, case.title, note)
    if how.name == "alpha0.03":  # beside the bar, too
        assert re.findall(r"certified and correct (\S+)\]", said.stderr)[-1] == f"{table[1][1]:.1%}"


def test_two_processes_share_the_examples(folder):
    said = certified(folder)
    file, arrays = read_counts(folder, "masks")
    settings = CASES["masks"].settings(folder, num_draws=NUM_DRAWS)
    assert (folder / "two" / file.name).read_bytes() == file.read_bytes()
    for process, ending in ((0, ""), (1, ".1")):
        own = folder / "two" / f"votes-{short(settings)}{ending}.tsv"
        share = read_log(own, settings)
        assert list(share) == CHOSEN[process::2].tolist()
        for index, (_, *values) in share.items():
            row = list(CHOSEN).index(index)
            assert values == [str(arrays["forwards"][row]), *map(str, arrays["counts"][row])]
    line = f"process 1 of 2: 4 examples in {own}; process 0 merges\n"
    assert said["process 1"].stderr.endswith(line)
    assert said["process 1"].stdout == ""
    run = f"{folder / run_of('mc')}/"
    assert said["process 0"].stdout == said["masks"].stdout.replace(run, f"{folder / 'two'}/")
