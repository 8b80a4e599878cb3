"""What a user's own classifier may be: logits (B, K) of one fixed function of single series."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import TinyNet, init, mesh_of
from scipy.stats import norm

from selfens_jax import attacks, certificates, smoothing
from selfens_jax.errors import UserError

KEY = jax.random.key(3)
X = np.zeros((2, 6, 1), np.float32)
SIGMA = 0.4


def count(predict, x=X, num_draws=200, **more):
    return smoothing.count_votes(predict, x, sigma=SIGMA, num_draws=num_draws, key=KEY, **more)


def good(v):
    return jnp.stack([v[:, 0, 0], -v[:, 0, 0]], axis=-1)


def numpy_good(v):
    return np.stack([v[:, 0, 0], -v[:, 0, 0]], axis=-1).astype(np.float32)


def through_callback(v):
    return jax.pure_callback(numpy_good, jax.ShapeDtypeStruct((len(v), 2), jnp.float32), v)


class Single(nn.Module):
    """A network whose logits have the given further shape."""

    shape: tuple[int, ...]

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return jnp.broadcast_to(
            x[:, 0, 0].reshape(-1, *[1] * len(self.shape)), (len(x), *self.shape)
        )


OF_WRONG_FORM = {
    "a further axis": (lambda v: good(v)[:, None], "(20, 1, 2)", "drop the axis"),
    "members first": (lambda v: jnp.stack([good(v)] * 3), "(3, 20, 2)", "average over the members"),
    "one member first": (lambda v: good(v)[None], "(1, 20, 2)", "average over the members"),
    "channels kept": (lambda v: v, "(20, 6, 1)", "drop the axis"),
    "whole scores": (lambda v: good(v).astype(jnp.int32), "int32 of shape (20, 2)", "one_hot"),
    "truth values": (lambda v: good(v) > 0, "bool of shape (20, 2)", "one_hot"),
    "complex": (lambda v: good(v) + 0j, "complex64", "return scores"),
    "one score, a vector": (lambda v: v[:, 0, 0], "float32 of shape (20,)", "jnp.stack([-z, z]"),
    "one score, a column": (lambda v: v[:, 0], "float32 of shape (20, 1)", "jnp.stack([-z, z]"),
    "no class": (lambda v: good(v)[:, :0], "(20, 0)", "one column for each class"),
    "one number": (lambda v: v.sum(), "float32 of shape ()", "one row for each series"),
    "fewer rows": (lambda v: good(v)[1:], "(19, 2)", "one row for each series"),
    "one row": (lambda v: good(v).mean(axis=0, keepdims=True), "(1, 2)", "one row for each"),
    "four axes": (lambda v: good(v)[None, None], "(1, 1, 20, 2)", "one row for each series"),
    "a tuple": (lambda v: (good(v), 0), "a tuple", "return the logits alone"),
    "a list": (lambda v: [good(v)], "a list", "return the logits alone"),
    "a dictionary": (lambda v: {"logits": good(v)}, "a dict", "return the logits alone"),
    "nothing": (lambda v: None, "a NoneType", "return the logits alone"),
    "a network of one logit": (
        smoothing.self_ensemble(Single((1,)), {}, np.ones((1, 6))),
        "float32 of shape (20, 1)",
        "jnp.stack([-z, z]",
    ),
    "a network of a further axis": (
        smoothing.self_ensemble(Single((1, 2)), {}, np.ones((3, 6))),
        "(20, 1, 2)",
        "drop the axis",
    ),
}


@pytest.mark.parametrize(("predict", "came", "remedy"), OF_WRONG_FORM.values(), ids=OF_WRONG_FORM)
def test_only_logits_are_counted(predict, came, remedy):
    with pytest.raises(UserError, match="needed are logits") as caught:
        count(predict)
    assert came in str(caught.value)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)
    for other in (
        lambda: smoothing.draw_logits(predict, X, sigma=SIGMA, num_draws=20, key=KEY),
        lambda: attacks.prediction(predict, X),
        lambda: attacks.pgd_l2(predict, X, np.zeros(2, int), epsilon=1.0, key=KEY),
    ):
        with pytest.raises(UserError, match="predict returned"):
            other()


def test_the_average_over_draws_is_not_a_vote():
    """A further axis once gave a radius of 0.2 where 0.05 is true: its rows were averaged."""
    x = np.zeros((400, 6, 1), np.float32)
    x[:, 0, 0] = 0.05
    counts = count(good, x, num_draws=1000)
    share = norm.cdf(0.05 / SIGMA)
    assert abs(counts[:, 0].mean() / 1000 - share) < 6 * np.sqrt(share * (1 - share) / 400_000)
    found = certificates.certify_counts(counts, SIGMA, alpha=0.05)
    false = (found.prediction == 1) | (found.radius > 0.05 * (1 + 1e-6))
    assert false.mean() < 0.1


def test_functions_of_numpy_are_counted_on_the_host_or_through_a_callback():
    expected = count(good)
    np.testing.assert_array_equal(count(numpy_good), expected)
    np.testing.assert_array_equal(count(numpy_good, mesh=mesh_of(2)), expected)
    np.testing.assert_array_equal(count(through_callback), expected)
    np.testing.assert_array_equal(count(through_callback, mesh=mesh_of(2)), expected)


def test_a_function_that_fails_is_named_with_what_it_said():
    def predict(v):
        raise KeyError("batch_stats")

    with pytest.raises(UserError, match=r"fails on float32 series .*KeyError: 'batch_stats'"):
        count(predict)


def test_a_consensus_is_needed_where_one_is_counted():
    with pytest.raises(UserError, match=r"smoothing\.consensus"):
        smoothing.count_consensus_votes(good, X, sigma=SIGMA, num_draws=20, key=KEY)


def test_masks_fit_the_series():
    predict = smoothing.self_ensemble(Single((2,)), {}, np.ones((2, 1)))
    with pytest.raises(UserError, match="masks are for 1 time steps, the series have 6"):
        count(predict)


# One function of single series


class BatchNormed(nn.Module):
    """A user's network with BatchNorm left in training mode: every row sees the others."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = nn.BatchNorm(use_running_average=False)(nn.Dense(4)(x[:, :, 0]))
        return nn.Dense(2)(y)


