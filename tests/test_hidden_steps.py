"""What a network is shown of hidden steps, in training and in certification."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Recorder, TinyNet, default_grid, easy_problem, grid_noise, init, to_grid
from orbax.checkpoint import v1 as ocp
from test_scripts import assert_refused, call, error_of, make_npz

from selfens_jax import SelfEnsembleClassifier, backend, masks, runs, training
from selfens_jax.ensembles import self_ensemble
from selfens_jax.errors import UserError
from selfens_jax.models.lstm_fcn import LSTMFCN
from selfens_jax.streams import stream
from selfens_jax.training import TrainConfig, Trainer

EVERY = pytest.mark.parametrize("hidden_as", masks.HIDDEN_AS)
OTHERS = tuple(name for name in masks.HIDDEN_AS if name != "zero")


def shown_by_hand(x: np.ndarray, mask: np.ndarray, hidden_as: str) -> np.ndarray:
    """One series (T, C) under one mask (T,), a step at a time."""
    kept = [step for step in range(len(x)) if mask[step]]
    rows = []
    for step in range(len(x)):
        row = x[step] if step in kept else np.zeros_like(x[step])
        if hidden_as == "last" and step not in kept and kept:
            before = [other for other in kept if other < step]
            row = x[before[-1] if before else kept[0]]
        if hidden_as == "scaled" and kept:
            row = row * len(x) / len(kept)
        if hidden_as == "indicator":
            row = np.append(row, float(step in kept))
        rows.append(row)
    return np.stack(rows).astype(np.float32)


MASKS = np.array(
    [
        [1, 1, 1, 1, 1, 1],
        [0, 0, 1, 0, 1, 0],
        [1, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0],
    ],
    np.float32,
)


def series(number: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(number, 6, channels)).astype(np.float32)


@EVERY
@pytest.mark.parametrize("channels", [1, 2])
def test_hidden_steps_are_shown_as_said(hidden_as, channels):
    x = series(len(MASKS), channels)
    found = jax.jit(masks.hide, static_argnums=2)(x, MASKS, hidden_as)
    expected = np.stack([shown_by_hand(*one, hidden_as) for one in zip(x, MASKS, strict=True)])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@EVERY
def test_nothing_is_shown_of_the_values_of_hidden_steps(hidden_as):
    x = series(len(MASKS), 2)
    other = np.where(MASKS[..., None] > 0, x, 1e6 * (1 + x**2))
    shown = [np.asarray(masks.hide(jnp.asarray(v), MASKS, hidden_as)) for v in (x, other)]
    np.testing.assert_array_equal(*shown)


@EVERY
def test_a_mask_of_ones_shows_the_series(hidden_as):
    x = series(3, 2)
    shown = np.asarray(masks.hide(jnp.asarray(x), jnp.ones((3, 6)), hidden_as))
    np.testing.assert_array_equal(shown[..., :2], x)
    assert shown.shape[-1] == 2 + (hidden_as == "indicator")
    assert (shown[..., 2:] == 1).all()


@EVERY
@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_a_self_ensemble_shows_every_series_under_every_mask(hidden_as, target):
    x = series(3, 2)
    network = TinyNet()
    variables = init(network, np.zeros((1, 6, 2 + (hidden_as == "indicator")), np.float32))
    with backend.compiling_for(target):
        found = self_ensemble(network, variables, MASKS, hidden_as).logits(jnp.asarray(x))
    for logits, mask in zip(found, MASKS, strict=True):
        shown = np.stack([shown_by_hand(one, mask, hidden_as) for one in x])
        expected = network.apply(variables, shown, train=False)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


@EVERY
def test_training_and_its_statistics_are_of_what_is_shown(hidden_as):
    x, y = easy_problem(8, 12)
    config = TrainConfig(
        ensemble="mb", sigma=0.5, keep=0.6, epochs=1, batch_size=8, hidden_as=hidden_as
    )
    trainer = Trainer(Recorder(8), config, len(x))
    states = training.init_states(trainer, x)

    def expected(noise):
        rows, own, _ = training._due(trainer.step, noise, jnp.int32(0))
        noise_key, mask_key = jax.random.split(own.key)
        noisy = x[rows] + np.float32(0.5) * np.asarray(jax.random.normal(noise_key, x.shape))
        drawn = np.asarray(masks.binomial(mask_key, len(x), 12, 0.6))
        return np.stack([shown_by_hand(v, m, hidden_as) for v, m in zip(noisy, drawn, strict=True)])

    ((states, _),) = training.train(trainer, x, y, states)
    (noise,) = trainer.noise("training")
    np.testing.assert_allclose(states[0].batch_stats["seen"], expected(noise), rtol=1e-5)


@pytest.mark.parametrize(
    ("hidden_as", "ensemble", "says"),
    [
        ("previous", "mc", "unknown hidden_as 'previous'; choose from zero, last"),
        (["last"], "mc", "unknown hidden_as"),
        *[("last", ensemble, f"not of {ensemble}") for ensemble in ("single", "de", "mw")],
    ],
)
def test_what_cannot_be_meant_is_refused(hidden_as, ensemble, says):
    burst = {"burst": 2} if ensemble == "mw" else {}
    with pytest.raises(UserError, match=says):
        TrainConfig(ensemble=ensemble, hidden_as=hidden_as, **burst)


@EVERY
def test_smoothmix_mixes_what_is_shown(hidden_as):
    x, y = easy_problem(8, 12)
    config = TrainConfig(
        ensemble="mb", sigma=0.5, keep=0.6, epochs=2, batch_size=8, hidden_as=hidden_as,
        objective="smoothmix", recalibration_passes=2,
    )  # fmt: skip
    (variables,), rows = training.fit(TinyNet(), x, y, config)
    assert np.isfinite([row["loss"] for row in rows]).all()
    channels = variables["params"]["Conv_0"]["kernel"].shape[1]
    assert channels == 1 + (hidden_as == "indicator")


def test_a_self_ensemble_knows_what_it_can_show():
    with pytest.raises(UserError, match="unknown hidden_as 'mean'"):
        self_ensemble(TinyNet(), {}, MASKS, "mean")


def test_records_leave_the_default_out():
    assert "hidden_as" not in TrainConfig().settings()
    assert TrainConfig(hidden_as="last").settings()["hidden_as"] == "last"
    assert training.completed({})["hidden_as"] == "zero"


# The commands and the classifier. 16 steps, two channels, a third of them hidden.

KEEP, SIGMA, NUM_DRAWS = 0.7, 0.5, 60
MODEL = ("--model=lstm_fcn", f"--sigma={SIGMA}", f"--keep={KEEP}")
TRAIN = (*MODEL, "--epochs=3")
CERTIFY = (*MODEL, f"--num_draws={NUM_DRAWS}", "--num_masks=3", "--num_examples=6", "--alpha=0.05")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hidden")
    make_npz(folder / "own.npz", channels=2)
    return folder


def trained(folder, ensemble, hidden_as):
    asked = (f"--ensemble={ensemble}", f"--hidden_as={hidden_as}", f"--runs_dir={hidden_as}")
    call(folder, "train", "--dataset=own.npz", *TRAIN, *asked)
    return asked, folder / hidden_as / "own" / "lstm_fcn" / ensemble / f"sigma={SIGMA}" / "seed=0"


def variables_of(run, channels):
    """Those in the checkpoint, read by Orbax."""
    like = jax.eval_shape(LSTMFCN(2).init, jax.random.key(0), jnp.zeros((1, 16, channels)))
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype, sharding=sharding),
        dict(like),
    )
    return jax.tree.map(lambda leaf: leaf[0], ocp.load(run / "checkpoint", abstract))


@pytest.mark.parametrize(
    ("ensemble", "hidden_as"), [("mb", "last"), ("mb", "scaled"), ("mc", "indicator")]
)
def test_votes_are_those_of_what_is_shown(folder, ensemble, hidden_as):
    asked, run = trained(folder, ensemble, hidden_as)
    call(folder, "certify", "--dataset=own.npz", *CERTIFY, *asked)
    (file,) = run.glob("counts-*.npz")
    with np.load(file) as arrays:
        counts, indices = arrays["counts"], arrays["indices"]
        assert json.loads(str(arrays["settings"]))["hidden_as"] == hidden_as
    variables = variables_of(run, 2 + (hidden_as == "indicator"))
    draw = {"mb": masks.binomial, "mc": masks.continuous}[ensemble]
    drawn = np.asarray(draw(stream(0, "masks"), 3, 16, KEEP))
    with np.load(folder / "own.npz") as arrays:
        x = arrays["X_test"].astype(np.float32)
    grid = default_grid(SIGMA)
    network = jax.jit(lambda shown: LSTMFCN(2).apply(variables, shown, train=False))
    for index, row in zip(indices, counts, strict=True):
        of_example = jax.random.fold_in(stream(0, "certification"), int(index))
        keys = [jax.random.fold_in(of_example, d) for d in range(NUM_DRAWS)]
        noise = np.stack([grid_noise(key, x[index].shape, SIGMA, grid) for key in keys])
        noisy = (to_grid(x[index], grid) + noise).astype(np.float32)
        logits = [
            network(np.stack([shown_by_hand(one, mask, hidden_as) for one in noisy]))
            for mask in drawn
        ]
        votes = np.mean(logits, axis=0).argmax(axis=1)
        np.testing.assert_array_equal(row, np.bincount(votes, minlength=2))


def test_every_command_takes_such_a_run(folder):
    _, run = trained(folder, "mc", "indicator")
    place = ("--dataset=own.npz", f"--run_dir={run}", "--num_examples=4")
    few = (*place, "--num_draws=60")
    done = call(folder, "certify", *few, "--alpha=0.05", "--report")
    (page,) = run.glob("*.html")
    assert "indicator" in page.read_text()
    assert "accuracy of the most voted class" in done.stdout
    assert "mc, hidden steps as indicator, sigma" in done.stdout
    assert "certified" in call(folder, "certify", *place, "--target_radius=0.05").stdout
    call(folder, "attack", *few, "--steps=2", "--epsilons=0.1")
    call(folder, "margins", *few, "--num_random_masks=4", "--ensemble_sizes=1,2")


def test_it_is_not_taken_for_the_default_or_another(folder):
    asked, _ = trained(folder, "mc", "last")
    place = asked[2]
    for script, flags in (("train", TRAIN), ("certify", CERTIFY)):
        said = error_of(folder, script, "--dataset=own.npz", *flags, place)
        assert "hidden_as is 'last', not 'zero'" in said
        said = error_of(folder, script, "--dataset=own.npz", *flags, place, "--hidden_as=scaled")
        assert "hidden_as is 'last', not 'scaled'" in said
    said = error_of(folder, "certify", "--dataset=own.npz", *CERTIFY, *asked, "--seed=5")
    assert "--hidden_as=last" in said.split("this trains it")[1]
    said = error_of(folder, "certify", "--dataset=own.npz", "--ensemble=single", *asked[1:])
    assert "not of single: leave it out" in said
    single = ("--hidden_as=last", "--ensemble=single")
    assert_refused(folder, "not of single: leave it out", "train", "--model=lstm_fcn", *single)


def test_the_classifier_trains_the_network_of_the_command(folder, tmp_path):
    _, run = trained(folder, "mc", "indicator")
    with np.load(folder / "own.npz") as arrays:
        X, y, new = arrays["X_train"], arrays["y_train"], arrays["X_test"]
    own = {"model": "lstm_fcn", "sigma": SIGMA, "keep": KEEP, "epochs": 3}
    clf = SelfEnsembleClassifier(**own, hidden_as="indicator").fit(X, y)
    _, variables, _ = runs.load_networks(run)
    for a, b in zip(jax.tree.leaves(clf.variables_), jax.tree.leaves(variables), strict=True):
        np.testing.assert_array_equal(a, b)
    clf.save(tmp_path / "saved")
    loaded = SelfEnsembleClassifier.load(tmp_path / "saved")
    assert loaded.hidden_as == "indicator"
    shares = [each.predict_proba(new, num_draws=40) for each in (clf, loaded)]
    np.testing.assert_array_equal(*shares)
    burst = loaded.certify_bursts(new[:2], 2)[2]
    assert burst.certified.shape == (2,)
    with pytest.raises(UserError, match="unknown hidden_as 'mean'"):
        SelfEnsembleClassifier(**own, hidden_as="mean").fit(X, y)


def test_a_record_of_another_word_is_damaged(folder, tmp_path):
    _, run = trained(folder, "mc", "last")
    config = json.loads((run / "config.json").read_text()) | {"hidden_as": "mean"}
    config.pop("crc32")
    runs.write_json(tmp_path / "config.json", config)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        runs.read_config(tmp_path)
