"""Certificates against the truth, through the whole public path: votes, interval, radius.

The base classifiers' smoothed decisions and radii are known in closed form. A certificate is false
if its class is not the smoothed classifier's or its radius is larger than the true one. Its
probability must be at most alpha for every classifier and every series, so it is counted in
thousands of seeded repetitions, mostly at and near probability 1/2, where it is largest.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from selfens_jax import noise
from selfens_jax.certificates import ABSTAIN, Certificates, certify_counts
from selfens_jax.smoothing import count_votes

SIGMA = 0.7
ALPHA = 0.05
DRAWS = 60
REPETITIONS = 4000
TEST_ERROR = 1e-6  # probability that one rate test fails although the scheme is valid

TIE = -2  # the smoothed classifier's class where its best two classes are equally likely


def half_space(parameters: jax.Array, x: jax.Array) -> jax.Array:
    """Class 1 where w.x + b > 0; parameters are (w, w, b)."""
    side = x[:, :, 0] @ parameters[:2] + parameters[2]
    return jnp.stack([jnp.zeros_like(side), side], axis=-1)


def slab(parameters: jax.Array, x: jax.Array) -> jax.Array:
    """Class 1 between two parallel hyperplanes, |u.x| < h with a unit vector u; (u, u, h)."""
    depth = parameters[2] - jnp.abs(x[:, :, 0] @ parameters[:2])
    return jnp.stack([jnp.zeros_like(depth), depth], axis=-1)


def quadrants(parameters: jax.Array, x: jax.Array) -> jax.Array:
    """Four cones: class 3 where both steps are positive, 2, 1 and 0 where one or none is."""
    del parameters
    signs = jnp.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    return x[:, :, 0] @ signs.T


@dataclasses.dataclass(frozen=True)
class Case:
    """A series x under a base classifier, with the truth about the smoothed one.

    p_a: probability of class `label`; radius: distance to where g changes; direction: of the
    nearest such point.
    """

    name: str
    classify: Callable
    parameters: tuple[float, ...]
    x: tuple[float, float]
    label: int
    p_a: float
    radius: float
    direction: tuple[float, float]

    @property
    def predict(self) -> jax.tree_util.Partial:
        return jax.tree_util.Partial(self.classify, jnp.array(self.parameters, jnp.float32))


def half_space_case(p: float) -> Case:
    # x = (0, 0): P(w.noise + b > 0) = Phi(b / (sigma |w|)), and |w| = 5.
    z = stats.norm.ppf(p)
    label = TIE if p == 0.5 else int(p > 0.5)
    sign = -1 if p > 0.5 else 1
    return Case(
        f"half-space, p={p:g}",
        half_space,
        (3.0, -4.0, 5 * SIGMA * z),
        (0.0, 0.0),
        label,
        max(p, 1 - p),
        SIGMA * abs(z),
        (sign * 0.6, sign * -0.8),
    )


def inside_slab(t: float, half_width: float) -> float:
    """P(|t + sigma z| < half_width)"""
    return stats.norm.cdf((half_width - t) / SIGMA) - stats.norm.cdf((-half_width - t) / SIGMA)


def slab_case(p_middle: float, t: float) -> Case:
    """A slab whose middle has probability p_middle, and a point at distance t from the middle."""
    half_width = SIGMA * stats.norm.ppf((1 + p_middle) / 2)
    label, edge, p = TIE, 0.0, 0.5
    if p_middle < 0.5:  # the slab wins nowhere
        edge = np.inf
    if p_middle > 0.5:
        edge = optimize.brentq(lambda s: inside_slab(s, half_width) - 0.5, 0, 10 * SIGMA)
    if (p_middle, t) != (0.5, 0.0):
        p = inside_slab(t, half_width)
        label = int(p > 0.5)
    outward = 1 if label == 1 else -1
    return Case(
        f"slab, p_middle={p_middle:g}, t={t:g}",
        slab,
        (0.8, 0.6, half_width),
        (0.8 * t, 0.6 * t),
        label,
        max(p, 1 - p),
        abs(edge - t),
        (outward * 0.8, outward * 0.6),
    )


def quadrant_case(p: float) -> Case:
    # x = (c, 2c): P = Phi(c / sigma) Phi(2c / sigma); the nearest change is where step 0 is 0.
    c = optimize.brentq(
        lambda c: stats.norm.cdf(c / SIGMA) * stats.norm.cdf(2 * c / SIGMA) - p, 0, 10 * SIGMA
    )
    label = TIE if p == 0.25 else 3
    return Case(f"quadrants, p={p:g}", quadrants, (0.0,), (c, 2 * c), label, p, c, (-1.0, 0.0))


CASES = [
    *[half_space_case(p) for p in (0.5, 0.501, 0.49, 0.52, 0.6, 0.9, 0.03)],
    *[slab_case(0.5, 0.0), slab_case(0.52, 0.0), slab_case(0.9, 0.0), slab_case(0.9, 0.6)],
    *[slab_case(0.48, 0.0), slab_case(0.9, 2.5)],
    *[quadrant_case(p) for p in (0.25, 0.26, 0.5, 0.51, 0.7, 0.95)],
]
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def counts_of(case: Case, repetitions: int, num_draws: int, shift: float = 0.0) -> np.ndarray:
    """Independent counts at x + shift * direction: each repetition is another index."""
    point = np.array(case.x) + shift * np.array(case.direction)
    x = np.tile(point[None, :, None], (repetitions, 1, 1))
    key = jax.random.key(CASES.index(case))
    return count_votes(
        case.predict, x, sigma=SIGMA, num_draws=num_draws, key=key, batch_size=100_000
    )


def certify(counts: np.ndarray, alpha: float, sigma: float = SIGMA) -> Certificates:
    """The certificates of series of two values under the usual noise."""
    given_up = noise.correction("grid", SIGMA, None, 2)
    return certify_counts(counts, sigma, alpha, given_up=given_up)


def number_false(case: Case, certificates) -> int:
    """Certificates for another class than the smoothed classifier's, or above the true radius."""
    certified = certificates.prediction != ABSTAIN
    if case.label == TIE:  # any class is right at x itself, none with a positive radius
        return int((certified & (certificates.radius > 0)).sum())
    wrong = certificates.prediction != case.label
    return int((certified & (wrong | (certificates.radius > case.radius))).sum())


