"""What may be counted: one fixed classifier of single series.

Votes are those of f(x + noise) for one function f. If a row's logits depend on the other rows of
its batch, or on anything else that changes, there is no such f, and a certificate would be false
without a sign.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from selfens_jax import models
from selfens_jax.ensembles import (
    Consensus,
    DeepEnsemble,
    Network,
    Predict,
    SelfEnsemble,
    mean_logits,
)
from selfens_jax.errors import UserError, check_whole

_LOOKS = 2  # other orders, and other neighbours, that a classifier is shown


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class HostClassifier:
    """A classifier of NumPy, PyTorch, Keras, scikit-learn or aeon, which JAX cannot compile.

    Attributes:
      function: maps float32 NumPy series (B, T, C) to scores (B, K), or to class indices (B,).
      num_classes: K for class indices, which must lie below it.
    """

    function: Callable[[np.ndarray], Any]
    num_classes: int = 256

    def __call__(self, x: jax.Array | np.ndarray) -> Any:
        """Scores (B, K), float32; of class indices, 1 for the class and 0 for the others.

        Wider scores are taken relative to the largest, which so stays the largest in float32.
        What is no array is handed on: `mean_logits` says what is wrong with it.

        Raises:
          UserError: if the function fails, or a class index is out of range.
        """
        try:
            answer = self.function(np.array(x, np.float32))  # a copy, which it may change
            if isinstance(answer, tuple | list | dict) or answer is None:
                return answer
            scores = np.asarray(answer)
        except UserError:
            raise
        except Exception as error:  # whatever the user's own function raises
            raise UserError(_failure(x.shape, error)) from error
        if _are_indices(scores, len(x)):
            return self._one_hot(scores)
        if scores.dtype.kind != "f":
            return scores
        if scores.itemsize > 4 and scores.ndim == 2:
            best = scores.max(axis=1, keepdims=True, initial=-np.inf)
            scores = scores - np.where(np.isfinite(best), best, 0)
        with np.errstate(over="ignore", under="ignore"):
            return scores.astype(np.float32)

    def _one_hot(self, indices: np.ndarray) -> np.ndarray:
        if (indices < 0).any() or (indices >= self.num_classes).any():
            raise UserError(
                f"predict returned class indices from {indices.min()} to {indices.max()}; they "
                f"must be from 0 to below num_classes = {self.num_classes}"
            )
        return (indices[:, None] == np.arange(self.num_classes)).astype(np.float32)


def as_classifier(predict: Any, variables: Any = None, num_classes: int | None = None) -> Predict:
    """`predict` as something that blocks of draws can be shown to.

    A pytree stays as it is: its leaves are arguments of compiled programs. A Linen module becomes
    one with its variables, an NNX module with its state. A plain function, or an object with its
    weights inside, is compiled with what they are now, anew for each call of this function: JAX
    would go on with a program of weights that have changed since.

    Args:
      predict: see `certification.certify`.
      variables: of a Linen module; None for anything else.
      num_classes: for a function of the host that returns class indices.

    Raises:
      UserError: if it cannot be called, or its variables are missing.
    """
    if isinstance(predict, nn.Module):
        if variables is None:
            raise UserError(
                "a Flax Linen module has its weights apart: give them as variables=..., what "
                "module.init returned or training.fit made of it"
            )
        try:
            hash(predict)  # what is compiled for one module serves its equals
        except TypeError:  # it holds a list, as nn.Sequential does
            return jax.tree_util.Partial(lambda v, x: models.evaluate(predict, v, x), variables)
        return Network(predict, variables)
    if variables is not None:
        raise UserError("variables belong to a Flax Linen module; leave them out")
    if num_classes is not None:
        return HostClassifier(predict, check_whole("num_classes", num_classes, 2))
    if isinstance(predict, nnx.Module):
        graph, state = nnx.split(predict)
        return jax.tree_util.Partial(_NnxCall(graph), state)
    if not callable(predict):
        remedy = "lambda x: model.predict_proba(x.reshape(len(x), -1))"
        raise UserError(
            f"predict must be a function of series (B, T, C), not of type {type(predict).__name__}"
            + (f"; of an estimator give {remedy}" if hasattr(predict, "predict") else "")
        )
    if isinstance(predict, HostClassifier):
        return predict
    if jax.tree_util.all_leaves([predict]):
        return jax.tree_util.Partial(lambda x: predict(x))
    return predict


def _are_indices(answer: Any, num_series: int) -> bool:
    """Whether an answer, or its shape and type, can only be class indices."""
    return answer.shape == (num_series,) and np.dtype(answer.dtype).kind in "iu"


@dataclasses.dataclass(frozen=True)
class _NnxCall:
    """An NNX module as a function of its state and of series; equal for equal graphs."""

    graph: nnx.GraphDef

    def __call__(self, state: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(self.graph, state)(x)


def check_classifier(
    predict: Predict, x: np.ndarray, sigma: float, batch: int, precision: str
) -> tuple[Predict, int]:
    """Refuses what is not one classifier of single series; returns it and its number of classes.

    The logits of a batch must stay as they are, up to rounding, when its rows are reordered and
    when some rows are replaced by others. That is looked at on one batch of the series under noise:
    what changes elsewhere only is not found. The networks of `models` are known to pass.

    Args:
      predict: as `as_classifier` returns it; what JAX cannot compile is returned as a
        `HostClassifier`.
      x: (N, T, C) float32 series.
      sigma: of the noise.
      batch: the number of rows in which it will be called.
      precision: of matrix products, as JAX calls them.

    Raises:
      UserError: if it fails, does not return logits (batch, K) or is not such a classifier.
    """
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((1 + _LOOKS, batch, *x.shape[1:]))
    batches = (x[rng.integers(len(x), size=batch)] if len(x) else 0) + sigma * noise
    ensemble = predict.ensemble if isinstance(predict, Consensus) else predict
    networks = models.NAMES.values()
    known = isinstance(ensemble, SelfEnsemble | DeepEnsemble) and type(ensemble.model) in networks
    predict, num_classes = _traced_or_called(predict, batches[0].astype(np.float32), known)
    if len(x) and not known:
        try:
            _refuse_mixed_rows(predict, x[0], batches, num_classes, precision, rng)
        except UserError:
            raise
        except Exception as error:  # whatever the user's own function raises
            raise UserError(_failure(batches[0].shape, error)) from error
    return predict, num_classes


def _traced_or_called(predict: Predict, rows: np.ndarray, known: bool) -> tuple[Predict, int]:
    """The classifier, as one of the host if it is not for JAX, and its number of classes.

    A compiled program keeps what Python's own code did when it was traced: a random number, or the
    state of an object. So what is traced twice and differs is called on the host, where it shows.
    So are functions that return class indices.
    """
    if not isinstance(predict, HostClassifier):
        try:
            series = jax.ShapeDtypeStruct(rows.shape, np.float32)
            if known or _is_for_jax(predict, series):
                return predict, jax.eval_shape(_logits, predict, series).shape[1]
        except UserError:
            raise
        except Exception:  # whatever a function says that is not for JAX's tracers
            pass
        predict = HostClassifier(lambda x, inner=predict: inner(x))
    return predict, mean_logits(predict, rows).shape[1]


def _is_for_jax(predict: Predict, series: jax.ShapeDtypeStruct) -> bool:
    """Whether a function returns scores, and becomes the same program when it is traced again."""
    leaves, structure = jax.tree.flatten(predict)

    def traced() -> tuple[str, list[bytes], Any]:
        # Another function each time: of the same one JAX would return the program that it has.
        def call(leaves: list[Any], x: jax.Array) -> Any:
            return jax.tree.unflatten(structure, leaves)(x)

        program, answer = jax.make_jaxpr(call, return_shape=True)(leaves, series)
        numbers = [c for c in program.consts if not jnp.issubdtype(c.dtype, jax.dtypes.extended)]
        without_addresses = re.sub(r"0x[0-9a-f]+", "", str(program))
        return without_addresses, [np.asarray(value).tobytes() for value in numbers], answer

    *first, answer = traced()
    if hasattr(answer, "shape") and _are_indices(answer, series.shape[0]):
        return False
    *second, _ = traced()
    return first == second


_logits = jax.jit(mean_logits)


def _refuse_mixed_rows(
    predict: Predict,
    series: np.ndarray,
    batches: np.ndarray,
    num_classes: int,
    precision: str,
    rng: np.random.Generator,
) -> None:
    call = mean_logits if isinstance(predict, HostClassifier) else _logits

    def logits(rows: np.ndarray) -> np.ndarray:
        with jax.default_matmul_precision(precision):
            found = call(predict, rows.astype(np.float32))
        check_num_classes(found, num_classes)
        return np.asarray(found, np.float64)

    rows, *others = batches
    alone = logits(rows)
    # Every class by its own scale: one that is ruled out by -1e9 must not hide the others.
    scale = np.abs(np.where(np.isfinite(alone), alone, 0)).max(axis=0)
    error = (1e-4 if precision == "float32" else 3e-2) * scale

    def same(found: np.ndarray, expected: np.ndarray) -> bool:
        equal = (found == expected) | (np.isnan(found) & np.isnan(expected))
        with np.errstate(invalid="ignore"):  # infinities are equal, or not close
            return bool((equal | (np.abs(found - expected) <= error)).all())

    for other in others:
        order, kept = rng.permutation(len(rows)), rng.random(len(rows)) < 0.5
        replaced = np.where(kept[:, None, None], rows, series + 4 * (other - series))
        if not (
            same(logits(rows[order]), alone[order]) and same(logits(replaced)[kept], alone[kept])
        ):
            raise UserError(
                "predict gives a series other logits when the series beside it in a batch change, "
                "or from call to call: it is not one classifier, and nothing can be certified; "
                "switch off BatchNorm's training mode, dropout, and averages over the batch"
            )


def check_num_classes(logits: jax.Array, num_classes: int) -> None:
    """Refuses logits (B, K) of another number of classes than before.

    Raises:
      UserError: for such logits.
    """
    if logits.shape[1] != num_classes:
        raise UserError(
            f"predict returned scores of {num_classes} classes for some series and of "
            f"{logits.shape[1]} for others: return one column for each class, always"
        )


def _failure(shape: tuple[int, ...], error: Exception) -> str:
    """In a line, that the user's function failed, and with what."""
    # The error of a callback is the last of many lines.
    lines = [line for line in str(error).splitlines() if re.match(r"\w+(Error|Exception)\b", line)]
    inner = "CpuCallback" in str(error) and lines
    said = lines[-1] if inner else f"{type(error).__name__}: {error}"
    said = " ".join(re.sub(r"\x1b\[[\d;]*m", "", said).split())  # without colours
    said = said if len(said) <= 160 else said[:157] + "..."
    return f"predict fails on float32 series {shape}, (draws, time, channels): {said}"