def batch_normed():
    model = BatchNormed()
    apply = lambda variables, v: model.apply(variables, v, mutable=["batch_stats"])[0]  # noqa: E731
    return jax.tree_util.Partial(apply, init(model, X))


class MixedMembers(nn.Module):
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return good(x - x.mean(axis=0))


calls = iter(range(10**6))


def drifting(v):
    shape = jax.ShapeDtypeStruct((len(v), 2), jnp.float32)
    first = np.array([1, 0], np.float32)
    return jax.pure_callback(lambda v: numpy_good(v) + next(calls) * first, shape, v)


def dropout(v):
    def f(v):
        return numpy_good(v) * np.random.default_rng().integers(0, 2, (len(v), 2), np.int64)

    shape = jax.ShapeDtypeStruct((len(v), 2), jnp.float32)
    return jax.pure_callback(lambda v: f(v).astype(np.float32), shape, v)


MIXING = {
    "batch norm in training mode": batch_normed(),
    "minus the mean of the batch": lambda v: good(v - v.mean(axis=0)),
    "divided by the largest of the batch": lambda v: good(v) / jnp.abs(v).max(),
    "softmax over the batch": lambda v: jax.nn.softmax(good(v), axis=0),
    "the row before": lambda v: good(v + 0.1 * jnp.roll(v, 1, axis=0)),
    "only the first row": lambda v: good(v).at[0].set(good(v).mean(axis=0)),
    "only the last row": lambda v: good(v).at[-1].add(good(v)[3]),
    "sorted rows": lambda v: jnp.sort(good(v), axis=0),
    "the row's number": lambda v: good(v) + jnp.arange(len(v))[:, None] * jnp.array([1.0, 0]),
    "transposed": lambda v: v[:, :1, 0] * v[:, :1, 0].T,
    "every second row is normalised with its like": lambda v: good(
        jnp.stack([v[0::2] - v[0::2].mean(0), v[1::2] - v[1::2].mean(0)], 1).reshape(v.shape)
    ),
    "four ghost batches": lambda v: good(
        (v.reshape(5, 4, *v.shape[1:]) - v.reshape(5, 4, *v.shape[1:]).mean(0)).reshape(v.shape)
    ),
    "two rows further": lambda v: good(v + 0.1 * jnp.roll(v, 2, axis=0) + jnp.roll(v, -2, axis=0)),
    "a place that is alike from both ends": lambda v: (
        good(v) + jnp.abs(jnp.arange(len(v)) - 9.5)[:, None] * jnp.array([1.0, 0])
    ),
    "beside a class that is ruled out": lambda v: jnp.pad(
        good(v - v.mean(axis=0)), ((0, 0), (0, 1)), constant_values=-1e9
    ),
    "beside a class of the least number": lambda v: jnp.pad(
        good(v - v.mean(axis=0)),
        ((0, 0), (0, 1)),
        constant_values=float(jnp.finfo(jnp.float32).min),
    ),
    "the first draws' median": lambda v: good(v - jnp.median(v[:7], axis=0)),
    "other logits at every call": drifting,
    "dropout left on": dropout,
    "an ensemble of such networks": smoothing.self_ensemble(MixedMembers(), {}, np.ones((3, 6))),
    "a consensus of such networks": smoothing.consensus(
        smoothing.self_ensemble(MixedMembers(), {}, np.ones((3, 6))), 2
    ),
}


