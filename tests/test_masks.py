"""Masks: totals and run lengths over many keys, frequencies, and what a mask depends on."""

import itertools

import jax
import numpy as np
import pytest
from helpers import assert_binomial

from selfens_jax import masks
from selfens_jax.errors import UserError

BOTH = pytest.mark.parametrize("make", [masks.binomial, masks.continuous])
LENGTHS = (2, 3, 5, 10, 16, 19, 20, 31, 60, 128)
KEEPS = (1.0, 0.95, 0.9, 0.75, 0.5, 0.3, 0.1, 0.01)


def runs_of_zeros(mask: np.ndarray) -> list[int]:
    return [len(list(run)) for value, run in itertools.groupby(mask) if value == 0]


def hidden_steps(length: int, keep: float) -> int:
    return min(round((1 - keep) * length), length - 1)


@BOTH
@pytest.mark.parametrize("keep", [1.0, 0.9, 0.2])
def test_shape_type_and_values(make, keep):
    drawn = make(jax.random.key(0), 7, 13, keep)
    assert drawn.shape == (7, 13)
    assert drawn.dtype == np.float32
    assert set(np.unique(drawn)) <= {0.0, 1.0}


@BOTH
@pytest.mark.parametrize("length", [2, 3, 20, 128])
def test_keep_one_hides_nothing(make, length):
    assert (np.asarray(make(jax.random.key(0), 50, length, 1.0)) == 1).all()


@BOTH
def test_keep_is_nine_tenths_by_default(make):
    key = jax.random.key(3)
    np.testing.assert_array_equal(make(key, 5, 40), make(key, 5, 40, 0.9))


@pytest.mark.parametrize(("length", "keep"), list(itertools.product(LENGTHS, KEEPS)))
def test_continuous_masks_have_exact_totals_and_short_runs(length, keep):
    drawn = np.asarray(masks.continuous(jax.random.key(length), 200, length, keep))
    hidden = hidden_steps(length, keep)
    # Rounded either way from a half, which floats do not hit.
    assert abs(hidden - (1 - keep) * length) <= 0.5 + 1e-9 or hidden == length - 1
    assert ((drawn == 0).sum(axis=1) == hidden).all()

    longest = max(1, int((1 - keep) * length / 2 + 1e-9))
    gaps = length - hidden + 1
    if hidden > longest * gaps:  # runs this short cannot be kept apart
        longest = -(-hidden // gaps)
    assert max(max(runs_of_zeros(mask), default=0) for mask in drawn) <= longest


@pytest.mark.parametrize(
    ("length", "keep", "total", "longest"),
    [(128, 0.9, 13, 6), (60, 0.9, 6, 3), (100, 0.9, 10, 5), (20, 0.9, 2, 1), (2, 0.9, 0, 0)]
    + [(10, 0.9, 1, 1), (16, 0.5, 8, 4), (2, 0.5, 1, 1), (2, 0.1, 1, 1), (10, 0.1, 9, 5)],
)
def test_continuous_masks_by_hand(length, keep, total, longest):
    drawn = np.asarray(masks.continuous(jax.random.key(1), 1000, length, keep))
    assert ((drawn == 0).sum(axis=1) == total).all()
    assert max(max(runs_of_zeros(mask), default=0) for mask in drawn) == longest


@pytest.mark.parametrize(("length", "keep"), [(20, 0.9), (30, 0.8), (16, 0.5), (3, 0.6), (2, 0.5)])
def test_every_time_step_is_hidden_sometimes(length, keep):
    drawn = np.asarray(masks.continuous(jax.random.key(5), 2000, length, keep))
    # A step that is hidden with probability 1/(2T) or more is missed in 2000 masks with
    # probability at most 30 (1 - 1/60)^2000 = 8e-14.
    assert (drawn == 0).any(axis=0).all()
    assert (drawn == 1).any(axis=0).all()


def test_continuous_masks_hide_early_and_late_steps_equally_often():
    drawn = np.asarray(masks.continuous(jax.random.key(6), 4000, 30, 0.8))
    # By symmetry the middle of the hidden steps, minus the middle of the series, is as often
    # positive as negative. Error probability of the test: 1e-9.
    middle = (drawn == 0) @ (np.arange(30) - 14.5)
    assert_binomial((middle > 0).sum(), (middle != 0).sum(), 0.5, error=1e-9)


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.05])
def test_binomial_masks_keep_the_right_share(keep):
    drawn = np.asarray(masks.binomial(jax.random.key(7), 2000, 20, keep))
    # Error probability: 1e-9 for the whole, 1e-9 for all 20 time steps together.
    assert_binomial(drawn.sum(), drawn.size, keep, error=1e-9)
    for at_one_step in drawn.T:
        assert_binomial(at_one_step.sum(), len(drawn), keep, error=1e-9 / 20)


@BOTH
def test_a_mask_does_not_depend_on_how_many_there_are(make):
    key = jax.random.key(8)
    many = make(key, 20, 40, 0.7)
    for few in (1, 5, 19):
        np.testing.assert_array_equal(make(key, few, 40, 0.7), many[:few])


@BOTH
def test_keys_and_places_give_different_masks(make):
    drawn = np.concatenate([make(jax.random.key(seed), 20, 128, 0.5) for seed in range(5)])
    # Two binomial masks agree with probability 2^-128, two continuous ones less than 1e-20.
    assert len(np.unique(drawn, axis=0)) == len(drawn)
    np.testing.assert_array_equal(make(jax.random.key(0), 20, 128, 0.5), drawn[:20])


@BOTH
def test_masks_can_be_traced(make):
    key = jax.random.key(9)
    eager = make(key, 6, 24, 0.8)
    np.testing.assert_array_equal(jax.jit(lambda k: make(k, 6, 24, 0.8))(key), eager)
    keys = jax.random.split(key, 3)
    batched = jax.vmap(lambda k: make(k, 6, 24, 0.8))(keys)
    for of_key, k in zip(batched, keys, strict=True):
        np.testing.assert_array_equal(of_key, make(k, 6, 24, 0.8))


def test_draw_chooses_by_ensemble():
    key = jax.random.key(10)
    np.testing.assert_array_equal(
        masks.draw("mb", key, 5, 30, 0.8), masks.binomial(key, 5, 30, 0.8)
    )
    np.testing.assert_array_equal(
        masks.draw("mc", key, 5, 30, 0.8), masks.continuous(key, 5, 30, 0.8)
    )
    for ensemble in ("single", "de"):
        assert (np.asarray(masks.draw(ensemble, key, 5, 30, 0.8)) == np.ones((5, 30))).all()


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
