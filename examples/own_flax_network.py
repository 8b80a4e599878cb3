"""Flax networks of your own, trained under noise and masks, and certified in two ways.

    python examples/own_flax_network.py

A network is any Linen module that maps series (B, T, C) to logits (B, K). One with BatchNorm or
dropout takes an argument `train`; one without needs none.
"""

import jax
import numpy as np
from flax import linen as nn

from selfens_jax import certify, masks, metrics, smoothing, streams, synthetic, training
from selfens_jax.certificates import Certificates, format_radius

SIGMA = 0.5  # of the noise, in the units of the series, in training and in certification
KEEP = 0.9  # the share of time steps that a mask keeps
MEANING = """
A series keeps its answer under every change with an L2 norm below its radius; each radius holds
with probability 99.9 %. The mean counts 0 for wrong answers and abstentions.
A self-ensemble, the mean of the network's logits under several masks, is another classifier."""


class Plain(nn.Module):
    """A convolution and the largest value of each of its channels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(nn.Conv(32, kernel_size=(15,))(x))
        return nn.Dense(3)(y.max(axis=1))


class Normed(nn.Module):
    """Two convolutions with BatchNorm, and dropout: both ask whether the network is in training."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = x
        for features in (16, 32):
            y = nn.Conv(features, kernel_size=(9,))(y)
            y = nn.relu(nn.BatchNorm(use_running_average=not train)(y))
        y = nn.Dropout(0.1, deterministic=not train)(y.mean(axis=1))
        return nn.Dense(3)(y)


def row(name: str, result: Certificates, y: np.ndarray) -> str:
    """A line of the table, for class indices y."""
    correct = metrics.accuracy(result.prediction, y)
    abstains = metrics.abstention_rate(result.prediction)
    radius = metrics.average_certified_radius(result.prediction, result.radius, y)
    return f"{name:<24} {correct:>8.1%} {abstains:>9.1%} {format_radius(radius, 3):>12}"


def main(
    num_train: int = 60,
    num_test: int = 30,
    epochs: int = 150,
    num_masks: int = 5,
    num_draws: int = 1000,
) -> None:
    x_train, y_train = synthetic.cbf(0, num_train)
    x, y = synthetic.cbf(1, num_test)
    y_train, y = y_train - 1, y - 1  # classes 1, 2, 3 as indices
    config = training.TrainConfig(ensemble="mc", sigma=SIGMA, keep=KEEP, epochs=epochs)
    fixed = masks.continuous(streams.stream(0, "masks"), num_masks, x.shape[1], KEEP)

    print(f"{'network':<24} {'correct':>8} {'abstains':>9} {'mean radius':>12}")
    for network in (Plain(), Normed()):
        (variables,), _ = training.fit(network, x_train[:, :, None], y_train, config)
        name = type(network).__name__
        ensemble = smoothing.self_ensemble(network, variables, fixed)
        result = certify(ensemble, x, sigma=SIGMA, num_draws=num_draws)
        print(row(f"{name}, {num_masks} masks", result, y))
        result = certify(network, x, sigma=SIGMA, num_draws=num_draws, variables=variables)
        print(row(f"{name} as it is", result, y))
    print(MEANING)


if __name__ == "__main__":
    main()
