"""The work of a network, counted from what JAX traces."""

import math
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from flax import linen as nn

from selfens_jax import backend, models
from selfens_jax.models import convolution


def of_forward_pass(net: nn.Module, length: int) -> float:
    """Floating-point operations for one series (length, 1), multiply and add counted apart.

    Counts the direct convolutions, whichever way they are computed, padding included, and the
    matrix products.
    """
    x = jnp.zeros((1, length, 1))
    with backend.compiling_for("cpu"), mock.patch.object(convolution, "SHORTEST", math.inf):
        variables = jax.eval_shape(net.init, jax.random.key(0), x)
        traced = jax.make_jaxpr(lambda v: models.evaluate(net, v, x))(variables)
    return 2.0 * _multiply_adds(traced.jaxpr)


def _multiply_adds(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        outputs = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            filters = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += outputs * math.prod(kernel) // filters
        elif name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += outputs * math.prod(equation.invars[0].aval.shape[d] for d in contracted)
        for inner in jax.tree.leaves(
            list(params.values()), is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                total += params.get("length", 1) * _multiply_adds(inner)
    return total
