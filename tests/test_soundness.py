"""Does a certificate fail more often than alpha? Exact checks: sums and 50-digit arithmetic.

Nothing here is random except where a seed picks the cases to look at, so no check can fail by bad
luck. For class probabilities p a certificate for class c claims p_c >= Phi(radius / sigma) > 1/2;
it is false if that claim is. Its probability is a finite sum over the counts.
"""

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from scipy import special, stats

from selfens_jax.certificates import (
    PAPER_ORDERS,
    certify_counts,
    certify_counts_as_published,
    clopper_pearson_lower,
    cohen_radius,
    format_radius,
    renyi_radius,
    sison_glaz_intervals,
)

mpmath.mp.dps = 50


def count_vectors(n, num_classes):
    """All (rows, K) vectors of counts that sum to n."""
    if num_classes == 1:
        return np.array([[n]])
    return np.concatenate(
        [
            np.insert(count_vectors(n - first, num_classes - 1), 0, first, axis=1)
            for first in range(n + 1)
        ]
    )


def log_multinomial_coefficients(counts):
    return special.gammaln(counts[0].sum() + 1) - special.gammaln(counts + 1).sum(axis=-1)


def is_false(certificates, p):
    """Whether each certificate, at sigma 1, claims more than p (K,) grants its class."""
    granted = np.maximum(special.ndtri(p), 0)[certificates.prediction]
    return (certificates.prediction >= 0) & (certificates.radius > granted)


def exact_tail(k, n, p):
    """P(Bin(n, p) >= k) to 50 digits, for an mpf p and k at or above the mean."""
    term = mpmath.binomial(n, k) * p**k * (1 - p) ** (n - k)
    total, ratio = term, p / (1 - p)
    while k < n and term > total * mpmath.mpf(10) ** -45:
        term *= (n - k) * ratio / (k + 1)
        total += term
        k += 1
    return total


# 1. Clopper-Pearson coverage


P_GRID = np.unique(
    np.concatenate([10.0 ** -np.arange(1, 7), 1 - 10.0 ** -np.arange(1, 7), np.arange(1, 40) / 40])
)


