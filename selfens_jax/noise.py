"""Noise on a grid: integers k with the probabilities of round(sigma Z / q), Z a standard Gaussian.

Why. `jax.random.normal` has 2^23 values, and the largest is 5.22. A classifier that asks "is this
x + sigma times one of them?" is certified far from where its certificates hold: the proof is of
Gaussian noise. On a grid nothing is left to approximate but a probability far below rounding:

    round_q(x + sigma Z) = x + q round(sigma Z / q)        for x on the grid q Z

because rounding to the grid commutes with a shift by a grid point (Voracek & Hein, ICLR 2023). So
f(x + q k) is a fixed measurable function, f after rounding, of the real Gaussian x + sigma Z, and
Cohen's theorem needs no correction at grid points. `certificates` has statement and proof.

How. q is a power of two, and |x / q + k| stays below 2^24, up to where float32 holds every integer:
sums are exact. |k| is the number of thresholds P(|k| > j), j = 0, 1, 2, ..., above a uniform number
of 63 bits; the sign is one more bit. What separates this from the Gaussian is the error of the
thresholds, `deviation`.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from selfens_jax import backend
from selfens_jax.correction import NOTHING_GIVEN_UP, Correction
from selfens_jax.errors import UserError, check_number

KINDS = ("grid", "float32")
STEPS = 13  # sigma / q is at least 2^13 and below 2^14, unless a grid is given
LARGEST = 2**24  # up to it, float32 holds every integer
FINEST = float(np.finfo(np.float32).tiny)  # below it processors may take values for zero
REACH = 20.0  # sigmas beyond the largest value that sums must stay exact for: noise and radius
_BITS = 63  # of the uniform number that the magnitude is read from


def default_grid(sigma: float) -> float:
    """q for this sigma: a power of two of which sigma has 2^13 to 2^14."""
    return max(math.ldexp(1.0, math.frexp(sigma)[1] - 1 - STEPS), FINEST)


def check_grid(grid: float, sigma: float, x: np.ndarray) -> float:
    """q, if it is a power of two on which sums of series and noise are exact.

    Args:
      grid: q.
      sigma: of the noise.
      x: (N, T, C) series.

    Raises:
      UserError: if it is no power of two, coarser than sigma / 64, finer than sigma / 2^17, or too
        fine for the largest value of x.
    """
    grid = check_number("grid", grid, 0, math.inf)
    # Numbers in these messages are meant to be typed: no digit is left out.
    usual = f"take {default_grid(sigma)!r}"
    if math.frexp(grid)[0] != 0.5:
        raise UserError(f"grid must be a power of two, not {grid!r}: {usual}")
    if grid > sigma / 64:
        raise UserError(f"grid {grid!r} is coarser than sigma / 64 = {sigma / 64:g}: {usual}")
    if sigma / grid > 2**17 or grid < FINEST:
        raise UserError(f"grid {grid!r} is too fine for sigma {sigma:g}: {usual}")
    largest = float(np.abs(x).max(initial=0)) + REACH * sigma
    if largest > LARGEST * grid:
        needed = math.ldexp(1.0, math.ceil(math.log2(largest / LARGEST)))
        other = f"take the grid {needed!r}" if needed <= sigma / 64 else "take a larger sigma"
        raise UserError(
            f"values up to {np.abs(x).max():g} are too large for noise on a grid of {grid!r}: "
            f"subtract a constant from all series, or {other}"
        )
    return grid


def on_grid(x: np.ndarray, grid: float) -> np.ndarray:
    """Series (N, T, C), float64, rounded to the grid, in float32, which holds it exactly.

    Each value moves by q / 2 at most; by way of float32 it could be more.
    """
    return (np.rint(x / grid) * grid).astype(np.float32)


@functools.lru_cache(maxsize=8)
def thresholds(ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """The high 31 and low 32 bits, uint32 (M,), of where |k| grows by one, in rising order.

    ratio: sigma / q. The thresholds are 2^63 P(|k| > j) = 2^64 Phi(-(j + 1/2) / ratio), j = M - 1,
    ..., 0, rounded down: a uniform number u in [0, 2^63) has |k| > j if it is below its threshold.
    No u is below those that are 0, from 9.1 sigma on; they make M the same for all ratios up to the
    next power of two, so that one program serves another sigma.
    """
    number = math.ceil(9.5 * 2.0 ** math.frexp(ratio)[1])
    tails = 2 * special.ndtr(-(np.arange(number) + 0.5) / ratio)
    # A float64 times a power of two is exact, and so is its integer part, in two words.
    high = np.floor(np.ldexp(tails, 31))
    low = np.floor(np.ldexp(tails - np.ldexp(high, -31), _BITS))
    return high[::-1].astype(np.uint32), low[::-1].astype(np.uint32)


def deviation(ratio: float, num_values: int) -> float:
    """A bound of the total variation between the noise of a draw and the Gaussian's, rounded up.

    With z = (j + 1/2) / ratio, threshold j is off by the rounding of z and Phi, which grows as the
    exponent of exp(-z^2 / 2) does: at most (1 + z^2) 2^-49, relative (SciPy's is tested to be
    within (1 + z^2) 2^-50), and by 2^-63. The probability of k is the difference of two
    neighbouring thresholds, so that for one value the total variation is at most the sum of all
    errors; for T C independent ones, at most T C times that.

    Args:
      ratio: sigma / q.
      num_values: T C.
    """
    # sum_j P(|k| > j) (1 + z_j^2) is a midpoint sum: at most its integral, which is
    # ratio (E|Z| + E|Z|^3 / 3) = ratio E|Z| 5/3, and the largest terms of its two parts, below 2.
    # From 9.5 sigma on there need be no threshold: P(|Z| > 9.5) < 1e-20.
    phi = (ratio * math.sqrt(2 / math.pi) * 5 / 3 + 2) * 2.0**-49
    one = phi + math.ceil(9.5 * ratio) * 2.0**-63 + 1e-20
    return 1.01 * num_values * one


def rounding(grid: float, num_values: int) -> float:
    """What rounding takes off a radius, rounded up: q sqrt(T C).

    The series moves to its grid point by at most q/2 sqrt(T C), and so does a changed series.
    """
    return math.nextafter(grid * math.sqrt(num_values) * (1 + 1e-15), math.inf)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GridNoise:
    """q round(sigma Z / q), as far as it can be told from it."""

    grid: jax.Array  # (), float32: q
    high: jax.Array  # (M,) uint32, from `thresholds`
    low: jax.Array

    def draw(self, keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """(B, *shape) float32, of B keys."""
        words = jax.vmap(lambda key: jax.random.bits(key, (2, *shape), jnp.uint32))(keys)
        steps = integers(words[:, 0], words[:, 1], self.high, self.low)
        return self.grid * steps.astype(jnp.float32)  # exact: steps are below 2^24


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Float32Noise:
    """sigma times `jax.random.normal`: 2^23 values, of which a network could know."""

    sigma: jax.Array  # (), float32

    def draw(self, keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """(B, *shape) float32, of B keys."""
        normal = jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
        return self.sigma * normal


def round_up(sigma: float) -> np.float32:
    """The least float32 that is not below sigma: never less noise than a radius is computed for."""
    single = np.float32(sigma)
    return single if float(single) >= sigma else np.nextafter(single, np.float32(np.inf))


Noise = GridNoise | Float32Noise


def make_noise(
    kind: str, sigma: float, grid: float | None, given: np.ndarray, x: np.ndarray
) -> tuple[Noise, np.ndarray]:
    """The noise of a certification, and the series that it is added to.

    Args:
      kind: one of KINDS.
      sigma: rounded up to float32, if float32 is what it is added in.
      grid: q, for "grid"; `default_grid` if None.
      given: (N, T, C) float64 series, which go to a grid directly, not by way of float32.
      x: the same in float32.

    Raises:
      UserError: for an unknown kind, a grid that "float32" does not have, or as `check_grid`.
    """
    if kind not in KINDS:
        raise UserError(f"unknown noise {kind!r}; choose from {', '.join(KINDS)}")
    if kind == "float32":
        if grid is not None:
            raise UserError("grid belongs to the noise 'grid'; leave it out")
        return Float32Noise(jnp.asarray(round_up(sigma))), x
    grid = check_grid(default_grid(sigma) if grid is None else grid, sigma, given)
    high, low = thresholds(sigma / grid)
    made = GridNoise(jnp.float32(grid), jnp.asarray(high), jnp.asarray(low))
    return made, on_grid(given, grid)


def correction(kind: str, sigma: float, grid: float | None, num_values: int) -> Correction:
    """The correction for series of `num_values` = T C values; the rest as in `make_noise`."""
    if kind == "float32":
        return NOTHING_GIVEN_UP
    grid = default_grid(sigma) if grid is None else grid
    return Correction(rounding(grid, num_values), deviation(sigma / grid, num_values))


def arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What counting is told of the noise of settings; those of earlier versions have no grid."""
    if "grid" not in settings:
        return {"noise": "float32"}
    return {"noise": "grid", "grid": settings["grid"]}


