"""The three networks: sizes, shapes, gradients, and that a row's logits are its own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import assert_same

from selfens_jax import models
from selfens_jax.errors import UserError
from selfens_jax.models.layers import max_pool_of_three

NAMES = pytest.mark.parametrize("name", list(models.NAMES))
SIZES = {"inception_time": 420_579, "lstm_fcn": 314_691, "macnn": 8_207_595}


@pytest.fixture(scope="module", params=list(models.NAMES))
def network(request):
    """A network for 3 classes, its variables, series (4, 16, 2), and its compiled forward pass."""
    model = models.create(request.param, num_classes=3)
    x = np.random.default_rng(0).normal(size=(4, 16, 2)).astype(np.float32)

    @jax.jit
    def forward(variables, x):
        logits, updated = model.apply(variables, x, train=False, mutable=["batch_stats"])
        return logits, updated["batch_stats"]

    return model, random_variables(model, x), x, forward


def random_variables(model, x) -> dict:
    """Variables of the usual sizes, without compiling the network's initialization."""
    rng = np.random.default_rng(1)

    def fill(path, leaf):
        if path[-1].key in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        fan_in = leaf.size // leaf.shape[-1] if leaf.ndim > 1 else 100
        return rng.normal(scale=fan_in**-0.5, size=leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree_util.tree_map_with_path(fill, shapes)


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@NAMES
def test_number_of_parameters(name):
    model = models.create(name, num_classes=3)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 128, 1)))
    assert count(variables["params"]) == SIZES[name]


@NAMES
@pytest.mark.parametrize(
    ("length", "channels", "num_classes"), [(7, 1, 3), (60, 1, 60), (128, 3, 2), (300, 2, 5)]
)
def test_logits_have_one_column_per_class(name, length, channels, num_classes):
    model = models.create(name, num_classes=num_classes)
    x = jnp.zeros((5, length, channels))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    logits = jax.eval_shape(lambda v: model.apply(v, x, train=False), variables)
    assert logits.shape == (5, num_classes)
    assert logits.dtype == jnp.float32


def test_logits_are_not_probabilities(network):
    """They are linear in the last layer, so nothing such as a softmax follows it."""
    _, variables, x, forward = network
    params = variables["params"]
    head = jax.tree.map(lambda leaf: -3 * leaf, params["Dense_0"])
    logits = np.asarray(forward(variables, x)[0])
    scaled = np.asarray(forward(variables | {"params": params | {"Dense_0": head}}, x)[0])
    assert logits.shape == (4, 3)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(scaled, -3 * logits, rtol=1e-4, atol=1e-5)
    assert (np.abs(logits.sum(axis=1) - 1) > 1e-3).all()
    assert len(np.unique(logits[:, 0])) == 4  # not one answer for everything


def test_a_row_does_not_depend_on_the_others(network):
    _, variables, x, forward = network
    others = np.concatenate([x[:1], 100 * x[:0:-1]])
    together, elsewhere = (np.asarray(forward(variables, rows)[0]) for rows in (x, others))
    np.testing.assert_allclose(elsewhere[0], together[0], atol=1e-5)
    assert np.abs(elsewhere[1:] - together[1:]).max() > 1e-3


def test_inference_leaves_the_statistics_alone(network):
    _, variables, x, forward = network
    assert_same(forward(variables, x)[1], variables["batch_stats"])


def test_training_reaches_every_parameter_and_statistic(network):
    model, variables, x, _ = network

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient_of(params, key):
        logits, updated = model.apply(
            variables | {"params": params},
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return (logits**2).sum(), (logits, updated["batch_stats"])

    gradient, (logits, statistics) = gradient_of(variables["params"], jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        if not ("Conv" in name and "bias" in name):  # which BatchNorm removes again
            assert np.abs(leaf).max() > 0, name
    before = jax.tree.leaves(variables["batch_stats"])
    for old, new in zip(before, jax.tree.leaves(statistics), strict=True):
        assert np.isfinite(new).all()
        assert (old != new).any()

    # Only LSTM-FCN has dropout.
    _, (others, _) = gradient_of(variables["params"], jax.random.key(1))
    assert (np.asarray(logits) != np.asarray(others)).any() == isinstance(model, models.LSTMFCN)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("length", [9, 16])
def test_pooling_equals_flax(stride, length):
    x = jax.random.normal(jax.random.key(length), (2, length, 3)) - 3  # padding must not win
    weights = jnp.arange(1.0, 2 * 3 * length + 1).reshape(x.shape)[:, : -(-length // stride)]

    def flax(x):
        return nn.max_pool(x, (3,), (stride,), ((1, 1),))

    @jax.jit
    def value_and_gradient(x):
        pooled, pullback = jax.vjp(lambda x: max_pool_of_three(x, stride), x)
        expected, expected_pullback = jax.vjp(flax, x)
        return (pooled, *pullback(weights)), (expected, *expected_pullback(weights))

    found, expected = value_and_gradient(x)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize(("name", "num_classes"), [("resnet", 3), ("", 3), ("macnn", 1)])
def test_bad_names_and_sizes_are_refused_in_one_line(name, num_classes):
    with pytest.raises(UserError) as caught:
        models.create(name, num_classes)
    assert "\n" not in str(caught.value)


def test_compiled_gradients_are_those_of_one_operation_at_a_time():
    # XLA fuses only inside a compiled program. A gradient that rests on exact equality of values
    # computed twice (jnp.maximum's) was off by 20 % of its maximum there; float32 gives 1e-3.
    model = models.create("inception_time", 3)
    x = np.random.default_rng(0).normal(size=(8, 60, 1)).astype(np.float32)
    variables = model.init(jax.random.key(0), x)

    def loss(params):
        logits, _ = model.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return -jax.nn.log_softmax(logits)[jnp.arange(8), jnp.arange(8) % 3].mean()

    compiled = jax.jit(jax.grad(loss))(variables["params"])
    stepwise = jax.grad(loss)(variables["params"])
    for one, other in zip(jax.tree.leaves(compiled), jax.tree.leaves(stepwise), strict=True):
        np.testing.assert_allclose(one, other, atol=0.02 * np.abs(other).max())
