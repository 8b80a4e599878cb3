"""PyTorch, which the benchmark measures against, computes what JAX computes.

These tests skip without PyTorch and say so.
"""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selfens_jax import masks, models, smoothing

NUM_CLASSES = 3


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs the bench extra: pip install .[bench]")


@pytest.fixture(scope="module")
def baseline(torch):
    return importlib.import_module("comparison.torch_baseline")


def both(baseline, name, length, channels, seed=0):
    """The network in Flax, its variables, none of them trivial, and the network in PyTorch."""
    model = models.create(name, NUM_CLASSES)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, length, channels)))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        kind = path[-1].key
        if kind in ("scale", "var"):
            return rng.uniform(0.5, 2, leaf.shape).astype(np.float32)
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if kind == "kernel" else 0.3
        return rng.normal(scale=spread, size=leaf.shape).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    return model, variables, baseline.from_flax(name, variables, NUM_CLASSES, channels, length)


def series(count, length, channels, seed=1):
    return np.random.default_rng(seed).normal(size=(count, length, channels)).astype(np.float32)


def to_torch(torch, x):
    return torch.tensor(x.swapaxes(1, 2).copy())


@pytest.mark.parametrize(("length", "channels"), [(13, 3), (60, 1), (128, 1), (128, 3)])
@pytest.mark.parametrize("name", models.NAMES)
def test_logits_agree_with_flax(torch, baseline, name, length, channels):
    model, variables, net = both(baseline, name, length, channels)
    x = series(4, length, channels)
    expected = np.asarray(jax.jit(model.apply)(variables, x))
    assert np.abs(expected).max() > 0.1  # the comparison is not of zeros
    with torch.inference_mode():
        np.testing.assert_allclose(net(to_torch(torch, x)), expected, atol=1e-4)
        channels_last = baseline.prepare(net, baseline.Setup(channels_last=True))
        np.testing.assert_allclose(channels_last(to_torch(torch, x)), expected, atol=1e-4)


@pytest.mark.parametrize(("name", "parameters"), [
    ("inception_time", 420_579),
    ("lstm_fcn", 314_947),  # PyTorch's LSTM has two biases where Flax's has one of 4 * 64
    ("macnn", 8_207_595),
])  # fmt: skip
def test_parameter_counts(baseline, name, parameters):
    net = baseline.create(name, NUM_CLASSES, channels=1, length=128)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_every_member_trains_on_all_batches(torch, baseline, monkeypatch):
    made = []

    class Trainer:
        def __init__(self, net, setup, sigma, mask_pool, class_weights):
            assert isinstance(net, torch.nn.Module)
            self.given = (setup, sigma, *mask_pool.shape, *class_weights.tolist())
            self.steps = []
            made.append(self)

        def step(self, x, y):
            self.steps.append((x, y))

    monkeypatch.setattr(baseline, "Trainer", Trainer)
    contenders = importlib.import_module("comparison.contenders")
    case = contenders.Case("lstm_fcn", "tiny", 20, 2, 1)
    weights = np.arange(1.0, 1 + case.shape.num_classes)
    run = contenders.torch_training(case, [(1, 2), (3, 4)], weights, "setup", members=2, steps=3)
    run()
    given = ("setup", contenders.SIGMA, 256, case.shape.length, *weights)
    assert [trainer.given for trainer in made] == [given, given]
    assert [trainer.steps for trainer in made] == [[(1, 2), (3, 4), (1, 2)]] * 2


