"""`certify` on every kind of classifier, and `training.fit` on networks of a user's own.

One function gets the same votes whatever it is written in. Where its arithmetic is exact, exactly:
noise lies on a grid of 2^-14 here and stays below 8, so series hold at most 2^17 steps, and their
sums of products with whole weights up to 3 at most 12 * 3 * 2^17 < 2^24 steps, which float32 holds
exactly in any order of summation.
"""

import dataclasses
import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from helpers import init

from selfens_jax import certify, smoothing, streams
from selfens_jax.certificates import certify_counts
from selfens_jax.certification import count_votes
from selfens_jax.classifiers import HostClassifier, as_classifier, check_classifier
from selfens_jax.errors import UserError

SIGMA, DRAWS = 0.5, 200
RNG = np.random.default_rng(0)
X = np.round(RNG.normal(size=(3, 12, 1)) * 2**14) / 2**14  # on the grid of the noise
WEIGHTS = RNG.integers(-3, 4, size=(12, 3)).astype(np.float32)
KEY = streams.stream(0, "certification")


def votes(predict, x=X, **more):
    variables, num_classes = more.pop("variables", None), more.pop("num_classes", None)
    settings = {"sigma": SIGMA, "num_draws": DRAWS, "key": KEY} | more
    return count_votes(as_classifier(predict, variables, num_classes), x, **settings)


def on_host(x: np.ndarray) -> np.ndarray:
    """Scores (B, 3); JAX cannot trace it."""
    return np.asarray(x)[:, :, 0] @ WEIGHTS


def for_jax(x):
    return x[:, :, 0] @ jnp.asarray(WEIGHTS)


