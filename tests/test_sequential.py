"""Is an anytime-valid decision wrong more often than alpha? Exact sums, and one simulation.

The exact checks follow the distribution of the votes through the stopping rule, look by look. The
simulations have fixed seeds and state the error of their binomial bounds.
"""

import itertools

import mpmath
import numpy as np
import pytest
from helpers import assert_binomial
from scipy import signal, stats

from selfens_jax.certificates import clopper_pearson_lower
from selfens_jax.errors import UserError
from selfens_jax.sequential import (
    CERTIFIED,
    OPEN,
    REJECTED,
    batches,
    begin,
    certified_share,
    decide,
    log_e_value,
    step,
)

SHARES = [certified_share(radius, 1.0) for radius in (0, 0.5, 1, 2, 3)]  # 0.5 to 0.9987
ALPHAS = (0.05, 0.001)


def fresh(edges):
    return np.array(edges[1:]) - edges[0]


def boundaries(looks, p0, alpha, cap):
    """The most failures that certify and the least that reject (at most cap), at each look."""
    found = []
    for yes in (lambda c: c != CERTIFIED, lambda c: c == REJECTED):
        low, high = np.full(len(looks), -1), np.minimum(looks + 1, cap)  # `yes` from `high` on
        while np.any(high - low > 1):
            middle = np.clip((low + high) // 2, 0, looks)
            answer = yes(decide(looks - middle, looks, p0, alpha))
            low, high = np.where(answer, low, middle), np.where(answer, middle, high)
        found.append(high)
    return found[0] - 1, found[1]


def fates(looks, p, p0, alpha, final=(CERTIFIED, REJECTED), start=(1.0,)):
    """Exact probability of each decision in `final`, (2, looks), where A has the share p.

    looks: the numbers of fresh draws at which the rule looks. A decision that is not in `final` is
    ignored: the draws go on, as if someone had bet on a change of the evidence.
    start: the distribution of the failures among len(start) - 1 draws before the first look.
    """
    # Followed by failures; there are `cap` or more with probability below 1e-15.
    cap = int(stats.binom.isf(1e-15, looks[-1], 1 - p)) + 2
    most, least = boundaries(looks, p0, alpha, cap)
    density, probability = np.array(start), np.zeros((2, len(looks)))
    for i, batch in enumerate(np.diff(looks, prepend=len(start) - 1)):
        if batch == 1:
            density = np.convolve(density, [p, 1 - p])[:cap]
        else:
            pmf = stats.binom.pmf(np.arange(min(batch, cap) + 1), batch, 1 - p)
            density = np.maximum(signal.fftconvolve(density, pmf)[:cap], 0)
        stops = slice(0, most[i] + 1), slice(least[i], None)
        for row, decision in enumerate((CERTIFIED, REJECTED)):
            if decision in final:
                probability[row, i] = density[stops[row]].sum()
                density[stops[row]] = 0
    assert probability.sum() + density.sum() <= 1 + 1e-9
    return probability


def expected_draws(edges, probability):
    """Selection included, with the decided share (2, looks) of `fates`."""
    still_open = 1 - np.cumsum(probability.sum(axis=0))[:-1]
    return edges[1] + np.sum(still_open * np.diff(edges[1:]))


def selection_probabilities(num_selection, p):
    """The exact probability (3,) of each of three classes to be the first with the most votes."""
    rows = itertools.product(range(num_selection + 1), repeat=3)
    counts = np.array([row for row in rows if sum(row) == num_selection])
    pmf = stats.multinomial.pmf(counts, num_selection, p)
    return np.bincount(counts.argmax(axis=1), pmf, minlength=3)


def simulate(rng, p, trials, p0, alpha, edges):
    """The final state of `trials` examples whose draws vote with the probabilities p (K,)."""
    state = begin(rng.multinomial(edges[0], p, size=trials), p0, alpha)
    for start, stop in itertools.pairwise(edges):
        state = step(state, rng.multinomial(stop - start, p, size=len(state.open)))
    return state


# 1. Wrong at most alpha over the whole path, exactly


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("p0", [*SHARES, certified_share(3.5, 1.0)])
def test_a_false_decision_has_probability_at_most_alpha_up_to_100_000_draws(p0, alpha):
    looks = fresh(batches(max_draws=100_020))
    assert looks[-1] == 100_000
    for shift in (0, 0.01, 0.3):
        below, above = p0 - shift * (1 - p0), p0 + shift * (1 - p0)
        assert fates(looks, below, p0, alpha, final=[CERTIFIED]).sum() <= alpha
        assert fates(looks, above, p0, alpha, final=[REJECTED]).sum() <= alpha


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("p0", SHARES)
def test_a_look_after_every_draw_costs_no_validity(p0, alpha):
    looks = np.arange(1, 2001 if p0 < 0.99 else 20_001)
    certified = fates(looks, p0, p0, alpha, final=[CERTIFIED]).sum()
    rejected = fates(looks, p0, p0, alpha, final=[REJECTED]).sum()
    # And the level is used: at twice alpha either bound would be broken.
    assert 0.7 * alpha < certified <= alpha
    assert (0.6 * alpha if p0 < 0.9 else 0) < rejected <= alpha


@pytest.mark.parametrize("p0", SHARES)
def test_e_values_have_mean_one_at_p0_and_less_beyond(p0):
    for draws in (1, 20, 1000, 100_000):
        k = np.arange(draws + 1)
        greater, less = (log_e_value(k, draws, p0, side) for side in ("greater", "less"))
        for log_e, sign in ((greater, -1), (less, 1)):
            means = [
                np.exp(log_e + stats.binom.logpmf(k, draws, p0 + sign * shift * (1 - p0))).sum()
                for shift in (0, 0.01, 0.5)
            ]
            assert means[0] == pytest.approx(1, abs=1e-7)
            assert 1 > means[1] > means[2]
        assert not np.any((greater > 0) & (less > 0))


# 2. Selection and test together, three classes


NEAR_TIE = (0.5, 0.499, 0.001)


@pytest.mark.parametrize(
    ("radius", "p"),
    [
        (0.0, NEAR_TIE),
        (0.0, (1 / 3, 1 / 3, 1 / 3)),
        (0.5, (SHARES[1], 1 - SHARES[1], 0)),
        (1.0, (SHARES[2] - 0.005, 0.1, 0.905 - SHARES[2])),
        (0.5, (0.8, 0.1, 0.1)),
        (0.25, (0.6, 0.2, 0.2)),
    ],
)
def test_the_whole_scheme_is_wrong_at_most_alpha(radius, p):
    trials, alpha, p0 = 4000, 0.05, certified_share(radius, 1.0)
    p = np.array(p)
    edges = batches(max_draws=800)
    state = simulate(np.random.default_rng(0), p, trials, p0, alpha, edges)
    share = p[state.candidate]
    false = np.sum((state.decision == CERTIFIED) & (share <= p0))
    wrongly_rejected = np.sum((state.decision == REJECTED) & (share >= p0))
    # Were the true rate alpha, each would fail with probability 1e-6.
    assert max(false, wrongly_rejected) <= stats.binom.isf(1e-6, trials, alpha)
    # And both decisions are as frequent as the exact rule says; error 1e-6 each.
    chosen = selection_probabilities(edges[0], p)
    rates = [fates(fresh(edges), q, p0, alpha).sum(axis=1) if q > 0 else [0, 1] for q in p]
    certified, rejected = chosen @ np.array(rates)
    assert_binomial(np.sum(state.decision == CERTIFIED), trials, certified, 1e-6)
    assert_binomial(np.sum(state.decision == REJECTED), trials, rejected, 1e-6)


def test_testing_the_draws_that_chose_the_class_would_not_be_valid():
    alpha, p0 = 0.05, certified_share(0, 1)  # two equal classes: every certificate is false
    looks = np.arange(4, 2001)
    independent = fates(looks - 3, p0, p0, alpha)[0].sum()
    # Of three draws, the class that is chosen has three with probability 1/4, else two.
    reused = fates(looks, p0, p0, alpha, start=(0.25, 0.75, 0, 0))[0].sum()
    assert independent <= alpha < 0.07 < reused


# 3. How many draws it takes


def test_the_smallest_schedule_is_of_single_draws():
    single = {"num_selection": 1, "first_batch": 1, "block": 1}
    assert batches(max_draws=2, **single) == (1, 2)
    assert batches(max_draws=5, growth=1, **single) == (1, 2, 3, 4, 5)


def test_clear_cases_take_few_draws():
    edges = batches()
    p0 = certified_share(0.4, 0.8)
    total = np.array(edges[1:])
    stopped = np.cumsum(fates(fresh(edges), 0.999, p0, 0.001).sum(axis=0))
    assert total[np.searchsorted(stopped, 0.5)] == 40  # the median: 20 to choose, 20 to certify
    assert total[np.searchsorted(stopped, 0.999)] <= 80
    for share, most in [(0.9, 100), (0.95, 65), (0.99, 45), (0.9999, 41), (0.5, 150), (0.3, 65)]:
        probability = fates(fresh(edges), share, p0, 0.001)
        assert expected_draws(edges, probability) < most
        certified, rejected = probability.sum(axis=1)
        assert (certified if share > p0 else rejected) > 0.999


def test_the_conclusion_is_that_of_1000_draws_except_near_the_boundary():
    k = np.arange(1001)
    lower = clopper_pearson_lower(k, 1000, 0.001 / 2)
    near = {}
    for p0, shares in {
        SHARES[1]: (0.3, 0.5, 0.6, 0.75, 0.8, 0.85, 0.95, 0.999),
        SHARES[2]: (0.5, 0.8, 0.88, 0.93, 0.95, 0.999),
        SHARES[3]: (0.8, 0.95, 0.99, 0.999, 0.9999),
    }.items():
        for p in shares:
            certified = fates(fresh(batches()), p, p0, 0.001)[0].sum()
            fixed = stats.binom.pmf(k, 1000, p)[lower > p0].sum()
            if abs(certified - fixed) > 0.005:
                near[p] = certified - fixed
    assert set(near) == {0.75, 0.88, 0.99}
    assert -0.5 < min(near.values()) <= max(near.values()) < 0  # more often undecided


# 4. Numbers


@pytest.mark.parametrize("draws", [1, 20, 1000, 100_000])
@pytest.mark.parametrize("p0", [SHARES[0], SHARES[1], SHARES[3], certified_share(8, 1)])
def test_log_e_values_match_high_precision(p0, draws):
    middle = int(draws * p0)
    spread = 1 + int(3 * np.sqrt(draws * p0 * (1 - p0)))
    few = {0, draws // 2, middle - spread} if draws < 100_000 else set()
    for k in {middle, min(middle + spread, draws), draws, *few}:
        for side in ("greater", "less"):
            value = float(log_e_value(max(k, 0), draws, p0, side))
            exact = exact_log_e_value(max(k, 0), draws, p0, side)
            if np.isinf(value):
                assert value < 0
                assert exact < 0
            else:
                assert abs(value - exact) < 1e-8


def exact_log_e_value(successes, draws, p0, side):
    with mpmath.workdps(40):
        p0, s, f = mpmath.mpf(p0), successes, draws - successes
        a, b = (1, mpmath.mpf("0.2")) if side == "greater" else (4, 1)

        def mass(a, b):
            return beta_integral(1 - p0, b, a) if side == "greater" else beta_integral(p0, a, b)

        # 0.2 is not a float: its rounding, 1e-17, is far below the tolerance.
        ratio = mpmath.log(mass(a + s, b + f) / mass(a, b))
        return ratio - s * mpmath.log(p0) - f * mpmath.log(1 - p0)


def beta_integral(x, a, b):
    """The integral of t^(a-1) (1-t)^(b-1) over [0, x], by its series of positive terms."""
    if x > mpmath.mpf(a) / (a + b):
        return mpmath.beta(a, b) - beta_integral(1 - x, b, a)
    term = total = mpmath.mpf(1)
    k = 0
    while term > total * mpmath.mpf(10) ** -30:
        term *= x * (a + b + k) / (a + 1 + k)
        total += term
        k += 1
    return mpmath.exp(a * mpmath.log(x) + b * mpmath.log(1 - x)) / a * total


@pytest.mark.parametrize("p0", SHARES)
def test_evidence_increases_with_the_successes(p0):
    for draws in (1, 7, 40, 1000, 20_000):
        k = np.arange(draws + 1)
        greater, less = (log_e_value(k, draws, p0, side) for side in ("greater", "less"))
        finite = np.isfinite(greater)
        assert np.all(np.diff(greater[finite]) > 0)
        assert np.all(np.diff(finite.astype(int)) >= 0)
        assert np.all(np.diff(less[np.isfinite(less)]) < 0)
        assert np.all(np.diff(decide(k, draws, p0)) >= 0)
    assert log_e_value(0, 0, p0) == log_e_value(0, 0, p0, "less") == 0


def test_the_share_is_rounded_up():
    for sigma in (0.3, 0.8, 1e-3):
        for z in (0, 1e-9, 0.1, 0.5, 1, 2, 4, 6, 8):
            radius = z * sigma
            with mpmath.workdps(40):
                exact = mpmath.ncdf(mpmath.mpf(radius) / mpmath.mpf(sigma))
                p0 = mpmath.mpf(certified_share(radius, sigma))
                assert exact <= p0 <= exact + (1 - exact) * mpmath.mpf("2e-12") + mpmath.mpf(3e-16)


# 5. The schedule, the steps, and mistakes


def test_the_schedule():
    assert batches(20, 40, 1.5, 500, 20) == (20, 60, 80, 120, 180, 260, 380, 500)
    assert batches(growth=1) == tuple(range(20, 1001, 20))
    assert batches(100, 100, 2, 1000, 100) == (100, 200, 300, 500, 900, 1000)
    assert batches(max_draws=40) == (20, 40)
    edges = np.array(batches(max_draws=100_000))
    assert np.all(edges % 20 == 0)
    assert np.all(np.diff(edges) > 0)
    assert len(edges) < 40


def test_a_step_counts_the_open_examples_only():
    state = begin([[20, 0, 0], [0, 10, 10], [0, 2, 18], [7, 7, 6]], certified_share(0.5, 1))
    np.testing.assert_array_equal(state.candidate, [0, 1, 2, 0])
    np.testing.assert_array_equal([state.successes, state.draws, state.decision], np.zeros((3, 4)))
    state = step(state, [[20, 0, 0], [0, 0, 20], [0, 5, 15], [10, 10, 0]])
    np.testing.assert_array_equal(state.decision, [CERTIFIED, REJECTED, OPEN, OPEN])
    np.testing.assert_array_equal(state.open, [2, 3])
    before = state
    state = step(state, [[0, 0, 40], [0, 40, 0]])
    np.testing.assert_array_equal(state.decision, [CERTIFIED, REJECTED, CERTIFIED, REJECTED])
    np.testing.assert_array_equal(state.successes, [20, 0, 55, 10])
    np.testing.assert_array_equal(state.draws, [20, 20, 60, 60])
    np.testing.assert_array_equal(before.draws, [20] * 4)  # nothing is changed in place
    assert len(step(state, np.zeros((0, 3), int)).open) == 0


def test_the_futility_level_is_its_own():
    p0 = certified_share(0.5, 1)
    k = np.arange(101)
    strict, loose = decide(k, 100, p0), decide(k, 100, p0, 0.001, 0.05)
    np.testing.assert_array_equal(strict == CERTIFIED, loose == CERTIFIED)
    assert np.sum(loose == REJECTED) > np.sum(strict == REJECTED)
    state = step(begin([[20, 0]], p0, 0.001, 0.05), [[52, 48]])
    assert state.decision == decide(52, 100, p0, 0.001, 0.05) == REJECTED
    assert decide(52, 100, p0) == OPEN


STATE = begin([[20, 0], [0, 20]], 0.7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: certified_share(-0.1, 1.0), "must not be negative"),
        (lambda: certified_share(np.nan, 1.0), "radius must be a finite number"),
        (lambda: certified_share(0.5, 0.0), "sigma"),
        (lambda: certified_share(9.0, 1.0), "too many sigmas"),
        (lambda: log_e_value(3, 2, 0.7), "successes <= draws"),
        (lambda: log_e_value(-1, 2, 0.7), "successes <= draws"),
        (lambda: log_e_value(1, 10**8, 0.7), "successes <= draws"),
        (lambda: log_e_value(1.5, 2, 0.7), "integers"),
        (lambda: log_e_value(1, 2, 0.7, "two-sided"), "alternative"),
        (lambda: decide(1, 2, 0.4), "at least 1/2"),
        (lambda: decide(1, 2, 1.0), "p0 must be"),
        (lambda: decide(1, 2, 0.7, alpha=0), "alpha"),
        (lambda: decide(1, 2, 0.7, 0.1, alpha_futility=1), "alpha"),
        (lambda: begin([20, 0], 0.7), "examples, classes"),
        (lambda: begin([[20, 0]], 0.3), "at least 1/2"),
        (lambda: begin([[20, 0]], 0.7, 2.0), "alpha"),
        (lambda: step(STATE, [[20, 0]]), "2 open examples"),
        (lambda: step(STATE, [[20, -1], [1, 1]]), "nonnegative"),
        (lambda: step(begin([[0, 0, 1]], 0.7), [[1, 1]]), "do not fit"),
        (lambda: batches(num_selection=30), "multiple of 20"),
        (lambda: batches(first_batch=0), "multiple of 20"),
        (lambda: batches(block=0), "block"),
        (lambda: batches(max_draws=1e3), "multiple of 20"),
        (lambda: batches(max_draws=20), "at least 40"),
        (lambda: batches(growth=0.5), "growth"),
        (lambda: batches(growth=np.nan), "growth"),
    ],
)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
