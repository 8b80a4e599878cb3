"""Masks: totals and run lengths over many keys, frequencies, and what a mask depends on."""

import inspect
import itertools

import jax
import numpy as np
import pytest
from helpers import assert_binomial

from selfens_jax import masks
from selfens_jax.errors import UserError

# Compiling is what takes time here: one program for each (function, num_masks, length, keep).
binomial = jax.jit(masks.binomial, static_argnums=(1, 2, 3))
continuous = jax.jit(masks.continuous, static_argnums=(1, 2, 3))
BOTH = pytest.mark.parametrize("make", [binomial, continuous])


def runs_of_zeros(mask: np.ndarray) -> list[int]:
    return [len(list(run)) for value, run in itertools.groupby(mask) if value == 0]


@BOTH
def test_shape_type_and_values(make):
    drawn = make(jax.random.key(0), 20, 30, 0.8)
    assert drawn.shape == (20, 30)
    assert drawn.dtype == np.float32
    assert set(np.unique(drawn)) == {0.0, 1.0}


@BOTH
def test_keep_one_hides_nothing(make):
    assert (np.asarray(make(jax.random.key(0), 20, 2, 1.0)) == 1).all()


@pytest.mark.parametrize("make", [masks.binomial, masks.continuous])
def test_keep_is_nine_tenths_by_default(make):
    assert inspect.signature(make).parameters["keep"].default == 0.9


@pytest.mark.parametrize(
    ("length", "keep", "total", "longest"),
    [
        (128, 0.9, 13, 6),
        (20, 0.9, 2, 1),  # 2 * 0.1 * 20 / 2 is 1 only up to rounding
        (16, 0.5, 8, 4),
        (31, 0.75, 8, 3),
        (10, 0.9, 1, 1),  # shorter than 20: half the total is less than a step
        (2, 0.9, 0, 0),
        (2, 0.1, 1, 1),  # one step is always kept
        (10, 0.1, 9, 5),  # two runs around the only kept step: 4 would be too short
        (128, 0.02, 125, 62),
    ],
)
def test_continuous_masks_have_exact_totals_and_short_runs(length, keep, total, longest):
    keys = range(5)
    drawn = np.concatenate([continuous(jax.random.key(seed), 200, length, keep) for seed in keys])
    hidden = drawn == 0
    assert (hidden.sum(axis=1) == total).all()
    # Each of these longest runs comes up in a thousand masks with near certainty.
    assert max(max(runs_of_zeros(mask), default=0) for mask in drawn) == longest
    # A step hidden, or kept, with probability 1/50 or more is never so in 1000 masks with
    # probability below 2e-9. (If one step is kept between two runs, it can be only in the middle.)
    if total:
        assert hidden.any(axis=0).all()
    if length - total > 1:
        assert not hidden.all(axis=0).any()
    # By symmetry the middle of the hidden steps is as often late as early. Error: 1e-9.
    middle = hidden @ (np.arange(length) - (length - 1) / 2)
    assert_binomial((middle > 0).sum(), (middle != 0).sum(), 0.5, error=1e-9)


@pytest.mark.parametrize("keep", [0.8, 0.05])
def test_binomial_masks_keep_the_right_share(keep):
    drawn = np.concatenate([binomial(jax.random.key(k), 20, 30, keep) for k in range(200)])
    # Error probability: 1e-9 for the whole, 1e-9 for all time steps together.
    assert_binomial(drawn.sum(), drawn.size, keep, error=1e-9)
    for at_one_step in drawn.T:
        assert_binomial(at_one_step.sum(), len(drawn), keep, error=1e-9 / 30)


@BOTH
def test_a_mask_does_not_depend_on_how_many_there_are(make):
    key = jax.random.key(8)
    np.testing.assert_array_equal(make(key, 5, 30, 0.8), make(key, 20, 30, 0.8)[:5])


@BOTH
def test_keys_and_places_give_different_masks(make):
    # Two binomial masks agree with probability 0.82^128 = 1e-11, two continuous ones more rarely.
    drawn = np.concatenate([make(jax.random.key(seed), 200, 128, 0.9) for seed in range(2)])
    assert len(np.unique(drawn, axis=0)) == len(drawn)
    np.testing.assert_array_equal(make(jax.random.key(0), 200, 128, 0.9), drawn[:200])


@pytest.mark.parametrize(("ensemble", "make"), [("mb", binomial), ("mc", continuous)])
def test_draw_chooses_by_ensemble_and_can_be_mapped_over_keys(ensemble, make):
    keys = jax.random.split(jax.random.key(9), 3)
    mapped = jax.jit(jax.vmap(lambda key: masks.draw(ensemble, key, 5, 30, 0.8)))(keys)
    for of_key, key in zip(mapped, keys, strict=True):
        np.testing.assert_array_equal(of_key, make(key, 5, 30, 0.8))


@pytest.mark.parametrize("ensemble", ["single", "de"])
def test_draw_without_masks(ensemble):
    drawn = masks.draw(ensemble, jax.random.key(10), 5, 30, 0.8)
    np.testing.assert_array_equal(drawn, np.ones((5, 30), np.float32))


@BOTH
@pytest.mark.parametrize(
    ("arguments", "word"),
    [((0, 20, 0.9), "num_masks"), ((-1, 20, 0.9), "num_masks"), ((5, 1, 0.9), "time steps")]
    + [((5, 20, keep), "keep") for keep in (0.0, -0.1, 1.1, float("nan"))],
)
def test_bad_arguments_are_refused_in_one_line(make, arguments, word):
    with pytest.raises(UserError, match=word) as caught:
        make(jax.random.key(0), *arguments)
    assert "\n" not in str(caught.value)
