"""Counting votes: the same counts however the work is cut, and what a vote is."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import TinyNet, assert_binomial, default_grid, grid_noise, init, mesh_of, to_grid
from scipy import stats

from selfens_jax import blocks, classifiers, masks, models, noise, smoothing
from selfens_jax.errors import UserError

KEY = jax.random.key(20)
LENGTH = 16
BINS = 16


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, LENGTH, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def ensemble(x) -> smoothing.SelfEnsemble:
    """A real network under 5 masks."""
    model = models.create("lstm_fcn", num_classes=3)
    return smoothing.self_ensemble(model, init(model, x), masks.binomial(KEY, 5, LENGTH, 0.7))


def last_bits(predict, x: jax.Array) -> jax.Array:
    """Logits of a class that changes with the last bits of the ensemble's logits."""
    bits = jax.lax.bitcast_convert_type(predict(x), jnp.int32)
    return jax.nn.one_hot((bits @ jnp.array([1, 3, 5])) % BINS, BINS)


@pytest.fixture(scope="module")
def bits(ensemble):
    """Counts of this classifier are equal only if the ensemble's logits are, to the last bit."""
    with pytest.MonkeyPatch.context() as patch:
        # On some processors a row's last bits depend on its place in a batch. It is refused for
        # that, rightly: here places are always the same.
        patch.setattr(classifiers, "_refuse_mixed_rows", lambda *_: None)
        yield jax.tree_util.Partial(last_bits, ensemble)


@pytest.fixture(scope="module")
def bits_counts(bits, x) -> np.ndarray:
    counts = smoothing.count_votes(bits, x, sigma=0.5, num_draws=130, key=KEY, batch_size=100)
    assert (counts > 0).sum() > 2 * BINS  # the last bits do vary
    return counts


@pytest.mark.parametrize("batch_size", [1, 250, 1000, 3000])
def test_counts_do_not_depend_on_the_batch_size(bits, bits_counts, x, batch_size):
    counts = smoothing.count_votes(
        bits, x, sigma=0.5, num_draws=130, key=KEY, batch_size=batch_size
    )
    np.testing.assert_array_equal(counts, bits_counts)


@pytest.mark.parametrize(("devices", "batch_size"), [(2, 100), (8, 1000)])
def test_counts_do_not_depend_on_the_devices(bits, bits_counts, x, devices, batch_size):
    counts = smoothing.count_votes(
        bits,
        x,
        sigma=0.5,
        num_draws=130,
        key=KEY,
        batch_size=batch_size,
        mesh=mesh_of(devices),
    )
    np.testing.assert_array_equal(counts, bits_counts)


@pytest.mark.parametrize("rows", [[0], [2], [2, 0, 1], [1, 1], [2, 1]])
def test_counts_do_not_depend_on_the_other_examples(bits, bits_counts, x, rows):
    counts = smoothing.count_votes(
        bits, x[rows], sigma=0.5, num_draws=130, key=KEY, batch_size=100, indices=np.array(rows)
    )
    np.testing.assert_array_equal(counts, bits_counts[rows])


def test_counts_depend_on_key_index_and_sigma(bits, bits_counts, x):
    def count(**changes):
        arguments = {"sigma": 0.5, "num_draws": 130, "key": KEY, "batch_size": 100} | changes
        return smoothing.count_votes(bits, x, **arguments)

    np.testing.assert_array_equal(count(), bits_counts)
    np.testing.assert_array_equal(count(indices=[0, 1, 2]), bits_counts)
    np.testing.assert_array_equal(count(indices=np.arange(3, dtype=np.uint32)), bits_counts)
    for changes in ({"key": jax.random.key(21)}, {"indices": [3, 4, 5]}, {"sigma": 0.6}):
        assert (count(**changes) != bits_counts).any(axis=1).all()


def test_first_draws_are_the_same_whatever_follows(bits, bits_counts, x):
    totals, previous = (7, 100, 101, 130, 200), np.zeros_like(bits_counts)
    for before, total in itertools.pairwise((0, *totals)):
        counts = smoothing.count_votes(bits, x, sigma=0.5, num_draws=total, key=KEY, batch_size=100)
        assert counts.dtype == np.int64
        assert (counts >= previous).all()
        assert ((counts - previous).sum(axis=1) == total - before).all()
        previous = counts


