"""Small networks, noise and statistics that several tests share."""

import json
import math
import pathlib
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import special, stats

from selfens_jax.models.layers import batch_norm


class TinyNet(nn.Module):
    """A convolution, BatchNorm and a dense layer: what the real networks have, fast to compile."""

    num_classes: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = nn.relu(batch_norm(use_running_average=not train)(nn.Conv(4, (3,), use_bias=False)(x)))
        return nn.Dense(self.num_classes)(y.mean(axis=1))


class Recorder(nn.Module):
    """Writes the batch that it is trained on into its batch statistics; its logits are constant."""

    batch_size: int
    num_classes: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        shape = (self.batch_size, *x.shape[1:])
        seen = self.variable("batch_stats", "seen", jnp.zeros, shape)
        if train and not self.is_initializing():
            seen.value = x
        logits = self.param("logits", lambda _: jnp.arange(self.num_classes, dtype=jnp.float32))
        return jnp.broadcast_to(logits, (len(x), self.num_classes))


def init(model: nn.Module, x: np.ndarray, seed: int = 0) -> dict:
    """Fresh variables. This kind of key compiles several times faster than the default one."""
    return jax.jit(model.init)(jax.random.key(seed, impl="unsafe_rbg"), x)


def easy_problem(num_examples: int = 20, length: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Series (N, T, 1) around -1 and around +1, and their classes in turn 0, 1, 0, 1."""
    y = np.arange(num_examples) % 2
    noise = np.random.default_rng(0).normal(scale=0.3, size=(num_examples, length, 1))
    return (noise + (2 * y - 1)[:, None, None]).astype(np.float32), y


def default_grid(sigma: float) -> float:
    """The power of two of which sigma has 2^13 to 2^14."""
    return 2.0 ** (math.floor(math.log2(sigma)) - 13)


def to_grid(x: np.ndarray, grid: float) -> np.ndarray:
    """Series (float64), each value at its nearest multiple of the grid."""
    return np.round(np.asarray(x, np.float64) / grid) * grid


def grid_noise(key: jax.Array, shape: tuple[int, ...], sigma: float, grid: float) -> np.ndarray:
    """grid * round(sigma Z / grid) in float64, by the quantile of a Gaussian.

    Of the 64 bits that a value has, one is the sign and 63 are a number u. |Z| is where the tail
    has the probability (u + 1/2) / 2^63: right but for values within 1e-9 of the middle between two
    grid points, of which these tests have none.
    """
    first, second = np.asarray(jax.random.bits(key, (2, *shape), np.uint32)).astype(np.uint64)
    u = (first % 2**31) * 2**32 + second
    magnitude = -special.ndtri((u + 0.5) / 2.0**64)
    steps = np.floor(magnitude * sigma / grid + 0.5)
    return np.where(first < 2**31, steps, -steps) * grid


def read_record(path: pathlib.Path) -> dict[str, Any]:
    """A .json that a script wrote, whose last entry is the CRC-32 of the others."""
    record = json.loads(path.read_text())
    assert record.popitem() == ("crc32", f"{zlib.crc32(json.dumps(record).encode()):08x}")
    return record


def assert_same(first, second) -> None:
    """The two trees have the same structure, shapes, types and bits."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def assert_uncorrelated(rows: np.ndarray, error: float) -> None:
    """No two of the rows of standard Gaussians correlate.

    Wrong about independent rows with probability at most `error`: the p-value of a correlation of
    Gaussian samples is exact, and the level is divided by the number of pairs.
    """
    n = rows.shape[1]
    correlation = np.corrcoef(rows)[np.triu_indices(len(rows), k=1)]
    t = np.abs(correlation) * np.sqrt((n - 2) / (1 - np.minimum(correlation**2, 1 - 1e-15)))
    assert (2 * stats.t.sf(t, n - 2) > error / len(t)).all()


def assert_binomial(successes: int, trials: int, p: float, error: float) -> None:
    """The count is neither too small nor too large for Bin(trials, p); exact, two-sided."""
    low, high = stats.binom.ppf([error / 2, 1 - error / 2], trials, p)
    assert low <= successes <= high


def mesh_of(devices: int) -> jax.sharding.Mesh:
    if jax.device_count() < devices:
        pytest.skip(f"needs {devices} devices")
    return jax.make_mesh((devices,), ("draws",), axis_types=(jax.sharding.AxisType.Auto,))
