"""Decisions at a target radius through the draws of real classifiers: errors, and few draws."""

import numpy as np
import pytest
from scipy import stats
from test_consensus import MASKS, SIGMA, Bilinear

from selfens_jax import sequential, smoothing
from selfens_jax.counting import Job

REPETITIONS = 2000
ALPHA, ALPHA_FUTILITY = 0.05, 0.1
# The half-space 0.6 z_1 + 0.8 z_2 > 0, for a consensus too (tests/test_consensus.py).
ENSEMBLE = smoothing.self_ensemble(Bilinear((0.6, 0.8, 0.0, 0.0)), {}, MASKS)
PREDICTS = {"all masks": ENSEMBLE, "consensus": smoothing.consensus(ENSEMBLE, 2)}


def decided(predict, distance: float, target_radius: float, max_draws: int = 400):
    """Decisions for REPETITIONS examples at this distance from the half-space's boundary."""
    x = np.tile(np.array([0.6, 0.8])[None, :, None] * distance, (REPETITIONS, 1, 1))
    settings = {"sigma": SIGMA, "noise_seed": 5, "draws_per_block": 20, "precision": "float32"}
    job = Job(x, np.zeros(len(x), int), np.arange(len(x)), predict, settings, 100_000)
    edges = sequential.batches(max_draws=max_draws)
    p0 = sequential.certified_share(target_radius, SIGMA)
    levels = (ALPHA, ALPHA_FUTILITY)
    state, forwards = sequential.run_tests(job.count, len(x), edges, p0, *levels)
    return state, forwards, edges[0]


@pytest.mark.parametrize("predict", PREDICTS.values(), ids=PREDICTS)
@pytest.mark.parametrize("distance", [0.2, 0.5])
def test_at_the_true_radius_neither_decision_errs_too_often(predict, distance):
    """There a certificate and a rejection are both errors. A valid test fails with 2e-6."""
    state, *_ = decided(predict, distance, distance)
    right = state.candidate == 1
    certified = (state.decision == sequential.CERTIFIED).sum()
    rejected = (right & (state.decision == sequential.REJECTED)).sum()
    assert certified <= stats.binom.isf(1e-6, REPETITIONS, ALPHA)
    assert rejected <= stats.binom.isf(1e-6, REPETITIONS, ALPHA_FUTILITY)


@pytest.mark.parametrize("predict", PREDICTS.values(), ids=PREDICTS)
def test_clear_cases_are_decided_with_few_draws(predict):
    far, forwards, selection = decided(predict, 1.6, 0.35)
    assert (far.decision == sequential.CERTIFIED).mean() > 0.99
    assert (selection + far.draws).mean() < 50
    members = 3 * (selection + far.draws)
    if isinstance(predict, smoothing.Consensus):
        assert (forwards < members).mean() > 0.99
        assert (forwards >= 2 * members / 3).all()
    else:
        np.testing.assert_array_equal(forwards, members)
    near, *_ = decided(predict, 0.05, 0.7)
    assert (near.decision == sequential.REJECTED).mean() > 0.99