@pytest.mark.parametrize("n", [1, 2, 5, 20, 100, 1000, 100_000])
def test_the_binomial_bound_covers(n):
    k = np.arange(n + 1)
    levels = (0.25, 0.05, 5e-4, 1e-9)
    bounds = [clopper_pearson_lower(k, n, level) for level in levels]
    for p in P_GRID[:: 3 if n > 1000 else 1]:
        pmf = stats.binom.pmf(k, n, p)
        for bound, level in zip(bounds, levels, strict=True):
            assert pmf[bound > p].sum() <= level
    # Just below a bound the miss is as large as it gets: it reaches the level and keeps it.
    for bound, level in zip(bounds, levels, strict=True):
        assert np.all(np.diff(bound) > 0)
        for count in {1, n // 2 + 1, n}:
            missed = stats.binom.sf(count - 1, n, np.nextafter(bound[count], 0))
            assert 0.999 * level < missed <= level


@pytest.mark.parametrize("n", [1, 7, 100, 1000, 10**5, 10**6, 10**8])
@pytest.mark.parametrize("level", [0.25, 5e-4, 5e-13])
def test_the_binomial_bound_is_rounded_down(n, level):
    middle = {n - n // 1000, n - n // 10, n // 2 + 1} if n <= 10**6 else {n - 20}
    for k in {n, max(n - 1, 1)} | middle:
        bound = mpmath.mpf(float(clopper_pearson_lower(k, n, level)))
        assert exact_tail(k, n, bound) <= mpmath.mpf(level)
        assert exact_tail(k, n, bound * (1 + mpmath.mpf("3e-12"))) > mpmath.mpf(level)


# 2. The false-certificate rate of the default scheme


def thresholds(n, alpha):
    """Probabilities just below what each top count claims, so that its certificate is false."""
    k = np.arange(n // 2 + 1, n + 1)
    result = certify_counts(np.stack([k, n - k], axis=-1), 1.0, alpha)
    claims = special.ndtr(result.radius[result.prediction >= 0])
    return claims - 1e-9


def worst_rate(n, num_classes, alpha, every=1):
    """The largest exact rate of false certificates over a grid of p and all thresholds."""
    counts = count_vectors(n, num_classes)
    certificates = certify_counts(counts, 1.0, alpha)
    log_ways = log_multinomial_coefficients(counts)
    tops = np.concatenate([[0.5, 0.5 + 1e-6], thresholds(n, alpha)[::every]])
    splits = np.eye(num_classes - 1)[:1].tolist()  # all the rest in one class, or shared out
    if num_classes > 2:
        splits += [np.full(num_classes - 1, 1 / (num_classes - 1)), np.arange(1, num_classes)]
    points = [np.append(t, (1 - t) * np.array(s) / np.sum(s)) for t in tops for s in splits]
    points += list(count_vectors(10, num_classes) / 10 + 0.0)
    rates = []
    for p in points:
        pmf = np.exp(log_ways + special.xlogy(counts, p).sum(axis=-1))
        assert pmf.sum() == pytest.approx(1, abs=1e-9)
        rates.append(pmf[is_false(certificates, p)].sum())
    return max(rates)


@pytest.mark.parametrize(
    ("n", "num_classes"),
    [(20, 2), (60, 2), (200, 2), (1000, 2), (20, 3), (60, 3), (20, 4), (40, 4)],
)
@pytest.mark.parametrize("alpha", [0.5, 0.05, 0.001])
def test_the_default_is_false_at_most_alpha_by_enumeration(n, num_classes, alpha):
    rate = worst_rate(n, num_classes, alpha, every=max(1, n // 100))
    assert rate <= alpha
    assert rate >= alpha / 4  # the search did find the bad points


def test_level_alpha_without_a_selection_sample_would_not_be_valid():
    # certify_counts works at level alpha/2, so alpha = 0.1 is the scheme at level 0.05.
    rate = worst_rate(60, 2, 0.1)
    assert 0.09 < rate <= 0.1
    assert worst_rate(60, 2, 0.05) <= 0.05


def exact_rates(n, alpha, points):
    """The exact rate at each p of points (rows, K), from one binomial tail per class.

    At most one class is certified, so the events add; the certificate depends on the top count
    alone (tested below), so class c is falsely certified iff its count reaches the least k that
    claims more than max(1/2, p_c).
    """
    k = np.arange(n // 2 + 1, n + 1)
    radius = certify_counts(np.stack([k, n - k], axis=-1), 1.0, alpha).radius
    assert np.all(np.diff(radius) >= 0)
    points = np.asarray(points)
    granted = np.maximum(special.ndtri(points), 0)
    least = n // 2 + 1 + np.searchsorted(radius, granted, side="right")
    return stats.binom.sf(least - 1, n, points).sum(axis=-1)


def test_the_exact_rate_agrees_with_enumeration():
    counts = count_vectors(30, 3)
    certificates = certify_counts(counts, 1.0, 0.05)
    for p in [(0.6, 0.3, 0.1), (0.5, 0.5, 0.0), (0.45, 0.45, 0.1), (0.52, 0.48, 0.0)]:
        p = np.array(p)
        pmf = np.exp(log_multinomial_coefficients(counts) + special.xlogy(counts, p).sum(axis=-1))
        enumerated = pmf[is_false(certificates, p)].sum()
        assert exact_rates(30, 0.05, [p])[0] == pytest.approx(enumerated, abs=1e-12)


def test_a_default_certificate_depends_on_the_top_count_alone():
    rng = np.random.default_rng(0)
    for num_classes in (3, 10, 60):
        p = rng.dirichlet(np.full(num_classes, 1 / num_classes), size=300)
        counts = rng.multinomial(500, p)
        many = certify_counts(counts, 1.0)
        top = counts.max(axis=-1)
        two = certify_counts(np.stack([top, 500 - top], axis=-1), 1.0)
        # With fewer than half the votes the other side of `two` would win.
        certified = two.prediction == 0
        assert 50 < certified.sum() < 300
        np.testing.assert_array_equal(many.prediction >= 0, certified)
        np.testing.assert_array_equal(many.radius, np.where(certified, two.radius, 0))
        np.testing.assert_array_equal(many.prediction[certified], counts.argmax(-1)[certified])


@pytest.mark.parametrize("alpha", [0.5, 0.05, 0.001, 1e-9])
@pytest.mark.parametrize("n", [60, 1000, 20_000])
def test_the_default_is_false_at_most_alpha_for_up_to_sixty_classes(n, alpha):
    rng = np.random.default_rng(1)
    tops = thresholds(n, alpha)
    tops = np.concatenate([[0.5, 0.5 + 1e-4], tops[:: max(1, len(tops) // 100)], tops[-2:]])
    rates = []
    for num_classes in (2, 3, 5, 12, 60):
        others = num_classes - 1
        splits = np.stack([np.full(others, 1 / others), np.eye(others)[0]])
        splits = np.concatenate([splits, rng.dirichlet(np.full(others, 0.3), size=3)])
        points = [np.append(top, (1 - top) * split) for top in tops for split in splits]
        points += [np.full(num_classes, 1 / num_classes), *rng.dirichlet([0.2] * num_classes, 20)]
        rates.append(exact_rates(n, alpha, points).max())
    assert max(rates) <= alpha
    assert max(rates) >= alpha / 4


# 3. What is not valid


def test_sison_glaz_claims_certainty_and_is_wrong_about_it():
    counts = np.stack([np.arange(1001), 1000 - np.arange(1001)], axis=-1)
    pmf = stats.binom.pmf(counts[:, 0], 1000, 0.999)
    for alpha in (0.05, 0.001):
        lower, _ = sison_glaz_intervals(counts, alpha)
        assert pmf[lower[:, 0] <= 0.999].sum() == pytest.approx(0.632, abs=1e-3)
        certificates = certify_counts(counts, 1.0, alpha, interval="sison_glaz")
        assert pmf[is_false(certificates, np.array([0.999, 0.001]))].sum() > 0.36


def test_the_published_procedure_is_false_near_a_tie_almost_always():
    counts = np.stack([np.arange(1001), 1000 - np.arange(1001)], axis=-1)
    certificates = certify_counts_as_published(counts, 1.0)
    p = np.array([0.501, 0.499])
    pmf = stats.binom.pmf(counts[:, 0], 1000, p[0])
    assert pmf[is_false(certificates, p)].sum() == pytest.approx(0.989, abs=1e-3)
    # The default abstains instead.
    default = certify_counts(counts, 1.0, alpha=0.05)
    assert pmf[default.prediction < 0].sum() > 0.9
    assert pmf[is_false(default, p)].sum() <= 0.05


def test_goodman_stays_below_alpha_where_enumerated():
    for n, num_classes in ((100, 2), (1000, 2), (40, 3)):
        counts = count_vectors(n, num_classes)
        log_ways = log_multinomial_coefficients(counts)
        certificates = certify_counts(counts, 1.0, 0.05, interval="goodman")
        claims = special.ndtr(certificates.radius[certificates.radius > 0])
        tops = np.concatenate([np.unique(claims)[::5] - 1e-9, [0.501, 0.9, 0.999]])
        rates = []
        for p in [np.append(t, (1 - t) * np.eye(num_classes - 1)[0]) for t in tops]:
            pmf = np.exp(log_ways + special.xlogy(counts, p).sum(axis=-1))
            rates.append(pmf[is_false(certificates, p)].sum())
        assert 0.005 < max(rates) <= 0.05


# 4. The bounds, and rounding


@pytest.fixture(scope="module")
def pairs():
    """(p_A, p_B) with p_A > p_B and p_A + p_B <= 1, dense near the edges."""
    edge = 10.0 ** -np.arange(1, 13)
    p_b = np.concatenate([edge, 0.5 - edge[:5], np.arange(1, 20) / 40])
    share = np.concatenate([edge[:6], np.arange(1, 10) / 10, [1]])
    p_b, share = (a.ravel() for a in np.meshgrid(np.unique(p_b), share))
    p_a = p_b + share * (1 - 2 * p_b)
    return p_a[p_a > p_b], p_b[p_a > p_b]


def published_formula(p_a, p_b, order):
    mean = (p_a ** (1 - order) + p_b ** (1 - order)) / 2
    return -2 / order * mpmath.log(1 - p_a - p_b + 2 * mean ** (1 / (1 - order)))


def test_cohens_bound_is_never_below_the_renyi_bound(pairs):
    assert len(pairs[0]) > 400
    cohen, renyi = cohen_radius(*pairs, 1.0), renyi_radius(*pairs, 1.0)
    assert np.all(cohen >= renyi)
    assert np.all(renyi[pairs[0] - pairs[1] > 1e-6] > 0)


def test_the_renyi_supremum_is_found_over_every_order(pairs):
    found = renyi_radius(*pairs, 1.0) ** 2
    for i in range(0, len(found), 7):
        p_a, p_b = mpmath.mpf(pairs[0][i]), mpmath.mpf(pairs[1][i])
        # The function of log(order - 1) has one maximum: narrow a bracket around it.
        low, high = mpmath.mpf(-20), mpmath.mpf(10)
        for _ in range(70):
            left, right = low + (high - low) / 3, high - (high - low) / 3
            values = [published_formula(p_a, p_b, 1 + mpmath.e**t) for t in (left, right)]
            low, high = (low, right) if values[0] > values[1] else (left, high)
        best = max(values)
        assert found[i] <= best
        # What is lost to the margin of 1e-14 within the logarithm, at the edges of the grid.
        assert found[i] >= best * (1 - mpmath.mpf("1e-6")) - mpmath.mpf("1e-13")


def test_the_renyi_bound_is_never_below_the_papers_grid(pairs):
    found = renyi_radius(*pairs, 1.0)
    p_a, p_b, order = pairs[0][:, None], pairs[1][:, None], PAPER_ORDERS
    mean = ((p_a ** (1 - order) + p_b ** (1 - order)) / 2) ** (1 / (1 - order))
    on_grid = np.sqrt(np.max(-2 / order * np.log1p(-p_a - p_b + 2 * mean), axis=-1))
    # The float error of this direct formula, about 1e-15 under the root, is allowed for.
    assert np.all(found**2 >= on_grid**2 * (1 - 1e-9) - 1e-13)
    # Orders outside the grid do gain something.
    assert np.max(found / on_grid) > 1.002


@pytest.mark.parametrize("radius", [cohen_radius, renyi_radius])
def test_the_bounds_are_monotone(radius):
    p = np.linspace(0.5, 1 - 1e-6, 400)
    assert np.all(np.diff(radius(p, 1 - p, 1.0)) > 0)
    for p_b in (1e-9, 0.01, 0.2, 0.4):
        p_a = np.linspace(p_b, 1 - p_b, 200)
        assert np.all(np.diff(radius(p_a, p_b, 1.0)) > 0)
        assert np.all(np.diff(radius(0.6, p_a[p_a < 0.6], 1.0)) < 0)
    sigma = [0.1, 0.1000001, 0.25, 0.8, 3.0]
    assert np.all(np.diff([radius(0.8, 0.1, s) for s in sigma]) > 0)


def test_cohens_bound_is_rounded_down(pairs):
    quantiles = {p: mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(p) - 1) for p in np.ravel(pairs)}
    for p_a, p_b in zip(*pairs, strict=True):
        sigma = 0.3 + p_a
        exact = mpmath.mpf(sigma) / 2 * (quantiles[p_a] - quantiles[p_b])
        radius = mpmath.mpf(float(cohen_radius(p_a, p_b, sigma)))
        assert exact * (1 - mpmath.mpf("1e-4")) - mpmath.mpf("1e-11") <= radius <= exact


def test_radii_and_what_is_written_never_exceed_the_exact_radius():
    """The radius, and its six digits, claim a p whose exact binomial tail is at most alpha/2."""
    rng = np.random.default_rng(2)
    for n in (5, 33, 100, 1000, 1000, 10**4, 10**6):
        for alpha in (0.3, 0.05, 0.001, 1e-12):
            for k in np.unique(np.maximum(n + 1 - rng.geometric(2 / n, size=8), 0)):
                sigma = float(rng.uniform(0.01, 3))
                result = certify_counts([k, n - k], sigma, alpha)
                if k <= n // 2 or result.prediction != 0:
                    continue
                radius = result.radius.item()
                written = Fraction(format_radius(radius))
                assert written <= Fraction(radius) < written + Fraction(1, 10**6)
                claims = [
                    mpmath.ncdf(r / mpmath.mpf(sigma))
                    for r in (mpmath.mpf(radius), mpmath.mpf(radius) * (1 + mpmath.mpf("1e-6")))
                ]
                assert exact_tail(int(k), n, claims[0]) <= mpmath.mpf(alpha) / 2
                assert exact_tail(int(k), n, claims[1]) > mpmath.mpf(alpha) / 2  # and barely