@pytest.mark.parametrize("predict", MIXING.values(), ids=MIXING)
def test_rows_that_depend_on_each_other_are_refused(predict):
    with pytest.raises(UserError, match="not one classifier") as caught:
        count(predict)
    assert "\n" not in str(caught.value)
    if isinstance(predict, smoothing.Consensus):
        with pytest.raises(UserError, match="not one classifier"):
            smoothing.count_consensus_votes(predict, X, sigma=SIGMA, num_draws=20, key=KEY)


ONE_CLASSIFIER = {
    "constant": lambda v: jnp.tile(jnp.array([0.0, 1.0]), (len(v), 1)),
    "a NumPy constant": lambda v: np.tile(np.array([0.0, 1.0], np.float32), (20, 1)),
    "labels as scores": lambda v: jax.nn.one_hot((v[:, 0, 0] > 0).astype(int), 2),
    "a class ruled out": lambda v: jnp.pad(good(v), ((0, 0), (0, 1)), constant_values=-jnp.inf),
    "bfloat16": lambda v: good(v).astype(jnp.bfloat16),
    "batch norm with its averages": jax.tree_util.Partial(
        lambda variables, v: TinyNet(2).apply(variables, v, train=False), init(TinyNet(2), X)
    ),
    "a consensus": smoothing.consensus(
        smoothing.self_ensemble(TinyNet(2), init(TinyNet(2), X), np.eye(4, 6)), 2
    ),
}


@pytest.mark.parametrize("predict", ONE_CLASSIFIER.values(), ids=ONE_CLASSIFIER)
def test_one_function_of_single_series_is_counted(predict):
    assert (count(predict, num_draws=20).sum(axis=1) == 20).all()


def test_a_classifier_that_changes_is_counted_as_it_is():
    """JAX keeps the programs of functions by their names, and with them their weights of then."""

    class Net:
        weight, mixes = 1.0, False

        def __call__(self, v):
            return good(self.weight * (v - v.mean(axis=0) if self.mixes else v))

        def predict(self, v):
            return self(v)

    net = Net()
    x = X + 0.3
    for predict in (net, net.predict, lambda v: net(v)):
        net.weight, net.mixes = 1.0, False
        before = count(predict, x)
        assert (before[:, 0] > before[:, 1]).all()
        net.weight = -1.0
        np.testing.assert_array_equal(count(predict, x), before[:, ::-1])
        net.mixes = True
        with pytest.raises(UserError, match="not one classifier"):
            count(predict, x)


def test_what_a_leaf_switches_on_is_seen():
    def predict(flag, v):
        return good(jnp.where(flag, v - v.mean(axis=0), v))

    count(jax.tree_util.Partial(predict, jnp.array(False)))
    with pytest.raises(UserError, match="not one classifier"):
        count(jax.tree_util.Partial(predict, jnp.array(True)))


@pytest.mark.parametrize("predict", ["predict", np.eye(2), None, {"params": 1}], ids=str)
def test_what_cannot_be_called_is_refused(predict):
    with pytest.raises(UserError, match="predict must be a function of series"):
        count(predict)


def test_a_callback_that_fails_is_one_line():
    def of(function):
        shape = jax.ShapeDtypeStruct((20, 2), jnp.float32)
        return lambda v: jax.pure_callback(function, shape, v)

    for function in (lambda v: 1 / 0, lambda v: np.zeros((3, 2), np.float32)):
        with pytest.raises(UserError, match="predict fails on float32 series") as caught:
            count(of(function))
        assert "\n" not in str(caught.value)
        assert "Traceback" not in str(caught.value)
    with pytest.raises(UserError, match=r"ZeroDivisionError: division by zero$"):
        count(of(lambda v: 1 / 0))


