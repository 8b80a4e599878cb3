"""The kind of device that programs are made for. All that depends on it asks here."""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax

from selfens_jax.errors import UserError

KINDS = ("cpu", "gpu", "tpu")
DETERMINISTIC = "xla_gpu_deterministic_ops"
_target: ContextVar[str | None] = ContextVar("target", default=None)


def kind() -> str:
    """The kind, one of KINDS: the target of `compiling_for`, or else where JAX computes."""
    return _target.get() or jax.default_backend()


def on_cpu() -> bool:
    """Whether programs are made for a CPU."""
    return kind() == "cpu"


def in_bfloat16() -> bool:
    """Whether tensors are to be of bfloat16 themselves: at that precision, on a GPU.

    A GPU would else multiply in TensorFloat-32. A TPU rounds what it multiplies to bfloat16 as it
    is; tensors of it would be slower there.
    """
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return kind() == "gpu" and precision == "bfloat16"


def reproducible(function: Callable[..., Any], static: tuple[str, ...] = ()) -> Callable[[], Any]:
    """The function compiled so that, on one kind of device, it gives the same bits every time.

    Left alone, XLA times several kernels on a GPU and takes the fastest, which may be another one
    in another process; and some kernels add up in an order of chance. A classifier that is
    certified must be one function, and a count that was interrupted goes on in another process. So
    both are ruled out, unless XLA_FLAGS says otherwise.

    Args:
      function: a function of arrays.
      static: the names of its arguments that are none.

    Returns:
      What gives the jitted function for the kind of device at hand.
    """
    anywhere = jax.jit(function, static_argnames=static)
    on_gpu = jax.jit(function, static_argnames=static, compiler_options={DETERMINISTIC: True})

    def program() -> Any:
        chosen = DETERMINISTIC in os.environ.get("XLA_FLAGS", "")
        return on_gpu if kind() == "gpu" and not chosen else anywhere

    return program


@contextlib.contextmanager
def compiling_for(target: str) -> Iterator[None]:
    """Inside, programs are made as for this kind of device, wherever they will run.

    For compiling without the device, and for tests. JAX keeps what it has traced: what was traced
    for another kind must be forgotten, `jax.clear_caches()`, which this does at both ends.

    Raises:
      UserError: for another target than "cpu", "gpu" and "tpu".
    """
    if target not in KINDS:
        raise UserError(f"unknown target {target!r}; choose from {', '.join(KINDS)}")
    if target == kind():
        yield
        return
    before = _target.set(target)
    jax.clear_caches()
    try:
        yield
    finally:
        _target.reset(before)
        jax.clear_caches()
