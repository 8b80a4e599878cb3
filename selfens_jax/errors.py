"""The one exception that a user can cause, and the checks of arguments that raise it."""

import math
import numbers

import numpy as np

MAX_DRAWS = 10**8  # up to here the quantiles in `certificates` were compared with precise ones


class UserError(ValueError):
    """A mistake in a flag, a file or an argument, said in one line that tells what to do.

    Scripts print its message and exit with status 1; anything else is a bug and keeps its
    traceback.
    """


def check_counts(counts) -> np.ndarray:
    """Votes (..., K), K >= 2, as int64: nonnegative whole numbers, some in every row."""
    try:
        counts = np.asarray(counts)
    except ValueError:
        raise UserError("counts must be one array of shape (..., classes)") from None
    if counts.dtype.kind not in "iuf":
        raise UserError(f"counts must be integers, not {counts.dtype}")
    if counts.ndim < 1 or counts.shape[-1] < 2:
        raise UserError(f"counts need a last axis of at least 2 classes, got shape {counts.shape}")
    if not np.all(np.isfinite(counts) & (counts >= 0) & (counts == np.floor(counts))):
        raise UserError("counts must be nonnegative whole numbers")
    totals = counts.sum(axis=-1, dtype=np.float64)
    if np.any(totals == 0) or np.any(totals > MAX_DRAWS):
        raise UserError(f"every row of counts must hold between 1 and {MAX_DRAWS} votes")
    return counts.astype(np.int64)


def check_number(what: str, value, low: float, high: float) -> float:
    """A real number strictly between low and high."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        number = float(value) if real else math.nan
    except OverflowError:
        number = math.inf
    if not low < number < high:
        raise UserError(f"{what} must be a number between {low:g} and {high:g}, not {value!r}")
    return number


def check_sigma(sigma) -> float:
    """A standard deviation of noise that a radius can be computed with."""
    # The range keeps radii clear of overflow and underflow, where rounding down would fail.
    return check_number("sigma", sigma, 1e-100, 1e100)


def check_alpha(alpha) -> float:
    """A probability of failure, neither 0 nor 1."""
    return check_number("alpha", alpha, 0, 1)
