"""Unit tests of the certificates: values, options, bad input. Soundness is in test_soundness.py."""

import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from selfens_jax import certificates
from selfens_jax.certificates import (
    certify_counts,
    certify_counts_as_published,
    cohen_radius,
    format_radius,
    goodman_intervals,
    renyi_radius,
    sison_glaz_intervals,
)
from selfens_jax.errors import UserError

ALL_OPTIONS = [(i, b) for i in certificates.INTERVALS for b in certificates.BOUNDS]

# The examples of Sison & Glaz (1995), as computed by R's MultinomialCI at 0.05.
SEVEN = [56, 72, 73, 59, 62, 87, 58]
FIFTY = [1] * 10 + [12] * 10 + [5] * 10 + [3] * 10 + [4] * 10


@pytest.mark.parametrize("alpha", [0.5, 0.05, 1e-3, 1e-12])
@pytest.mark.parametrize("n", [60, 1000, 10**6])
def test_unanimous_votes_have_the_closed_form_radius(n, alpha):
    # P(Bin(n, p) >= n) = p^n, so the bound at level alpha/2 is (alpha/2)^(1/n).
    tail = -math.expm1(math.log(alpha / 2) / n)
    radius = certify_counts([n, 0, 0], 0.8, alpha).radius
    np.testing.assert_allclose(radius, -0.8 * NormalDist().inv_cdf(tail), rtol=1e-7)


def test_default_is_the_exact_binomial_bound_at_half_alpha():
    for counts in ([70, 20, 10], [5, 990, 5], [3, 4, 33]):
        top, n = max(counts), sum(counts)
        # A one-sided interval at level alpha/2 = 0.005.
        exact = stats.binomtest(top, n, alternative="greater").proportion_ci(0.995).low
        result = certify_counts(counts, 2.0, alpha=0.01)
        assert result.prediction == np.argmax(counts)
        np.testing.assert_allclose(result.p_a, exact, rtol=1e-10)
        np.testing.assert_allclose(result.radius, 2 * NormalDist().inv_cdf(exact), rtol=1e-8)


def test_radii_of_the_usual_budget():
    result = certify_counts([[1000, 0], [999, 1], [990, 10], [900, 100]], sigma=1.0)
    np.testing.assert_allclose(result.radius, [2.42891, 2.32808, 1.95888, 1.10410], atol=6e-6)


@pytest.mark.parametrize("n", [1, 2, 9, 10, 57, 100, 1000])
@pytest.mark.parametrize("alpha", [0.9, 0.05, 0.001])
def test_abstains_below_the_smallest_count_that_beats_one_half(n, alpha):
    # Exactly: class c may be certified iff P(Bin(n, 1/2) >= k) < alpha/2.
    tails = np.cumsum([Fraction(math.comb(n, k), 2**n) for k in range(n, -1, -1)])[::-1]
    expected = np.array([tail < Fraction(alpha) / 2 for tail in tails])
    k = np.arange(n + 1)
    counts = np.stack([k, n - k], axis=-1)
    result = certify_counts(counts, 1.0, alpha)
    np.testing.assert_array_equal(result.prediction == 0, expected)
    np.testing.assert_array_equal(result.prediction == 1, expected[::-1])
    np.testing.assert_array_equal(result.radius > 0, result.prediction >= 0)


@pytest.mark.parametrize(("interval", "bound"), ALL_OPTIONS)
def test_a_tie_for_the_top_abstains(interval, bound):
    counts = [[500, 500, 0], [0, 40, 40], [300, 300, 300], [1, 1, 0]]
    result = certify_counts(counts, 1.0, interval=interval, bound=bound)
    np.testing.assert_array_equal(result.prediction, -1)
    np.testing.assert_array_equal(result.radius, 0)
    # One vote proves nothing; Sison-Glaz then has p_A = p_B = 1.
    assert certify_counts([1, 0], 1.0, interval=interval, bound=bound).prediction == -1


