"""Margins under noise: the votes that are certified, and the variance formula where it is exact."""

import jax
import numpy as np
import pytest
from helpers import TinyNet, easy_problem, init
from reproduction import theory
from scipy import stats

from selfens_jax import smoothing
from selfens_jax.errors import UserError


def tiny_ensemble():
    x, _ = easy_problem(3)
    model = TinyNet(num_classes=3)
    ones = np.ones((2, x.shape[1]), np.float32)
    ones[1, :5] = 0
    return smoothing.self_ensemble(model, init(model, x), ones), x


@pytest.mark.parametrize("num_draws", [40, 100, 230])
def test_the_drawn_logits_are_the_counted_votes(num_draws):
    predict, x = tiny_ensemble()
    options = {
        "sigma": 0.7,
        "num_draws": num_draws,
        "key": jax.random.key(1),
        "indices": np.array([4, 0, 9]),
    }
    logits = smoothing.draw_logits(predict, x, **options)
    assert logits.shape == (3, num_draws, 3)
    votes = [np.bincount(row.argmax(axis=1), minlength=3) for row in logits]
    np.testing.assert_array_equal(votes, smoothing.count_votes(predict, x, **options))
    assert len(np.unique(logits[0, :, 0])) > num_draws / 2  # no draw is another's copy


def test_draws_are_refused_as_counting_refuses_them():
    predict, x = tiny_ensemble()
    with pytest.raises(UserError, match="sigma must be a finite number above 0"):
        smoothing.draw_logits(predict, x, sigma=0, num_draws=10, key=jax.random.key(0))


def test_margins_and_the_two_classes():
    logits = np.array([[0.0, 3.0, 1.0], [5.0, 6.0, 0.0], [9.0, 1.0, 2.0]])
    assert theory.top_two(logits) == (1, 0)  # by votes, although class 0 has the higher mean
    np.testing.assert_array_equal(theory.of_class(logits, 1), [[3, 2], [1, 6], [-8, -1]])


def correlated(n: int, masks: int, correlation: float, clean: float, seed: int = 0):
    """Margins (n, P, 1) with mean 1, V_p = 2 and this correlation, and their clean part (P, 1)."""
    rng = np.random.default_rng(seed)
    shared, own = rng.normal(size=(n, 1, 1)), rng.normal(size=(n, masks, 1))
    noise = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
    part = 1 + np.sqrt(clean) * rng.normal(size=(masks, 1))
    return part + np.sqrt(2) * noise, part


def test_the_components_are_those_the_margins_were_made_of():
    noisy, clean = correlated(20_000, 400, correlation=0.6, clean=0.5)
    found = theory.components(noisy, clean)
    assert found.mean == pytest.approx(1, abs=0.1)
    assert found.clean == pytest.approx(0.5, rel=0.25)
    assert found.perturbation == pytest.approx(2, rel=0.03)
    assert found.correlation == pytest.approx(0.6, abs=0.02)
    assert found.variance(5, masks_redrawn=False) == pytest.approx(2 * (1 + 4 * 0.6) / 5, rel=0.05)
    both = found.variance(5, masks_redrawn=True)
    assert both == pytest.approx(2 * (1 + 4 * 0.6) / 5 + 0.5 / 5, rel=0.05)


@pytest.mark.parametrize("num_masks", [1, 4, 20])
def test_measured_variances_agree_with_the_lemma_where_it_holds(num_masks):
    noisy, clean = correlated(20_000, 400, correlation=0.3, clean=0.5)
    expected = theory.components(noisy, clean)
    seen = theory.measure(noisy, num_masks)
    assert seen.masks_fixed == pytest.approx(expected.variance(num_masks, False), rel=0.03)
    assert seen.masks_redrawn == pytest.approx(expected.variance(num_masks, True), rel=0.1)
    assert seen.masks_redrawn > seen.masks_fixed
    assert seen.top_probability == pytest.approx(expected.top_probability(num_masks), abs=0.02)


def test_the_probability_is_a_product_over_classes():
    three = np.array([1.0, 2.0, -1.0])
    found = theory.Components(three, np.zeros(3), np.full(3, 4.0), np.ones(3))
    expected = stats.norm.cdf(0.5) * stats.norm.cdf(1.0) * stats.norm.cdf(-0.5)
    assert found.top_probability(7) == pytest.approx(expected)


def test_one_ensemble_has_no_spread_over_masks():
    noisy, clean = correlated(50, 6, correlation=0.5, clean=0.1)
    assert theory.measure(noisy, 4).masks_redrawn is None
    with pytest.raises(UserError, match="no ensemble of 7"):
        theory.measure(noisy, 7)
    with pytest.raises(UserError, match="at least 2 draws and 2 masks"):
        theory.components(noisy[:, :1], clean[:1])
