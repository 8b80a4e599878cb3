"""The published generators of two archive data sets, for machines that cannot reach the archive.

The series are new draws from the same definitions, never the archive's own numbers. Class numbers,
scaling (every series has mean 0 and sample standard deviation 1) and a random order follow the
archive. Were the classes to alternate, evenly spaced series could all be of one class.
"""

from collections.abc import Sequence

import numpy as np

CBF_LENGTH = 128
SYNTHETIC_CONTROL_LENGTH = 60


def z_normalise(x: np.ndarray) -> np.ndarray:
    """Shift and scale each series and channel to mean 0 and sample standard deviation 1.

    The standard deviation divides by T - 1, as in the UCR archive. A constant series becomes zeros.

    Args:
        x: (n, T, C) finite numbers, T >= 2.

    Returns:
        (n, T, C) float64.
    """
    x = np.asarray(x, np.float64)
    # Dividing by the largest magnitude first keeps squares of huge and tiny values in range.
    largest = np.abs(x).max(axis=1, keepdims=True)
    x = x / np.where(largest > 0, largest, 1.0)
    # Rounding gives a constant series a tiny deviation, so constancy is decided on its values.
    constant = x.max(axis=1, keepdims=True) == x.min(axis=1, keepdims=True)
    centred = np.where(constant, 0.0, x - x.mean(axis=1, keepdims=True))
    return centred / np.where(constant, 1.0, centred.std(axis=1, ddof=1, keepdims=True))


def cbf(seed: int | Sequence[int], num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Cylinder, bell and funnel (N. Saito, PhD thesis, Yale University, 1994).

    On t = 1..128, with a uniform on the integers 16..32, b - a uniform on 32..96, and eta, eps(t)
    standard normal, a series is (6 + eta) * shape(t) + eps(t). Within [a, b] the shape is 1 for a
    cylinder, (t - a) / (b - a) for a bell, (b - t) / (b - a) for a funnel; outside it is 0.

    The archive's CBF departs from this definition as far as its numbers show: its events end
    anywhere in 64..128 wherever they begin, and their height is 6 without eta. Results on generated
    series are therefore not results on the archive's.

    Args:
        seed: whatever `numpy.random.default_rng` takes; equal seeds give equal series.
        num_examples: n; every class has n / 3 series, rounded, in random order.

    Returns:
        x (n, 128) float64, z-normalised per series; y (n,) int: 1 cylinder, 2 bell, 3 funnel.
    """
    rng = np.random.default_rng(seed)
    y = np.arange(num_examples) % 3 + 1
    t = np.arange(1, CBF_LENGTH + 1)
    a = rng.integers(16, 33, (num_examples, 1))
    b = a + rng.integers(32, 97, (num_examples, 1))
    height = 6 + rng.standard_normal((num_examples, 1))
    noise = rng.standard_normal((num_examples, CBF_LENGTH))

    shapes = np.stack([np.ones((num_examples, CBF_LENGTH)), (t - a) / (b - a), (b - t) / (b - a)])
    shape = shapes[y - 1, np.arange(num_examples)]
    x = height * shape * ((a <= t) & (t <= b)) + noise
    return _as_in_the_archive(rng, x, y)


def synthetic_control(
    seed: int | Sequence[int], num_examples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Control charts (R. J. Alcock and Y. Manolopoulos, Time-Series Similarity Queries Employing a
    Feature-Based Approach, 7th Hellenic Conference on Informatics, 1999).

    On t = 0..59 every class is 30 + 2 r(t) plus its pattern, r(t) uniform on [-3, 3]. That r is
    uniform and t begins at 0 is read off the archive, whose class means these series reproduce:

    1. normal: nothing
    2. cyclic: a sin(2 pi t / period), a and period uniform on [10, 15]
    3. increasing trend: g t, g uniform on [0.2, 0.5]
    4. decreasing trend: -g t
    5. upward shift: s from time t3 on, s uniform on [7.5, 20], t3 uniform on [20, 40]
    6. downward shift: -s from time t3 on

    Args:
        seed: whatever `numpy.random.default_rng` takes; equal seeds give equal series.
        num_examples: n; every class has n / 6 series, rounded, in random order.

    Returns:
        x (n, 60) float64, z-normalised per series; y (n,) int in 1..6 as listed above.
    """
    rng = np.random.default_rng(seed)
    y = np.arange(num_examples) % 6 + 1
    length = SYNTHETIC_CONTROL_LENGTH
    t = np.arange(length)

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (num_examples, 1))

    cycle = uniform(10, 15) * np.sin(2 * np.pi * t / uniform(10, 15))
    trend = uniform(0.2, 0.5) * t
    shift = uniform(7.5, 20) * (t >= uniform(length / 3, 2 * length / 3))
    patterns = np.stack([np.zeros((num_examples, length)), cycle, trend, -trend, shift, -shift])
    x = 30 + 2 * rng.uniform(-3, 3, (num_examples, length))
    x += patterns[y - 1, np.arange(num_examples)]
    return _as_in_the_archive(rng, x, y)


def _as_in_the_archive(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Series (n, T) z-normalised, and in random order with their classes."""
    order = rng.permutation(len(y))
    return z_normalise(x[order, :, None])[..., 0], y[order]
