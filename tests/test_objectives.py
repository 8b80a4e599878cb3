"""What training lowers besides the paper's loss, and what it leaves as it was."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from helpers import Recorder, TinyNet, assert_same, assert_uncorrelated, easy_problem
from test_scripts import assert_refused, call, error_of, make_npz

from selfens_jax import SelfEnsembleClassifier, objectives, runs, training
from selfens_jax.errors import UserError
from selfens_jax.objectives import OBJECTIVES
from selfens_jax.training import TrainConfig, Trainer

LENGTH, SIGMA = 16, 0.5
EVERY = pytest.mark.parametrize("objective", OBJECTIVES)
OTHERS = tuple(name for name in OBJECTIVES if name != "cross_entropy")


def config(**changes) -> TrainConfig:
    defaults = {"ensemble": "mb", "sigma": SIGMA, "keep": 0.8, "epochs": 20, "batch_size": 10}
    return TrainConfig(**(defaults | {"recalibration_passes": 3, "learning_rate": 1e-2} | changes))


def host(states):
    return jax.tree.map(np.array, states)


def run(trainer, x, y, states=None, epochs_per_report=10):
    """(final states on the host, history rows)"""
    states = training.init_states(trainer, x) if states is None else states
    history = []
    for latest, rows in training.train(trainer, x, y, states, epochs_per_report):
        states = latest
        history += rows
    return host(states), history


# Values, worked out in NumPy, one series and one view at a time

LOGITS = np.array(
    [
        [[1.0, -0.5, 0.3], [0.2, 0.1, -2.0], [-1.0, 2.0, 0.0], [0.0, 0.5, 3.0]],
        [[0.4, 0.9, -1.0], [1.5, -0.3, 0.2], [0.5, 1.0, 0.6], [0.1, -0.2, 1.0]],
    ]
)
MIXED = np.array(
    [
        [[0.3, 0.2, 0.1], [0.0, 1.0, -1.0], [-0.5, 0.4, 0.0], [2.0, 0.5, 0.3]],
        [[-0.4, 0.9, 0.0], [0.5, 0.3, 0.2], [0.8, -1.0, 0.6], [0.1, 0.2, 0.9]],
    ]
)
LABELS = np.array([0, 2, 1, 2])  # the mean of the views is wrong for the second alone
SHARES = np.array([0.1, 0.4, 0.25, 0.5])
WEIGHTS = np.array([0.5, 2.0, 1.25, 2.0])


def softmax(row: np.ndarray) -> np.ndarray:
    return np.exp(row) / np.exp(row).sum()


def weighted(values: list[float]) -> float:
    return float((WEIGHTS * values).sum() / WEIGHTS.sum())


def cross_entropies(logits: np.ndarray) -> list[float]:
    """Of each series, the mean over its views."""
    return [
        float(np.mean([-np.log(softmax(view[i])[label]) for view in logits]))
        for i, label in enumerate(LABELS)
    ]


def consistencies(agreement: float, certainty: float) -> list[float]:
    values = []
    for i in range(len(LABELS)):
        p_i = [softmax(view[i]) for view in LOGITS]
        p = sum(p_i) / 2
        divergence = np.mean([(p * np.log(p / each)).sum() for each in p_i])
        values.append(agreement * divergence - certainty * (p * np.log(p)).sum())
    return values


def mixtures() -> list[float]:
    values = []
    for i, label in enumerate(LABELS):
        p = sum(softmax(view[i]) for view in LOGITS) / 2
        target = (1 - SHARES[i]) * p + SHARES[i] / 3
        q_i = [softmax(view[i]) for view in MIXED]
        divergence = np.mean([(target * np.log(target / each)).sum() for each in q_i])
        values.append(float(divergence) if p.argmax() == label else 0.0)
    return values


def given(objective: str, logits=LOGITS, mixed=MIXED, labels=LABELS, shares=SHARES, **more):
    """The loss () of an objective, in float32."""
    logits, mixed, shares, weights = (
        jnp.asarray(value, jnp.float32) for value in (logits, mixed, shares, WEIGHTS)
    )
    labels = jnp.asarray(labels)
    if objective == "smoothmix":
        return objectives.smoothmix(logits, mixed, shares, labels, weights, **more)
    name = "cross_entropy" if objective == "two_views" else objective
    return getattr(objectives, name)(logits, labels, weights, **more)


def test_cross_entropy_by_hand():
    assert given("two_views") == pytest.approx(weighted(cross_entropies(LOGITS)), rel=1e-6)
    alone = given("cross_entropy", LOGITS[:1])
    assert alone == pytest.approx(weighted(cross_entropies(LOGITS[:1])), rel=1e-6)


def test_consistency_by_hand():
    for agreement, certainty in ((5.0, 0.5), (2.0, 0.0), (0.0, 3.0)):
        each = np.add(cross_entropies(LOGITS), consistencies(agreement, certainty))
        found = given("consistency", agreement=agreement, certainty=certainty)
        assert found == pytest.approx(weighted(each), rel=1e-6)
    assert given("consistency") == given("consistency", agreement=5.0, certainty=0.5)


def test_the_divergence_is_from_the_mean():
    # Two views, sure of one class each: KL(p || p_i) = log 2 / 2 - log(eps) / 2 is large where
    # KL(p_i || p) = log 2 is not.
    logits = np.array([[[20.0, 0.0]] * 4, [[0.0, 20.0]] * 4])
    found = given("consistency", logits, labels=[0, 1, 0, 1], agreement=1.0, certainty=0.0)
    assert found == pytest.approx(10 + (10 - np.log(2)), rel=1e-5)


def test_ensemble_by_hand():
    mean = LOGITS.mean(axis=0, keepdims=True)
    assert given("ensemble") == pytest.approx(weighted(cross_entropies(mean)), rel=1e-6)


def test_smoothmix_by_hand():
    extra = mixtures()
    assert [value > 0 for value in extra] == [True, False, True, True]
    for strength in (1.0, 0.3):
        each = np.add(cross_entropies(LOGITS), strength * np.array(extra))
        found = given("smoothmix", strength=strength)
        assert found == pytest.approx(weighted(each), rel=1e-6)


def test_without_its_terms_consistency_is_the_control():
    assert given("consistency", agreement=0.0, certainty=0.0) == given("two_views")


@EVERY
def test_gradients_are_finite_however_sure_the_network_is(objective):
    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def loss(logits, mixed, shares):
        return given(objective, logits, mixed, shares=shares)

    for scale in (0.0, 1.0, 1e3, 1e30):
        for shares in (SHARES, np.zeros(4)):
            value, gradients = loss(scale * LOGITS, scale * MIXED, shares)
            assert np.isfinite(value)
            assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_warm_up_is_linear_and_ends():
    epochs = jnp.arange(200)
    found = objectives.warm_up(epochs, 50)
    np.testing.assert_allclose(found[:50], np.arange(1, 51) / 50, rtol=1e-6)
    assert (found[49:] == 1).all()


# The default: the step that earlier versions had, as they had it


def step_of_before(model, optimizer, sigma, keep, order, weights, key, state, x, y):
    """A step on all series, whose rows are `order`: (params, batch_stats, opt_state), loss."""
    params, batch_stats, opt_state = state
    inputs_key, dropout_key = jax.random.split(key)
    noise_key, mask_key = jax.random.split(inputs_key)
    noisy = x[order] + sigma * jax.random.normal(noise_key, x.shape)
    keys = jax.vmap(functools.partial(jax.random.fold_in, mask_key))(jnp.arange(len(x)))
    mask = jax.vmap(lambda k: jax.random.bernoulli(k, keep, x.shape[1:2]))(keys)
    inputs, labels = mask.astype(jnp.float32)[:, :, None] * noisy, y[order]

    def loss_of(params):
        variables = {"params": params, "batch_stats": batch_stats}
        rngs = {"dropout": dropout_key}
        logits, updated = model.apply(
            variables, inputs, train=True, mutable=["batch_stats"], rngs=rngs
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.average(losses, weights=weights[labels]), updated["batch_stats"]

    (loss, after), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradient, opt_state, params, value=loss)
    return (optax.apply_updates(params, updates), after, opt_state), loss


def test_the_default_is_the_training_of_before_bit_for_bit():
    x, y = easy_problem(20, LENGTH)
    trainer = Trainer(TinyNet(), config(epochs=4, batch_size=20), 20)
    states, history = run(trainer, x, y)
    optimizer = optax.chain(
        optax.adam(1e-2),
        optax.contrib.reduce_on_plateau(
            factor=0.5, patience=50, min_scale=1e-2, accumulation_size=1
        ),
    )
    (noise,) = trainer.noise("training")
    order_key, step_key = (jax.random.fold_in(noise.key, which) for which in (0, 1))
    (start,) = training.init_states(trainer, x)
    state = (start.params, start.batch_stats, optimizer.init(start.params))
    weights = jnp.asarray(training.class_weights(y, 2))
    compiled = jax.jit(functools.partial(step_of_before, TinyNet(), optimizer))
    for number in range(4):
        order = jax.random.permutation(jax.random.fold_in(order_key, number), 20)
        key = jax.random.fold_in(step_key, number)
        state, loss = compiled(noise.sigma, 0.8, order, weights, key, state, x, y)
        assert history[number]["loss"] == float(loss)
    assert_same(states[0].params, host(state[0]))
    assert_same(states[0].batch_stats, host(state[1]))
    # Saved states of earlier versions are gone on with.
    assert_same(states[0].opt_state, host(state[2]))


def test_records_of_the_default_are_those_of_before():
    assert list(TrainConfig().settings()) == [
        "ensemble",
        "sigma",
        "keep",
        "num_members",
        "epochs",
        "batch_size",
        "class_weights",
        "learning_rate",
        "plateau_factor",
        "plateau_patience",
        "plateau_floor",
        "recalibration_passes",
        "seed",
    ]
    changed = TrainConfig(objective="consistency", consistency_weight=2.0, average=0.99)
    more = {"objective": "consistency", "consistency_weight": 2.0, "average": 0.99}
    assert changed.settings() == TrainConfig().settings() | more
    completed = training.completed(TrainConfig().settings())
    assert completed == dataclasses.asdict(TrainConfig())
    assert training.completed(changed.settings()) == dataclasses.asdict(changed)


# Views


def shown(objective: str, ensemble: str, length: int = LENGTH, steps: int = 2) -> np.ndarray:
    """What the first steps show of 6 series of ones, (steps, views, 6, T, C)."""
    x, y = np.full((6, length, 2), 1.0, np.float32), np.arange(6) % 2
    views = OBJECTIVES[objective].views
    settings = config(
        objective=objective, ensemble=ensemble, epochs=steps, batch_size=6, keep=0.6, sigma=0.25
    )
    trainer = Trainer(Recorder(6 * views), settings, 6)
    reports = training.train(trainer, x, y, training.init_states(trainer, x), epochs_per_report=1)
    seen = np.stack([np.array(states[0].batch_stats["seen"]) for states, _ in reports])
    return seen.reshape(steps, views, 6, length, 2)


@pytest.mark.parametrize("objective", ["two_views", "consistency", "smoothmix"])
def test_views_have_noise_of_their_own(objective):
    noise = shown(objective, "single", length=400) - 1.0
    assert noise.std() == pytest.approx(0.25, rel=0.02)
    assert_uncorrelated(np.moveaxis(noise, -1, 3).reshape(-1, 400), error=1e-9)


@pytest.mark.parametrize("objective", ["two_views", "consistency", "ensemble", "smoothmix"])
def test_views_have_masks_of_their_own(objective):
    hidden = (shown(objective, "mb") == 0).all(axis=-1)
    assert hidden.mean() == pytest.approx(0.4, abs=0.15)
    # 24 masks of 16 steps: two agree with a probability below 300 * (0.6^2 + 0.4^2)^16 < 1e-2.
    assert len(np.unique(hidden.reshape(-1, LENGTH), axis=0)) >= 23


def test_views_of_the_ensemble_share_the_noise():
    seen = shown("ensemble", "mb")
    first, second = seen[:, 0], seen[:, 1]
    both = (first != 0) & (second != 0)
    assert 0.2 < both.mean() < 0.55
    np.testing.assert_array_equal(first[both], second[both])
    other = shown("two_views", "mb")
    both = (other[:, 0] != 0) & (other[:, 1] != 0)
    assert (other[:, 0][both] != other[:, 1][both]).all()


def test_keys_of_views_are_none_of_those_before(monkeypatch):
    drawn = []

    def recorded(ensemble, key, *others):
        drawn.append(key)
        return jnp.ones((6, LENGTH))

    normal = jax.random.normal
    monkeypatch.setattr(training.masks, "draw", recorded)
    monkeypatch.setattr(jax.random, "normal", lambda key, *a: drawn.append(key) or normal(key, *a))
    trainer = Trainer(Recorder(12), config(objective="two_views"), 6)
    (noise,) = trainer.noise("training")
    training.noisy_masked_views(trainer.step, noise, jnp.ones((6, LENGTH, 1)))
    own = [jax.random.key_data(key).tolist() for key in drawn]
    # A mask's key makes one for each series: what they are must not be a view's key either.
    masks_of_series = [
        jax.random.key_data(jax.random.fold_in(key, i)).tolist() for key in drawn for i in range(6)
    ]
    assert len(own) == 4
    every = [tuple(key) for key in own + masks_of_series]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("objective", OTHERS)
def test_the_first_view_is_that_of_the_default(objective):
    np.testing.assert_array_equal(shown(objective, "mb")[0, 0], shown("cross_entropy", "mb")[0, 0])


class Ramp(nn.Module):
    """Class 1 is where the sum of w * x is large; in evaluation alone."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        w = self.param("w", lambda _: jnp.arange(1.0, x.shape[1] + 1)[:, None])
        scale = self.variable("batch_stats", "scale", jnp.ones, ())
        score = (scale.value * w * x).sum(axis=(1, 2))
        return 0.01 * jnp.stack([-score, score], axis=-1) * (0 if train else 1)


