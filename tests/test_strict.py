"""Under JAX's strict rules: no NaN on the way, and no silent promotion.

Adam of Optax promotes the number of its steps, so training is looked at for NaN alone.
"""

import jax
import numpy as np
import pytest
from helpers import easy_problem

from selfens_jax import attacks, masks, models, smoothing, training
from selfens_jax.streams import stream

LONG = [pytest.param(name, marks=pytest.mark.slow) for name in ("inception_time", "macnn")]


@pytest.mark.parametrize("name", ["lstm_fcn", *LONG])
def test_each_architecture_trains_counts_and_is_attacked(name):
    x, y = easy_problem(8, length=16)
    model = models.create(name, num_classes=2)
    config = training.TrainConfig(ensemble="mc", epochs=2, batch_size=4, recalibration_passes=2)
    with jax.debug_nans(True):
        (variables,), history = training.fit(model, x, y, config)
    assert np.isfinite([row["loss"] for row in history]).all()
    with jax.debug_nans(True), jax.numpy_dtype_promotion("strict"):
        count_and_attack(model, variables, x, y)


def count_and_attack(model, variables, x, y):
    fixed = masks.continuous(stream(0, "masks"), num_masks=2, length=16, keep=0.9)
    predict = smoothing.self_ensemble(model, variables, fixed)
    for noise in ("grid", "float32"):
        counts = smoothing.count_votes(
            predict,
            x[:2],
            sigma=0.8,
            num_draws=30,
            key=stream(0, "certification"),
            draws_per_block=10,
            noise=noise,
        )
        assert counts.sum(axis=1).tolist() == [30, 30]
    moved = attacks.pgd_l2(
        predict,
        x[:2],
        y[:2],
        epsilon=0.5,
        key=stream(0, "attack"),
        sigma=0.8,
        num_draws=2,
        steps=2,
    )
    assert np.isfinite(np.asarray(moved)).all()
