"""Layers that the architectures share. Series are (batch, time, channels).

On every backend the same function up to float rounding, with the same parameters.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax

from selfens_jax import backend
from selfens_jax.models.convolution import convolve

BATCH_NORM_MOMENTUM = 0.9
batch_norm: Callable[..., nn.BatchNorm] = partial(
    nn.BatchNorm, momentum=BATCH_NORM_MOMENTUM, epsilon=1e-5
)


class ConvParameters(nn.Module):
    """What an `nn.Conv` has: a kernel (k, C, F) and, if asked, a bias (F,)."""

    filters: int
    width: int
    use_bias: bool

    @nn.compact
    def __call__(self, channels: int) -> tuple[jax.Array, jax.Array | None]:
        shape = (self.width, channels, self.filters)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        if not self.use_bias:
            return kernel, None
        return kernel, self.param("bias", nn.initializers.zeros_init(), (self.filters,))


def convolve_side_by_side(
    x: jax.Array, filters: int, widths: Sequence[int], use_bias: bool = True
) -> jax.Array:
    """In a compact module: `nn.Conv(filters, (width,))(x)` for all widths, concatenated.

    With the parameters that those have, named Conv_0, Conv_1 and so on.
    """
    parameters = [
        ConvParameters(filters, width, use_bias, name=f"Conv_{number}")(x.shape[-1])
        for number, width in enumerate(widths)
    ]
    kernels, biases = zip(*parameters, strict=True)
    x, *kernels = promote_dtype(x, *kernels)
    return convolve(x, kernels, biases if use_bias else None)


def max_pool_of_three(x: jax.Array, stride: int = 1, train: bool = True) -> jax.Array:
    """Maximum over windows of three steps, centred, (B, T, C) -> (B, ceil(T / stride), C).

    The maximum of shifted copies: away from ties it has max-pooling's gradient, without XLA's
    select-and-scatter, which is four times slower on CPU. Not `jnp.maximum`: its gradient compares
    the inputs with the output, and where XLA fuses it computes them again with other rounding, so
    that compiled gradients were wrong by up to 20 % of their maximum. A TPU has an instruction for
    windows, which is used where no gradient is needed.
    """
    if backend.kind() == "tpu" and not train:
        padding = ((0, 0), (1, 1), (0, 0))
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 1), (1, stride, 1), padding)
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)), constant_values=-jnp.inf)
    length = x.shape[1]
    shifted = [padded[:, shift : shift + length : stride] for shift in range(3)]
    left = jnp.where(shifted[0] >= shifted[1], shifted[0], shifted[1])
    return jnp.where(left >= shifted[2], left, shifted[2])