def test_smoothmix_moves_a_series_away_from_its_class_and_keeps_the_noise():
    x, labels = easy_problem(6, LENGTH)
    x, labels = jnp.asarray(x), jnp.asarray(labels)
    trainer = Trainer(Ramp(), config(objective="smoothmix", ensemble="single"), 6)
    (state,), (noise,) = training.init_states(trainer, x), trainer.noise("training")
    mixed = training._mixed(trainer.step, noise, state, x, labels)
    views = training.noisy_masked_views(trainer.step, noise, x)
    w = np.arange(1.0, LENGTH + 1)
    direction = np.where(labels == 1, -1, 1)[:, None] * w / np.linalg.norm(w)
    moved = np.asarray(mixed.shares)[:, None] * 8 * SIGMA * direction
    assert (np.asarray(mixed.shares) > 0).all()
    assert (np.asarray(mixed.shares) < 0.5).all()
    assert len(np.unique(mixed.shares)) == 6
    found = np.asarray(mixed.views - views).reshape(2, 6, LENGTH)
    np.testing.assert_allclose(found, np.broadcast_to(moved, found.shape), atol=1e-5)


def test_smoothmix_hides_what_its_views_hide():
    x, labels = easy_problem(6, LENGTH)
    trainer = Trainer(Ramp(), config(objective="smoothmix"), 6)
    (state,), (noise,) = training.init_states(trainer, x), trainer.noise("training")
    views = training.noisy_masked_views(trainer.step, noise, jnp.asarray(x))
    mixed = training._mixed(trainer.step, noise, state, jnp.asarray(x), jnp.asarray(labels)).views
    np.testing.assert_array_equal(views == 0, mixed == 0)


