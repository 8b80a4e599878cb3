"""The generators against their definitions and, where it is at hand, against the archive."""

import pathlib

import numpy as np
import pytest

from selfens_jax import data, synthetic

ARCHIVE = pathlib.Path(__file__).parents[2] / "shared" / "ucr"
GENERATORS = [
    pytest.param("CBF", synthetic.cbf, 3, 128, id="cbf"),
    pytest.param("SyntheticControl", synthetic.synthetic_control, 6, 60, id="synthetic_control"),
]


def archive_test_split(name: str) -> tuple[np.ndarray, np.ndarray]:
    if not (ARCHIVE / name).is_dir():
        pytest.skip(f"the UCR archive's {name} is not at {ARCHIVE}")
    dataset = data.load(name, data_dir=str(ARCHIVE))
    labels = np.array([int(label) for label in dataset.classes])
    return dataset.x_test[..., 0].astype(np.float64), labels[dataset.y_test]


def class_means(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([x[y == label].mean(axis=0) for label in np.unique(y)])


@pytest.mark.parametrize(("name", "generate", "num_classes", "length"), GENERATORS)
def test_shapes_and_balance(name, generate, num_classes, length):
    x, y = generate(0, 10 * num_classes)
    assert x.shape == (10 * num_classes, length)
    labels, counts = np.unique(y, return_counts=True)
    np.testing.assert_array_equal(labels, np.arange(1, num_classes + 1))
    np.testing.assert_array_equal(counts, 10)


@pytest.mark.parametrize(("name", "generate", "num_classes", "length"), GENERATORS)
def test_evenly_spaced_series_are_of_all_classes(name, generate, num_classes, length):
    _, y = generate(0, 300 * num_classes)
    counts = np.bincount(y[::num_classes], minlength=num_classes + 1)[1:]
    sd = np.sqrt(300 * (1 / num_classes) * (1 - 1 / num_classes))
    assert np.abs(counts - 300 / num_classes).max() < 4 * sd  # were they all of one class: > 14 sd


@pytest.mark.parametrize(("name", "generate", "num_classes", "length"), GENERATORS)
def test_seed_decides_the_series(name, generate, num_classes, length):
    x, _ = generate(3, 12)
    np.testing.assert_array_equal(x, generate(3, 12)[0])
    other, _ = generate(4, 12)
    assert not np.isclose(x, other).all(axis=1).any()


@pytest.mark.parametrize(("name", "generate", "num_classes", "length"), GENERATORS)
def test_series_are_z_normalised_as_in_the_archive(name, generate, num_classes, length):
    x, _ = generate(0, 12)
    np.testing.assert_allclose(x.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(x.std(axis=1, ddof=1), 1, rtol=1e-12)
    real, _ = archive_test_split(name)
    np.testing.assert_allclose(real.std(axis=1, ddof=1), 1, rtol=1e-6)


@pytest.mark.parametrize(("name", "generate", "num_classes", "length"), GENERATORS)
def test_class_numbers_mean_what_they_mean_in_the_archive(name, generate, num_classes, length):
    """The nearest generated class mean classifies the archive's series.

    Chance is 1/3 (CBF) or 1/6; two swapped class numbers leave those classes near 0. Class means
    are a weak classifier (0.64 for the real cylinders), so 0.5 a class is asked for.
    """
    real, labels = archive_test_split(name)
    means = class_means(*generate(0, 600))
    distances = ((real[:, None] - means) ** 2).sum(axis=2)
    predicted = distances.argmin(axis=1) + 1
    recall = [np.mean(predicted[labels == c] == c) for c in range(1, num_classes + 1)]
    assert min(recall) > 0.5, recall


def test_synthetic_control_class_means_are_the_archives():
    """Within 5 standard errors at every time step: time from 1 instead of 0 gives 12 of them.

    CBF has no such test: the archive's series are not drawn from the published definition.
    """
    real, labels = archive_test_split("SyntheticControl")
    x, y = synthetic.synthetic_control(0, 3000)
    for c in range(1, 7):
        a, b = real[labels == c], x[y == c]
        error = np.sqrt(a.var(axis=0) / len(a) + b.var(axis=0) / len(b))
        assert np.max(np.abs(a.mean(axis=0) - b.mean(axis=0)) / error) < 5


def test_cbf_events_begin_and_end_in_the_published_ranges():
    x, y = synthetic.cbf(0, 3000)
    cylinder, bell, funnel = class_means(x, y)
    # No event covers t = 1..15, and every cylinder covers t = 32..48.
    assert cylinder[31:48].min() > cylinder[:15].max() + 1
    assert bell[40:80].argmax() > 10  # rises
    assert funnel[20:80].argmax() < 20  # falls


def test_synthetic_control_noise_is_uniform():
    """The kurtosis of a uniform is 1.8, of a normal 3; the archive's normal class has 1.80."""
    x, y = synthetic.synthetic_control(0, 1200)
    assert np.mean(x[y == 1] ** 4) == pytest.approx(1.8, abs=0.05)


def test_synthetic_control_patterns():
    x, y = synthetic.synthetic_control(0, 1200)
    means = class_means(x, y)
    rise = means[:, 40:].mean(axis=1) - means[:, :20].mean(axis=1)
    np.testing.assert_array_equal(np.sign(rise[2:]), [1, -1, 1, -1])
    assert np.abs(rise[2:]).min() > 1
    assert np.abs(means[0]).max() < 0.4
    spectrum = np.abs(np.fft.rfft(x[y == 2], axis=1))
    assert set(spectrum.argmax(axis=1)) <= {4, 5, 6}  # periods of 10 to 15 steps in 60


def test_z_normalise_keeps_channels_apart():
    x = np.stack([np.arange(5.0), 1e6 - 100 * np.arange(5.0)], axis=1)[None]
    expected = (np.arange(5) - 2) / np.sqrt(2.5)
    z = synthetic.z_normalise(x)
    np.testing.assert_allclose(z[0], np.stack([expected, -expected], axis=1), atol=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e300])
def test_z_normalise_makes_a_constant_series_zero(value):
    np.testing.assert_array_equal(synthetic.z_normalise(np.full((1, 7, 1), value)), 0)


@pytest.mark.parametrize("scale", [1e300, 1e-300])
def test_z_normalise_ignores_the_scale(scale):
    x = np.arange(6.0).reshape(1, 6, 1)
    np.testing.assert_allclose(synthetic.z_normalise(scale * x), synthetic.z_normalise(x))
