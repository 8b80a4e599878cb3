"""What can be asked of noise: kinds, grids and flags, and counts that do not depend on the cut."""

import math
import re

from common import trained

import certify as script
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from flax import linen as nn
from helpers import default_grid, mesh_of
from test_faults import flags_of

from selfens_jax import certify, counting, data, noise, smoothing
from selfens_jax.errors import UserError

KEY = jax.random.key(6)


# What is refused


def refusal(grid: float | None, sigma: float, x: np.ndarray) -> str:
    with pytest.raises(UserError) as caught:
        certify(lambda x: x[:, :2, 0], x, sigma=sigma, grid=grid, num_draws=20)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("grid", "sigma", "offset", "what"),
    [
        (0.001, 0.8, 0.0, "must be a power of two, not 0.001"),
        (0.3, 100.0, 0.0, "must be a power of two, not 0.3"),
        (0.5, 0.8, 0.0, "coarser than sigma / 64 = 0.0125"),
        (2.0**-6, 0.99, 0.0, "coarser than sigma / 64"),
        (2.0**-18, 1.0, 0.0, "too fine for sigma 1"),
        (2.0**-127, 2.0**-119, 0.0, "too fine for sigma 1.50463e-36"),
        (None, 0.8, 2000.0, "values up to 2000 are too large"),
        (None, 1.0, 131_000.0, "values up to 131000 are too large"),
    ],
)
def test_a_grid_that_does_not_do_is_refused_with_one_that_does(grid, sigma, offset, what):
    x = np.zeros((1, 4, 1)) + offset
    said = refusal(grid, sigma, x)
    assert what in said
    remedy = re.search(r"take (?:the grid )?(\S+)$", said)
    found = certify(lambda x: x[:, :2, 0], x, sigma=sigma, grid=float(remedy[1]), num_draws=20)
    assert found.prediction.shape == (1,)
    if offset:
        assert "subtract a constant from all series" in said
        certify(lambda x: x[:, :2, 0], x - offset, sigma=sigma, grid=grid, num_draws=20)


def test_where_no_grid_is_both_coarse_and_fine_enough_a_larger_sigma_helps():
    x = np.full((1, 4, 1), 2.0**18 - 1)  # which noise in float32 could still bear
    certify(lambda x: x[:, :2, 0], x, sigma=1.0, num_draws=20, noise="float32")
    said = refusal(None, 1.0, x)
    assert said.endswith("subtract a constant from all series, or take a larger sigma")
    certify(lambda x: x[:, :2, 0], x, sigma=2.0, grid=2.0**-5, num_draws=20)
    certify(lambda x: x[:, :2, 0], x - 2.0**18, sigma=1.0, num_draws=20)


@pytest.mark.parametrize("grid", [0.0, -1.0, math.nan, math.inf, "0.5", True])
def test_a_grid_is_a_positive_number(grid):
    assert "grid must be a finite number above 0" in refusal(grid, 1.0, np.zeros((1, 4, 1)))


def test_kinds_of_noise():
    x, options = np.zeros((1, 4, 1)), {"sigma": 1.0, "num_draws": 20}
    with pytest.raises(UserError, match="unknown noise 'gauss'; choose from grid, float32"):
        certify(lambda x: x[:, :2, 0], x, noise="gauss", **options)
    with pytest.raises(UserError, match="grid belongs to the noise 'grid'; leave it out"):
        certify(lambda x: x[:, :2, 0], x, noise="float32", grid=0.001, **options)


@pytest.mark.parametrize("sigma", [1e-36, 1e-30, 3e-5, 0.5, 0.8, 1.0, 1.6, 1e6, 1e36])
def test_the_usual_grid_is_let_pass(sigma):
    grid = noise.default_grid(sigma)
    assert noise.check_grid(grid, sigma, np.zeros((1, 1, 1))) == grid
    if sigma > 1e-33:  # below, a finer grid would leave float32's normal numbers
        assert grid == default_grid(sigma)
        assert 2**13 <= sigma / grid < 2**14


# However the work is cut


def last_bits(x: jax.Array) -> jax.Array:
    """A class of sixteen that changes with the last bits of what it is shown."""
    bits = jax.lax.bitcast_convert_type(x[:, :, 0], jnp.int32) >> 8
    return jax.nn.one_hot((bits @ jnp.arange(1, x.shape[1] + 1)) % 16, 16)


X = np.random.default_rng(5).normal(size=(3, 7, 1))


def counted(kind: str, rows=(0, 1, 2), **changes) -> np.ndarray:
    options = {"sigma": 0.5, "num_draws": 130, "key": KEY, "batch_size": 100, "noise": kind}
    options |= {"indices": np.array(rows)} | changes
    return smoothing.count_votes(jax.tree_util.Partial(last_bits), X[list(rows)], **options)


@pytest.fixture(scope="module")
def counts() -> dict[str, np.ndarray]:
    found = {kind: counted(kind) for kind in noise.KINDS}
    assert (found["grid"] != found["float32"]).any(axis=1).all()
    return found


CUTS = {
    "one draw a call": {"batch_size": 1},
    "other calls": {"batch_size": 250},
    "one call": {"batch_size": 3000},
    "two devices": {"devices": 2},
    "eight devices": {"devices": 8, "batch_size": 1000},
    "other blocks": {"draws_per_block": 7},
    "another order": {"rows": (2, 0, 1)},
    "one alone": {"rows": (1,)},
}


