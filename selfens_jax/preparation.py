"""Series of unequal length or with gaps, made complete and equally long where the user asks for it.

Whatever is done here is part of the data, as scaling is: a certified radius is in the units of the
series that come out. `sentence` says so.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from selfens_jax.errors import UserError

UNEQUAL = ("refuse", "pad", "cut", "resample")
MISSING = ("refuse", "zero", "last", "linear", "hide")
FILL_IT = "fill it (missing=zero, last or linear does)"
ONE_LENGTH = "cut or pad all series to one length (unequal=pad, cut or resample does)"

_FILLED = {
    "zero": "missing values filled with zeros",
    "last": "missing values filled with the last one observed",
    "linear": "missing values interpolated linearly",
    "hide": "missing values left unknown",
}


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What is done about unequal lengths and missing values; nothing, by default.

    Missing values are filled first, then lengths are made equal, then series are scaled if that is
    asked for, and zeros that pad a series are put in last, so that scaling does not see them.

    unequal: "refuse"; "pad": zeros at the end, to the longest training series; "cut": the end is
        cut off, to the shortest training series; "resample": linear interpolation, to the longest
        training series. The test series never decide: a longer one is cut when others are padded,
        a shorter one padded when others are cut. Unless refused, missing values that end a series
        in every channel are its end: so tables, the UCR archive's too, hold shorter series.
    missing: "refuse"; "zero"; "last": the last value observed before the gap, or the first one
        observed where the series begins with a gap; "linear": on the line between the two values
        beside the gap, or the nearest value where the series begins or ends with it; "hide": they
        stay unknown, for certificates against `bursts`, which no training series can.
    """

    unequal: str = "refuse"
    missing: str = "refuse"

    def __post_init__(self) -> None:
        for what, value, known in (
            ("unequal", self.unequal, UNEQUAL),
            ("missing", self.missing, MISSING),
        ):
            if value not in known:
                raise UserError(f"{what} {value!r} is unknown: use one of {', '.join(known)}")
        if self.missing == "hide" and self.unequal == "resample":
            raise UserError("unequal='resample' spreads what is missing: take 'pad' or 'cut'")

    @property
    def allows_gaps(self) -> bool:
        """Whether a table may hold missing values: inside series, or where shorter ones end."""
        return (self.unequal, self.missing) != ("refuse", "refuse")

    def common_length(self, lengths: Sequence[int]) -> int:
        """The length, in time steps, that training series of these lengths are brought to."""
        return min(lengths) if self.unequal == "cut" else max(lengths)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Series of one length, and what was done to make them so."""

    x: np.ndarray  # (n, T, C) float64, padded with zeros
    lengths: np.ndarray  # (n,) time steps of each that are not padding
    lengths_before: np.ndarray  # (n,)
    filled: bool  # whether any value was missing


def none_like(part: Prepared) -> Prepared:
    """No series, of the length and channels of others."""
    return Prepared(part.x[:0], part.lengths[:0], part.lengths_before[:0], filled=False)


def trimmed(series: np.ndarray) -> np.ndarray:
    """A series (T, C) without the missing values that end it in every channel."""
    known = np.flatnonzero(~np.isnan(series).all(axis=1))
    return series[: known[-1] + 1] if len(known) else series[:0]


def filled(series: np.ndarray, missing: str) -> np.ndarray:
    """A series (T, C) whose gaps are filled, as `Preparation` says; each channel by itself.

    A channel without any value can only be filled with zeros.
    """
    gaps = np.isnan(series)
    if missing in ("refuse", "hide") or not gaps.any():
        return series
    if missing == "zero":
        return np.where(gaps, 0.0, series)
    times = np.arange(len(series))
    columns = []
    for column in series.T:
        known = np.flatnonzero(~np.isnan(column))
        if missing == "linear":
            columns.append(np.interp(times, known, column[known]))
        else:
            before = np.searchsorted(known, times, side="right") - 1
            columns.append(column[known[np.maximum(before, 0)]])
    return np.stack(columns, axis=1)


def resampled(series: np.ndarray, length: int) -> np.ndarray:
    """A series (T, C) read at `length` times, evenly from its first to its last, linearly."""
    if len(series) == length:
        return series
    times = np.linspace(0, len(series) - 1, length)
    return np.stack([np.interp(times, np.arange(len(series)), c) for c in series.T], axis=1)


def fitted(series: Sequence[np.ndarray], length: int, how: Preparation, gaps: bool) -> Prepared:
    """Complete series (T_i, C) as one array, each brought to `length` time steps."""
    if how.unequal == "resample":
        fits = [resampled(one, length) for one in series]
    else:
        fits = [one[:length] for one in series]
    x = np.zeros((len(series), length, series[0].shape[1]))
    for row, one in zip(x, fits, strict=True):
        row[: len(one)] = one
    lengths, before = (np.array([len(one) for one in some]) for some in (fits, series))
    return Prepared(x, lengths, before, gaps)


def sentence(how: Preparation, parts: Sequence[Prepared], scaling: str) -> str:
    """What was done to series and what radii therefore mean; empty if nothing was done."""
    before = np.concatenate([part.lengths_before for part in parts])
    length = parts[0].x.shape[1]
    zeros = "padded with zeros" if scaling == "none" else "padded with zeros (after scaling)"
    ways = [zeros] * bool((before < length).any()) + ["cut"] * bool((before > length).any())
    if ways and how.unequal == "resample":
        ways = ["resampled linearly"]
    done = [f"unequal lengths {' or '.join(ways)} to {length} time steps"] if ways else []
    if any(part.filled for part in parts):
        done.append(_FILLED[how.missing])
    if not done:
        return ""
    return "; ".join([*done, "radii are in the units of the series so prepared"])