def given_up(settings: Mapping[str, Any]) -> Correction:
    """The correction of certificates under settings."""
    if "grid" not in settings:
        return NOTHING_GIVEN_UP
    num_values = settings["data"]["length"] * settings["data"]["num_channels"]
    return correction("grid", settings["sigma"], settings["grid"], num_values)


def integers(first: jax.Array, second: jax.Array, high: jax.Array, low: jax.Array) -> jax.Array:
    """k, int32, with the probabilities of round(sigma Z / q), of two uniform words uint32 each.

    high, low: from `thresholds`.
    """
    sign, u_high, u_low = first >> 31, first & jnp.uint32(2**31 - 1), second
    search = _number_not_above if backend.on_cpu() else _number_not_above_unrolled
    magnitude = len(high) - search(u_high, u_low, high, low)
    return jnp.where(sign == 1, -magnitude, magnitude)


def _number_not_above(
    u_high: jax.Array, u_low: jax.Array, high: jax.Array, low: jax.Array
) -> jax.Array:
    """How many of the rising thresholds are not above u, int32."""
    count, last = len(high), len(high) - 1

    def is_below(place: jax.Array) -> jax.Array:
        """Whether the threshold there, whose high word is not smaller, is not above u."""
        at = jnp.minimum(place, last)
        return (place < count) & (high[at] == u_high) & (low[at] <= u_low)

    # Where high words are equal, which is rare, the low words decide.
    return jax.lax.while_loop(
        lambda place: is_below(place).any(),
        lambda place: jnp.where(is_below(place), place + 1, place),
        jnp.searchsorted(high, u_high, side="left").astype(jnp.int32),
    )


def _number_not_above_unrolled(
    u_high: jax.Array, u_low: jax.Array, high: jax.Array, low: jax.Array
) -> jax.Array:
    """The same by bisection of both words without a loop, which a GPU runs as one kernel.

    Not for a CPU, whose compiler writes each step out for every use of the last one.
    """
    place = jnp.zeros(u_high.shape, jnp.int32)
    for bit in reversed(range(len(high).bit_length())):
        at = jnp.minimum(place + (1 << bit), len(high)) - 1
        reached = (high[at] < u_high) | ((high[at] == u_high) & (low[at] <= u_low))
        place = jnp.where(reached, at + 1, place)
    return place