@pytest.mark.parametrize(
    "changes",
    [{"num_draws": bad} for bad in (40.0, "40", None, True, 0)]
    + [{"batch_size": bad} for bad in (2.5, "a", 0, True)]
    + [{"draws_per_block": bad} for bad in (2.5, "a", 0)]
    + [{"first_draw": bad} for bad in (2.5, "a", -1)]
    + [{"sigma": bad} for bad in ("0.4", None, True, np.array([0.4]), 0, -1.0)]
    + [{"mesh": "cpu"}]
    + [
        {"key": bad}
        for bad in (
            0,
            None,
            "a",
            np.random.default_rng(),
            jax.random.split(KEY),
            jax.random.key(0, impl="rbg"),
            jax.random.key(0, impl="unsafe_rbg"),
        )
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_argument_of_the_wrong_kind_is_one_line(changes):
    (name,) = changes
    with pytest.raises(UserError, match=name) as caught:
        smoothing.count_votes(good, X, **{"sigma": SIGMA, "num_draws": 20, "key": KEY} | changes)
    assert "\n" not in str(caught.value)


def test_numbers_may_be_of_numpy_and_jax():
    expected = count(good, num_draws=20)
    for sigma in (np.float64(SIGMA), np.array(SIGMA)):
        arguments = {"sigma": sigma, "num_draws": np.int64(20), "key": KEY}
        np.testing.assert_array_equal(smoothing.count_votes(good, X, **arguments), expected)
    count_of = {"sigma": jnp.float32(SIGMA), "num_draws": 20, "key": jax.random.PRNGKey(3)}
    np.testing.assert_array_equal(smoothing.count_votes(good, X, **count_of), expected)


def test_rows_are_looked_at_once_a_call():
    seen = []

    def predict(v):
        jax.debug.callback(lambda _: seen.append(1), v[0, 0, 0])
        return good(v)

    for blocks in (1, 5):  # one alone, two looks at two changes each, and then the blocks
        seen.clear()
        count(predict, X[:1], num_draws=20 * blocks)
        jax.effects_barrier()
        assert len(seen) == 5 + blocks


# Series that float32 cannot hold finely enough


def at(offset: float, spread: float = 1.0) -> np.ndarray:
    return offset + spread * np.random.default_rng(0).normal(size=(2, 6, 1))


@pytest.mark.parametrize(
    "x", [at(1e9), at(-1e9), at(3e5), np.full((2, 6, 1), 10**9), at(1e30, 1e29), at(0, 1e9)]
)
def test_noise_below_the_steps_of_float32_is_refused(x):
    with pytest.raises(UserError, match="step of float32") as caught:
        count(good, x)
    assert f"against sigma {SIGMA:g}" in str(caught.value)
    assert ("subtract a constant" in str(caught.value)) == (np.abs(x).max() > np.ptp(x))
    if np.abs(x).max() >= 1e8:
        with pytest.raises(UserError, match="no attack can move it"):
            attacks.pgd_l2(good, x, np.zeros(2, int), epsilon=1.0, key=KEY)
    with pytest.raises(UserError, match="step of float32"):
        attacks.pgd_l2(good, x, np.zeros(2, int), epsilon=1e24, key=KEY, sigma=SIGMA)


@pytest.mark.parametrize("sigma", [1e-37, 1e-38, 1e-45])
def test_noise_that_is_taken_for_zero_is_refused(sigma):
    with pytest.raises(UserError, match="step of float32"):
        smoothing.count_votes(good, X, sigma=sigma, num_draws=20, key=KEY)


def test_sums_that_overflow_are_refused():
    with pytest.raises(UserError, match="overflow float32"):
        smoothing.count_votes(good, X, sigma=1e38, num_draws=20, key=KEY)
    with pytest.raises(UserError, match="float32 cannot hold"):
        count(good, at(1e39))


def test_each_channel_has_a_constant_of_its_own():
    x = np.concatenate([at(5), at(1e9), at(-3e8)], axis=2)
    with pytest.raises(UserError, match=r"from each channel of all series, such as 5\.\S*, 1e\+09"):
        count(good, x)


def test_the_limit_is_a_64th_of_sigma():
    # From 2^20 on the step is 1/8: enough for a sigma of 8, not for less.
    x = np.full((1, 6, 1), 2.0**20)
    options = {"num_draws": 20, "key": KEY, "noise": "float32"}
    assert smoothing.count_votes(good, x, sigma=8.0, **options).sum() == 20
    with pytest.raises(UserError, match=r"0\.125, is not small against sigma 7\.9"):
        smoothing.count_votes(good, x, sigma=7.9, **options)
    # Noise on a grid needs one on which sums are exact, and says which.
    with pytest.raises(UserError, match=r"take the grid 0\.125"):
        smoothing.count_votes(good, x, sigma=8.0, num_draws=20, key=KEY)
    counts = smoothing.count_votes(good, x, sigma=8.0, num_draws=20, key=KEY, grid=0.125)
    assert counts.sum() == 20


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.ma.masked_invalid(np.where(X == 0, np.nan, X)), "under a mask"),
        (X.astype(complex), "real numbers, not complex"),
        (X.astype(str), "real numbers"),
        (X.astype(object), "real numbers, not object"),
        ([[[0.0], [1.0]], [[0.0]]], "one array"),
    ],
)
def test_what_is_no_series_is_refused(x, says):
    with pytest.raises(UserError, match=says):
        count(good, x)
