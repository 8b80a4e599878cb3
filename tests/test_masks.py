"""Masks: totals and run lengths over many keys, frequencies, and what a mask depends on."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_binomial

from selfens_jax import masks
from selfens_jax.errors import UserError

# Compiling is what takes time here: one program for each (function, num_masks, length, keep).
binomial = jax.jit(masks.binomial, static_argnums=(1, 2, 3))
continuous = jax.jit(masks.continuous, static_argnums=(1, 2, 3))
binomial_balanced = jax.jit(masks.binomial_balanced, static_argnums=(1, 2, 3))
continuous_balanced = jax.jit(masks.continuous_balanced, static_argnums=(1, 2, 3))
BOTH = pytest.mark.parametrize("make", [binomial, continuous])
EVERY = pytest.mark.parametrize(
    "make", [binomial, continuous, binomial_balanced, continuous_balanced]
)


def runs_of_zeros(mask: np.ndarray) -> list[int]:
    return [len(list(run)) for value, run in itertools.groupby(mask) if value == 0]


@EVERY
def test_shape_type_and_values(make):
    drawn = make(jax.random.key(0), 20, 30, 0.8)
    assert drawn.shape == (20, 30)
    assert drawn.dtype == np.float32
    assert set(np.unique(drawn)) == {0.0, 1.0}


@EVERY
def test_keep_one_hides_nothing(make):
    assert (np.asarray(make(jax.random.key(0), 20, 2, 1.0)) == 1).all()


@pytest.mark.parametrize(
    "make",
    [masks.binomial, masks.continuous, masks.binomial_balanced, masks.continuous_balanced],
)
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


@EVERY
def test_a_mask_does_not_depend_on_how_many_there_are(make):
    key = jax.random.key(8)
    np.testing.assert_array_equal(make(key, 5, 30, 0.8), make(key, 20, 30, 0.8)[:5])


@pytest.mark.parametrize("make", [binomial, continuous, binomial_balanced])
def test_keys_and_places_give_different_masks(make):
    # Two binomial masks agree with probability 0.82^128 = 1e-11, two continuous ones more rarely.
    drawn = np.concatenate([make(jax.random.key(seed), 200, 128, 0.9) for seed in range(2)])
    assert len(np.unique(drawn, axis=0)) == len(drawn)
    np.testing.assert_array_equal(make(jax.random.key(0), 200, 128, 0.9), drawn[:200])


@pytest.mark.parametrize(
    ("ensemble", "design", "make"),
    [
        ("mb", "independent", binomial),
        ("mc", "independent", continuous),
        ("mb", "balanced", binomial_balanced),
        ("mc", "balanced", continuous_balanced),
    ],
)
def test_draw_chooses_by_ensemble_and_can_be_mapped_over_keys(ensemble, design, make):
    keys = jax.random.split(jax.random.key(9), 3)

    def drawn(key):
        return masks.draw(ensemble, key, 5, 30, 0.8, design=design)

    mapped = jax.jit(jax.vmap(drawn))(keys)
    for of_key, key in zip(mapped, keys, strict=True):
        np.testing.assert_array_equal(of_key, make(key, 5, 30, 0.8))


def test_masks_are_independent_unless_asked():
    key = jax.random.key(9)
    np.testing.assert_array_equal(masks.draw("mb", key, 5, 30, 0.8), binomial(key, 5, 30, 0.8))
    message = "unknown mask_design 'latin'; choose from independent, balanced"
    with pytest.raises(UserError, match=message):
        masks.draw("mb", key, 5, 30, 0.8, design="latin")


@pytest.mark.parametrize("keep", [0.96, 0.999])
def test_where_one_mask_ends_the_next_begins(keep, monkeypatch):
    """The places, in float32, on both sides of every end."""
    ends = np.float32(1 - keep) * np.arange(1, 20, dtype=np.float32)
    places = np.concatenate([np.nextafter(ends, np.float32(0)), ends, np.nextafter(ends, 1)])
    monkeypatch.setattr(jax.random, "uniform", lambda *_: jnp.asarray(places))
    drawn = masks.binomial_balanced(jax.random.key(0), 20, len(places), keep)
    assert (1 - np.asarray(drawn)).sum(axis=0).tolist() == [1.0] * len(places)


def test_a_keep_beside_one_hides_next_to_nothing():
    drawn = masks.binomial_balanced(jax.random.key(0), 3, 16, 1 - 1e-12)
    np.testing.assert_array_equal(drawn, np.ones((3, 16)))


def test_balanced_masks_are_compiled_once():
    masks.continuous_balanced(jax.random.key(0), 2, 12, 0.8)
    size = masks._continuous_balanced._cache_size()
    masks.continuous_balanced(jax.random.key(1), 2, 12, 0.8)
    assert masks._continuous_balanced._cache_size() == size


@pytest.mark.parametrize(("keep", "together"), [(0.9, 10), (0.8, 5), (0.7, 3), (0.5, 2), (0.3, 1)])
def test_balanced_binomial_masks_hide_disjoint_steps(keep, together):
    keys = jax.random.split(jax.random.key(11), 50)
    drawn = jax.vmap(lambda key: binomial_balanced(key, 20, 40, keep))(keys)
    hidden = 1 - np.asarray(drawn)
    for first in range(0, 20, together):
        times = hidden[:, first : first + together].sum(axis=1)
        assert times.max() <= 1
        if first + together <= 20 and keep in (0.9, 0.8, 0.5):
            assert times.min() == 1  # they share all steps among them


def test_a_balanced_binomial_mask_is_a_binomial_mask():
    keys = jax.random.split(jax.random.key(12), 2000)
    drawn = np.asarray(jax.vmap(lambda key: binomial_balanced(key, 7, 30, 0.7))(keys))
    for number in (0, 2, 6):  # masks of other keys are independent. Error: 1e-9 each
        one = drawn[:, number]
        assert_binomial(one.sum(), one.size, 0.7, error=1e-9)
        for at_one_step in one.T:
            assert_binomial(at_one_step.sum(), len(one), 0.7, error=1e-9 / 30)
        # Neighbouring steps are independent, too: both are kept with probability 0.49.
        both = one[:, 0] * one[:, 1]
        assert_binomial(both.sum(), len(both), 0.49, error=1e-9)
    # So are masks of different rounds of floor(1 / 0.3) = 3.
    other = drawn[:, 0] * drawn[:, 3]
    assert_binomial(other.sum(), other.size, 0.49, error=1e-9)


@pytest.mark.parametrize(("keep", "total", "longest"), [(0.9, 6, 3), (0.5, 30, 15)])
def test_balanced_continuous_masks_are_continuous_and_hide_steps_more_evenly(keep, total, longest):
    keys = jax.random.split(jax.random.key(14), 20)
    sets = {
        make: 1 - np.stack([make(key, 5, 60, keep) for key in keys])
        for make in (continuous, continuous_balanced)
    }
    for hidden in sets.values():
        assert (hidden.sum(axis=2) == total).all()
        assert max(max(runs_of_zeros(1 - mask)) for mask in np.concatenate(hidden)) <= longest
    times = {make: hidden.sum(axis=1) for make, hidden in sets.items()}
    assert times[continuous_balanced].var() < 0.6 * times[continuous].var()
    if keep == 0.9:  # 30 of 60 steps once at best, which is a variance of 1/4
        assert times[continuous_balanced].var() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("ensemble", ["single", "de"])
def test_draw_without_masks(ensemble):
    drawn = masks.draw(ensemble, jax.random.key(10), 5, 30, 0.8)
    np.testing.assert_array_equal(drawn, np.ones((5, 30), np.float32))


@EVERY
@pytest.mark.parametrize(
    ("arguments", "word"),
    [((0, 20, 0.9), "num_masks"), ((-1, 20, 0.9), "num_masks"), ((5, 1, 0.9), "time steps")]
    + [((5, 20, keep), "keep") for keep in (0.0, -0.1, 1.1, float("nan"))],
)
def test_bad_arguments_are_refused_in_one_line(make, arguments, word):
    with pytest.raises(UserError, match=word) as caught:
        make(jax.random.key(0), *arguments)
    assert "\n" not in str(caught.value)


def test_windows_hide_runs_of_their_length_anywhere():
    drawn = np.asarray(masks.windows(jax.random.key(0), 4000, 12, 3, count=1))
    assert (drawn.sum(axis=1) == 9).all()
    starts = drawn.argmin(axis=1)
    assert all(not row[start : start + 3].any() for row, start in zip(drawn, starts, strict=True))
    # Ten places, each with 400 of 4000; six standard deviations are 114.
    assert (abs(np.bincount(starts, minlength=10) - 400) < 114).all()


def test_two_windows_are_independent():
    drawn = np.asarray(masks.windows(jax.random.key(1), 4000, 5, 2, count=2))
    # Four places each: equal ones hide 2 steps, neighbours 3, others 4. Of 16 pairs 4, 6 and 6.
    hidden = 5 - drawn.sum(axis=1)
    for steps, share in ((2, 4 / 16), (3, 6 / 16), (4, 6 / 16)):
        assert abs((hidden == steps).mean() - share) < 6 * (share * (1 - share) / 4000) ** 0.5
    first = masks.windows(jax.random.key(1), 3, 5, 2, count=2)
    np.testing.assert_array_equal(drawn[:3], first)


@pytest.mark.parametrize(("window", "count"), [(0, 1), (5, 1), (2, 0)])
def test_windows_that_cannot_be_are_refused(window, count):
    with pytest.raises(UserError, match="windows need 1 <= window < 5"):
        masks.windows(jax.random.key(0), 3, 5, window, count)
