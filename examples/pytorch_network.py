"""A PyTorch network, trained under Gaussian noise and certified.

    python -m pip install torch
    python examples/pytorch_network.py

Noise in training matters: certification asks the network for its answer under noise, many times. So
the same network is trained twice here, with noise and without, and both are certified.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from selfens_jax import certify, metrics, synthetic
from selfens_jax.certificates import Certificates, format_radius

SIGMA = 0.5  # of the noise, in the units of the series, in training and in certification
MEANING = """
A series keeps its answer under every change with an L2 norm below its radius; each radius holds
with probability 99.9 %. The mean counts 0 for wrong answers and abstentions.
The series have an L2 norm of 11.3."""


def make_network(num_classes: int) -> nn.Sequential:
    """Two convolutions over time: (B, channels, time) -> logits (B, K)."""
    return nn.Sequential(
        nn.Conv1d(1, 16, kernel_size=9, padding="same"),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Conv1d(16, 32, kernel_size=9, padding="same"),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )


def train(x: np.ndarray, y: np.ndarray, sigma: float, epochs: int) -> nn.Module:
    """Trains on series x (N, T) with class indices y (N,); every epoch has noise of its own."""
    torch.manual_seed(0)
    series, labels = torch.tensor(x, dtype=torch.float32)[:, None, :], torch.tensor(y)
    network = make_network(num_classes=int(y.max()) + 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(epochs):
        optimizer.zero_grad()
        logits = network(series + sigma * torch.randn_like(series))
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
    return network.eval()  # or the answer for a series depends on its batch, which is refused


def as_function(network: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """The network as `certify` calls it: NumPy series (B, T, C) in, logits (B, K) out."""

    def predict(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(x).transpose(1, 2)).numpy()  # channels come first

    return predict


def row(name: str, result: Certificates, y: np.ndarray) -> str:
    """A line of the table, for class indices y."""
    correct = metrics.accuracy(result.prediction, y)
    abstains = metrics.abstention_rate(result.prediction)
    radius = metrics.average_certified_radius(result.prediction, result.radius, y)
    return f"{name:<24} {correct:>8.1%} {abstains:>9.1%} {format_radius(radius, 3):>12}"


def main(num_train: int = 60, num_test: int = 60, epochs: int = 150, num_draws: int = 1000) -> None:
    x_train, y_train = synthetic.cbf(0, num_train)
    x, y = synthetic.cbf(1, num_test)
    y_train, y = y_train - 1, y - 1  # classes 1, 2, 3 as indices

    print(f"{'trained':<24} {'correct':>8} {'abstains':>9} {'mean radius':>12}")
    for name, sigma in (("under noise", SIGMA), ("without noise", 0.0)):
        predict = as_function(train(x_train, y_train, sigma, epochs))
        # One call of the network for all draws of a series.
        result = certify(predict, x, sigma=SIGMA, num_draws=num_draws, draws_per_block=num_draws)
        print(row(name, result, y))
    print(MEANING)


if __name__ == "__main__":
    main()