@pytest.mark.parametrize(("interval", "bound"), ALL_OPTIONS)
def test_shapes_dtypes_and_rows_of_different_totals(interval, bound):
    counts = np.array([[[90, 10, 0], [0, 5, 995]], [[3, 30, 3], [34, 33, 33]]])
    result = certify_counts(counts, 1.0, interval=interval, bound=bound)
    for array in (result.prediction, result.radius, result.p_a, result.p_b):
        assert array.shape == (2, 2)
    assert result.prediction.dtype == np.int64
    assert result.radius.dtype == np.float64
    assert result.prediction.tolist() == [[0, 2], [1, -1]]
    for i, j in np.ndindex(2, 2):  # each row alone gives the same bits
        alone = certify_counts(counts[i, j], 1.0, interval=interval, bound=bound)
        assert alone.radius.shape == ()
        assert alone.radius == result.radius[i, j]
    empty = certify_counts(np.zeros((0, 3), int), 1.0, interval=interval, bound=bound)
    assert empty.prediction.shape == empty.radius.shape == (0,)


@pytest.mark.parametrize(("interval", "bound"), ALL_OPTIONS)
def test_what_is_valid_says_so(interval, bound):
    result = certify_counts([90, 10], 0.5, 0.05, interval=interval, bound=bound)
    assert result.valid == (interval == "clopper_pearson")
    assert (result.interval, result.bound) == (interval, bound)
    assert (result.sigma, result.alpha) == (0.5, 0.05)
    words = {
        "clopper_pearson": "at least 1 - 0.05",
        "goodman": "approximate",
        "sison_glaz": "NOT valid",
    }
    assert words[interval] in result.statement
    assert "\n" not in result.statement


@pytest.mark.parametrize(("interval", "bound"), ALL_OPTIONS)
def test_radius_grows_with_the_top_count_and_scales_with_sigma(interval, bound):
    k = np.arange(500, 1000)
    counts = np.stack([k, 1000 - k], axis=-1)
    radius = certify_counts(counts, 1.0, interval=interval, bound=bound).radius
    assert np.all(np.diff(radius) >= 0)
    assert radius[-1] > 1
    scaled = certify_counts(counts, 0.4, interval=interval, bound=bound).radius
    np.testing.assert_allclose(scaled, 0.4 * radius, rtol=1e-12)


def test_the_other_options_put_the_intervals_into_the_bounds():
    counts = [700, 100, 200]
    for interval, intervals in (
        ("goodman", goodman_intervals),
        ("sison_glaz", sison_glaz_intervals),
    ):
        lower, upper = intervals(counts, 0.02)
        for bound, radius in (("cohen", cohen_radius), ("renyi", renyi_radius)):
            result = certify_counts(counts, 0.3, 0.02, interval=interval, bound=bound)
            assert (result.p_a, result.p_b) == (lower[0], upper[2])
            assert result.radius == radius(lower[0], upper[2], 0.3) > 0


def test_sison_glaz_reproduces_the_r_package():
    lower, upper = sison_glaz_intervals(SEVEN, 0.05, as_in_r=True)
    expected_lower = [0.07922912, 0.11349036, 0.11563169, 0.0856531]
    expected_upper = [0.1643361, 0.1985973, 0.2007386, 0.1707601]
    np.testing.assert_allclose(lower[:4], expected_lower, atol=5e-8)
    np.testing.assert_allclose(upper[:4], expected_upper, atol=5e-8)
    lower, upper = sison_glaz_intervals([[5] * 50, FIFTY], 0.05, as_in_r=True)
    np.testing.assert_allclose(lower[:, ::10], [[0] * 5, [0, 0.012, 0, 0, 0]], atol=5e-9)
    expected_upper = [
        [0.05304026] * 5,
        [0.04120118, 0.08520118, 0.05720118, 0.04920118, 0.05320118],
    ]
    np.testing.assert_allclose(upper[:, ::10], expected_upper, atol=5e-9)


def test_sison_glaz_with_the_whole_expansion():
    # The paper's three decimals, and statsmodels 0.15 (method="sison-glaz") to eight.
    lower, upper = sison_glaz_intervals(SEVEN, 0.05)
    np.testing.assert_allclose(lower, [0.079, 0.113, 0.116, 0.086, 0.092, 0.146, 0.084], atol=6e-4)
    np.testing.assert_allclose(upper, [0.164, 0.199, 0.201, 0.171, 0.177, 0.231, 0.169], atol=6e-4)
    np.testing.assert_allclose(upper[:3], [0.16435573, 0.19861698, 0.2007583], atol=6e-9)