@pytest.mark.parametrize("kind", noise.KINDS)
@pytest.mark.parametrize("changes", CUTS.values(), ids=CUTS)
def test_counts_do_not_depend_on_how_the_work_is_cut(counts, kind, changes):
    changes = dict(changes)
    if devices := changes.pop("devices", None):
        changes["mesh"] = mesh_of(devices)
    rows = changes.get("rows", (0, 1, 2))
    np.testing.assert_array_equal(counted(kind, **changes), counts[kind][list(rows)])


@pytest.mark.parametrize("kind", noise.KINDS)
def test_counts_of_ranges_of_draws_add_up(counts, kind):
    parts = counted(kind, num_draws=90) + counted(kind, num_draws=40, first_draw=90)
    np.testing.assert_array_equal(parts, counts[kind])


def test_counts_depend_on_key_index_sigma_and_grid(counts):
    changes = ({"key": jax.random.key(7)}, {"indices": [3, 4, 5]}, {"sigma": 0.6}, {"grid": 2**-12})
    for change in changes:
        assert (counted("grid", **change) != counts["grid"]).any(axis=1).all()
    np.testing.assert_array_equal(counted("grid", grid=default_grid(0.5)), counts["grid"])


# The scripts


class Parity(nn.Module):
    """The class is whether the sum is an odd number of steps of 2^-9, rounded down."""

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        steps = jnp.floor(2**9 * x.sum(axis=(1, 2))).astype(jnp.int32)
        return jax.nn.one_hot(steps % 2, 2)


@pytest.fixture
def count(tmp_path, monkeypatch):
    """Counts the votes of twelve series of zeros as certify.py does, given its flags."""
    file, y = tmp_path / "own.npz", np.arange(12) % 2
    np.savez(file, X_train=np.zeros((2, 16)), y_train=y[:2], X_test=np.zeros((12, 16)), y_test=y)
    config = {"data": data.describe(data.load(str(file))), "sigma": 0.5, "seed": 0}
    predict = smoothing.self_ensemble(Parity(), {}, np.ones((1, 16)))
    classifier = {"ensemble": "mc", "num_masks": 1}
    monkeypatch.setattr(trained, "load_classifier", lambda _: (predict, classifier))

    def count(*arguments: str):
        with flags_of(f"--dataset={file}", *arguments):
            job = script.make_job(tmp_path, config, 1000)
            return counting.count_examples(job, 100, tmp_path, counting.Share(), lambda *_: "")

    return count


KINDS = {  # flags, and the grid that is recorded
    "usual": ((), 2.0**-14),
    "the same, said": (("--noise=grid", "--grid=6.103515625e-05"), 2.0**-14),
    "another": (("--grid=0.001953125",), 2.0**-9),
    "float32": (("--noise=float32",), None),
}


def test_each_grid_is_recorded_and_has_a_log_of_its_own(count, tmp_path):
    found = {name: count(*arguments) for name, (arguments, _) in KINDS.items()}
    for name, (_, grid) in KINDS.items():
        assert found[name].settings.get("grid") == grid
        assert ("grid" in found[name].settings) == (grid is not None)
        assert "noise" not in found[name].settings
    np.testing.assert_array_equal(found["usual"].counts, found["the same, said"].counts)
    different = [found[name] for name in KINDS if name != "the same, said"]
    assert len(list(tmp_path.glob("votes-*.tsv"))) == len(different)
    assert len({one.name for one in different}) == len(different)
    for one in different:
        for other in different:
            assert one is other or (one.counts != other.counts).any(axis=1).sum() > 6


@pytest.mark.parametrize("name", ["usual", "another", "float32"])
def test_a_count_goes_on_under_its_own_noise(count, tmp_path, name):
    """Votes of another kind of noise lie beside it, and are neither used nor touched."""
    arguments, _ = KINDS[name]
    whole = count(*arguments).counts
    for log in tmp_path.glob("votes-*.tsv"):
        log.unlink()
    count(*arguments, "--num_examples=4")
    (log,) = tmp_path.glob("votes-*.tsv")
    before = log.read_bytes()
    for other, (flags_of_other, _) in KINDS.items():
        if KINDS[other][1] != KINDS[name][1]:
            count(*flags_of_other)
    assert log.read_bytes() == before
    np.testing.assert_array_equal(count(*arguments).counts, whole)
    assert log.read_bytes().startswith(before)


@pytest.mark.parametrize(
    ("sigma", "arguments", "what"),
    [
        (0.5, ("--noise=float32", "--grid=0.001"), "--noise=float32 has no grid; leave out --grid"),
        (0.0, ("--grid=0.001",), "a run of sigma 0 has no grid; leave out --grid"),
        (0.5, ("--grid=0.001",), "--grid=0.001: grid must be a power of two, not 0.001"),
        (0.5, ("--grid=0.5",), "--grid=0.5: grid 0.5 is coarser than sigma / 64"),
        (0.5, ("--grid=0",), "--grid=0.0: grid must be a finite number above 0"),
        (0.5, ("--grid=nan",), "--grid=nan: grid must be a finite number above 0"),
    ],
)
def test_flags_of_noise_that_do_not_do_are_refused(sigma, arguments, what):
    with flags_of(*arguments), pytest.raises(UserError) as caught:
        trained.grid_setting(sigma)
    assert str(caught.value).startswith(what)
    assert "\n" not in str(caught.value)
    if "take" in what:
        with flags_of(f"--grid={str(caught.value).split()[-1]}"):
            trained.grid_setting(sigma)


def test_without_noise_nothing_is_recorded_of_it():
    with flags_of():
        assert trained.grid_setting(0.0) == {}
    with pytest.raises(flags.IllegalFlagValueError, match="noise"), flags_of("--noise=gauss"):
        pass
