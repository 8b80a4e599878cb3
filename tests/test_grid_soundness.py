"""What noise on a grid is for: certificates that hold for any classifier, at what they give up.

Classifiers that know how noise is made contradict themselves under noise in float32. On a grid
their certificates are what they are worth, and a half-space whose series lie between grid points
shows that what rounding takes off is needed.
"""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import assert_binomial
from scipy import stats

from selfens_jax import certificates, certify, counting, noise, sequential, smoothing
from selfens_jax.certificates import BOUNDS, INTERVALS, Certificates, certify_counts
from selfens_jax.correction import Correction
from selfens_jax.errors import UserError

KEY = jax.random.key(12)
SIGMA = 1.0
USUAL = 2.0**-13  # the usual grid of this sigma
STEPS = 24  # time steps of the series that are recognised


# Classifiers that know how noise is made


def float32_values() -> np.ndarray:
    """All 2^23 values of `jax.random.normal` in float32, in rising order, of its 23 random bits."""
    least = np.nextafter(np.float32(-1), np.float32(0))

    @jax.jit
    def value(bits: jax.Array) -> jax.Array:
        uniform = jax.lax.bitcast_convert_type(bits | jnp.uint32(0x3F800000), jnp.float32) - 1
        spread = jnp.maximum(least, uniform * (1 - least) + least)
        return jnp.float32(np.sqrt(2)) * jax.lax.erf_inv(spread)

    return np.sort(np.asarray(value(jnp.arange(2**23, dtype=jnp.uint32))))


VALUES = float32_values()


def test_these_are_the_values_of_noise_in_float32():
    drawn = np.asarray(jax.random.normal(KEY, (100_000,)))
    assert (VALUES[np.minimum(np.searchsorted(VALUES, drawn), 2**23 - 1)] == drawn).all()


def knows_float32(x: np.ndarray) -> np.ndarray:
    """Class 0 where all values but a few are noise in float32 around 0."""
    place = np.minimum(np.searchsorted(VALUES, x), len(VALUES) - 1)
    return np.where((VALUES[place] == x).mean(axis=(1, 2)) > 0.9, 0, 1)


def knows_the_grid(x: np.ndarray) -> np.ndarray:
    """Class 0 where all values lie on the grid."""
    return np.where((x % USUAL == 0).all(axis=(1, 2)), 0, 1)


def knows_points_beside(x: np.ndarray) -> np.ndarray:
    """Class 0 where all values lie a quarter of a step above grid points."""
    return np.where(((x - USUAL / 4) % USUAL == 0).all(axis=(1, 2)), 0, 1)


def knows_the_parity(x: np.ndarray) -> np.ndarray:
    """The class is whether the sum of all values is an odd number of steps."""
    return (np.rint(x.astype(float).sum(axis=(1, 2)) / USUAL) % 2).astype(int)


OFFSETS = (0.0, USUAL / 4, USUAL / 2, 0.9 * USUAL, 0.001, 0.1, 0.4)
X = np.full((STEPS, 1), 1.0) * np.array(OFFSETS)[:, None, None]


def certified(knows, kind: str) -> Certificates:
    return certify(knows, X, sigma=SIGMA, num_classes=2, noise=kind, key=KEY)


def contradictions(found: Certificates) -> int:
    """Pairs of series of two classes, one of which lies inside the other's radius."""
    pairs = itertools.permutations(range(len(X)), 2)
    sure = found.prediction >= 0
    return sum(
        sure[i]
        and sure[j]
        and found.prediction[i] != found.prediction[j]
        and np.linalg.norm(X[i] - X[j]) < found.radius[i]
        for i, j in pairs
    )


CLASSES = {  # on the grid everywhere, and so certified everywhere; None: as likely as not
    knows_float32: 1,
    knows_the_grid: 0,
    knows_points_beside: 1,
    knows_the_parity: None,
}