def most_allowed(repetitions: int, alpha: float) -> int:
    """A valid scheme makes more false certificates with probability at most TEST_ERROR."""
    return int(stats.binom.isf(TEST_ERROR, repetitions, alpha))


@pytest.fixture(scope="module")
def all_counts() -> dict[str, np.ndarray]:
    return {case.name: counts_of(case, REPETITIONS, DRAWS) for case in CASES}


@EVERY_CASE
def test_votes_have_the_probability_of_the_closed_form(case, all_counts):
    counts = all_counts[case.name]
    assert (counts.sum(axis=1) == DRAWS).all()
    column = counts[:, max(case.label, 0)]
    # All draws of all repetitions are one binomial sample; error probability 1e-6.
    low, high = stats.binom.ppf([TEST_ERROR / 2, 1 - TEST_ERROR / 2], column.size * DRAWS, case.p_a)
    assert low <= column.sum() <= high
    # Each repetition is one too: the variance is binomial, not that of repeated or shared noise.
    # The sample variance of N binomials deviates by 2.2 to 2.5 %; 12 % is five times it.
    expected = DRAWS * case.p_a * (1 - case.p_a)
    assert column.var() == pytest.approx(expected, rel=0.12)


@EVERY_CASE
def test_no_more_than_alpha_of_the_certificates_are_false(case, all_counts):
    certificates = certify(all_counts[case.name], ALPHA)
    assert number_false(case, certificates) <= most_allowed(REPETITIONS, ALPHA)
    certificates = certify(all_counts[case.name], 0.001)
    assert number_false(case, certificates) <= most_allowed(REPETITIONS, 0.001)


def test_an_invalid_scheme_is_found_out(all_counts):
    """The level alpha instead of alpha/2, which certify_counts uses for twice the alpha."""
    least = next(k for k in range(DRAWS + 1) if stats.beta.ppf(ALPHA, k, DRAWS - k + 1) > 0.5)
    rate = 2 * stats.binom.sf(least - 1, DRAWS, 0.5)
    assert rate == pytest.approx(0.0925, abs=5e-5)
    allowed = most_allowed(REPETITIONS, ALPHA)
    assert stats.binom.cdf(allowed, REPETITIONS, rate) < 1e-6  # the test misses it this often
    tie = half_space_case(0.5)
    certificates = certify(all_counts[tie.name], 2 * ALPHA)
    assert number_false(tie, certificates) > allowed


def test_a_radius_too_large_is_found_out(all_counts):
    """The same harness with radii from twice the noise level."""
    case = half_space_case(0.6)
    certificates = certify(all_counts[case.name], ALPHA, sigma=2 * SIGMA)
    assert number_false(case, certificates) > most_allowed(REPETITIONS, ALPHA)


@EVERY_CASE
def test_easy_series_are_certified_and_hard_ones_are_not(case, all_counts):
    certificates = certify(all_counts[case.name], ALPHA)
    certified = (certificates.prediction == case.label).mean()
    if case.p_a >= 0.9:
        # At least 45 votes of 60 suffice, fewer has probability below 1e-3.
        assert certified > 0.99
        assert np.median(certificates.radius) > 0.4 * SIGMA
    if case.p_a <= 0.52:
        assert (certificates.prediction == ABSTAIN).mean() > 0.8


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.p_a > 0.52], ids=lambda case: case.name
)
def test_the_class_holds_inside_the_radius_and_not_beyond_the_true_one(case):
    """Inside the certified radius by closed form and by draws; beyond the true one by draws."""
    (counts,) = counts_of(case, 1, 1000)
    certificate = certify(counts, ALPHA)
    assert certificate.prediction == case.label
    assert 0 < certificate.radius < case.radius
    # Of 100,000 draws the top class must lead by 2 %: where it does not lead in truth, that has
    # probability below exp(-100000 * 0.02**2 / 2) = 2e-9.
    for shift, label_leads in (
        (certificate.radius * 0.999, True),
        (case.radius + 0.1 * SIGMA, False),
    ):
        votes = counts_of(case, 100, 1000, shift).sum(axis=0)
        second, first = np.sort(votes)[-2:]
        assert (votes.argmax() == case.label) == label_leads
        assert first - second > 0.02 * votes.sum()
