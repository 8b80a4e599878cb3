"""Classifiers of scikit-learn, trained on noised copies of the series and certified.

    python examples/sklearn_classifier.py

Certification asks a classifier for its answer under noise, so it should have seen noise: it is
trained on many copies of each series, every copy with noise of its own. A classifier is handed over
as a function that returns scores or class indices.

A classifier of aeon or sktime goes the same way, with channels before time: aeon_classifier.py.
"""

from collections.abc import Callable

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.neighbors import KNeighborsClassifier

from selfens_jax import certify, metrics, synthetic
from selfens_jax.certificates import Certificates, format_radius

SIGMA = 0.5  # of the noise, in the units of the series, in training and in certification
MEANING = """
A series keeps its answer under every change with an L2 norm below its radius; each radius holds
with probability 99.9 %. The mean counts 0 for wrong answers and abstentions.
Scores and class indices of one forest are one classifier: their certificates agree."""
Predict = Callable[[np.ndarray], np.ndarray]


def noised_copies(x: np.ndarray, y: np.ndarray, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Each series of x (N, T) and its label `copies` times, every copy with noise of its own."""
    many = np.repeat(x, copies, axis=0)
    noise = np.random.default_rng(0).normal(scale=SIGMA, size=many.shape)
    return many + noise, np.repeat(y, copies)


def scores_of(model: RandomForestClassifier | KNeighborsClassifier) -> Predict:
    """Series (B, T, C) -> the probability (B, K) of each class; the largest is the answer."""
    return lambda x: np.asarray(model.predict_proba(x.reshape(len(x), -1)))


def indices_of(model: RandomForestClassifier | KNeighborsClassifier) -> Predict:
    """Series (B, T, C) -> class indices (B,), for classifiers that have labels only."""
    return lambda x: np.searchsorted(model.classes_, model.predict(x.reshape(len(x), -1)))


def classifiers(x: np.ndarray, y: np.ndarray, copies: int, trees: int) -> dict[str, Predict]:
    """What is certified, by name; all but the last have seen noise."""
    noised = noised_copies(x, y, copies)
    forest = RandomForestClassifier(trees, random_state=0).fit(*noised)
    neighbours = KNeighborsClassifier(n_neighbors=5).fit(*noised)
    without_noise = RandomForestClassifier(trees, random_state=0).fit(x, y)
    return {
        "forest, scores": scores_of(forest),
        "forest, class indices": indices_of(forest),
        "5 neighbours": indices_of(neighbours),
        "forest without noise": scores_of(without_noise),
    }


def row(name: str, result: Certificates, y: np.ndarray) -> str:
    """A line of the table, for class indices y."""
    correct = metrics.accuracy(result.prediction, y)
    abstains = metrics.abstention_rate(result.prediction)
    radius = metrics.average_certified_radius(result.prediction, result.radius, y)
    return f"{name:<24} {correct:>8.1%} {abstains:>9.1%} {format_radius(radius, 3):>12}"


def main(
    num_train: int = 60,
    num_test: int = 30,
    copies: int = 20,
    trees: int = 100,
    num_draws: int = 1000,
) -> None:
    x_train, y_train = synthetic.cbf(0, num_train)
    x, labels = synthetic.cbf(1, num_test)
    y = np.searchsorted(np.unique(y_train), labels)  # predictions are class indices too

    print(f"{'classifier':<24} {'correct':>8} {'abstains':>9} {'mean radius':>12}")
    for name, predict in classifiers(x_train, y_train, copies, trees).items():
        # One call for all draws of a series: a forest takes as long for 20 rows as for many.
        result = certify(predict, x, sigma=SIGMA, num_draws=num_draws, draws_per_block=num_draws)
        print(row(name, result, y))
    print(MEANING)


if __name__ == "__main__":
    main()
