"""A classifier of aeon, ROCKET, trained on noised copies of the series and certified.

    python -m pip install aeon
    python examples/aeon_classifier.py

aeon has channels before time and returns labels: `as_function` makes of it what `certify` calls.
Its other classifiers and those of sktime go the same way.
"""

from collections.abc import Callable

import numpy as np
from aeon.classification.base import BaseClassifier  # pyright: ignore[reportMissingImports]
from aeon.classification.convolution_based import RocketClassifier  # pyright: ignore[reportMissingImports]

from selfens_jax import certify, metrics, synthetic
from selfens_jax.certificates import Certificates, format_radius

SIGMA = 0.5  # of the noise, in the units of the series, in training and in certification
MEANING = """
A series keeps its answer under every change with an L2 norm below its radius; each radius holds
with probability 99.9 %. The mean counts 0 for wrong answers and abstentions."""


def train(x: np.ndarray, y: np.ndarray, copies: int, sigma: float, kernels: int) -> BaseClassifier:
    """ROCKET on each series of x (N, T) `copies` times, every copy with noise of its own."""
    many = np.repeat(x, copies, axis=0)
    many += np.random.default_rng(0).normal(scale=sigma, size=many.shape)
    model = RocketClassifier(n_kernels=kernels, random_state=0)
    return model.fit(many[:, None, :], np.repeat(y, copies))


def as_function(model: BaseClassifier) -> Callable[[np.ndarray], np.ndarray]:
    """The classifier as `certify` calls it: series (B, T, C) in, class indices (B,) out."""

    def predict(x: np.ndarray) -> np.ndarray:
        labels = model.predict(x.transpose(0, 2, 1))
        return np.searchsorted(model.classes_, labels)

    return predict


def row(name: str, result: Certificates, y: np.ndarray) -> str:
    """A line of the table, for class indices y."""
    correct = metrics.accuracy(result.prediction, y)
    abstains = metrics.abstention_rate(result.prediction)
    radius = metrics.average_certified_radius(result.prediction, result.radius, y)
    return f"{name:<24} {correct:>8.1%} {abstains:>9.1%} {format_radius(radius, 3):>12}"


def main(
    num_train: int = 60,
    num_test: int = 15,
    copies: int = 10,
    kernels: int = 500,
    num_draws: int = 1000,
) -> None:
    x_train, y_train = synthetic.cbf(0, num_train)
    x, labels = synthetic.cbf(1, num_test)
    y = np.searchsorted(np.unique(y_train), labels)  # predictions are class indices too

    print(f"{'trained':<24} {'correct':>8} {'abstains':>9} {'mean radius':>12}")
    for name, sigma in (("under noise", SIGMA), ("without noise", 0.0)):
        predict = as_function(train(x_train, y_train, copies, sigma, kernels))
        result = certify(predict, x, sigma=SIGMA, num_draws=num_draws, draws_per_block=num_draws)
        print(row(name, result, y))
    print(MEANING)


if __name__ == "__main__":
    main()
