"""The fast convolution is the direct one, whatever the lengths; compared in float64."""

import jax
import numpy as np
import pytest

from selfens_jax import backend
from selfens_jax.models.convolution import SHORTEST, convolve

LAYOUT = ("NTC", "TIO", "NTC")


def case(steps, length, channels=3):
    rng = np.random.default_rng(steps + 100 * length)
    kernel = rng.normal(size=(length, channels, 4)) / np.sqrt(length * channels)
    return rng.normal(size=(2, steps, channels)).astype(np.float32), kernel.astype(np.float32)


def direct(x, kernel):
    """Eq. y[t] = sum_j w[j] x[t + j - (k - 1) // 2], zero outside, in float64."""
    length, (_, steps, _) = len(kernel), x.shape
    before = (length - 1) // 2
    padded = np.pad(x.astype(np.float64), ((0, 0), (before, length - 1 - before), (0, 0)))
    return sum(padded[:, j : j + steps] @ kernel[j].astype(np.float64) for j in range(length))


def fast(x, kernel):
    return convolve(x, [kernel])


@pytest.mark.parametrize("steps", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("length", [1, 3, SHORTEST - 1, SHORTEST, 7, 10, 11, 20, 40])
def test_it_is_the_convolution(steps, length):
    x, kernel = case(steps, length)
    np.testing.assert_allclose(fast(x, kernel), direct(x, kernel), atol=3e-6)


@pytest.mark.parametrize("length", [SHORTEST, 11, 20])
def test_it_multiplies_a_quarter_less(length):
    """Than steps times taps; where a length is odd, one more is computed."""
    x, kernel = case(16, length)

    def multiplications(x, kernel):
        jaxpr = jax.make_jaxpr(fast)(x, kernel)
        found = [e for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
        return sum(e.outvars[0].aval.shape[1] * e.invars[1].aval.shape[0] for e in found)

    assert multiplications(x, kernel) == 3 * 8 * -(-length // 2)


@pytest.mark.parametrize(("steps", "length"), [(16, 20), (17, 11)])
def test_its_gradients_are_the_convolutions(steps, length):
    x, kernel = case(steps, length)
    weights = np.random.default_rng(0).normal(size=(2, steps, 4)).astype(np.float32)

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=LAYOUT)

    def gradients(of):
        return jax.jit(jax.grad(lambda *a: (weights * of(*a)).sum(), (0, 1)))(x, kernel)

    for ours, theirs in zip(gradients(fast), gradients(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def convolutions(x, kernels):
    """The lengths of the kernels that it comes to."""
    jaxpr = jax.make_jaxpr(lambda *a: convolve(*a))(x, kernels)  # traced anew
    found = [e for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    return [e.invars[1].aval.shape[0] for e in found]


def test_single_channels_and_accelerators_convolve_directly():
    x, kernel = case(16, 20, channels=1)
    assert convolutions(x, [kernel]) == [20]
    x, kernel = case(16, 20)
    with backend.compiling_for("gpu"):
        assert convolutions(x, [kernel, kernel[:7]]) == [21, 7]
    with backend.compiling_for("tpu"):
        assert convolutions(x, [kernel, kernel[:7]]) == [20]
        wide = np.zeros((5, 3, 128), np.float32)
        assert convolutions(x, [kernel, wide]) == [20, 5]
