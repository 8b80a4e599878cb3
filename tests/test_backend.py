"""Programs of accelerators, run on a CPU: the same classifier, and one program for any number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TinyNet, init, mesh_of

from selfens_jax import backend, blocks, bursts, certification, masks, models, smoothing
from selfens_jax.ensembles import Network
from selfens_jax.errors import UserError
from selfens_jax.models.convolution import convolve
from selfens_jax.models.layers import max_pool_of_three
from selfens_jax.models.macnn import AttentionBlock

KEY = jax.random.key(3)
LENGTH = 24
ACCELERATORS = ("gpu", "tpu")
# Its program for accelerators takes a CPU's compiler too long; tests/test_noise.py compares it.
NOISE = "float32"


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(7, LENGTH, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def ensemble() -> smoothing.SelfEnsemble:
    model = TinyNet(3)
    variables = init(model, np.zeros((1, LENGTH, 1), np.float32))
    return smoothing.self_ensemble(model, variables, masks.binomial(KEY, 3, LENGTH, 0.7))


def count(predict, x, **settings):
    settings = {"sigma": 0.8, "num_draws": 130, "key": KEY, "draws_per_block": 20, **settings}
    return smoothing.count_votes(predict, x, noise=NOISE, **settings)


def test_an_unknown_target_is_refused():
    target = backend.compiling_for("tpuu")
    with pytest.raises(UserError, match="unknown target 'tpuu'; choose from cpu, gpu, tpu"), target:
        pass
    assert backend.kind() == jax.default_backend()


def test_a_target_holds_inside_only():
    with backend.compiling_for("tpu"):
        assert backend.kind() == "tpu"
        assert not backend.on_cpu()
    assert backend.on_cpu()


@pytest.mark.parametrize(
    ("kind", "name", "channels"),
    [
        ("tpu", "inception_time", 2),
        ("gpu", "inception_time", 1),
        pytest.param("tpu", "macnn", 1, marks=pytest.mark.slow),
    ],
)
def test_networks_have_the_same_parameters_and_logits(kind, name, channels):
    model = models.create(name, 3)
    x = np.random.default_rng(1).normal(size=(2, LENGTH, channels)).astype(np.float32)
    variables = init(model, x)
    logits = jax.jit(lambda v: models.evaluate(model, v, x))(variables)
    with backend.compiling_for(kind):
        jax.tree.map(np.testing.assert_array_equal, variables, init(model, x))
        found = jax.jit(lambda v: models.evaluate(model, v, x))(variables)
    np.testing.assert_allclose(found, logits, atol=2e-5 * np.abs(logits).max())


def test_an_attention_block_knows_its_mean():
    """Which an accelerator takes for that of MACNN's last block."""
    x = np.random.default_rng(1).normal(size=(3, 8, 2)).astype(np.float32)
    (y, mean), _ = AttentionBlock(16).init_with_output(KEY, x, train=True)
    np.testing.assert_allclose(mean, y.mean(axis=1), rtol=1e-5)
    assert np.std(mean) > 0.01


BFLOAT16 = jax.default_matmul_precision("bfloat16")


def equations(jaxpr):
    """Of a program, and of those in it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            yield from equations(inner) if hasattr(inner, "eqns") else ()


def products(jaxpr):
    """The types of what is multiplied, for each product."""
    names = ("dot_general", "conv_general_dilated")
    found = (e for e in equations(jaxpr) if e.primitive.name in names)
    return [{variable.aval.dtype.name for variable in e.invars} for e in found]


@pytest.mark.parametrize("name", models.NAMES)
def test_in_bfloat16_a_gpu_has_no_other_tensors_to_multiply(name):
    """Left to itself, XLA would multiply tensors of float32 in TensorFloat-32 instead."""
    model = models.create(name, 3)
    series = jax.ShapeDtypeStruct((2, LENGTH, 2), jnp.float32)
    variables = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, LENGTH, 2))))
    with backend.compiling_for("gpu"), BFLOAT16:
        program = jax.make_jaxpr(lambda v, x: models.evaluate(model, v, x))(variables, series)
    # An LSTM keeps its states in float32: what they and the last layer multiply.
    of_states = [{"float32"}] * 2 if name == "lstm_fcn" else []
    types = products(program.jaxpr)
    assert [operands for operands in types if operands != {"bfloat16"}] == of_states
    assert len(types) > 2
    assert program.out_avals[0].dtype == jnp.float32


def test_in_bfloat16_logits_are_those_of_rounded_weights_and_series(x):
    model = models.create("lstm_fcn", 3)
    variables = init(model, x)
    weights = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), variables["params"])
    by_hand = {**variables, "params": weights}
    with backend.compiling_for("gpu"):
        plain = models.evaluate(model, variables, x)
        with BFLOAT16:
            found = models.evaluate(model, variables, x)
            expected = model.apply(by_hand, jnp.asarray(x, jnp.bfloat16), train=False)
    np.testing.assert_array_equal(found, np.asarray(expected, np.float32))
    scale = np.abs(plain).max()
    assert 1e-4 * scale < np.abs(found - plain).max() < 3e-2 * scale


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("gpu", "float32"), ("gpu", "tensorfloat32"), ("tpu", "bfloat16"), ("cpu", "bfloat16")],
)
def test_elsewhere_tensors_stay_float32(kind, precision):
    model = models.create("lstm_fcn", 3)
    variables = init(model, np.zeros((1, LENGTH, 1), np.float32))
    with backend.compiling_for(kind), jax.default_matmul_precision(precision):
        assert models.rounded(model, variables) is variables
        program = jax.make_jaxpr(lambda x: models.evaluate(model, variables, x))(
            jnp.zeros((1, LENGTH, 1))
        )
    assert all(operands == {"float32"} for operands in products(program.jaxpr))


def test_own_networks_round_as_they_are_written(x):
    """What a network of another's makes of tensors of bfloat16 is not known."""
    model, variables = TinyNet(3), init(TinyNet(3), x)
    expected = models.evaluate(model, variables, x)
    with backend.compiling_for("gpu"), BFLOAT16:
        np.testing.assert_array_equal(models.evaluate(model, variables, x), expected)