@pytest.mark.parametrize("knows", CLASSES, ids=lambda knows: knows.__name__)
def test_on_a_grid_a_classifier_is_certified_as_what_it_is_there(knows):
    found = certified(knows, "grid")
    assert contradictions(found) == 0
    if CLASSES[knows] is None:
        assert (found.prediction == -1).all()  # with error probability 1e-3 for each series
    else:
        assert (found.prediction == CLASSES[knows]).all()
        most = certify_counts([1000, 0], SIGMA).radius
        np.testing.assert_allclose(found.radius, most - USUAL * math.sqrt(STEPS), atol=1e-5)


def test_under_noise_in_float32_a_classifier_contradicts_its_certificates():
    """Which is why it is not the usual noise. On a grid the same one does not: see above."""
    found = certified(knows_float32, "float32")
    assert contradictions(found) > 0
    assert found.prediction[[0, -1]].tolist() == [0, 1]
    assert (found.radius[[0, -1]] > 2.4).all()


def test_a_spike_that_noise_in_float32_never_has():
    """Class 1 above the largest of its 2^23 values: a half-space, whose radius is that value.

    So noise in float32 certifies too much with certainty, and on a grid with at most alpha.
    """
    spike, draws, alpha = float(VALUES[-1]), 10**8, 0.001
    assert 5.2 < spike < 5.3
    assert certify_counts([draws, 0], SIGMA, alpha).radius > spike + 0.02
    high, low = noise.thresholds(SIGMA / USUAL)
    beyond = math.floor(spike / USUAL)  # class 1 is k > beyond, for half of the signs
    tail = (int(high[-1 - beyond]) * 2**32 + int(low[-1 - beyond])) / 2**64
    assert tail == pytest.approx(stats.norm.sf((beyond + 0.5) * USUAL), rel=1e-9)
    given_up = noise.correction("grid", SIGMA, None, 1)
    of_one = np.arange(30)  # votes for class 1
    radius = certify_counts(
        np.stack([draws - of_one, of_one], axis=-1), SIGMA, alpha, given_up=given_up
    ).radius
    false = stats.binom.pmf(of_one, draws, tail)[radius > (beyond + 0.5) * USUAL].sum()
    assert 0 < false <= alpha / 2


# A half-space between grid points

COARSE, LENGTH, TIMES = SIGMA / 64, 16, 4
ROUNDING = COARSE * math.sqrt(LENGTH)
REPETITIONS, DRAWS, ALPHA, TEST_ERROR = 1000, 1000, 0.05, 1e-6
BARELY = 1 / 64  # of a step: how far values lie beyond the middle between two grid points


def is_positive(x: jax.Array) -> jax.Array:
    """Class 1 where the sum, exact in float32, is at least 0."""
    side = x.sum(axis=(1, 2)) / COARSE + 0.5
    return jnp.stack([-side, side], axis=-1)


HALF_SPACE = jax.tree_util.Partial(is_positive)


def just_rounded_up() -> tuple[np.ndarray, float]:
    """A series that barely goes to grid points TIMES steps up, one to the step below; its radius.

    Of the smoothed classifier g, which rounds: by symmetry its class is 1 where the steps of the
    grid point add up to 0 or more. For 0 the sum must fall by LENGTH * TIMES steps. The first of
    a value costs BARELY, each further one a step more; squares add up, so that no way is shorter
    than to let every value fall alike.
    """
    steps = np.full((LENGTH, 1), TIMES)
    steps[0] -= 1
    return (steps - 0.5 + BARELY) * COARSE, (TIMES - 1 + BARELY) * ROUNDING


def share_of_one() -> float:
    """P(class 1) at that series: of a sum of rounded Gaussians, by convolution."""
    k = np.arange(-600, 601)
    one = stats.norm.cdf((k + 0.5) * COARSE) - stats.norm.cdf((k - 0.5) * COARSE)
    total = np.array([1.0])
    for _ in range(LENGTH):
        total = np.convolve(total, one)
    steps = np.arange(len(total)) - len(total) // 2
    return float(total[steps >= -(LENGTH * TIMES - 1)].sum())


@pytest.fixture(scope="module")
def votes() -> np.ndarray:
    """(REPETITIONS, 2); each repetition is another index."""
    x = np.tile(just_rounded_up()[0], (REPETITIONS, 1, 1))
    return smoothing.count_votes(
        HALF_SPACE, x, sigma=SIGMA, num_draws=DRAWS, key=KEY, batch_size=100_000, grid=COARSE
    )