# Losses in training


class Fixed(nn.Module):
    """Its logits are the mean of the series it is shown and 0; nothing can be learned."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        nothing = self.param("nothing", nn.initializers.zeros, ())
        self.variable("batch_stats", "nothing", jnp.zeros, ())
        mean = x.mean(axis=(1, 2))
        return jnp.stack([mean, 0 * mean], axis=-1) + 0 * nothing


UNEVEN = np.array([0] * 17 + [1] * 3)


@pytest.mark.parametrize("kind", ["balanced", "none"])
@EVERY
def test_the_loss_of_a_step_has_class_weights_in_all_terms(objective, kind):
    x, _ = easy_problem(20, LENGTH)
    settings = config(objective=objective, epochs=1, batch_size=20, class_weights=kind)
    trainer = Trainer(Fixed(), settings, 20)
    (start,), (noise,) = training.init_states(trainer, x), trainer.noise("training")
    _, (row,) = run(trainer, x, UNEVEN)
    rows, own, _ = training._due(trainer.step, noise, start.step)
    labels = UNEVEN[rows]

    def p_of(views):  # (k, B, 2)
        mean = np.asarray(views, np.float64).mean(axis=(1, 2)).reshape(trainer.step.views, 20)
        if objective == "ensemble":
            mean = mean.mean(axis=0, keepdims=True)
        return np.stack([1 / (1 + np.exp(-mean)), 1 / (1 + np.exp(mean))], axis=-1)

    p_i = p_of(training.noisy_masked_views(trainer.step, own, jnp.asarray(x)[rows]))
    p = p_i.mean(axis=0)
    losses = -np.log(p_i[:, np.arange(20), labels]).mean(axis=0)
    if objective == "consistency":
        divergence = (p * np.log(p / p_i)).sum(axis=-1).mean(axis=0)
        losses += (5 * divergence - 0.5 * (p * np.log(p)).sum(axis=-1)) / 50
    if objective == "smoothmix":
        series, classes = jnp.asarray(x)[rows], jnp.asarray(labels)
        mixed = training._mixed(trainer.step, own, start, series, classes)
        share = np.asarray(mixed.shares, np.float64)[:, None]
        target = (1 - share) * p + share / 2
        divergence = (target * np.log(target / p_of(mixed.views))).sum(axis=-1).mean(axis=0)
        losses += np.where(p.argmax(axis=-1) == labels, divergence, 0) / 10
    weights = np.ones(20) if kind == "none" else np.where(labels == 1, 20 / 6, 20 / 34)
    assert row["loss"] == pytest.approx((weights * losses).sum() / weights.sum(), rel=1e-5)


def test_consistency_warms_up_by_the_epoch_and_the_schedule_sees_the_whole_loss():
    # Logits that stay: two steps an epoch, of which each has half of the series of each class.
    x, y = np.zeros((20, LENGTH, 1), np.float32), np.arange(20) % 2
    settings = config(objective="consistency", sigma=0.0, epochs=60, entropy_weight=2.0)
    trainer = Trainer(Fixed(), settings, 20)
    (state,), history = run(trainer, x, y)
    shares = np.minimum(1, np.arange(1, 61) / 50)
    losses = np.log(2) * (1 + 2 * shares)  # of two classes that are equally likely
    np.testing.assert_allclose([row["loss"] for row in history], losses, rtol=1e-5)
    plateau = state.opt_state[1]
    np.testing.assert_allclose(plateau.best_value, losses[0], rtol=1e-5)
    assert plateau.plateau_count == 59 - 50


@functools.cache
def trained(objective: str, average: float | None = 0.9):
    """(trainer, final states on the host, history) of 20 epochs of two steps on easy series."""
    settings = config(objective=objective, average=average)
    trainer = Trainer(TinyNet(), settings, 20)
    return trainer, *run(trainer, *easy_problem(20, LENGTH))


@EVERY
@pytest.mark.slow
def test_twenty_epochs_lower_the_loss(objective):
    _, _, history = trained(objective)
    losses = [row["loss"] for row in history]
    assert losses[-1] < 0.7 * losses[0]
    assert history[-1]["accuracy"] > 0.9


@EVERY
@pytest.mark.slow
def test_a_training_cut_and_saved_ends_with_the_same_bits(objective, tmp_path):
    trainer, expected, history = trained(objective)
    x, y = easy_problem(20, LENGTH)
    reports = training.train(trainer, x, y, training.init_states(trainer, x), 7)
    states, rows = next(iter(reports))
    runs.save_progress(tmp_path, 7, states, rows)
    done, states, before = runs.load_progress(tmp_path, training.init_states(trainer, x))
    assert done == 7
    states, after = run(trainer, x, y, states, epochs_per_report=5)
    assert_same(states, expected)
    assert before + after == history


def test_consistency_without_its_terms_trains_the_network_of_the_control():
    trainer, expected, history = trained("two_views", None)
    settings = dataclasses.replace(
        trainer.config, objective="consistency", consistency_weight=0.0, entropy_weight=0.0
    )
    (state,), rows = run(Trainer(TinyNet(), settings, 20), *easy_problem(20, LENGTH))
    assert [row["loss"] for row in rows] == pytest.approx(
        [row["loss"] for row in history], rel=1e-4
    )
    for a, b in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(expected[0].params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["smoothmix", "consistency"])
def test_side_by_side_in_one_program_each_is_itself(objective, monkeypatch):
    x, y = easy_problem(20, LENGTH)
    trainers = [
        Trainer(TinyNet(), config(objective=objective, average=0.9, epochs=2, **own), 20)
        for own in ({"sigma": 0.5, "num_members": 2}, {"sigma": 0.2, "num_members": 2, "seed": 3})
    ]
    expected = [run(trainer, x, y) for trainer in trainers]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    states = [training.init_states(trainer, x) for trainer in trainers]
    (reports,) = training.train_side_by_side(trainers, x, y, states)
    for (ended, rows), (alone, history) in zip(reports, expected, strict=True):
        for a, b in zip(jax.tree.leaves(host(ended)), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4)
        for row, other in zip(rows, history, strict=True):
            assert row == pytest.approx(other, rel=1e-3)


# Averaged weights


@pytest.mark.parametrize(
    "decay", [0.9, *(pytest.param(decay, marks=pytest.mark.slow) for decay in (0.5, 1 - 1e-9))]
)
def test_the_average_is_that_of_all_steps(decay):
    x, y = easy_problem(20, LENGTH)
    trainer = Trainer(TinyNet(), config(epochs=6, batch_size=20, average=decay), 20)
    reports = training.train(trainer, x, y, training.init_states(trainer, x), 1)
    each = [host(states[0]) for states, _ in reports]
    shares = decay ** np.arange(5, -1, -1.0)
    expected = jax.tree.map(
        lambda *leaves: np.average(np.stack(leaves), axis=0, weights=shares),
        *[state.params for state in each],
    )
    (variables,) = training.recalibrated(trainer, x, (each[-1],))
    for found, value in zip(
        jax.tree.leaves(variables["params"]), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)
    # The statistics are those of the averaged weights, and nothing else of the training changed.
    plain = Trainer(TinyNet(), config(epochs=6, batch_size=20), 20)
    (alone,), _ = run(plain, x, y)
    assert_same(each[-1].params, alone.params)
    state = dataclasses.replace(alone, params=variables["params"])
    assert_same(variables, training.recalibrated(plain, x, (state,))[0])


# Settings


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objective": "hinge"}, "unknown objective 'hinge'; choose from cross_entropy, two_views"),
        ({"objective": ["ensemble"]}, "unknown objective"),
        *[({"average": bad}, "average must be") for bad in (0.0, 1.0, -1.0, float("nan"))],
        ({"average": 0.9, "recalibration_passes": 0}, "average needs recalibration_passes"),
        ({"objective": "ensemble", "ensemble": "single"}, "objective ensemble is for mb and mc"),
        ({"objective": "ensemble", "ensemble": "mw", "burst": 3}, "not for mw"),
        ({"objective": "smoothmix", "sigma": 0.0}, "sigma must be above 0"),
        ({"objective": "two_views", "ensemble": "de", "sigma": 0.0}, "the same for de"),
        ({"consistency_weight": 2.0}, "consistency_weight is of the objective consistency"),
        ({"objective": "smoothmix", "entropy_weight": 0.0}, "entropy_weight is of the objective"),
        *[
            ({"objective": "consistency", name: bad}, f"{name} must be a finite number")
            for name in ("consistency_weight", "entropy_weight")
            for bad in (-1.0, float("inf"), float("nan"))
        ],
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(changes, says):
    with pytest.raises(UserError, match=says) as caught:
        config(**changes)
    assert "\n" not in str(caught.value)


# The classifier and the commands

ASKED = ("--objective=consistency", "--average=0.9")
MODEL = ("--model=lstm_fcn", "--sigma=0.5")
TRAIN = (*MODEL, "--epochs=3")
CERTIFY = (*MODEL, "--num_draws=100", "--num_masks=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objectives")
    make_npz(folder / "own.npz")
    call(folder, "train", "--dataset=own.npz", *TRAIN, *ASKED)
    return folder


RUN = "runs/own/lstm_fcn/mc/sigma=0.5/seed=0"


def test_a_run_of_another_objective_is_certified_as_what_it_is(folder):
    record = json.loads((folder / RUN / "config.json").read_text())
    assert (record["objective"], record["average"]) == ("consistency", 0.9)
    done = call(folder, "certify", "--dataset=own.npz", *CERTIFY, *ASKED)
    assert "accuracy of the most voted class" in done.stdout
    by_place = call(folder, "certify", "--dataset=own.npz", f"--run_dir={RUN}", "--num_draws=100")
    assert "accuracy of the most voted class" in by_place.stdout


@pytest.mark.parametrize("script", ["train", "certify"])
def test_it_is_not_taken_for_the_default_or_another(folder, script):
    flags = TRAIN if script == "train" else CERTIFY
    said = error_of(folder, script, "--dataset=own.npz", *flags)
    assert "objective is 'consistency', not 'cross_entropy'" in said
    assert "average is 0.9, not None" in said
    said = error_of(folder, script, "--dataset=own.npz", *flags, ASKED[0], "--average=0.8")
    assert "average is 0.9, not 0.8" in said
    assert "objective" not in said.split("otherwise")[1]


def test_commands_say_what_does_not_go_together(folder):
    command = ("train", "--model=lstm_fcn", "--seed=5")
    assert_refused(folder, "average must be between 0 and 1", *command, "--average=1")
    single = ("--objective=ensemble", "--ensemble=single")
    assert_refused(folder, "objective ensemble is for mb and mc", *command, *single)
    assert_refused(folder, "--objective=consistency", *command, "--entropy_weight=0.5")
    other = error_of(folder, "certify", "--dataset=own.npz", *CERTIFY, "--seed=5", *ASKED)
    assert "--objective=consistency --average=0.9 --seed=5" in other


def test_a_finished_run_of_the_default_is_known_by_its_record(folder):
    call(folder, "train", "--dataset=own.npz", *TRAIN, "--seed=1")
    file = folder / RUN.replace("seed=0", "seed=1") / "config.json"
    record = json.loads(file.read_text())
    assert "objective" not in record
    assert "average" not in record
    said = error_of(folder, "train", "--dataset=own.npz", *TRAIN, "--seed=1", *ASKED)
    assert "objective is 'cross_entropy', not 'consistency'; average is None, not 0.9" in said
    done = call(folder, "train", "--dataset=own.npz", *TRAIN, "--seed=1")
    assert "already been trained" in done.stderr


def test_the_classifier_trains_the_network_of_the_command(folder, tmp_path):
    with np.load(folder / "own.npz") as arrays:
        X, y = arrays["X_train"], arrays["y_train"]
    clf = SelfEnsembleClassifier(
        model="lstm_fcn", sigma=0.5, epochs=3, objective="consistency", average=0.9
    ).fit(X, y)
    _, variables, _ = runs.load_networks(folder / RUN)
    assert_same(host(clf.variables_), host(variables))
    clf.save(tmp_path / "saved")
    loaded = SelfEnsembleClassifier.load(tmp_path / "saved")
    assert (loaded.objective, loaded.average) == ("consistency", 0.9)
    assert SelfEnsembleClassifier.load(folder / RUN).objective == "consistency"
    for bad in ({"objective": "hinge"}, {"average": 2}, {"average": "much"}):
        with pytest.raises(UserError, match=next(iter(bad))):
            SelfEnsembleClassifier(**bad).fit(X, y)