@pytest.mark.parametrize("kind", ["network", "masks", "members", "consensus", "another's"])
def test_weights_are_rounded_once_before_the_blocks(x, kind):
    model = models.create("lstm_fcn", 3)
    variables = init(model, x)
    masked = smoothing.self_ensemble(model, variables, masks.binomial(KEY, 3, LENGTH, 0.7))
    predict = {
        "network": Network(model, variables),
        "masks": masked,
        "members": smoothing.deep_ensemble(model, models.stack((variables, variables))),
        "consensus": smoothing.consensus(masked, 2),
        "another's": Network(TinyNet(3), init(TinyNet(3), x)),
    }[kind]
    with backend.compiling_for("gpu"):
        program = blocks.prepare(predict, x, sigma=0.8, key=KEY, noise=NOISE)
        blocks_of_draws = np.zeros((2, 5), np.uint32)
        each = (jnp.asarray(x[:2]), jnp.arange(2, dtype=jnp.uint32), jnp.asarray(blocks_of_draws))
        with BFLOAT16:
            traced = jax.make_jaxpr(
                lambda predict, noise: blocks._on_device(
                    predict, noise, KEY, each, jnp.full(1, 2),
                    function=certification.vote, num_classes=3, mesh=None,
                )
            )(predict, program.noise)  # fmt: skip
    (loop,) = (e for e in traced.jaxpr.eqns if e.primitive.name == "while")
    kernels = {v.aval.dtype.name for v in loop.invars if v.aval.ndim > 2 and v.aval.shape[0] < 9}
    of_series = {"float32"}  # (2, T, 1)
    assert kernels - of_series == (set() if kind == "another's" else {"bfloat16"})
    types = products(traced.jaxpr)
    assert ({"bfloat16"} in types) == (kind != "another's")


