"""MACNN, a multi-scale attention network (Chen & Shi, 2021, Neural Networks 136)."""

import jax
from flax import linen as nn

from selfens_jax import backend
from selfens_jax.models.layers import batch_norm, convolve_side_by_side, max_pool_of_three


class AttentionBlock(nn.Module):
    """Three widths of convolution, then channel attention.

    (B, T, C) -> (B, T, 3 F), and the mean of that over time, (B, 3 F).
    """

    filters: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        y = convolve_side_by_side(x, self.filters, (3, 6, 12))
        y = nn.relu(batch_norm(use_running_average=not train)(y))
        mean, channels = y.mean(axis=1), y.shape[-1]
        attention = nn.relu(nn.Dense(channels // 16)(mean))
        attention = nn.sigmoid(nn.Dense(channels)(attention))  # the same at all times
        return y * attention[:, None, :], mean * attention


class MACNN(nn.Module):
    """Three stacks of two attention blocks, pooled between: (B, T, C) -> (B, K)."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for filters in (64, 128):
            for _ in range(2):
                x, _ = AttentionBlock(filters)(x, train)
            x = max_pool_of_three(x, stride=2, train=train)
        x, _ = AttentionBlock(256)(x, train)
        x, mean = AttentionBlock(256)(x, train)
        if backend.on_cpu():  # where it has the last bits of earlier versions
            mean = x.mean(axis=1)
        return nn.Dense(self.num_classes)(mean)
