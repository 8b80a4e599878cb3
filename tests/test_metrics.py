import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from helpers import assert_binomial
from scipy import stats

from selfens_jax import certificates, metrics
from selfens_jax.errors import UserError

# right, wrong, abstained, right, right with radius 0.5
PREDICTION = np.array([0, 1, -1, 2, 1])
LABELS = np.array([0, 0, 1, 2, 1])
RADIUS = np.array([1.0, 3.0, 0.0, 2.0, 0.5])


def test_rates():
    assert metrics.accuracy(PREDICTION, LABELS) == pytest.approx(3 / 5)
    assert metrics.abstention_rate(PREDICTION) == pytest.approx(1 / 5)
    assert metrics.most_frequent_share([4, 0, 4, 1]) == pytest.approx(2 / 4)


def test_certified_accuracy_counts_correct_ones_with_at_least_the_radius():
    radii = np.array([[0.0, 0.5], [0.51, 2.0], [2.1, 3.0]])
    result = metrics.certified_accuracy(PREDICTION, RADIUS, LABELS, radii)
    np.testing.assert_allclose(result, [[0.6, 0.6], [0.4, 0.2], [0.0, 0.0]])
    assert metrics.certified_accuracy(PREDICTION, RADIUS, LABELS, 1.0) == pytest.approx(0.4)


def test_the_three_means():
    assert metrics.average_certified_radius(PREDICTION, RADIUS, LABELS) == pytest.approx(3.5 / 5)
    assert metrics.mean_radius(PREDICTION, RADIUS) == pytest.approx(6.5 / 5)
    assert metrics.mean_radius_of_correct(PREDICTION, RADIUS, LABELS) == pytest.approx(3.5 / 3)


def test_an_abstention_counts_as_zero_whatever_its_radius():
    prediction, radius, labels = [-1, 0], [7.0, 1.0], [0, 0]
    assert metrics.average_certified_radius(prediction, radius, labels) == pytest.approx(0.5)
    assert metrics.mean_radius(prediction, radius) == pytest.approx(0.5)
    assert metrics.mean_radius_of_correct(prediction, radius, labels) == pytest.approx(1.0)
    np.testing.assert_allclose(metrics.certified_accuracy(prediction, radius, labels, [0.5]), 0.5)


def test_acr_is_the_area_under_the_certified_accuracy():
    rng = np.random.default_rng(0)
    prediction, labels = rng.integers(-1, 3, 500), rng.integers(0, 3, 500)
    radius = np.where(prediction >= 0, rng.exponential(1, 500), 0.0)
    step = 1e-3
    radii = np.arange(step / 2, 20, step)
    area = metrics.certified_accuracy(prediction, radius, labels, radii).sum() * step
    acr = metrics.average_certified_radius(prediction, radius, labels)
    assert acr == pytest.approx(area, abs=step)  # the midpoint rule on steps of height 1/n


def test_an_infinite_radius_is_not_hidden():
    for mean in (metrics.average_certified_radius, metrics.mean_radius_of_correct):
        assert mean([0, 1], [math.inf, 1.0], [0, 1]) == math.inf
        assert mean([0, 1], [math.inf, 1.0], [1, 1]) < math.inf  # a wrong one does not count
    assert metrics.mean_radius([0, 1], [math.inf, 1.0]) == math.inf


def test_nothing_correct():
    assert metrics.accuracy([1, -1], [0, 0]) == 0
    assert metrics.average_certified_radius([1, -1], [2.0, 0.0], [0, 0]) == 0
    assert math.isnan(metrics.mean_radius_of_correct([1, -1], [2.0, 0.0], [0, 0]))


@pytest.mark.parametrize(
    ("prediction", "radius", "labels"),
    [
        ([], [], []),
        ([0], [1.0], [0, 1]),
        ([0, 1], [1.0], [0, 1]),
        ([[0]], [[1.0]], [[0]]),
        ([0], [math.nan], [0]),
        ([0], [-1.0], [0]),
        ([0], [1.0], [-1]),
    ],
)
def test_bad_input_is_refused(prediction, radius, labels):
    with pytest.raises(UserError):
        metrics.average_certified_radius(prediction, radius, labels)
    with pytest.raises(UserError):
        metrics.mean_radius_of_correct(prediction, radius, labels)
    with pytest.raises(UserError):
        metrics.certified_accuracy(prediction, radius, labels, [0.0])


# Over a whole test set


def tail(q: int, probabilities: list[Fraction]) -> Fraction:
    """P(more than q of independent events happen), summed over every outcome."""
    total = Fraction(0)
    for outcome in itertools.product((0, 1), repeat=len(probabilities)):
        if sum(outcome) > q:
            pairs = zip(outcome, probabilities, strict=True)
            total += math.prod(p if happens else 1 - p for happens, p in pairs)
    return total


