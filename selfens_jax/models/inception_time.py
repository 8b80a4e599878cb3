"""InceptionTime, one network of it (Fawaz et al., 2020, Data Min. Knowl. Discov. 34)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from selfens_jax.models.layers import batch_norm, convolve_side_by_side, max_pool_of_three


class InceptionModule(nn.Module):
    """Three widths of convolution and a pooled branch side by side: (B, T, C) -> (B, T, 4 F)."""

    filters: int = 32
    kernels: tuple[int, ...] = (40, 20, 10)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        narrow = x
        if x.shape[-1] > 1:
            narrow = nn.Conv(self.filters, (1,), use_bias=False, name="bottleneck")(x)
        convolved = convolve_side_by_side(narrow, self.filters, self.kernels, use_bias=False)
        pooled = max_pool_of_three(x, train=train)
        pooled = nn.Conv(self.filters, (1,), use_bias=False, name="Conv_3")(pooled)
        y = jnp.concatenate([convolved, pooled], axis=-1)
        return nn.relu(batch_norm(use_running_average=not train)(y))


class InceptionTime(nn.Module):
    """Six inception modules with a residual shortcut around every third: (B, T, C) -> (B, K)."""

    num_classes: int
    depth: int = 6

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        shortcut = x
        for module in range(self.depth):
            x = InceptionModule()(x, train)
            if module % 3 == 2:
                shortcut = nn.Conv(x.shape[-1], (1,), use_bias=False)(shortcut)
                shortcut = batch_norm(use_running_average=not train)(shortcut)
                x = shortcut = nn.relu(x + shortcut)
        return nn.Dense(self.num_classes)(x.mean(axis=1))
