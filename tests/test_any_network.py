"""`training.fit` on networks of a user's own, with BatchNorm and `train` or without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from helpers import assert_same, easy_problem

from selfens_jax import certify, masks, smoothing, streams, training
from selfens_jax.errors import UserError

SIGMA = 0.5


def config(**changes):
    defaults = {"ensemble": "single", "sigma": 0.0, "epochs": 1, "recalibration_passes": 4}
    return training.TrainConfig(**defaults | changes)


class TwoNorms(nn.Module):
    """BatchNorm of the series, then of four sums of them, of another momentum."""

    momenta: tuple[float, float] = (0.5, 0.99)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def norm(which: int) -> nn.BatchNorm:
            return nn.BatchNorm(use_running_average=not train, momentum=self.momenta[which])

        hidden = nn.Dense(4)(norm(0)(x))
        return nn.Dense(2)(nn.relu(norm(1)(hidden)).mean(axis=1))


def refused(call, *says):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for part in says:
        assert part in str(caught.value)


@pytest.fixture(scope="module")
def problem():
    x, y = easy_problem(num_examples=12, length=8)
    return 3 * x + 2, y


@pytest.mark.parametrize("momenta", [(0.5, 0.99), (0.0, 0.999)], ids=str)
def test_statistics_are_those_of_the_batch_whatever_the_momentum(momenta, problem):
    x, y = problem
    ((variables,), _) = training.fit(TwoNorms(momenta), x, y, config())
    # Without noise and masks, every pass is the one batch that holds all series.
    statistics, params = variables["batch_stats"], variables["params"]
    first, second = statistics["BatchNorm_0"], statistics["BatchNorm_1"]
    mean, variance = x.mean(axis=(0, 1)), x.var(axis=(0, 1))
    np.testing.assert_allclose(first["mean"], mean, rtol=1e-4)
    np.testing.assert_allclose(first["var"], variance, rtol=1e-4)
    scaled = (x - mean) / np.sqrt(variance + 1e-5)
    scaled = scaled * params["BatchNorm_0"]["scale"] + params["BatchNorm_0"]["bias"]
    hidden = scaled @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    np.testing.assert_allclose(second["mean"], hidden.mean(axis=(0, 1)), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(second["var"], hidden.var(axis=(0, 1)), rtol=1e-3)


def test_statistics_are_averages_over_batches(problem):
    x, y = problem
    settings = config(batch_size=6, recalibration_passes=2)  # the two batches of one epoch
    ((variables,), _) = training.fit(TwoNorms(), x, y, settings)
    statistics = variables["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(statistics["mean"], x.mean(axis=(0, 1)), rtol=1e-4)
    # The total variance is the mean variance in a batch and the variance of the batches' means.
    assert 0.5 * x.var() < statistics["var"].item() < x.var()


def test_a_network_with_its_own_batch_norm_is_certified_with_the_statistics(problem):
    x, y = problem
    ((variables,), _) = training.fit(TwoNorms(), x, y, config(epochs=60, sigma=SIGMA))
    settings = {"sigma": SIGMA, "num_draws": 100}
    found = certify(TwoNorms(), x, variables=variables, **settings)
    assert (found.prediction == y).mean() > 0.9

    def predict(v):
        return TwoNorms().apply(variables, v, train=False)

    same = certify(predict, x, **settings)
    np.testing.assert_array_equal(same.prediction, found.prediction)
    np.testing.assert_array_equal(same.radius, found.radius)


class Plain(nn.Module):
    num: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.num)(x.mean(axis=1))


def test_a_network_without_batch_norm_and_train(problem):
    x, y = problem
    settings = config(ensemble="mc", sigma=SIGMA, epochs=100, learning_rate=0.1)
    ((variables,), history) = training.fit(Plain(), x, 1 - y, settings)
    assert variables["batch_stats"] == {}
    assert history[-1]["loss"] < 0.1 < history[0]["loss"]
    fixed = masks.continuous(streams.stream(0, "masks"), num_masks=2, length=8, keep=0.9)
    ensemble = smoothing.self_ensemble(Plain(), variables, fixed)
    found = certify(ensemble, x, sigma=SIGMA, num_draws=100)
    np.testing.assert_array_equal(found.prediction, 1 - y)


def test_seeds_repeat(problem):
    x, y = problem
    first, again, other = (
        training.fit(Plain(), x, y, config(sigma=SIGMA, epochs=2, seed=seed)) for seed in (3, 3, 4)
    )
    assert_same(first[0], again[0])
    assert first[1] == again[1]
    assert first[1] != other[1]


class Told(nn.Module):
    """In training it is surely wrong about class 0, afterwards never."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        wrong = 50.0 if train else -50.0
        return nn.Dense(2)(x.mean(axis=1)) + jnp.array([0.0, wrong])


