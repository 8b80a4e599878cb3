"""Noise on a grid: thresholds, integers and distribution, against precise and plain arithmetic."""

import bisect
import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import assert_uncorrelated, default_grid, grid_noise, to_grid
from scipy import special, stats

from selfens_jax import backend, noise, smoothing
from selfens_jax.errors import UserError

KEY = jax.random.key(6)
COARSE, USUAL, FINE = 64.0, 0.7 * 2**14, 2.0**17  # sigma / q
RATIOS = (COARSE, 100.3, 1024.0, 2.0**13, USUAL, 16383.9, FINE)
HALF = 2**31  # the words of a value are a sign and 31 bits, and 32 bits


def whole(ratio: float) -> list[int]:
    """The thresholds as integers, in rising order."""
    high, low = (word.astype(object) for word in noise.thresholds(ratio))
    return (high * 2**32 + low).tolist()


def tail(z: mpmath.mpf) -> mpmath.mpf:
    """P(|Z| > z)"""
    return mpmath.erfc(z / mpmath.sqrt(2))


# Thresholds


def test_scipys_phi_is_as_good_as_deviation_takes_it_to_be():
    """Relative error at most (1 + z^2) 2^-50, over all z that thresholds have."""
    places = np.random.default_rng(0).uniform(0, 9.5, 3000)
    places = np.concatenate([places, np.geomspace(1e-6, 9.5, 500), np.arange(1, 10) * 1.0])
    with mpmath.workprec(150):
        for z, found in zip(places, 2 * special.ndtr(-places), strict=True):
            error = abs(mpmath.mpf(float(found)) / tail(mpmath.mpf(float(z))) - 1)
            assert error <= (1 + z**2) * 2.0**-50


@pytest.mark.parametrize("ratio", RATIOS)
def test_thresholds_are_the_tails_of_a_gaussian(ratio):
    """Within what `deviation` allows for, of 2^63 P(|Z| > (j + 1/2) / ratio), and in order."""
    falling = whole(ratio)[::-1]
    assert falling == sorted(falling, reverse=True)
    reached = sum(threshold > 0 for threshold in falling)
    rng = np.random.default_rng(1)
    chosen = {0, 1, 2, reached - 2, reached - 1, reached, reached + 1, len(falling) - 1}
    chosen |= set(rng.integers(len(falling), size=400).tolist())
    with mpmath.workprec(150):
        for j in chosen:
            z = (mpmath.mpf(j) + 0.5) / mpmath.mpf(ratio)
            exact = 2**63 * tail(z)
            assert abs(falling[j] - exact) <= exact * (1 + z**2) * mpmath.mpf(2) ** -49 + 1
        # The largest |k| is the last that has a probability of 2^-63, and the table holds it.
        assert 2**63 * tail((reached - 0.5) / mpmath.mpf(ratio)) > 0.999
        assert 2**63 * tail((reached + 0.5) / mpmath.mpf(ratio)) < 1.001
    assert reached < len(falling)


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_words_hold_the_integer_part_exactly(ratio):
    falling = whole(ratio)[::-1]
    tails = 2 * special.ndtr(-(np.arange(len(falling)) + 0.5) / ratio)
    for j in (*range(3), *np.random.default_rng(7).integers(len(falling), size=2000).tolist()):
        assert falling[j] == math.floor(Fraction(float(tails[j])) * 2**63)


def test_tables_of_another_sigma_have_the_same_shape():
    """So that nothing compiles again; up to the next power of two."""
    shapes = {noise.thresholds(sigma / default_grid(sigma))[0].shape for sigma in (0.5, 0.8, 3.99)}
    assert len(shapes) == 1


# Integers


def by_counting(u: int, sign: int, rising: list[int]) -> int:
    """The number of thresholds above u, with the sign."""
    magnitude = len(rising) - bisect.bisect_right(rising, u)
    assert magnitude in (0, len(rising)) or rising[-magnitude - 1] <= u < rising[-magnitude]
    return -magnitude if sign else magnitude


def integers(u: list[int], signs: list[int], rising: list[int]) -> np.ndarray:
    first = [sign * HALF + (value >> 32) for value, sign in zip(u, signs, strict=True)]
    second = [value % 2**32 for value in u]
    words = (first, second, [t >> 32 for t in rising], [t % 2**32 for t in rising])
    return np.asarray(noise.integers(*(jnp.array(word, jnp.uint32) for word in words)))