def test_sison_glaz_on_skewed_counts():
    lower, upper = sison_glaz_intervals([[1000, 0, 0], [999, 1, 0], [0, 0, 10**6]], 0.001)
    assert lower[0, 0] == lower[2, 2] == 1.0  # the flaw: certainty from a finite sample
    assert 0.99 < lower[1, 0] <= 0.999
    assert np.all((upper[:2, 1:] > 0) & (upper[:2, 1:] < 0.01))
    # For three single votes the approximation never reaches 0.95: the intervals say nothing.
    lower, upper = sison_glaz_intervals([1, 1, 1], 0.05)
    assert lower.tolist() == [0, 0, 0]
    assert upper.tolist() == [1, 1, 1]


def test_goodman_reproduces_the_published_examples():
    lower, upper = goodman_intervals(SEVEN, 0.05)
    np.testing.assert_allclose(lower, [0.085, 0.115, 0.116, 0.091, 0.096, 0.143, 0.089], atol=6e-4)
    np.testing.assert_allclose(upper, [0.166, 0.204, 0.207, 0.173, 0.181, 0.239, 0.171], atol=6e-4)


def test_goodman_bounds_solve_the_score_equation():
    counts, alpha = np.array([980, 19, 1, 0]), 1e-9
    q = NormalDist().inv_cdf(alpha / 4 / 2) ** 2
    for bound in goodman_intervals(counts, alpha):
        distance = (counts - 1000 * bound) ** 2
        np.testing.assert_allclose(distance, q * 1000 * bound * (1 - bound), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_classes", [2, 3, 12])
@pytest.mark.parametrize("sigma", [0.1, 1.6])
def test_as_published_reaches_the_papers_largest_radius(num_classes, sigma):
    counts = np.zeros(num_classes, int)
    counts[-1] = 1000
    result = certify_counts_as_published(counts, sigma)
    assert result.prediction == num_classes - 1
    np.testing.assert_allclose(result.radius, 2.4813455 * sigma, rtol=1e-7)


def test_as_published_is_the_published_formula():
    counts = [[1000, 0, 0], [200, 100, 700], [400, 410, 190], [333, 333, 334]]
    result = certify_counts_as_published(counts, 0.8)
    lower, upper = sison_glaz_intervals(np.sort(counts)[:, ::-1], 0.05, as_in_r=True)
    p_a, p_b, order = lower[:, :1], upper[:, 1:2], np.linspace(1.01, 2, 100)
    mean = ((p_a ** (1 - order) + p_b ** (1 - order)) / 2) ** (1 / (1 - order))
    squared = -2 * 0.8**2 / order * np.log(1 - p_a - p_b + 2 * mean)
    np.testing.assert_allclose(result.radius, np.sqrt(squared.max(axis=-1)), rtol=1e-9)
    assert result.prediction.tolist() == [0, 2, 1, 2]


def test_as_published_never_abstains_and_says_that_it_is_not_valid():
    result = certify_counts_as_published([500, 500], 0.8)
    assert result.prediction == 0
    np.testing.assert_allclose(result.radius, 0.05177, atol=1e-5)
    assert not result.valid
    assert "NOT valid" in result.statement
    assert result.alpha == 0.05


def test_an_infinite_radius_only_from_a_claim_of_certainty():
    assert certify_counts([1000, 0], 1.0, interval="sison_glaz").radius == math.inf
    assert cohen_radius(1.0, 0.2, 1.0) == cohen_radius(0.2, 0.0, 1.0) == math.inf
    assert renyi_radius(1.0, 0.0, 1.0) == math.inf
    assert 0 < renyi_radius(1.0, 1e-3, 1.0) < math.inf
    assert np.all(np.isfinite(certify_counts([[10**8, 0]] * 2, 1.0, 0.999).radius))


@pytest.mark.parametrize("radius", [cohen_radius, renyi_radius])
def test_bounds_give_no_radius_unless_p_a_exceeds_p_b(radius):
    p_a, p_b = np.array([0.4, 0.5, 0.0, 1.0, 0.2]), np.array([0.6, 0.5, 0.0, 1.0, 0.1])
    np.testing.assert_array_equal(radius(p_a, p_b, 1.0) > 0, [False] * 4 + [True])
    for wrong in (math.nan, -0.1, 1.1):
        with pytest.raises(UserError, match="probabilities"):
            radius(wrong, 0.1, 1.0)


BAD_COUNTS = {
    "negative": [[10, -1]],
    "fractional": [[1.5, 2.5]],
    "nan": [[math.nan, 3.0]],
    "inf": [[math.inf, 3.0]],
    "one class": [[10], [20]],
    "no class": [[]],
    "scalar": 7,
    "zero total": [[5, 3], [0, 0]],
    "too many": [[10**8, 1]],
    "overflow": [[2**62, 2**62]],
    "boolean": [[True, False]],
    "ragged": [[1, 2], [3]],
    "text": [["1", "2"]],
    "none": None,
    "complex": [[1j, 2]],
}


@pytest.mark.parametrize("counts", BAD_COUNTS.values(), ids=BAD_COUNTS)
@pytest.mark.parametrize(
    "certify", [certify_counts, certify_counts_as_published], ids=["default", "as_published"]
)
def test_bad_counts_are_refused(certify, counts):
    with pytest.raises(UserError) as error:
        certify(counts, 1.0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "sigma", [0, -1.0, math.nan, math.inf, -math.inf, 1e-300, 1e300, "1", None, True, [1.0]]
)
def test_bad_sigma_is_refused(sigma):
    for call in (
        lambda: certify_counts([9, 1], sigma),
        lambda: certify_counts_as_published([9, 1], sigma),
        lambda: cohen_radius(0.9, 0.1, sigma),
        lambda: renyi_radius(0.9, 0.1, sigma),
    ):
        with pytest.raises(UserError, match=r"^sigma must be .*$"):
            call()


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, math.nan, math.inf, "0.1", None, True])
def test_bad_alpha_is_refused(alpha):
    for interval in certificates.INTERVALS:
        with pytest.raises(UserError, match=r"^alpha must be .*$"):
            certify_counts([9, 1], 1.0, alpha, interval=interval)


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"unknown interval 'wald': choose one of clopper_pearson"):
        certify_counts([9, 1], 1.0, interval="wald")
    with pytest.raises(UserError, match=r"unknown bound 'best\\n': choose one of cohen, renyi"):
        certify_counts([9, 1], 1.0, bound="best\n")