@pytest.mark.parametrize("name", models.NAMES)
def test_batch_norm_statistics_update_as_in_flax(torch, baseline, name):
    """The means agree; PyTorch's variances are the unbiased estimate, n / (n - 1) of Flax's."""
    length, count = 16, 6
    model, variables, net = both(baseline, name, length, channels=1)
    x = series(count, length, 1)
    _, updated = model.apply(
        variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
    )
    new = {"params": variables["params"], "batch_stats": updated["batch_stats"]}
    expected = baseline.from_flax(name, new, NUM_CLASSES, 1, length)
    old = dict(net.named_modules())
    old_variance = {path: m.running_var.clone() for path, m in old.items() if is_norm(m)}
    rows = {}  # how many values each layer's statistics are over
    for path, module in old.items():
        if is_norm(module):
            module.register_forward_hook(
                lambda _, inputs, __, path=path: rows.update(
                    {path: inputs[0].numel() // inputs[0].shape[1]}
                )
            )
    net.train()(to_torch(torch, x))
    assert rows
    for path, module in expected.named_modules():
        if not is_norm(module):
            continue
        np.testing.assert_allclose(old[path].running_mean, module.running_mean, atol=1e-5)
        biased = (module.running_var - 0.9 * old_variance[path]) / 0.1
        unbiased = biased * rows[path] / (rows[path] - 1)
        np.testing.assert_allclose(
            old[path].running_var, 0.9 * old_variance[path] + 0.1 * unbiased, rtol=1e-4, atol=1e-5
        )


def is_norm(module):
    return type(module).__name__ == "BatchNorm"


def test_both_procedures_count_the_votes_of_jax(torch, baseline):
    length, num_draws, sigma = 24, 150, 0.8
    model, variables, _ = both(baseline, "lstm_fcn", length, channels=2)
    chosen = np.asarray(masks.continuous(jax.random.key(1), 3, length))
    x, key = series(2, length, 2), jax.random.key(2)
    # Fresh networks vote for one class only; from this bias on, noise decides.
    typical = model.apply(variables, series(50, length, 2, seed=3)).mean(axis=0)
    variables["params"]["Dense_0"]["bias"] -= np.asarray(typical)
    net = baseline.from_flax("lstm_fcn", variables, NUM_CLASSES, 2, length)
    expected = smoothing.count_votes(
        smoothing.self_ensemble(model, variables, chosen),
        x,
        sigma=sigma,
        num_draws=num_draws,
        key=key,
        noise="float32",
    )
    draws = jnp.arange(num_draws)
    for index, one in enumerate(x):
        keys = jax.vmap(lambda d, i=index: jax.random.fold_in(jax.random.fold_in(key, i), d))(draws)
        noise = jax.vmap(lambda k: jax.random.normal(k, (length, 2)))(keys)
        arguments = (
            torch.tensor(one.T.copy()),
            torch.tensor(chosen),
            sigma,
            num_draws,
        )
        noise = to_torch(torch, np.asarray(noise))
        published = baseline.count_votes_as_published(net, *arguments, noise=noise).numpy()
        forward = baseline.prepare(net, baseline.Setup())
        best = baseline.count_votes(forward, *arguments, 40, noise=noise).numpy()
        assert published.sum() == best.sum() == num_draws
        # A logit apart by rounding may tip a draw.
        assert np.abs(published - expected[index]).sum() <= 2
        assert np.abs(best - expected[index]).sum() <= 2
    assert (np.sort(expected, axis=1)[:, -2] > 5).all()  # more than one class gets votes


def test_counts_without_given_noise_are_complete(torch, baseline):
    net = baseline.create("lstm_fcn", NUM_CLASSES, channels=1, length=16)
    arguments = (torch.zeros(1, 16), torch.ones(2, 16), 1.0, 130)
    assert baseline.count_votes_as_published(net, *arguments).sum() == 130
    assert baseline.count_votes(net, *arguments, draws_per_batch=100).sum() == 130


def test_a_training_step_agrees_with_optax(torch, baseline):
    """One step of Adam without noise and masks: the same loss and gradient, and the next loss."""
    length, rate = 16, 1e-3
    model, variables, net = both(baseline, "inception_time", length, channels=1)
    x, y = series(6, length, 1), np.arange(6) % NUM_CLASSES
    weights = np.array([0.5, 1.0, 2.0], np.float32)

    @jax.jit
    def loss_of(params):
        logits, _ = model.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.average(losses, weights=weights[y])

    optimizer = optax.adam(rate)
    params = variables["params"]
    before, gradient = jax.jit(jax.value_and_grad(loss_of))(params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    after = loss_of(optax.apply_updates(params, updates))

    as_net = {"params": gradient, "batch_stats": variables["batch_stats"]}
    gradients = dict(
        baseline.from_flax("inception_time", as_net, NUM_CLASSES, 1, length).named_parameters()
    )
    for channels_last in (False, True):
        setup = baseline.Setup(channels_last=channels_last)
        trainer = baseline.Trainer(
            net, setup, 0.0, torch.ones(1, length), torch.tensor(weights), learning_rate=rate
        )
        batch = to_torch(torch, x), torch.tensor(y)
        np.testing.assert_allclose(trainer.step(*batch), before, rtol=1e-4)
        for name, parameter in trainer.net.named_parameters():
            wanted = gradients[name].detach().numpy()
            np.testing.assert_allclose(
                parameter.grad, wanted, atol=1e-3 * np.abs(wanted).max(), err_msg=name
            )
        # Adam's first step is the gradient's sign where that is almost 0: only roughly equal.
        np.testing.assert_allclose(trainer.step(*batch), after, rtol=0.03)
    assert abs(before - after) > 0.1 * before


@pytest.mark.parametrize("rounded", [False, True])
def test_a_gpu_multiplies_as_the_setup_says(torch, baseline, rounded):
    """PyTorch's default is TensorFloat-32 for convolutions: not what JAX's float32 is against."""
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    seen = []

    class Net(torch.nn.Linear):
        def forward(self, x):
            seen.append([flag.allow_tf32 for flag in flags])
            return super().forward(x[:, 0])

    def now():
        return [flag.allow_tf32 for flag in flags]

    before, setup = now(), baseline.Setup(tensorfloat32=rounded)
    x, ones = torch.ones(2, 1, 8), torch.ones(1, 8)
    baseline.prepare(Net(8, 3), setup)(x)
    trainer = baseline.Trainer(Net(8, 3), setup, 0.1, ones, torch.ones(3))
    trainer.step(x, torch.zeros(2, dtype=torch.int64))
    assert seen == [[rounded, rounded]] * 2
    assert now() == before == [True, False]


def test_tuning_keeps_what_helps_and_survives_what_fails(baseline):
    seconds = {"channels_last": 0.5, "bfloat16": 0.8, "tensorfloat32": 1.2}

    def seconds_per_draw(setup):
        if setup.compiled:
            raise RuntimeError("no compiler\nmore")
        factors = [factor for name, factor in seconds.items() if getattr(setup, name)]
        return float(np.prod(factors)) / setup.draws_per_batch

    options = ("channels_last", "compiled", "tensorfloat32", "bfloat16")
    found, trials = baseline.tune(seconds_per_draw, (20, 50), options)
    best = baseline.Setup(50, channels_last=True)  # tensorfloat32 makes it slower
    assert found == {"float32": best, "bfloat16": dataclasses.replace(best, bfloat16=True)}
    seconds["tensorfloat32"] = 0.9
    found, _ = baseline.tune(seconds_per_draw, (20, 50), options)
    assert list(found) == ["float32", "tensorfloat32", "bfloat16"]
    assert found["tensorfloat32"] == dataclasses.replace(best, tensorfloat32=True)
    assert found["bfloat16"] == dataclasses.replace(best, bfloat16=True)
    assert [result for _, result in trials if isinstance(result, str)] == ["no compiler"]