def test_votes_have_the_probability_of_the_sum(votes):
    assert_binomial(votes[:, 1].sum(), votes.sum(), share_of_one(), error=TEST_ERROR)


def most_allowed() -> int:
    """A valid scheme makes more false certificates with probability at most TEST_ERROR."""
    return int(stats.binom.isf(TEST_ERROR, REPETITIONS, ALPHA))


def number_false(found: Certificates) -> int:
    _, radius = just_rounded_up()
    return int(((found.prediction == 0) | (found.radius > radius)).sum())


def test_no_more_than_alpha_of_the_certificates_between_grid_points_are_false(votes):
    given_up = noise.correction("grid", SIGMA, COARSE, LENGTH)
    found = certify_counts(votes, SIGMA, ALPHA, given_up=given_up)
    assert number_false(found) <= most_allowed()
    assert (found.radius > 0).mean() > 0.99


def test_without_what_rounding_takes_off_too_many_would_be_false(votes):
    """The same harness finds it out; it misses it with probability TEST_ERROR."""
    of_one = np.arange(DRAWS + 1)
    every = certify_counts(np.stack([DRAWS - of_one, of_one], axis=-1), SIGMA, ALPHA)
    false = (every.radius > just_rounded_up()[1]) & (every.prediction == 1)
    rate = stats.binom.pmf(of_one, DRAWS, share_of_one())[false].sum()
    assert stats.binom.cdf(most_allowed(), REPETITIONS, rate) < TEST_ERROR
    assert number_false(certify_counts(votes, SIGMA, ALPHA)) > most_allowed()


def test_certify_gives_up_what_counts_do(votes):
    x = np.tile(just_rounded_up()[0], (3, 1, 1))
    found = certify(HALF_SPACE, x, sigma=SIGMA, alpha=ALPHA, key=KEY, grid=COARSE)
    given_up = noise.correction("grid", SIGMA, COARSE, LENGTH)
    expected = certify_counts(votes[:3], SIGMA, ALPHA, given_up=given_up)
    np.testing.assert_array_equal(found.radius, expected.radius)
    np.testing.assert_array_equal(found.p_a, expected.p_a)


class Drawn(counting.Job):
    """A job whose votes are binomial, with the probability that the test above finds."""

    def count(self, examples, first_draw, num_draws):
        rng = np.random.default_rng(first_draw)
        of_one = rng.binomial(num_draws, share_of_one(), size=len(examples))
        return np.stack([num_draws - of_one, of_one], axis=-1), np.full(len(examples), num_draws)


def test_no_more_than_alpha_of_the_decisions_between_grid_points_are_false(tmp_path):
    """At its true radius a series is certified with at most alpha; less by the rounding, often."""
    series, radius = just_rounded_up()
    data = {"length": LENGTH, "num_channels": 1, "classes": ["0", "1"]}
    settings = {"data": data, "sigma": SIGMA, "grid": COARSE}
    x, labels = np.tile(series, (REPETITIONS, 1, 1)), np.ones(REPETITIONS, int)
    job = Drawn(x, labels, np.arange(REPETITIONS), None, settings, 10**6)
    edges = sequential.batches(max_draws=20_000)

    def certified_at(radius: float) -> int:
        levels, share = (ALPHA, 0.05), counting.Share()
        found = counting.decide_examples(job, edges, radius, *levels, tmp_path, share, str)
        return int((found.decision == sequential.CERTIFIED).sum())

    assert certified_at(radius) <= most_allowed()
    assert certified_at(radius - ROUNDING) > 2 * most_allowed()


# What is given up, exactly


def quantile(p: Fraction) -> mpmath.mpf:
    return mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(p.numerator) / p.denominator - 1)