def test_successes_above_the_total_are_refused():
    with pytest.raises(UserError, match="successes"):
        certificates.clopper_pearson_lower(11, 10, 0.05)


def test_whole_numbers_of_any_numeric_type_are_taken():
    expected = certify_counts([90, 10], 1.0).radius
    for dtype in (np.int8, np.uint64, np.float32, np.float64):
        assert certify_counts(np.array([90, 10], dtype), np.float32(1.0)).radius == expected


def test_certificates_are_frozen():
    result = certify_counts([90, 10], 1.0)
    with pytest.raises(AttributeError):
        result.alpha = 0.5


@pytest.mark.parametrize(
    ("radius", "digits", "text"),
    [
        (1.9999999, 6, "1.999999"),
        (0.29, 2, "0.28"),  # the nearest double to 0.29 lies below it
        (0.1, 2, "0.10"),  # and that to 0.1 above
        (0.0, 3, "0.000"),
        (-0.0, 3, "0.000"),
        (4e-7, 6, "0.000000"),
        (2.5, 0, "2"),
        (math.inf, 6, "inf"),
        (5e-324, 6, "0.000000"),
    ],
)
def test_format_radius_examples(radius, digits, text):
    assert format_radius(radius, digits) == text


def test_format_radius_rounds_down_exactly():
    rng = np.random.default_rng(0)
    radii = np.concatenate([rng.exponential(2, 2000), 10.0 ** rng.uniform(-9, 99, 300)])
    radii = np.concatenate([radii, np.round(radii[:2000], 6), np.arange(100) / 100])
    for radius in radii:
        for digits in (0, 3, 6, 17):
            written = Fraction(format_radius(radius, digits))
            assert written <= Fraction(float(radius)) < written + Fraction(1, 10**digits)


@pytest.mark.parametrize("radius", [math.nan, -1e-9, -math.inf])
def test_format_radius_refuses_what_is_no_radius(radius):
    with pytest.raises(UserError):
        format_radius(radius)
