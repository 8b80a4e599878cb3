"""Channels in different units: divided by constants of the training split, told in own units."""

import csv
import json
import re

import numpy as np
import pytest
from scipy import stats
from test_scripts import assert_refused, call, error_of

from selfens_jax import SelfEnsembleClassifier, certify, coverage, data, runs
from selfens_jax.errors import UserError

SCALES = np.array([1.0, 1000.0, 0.001])
STEPS = 16
RUN = "runs/own/lstm_fcn/mc/sigma=0.5/seed=0"
TRAIN = ("--dataset=own.npz", "--model=lstm_fcn", "--sigma=0.5", "--epochs=30", "--scaling=channel")
CERTIFY = (*TRAIN[:3], TRAIN[-1], "--num_draws=200", "--num_examples=6")


def make(seed=0):
    """Series of three channels whose scales differ by up to a million."""
    rng, y = np.random.default_rng(seed), np.array(["rest", "walk"])[np.arange(24) % 2]
    X = rng.normal(size=(24, STEPS, 3)) + 2 * (y == "walk")[:, None, None]
    return X * SCALES + [0, 500, 0.2], y


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("units")
    X, y = make()
    np.savez(folder / "own.npz", X_train=X[:12], y_train=y[:12], X_test=X[12:], y_test=y[12:])
    np.savez(folder / "new.npz", X=X[12:])
    call(folder, "train", *TRAIN)
    return folder


def deviations():
    X, _ = make()
    return np.sqrt(((X[:12] - X[:12].mean(axis=(0, 1))) ** 2).mean(axis=(0, 1)))


def test_units_are_deviations_of_the_training_split(folder):
    config = json.loads((folder / RUN / "config.json").read_text())
    np.testing.assert_allclose(config["data"]["units"], deviations(), rtol=1e-12)
    X, y = make()
    dataset = data.from_arrays("own", X[:12], y[:12], 1e6 * X[12:], y[12:], scaling="channel")
    np.testing.assert_allclose(dataset.units, deviations(), rtol=1e-12)  # whatever the test split
    np.testing.assert_allclose(dataset.x_train, X[:12] / deviations(), rtol=1e-6)
    np.testing.assert_allclose(dataset.x_test, 1e6 * X[12:] / deviations(), rtol=1e-6)


def test_padding_is_no_part_of_a_deviation_and_constants_stay():
    series = [np.array([[1.0, 7.0], [3.0, 7.0]]), np.array([[5.0, 7.0], [1.0, 7.0], [3.0, 7.0]])]
    dataset = data.from_arrays("own", series, [0, 1], scaling="channel", unequal="pad")
    deviation = np.std([1, 3, 5, 1, 3])
    np.testing.assert_allclose(dataset.units, [deviation, 1.0])
    np.testing.assert_allclose(dataset.x_train[0], [[1 / deviation, 7], [3 / deviation, 7], [0, 0]])


def test_what_certify_says_is_in_own_units(folder):
    done = call(folder, "certify", *CERTIFY)
    (tsv,) = (folder / RUN).glob("certificates-*-6ex-*.tsv")
    with tsv.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    record = json.loads(tsv.with_suffix(".json").read_text())
    units, radii = deviations(), np.array([float(row["radius"]) for row in rows])
    assert (radii > 0).any()
    assert all(repr(float(unit))[:8] in record["radius_units"] for unit in units)
    means = re.search(
        r"mean radius, all predictions +(\S+)\n((?:    in channel.*\n)+)", done.stdout
    )
    own = [float(value) for value in re.findall(r"(\S+)$", means[2], re.MULTILINE)]
    np.testing.assert_allclose(own, radii.mean() * units, rtol=1e-3)
    assert "(by channel)" in done.stdout.splitlines()[2]
    best = int(rows[radii.argmax()]["idx"])
    lines = call(folder, "certify", *CERTIFY, f"--explain={best}").stdout
    found = re.search(r"one sample +below (\S+), (\S+), (\S+) \(by channel\)", lines)
    sample = np.array([float(value) for value in found.groups()])
    assert (sample <= radii.max() * units * (1 + 1e-5)).all()
    np.testing.assert_allclose(sample, radii.max() * units, rtol=2e-5)
    found = re.search(r"constant offset of one channel +below (\S+), (\S+), (\S+) \(by", lines)
    offset = np.array([float(value) for value in found.groups()])
    np.testing.assert_allclose(offset, radii.max() * units / np.sqrt(STEPS), rtol=2e-5)