def crafted(rising: list[int]) -> list[int]:
    """Numbers at, next to, and in one high word with thresholds, and the ends of the range."""
    near = {t + step for t in rising for step in (-1, 0, 1)}
    ties = {(t >> 32 << 32) + low for t in rising for low in (0, 1, t % 2**32 // 2, 2**32 - 1)}
    return sorted(u for u in near | ties | {0, 1, 2**32, 2**63 - 1} if 0 <= u < 2**63)


TABLES = {
    "coarse": whole(COARSE),
    "of every 200th": whole(USUAL)[::-200][::-1],
    "of one": [5 * 2**32 + 7],
    "with zeros": [0, 0, 0, 1, 2**32 - 1, 2**32, 2**62],
    "of ties": [2**32 + low for low in (0, 0, 1, 5, 5, 2**32 - 1)] + [2**63 - 2, 2**63 - 1],
}


# A GPU's program is that of a TPU.
@pytest.mark.parametrize("kind", ["cpu", "tpu", pytest.param("gpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_integers_count_the_thresholds_above_a_number(table, kind):
    u = crafted(table)
    u += np.random.default_rng(2).integers(2**63, size=2000).tolist()
    with backend.compiling_for(kind):
        for sign in (0, 1):
            expected = [by_counting(value, sign, table) for value in u]
            found = integers(u, [sign] * len(u), table)
            assert found.dtype == np.int32
            np.testing.assert_array_equal(found, expected)
        largest = sum(t > 0 for t in table)
        np.testing.assert_array_equal(integers([0, 0], [0, 1], table), [largest, -largest])
        assert integers([2**63 - 1], [1], table) == 0  # no threshold is above the largest number


@pytest.mark.parametrize("grid", [2.0**-7, None, 2.0**-17])
def test_draws_are_the_rounded_quantiles_of_their_words(grid):
    grid = grid or default_grid(0.9)
    made, _ = noise.make_noise("grid", 0.9, grid, np.zeros((1, 1, 1)), np.zeros((1, 1, 1)))
    keys = jax.random.split(KEY, 30)
    found = made.draw(keys, (400, 2))
    assert found.dtype == np.float32
    expected = np.stack([grid_noise(key, (400, 2), 0.9, grid) for key in keys])
    np.testing.assert_array_equal(np.asarray(found, np.float64), expected)


def test_the_thresholds_are_those_of_sigma_to_the_last_bit():
    """Not of the float32 above it, which noise in float32 needs."""
    made, _ = noise.make_noise("grid", 0.7, 2.0**-14, np.zeros((1, 1, 1)), np.zeros((1, 1, 1)))
    high, low = noise.thresholds(0.7 * 2**14)
    np.testing.assert_array_equal(made.high, high)
    np.testing.assert_array_equal(made.low, low)
    assert (low != noise.thresholds(float(noise.round_up(0.7)) * 2**14)[1]).any()


# The distribution


@pytest.mark.parametrize("ratio", [COARSE, 100.3, 1024.0])
def test_the_total_variation_is_what_deviation_bounds(ratio):
    """Exactly, by summing over all integers; and the bound is of that order, not of another."""
    falling = [2**63, *(threshold for threshold in whole(ratio)[::-1] if threshold), 0]
    with mpmath.workprec(200):
        tails = [tail((mpmath.mpf(j) - 0.5) / mpmath.mpf(ratio)) for j in range(len(falling))]
        tails[0] = mpmath.mpf(1)
        total = tails[-1]
        for j in range(len(falling) - 1):  # |k| = j
            ours = mpmath.mpf(falling[j] - falling[j + 1]) / 2**63
            total += abs(ours - (tails[j] - tails[j + 1]))
        bound = noise.deviation(ratio, 1)
        assert total / 2 <= bound < ratio * 2.0**-47
        # Of independent values total variations add up, at most.
        assert noise.deviation(ratio, 128) == pytest.approx(128 * bound, rel=1e-12)


def test_samples_have_the_distribution():
    """By Pearson's chi-square over every integer; it errs with probability 1e-9."""
    made, _ = noise.make_noise("grid", 1.0, 1 / COARSE, np.zeros((1, 1, 1)), np.zeros((1, 1, 1)))
    drawn = np.asarray(made.draw(jax.random.split(KEY, 100), (5000,))) * COARSE
    edge = int(3.5 * COARSE)
    seen = np.bincount(np.clip(drawn, -edge, edge).astype(int).ravel() + edge)
    ends = np.arange(-edge, edge) + 0.5
    expected = drawn.size * np.diff(stats.norm.cdf(ends / COARSE), prepend=0, append=1)
    assert expected.min() > 5
    assert stats.chisquare(seen, expected).pvalue > 1e-9


@pytest.mark.parametrize("kind", noise.KINDS)
def test_samples_on_a_fine_grid_are_gaussian(kind):
    """By Kolmogorov's test and by counting tails; each errs with probability 1e-9."""
    made, _ = noise.make_noise(kind, 0.8, None, np.zeros((1, 1, 1)), np.zeros((1, 1, 1)))
    drawn = np.asarray(made.draw(jax.random.split(KEY, 100), (10_000,)), np.float64).ravel() / 0.8
    assert stats.kstest(drawn, "norm").pvalue > 1e-9
    for z in (3.0, 4.0):
        low, high = stats.binom.ppf([5e-10, 1 - 5e-10], drawn.size, 2 * stats.norm.sf(z))
        assert low <= (np.abs(drawn) > z).sum() <= high


def test_draws_examples_steps_and_channels_are_uncorrelated():
    """And so are sign and magnitude, as Gaussians. It errs with probability 1e-9."""
    made, _ = noise.make_noise("grid", 1.0, None, np.zeros((1, 1, 1)), np.zeros((1, 1, 1)))
    keys = [
        jax.random.fold_in(jax.random.fold_in(KEY, example), draw)
        for example in (0, 1, 2**32 - 1)
        for draw in (0, 1, 2, 1000)
    ]
    rows = np.asarray(made.draw(jnp.stack(keys), (3000, 2)), np.float64)
    magnitude = special.ndtri(np.clip(2 * special.ndtr(np.abs(rows)) - 1, 1e-5, None))
    rows = np.concatenate([rows[..., 0], rows[..., 1], magnitude[..., 0], magnitude[..., 1]])
    assert_uncorrelated(rows, error=5e-10)
    assert_uncorrelated(np.concatenate([rows[:, 1:], rows[:, :-1]]), error=5e-10)


# Rounding to the grid


@pytest.mark.parametrize("grid", [2.0**-6, 2.0**-13, 2.0**-17])
def test_rounding_commutes_with_a_shift_by_a_grid_point(grid):
    """In exact arithmetic: round(x + s) = x + round(s), the sum that float32 has, for grid points
    up to the largest that are let pass. What is not let pass is needed: there sums are inexact."""
    rng, sigma = np.random.default_rng(3), 1.0
    steps = math.floor(noise.LARGEST - noise.REACH * sigma / grid)
    noise.check_grid(grid, sigma, np.full((1, 1, 1), steps * grid))
    reach = sum(threshold > 0 for threshold in whole(sigma / grid))
    assert reach * grid < noise.REACH / 2 * sigma  # the other half is for changed series
    points = [*rng.integers(-steps, steps, 30).tolist(), steps, -steps, 0]
    shifts = [*rng.normal(scale=sigma / grid, size=30).tolist(), reach, -reach]
    for point, shift in itertools.product(points, shifts):  # in steps of the grid
        assert round(point + Fraction(shift)) == point + round(Fraction(shift))
        summed = np.float32(point * grid) + np.float32(round(shift) * grid)
        assert Fraction(float(summed)) == (point + round(shift)) * Fraction(grid)
    beyond = noise.LARGEST + 1 - reach  # grid points; the next sum is that of the largest noise
    summed = np.float32(beyond * grid) + np.float32(reach * grid)
    assert Fraction(float(summed)) != (beyond + reach) * Fraction(grid)
    with pytest.raises(UserError, match="too large"):
        noise.check_grid(grid, sigma, np.full((1, 1, 1), beyond * grid))


SHOWN: list[np.ndarray] = []


def show(x: jax.Array) -> jax.Array:
    jax.debug.callback(lambda x: SHOWN.append(np.array(x)), x)
    return x[:, :2, 0]


@pytest.mark.parametrize("offset", [0.0, 500.0, -511.0])
def test_a_classifier_is_shown_the_nearest_grid_point_and_its_noise(offset):
    """Bit for bit, for series between grid points, near 0 and near the largest that are allowed."""
    sigma, grid = 0.7, 2.0**-14
    x = np.random.default_rng(4).normal(size=(1, 6, 2)) + offset
    SHOWN.clear()
    options = {"num_draws": 50, "draws_per_block": 50, "key": KEY, "indices": [9]}
    smoothing.count_votes(jax.tree_util.Partial(show), x, sigma=sigma, **options)
    jax.effects_barrier()
    for draw, shown in enumerate(SHOWN[-1]):
        key = jax.random.fold_in(jax.random.fold_in(KEY, 9), draw)
        expected = to_grid(x[0], grid) + grid_noise(key, (6, 2), sigma, grid)
        np.testing.assert_array_equal(shown.astype(np.float64), expected)
    assert np.abs(to_grid(x, grid) - x).max() > grid / 4


def test_series_go_to_the_grid_directly_not_by_way_of_float32():
    """By which a value would move by up to q / 4 more than the half that a certificate allows."""
    grid, steps = 2.0**-14, 2**22 + 1  # where the step of float32 is q / 2
    x = np.full((1, 3, 1), (steps + 0.26) * grid)
    assert noise.on_grid(x, grid).ravel().tolist() == [steps * grid] * 3
    assert np.float32(x[0, 0, 0]) == (steps + 0.5) * grid  # which is as near to the next
    SHOWN.clear()
    options = {"num_draws": 20, "draws_per_block": 20, "key": KEY}
    smoothing.count_votes(jax.tree_util.Partial(show), x, sigma=0.7, **options)
    jax.effects_barrier()
    key = jax.random.fold_in(jax.random.fold_in(KEY, 0), 0)
    expected = steps * grid + grid_noise(key, (3, 1), 0.7, grid)
    np.testing.assert_array_equal(SHOWN[-1][0].astype(np.float64), expected)


def test_a_point_between_two_grid_points_goes_to_one_of_them():
    rounded = noise.on_grid(np.array([[[0.5], [1.5], [-0.5], [0.49], [0.51], [-3.0]]]), 1.0)
    assert rounded.dtype == np.float32
    assert rounded.ravel().tolist() == [0, 2, 0, 0, 1, -3]
