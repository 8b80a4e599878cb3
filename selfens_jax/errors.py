"""The one exception that a user can cause, and the checks of arguments that raise it."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

MAX_DRAWS = 10**8  # up to here the quantiles in `certificates` were compared with precise ones


class UserError(ValueError):
    """A mistake in a flag, a file or an argument, said in one line that tells what to do.

    Scripts print its message and exit with status 1; anything else is a bug and keeps its
    traceback.
    """


def check_counts(counts: ArrayLike) -> np.ndarray:
    """Votes (..., K), K >= 2, as int64: nonnegative whole numbers, at least one in every row."""
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


def check_number(what: str, value: Any, low: float, high: float) -> float:
    """A real number strictly between low and high; arrays of one number without axes are too."""
    try:
        number = float(value) if _is_real(value) else math.nan
    except OverflowError:
        number = math.inf
    if not low < number < high:
        allowed = f"number between {low:g} and {high:g}"
        if high == math.inf:
            allowed = "finite number" + (f" above {low:g}" if math.isfinite(low) else "")
        raise UserError(f"{what} must be a {allowed}, not {value!r}")
    return number


def _is_real(value: Any) -> bool:
    if isinstance(value, numbers.Real):
        return not isinstance(value, bool)
    return getattr(value, "shape", None) == () and value.dtype.kind in "iuf"


def check_series(x: ArrayLike) -> np.ndarray:
    """Series (N, T, C) as float32, all finite: what noise is added to."""
    if np.ma.is_masked(x):
        raise UserError("x has values under a mask: fill them, or leave their series out")
    try:
        x = np.asarray(x)
    except ValueError:  # how NumPy refuses ragged lists
        raise UserError("x must be one array (examples, time, channels)") from None
    if x.dtype.kind not in "biuf":
        raise UserError(f"x must be real numbers, not {x.dtype}")
    if x.ndim != 3:
        raise UserError(f"x must be (examples, time, channels), not of shape {x.shape}")
    if not np.isfinite(x).all():
        raise UserError("x contains NaN or infinity: nothing can be certified")
    with np.errstate(over="ignore"):
        narrow = x.astype(np.float32, copy=False)
    if not np.isfinite(narrow).all():
        raise UserError(f"x reaches {np.abs(x).max():g}, which float32 cannot hold: rescale it")
    return narrow


def check_resolution(x: np.ndarray, sigma: float, units: Sequence[float] = ()) -> None:
    """Refuses series whose sum with noise of this sigma float32 cannot hold finely enough.

    Near large values float32 has wide steps. Where they are not small against sigma, series that
    differ by less than a step are one series to the classifier, and so is most of the noise; two
    of them could get certificates that contradict each other.

    Args:
      x: (..., T, C) float32.
      sigma: positive; what the steps must be small against.
      units: (C,) that the channels were divided by, for a remedy in the user's own.

    Raises:
      UserError: if a step is above sigma / 64, or the sum would overflow.
    """
    largest = float(np.abs(x).max(initial=0))
    # Below the least normal number processors may take values for zero.
    step = max(float(np.spacing(np.float32(largest))), float(np.finfo(np.float32).tiny))
    if largest + 10 * sigma > float(np.finfo(np.float32).max):
        raise UserError(
            f"values up to {largest:g} with noise of sigma {sigma:g} overflow float32: rescale both"
        )
    if step > sigma / 64:
        remedy = f"a sigma of at least {64 * step:.3g} is needed, or series that reach less far"
        channels = x.reshape(-1, x.shape[-1]).astype(np.float64)
        if x.size and np.ptp(channels, axis=0).max() < largest:
            middle = (channels.max(axis=0) + channels.min(axis=0)) / 2
            middle = middle * np.asarray(units) if len(units) else middle
            named = ", ".join(f"{value:.9g}" for value in middle[:4])
            whose = "all series" if len(middle) == 1 else "each channel of all series"
            remedy = f"subtract a constant from {whose}, such as {named}, which changes no radius, "
            remedy += "or take a larger sigma"
        raise UserError(
            f"the series reach {largest:g}, where the step of float32, {step:g}, is not small "
            f"against sigma {sigma:g}: {remedy}"
        )


def check_whole(what: str, value: Any, least: int) -> int:
    """A whole number of at least `least`."""
    integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not integer or int(value) < least:
        raise UserError(f"{what} must be a whole number of at least {least}, not {value!r}")
    return int(value)


def check_sigma(sigma: float) -> float:
    """A standard deviation of noise that a radius can be computed with."""
    # The range keeps radii clear of overflow and underflow, where rounding down would fail.
    return check_number("sigma", sigma, 1e-100, 1e100)


def check_alpha(alpha: float) -> float:
    """A probability of failure, neither 0 nor 1."""
    alpha = check_number("alpha", alpha, 0, 1)
    if alpha < 1e-200:  # below, betaincinv gives bounds that are too large
        raise UserError(f"alpha must be at least 1e-200, not {alpha:g}")
    return alpha