def test_new_series_and_the_classifier_use_the_constants_of_the_run(folder):
    """Series in own units, in a file or an array, get the same votes."""
    call(folder, "certify", *CERTIFY[:-1])
    seed = ("--noise_seed=0",)
    call(folder, "certify", f"--run_dir={RUN}", "--series=new.npz", "--num_draws=200", *seed)
    files = sorted((folder / RUN).glob("counts-n200-m5-12ex-*.npz"))
    first, second = (runs.records.read_counts(file).counts for file in files)
    np.testing.assert_array_equal(first, second)
    X, y = make()
    clf = SelfEnsembleClassifier(model="lstm_fcn", sigma=0.5, epochs=30, scaling="channel")
    clf.fit(X[:12], y[:12])
    for each in (clf, SelfEnsembleClassifier.load(folder / RUN)):
        found = each.certify(X[12:], num_draws=200)
        np.testing.assert_array_equal(found.counts, first)
        np.testing.assert_allclose(
            found.channel_radii, found.radius[:, None] * deviations(), rtol=1e-6
        )
        assert {"radius_0", "radius_1", "radius_2"} <= set(found.table().columns)
        one = found.covers()[int(found.radius.argmax())]
        assert "(by channel)" in dict(one.rows())["one sample"]
    alone = clf.certify(X[12:13], num_draws=200)
    np.testing.assert_array_equal(alone.counts[0], first[0])


def test_a_certificate_holds_in_own_units():
    """A linear classifier of scaled series: what is covered in own units changes no answer.

    Its smoothed form answers by the sign of <w, x / units>, so that a change of channel c alone
    changes it from the norm |<w, x / units>| units_c / ||w_c|| on, and a change of all from the
    boundary of an ellipsoid on.
    """
    rng = np.random.default_rng(3)
    units = (0.5, 800.0, 0.002)
    weights = rng.normal(size=(STEPS, 3))
    X = rng.normal(size=(20, STEPS, 3)) * units

    def predict(x):
        score = np.einsum("btc,tc->b", x, weights)
        return np.stack([-score, score], axis=1)

    found = certify(predict, X / units, sigma=0.5, num_draws=200, alpha=0.01)
    scores = np.einsum("ntc,tc->n", X / units, weights)
    own = coverage.channel_radii(found.radius, units)
    assert (found.radius > 0).sum() > 5
    for x, score, radii, radius in zip(X, scores, own, found.radius, strict=True):
        if not radius:
            continue
        for channel in range(3):
            change = np.zeros_like(x)  # the worst one: against the weights of the channel
            change[:, channel] = weights[:, channel] / np.linalg.norm(weights[:, channel])
            change *= -np.sign(score) * radii[channel]
            assert np.sign(np.sum((x + change) / units * weights)) == np.sign(score)
            assert coverage.is_covered(radius, x / units, (x + change * 0.999) / units)
            assert not coverage.is_covered(radius, x / units, (x + change * 1.001) / units)
        # In own units the worst direction of all is w_c units_c, on the ellipsoid.
        change = -np.sign(score) * weights / np.linalg.norm(weights) * radius * units
        assert np.sign(np.sum((x + 0.999 * change) / units * weights)) == np.sign(score)
        assert stats.norm.cdf(abs(score) / np.linalg.norm(weights) / 0.5) > 0.5
        given = coverage.cover(radius, x / units, units=units, low=x.min(), high=x.max())
        assert given.low[1] <= x.min() / units[1]
        assert given.high[1] >= x.max() / units[1]


@pytest.mark.parametrize(
    "units",
    [(1.0, 2.0), (1.0, 0.0, 1.0), (1.0, np.nan, 1.0), ("a", "b", "c"), (True, True, True)],
)
def test_units_that_are_none_are_refused(units):
    with pytest.raises(UserError, match="a positive number for each of 3 channels"):
        coverage.cover(1.0, np.ones((STEPS, 3)), units=units)


def test_a_damaged_unit_is_noticed(folder, tmp_path):
    file = folder / RUN / "config.json"
    text = file.read_text()
    for broken in ([1.0, 2.0], [1.0, 0.0, 3.0], None):
        config = json.loads(text)
        config["data"]["units"] = broken
        del config["crc32"]  # so that it is not for this that it is refused
        file.write_text(json.dumps(config))
        try:
            said = error_of(folder, "certify", f"--run_dir={RUN}", "--series=new.npz")
        finally:
            file.write_text(text)
        assert "config.json is damaged" in said


def test_another_scaling_than_the_run_has_is_refused(folder):
    says = "was trained with --scaling=channel; give --scaling=channel"
    assert_refused(folder, says, "certify", *CERTIFY[:3], "--num_draws=200")