@pytest.mark.parametrize("kind", ACCELERATORS)
def test_convolutions_and_their_gradients_are_the_same(kind):
    """Kernels of all lengths, with biases; the gradients of all arguments."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 17, 3)).astype(np.float32)
    kernels = [rng.normal(size=(width, 3, 2)).astype(np.float32) for width in (12, 7, 4, 1)]
    biases = [rng.normal(size=2).astype(np.float32) for _ in kernels]
    weights = rng.normal(size=(2, 17, 8)).astype(np.float32)

    def value_and_gradients():
        def total(*arguments):
            found = convolve(*arguments)
            return (weights * found).sum(), found

        return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(x, kernels, biases)

    expected = value_and_gradients()
    with backend.compiling_for(kind):
        found = value_and_gradients()
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("steps", [1, 2, 7, 8])
def test_pooling_is_the_same(steps, stride):
    x = np.random.default_rng(0).normal(size=(2, steps, 3)).astype(np.float32)
    expected = max_pool_of_three(x, stride)
    with backend.compiling_for("tpu"):
        np.testing.assert_array_equal(max_pool_of_three(x, stride, train=False), expected)


@pytest.mark.parametrize("kind", ACCELERATORS)
@pytest.mark.parametrize("members", [slice(None), slice(None, 2), slice(2, None)])
def test_ensembles_have_the_same_logits(ensemble, x, members, kind):
    networks = [init(TinyNet(3), x, seed) if seed else ensemble.variables for seed in range(3)]
    deep = smoothing.deep_ensemble(TinyNet(3), models.stack(tuple(networks)))
    for predict in (ensemble, deep):
        expected = predict.logits(jnp.asarray(x), members)
        with backend.compiling_for(kind):
            found = predict.logits(jnp.asarray(x), members)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("devices", "batch_size"), [(None, 90), (2, 20), (3, 10_000)])
def test_counts_are_those_of_a_cpu(ensemble, x, devices, batch_size):
    """Also where the last call is not full, and where some devices have no block at all."""
    mesh = None if devices is None else mesh_of(devices)
    for number in (1, 7):
        expected = count(ensemble, x[:number])
        with backend.compiling_for("gpu"):
            found = count(ensemble, x[:number], batch_size=batch_size, mesh=mesh)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ACCELERATORS)
def test_a_consensus_counts_as_on_a_cpu(ensemble, x, kind):
    predict = smoothing.consensus(ensemble, 2)
    settings = {"sigma": 0.8, "num_draws": 90, "key": KEY, "draws_per_block": 20, "noise": NOISE}
    counts, asked = smoothing.count_consensus_votes(predict, x, **settings)
    with backend.compiling_for(kind):
        found = smoothing.count_consensus_votes(predict, x, **settings, mesh=mesh_of(2))
    np.testing.assert_array_equal(found[0], counts)
    np.testing.assert_array_equal(found[1], asked)


def test_votes_are_counted_with_the_same_kernels_in_every_process(monkeypatch):
    """Nothing here has a GPU: what is tested is which programs are asked for."""
    monkeypatch.setattr(jax, "jit", lambda _, **how: how)
    program = backend.reproducible(len, ("size",))
    left_alone = {"static_argnames": ("size",)}
    told = left_alone | {"compiler_options": {"xla_gpu_deterministic_ops": True}}
    for kind, expected in (("cpu", left_alone), ("gpu", told), ("tpu", left_alone)):
        with backend.compiling_for(kind):
            assert program() == expected
            with monkeypatch.context() as patch:
                patch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=false")
                assert program() == left_alone


@pytest.mark.parametrize("module", [blocks, bursts])
def test_what_counts_on_a_gpu_is_such_a_program(module):
    program = module.on_device if module is blocks else module._on_device
    here = program()
    with backend.compiling_for("gpu"):
        assert program() is not here


def test_one_program_serves_any_number_of_blocks(ensemble, x):
    with backend.compiling_for("gpu"):
        for mesh in (None, mesh_of(2)):
            before = blocks.on_device()._cache_size()
            for number, draws in ((1, 1), (1, 130), (3, 130), (7, 200)):
                count(ensemble, x[:number], num_draws=draws, batch_size=400, mesh=mesh)
            assert blocks.on_device()._cache_size() == before + 1


def test_only_the_blocks_there_are_are_computed(ensemble, x):
    """Padding would cost as much as they do: a call holds hundreds of blocks."""
    computed = []

    def predict(x):
        jax.debug.callback(lambda: computed.append(1))
        return x[:, :2, 0]

    with backend.compiling_for("tpu"):
        numbers = []
        for examples in (1, 3):
            computed.clear()
            count(jax.tree_util.Partial(predict), x[:examples], num_draws=50)
            jax.effects_barrier()
            numbers.append(len(computed))
    assert numbers[1] - numbers[0] == (3 - 1) * 3  # the rest are checks of the classifier


@pytest.mark.parametrize(
    ("kind", "length", "draws"),
    [("cpu", 128, 20), ("gpu", 1024, 100), ("tpu", 60, 100), ("tpu", 128, 100), ("tpu", 300, 50),
     ("tpu", 100_000, 10)],
)  # fmt: skip
def test_draws_of_a_block(kind, length, draws):
    with backend.compiling_for(kind):
        assert blocks.default_draws_per_block(length) == draws
        program = blocks.prepare(
            jax.tree_util.Partial(lambda x: x[:, :2, 0]),
            np.zeros((1, length, 1)),
            sigma=1.0,
            key=KEY,
        )
        assert program.draws_per_block == draws


@pytest.mark.parametrize("kind", ACCELERATORS)
def test_a_network_of_another_shape_is_refused_as_on_a_cpu(x, kind):
    """Not averaged over an axis that a flat batch would hide."""

    class Wrong(TinyNet):
        def __call__(self, x, train=False):
            return x[:, None, :3, 0]

    predict = smoothing.self_ensemble(Wrong(3), {}, np.ones((2, LENGTH)))
    with backend.compiling_for(kind), pytest.raises(UserError, match="drop the axis"):
        count(predict, x)
