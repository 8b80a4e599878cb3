"""The classifiers that are smoothed: ensembles of networks, or of one network under masks.

Each maps series (B, T, C) to logits (B, K) and is a pytree whose weights are leaves, so that a
compiled program takes them as arguments.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike

from selfens_jax import backend, models
from selfens_jax import masks as masking
from selfens_jax.errors import UserError

Predict = Callable[[Any], Any]  # series (B, T, C) -> logits (B, K), which `mean_logits` checks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Network:
    """predict: series (B, T, C) -> logits (B, K) of one Linen network in evaluation."""

    model: nn.Module = dataclasses.field(metadata={"static": True})
    variables: Any

    def __call__(self, x: jax.Array) -> jax.Array:
        return models.evaluate(self.model, self.variables, x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SelfEnsemble:
    """predict: series (B, T, C) -> mean logits (B, K) of one network under m masks (Eq. 7)."""

    model: nn.Module = dataclasses.field(metadata={"static": True})
    variables: dict[str, Any]
    masks: jax.Array
    hidden_as: str = dataclasses.field(default="zero", metadata={"static": True})

    @property
    def size(self) -> int:
        return self.masks.shape[0]

    def logits(self, x: jax.Array, members: slice = slice(None)) -> jax.Array:
        """(members, B, K), not averaged."""
        if x.shape[1] != self.masks.shape[1]:  # a mask of one step would be spread over all
            raise UserError(
                f"the masks are for {self.masks.shape[1]} time steps, the series have {x.shape[1]}"
            )
        masked = masking.hide(x[None], self.masks[members, None], self.hidden_as)
        if backend.on_cpu():
            return jax.vmap(lambda v: models.evaluate(self.model, self.variables, v))(masked)
        # One flat batch: for vmap's further axis a TPU transposes the series again and again.
        network, flat = Network(self.model, self.variables), masked.reshape(-1, *masked.shape[2:])
        return mean_logits(network, flat).reshape(*masked.shape[:2], -1)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.logits(x).mean(axis=0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeepEnsemble:
    """predict: series (B, T, C) -> mean logits (B, K) of independently trained networks (Eq. 5)."""

    model: nn.Module = dataclasses.field(metadata={"static": True})
    stacked_variables: dict[str, Any]

    @property
    def size(self) -> int:
        return jax.tree.leaves(self.stacked_variables)[0].shape[0]

    def logits(self, x: jax.Array, members: slice = slice(None)) -> jax.Array:
        """(members, B, K), not averaged."""
        if not backend.on_cpu():  # side by side: a fifth of the kernels, and of their launches
            some = jax.tree.map(lambda leaf: leaf[members], self.stacked_variables)
            return jax.vmap(lambda v: models.evaluate(self.model, v, x))(some)
        # Members written out one after another: on CPU, vmap over weights makes slow grouped
        # convolutions, and a loop over members would make their gradients (attacks) slow.
        chosen = models.unstack(self.stacked_variables)[members]
        return jnp.stack([models.evaluate(self.model, variables, x) for variables in chosen])

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.logits(x).mean(axis=0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Consensus:
    """predict: mean logits of the first members where they agree on the class, else of all.

    One more fixed classifier (Horvath et al., "Boosting randomized smoothing with variance reduced
    classifiers", 2021), certified as its own: not an approximation of the full ensemble's votes.
    Called, it evaluates every member; `smoothing.count_consensus_votes` evaluates the others only
    where the first disagree.
    """

    ensemble: SelfEnsemble | DeepEnsemble
    first: int = dataclasses.field(metadata={"static": True})

    def begin(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The first members: the sum (B, K) of their logits, and where (B,) their classes agree."""
        logits = self.ensemble.logits(x, slice(None, self.first))
        classes = logits.argmax(axis=-1)
        return logits.sum(axis=0), (classes == classes[0]).all(axis=0)

    def complete(self, x: jax.Array, first_sum: jax.Array) -> jax.Array:
        """Mean logits (B, K) of all members, given the sum of the first."""
        others = self.ensemble.logits(x, slice(self.first, None)).sum(axis=0)
        return (first_sum + others) / self.ensemble.size

    def __call__(self, x: jax.Array) -> jax.Array:
        first_sum, agreed = self.begin(x)
        return jnp.where(agreed[:, None], first_sum / self.first, self.complete(x, first_sum))


def self_ensemble(
    model: nn.Module, variables: dict[str, Any], masks: ArrayLike, hidden_as: str = "zero"
) -> SelfEnsemble:
    """The self-ensemble of a network under masks (m, T); m = 1 and ones is the plain network.

    hidden_as: what the network is shown of hidden steps, as in `masks.hide`.

    Raises:
      UserError: if the masks are not a matrix of zeros and ones, or there is no such hidden_as.
    """
    masking.check_hidden_as(hidden_as, "mc")
    values = np.asarray(masks)
    if values.ndim != 2 or not np.isin(values, (0, 1)).all():
        raise UserError(f"masks must be an (m, T) array of 0 and 1, not of shape {values.shape}")
    return SelfEnsemble(model, variables, jnp.asarray(masks, jnp.float32), hidden_as)


def deep_ensemble(model: nn.Module, stacked_variables: dict[str, Any]) -> DeepEnsemble:
    """The deep ensemble of members whose variables are stacked along a first axis."""
    return DeepEnsemble(model, stacked_variables)


def consensus(ensemble: SelfEnsemble | DeepEnsemble, first: int) -> Consensus:
    """The ensemble that asks its other members only where the `first` ones disagree.

    Raises:
      UserError: unless 2 <= first < members.
    """
    if not 2 <= first < ensemble.size:
        raise UserError(
            f"a consensus needs at least 2 members and fewer than the ensemble's {ensemble.size}, "
            f"not {first}"
        )
    return Consensus(ensemble, first)


def rounded(predict: Any) -> Any:
    """The same classifier, whose networks have rounded their weights already, where they do.

    Left to themselves they do it in every block of draws.
    """
    if isinstance(predict, Consensus):
        return dataclasses.replace(predict, ensemble=rounded(predict.ensemble))
    if isinstance(predict, Network | SelfEnsemble):
        variables = models.rounded(predict.model, predict.variables)
        return dataclasses.replace(predict, variables=variables)
    if isinstance(predict, DeepEnsemble):
        variables = models.rounded(predict.model, predict.stacked_variables)
        return dataclasses.replace(predict, stacked_variables=variables)
    return predict


def mean_logits(predict: Predict, x: jax.Array | np.ndarray) -> jax.Array:
    """Logits (B, K) of `predict` for series x (B, T, C); ensembles average over their members.

    Raises:
      UserError: if it returns anything else than one array (B, K) of floats, K >= 2.
    """
    logits = predict(x)
    if not isinstance(logits, jax.Array | np.ndarray):
        came, remedy = f"a {type(logits).__name__}", "return the logits alone, as one array"
    else:
        came = f"{logits.dtype} of shape {logits.shape}"
        remedy = _remedy(logits, len(x))
    if remedy:
        raise UserError(
            f"predict returned {came} for {len(x)} series; needed are logits ({len(x)}, classes), "
            f"floats, for 2 classes or more: {remedy}"
        )
    return jnp.asarray(logits)


def _remedy(logits: jax.Array | np.ndarray, num_series: int) -> str:
    """What is wrong with logits, as what to do about it; empty if nothing is."""
    shape = logits.shape
    if logits.dtype.kind in "OSU":
        return "return scores or, as class indices, np.searchsorted(classes, labels)"
    if logits.dtype.kind in "biu" and shape in ((num_series,), (num_series, 1)):
        labels = "labels" if len(shape) == 1 else "labels[:, 0]"
        return f"return scores or, as class indices, {labels}.astype(int)"
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        return "return scores; labels are scored by jax.nn.one_hot(labels, num_classes)"
    if shape in ((num_series,), (num_series, 1)):
        return "a score z a series becomes jnp.stack([-z, z], axis=-1), a class index an integer"
    if len(shape) == 3 and shape[0] == num_series:
        return "drop the axis between series and classes"
    if len(shape) == 3:
        return "average over the members, logits.mean(axis=0)"
    if len(shape) != 2 or shape[0] != num_series:
        return "one row for each series"
    return "" if shape[1] >= 2 else "one column for each class"
