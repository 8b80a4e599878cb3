"""The examples run, and what they print is so."""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from selfens_jax import smoothing, streams, synthetic
from selfens_jax.certificates import certify_counts

FOLDER = pathlib.Path(__file__).parents[1] / "examples"
TINY = {"num_train": 12, "num_test": 5, "num_draws": 100}
ROW = re.compile(r"(.{24}) +([\d.]+)% +([\d.]+)% +([\d.]+)")
REMEDY = {"torch": "needs PyTorch: python -m pip install torch"}
REMEDY["aeon"] = "needs aeon: python -m pip install aeon"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example's main; returns its module, the rows that it printed and its certificates."""

    def call(name: str, **settings):
        monkeypatch.syspath_prepend(FOLDER)
        example = importlib.import_module(name)
        results = []

        def certify(predict, x, **settings):
            found = original(predict, x, **settings)
            results.append((predict, x, settings, found))
            return found

        original = example.certify
        monkeypatch.setattr(example, "certify", certify)
        used = TINY | settings
        example.main(**used)
        printed = capsys.readouterr().out
        rows = {m[1].strip(): m.groups()[1:] for m in map(ROW.fullmatch, printed.splitlines()) if m}
        assert "probability 99.9 %" in printed
        assert len(rows) == len(results)
        for row, result in zip(rows.values(), results, strict=True):
            check(example, used, row, *result)
        return example, rows, results

    return call


def check(example, used, row, predict, x, settings, found):
    """A printed row is that of the certificates, and these are those of votes counted again."""
    series, labels = synthetic.cbf(1, used["num_test"])
    np.testing.assert_array_equal(x, series)
    assert settings["sigma"] == example.SIGMA == 0.5
    assert settings["num_draws"] == used["num_draws"]
    correct = found.prediction == labels - 1
    radius = np.floor(1000 * (found.radius * correct).mean()) / 1000
    expected = (100 * correct.mean(), 100 * (found.prediction < 0).mean(), radius)
    assert row == (f"{expected[0]:.1f}", f"{expected[1]:.1f}", f"{expected[2]:.3f}")

    logits = smoothing.draw_logits(
        as_a_function(predict, settings),
        series[:, :, None],
        sigma=0.5,
        num_draws=used["num_draws"],
        key=streams.stream(0, "certification"),
    )
    counts = [np.bincount(votes, minlength=3) for votes in logits.argmax(axis=-1)]
    again = certify_counts(counts, 0.5)
    # Draws are cut into other blocks here: of 100 votes one may differ by rounding. From 100 to 99
    # the radius falls by 0.15 sigma, its largest step; the grid takes another 2^-14 * sqrt(128).
    np.testing.assert_allclose(again.radius, found.radius, atol=0.08)
    both = (again.prediction >= 0) & (found.prediction >= 0)
    assert both.sum() >= (found.prediction >= 0).sum() - 1
    np.testing.assert_array_equal(again.prediction[both], found.prediction[both])


def as_a_function(predict, settings):
    if "variables" not in settings:
        return predict
    ones = np.ones((1, synthetic.CBF_LENGTH))
    return smoothing.self_ensemble(predict, settings["variables"], ones)


def test_pytorch_network(run, monkeypatch):
    torch = pytest.importorskip("torch", reason=REMEDY["torch"])
    example, rows, _ = run("pytorch_network", epochs=3)
    assert list(rows) == ["under noise", "without noise"]

    # What a network is shown in training, with sigma and without.
    shown = []

    class Recorder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = torch.nn.Parameter(torch.zeros(3))

        def forward(self, x):
            shown.append(x.numpy()[:, 0])
            assert self.training
            return self.scores.expand(len(x), 3)

    monkeypatch.setattr(example, "make_network", lambda num_classes: Recorder())
    x, y = synthetic.cbf(0, 12)
    network = example.train(x, y - 1, sigma=0.5, epochs=4)
    assert not network.training
    noise = np.stack(shown) - x
    assert abs(noise.std() / 0.5 - 1) < 6 / np.sqrt(2 * noise.size)
    assert abs(np.corrcoef(noise.reshape(4, -1)) - np.eye(4)).max() < 6 / np.sqrt(x.size)
    shown.clear()
    example.train(x, y - 1, sigma=0.0, epochs=2)
    np.testing.assert_array_equal(np.stack(shown), [x.astype(np.float32)] * 2)


def test_sklearn_classifier(run):
    example, rows, results = run("sklearn_classifier", copies=5, trees=10)
    assert rows["forest, scores"] == rows["forest, class indices"]
    assert {"5 neighbours", "forest without noise"} < set(rows)
    scores, indices, *_ = (found for *_, found in results)
    np.testing.assert_array_equal(scores.prediction, indices.prediction)
    np.testing.assert_array_equal(scores.radius, indices.radius)

    x, y = synthetic.cbf(0, 12)
    many, labels = example.noised_copies(x, y, copies=4)
    np.testing.assert_array_equal(labels, np.repeat(y, 4))
    noise = (many - np.repeat(x, 4, axis=0)).reshape(48, -1)
    assert abs(noise.std() / 0.5 - 1) < 6 / np.sqrt(2 * noise.size)
    assert abs(np.corrcoef(noise) - np.eye(48)).max() < 6 / np.sqrt(128)


@pytest.mark.slow
def test_own_flax_network(run):
    example, rows, results = run(
        "own_flax_network", num_train=20, num_test=8, epochs=2, num_masks=3, num_draws=100
    )
    names = ["Plain, 3 masks", "Plain as it is", "Normed, 3 masks", "Normed as it is"]
    assert list(rows) == names
    for (ensemble, *_), (network, _, settings, _) in (results[:2], results[2:]):
        assert isinstance(ensemble, smoothing.SelfEnsemble)
        assert ensemble.model is network
        assert ensemble.variables is settings["variables"]
        masks = np.asarray(ensemble.masks)
        np.testing.assert_array_equal(masks.sum(axis=1), 128 - round(0.1 * 128))
        assert len(np.unique(masks, axis=0)) == 3
    assert "batch_stats" in results[3][2]["variables"]
    assert example.KEEP == 0.9


@pytest.mark.filterwarnings("default")  # those of aeon's own dependencies
def test_aeon_classifier(run):
    pytest.importorskip("aeon", reason=REMEDY["aeon"])
    _, rows, _ = run("aeon_classifier", copies=2, kernels=20)
    assert list(rows) == ["under noise", "without noise"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_an_example_runs_as_it_is(name, tmp_path):
    """In another folder, without arguments, as a user runs it."""
    needed = {"pytorch_network": "torch", "aeon_classifier": "aeon"}.get(name)
    if needed:
        pytest.importorskip(needed, reason=REMEDY[needed])
    done = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    rows = [row for row in map(ROW.fullmatch, done.stdout.splitlines()) if row]
    # Named is what its text promises: the first row is of a classifier that has seen noise.
    assert float(rows[0][2]) > 75
    assert float(rows[0][4]) > 0.5
    assert not list(tmp_path.iterdir())
