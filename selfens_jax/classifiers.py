"""What may be counted: one fixed classifier of single series.

Votes are those of f(x + noise) for one function f. If a row's logits depend on the other rows of
its batch, or on anything else that changes, there is no such f, and a certificate would be false
without a sign.
"""

import re
from typing import Any

import jax
import numpy as np

from selfens_jax import models
from selfens_jax.ensembles import Consensus, DeepEnsemble, Predict, SelfEnsemble, mean_logits
from selfens_jax.errors import UserError

_LOOKS = 2  # other orders, and other neighbours, that a classifier is shown


def as_pytree(predict: Any) -> Predict:
    """`predict` as an argument of compiled programs.

    A pytree stays as it is: its leaves are arguments. A plain function, or an object with its
    weights inside, is compiled with what they are now, anew for each call of this function: JAX
    would go on with a program of weights that have changed since.

    Raises:
      UserError: if it cannot be called.
    """
    if not callable(predict):
        raise UserError(
            f"predict must be a function of series (B, T, C), not of type {type(predict).__name__}"
        )
    if jax.tree_util.all_leaves([predict]):
        return jax.tree_util.Partial(lambda x: predict(x))
    return predict


def check_classifier(
    predict: Predict, x: np.ndarray, sigma: float, batch: int, precision: str
) -> int:
    """Refuses what is not one classifier of single series; returns its number of classes.

    The logits of a batch must stay as they are, up to rounding, when its rows change places and
    when some rows are replaced by others. That is looked at on one batch of the series under noise:
    what changes elsewhere only is not found. The networks of `models` are known to pass.

    Args:
      predict: as `as_pytree` returns it.
      x: (N, T, C) float32 series.
      sigma: of the noise.
      batch: the number of rows in which it will be called.
      precision: of matrix products, as JAX calls them.

    Raises:
      UserError: if it fails, does not return logits (batch, K) or is not such a classifier.
    """
    shape = jax.ShapeDtypeStruct((batch, *x.shape[1:]), np.float32)
    try:
        num_classes = jax.eval_shape(_logits, predict, shape).shape[1]
        ensemble = predict.ensemble if isinstance(predict, Consensus) else predict
        known = isinstance(ensemble, SelfEnsemble | DeepEnsemble)
        if len(x) and not (known and type(ensemble.model) in models.NAMES.values()):
            _refuse_mixed_rows(predict, x, sigma, batch, precision)
    except UserError:
        raise
    except Exception as error:  # whatever the user's own function raises
        raise UserError(_why_not(predict, shape, error)) from error
    return num_classes


_logits = jax.jit(mean_logits)


def _refuse_mixed_rows(
    predict: Predict, x: np.ndarray, sigma: float, batch: int, precision: str
) -> None:
    def logits(rows: np.ndarray) -> np.ndarray:
        with jax.default_matmul_precision(precision):
            return np.asarray(_logits(predict, rows.astype(np.float32)), np.float64)

    rng = np.random.default_rng(0)
    noise = rng.standard_normal((1 + _LOOKS, batch, *x.shape[1:]))
    rows, *others = x[rng.integers(len(x), size=batch)] + sigma * noise
    alone = logits(rows)
    # Every class by its own scale: one that is ruled out by -1e9 must not hide the others.
    scale = np.abs(np.where(np.isfinite(alone), alone, 0)).max(axis=0)
    error = (1e-4 if precision == "float32" else 3e-2) * scale

    def same(found: np.ndarray, expected: np.ndarray) -> bool:
        equal = (found == expected) | (np.isnan(found) & np.isnan(expected))
        with np.errstate(invalid="ignore"):  # infinities are equal, or not close
            return bool((equal | (np.abs(found - expected) <= error)).all())

    for other in others:
        order, kept = rng.permutation(batch), rng.random(batch) < 0.5
        replaced = np.where(kept[:, None, None], rows, x[0] + 4 * (other - x[0]))
        if not (
            same(logits(rows[order]), alone[order]) and same(logits(replaced)[kept], alone[kept])
        ):
            raise UserError(
                "predict gives a series other logits when the series beside it in a batch change, "
                "or from call to call: it is not one classifier, and nothing can be certified; "
                "switch off BatchNorm's training mode, dropout, and averages over the batch"
            )


def _why_not(predict: Predict, shape: jax.ShapeDtypeStruct, error: Exception) -> str:
    """Why predict cannot be counted, in a line: it is no function for JAX, or it fails."""
    # The error of a callback is the last of many lines.
    lines = [line for line in str(error).splitlines() if re.match(r"\w+(Error|Exception)\b", line)]
    inner = "CpuCallback" in str(error) and lines
    said = " ".join((lines[-1] if inner else f"{type(error).__name__}: {error}").split())
    said = said if len(said) <= 160 else said[:157] + "..."
    try:
        jax.block_until_ready(predict(np.zeros(shape.shape, shape.dtype)))
    except Exception:
        return f"predict fails on float32 series {shape.shape}, (draws, time, channels): {said}"
    return (
        "predict works on arrays, but JAX cannot compile it; a function of NumPy or another "
        "library is called through jax.pure_callback(predict, jax.ShapeDtypeStruct((len(x), "
        f"num_classes), jnp.float32), x) and returns float32 NumPy logits ({said})"
    )