def test_few_certificates_are_false_at_once_by_enumeration():
    """For N up to 9: q is the least that Bin(N, alpha) exceeds with probability at most rho."""
    rng = np.random.default_rng(0)
    found = set()
    for n in range(1, 10):
        for alpha, rho in ((0.3, 0.05), (0.01, 0.001), (0.05, 0.2), (0.5, 1e-6), (1e-9, 0.5)):
            q = metrics.most_false(n, alpha, rho)
            found.add(q)
            exact = [Fraction(alpha)] * n
            assert tail(q, exact) <= Fraction(rho)
            assert q == 0 or tail(q - 1, exact) > Fraction(rho)
            # Certificates that are better than they say fail together no more often.
            better = [Fraction(alpha * share) for share in rng.uniform(0, 1, n)]
            assert tail(q, better) <= Fraction(rho)
    assert {0, 1, 2, 9} <= found


def test_of_many_the_number_false_is_the_quantile_of_the_binomial():
    """Against sums of whole numbers, up to N = 900."""
    for n, alpha, rho in ((900, 0.001, 0.001), (300, 0.05, 0.001), (50, 0.001, 0.05)):
        p, q = Fraction(alpha), metrics.most_false(n, alpha, rho)
        terms = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(q + 1)]
        assert 1 - sum(terms) <= Fraction(rho) < 1 - sum(terms[:-1])
    assert metrics.most_false(900, 0.001) == 5
    assert metrics.most_false(1, 0.999, 0.001) == 1


def test_more_than_so_many_false_certificates_are_as_rare_as_said():
    """Simulated certificates of known votes; each of the two checks errs with probability 1e-9.

    One class has 0.4999, the other 0.5001: false is what certifies the first, or the second with a
    radius above its own. The rate of that is summed over all votes.
    """
    n, alpha, rho, number, repetitions = 40, 0.2, 0.05, 30, 4000
    every = np.arange(n + 1)
    found = certificates.certify_counts(np.stack([every, n - every], axis=-1), 1.0, alpha)
    is_false = (found.prediction == 0) | (found.radius > stats.norm.ppf(0.5001))
    rate = float(stats.binom.pmf(every, n, 0.4999)[is_false].sum())
    assert 0.1 < rate < alpha

    rng = np.random.default_rng(1)
    together = is_false[rng.binomial(n, 0.4999, (repetitions, number))].sum(axis=1)
    exceeded = (together > metrics.most_false(number, alpha, rho)).sum()
    assert exceeded <= stats.binom.isf(1e-9, repetitions, rho)
    # And no quantile that is much smaller would do: at their own rate it is met.
    q = metrics.most_false(number, rate, rho)
    chance = float(stats.binom.sf(q - 1, number, rate))
    assert chance > rho
    assert_binomial(int((together > q - 1).sum()), repetitions, chance, error=1e-9)


def test_the_share_that_is_true_is_what_the_false_ones_leave():
    q = metrics.most_false(900, 0.001)
    assert metrics.surely_true(890, 900, 0.001) == (890 - q) / 900
    assert metrics.surely_true(q - 1, 900, 0.001) == 0
    assert metrics.surely_true(900, 900, 1e-9) == 1
    with pytest.raises(UserError, match="11 of 10"):
        metrics.surely_true(11, 10, 0.001)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.1), "num_series must be a whole number"),
        ((2.5, 0.1), "num_series must be a whole number"),
        ((10, 0), "alpha"),
        ((10, 0.1, 1), "rho must be a number between 0 and 1"),
        ((10, 0.1, math.nan), "rho must be a number between 0 and 1"),
    ],
)
def test_a_quantile_of_nothing_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        metrics.most_false(*arguments)


def test_what_each_may_fail_with_sums_to_what_all_may():
    for total, n in ((0.05, 100), (0.001, 900), (0.3, 7), (0.999, 1), (1e-12, 3)):
        each = metrics.alpha_of_each(total, n)
        assert each * n <= total * (1 + 1e-15)
        assert each * n > total * (1 - 1.1e-5)
        assert float(f"{each:g}") == each  # all of it is shown
    assert metrics.alpha_of_each(0.3, 3) == 0.1
    assert metrics.alpha_of_each(0.001, 900) == 1.11111e-06
    for total in (0, 1, math.nan):
        with pytest.raises(UserError, match="alpha_total must be a number between 0 and 1"):
            metrics.alpha_of_each(total, 10)
