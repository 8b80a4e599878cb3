"""Convolutions of several widths side by side, as each backend computes them fastest.

Everywhere the same function up to float rounding, with the same kernels: (k, C, F) each, for series
(B, T, C), padding "SAME", stride 1.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from selfens_jax import backend

SHORTEST = 6  # shorter kernels gain nothing from fewer multiplications
TPU_LANES = 128  # channels that a TPU computes at once


def convolve(
    x: jax.Array, kernels: Sequence[jax.Array], biases: Sequence[jax.Array] | None = None
) -> jax.Array:
    """The convolutions of x (B, T, C) with all kernels, and biases (F,), (B, T, F + F' + ...).

    A TPU computes `TPU_LANES` filters at a time. Kernels with fewer are filled up with zeros to the
    longest, and become one. A GPU pads series itself if as much is added before as after, which a
    zero before a kernel of even length brings about.
    """
    one_convolution = _fast if backend.on_cpu() else _direct
    if backend.kind() == "gpu":
        kernels = [_filled(kernel, len(kernel) | 1) for kernel in kernels]
    if backend.kind() == "tpu" and max(kernel.shape[-1] for kernel in kernels) < TPU_LANES:
        longest = max(map(len, kernels))
        kernels = [jnp.concatenate([_filled(kernel, longest) for kernel in kernels], axis=-1)]
        biases = biases and [jnp.concatenate(biases)]
    results = [one_convolution(x, kernel) for kernel in kernels]
    if biases:  # here, as compiled for a CPU sums after the concatenation have other last bits
        results = [result + bias for result, bias in zip(results, biases, strict=True)]
    return jnp.concatenate(results, axis=-1)


def _direct(x: jax.Array, kernel: jax.Array, padding: str = "SAME") -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (1,), padding, dimension_numbers=("NTC", "TIO", "NTC")
    )


def _filled(kernel: jax.Array, length: int) -> jax.Array:
    """The kernel with zeros around it, which convolves to the same."""
    before = (length - 1) // 2 - (len(kernel) - 1) // 2  # by which "SAME" shifts the two apart
    return jnp.pad(kernel, ((before, length - len(kernel) - before), (0, 0), (0, 0)))


def _fast(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution with a quarter fewer multiplications, for CPUs.

    Split the padded series and the kernel into their even and odd steps, u, v and a, b. The even
    and the odd steps of the result are, with u' the even steps one later,

        a*u + b*v  = a*(u - v)  + (a + b)*v
        a*v + b*u' = b*(u' - v) + (a + b)*v

    three convolutions of half the length with half the kernel instead of four (a fast FIR
    algorithm: Parker and Parhi, 1997). It differs from the direct one in float32's last bits.
    """
    length, channels, filters = kernel.shape
    if length < SHORTEST or channels == 1:
        return _direct(x, kernel)
    batch, steps, _ = x.shape
    half, taps, before = -(-steps // 2), -(-length // 2), (length - 1) // 2
    kernel = jnp.pad(kernel, ((0, 2 * taps - length), (0, 0), (0, 0)))
    x = jnp.pad(x, ((0, 0), (before, 2 * (half + taps) - steps - before), (0, 0)))
    u, v, later = x[:, 0:-2:2], x[:, 1:-2:2], x[:, 2::2]
    a, b = kernel[0::2], kernel[1::2]
    shared = _direct(v, a + b, "VALID")
    even = _direct(u - v, a, "VALID") + shared
    odd = _direct(later - v, b, "VALID") + shared
    return jnp.stack([even, odd], axis=2).reshape(batch, 2 * half, filters)[:, :steps]
