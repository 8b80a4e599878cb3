import math

import numpy as np
import pytest

from selfens_jax import metrics
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