def test_train_is_true_in_training_and_false_afterwards(problem):
    """Although it has no default here."""
    x, y = problem
    ((variables,), history) = training.fit(Told(), x / 10, 0 * y, config())
    assert history[0]["loss"] > 40
    found = certify(Told(), x / 10, sigma=SIGMA, num_draws=100, variables=variables)
    assert (found.prediction == 0).all()


def test_more_logits_than_labels_are_fine_and_fewer_are_refused(problem):
    x, y = problem
    ((variables,), _) = training.fit(Plain(4), x, y, config())
    assert variables["params"]["Dense_0"]["bias"].shape == (4,)
    refused(lambda: training.fit(Plain(2), x, y + 1, config()), "(2,)", "at least 3", "reach 2")
    refused(lambda: training.fit(Plain(1), x, 0 * y, config()), "(1,)", "at least 2")


def without_default(name):
    namespace = {}
    exec(f"def call(self, x, {name}):\n    return x.mean(axis=1)", namespace)
    return type("Net", (nn.Module,), {"__call__": namespace["call"]})()


class Frozen(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(2)(nn.BatchNorm(use_running_average=True)(x).mean(axis=1))


class Spectral(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return nn.SpectralNorm(nn.Dense(2))(x, update_stats=train).mean(axis=1)


class Remembers(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        self.variable("cache", "last", jnp.zeros, (1,))
        return nn.Dense(2)(x.mean(axis=1))


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, int]:
        return nn.Dense(2)(x.mean(axis=1)), 0


NO_NETWORKS = {
    "a switch by another name": (without_default("training=False"), "an argument training;"),
    "a switch the other way round": (without_default("deterministic"), "argument deterministic;"),
    "a further argument": (without_default("lengths"), "an argument lengths;"),
    "BatchNorm that is never in training": (Frozen(), "['mean'] is not updated in training"),
    "statistics of another kind": (Spectral(), "is not updated in training as BatchNorm's is"),
    "BatchNorm that keeps what it has": (TwoNorms((1.0, 0.5)), "is not updated in training"),
    "another collection": (Remembers(), "the variables cache"),
    "two answers": (Pair(), "a tuple"),
    "a list": (nn.Sequential([nn.Dense(2)]), "Sequential holds a list", "give it tuples"),
    "a function": (jnp.sum, "must be a Flax Linen module", "function"),
    "an NNX module": (nnx.Linear(8, 2, rngs=nnx.Rngs(0)), "must be a Flax Linen module", "Linear"),
}


@pytest.mark.parametrize("network", NO_NETWORKS.values(), ids=NO_NETWORKS)
def test_a_network_that_cannot_be_trained_is_refused_before_it_is(network, problem, monkeypatch):
    model, *says = network
    monkeypatch.setattr(training, "_advance", None)
    refused(lambda: training.fit(model, *problem, config()), *says)


def test_other_statistics_are_kept_where_none_are_estimated_again(problem):
    ((variables,), _) = training.fit(Spectral(), *problem, config(recalibration_passes=0))
    (state,) = training.init_states(training.Trainer(Spectral(), config(), 12), problem[0])
    sigma = variables["batch_stats"]["SpectralNorm_0"]["Dense_0/kernel/sigma"]
    assert sigma != state.batch_stats["SpectralNorm_0"]["Dense_0/kernel/sigma"]
    assert sigma > 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda x, y: (x[:, :, 0], y),
            "x must be (examples, time, channels), not of shape (12, 8)",
        ),
        (lambda x, y: (np.where(x > 2, np.nan, x), y), "NaN"),
        (lambda x, y: (x[:0], y[:0]), "each of 0 series"),
        (lambda x, y: (x, y[:-1]), "each of 12 series, not int64 of shape (11,)"),
        (lambda x, y: (x, y[:, None]), "shape (12, 1)"),
        (lambda x, y: (x, y.astype(str)), "np.unique"),
        (lambda x, y: (x, y.astype(float)), "float64"),
        (lambda x, y: (x, y > 0), "bool"),
        (lambda x, y: (x, y - 1), "from 0"),
    ],
)
def test_series_and_labels_that_do_not_fit_are_refused(change, says, problem):
    refused(lambda: training.fit(Plain(), *change(*problem), config()), says)


def test_lists_are_trained_on_as_arrays_are(problem):
    x, y = problem
    expected = training.fit(Plain(), x, y, config())
    assert_same(training.fit(Plain(), x.tolist(), y.tolist(), config())[0], expected[0])
