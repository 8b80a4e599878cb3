"""The kind of device that programs are made for. All that depends on it asks here."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

from selfens_jax.errors import UserError

KINDS = ("cpu", "gpu", "tpu")
_target: ContextVar[str | None] = ContextVar("target", default=None)


def kind() -> str:
    """The kind, one of KINDS: the target of `compiling_for`, or else where JAX computes."""
    return _target.get() or jax.default_backend()


def on_cpu() -> bool:
    """Whether programs are made for a CPU."""
    return kind() == "cpu"


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