@pytest.fixture(scope="module")
def expected():
    """Votes of the linear map: argmax of float64 products with the series that it was shown."""
    seen = []

    def predict(x):
        seen.append(np.asarray(x).copy())
        return on_host(x)

    counts = votes(predict)
    shown = np.concatenate(seen[-3 * DRAWS // 20 :])  # what came before was only looked at
    noise = shown.reshape(3, DRAWS, 12) - X[:, None, :, 0]
    assert abs(noise.std() / SIGMA - 1) < 6 / np.sqrt(2 * noise.size)
    classes = (shown.astype(np.float64)[:, :, 0] @ WEIGHTS).argmax(axis=1).reshape(3, DRAWS)
    np.testing.assert_array_equal(counts, [np.bincount(row, minlength=3) for row in classes])
    assert (counts > 0).sum() >= 6  # the classes are not a foregone conclusion
    return counts


# One function, in all that it can be written in


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3, use_bias=False)(x[:, :, 0])


class NnxLinear(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(12, 3, use_bias=False, rngs=nnx.Rngs(0))
        self.linear.kernel[...] = jnp.asarray(WEIGHTS)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x[:, :, 0])


class Model:
    """As Keras has them: called with further arguments that have defaults."""

    def __call__(self, x, training=False, mask=None):
        return on_host(x)

    def scores(self, x):
        return on_host(x)


@dataclasses.dataclass
class Unhashable:
    weights: np.ndarray

    def __call__(self, x):
        return np.asarray(x)[:, :, 0] @ self.weights


VARIABLES = {"params": {"Dense_0": {"kernel": jnp.asarray(WEIGHTS)}}}
SEQUENTIAL = nn.Sequential([lambda x: x[:, :, 0], nn.Dense(3, use_bias=False)])
WRITTEN_IN = {
    "NumPy": on_host,
    "JAX": for_jax,
    "JAX, compiled": jax.jit(for_jax),
    "a pytree": jax.tree_util.Partial(lambda w, x: x[:, :, 0] @ w, jnp.asarray(WEIGHTS)),
    "Linen": (Linear(), VARIABLES),
    "Linen with a list": (SEQUENTIAL, {"params": {"layers_1": {"kernel": jnp.asarray(WEIGHTS)}}}),
    "Linen's apply": functools.partial(Linear().apply, VARIABLES),
    "NNX": NnxLinear(),
    "float64": lambda x: on_host(x).astype(np.float64),
    "float16": lambda x: (on_host(x) == on_host(x).max(axis=1, keepdims=True)).astype(np.float16),
    "an object": Model(),
    "a method": Model().scores,
    "a partial": functools.partial(lambda factor, x: factor * on_host(x), 2.0),
    "arguments with defaults": lambda x, scale=4.0: scale * on_host(x),
    "what has no hash": Unhashable(WEIGHTS),
    "a jax array of the host": lambda x: jnp.asarray(on_host(x)),
    "a function that changes its input": lambda x: on_host(np.multiply(x, 2, out=np.asarray(x))),
    "a branch": lambda x: for_jax(x) if x.sum() > -np.inf else None,
}


@pytest.mark.parametrize(
    ("name", "on_device"),
    [("JAX, compiled", True), ("a pytree", True), ("Linen", True), ("an object", False)],
)
def test_what_jax_can_trace_is_counted_in_its_programs(name, on_device):
    """Called on the host it would have the same votes, at many times the cost."""
    given = WRITTEN_IN[name]
    predict = as_classifier(*given) if isinstance(given, tuple) else as_classifier(given)
    found, num_classes = check_classifier(predict, X.astype(np.float32), SIGMA, 20, "float32")
    assert isinstance(found, HostClassifier) is not on_device
    assert num_classes == 3


@pytest.mark.parametrize("predict", WRITTEN_IN.values(), ids=WRITTEN_IN)
def test_one_function_gets_the_same_votes_whatever_it_is_written_in(predict, expected):
    predict, variables = predict if isinstance(predict, tuple) else (predict, None)
    before = X.copy()
    np.testing.assert_array_equal(votes(predict, variables=variables), expected)
    np.testing.assert_array_equal(X, before)


def test_functions_of_torch_and_tables_of_pandas_too(expected):
    torch = pytest.importorskip("torch", reason="needs PyTorch: python -m pip install torch")
    weights = torch.tensor(WEIGHTS)
    np.testing.assert_array_equal(votes(lambda x: torch.from_numpy(x)[:, :, 0] @ weights), expected)
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    np.testing.assert_array_equal(votes(lambda x: pandas.DataFrame(on_host(x))), expected)


def best(x):
    return on_host(x).argmax(axis=1)


CLASS_INDICES = {
    "NumPy": best,
    "eight bits": lambda x: best(x).astype(np.uint8),
    "of a function that JAX could trace": lambda x: (x[:, :, 0] @ WEIGHTS).argmax(axis=1),
    "of JAX": jax.jit(lambda x: for_jax(x).argmax(axis=1)),
}


@pytest.mark.parametrize("predict", CLASS_INDICES.values(), ids=CLASS_INDICES)
def test_class_indices_are_votes(predict, expected):
    counts = votes(predict)
    np.testing.assert_array_equal(counts[:, :3], expected)
    assert counts.sum() == expected.sum()
    np.testing.assert_array_equal(votes(predict, num_classes=3), expected)


def test_more_than_256_classes_are_said():
    with pytest.raises(UserError, match="to below num_classes = 256") as caught:
        votes(lambda x: 299 + best(x))
    assert "\n" not in str(caught.value)
    counts = votes(lambda x: 299 + best(x), num_classes=302)
    np.testing.assert_array_equal(counts[:, 299:], votes(on_host))
    with pytest.raises(UserError, match="num_classes must be a whole number of at least 2"):
        votes(best, num_classes=1)
    with pytest.raises(UserError, match="class indices from -1"):
        votes(lambda x: best(x) - 1)


def test_certificates_are_those_of_the_votes(expected):
    found = certify(on_host, X[:, :, 0], sigma=SIGMA, num_draws=DRAWS)
    bare = certify_counts(expected, SIGMA)
    np.testing.assert_array_equal(found.prediction, bare.prediction)
    # Rounding to the grid, 2^-14, takes that much times sqrt(12) off a radius.
    np.testing.assert_allclose(
        found.radius, np.maximum(bare.radius - 12**0.5 / 2**14, 0), rtol=1e-6
    )
    assert (found.prediction >= 0).any()


def test_networks_get_the_same_votes_as_their_host_copies():
    """Sums in another order: of 600 votes at most 2 may differ, where two logits nearly tie."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            hidden = nn.relu(nn.Dense(8)(x[:, :, 0]))
            return nn.Dense(3)(hidden)

    variables = init(Net(), X)
    first, second = (variables["params"][f"Dense_{i}"] for i in range(2))

    def copy(x):
        hidden = np.maximum(np.asarray(x)[:, :, 0] @ first["kernel"] + first["bias"], 0)
        return np.asarray(hidden @ second["kernel"] + second["bias"])

    class NnxNet(nnx.Module):
        def __init__(self):
            self.first = nnx.Linear(12, 8, rngs=nnx.Rngs(0))
            self.second = nnx.Linear(8, 3, rngs=nnx.Rngs(0))
            for layer, values in ((self.first, first), (self.second, second)):
                layer.kernel[...], layer.bias[...] = values["kernel"], values["bias"]

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.second(nnx.relu(self.first(x[:, :, 0])))

    counts = votes(Net(), variables=variables)
    assert (counts > 20).sum() >= 4
    whole = smoothing.self_ensemble(Net(), variables, np.ones((1, 12)))
    for predict in (copy, NnxNet(), whole):
        assert np.abs(votes(predict) - counts).sum() / 2 <= 2


def test_scores_of_float32_are_handed_on_as_they_are():
    given = np.array([[0.1, 3.0], [-7.0, 1e-3]], np.float32)
    np.testing.assert_array_equal(HostClassifier(lambda _: given)(np.zeros((2, 4, 1))), given)


def test_wide_scores_keep_their_largest():
    """In float32 these would all tie, and the first class be certified for every series."""
    plain = votes(on_host)
    for offset in (1e9, -1e9, 1e12):
        np.testing.assert_array_equal(votes(lambda x, o=offset: on_host(x) + np.float64(o)), plain)
    tiny = votes(lambda x: on_host(x).astype(np.float64) * 1e-30 + 1e-3)
    assert (tiny != plain).any()  # float64 itself cannot tell these apart
    ruled_out = votes(lambda x: np.pad(on_host(x) + np.float64(1e9), ((0, 0), (0, 1)), "constant"))
    np.testing.assert_array_equal(ruled_out[:, :3], plain)
    infinite = votes(
        lambda x: np.pad(
            on_host(x) + np.float64(1e9), ((0, 0), (0, 1)), "constant", constant_values=-np.inf
        )
    )
    np.testing.assert_array_equal(infinite[:, :3], plain)


# What is refused, in one line


def refused(call, *says):
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in says:
        assert part in message, message


def needs_gradient(x):
    torch = pytest.importorskip("torch", reason="needs PyTorch: python -m pip install torch")
    return torch.from_numpy(x)[:, :, 0] @ torch.tensor(WEIGHTS, requires_grad=True)


OF_WRONG_FORM = {
    "labels": (lambda x: np.array(["a", "b", "c"])[best(x)], "<U1 of shape (20,)", "searchsorted"),
    "objects": (lambda x: best(x).astype(object), "object of shape (20,)", "searchsorted"),
    "truth values": (lambda x: best(x) > 0, "bool of shape (20,)", "labels.astype(int)"),
    "a column": (lambda x: best(x)[:, None], "int64 of shape (20, 1)", "labels[:, 0].astype(int)"),
    "whole scores": (lambda x: on_host(x).astype(int), "int64 of shape (20, 3)", "return scores"),
    "indices as floats": (lambda x: best(x) / 1, "of shape (20,)", "a class index an integer"),
    "one score": (lambda x: on_host(x)[:, :1], "(20, 1)", "jnp.stack([-z, z]"),
    "a list": (lambda x: best(x).tolist(), "a list", "as one array"),
    "a tuple": (lambda x: (on_host(x), 0), "a tuple", "return the logits alone"),
    "a dictionary": (lambda x: {"logits": on_host(x)}, "a dict", "return the logits alone"),
    "nothing": (lambda x: on_host(x)[0, 0] > np.inf or None, "a NoneType", "return the logits"),
    "fewer rows": (lambda x: on_host(x)[1:], "(19, 3)", "one row for each series"),
    "a text": (lambda x: str(on_host(x)[0, 0]), "of shape ()", "return scores"),
    "a tensor with gradients": (needs_gradient, "Can't call numpy() on Tensor", "float32 series"),
}


@pytest.mark.parametrize(("predict", "came", "remedy"), OF_WRONG_FORM.values(), ids=OF_WRONG_FORM)
def test_a_host_function_that_returns_something_else_is_refused(predict, came, remedy):
    refused(lambda: certify(predict, X, sigma=SIGMA), came, remedy)


def test_columns_that_come_and_go_are_refused():
    """As those of `pandas.get_dummies`, which has none for a class that it does not see."""

    def dummies(x):
        seen = np.eye(3)[best(x)][:, np.unique(best(x))]
        return np.pad(seen, ((0, 0), (0, 1)))

    says = "return one column for each class, always"
    refused(lambda: certify(dummies, X, sigma=SIGMA), says)
    calls = iter(range(10**6))

    def later(x):
        scores = on_host(x)
        return scores if next(calls) < 8 else scores[:, :2]

    refused(lambda: certify(later, X, sigma=SIGMA), "scores of 3 classes for some series and of 2")


counter = iter(range(10**9))


def drawn(*shape):
    return np.random.default_rng(next(counter)).normal(size=shape)


NOT_ONE = {
    "random scores": lambda x: on_host(x) + drawn(3),
    "random scores that JAX would freeze": lambda x: for_jax(x) + drawn(3).astype(np.float32),
    "a random shift that JAX would freeze": lambda x: for_jax(jnp.roll(x, int(drawn() * 9), 1)),
    "random indices": lambda x: (best(x) + next(counter)) % 3,
    "a changing sign that JAX would freeze": lambda x: for_jax(x) * (-1.0) ** next(counter),
    "minus the mean of the batch": lambda x: on_host(x - x.mean(axis=0)),
    "the classes' ranks in the batch": lambda x: on_host(x).argsort(axis=0) / 20,
    "indices that look at the row before": lambda x: best(np.roll(x, 1, axis=0)),
}


@pytest.mark.parametrize("predict", NOT_ONE.values(), ids=NOT_ONE)
def test_what_is_not_one_function_of_single_series_is_refused(predict):
    refused(lambda: certify(predict, X, sigma=SIGMA), "it is not one classifier")


def test_what_python_does_without_changing_the_answer_is_nobodys_business(expected):
    seen = []

    def predict(x):
        seen.append(x.shape)
        return for_jax(x)

    np.testing.assert_array_equal(votes(predict), expected)
    assert seen
    assert all(shape[1:] == (12, 1) for shape in seen)


def test_an_error_is_one_line_whenever_it_comes():
    for last in (0, 3, 8):
        calls = iter(range(10**6))

        def predict(x, calls=calls, last=last):
            if next(calls) >= last and isinstance(x, np.ndarray):
                raise RuntimeError("\x1b[1mthe service\nis away")
            return on_host(x)

        refused(
            lambda predict=predict: certify(predict, X, sigma=SIGMA),
            "predict fails on float32 series (20, 12, 1)",
            "RuntimeError: the service is away",
        )


def test_a_classifier_is_never_asked_about_zeros():
    """Which many cannot answer, since they divide by the standard deviation."""

    def predict(x):
        series = np.asarray(x)[:, :, 0]
        assert (series.std(axis=1) > 0).all()
        return series @ WEIGHTS

    np.testing.assert_array_equal(votes(predict, 0 * X), votes(on_host, 0 * X))


def test_budgets_and_names_are_looked_at_before_the_classifier_is_asked():
    def predict(x):
        raise AssertionError

    for changes, says in (
        ({"num_draws": 5}, "at least 11 are needed"),
        ({"num_draws": "5"}, "num_draws must be a whole number"),
        ({"alpha": 2}, "alpha must be a number"),
        ({"interval": "wald"}, "unknown interval 'wald'"),
        ({"bound": "best"}, "unknown bound 'best'"),
    ):
        refused(lambda c=changes: certify(predict, X, **{"sigma": SIGMA} | c), says)


def test_what_is_no_classifier_is_refused():
    class Estimator:
        def predict(self, x):
            return best(x)

    refused(lambda: certify(Estimator(), X, sigma=SIGMA), "Estimator", "model.predict_proba")
    refused(lambda: certify(X, on_host, sigma=SIGMA), "not of type ndarray")
    refused(lambda: certify(Linear(), X, sigma=SIGMA), "give them as variables=")
    for predict in (on_host, for_jax, NnxLinear()):
        refused(lambda p=predict: certify(p, X, sigma=SIGMA, variables=VARIABLES), "leave them out")
    for variables in ({}, VARIABLES["params"]):
        refused(
            lambda v=variables: certify(Linear(), X, sigma=SIGMA, variables=v),
            "predict fails on float32 series (20, 12, 1)",
        )


# Series


@pytest.mark.parametrize("of", [np.array, lambda x: x.tolist(), lambda x: x.astype(np.float32)])
def test_series_may_lack_channels_and_be_lists(of, expected):
    np.testing.assert_array_equal(votes(on_host), expected)
    whole = certify(on_host, X, sigma=SIGMA, num_draws=DRAWS)
    found = certify(on_host, of(X[:, :, 0]), sigma=SIGMA, num_draws=DRAWS)
    np.testing.assert_array_equal(found.prediction, whole.prediction)
    np.testing.assert_array_equal(found.radius, whole.radius)


def test_whole_numbers_and_tables_are_series():
    x = np.arange(24).reshape(2, 12) % 5
    expected = certify(on_host, x.astype(float), sigma=SIGMA, num_draws=DRAWS)
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    for same in (x, x.astype(np.uint8), pandas.DataFrame(x)):
        found = certify(on_host, same, sigma=SIGMA, num_draws=DRAWS)
        np.testing.assert_array_equal(found.radius, expected.radius)
        np.testing.assert_array_equal(found.prediction, expected.prediction)


def test_what_is_no_array_of_series_is_refused():
    for x, says in (
        ([[1.0, 2.0], [1.0]], "x must be one array"),
        (X[0, :, 0], "one series alone is x[None]"),
        (np.float64(3), "not ()"),
        (X[None], "not (1, 3, 12, 1)"),
        ([["a", "b"]], "real numbers"),
        (np.where(X > 1, np.nan, X), "NaN"),
        (np.ma.masked_less(X, 0), "under a mask"),
    ):
        refused(lambda x=x: certify(on_host, x, sigma=SIGMA), says)
    torch = pytest.importorskip("torch", reason="needs PyTorch: python -m pip install torch")
    x = torch.tensor(X, requires_grad=True)
    refused(lambda: certify(on_host, x, sigma=SIGMA), "x must be one array", "detach")


def test_no_series_have_no_certificates():
    for predict in (on_host, for_jax):
        found = certify(predict, X[:0], sigma=SIGMA)
        assert found.prediction.shape == found.radius.shape == (0,)


def test_series_of_another_length_are_refused_where_weights_fit_one():
    masked = smoothing.self_ensemble(Linear(), VARIABLES, np.ones((2, 12)))
    refused(lambda: certify(masked, X[:, :10], sigma=SIGMA), "masks are for 12 time steps")
    for predict, variables in ((Linear(), VARIABLES), (on_host, None), (NnxLinear(), None)):
        refused(
            lambda p=predict, v=variables: certify(p, X[:, :10], sigma=SIGMA, variables=v),
            "predict fails on float32 series (20, 10, 1)",
        )


# Seeds, blocks and memory


def test_the_noise_is_that_of_the_key():
    settings = {"sigma": SIGMA, "num_draws": DRAWS, "alpha": 0.5}
    usual = certify(on_host, X, **settings)
    again = certify(on_host, X, key=streams.stream(0, "certification"), **settings)
    np.testing.assert_array_equal(usual.radius, again.radius)
    other = certify(on_host, X, key=streams.stream(1, "certification"), **settings)
    assert (usual.radius != other.radius).any()


@pytest.mark.parametrize(
    "how", [{"batch_size": 10**9}, {"batch_size": 1}, {"draws_per_block": 999}]
)
def test_votes_do_not_depend_on_the_sizes(how, expected):
    np.testing.assert_array_equal(votes(on_host, **how), expected)
    np.testing.assert_array_equal(votes(for_jax, **how), expected)


def test_a_host_classifier_is_not_kept_after_its_call():
    predict = Model()
    there = weakref.ref(predict)
    certify(predict, X, sigma=SIGMA, num_draws=20)
    del predict
    gc.collect()
    assert there() is None