COUNTS = np.array([[1000, 0], [999, 1], [900, 100], [600, 400], [510, 490], [500, 500], [3, 997]])


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize(
    "given_up", [Correction(0.05, 0), Correction(0, 1e-3), Correction(0.3, 0.02)]
)
def test_radii_and_probabilities_are_less_by_what_is_given_up(interval, bound, given_up):
    sigma = 0.7
    before = certify_counts(COUNTS, sigma, 0.01, interval, bound)
    after = certify_counts(COUNTS, sigma, 0.01, interval, bound, given_up)
    deviation, rounding = Fraction(given_up.deviation), Fraction(given_up.rounding)
    p_a = [max(Fraction(p) - deviation, Fraction(0)) for p in before.p_a.tolist()]
    if interval == "clopper_pearson":
        p_b = [1 - p for p in p_a]
    else:
        p_b = [min(Fraction(p) + deviation, Fraction(1)) for p in before.p_b.tolist()]
    np.testing.assert_allclose(after.p_a, np.array(p_a, float), rtol=0, atol=1e-16)
    np.testing.assert_allclose(after.p_b, np.array(p_b, float), rtol=0, atol=2e-16)
    for row in range(len(COUNTS)):
        kept = p_a[row] > p_b[row]
        assert after.prediction[row] == (COUNTS[row].argmax() if kept else -1)
        if not kept:
            assert after.radius[row] == 0
            continue
        if given_up.deviation == 0:
            if math.isinf(before.radius[row]):
                continue
            whole = Fraction(float(before.radius[row]))
        elif bound == "cohen":
            with mpmath.workprec(200):
                gap = quantile(p_a[row]) - quantile(p_b[row])
                whole = Fraction(str(mpmath.mpf(sigma) / 2 * gap))
        else:
            whole = Fraction(float(certificates.renyi_radius(after.p_a, after.p_b, sigma)[row]))
        exact = max(whole - rounding, Fraction(0))
        found = Fraction(float(after.radius[row]))
        assert found <= exact
        assert exact - found < 1e-10
    if given_up.rounding == 0.3:  # more than some radii: the class stays
        assert ((after.prediction >= 0) & (after.radius == 0)).any()


@pytest.mark.parametrize(("grid", "number"), [(2.0**-14, 128), (2.0**-6, 1), (2.0**-20, 3000)])
def test_rounding_is_q_times_the_root_of_the_number_of_values(grid, number):
    found = noise.correction("grid", 64 * 2.0**-6 * 1.5, grid, number)
    assert Fraction(found.rounding) ** 2 >= Fraction(grid) ** 2 * number
    assert found.rounding == pytest.approx(grid * math.sqrt(number), rel=1e-14)
    assert found.deviation == noise.deviation(1.5 / grid, number)


def test_settings_say_what_is_given_up():
    data = {"length": 50, "num_channels": 3}
    assert noise.given_up({"data": data, "sigma": 0.8}) == Correction()
    found = noise.given_up({"data": data, "sigma": 0.8, "grid": 2.0**-9})
    assert found == noise.correction("grid", 0.8, 2.0**-9, 150)
    assert found.rounding > 0
    assert found.deviation > 0
    assert noise.correction("float32", 0.8, None, 150) == Correction()
    usual = noise.correction("grid", 0.8, None, 150)
    assert usual == noise.correction("grid", 0.8, 2.0**-14, 150)


@pytest.mark.parametrize("radius", [0.0, 0.3, 2.0, 2.9])
@pytest.mark.parametrize(
    "given_up", [Correction(0.1, 0), Correction(0, 1e-7), Correction(0.2, 1e-4)]
)
def test_the_share_that_certifies_is_more_by_what_is_given_up(radius, given_up):
    sigma = 0.9
    found = sequential.certified_share(radius, sigma, given_up)
    with mpmath.workprec(200):
        reached = (mpmath.mpf(radius) + mpmath.mpf(given_up.rounding)) / mpmath.mpf(sigma)
        exact = mpmath.ncdf(reached) + mpmath.mpf(given_up.deviation)
        assert exact <= mpmath.mpf(found) < exact + mpmath.mpf(10) ** -12


def test_a_radius_that_only_rounding_makes_too_large_is_refused():
    assert sequential.certified_share(7.9, 1.0) < 1
    for given_up in (Correction(1.0, 0.0), Correction(0.0, 1e-9)):
        with pytest.raises(UserError, match="no votes certify it"):
            sequential.certified_share(7.9, 1.0, given_up)
