"""Layers that the architectures share. Series are (batch, time, channels)."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from selfens_jax.models.convolution import fast_convolution

BATCH_NORM_MOMENTUM = 0.9
batch_norm: Callable[..., nn.BatchNorm] = partial(
    nn.BatchNorm, momentum=BATCH_NORM_MOMENTUM, epsilon=1e-5
)

conv: Callable[..., nn.Conv] = partial(nn.Conv, conv_general_dilated=fast_convolution)


def max_pool_of_three(x: jax.Array, stride: int = 1) -> jax.Array:
    """Maximum over windows of three steps, centred, (B, T, C) -> (B, ceil(T / stride), C).

    The maximum of shifted copies: away from ties it has max-pooling's gradient, without XLA's
    select-and-scatter, which is four times slower on CPU. Not `jnp.maximum`: its gradient compares
    the inputs with the output, and where XLA fuses it computes them again with other rounding, so
    that compiled gradients were wrong by up to 20 % of their maximum.
    """
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)), constant_values=-jnp.inf)
    length = x.shape[1]
    shifted = [padded[:, shift : shift + length : stride] for shift in range(3)]
    left = jnp.where(shifted[0] >= shifted[1], shifted[0], shifted[1])
    return jnp.where(left >= shifted[2], left, shifted[2])