def noised_by_hand(kind: str, series, key, sigma) -> np.ndarray:
    if kind == "float32":
        return series + sigma * np.asarray(jax.random.normal(key, series.shape))
    grid = default_grid(sigma)
    return (to_grid(series, grid) + grid_noise(key, series.shape, sigma, grid)).astype(np.float32)


def by_hand(kind, ensemble, series, index, sigma, num_draws) -> np.ndarray:
    """Algorithm 2 as it is written, one draw and one mask at a time: (n, K) mean logits."""
    network = jax.jit(lambda v: ensemble.model.apply(ensemble.variables, v, train=False))
    means = []
    for draw in range(num_draws):
        key = jax.random.fold_in(jax.random.fold_in(KEY, index), draw)
        noised = noised_by_hand(kind, series, key, sigma)
        logits = [
            np.asarray(network((mask[:, None] * noised)[None]))[0]
            for mask in np.asarray(ensemble.masks)
        ]
        means.append(np.mean(logits, axis=0))
    return np.array(means)


@pytest.mark.parametrize("kind", noise.KINDS)
def test_votes_equal_the_algorithm_by_hand(ensemble, x, kind):
    options = {"sigma": 2.0, "num_draws": 60, "key": KEY, "indices": [4, 0, 9]}
    counts = smoothing.count_votes(ensemble, x, **options, batch_size=300, noise=kind)
    for series, index, found in zip(x, (4, 0, 9), counts, strict=True):
        logits = by_hand(kind, ensemble, series, index, 2.0, 60)
        expected = np.bincount(logits.argmax(axis=1), minlength=3)
        assert (expected > 0).sum() > 1  # the noise does decide
        # Rounding may turn a draw whose best two classes tie; these draws have none.
        best_two = np.sort(logits, axis=1)[:, -2:]
        assert np.diff(best_two, axis=1).min() > 1e-5
        np.testing.assert_array_equal(found, expected)


class FirstChannel(nn.Module):
    """Its logits are the series itself: time is the class."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return x[:, :, 0]


def test_every_row_and_draw_meets_the_same_masks():
    drawn = masks.binomial(KEY, 5, LENGTH, 0.5)
    predict = smoothing.self_ensemble(FirstChannel(), {}, drawn)
    for size in (1, 7):
        rows = predict(jnp.ones((size, LENGTH, 1)))
        np.testing.assert_allclose(rows, np.tile(np.mean(drawn, axis=0), (size, 1)), rtol=1e-6)


def test_masks_cover_the_noise_and_share_it():
    # A step that every mask hides has a logit of exactly 0, whatever the noise; and as all masks
    # but the last are alike, so are their noised series: its logit is 4 times as large at step 1.
    drawn = np.array([[0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 1]], np.float32)
    predict = smoothing.self_ensemble(FirstChannel(), {}, drawn)
    x = np.zeros((200, 3, 1), np.float32)
    counts = smoothing.count_votes(predict, x, sigma=1.0, num_draws=100, key=KEY)
    # Steps 1 and 2 hold a and b/4 with independent standard a and b. Step 0 wins if both are
    # negative: 1/4. Step 2 wins if b > 0 and b/4 > a: (pi/2 + arctan(1/4)) / 2pi.
    p = [0.25, 1 - 0.25 - (np.pi / 2 + np.arctan(0.25)) / (2 * np.pi)]
    p.append(1 - sum(p))
    for total, expected in zip(counts.sum(axis=0), p, strict=True):
        assert_binomial(total, 20_000, expected, error=1e-9)


def test_the_vote_is_the_class_of_the_mean_logits():
    # One mask a member: series of ones, and the mask of member i shows row i of the logits.
    member_logits = np.array(
        [[100, 0, 0], [0, 20, 19.9], [0, 20, 19.9], [0, 0, 20]], dtype=np.float32
    )
    softmax = np.exp(member_logits - member_logits.max(axis=1, keepdims=True))
    softmax /= softmax.sum(axis=1, keepdims=True)
    assert member_logits.mean(axis=0).argmax() == 0
    assert np.bincount(member_logits.argmax(axis=1)).argmax() == 1
    assert softmax.mean(axis=0).argmax() == 2

    class Rows(nn.Module):
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            return x[:, :, 0] @ member_logits

    x = np.ones((2, 4, 1), np.float32)
    of_masks = smoothing.self_ensemble(Rows(), {}, np.eye(4))
    of_members = smoothing.deep_ensemble(Constant(), {"params": {"logits": member_logits}})
    for predict in (of_masks, of_members):
        counts = smoothing.count_votes(predict, x, sigma=1e-3, num_draws=30, key=KEY)
        np.testing.assert_array_equal(counts, [[30, 0, 0]] * 2)


class Constant(nn.Module):
    """Returns its parameter for every series."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        logits = self.param("logits", nn.initializers.zeros, (3,))
        return jnp.broadcast_to(logits, (len(x), 3))


