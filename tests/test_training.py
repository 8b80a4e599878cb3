"""Algorithm 1: what the network is shown, in which order, and that a run can be cut anywhere."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from helpers import (
    Recorder,
    TinyNet,
    assert_binomial,
    assert_same,
    assert_uncorrelated,
    easy_problem,
)

from selfens_jax import models, training
from selfens_jax.errors import UserError
from selfens_jax.training import TrainConfig, Trainer

LENGTH = 16


def config(**changes) -> TrainConfig:
    defaults = {"ensemble": "mb", "sigma": 0.5, "keep": 0.8, "epochs": 6, "batch_size": 8}
    return TrainConfig(**(defaults | {"recalibration_passes": 3} | changes))


def host(states):
    """Copies on the host, as a checkpoint holds them."""
    return jax.tree.map(np.array, states)


def run(trainer, x, y, states=None, epochs_per_report=10):
    """(final states on the host, history rows)"""
    reports = list(
        (host(after), rows)
        for after, rows in training.train(
            trainer, x, y, states or training.init_states(trainer, x), epochs_per_report
        )
    )
    return reports[-1][0], [row for _, rows in reports for row in rows]


@pytest.fixture(scope="module")
def problem():
    return easy_problem(20, LENGTH)


@pytest.fixture(scope="module")
def trained(problem):
    """A run of three steps an epoch that is never cut."""
    trainer = Trainer(TinyNet(), config(), num_examples=20)
    return trainer, *run(trainer, *problem)


# Learning


def test_an_easy_problem_is_learned(problem):
    x, y = problem
    model = models.create("lstm_fcn", num_classes=2)
    settings = config(epochs=30, batch_size=20, learning_rate=1e-2)
    (variables,), history = training.fit(model, x, y, settings)
    assert [row["epoch"] for row in history] == list(range(1, 31))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["accuracy"] > 0.9
    logits = jax.jit(lambda x: model.apply(variables, x, train=False))(x)
    assert (np.asarray(logits).argmax(axis=1) == y).mean() > 0.9


def test_the_seed_fixes_every_bit(trained, problem):
    trainer, states, history = trained
    again, history_again = run(trainer, *problem)
    assert_same(again, states)
    assert history_again == history

    other = Trainer(TinyNet(), config(seed=1), num_examples=20)
    other_states, _ = run(other, *problem)
    for a, b in zip(
        jax.tree.leaves(other_states[0].params), jax.tree.leaves(states[0].params), strict=True
    ):
        assert (a != b).any()


def test_a_run_cut_at_any_report_ends_with_the_same_bits(trained, problem):
    trainer, expected, history = trained
    reports = training.train(trainer, *problem, training.init_states(trainer, problem[0]), 1)
    cuts = [(host(states), rows) for states, rows in reports]
    assert [rows for _, rows in cuts] == [[row] for row in history]
    assert_same(cuts[-1][0], expected)
    for done in (1, 2, 5):
        kept = host(cuts[done - 1][0])
        states, rows = run(trainer, *problem, states=cuts[done - 1][0], epochs_per_report=4)
        assert_same(states, expected)
        assert rows == history[done:]
        assert_same(cuts[done - 1][0], kept)  # what was handed over is left alone
    assert list(training.train(trainer, *problem, expected)) == []


def test_members_differ_and_each_is_itself_in_any_company(trained, problem):
    trainer_of_one, alone, history = trained
    trainer = Trainer(TinyNet(), config(num_members=2), num_examples=20)
    pair, history_of_pair = run(trainer, *problem)
    assert_same(pair[0], alone[0])
    assert [row for row in history_of_pair if row["member"] == 0] == history
    for a, b in zip(jax.tree.leaves(pair[0].params), jax.tree.leaves(pair[1].params), strict=True):
        assert (a != b).any()
    finished = training.recalibrated(trainer, problem[0], pair)
    assert_same(finished[0], training.recalibrated(trainer_of_one, problem[0], alone)[0])


def side_by_side(problem, trainers):
    """(final states on the host, history rows) of each run"""
    states = [training.init_states(trainer, problem[0]) for trainer in trainers]
    reports = list(training.train_side_by_side(trainers, *problem, states, epochs_per_report=4))
    return [
        (host(ended), [row for report in reports for row in report[run][1]])
        for run, (ended, _) in enumerate(reports[-1])
    ]


RUNS = ({"sigma": 0.5}, {"sigma": 0.1}, {"sigma": 0.5, "seed": 3})


def test_runs_side_by_side_are_each_themselves(problem):
    trainers = [Trainer(TinyNet(), config(num_members=2, **own), 20) for own in RUNS]
    together = side_by_side(problem, trainers)
    for trainer, (states, history) in zip(trainers, together, strict=True):
        alone, history_alone = run(trainer, *problem)
        assert_same(states, alone)
        assert history == history_alone
    losses = {history[0]["loss"] for _, history in together}
    assert len(losses) == len(RUNS)


def test_an_accelerator_trains_runs_side_by_side_in_one_program(problem, monkeypatch):
    trainers = [Trainer(TinyNet(), config(epochs=2, **own), 20) for own in RUNS]
    expected = [run(trainer, *problem) for trainer in trainers]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    programs = training._scanned_steps._cache_size()
    together = side_by_side(problem, trainers)
    assert training._scanned_steps._cache_size() == programs + 1
    for (states, history), (alone, history_alone) in zip(together, expected, strict=True):
        for a, b in zip(jax.tree.leaves(states), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
        for row, other in zip(history, history_alone, strict=True):
            assert row == pytest.approx(other, rel=1e-4)


def test_runs_side_by_side_may_differ_in_sigma_and_seed_only(problem):
    trainers = [Trainer(TinyNet(), config(keep=keep), 20) for keep in (0.8, 0.9)]
    with pytest.raises(UserError, match="sigma and seed"):
        side_by_side(problem, trainers)


def test_an_accelerator_reports_after_some_hundred_steps(problem, monkeypatch):
    trainer = Trainer(TinyNet(), config(epochs=70), num_examples=20)  # of three steps an epoch
    counted = []
    monkeypatch.setattr(training, "_advance", lambda *args: counted.append(args[-1]) or ((), {}))
    monkeypatch.setattr(training, "_rows", lambda *_: [])
    monkeypatch.setattr(training, "_refuse_divergence", lambda *_: None)
    for kind, expected in (("cpu", [30] * 7), ("gpu", [99, 99, 12])):
        counted.clear()
        monkeypatch.setattr(jax, "default_backend", lambda kind=kind: kind)
        states = training.init_states(trainer, problem[0])
        list(training.train(trainer, *problem, states))
        assert counted == expected


@pytest.mark.parametrize(("at_once", "turns"), [(6, (1, 6)), (5, (2, 3)), (0, (6, 1))])
def test_an_accelerator_scans_to_the_same_parameters(at_once, turns, problem, monkeypatch):
    """Also where the batches of some steps only may be made at once."""
    trainer = Trainer(TinyNet(), config(num_members=2, epochs=2, batch_size=7), num_examples=20)
    expected, history = run(trainer, *problem)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    of_a_step = 4 * 7 * problem[0][0].size * 2
    monkeypatch.setattr(training, "MADE_AT_ONCE", at_once * of_a_step)
    training._scanned_steps.clear_cache()
    scans, scan = [], jax.lax.scan
    monkeypatch.setattr(
        jax.lax,
        "scan",
        lambda *args, **kwargs: scans.append((args, kwargs)) or scan(*args, **kwargs),
    )
    states, scanned_history = run(trainer, *problem)
    outer, inner = scans[:2]
    assert (outer[1]["length"], len(inner[0][2].y)) == turns
    assert jax.tree.structure(states) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(states), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert len(scanned_history) == len(history) == 4
    for row, other in zip(scanned_history, history, strict=True):
        assert row == pytest.approx(other, rel=1e-4)


# Batches


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "steps", "size"),
    [(12, 4, 3, 4), (12, 5, 3, 4), (10, 4, 3, 4), (7, 128, 1, 7), (300, 128, 3, 100), (1, 8, 1, 1)],
)
def test_every_series_is_seen_every_epoch(num_examples, batch_size, steps, size):
    trainer = Trainer(TinyNet(), config(batch_size=batch_size), num_examples)
    assert (trainer.steps_per_epoch, trainer.step.batch_size) == (steps, size)
    rows_of = partial(training._batch_rows, trainer.step, jax.random.key(0))
    rows = jax.jit(jax.vmap(rows_of))
    epochs = np.asarray(rows(jnp.arange(5 * steps))).reshape(5, steps * size)
    for seen in epochs:
        times = np.bincount(seen, minlength=num_examples)
        assert times.min() == 1
        assert times.max() <= 2
        assert times.sum() == steps * size
    if num_examples > 5:
        assert len(np.unique(epochs, axis=0)) == 5  # a new order each


def test_class_weights_give_every_class_the_same_share():
    weights = training.class_weights(np.array([0, 0, 0, 1, 2, 2]), 3)
    np.testing.assert_allclose(weights, [6 / 9, 6 / 3, 6 / 6])


def test_the_loss_is_balanced(problem):
    # Logits (0, 1): the cross-entropies are log(1 + e) and log(1 + 1/e), however many of each.
    y = np.array([0] * 17 + [1] * 3)
    trainer = Trainer(Recorder(20), config(epochs=1, batch_size=20), num_examples=20)
    _, (row,) = run(trainer, problem[0], y)
    assert row["loss"] == pytest.approx((np.log1p(np.e) + np.log1p(1 / np.e)) / 2)
    assert row["accuracy"] == pytest.approx(3 / 20)


def test_the_loss_is_that_of_the_series_without_class_weights(problem):
    y = np.array([0] * 17 + [1] * 3)
    settings = config(epochs=1, batch_size=20, class_weights="none")
    _, (row,) = run(Trainer(Recorder(20), settings, num_examples=20), problem[0], y)
    assert row["loss"] == pytest.approx((17 * np.log1p(np.e) + 3 * np.log1p(1 / np.e)) / 20)


# Noise and masks


def shown(x: np.ndarray, changes: dict, steps: int = 3) -> np.ndarray:
    """The inputs of each of the first steps of training, (steps, B, T, C)."""
    trainer = Trainer(Recorder(len(x)), config(epochs=steps, batch_size=len(x), **changes), len(x))
    y = np.arange(len(x)) % 2
    reports = training.train(trainer, x, y, training.init_states(trainer, x), epochs_per_report=1)
    return np.stack([np.array(states[0].batch_stats["seen"]) for states, _ in reports])


@pytest.mark.parametrize(("ensemble", "sigma"), [("de", 0.5), ("mb", 0.5), ("mc", 0.0)])
def test_masks_hide_the_noise_too(ensemble, sigma):
    inputs = shown(
        np.ones((12, 20, 2), np.float32), {"ensemble": ensemble, "sigma": sigma, "keep": 0.6}
    )
    hidden = (inputs == 0).all(axis=-1)
    np.testing.assert_array_equal(hidden, (inputs == 0).any(axis=-1))  # all channels together
    kept = inputs[~hidden]
    if sigma:
        assert len(np.unique(kept)) > 0.99 * kept.size
    else:
        assert (kept == 1).all()
    if ensemble == "de":
        assert not hidden.any()
        return
    if ensemble == "mc":
        assert (hidden.sum(axis=-1) == 8).all()  # 0.4 * 20
    assert_binomial(hidden.sum(), hidden.size, 0.4, error=1e-9)
    # A fresh mask for every step and series: some of 630 pairs may agree by chance, not many.
    masks = hidden.reshape(-1, 20)
    assert len(np.unique(masks, axis=0)) > 0.9 * len(masks)


def test_noise_is_gaussian_and_fresh_for_every_step_series_and_channel():
    x = np.full((4, 500, 2), 3.0, np.float32)
    noise = shown(x, {"ensemble": "single", "sigma": 0.25}) - 3.0
    # Within one deviation with probability 0.6827, within two 0.9545. Error probability: 1e-9.
    for deviations, p in ((1, 0.682689492137), (2, 0.954499736104)):
        assert_binomial((np.abs(noise) < deviations * 0.25).sum(), noise.size, p, error=1e-9)
    rows = np.moveaxis(noise, -1, 2).reshape(-1, 500)
    assert len(rows) == 24
    assert_uncorrelated(rows, error=1e-9)


def test_single_without_sigma_is_shown_the_series_themselves(problem):
    x, _ = problem
    inputs = shown(x, {"ensemble": "single", "sigma": 0.0})
    for batch in inputs:
        order = np.lexsort(batch[:, :, 0].T)
        np.testing.assert_array_equal(batch[order], x[np.lexsort(x[:, :, 0].T)])


# Learning rate


def test_the_rate_halves_on_a_plateau_down_to_the_floor(problem):
    class Indifferent(nn.Module):
        """Its loss never changes."""

        num_classes: int = 2

        @nn.compact
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            nothing = self.param("nothing", nn.initializers.zeros, ())
            self.variable("batch_stats", "nothing", jnp.zeros, ())
            return jnp.zeros((len(x), 2)) + 0 * nothing

    settings = config(epochs=20, batch_size=10, plateau_patience=3)
    x, y = np.zeros((20, 4, 1), np.float32), problem[1]
    _, history = run(Trainer(Indifferent(), settings, num_examples=20), x, y)
    rates = [row["learning_rate"] for row in history]
    # Epoch 1 sets the best loss; each further 3 without a better one halve the rate.
    expected = [1e-3] * 3 + [5e-4] * 3 + [2.5e-4] * 3 + [1.25e-4] * 3 + [1e-4] * 8
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_the_rate_stays_while_the_loss_falls(problem):
    x, y = problem
    trainer = Trainer(
        Linear(), config(ensemble="single", sigma=0.0, batch_size=10, plateau_patience=1), 20
    )
    _, history = run(trainer, x, y)
    losses = [row["loss"] for row in history]
    assert (np.diff(losses) < 0).all()
    assert all(row["learning_rate"] == pytest.approx(1e-3) for row in history)


class Linear(nn.Module):
    num_classes: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        self.variable("batch_stats", "none", jnp.zeros, ())
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros)(x[:, :, 0])


def test_the_rate_is_the_size_of_a_step(problem):
    x, y = problem
    trainer = Trainer(Linear(), config(ensemble="single", sigma=0.0, epochs=1, batch_size=20), 20)
    (start,) = host(training.init_states(trainer, x))
    adam, plateau = start.opt_state
    slower = dataclasses.replace(start, opt_state=(adam, plateau._replace(scale=np.float32(0.25))))
    (full,), _ = run(trainer, x, y, (start,))
    (quarter,), (row,) = run(trainer, x, y, (slower,))
    assert row["learning_rate"] == pytest.approx(2.5e-4)
    steps = [state.params["Dense_0"]["kernel"] for state in (full, quarter)]
    # Adam's first step is the rate itself, wherever the gradient is not tiny.
    np.testing.assert_allclose(np.abs(steps[0]), 1e-3, rtol=1e-3)
    np.testing.assert_allclose(steps[1], steps[0] / 4, rtol=1e-5)


# BatchNorm statistics


class Norm(nn.Module):
    """BatchNorm of the input itself, at two depths of the tree."""

    num_classes: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)(x)
        return nn.Dense(self.num_classes)(y.mean(axis=1))


def test_final_statistics_equal_a_direct_computation():
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(12, 10, 2)).astype(np.float32)
    settings = config(ensemble="single", sigma=0.0, batch_size=12, recalibration_passes=4)
    trainer = Trainer(Norm(), settings, num_examples=12)
    states = training.init_states(trainer, x)
    (variables,) = training.recalibrated(trainer, x, states)
    statistics = variables["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(statistics["mean"], x.mean(axis=(0, 1)), rtol=1e-4)
    np.testing.assert_allclose(statistics["var"], x.var(axis=(0, 1)), rtol=1e-4)
    assert_same(variables["params"], states[0].params)


def test_final_statistics_see_noise_and_masks():
    x = np.full((40, 20, 1), 2.0, np.float32)
    settings = config(ensemble="mc", sigma=1.0, keep=0.7, batch_size=20, recalibration_passes=50)
    trainer = Trainer(Norm(), settings, num_examples=40)
    (variables,) = training.recalibrated(trainer, x, training.init_states(trainer, x))
    statistics = variables["batch_stats"]["BatchNorm_0"]
    # Of 20,000 values 0.7 are 2 + noise, the rest 0: mean 1.4, variance 0.7 (4 + 1) - 1.4^2 = 1.54.
    # The mean's deviation is sqrt(0.7 / 20000) = 0.006 as the masks' total is fixed; the
    # variance's is below 0.03 (fourth moments at most 43): 7 deviations, error below 1e-10.
    np.testing.assert_allclose(statistics["mean"], 1.4, atol=0.042)
    np.testing.assert_allclose(statistics["var"], 1.54, atol=0.21)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_one_number_that_is_not_finite_is_enough(broken):
    leaves = {"a": jnp.ones(3), "b": jnp.array([0.0, broken])}
    training.check_finite({"a": leaves["a"]}, "the network", "train again")
    with pytest.raises(UserError, match="the network holds numbers that are not finite; train ag"):
        training.check_finite(leaves, "the network", "train again")


def test_without_recalibration_the_running_averages_stay(trained, problem):
    _, states, _ = trained
    trainer = Trainer(TinyNet(), config(recalibration_passes=0), num_examples=20)
    (variables,) = training.recalibrated(trainer, problem[0], states)
    assert_same(variables, states[0].variables)
    assert set(variables) == {"params", "batch_stats"}


# Settings


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("ensemble", "mask"),
        ("class_weights", "inverse"),
        *[("sigma", bad) for bad in (-0.1, float("nan"), float("inf"))],
        *[("keep", bad) for bad in (0.0, 1.5, float("nan"))],
        *[("learning_rate", bad) for bad in (0.0, float("nan"))],
        *[(name, 0) for name in ("num_members", "epochs", "batch_size")],
        *[("seed", bad) for bad in (-1, 2**32)],
    ],
)
def test_bad_settings_are_refused_in_one_line(name, bad):
    with pytest.raises(UserError, match=name) as caught:
        TrainConfig(**{name: bad})
    assert "\n" not in str(caught.value)


def test_the_step_counts_on(trained):
    trainer, states, _ = trained
    assert int(states[0].step) == 6 * trainer.steps_per_epoch == 18
    assert optax.tree.get(states[0].opt_state, "ScaleByAdamState").count == 18
