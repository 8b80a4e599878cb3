"""MACNN, a multi-scale attention network (Chen & Shi, 2021, Neural Networks 136)."""

import jax
from flax import linen as nn

from selfens_jax.models.layers import batch_norm, convolve_side_by_side, max_pool_of_three


class AttentionBlock(nn.Module):
    """Three widths of convolution, then channel attention: (B, T, C) -> (B, T, 3 F)."""

    filters: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = convolve_side_by_side(x, self.filters, (3, 6, 12))
        y = nn.relu(batch_norm(use_running_average=not train)(y))
        channels = y.shape[-1]
        attention = nn.relu(nn.Dense(channels // 16)(y.mean(axis=1)))
        attention = nn.sigmoid(nn.Dense(channels)(attention))
        return y * attention[:, None, :]


class MACNN(nn.Module):
    """Three stacks of two attention blocks, pooled between: (B, T, C) -> (B, K)."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for stack, filters in enumerate((64, 128, 256)):
            if stack:
                x = max_pool_of_three(x, stride=2, train=train)
            for _ in range(2):
                x = AttentionBlock(filters)(x, train)
        return nn.Dense(self.num_classes)(x.mean(axis=1))