@pytest.fixture(scope="module")
def members(x) -> tuple[dict, ...]:
    return tuple(init(TinyNet(3), x, seed) for seed in range(3))


def test_deep_ensemble_is_the_mean_of_its_members(members, x):
    together = smoothing.deep_ensemble(TinyNet(3), models.stack(members))(x)
    alone = [TinyNet(3).apply(variables, x, train=False) for variables in members]
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-6)


def test_one_mask_of_ones_is_the_network_itself(members, x):
    predict = smoothing.self_ensemble(TinyNet(3), members[0], np.ones((1, LENGTH)))
    alone = TinyNet(3).apply(members[0], x, train=False)
    np.testing.assert_allclose(predict(x), alone, atol=1e-6)


def test_batch_norm_does_not_see_the_batch(members, x):
    """Wild neighbours do not move a series' logits, and statistics of 0 and 1 are used as such."""
    predict = smoothing.self_ensemble(TinyNet(3), members[0], np.ones((1, LENGTH)))
    wild = np.concatenate([x[:1], 1000 * x[1:] + 50])
    np.testing.assert_allclose(predict(wild)[0], predict(x)[0], atol=1e-5)
    shifted = jax.tree.map(lambda leaf: leaf + 1, members[0]["batch_stats"])
    moved = smoothing.self_ensemble(
        TinyNet(3), members[0] | {"batch_stats": shifted}, np.ones((1, LENGTH))
    )
    assert np.abs(moved(x) - predict(x)).max() > 1e-2


def noised_series(kind: str, sigma: float, indices: list[int], num_draws: int) -> np.ndarray:
    """What the network is shown for series of zeros, (indices, draws, T, C), a block an index.

    The last time it is called for an index: before, its rows are looked at.
    """
    seen, blocks = [], []

    def predict(x):
        jax.debug.callback(lambda x: seen.append(np.array(x)), x)
        return x[:, 0]

    for index in indices:
        smoothing.count_votes(
            jax.tree_util.Partial(predict),
            np.zeros((1, LENGTH, 2), np.float32),
            sigma=sigma,
            num_draws=num_draws,
            key=KEY,
            draws_per_block=num_draws,
            indices=[index],
            noise=kind,
        )
        jax.effects_barrier()
        blocks.append(seen[-1])
    return np.stack(blocks)


@pytest.mark.parametrize("kind", noise.KINDS)
def test_noise_is_gaussian_with_deviation_sigma_and_never_repeats(kind):
    drawn = noised_series(kind, 0.5, [0, 7], num_draws=100)
    assert drawn.shape == (2, 100, LENGTH, 2)
    distinct = drawn.size
    if kind == "grid":  # where chance repeats some values
        steps = np.arange(-100_000, 100_000) * default_grid(0.5) / 0.5
        p = np.diff(stats.norm.cdf(steps))
        distinct = (1 - (1 - p) ** drawn.size).sum()
    assert len(np.unique(drawn)) > 0.99 * distinct
    assert len(np.unique(drawn.reshape(200, -1), axis=0)) == 200
    # Within one deviation with probability 0.6827, within two 0.9545. Error probability: 1e-9.
    for deviations, p in ((1, 0.682689492137), (2, 0.954499736104)):
        inside = (np.abs(drawn) < deviations * 0.5).sum()
        assert_binomial(inside, drawn.size, p, error=1e-9)
    for block, index in zip(drawn, (0, 7), strict=True):
        for draw in (0, 1, 99):
            key = jax.random.fold_in(jax.random.fold_in(KEY, index), draw)
            expected = noised_by_hand(kind, np.zeros((LENGTH, 2)), key, 0.5)
            np.testing.assert_allclose(block[draw], expected, rtol=1e-6 * (kind == "float32"))


