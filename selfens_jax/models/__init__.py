"""The paper's three classifiers as Flax Linen modules, by name."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from selfens_jax import backend
from selfens_jax.errors import UserError
from selfens_jax.models.inception_time import InceptionTime
from selfens_jax.models.lstm_fcn import LSTMFCN
from selfens_jax.models.macnn import MACNN

NAMES = {"inception_time": InceptionTime, "lstm_fcn": LSTMFCN, "macnn": MACNN}


def create(name: str, num_classes: int) -> nn.Module:
    """The network `name` with one logit a class.

    `model.apply(variables, x, train=False)` maps series (B, T, C) to logits (B, K).

    Raises:
      UserError: for another name, or fewer than two classes.
    """
    if name not in NAMES:
        raise UserError(f"unknown model {name!r}; choose from {', '.join(NAMES)}")
    if num_classes < 2:
        raise UserError(f"a classifier needs at least 2 classes, not {num_classes}")
    return NAMES[name](num_classes=num_classes)


def evaluate(model: nn.Module, variables: Any, x: jax.Array) -> Any:
    """What a Linen network answers in evaluation, for series x (B, T, C).

    A network whose `__call__` has an argument `train` is called with `train=False`; one without is
    called with the series alone. Where `backend.in_bfloat16`, the paper's networks have weights and
    activations of it. Sums, the statistics of BatchNorm and the states of an LSTM stay float32.
    """
    evaluation: dict[str, Any] = {"train": False} if takes_train(model) else {}
    if not _in_bfloat16(model):
        return model.apply(variables, x, **evaluation)
    logits: Any = model.apply(rounded(model, variables), x.astype(jnp.bfloat16), **evaluation)
    return logits.astype(jnp.float32)


def rounded(model: nn.Module, variables: Any) -> Any:
    """The variables as `evaluate` uses them: with weights of bfloat16, where it has those."""
    if not _in_bfloat16(model):
        return variables
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables["params"])
    return {**variables, "params": params}


def _in_bfloat16(model: nn.Module) -> bool:
    return type(model) in NAMES.values() and backend.in_bfloat16()


def takes_train(model: nn.Module) -> bool:
    """Whether the network tells training from evaluation by an argument `train`."""
    return "train" in inspect.signature(type(model).__call__).parameters


def stack(members: tuple[Any, ...]) -> Any:
    """The trees of several networks (variables, training states) as one, members first."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def unstack(stacked: Any) -> tuple[Any, ...]:
    """The tree of each network again, in order."""
    num_members = jax.tree.leaves(stacked)[0].shape[0]
    return tuple(jax.tree.map(lambda leaf, m=m: leaf[m], stacked) for m in range(num_members))