def test_nothing_compiles_twice(members, x):
    predict = smoothing.self_ensemble(TinyNet(3), members[0], np.ones((2, LENGTH)))
    count = partial(smoothing.count_votes, draws_per_block=100)
    count(predict, x, sigma=1.0, num_draws=100, key=KEY, batch_size=200)
    compiled = blocks.on_device()._cache_size()
    other = smoothing.self_ensemble(TinyNet(3), members[1], np.eye(2, LENGTH))
    count(other, x, sigma=0.3, num_draws=130, key=KEY, batch_size=200)
    count(other, x[:1], sigma=2, num_draws=107, key=jax.random.key(1), batch_size=299, indices=[5])
    assert blocks.on_device()._cache_size() == compiled


def test_nan_from_the_network_is_an_error(members, x):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, members[0])
    predict = smoothing.self_ensemble(TinyNet(3), broken, np.ones((1, LENGTH)))
    with pytest.raises(UserError, match="NaN on 30 of 30 draws of example 8"):
        smoothing.count_votes(predict, x[:1], sigma=1.0, num_draws=30, key=KEY, indices=[8])


def test_nan_on_some_draws_is_an_error():
    def predict(x):
        return jnp.where(x[:, :, 0] > 0, x[:, :, 0], jnp.nan)

    with pytest.raises(UserError, match="NaN") as caught:
        smoothing.count_votes(
            jax.tree_util.Partial(predict),
            np.ones((2, 2, 1)),
            sigma=1.0,
            num_draws=50,
            key=KEY,
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"sigma": sigma}, "sigma") for sigma in (0.0, -1.0, np.nan, np.inf)]
    + [({"num_draws": 0}, "num_draws"), ({"batch_size": 0}, "batch_size")]
    + [({"x": np.zeros((2, 4))}, "shape"), ({"x": np.zeros((2, 4, 1, 1))}, "shape")]
    + [({"x": np.full((2, 4, 1), bad)}, "NaN or infinity") for bad in (np.nan, np.inf, -np.inf)]
    + [({"indices": bad}, "indices") for bad in ([0, -1], [0], [0, 1, 2], [0.0, 1.0], [[0, 1]])],
)
def test_bad_input_is_refused_in_one_line(changes, word):
    def predict(x):
        return x[:, :, 0]

    arguments = {"x": np.zeros((2, 4, 1)), "sigma": 1.0, "num_draws": 10, "key": KEY} | changes
    with pytest.raises(UserError, match=word) as caught:
        smoothing.count_votes(jax.tree_util.Partial(predict), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [np.ones(4), np.full((2, 4), 0.5), np.full((2, 4), np.nan)])
def test_masks_must_be_zeros_and_ones(bad):
    with pytest.raises(UserError, match="masks"):
        smoothing.self_ensemble(FirstChannel(), {}, bad)


@pytest.mark.parametrize("sigma", [0.1, 0.4, 0.7, 0.8, 1.6, 1.0, 3e-5])
def test_the_noise_is_never_below_sigma(sigma):
    rounded = float(noise.round_up(sigma))
    assert sigma <= rounded <= sigma * (1 + 2**-23)


def test_a_plain_function_can_be_counted(x):
    def predict(series):
        return jnp.stack([series.sum(axis=(1, 2)), jnp.zeros(len(series))], axis=-1)

    arguments = {"sigma": 0.5, "num_draws": 100, "key": KEY}
    counts = smoothing.count_votes(predict, x, **arguments)
    partial = smoothing.count_votes(jax.tree_util.Partial(predict), x, **arguments)
    np.testing.assert_array_equal(counts, partial)
