"""The checks of series and labels, whatever they were read from; errors name where they failed."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from selfens_jax import synthetic
from selfens_jax.data import labels
from selfens_jax.errors import UserError
from selfens_jax.preparation import (
    FILL_IT,
    ONE_LENGTH,
    Preparation,
    Prepared,
    filled,
    fitted,
    trimmed,
)

SCALINGS = ("none", "channel", "z_score")


def check_scaling(scaling: str) -> None:
    if scaling not in SCALINGS:
        raise UserError(f"scaling {scaling!r} is unknown: use one of {', '.join(SCALINGS)}")


def channel_units(part: Prepared) -> tuple[float, ...]:
    """(C,) the standard deviation of each channel over training series, padding apart.

    1 for a channel that is constant, up to rounding: it has no scale, and stays as it is.
    """
    steps = np.concatenate([x[:end] for x, end in zip(part.x, part.lengths, strict=True)])
    largest = np.abs(steps).max(axis=0)
    largest = np.where(largest > 0, largest, 1.0)  # whose squares could overflow
    deviations = (steps / largest).std(axis=0) * largest
    return tuple(np.where(deviations > 1e-9 * largest, deviations, 1.0).tolist())


@dataclasses.dataclass(frozen=True)
class Split:
    """The checks of one split, which name its place and the series in their errors."""

    place: str
    split: str | None  # "training" or "test"; None for series of no split
    channels_first: bool = False  # whether series come as (n, C, T)

    @property
    def other_order(self) -> str:
        """What to do if the axes were taken for each other."""
        if self.channels_first:
            return "is it (series, time, channels)? then leave channels_first out"
        return (
            "time comes before channels: is it (series, channels, time)? then X.transpose(0, 2, "
            "1), or channels_first"
        )

    def fail(self, problem: str, series: int | None = None, at: str = "") -> NoReturn:
        whole = "the file" if self.split is None else f"the {self.split} split"
        where = whole if series is None else f"series {series} of {whole}"
        raise UserError(f"{self.place}: {where}{at} {problem}") from None

    def warn(self, doubt: str) -> None:
        warnings.warn(f"{self.place}: {doubt}", UserWarning, stacklevel=3)

    def check_series(self, X: Any) -> np.ndarray:
        """X as (n, T, C) float64, all finite."""
        self._fail_at_a_mask(X, "values")  # np.asarray would show what the mask hides
        X = self._some(X)
        if X.dtype == object and X.ndim == 1:
            lengths = [len(series) if hasattr(series, "__len__") else 0 for series in X]
            self._fail_at_another_length(lengths)
        self._fail_at_a_type(X)
        if X.ndim not in (2, 3) or 0 in X.shape[2:]:
            self.fail(f"has shape {X.shape}: it must be (series, time[, channels])")
        if X.shape[1] < 2:
            order = f"; {self.other_order}" if X.shape[1] < X.shape[-1] and X.ndim == 3 else ""
            self.fail(
                f"has shape {X.shape}, series of length {X.shape[1]}: at least two time steps are "
                f"needed{order}"
            )
        with np.errstate(over="ignore"):  # of a long double; it is then refused as infinite
            X = X.reshape(*X.shape[:2], -1).astype(np.float64)
        self._fail_at_infinity(X)
        self._fail_at_first(np.isnan(X), X, f"is not finite: {FILL_IT}, or {ONE_LENGTH}")
        return X

    def complete(self, X: Any, how: Preparation) -> tuple[list[np.ndarray], bool]:
        """X as series (T_i, C) float64, all finite, of any lengths; and whether gaps were filled.

        Args:
            X: (n, T) or (n, T, C), or n series of (T_i,) or (T_i, C), in which NaN is missing.
            how: what may be unequal or missing; at least one of them.
        """
        self._fail_at_a_mask(X, "values")
        X = self._some(X)
        if X.ndim not in (2, 3) and not (X.dtype == object and X.ndim == 1):
            self.fail(f"has shape {X.shape}: it must be (series, time[, channels])")
        complete, gaps = [], False
        for i, row in enumerate(X):
            series = self._one(row, i)
            if complete and series.shape[1] != complete[0].shape[1]:
                self.fail(
                    f"has {series.shape[1]} channels, but series 0 has {complete[0].shape[1]}", i
                )
            series = trimmed(series) if how.unequal != "refuse" else series
            unknown = np.isnan(series).all(axis=0)
            if unknown.all():
                self.fail("has no value at all: drop it", series=i)
            if unknown.any() and how.missing in ("last", "linear"):
                channel = int(unknown.argmax())
                self.fail(
                    f"has no value in channel {channel}: only zeros can fill it (missing=zero)", i
                )
            gaps |= bool(np.isnan(series).any())
            series = filled(series, how.missing)
            self._fail_at_infinity(series[None], i)
            if how.missing != "hide":
                unknown = np.isnan(series[None])
                self._fail_at_first(unknown, series[None], f"is missing: {FILL_IT}", i)
            complete.append(series)
        if how.unequal == "refuse":
            self._fail_at_another_length([len(series) for series in complete])
        for i, series in enumerate(complete):
            if len(series) < 2:
                self.fail("has one time step only: at least two are needed", series=i)
        return complete, gaps

    def prepare(self, X: Any, how: Preparation, length: int | None = None) -> Prepared:
        """X, checked, as one array; of `length` time steps, if any length will do.

        Args:
            X: as in `check_series` or, if `how` allows anything, as in `complete`.
            how: what may be unequal or missing, and what is then done.
            length: what unequal series are brought to; what `how` says of their own if None.
        """
        X = self._channels_last(X) if self.channels_first else X
        if not how.allows_gaps:
            x = self.check_series(X)
            lengths = np.full(len(x), x.shape[1])
            return Prepared(x, lengths, lengths, filled=False)
        complete, gaps = self.complete(X, how)
        lengths = [len(series) for series in complete]
        if length is None or how.unequal == "refuse":
            length = how.common_length(lengths)
        return fitted(complete, length, how, gaps)

    def to_float32(self, part: Prepared, scaling: str, units: Sequence[float] = ()) -> np.ndarray:
        """The series (n, T, C), scaled, as float32; zeros that pad them stay zeros.

        units: (C,) that scaling "channel" divides by.
        """
        x, lengths = part.x, part.lengths
        scaled = x
        if scaling == "channel":
            with np.errstate(over="ignore"):
                scaled = x / np.asarray(units)
        elif scaling == "z_score" and (lengths == x.shape[1]).all():
            scaled = synthetic.z_normalise(x)
        elif scaling == "z_score":
            scaled = np.zeros_like(x)
            for to, one, length in zip(scaled, x, lengths, strict=True):
                to[:length] = synthetic.z_normalise(one[None, :length])[0]
        with np.errstate(over="ignore"):
            narrow = scaled.astype(np.float32)
        self._fail_at_first(np.isinf(narrow), x, "overflows float32: use smaller units")
        return narrow

    def check_labels(self, y: Any, num_series: int) -> list[str]:
        self._fail_at_a_mask(y, "a label")
        y = y if isinstance(y, np.ndarray) else np.asarray(y, dtype=object)
        if y.shape != (num_series,):
            self.fail(
                f"has {num_series} series, but its labels have shape {y.shape}: give one label a "
                "series"
            )
        texts = []
        for i, value in enumerate(y):
            if isinstance(value, bytes):
                value = value.decode("utf-8", errors="backslashreplace")
            known = (str, bool, np.bool_, int, np.integer, float, np.floating)
            if not isinstance(value, known) or isinstance(value, np.timedelta64):
                self.fail(
                    f"has label {labels.quoted(value)}, which is neither a number nor text: drop "
                    "the series or name its class",
                    series=i,
                )
            if isinstance(value, (float, np.floating)) and np.isfinite(value):
                value = int(value) if value == int(value) else value
            text = str(value)
            problem = labels.problem(text)
            if problem:
                self.fail(f"has label {labels.quoted(text)}, which {problem}", series=i)
            texts.append(text)
        if len({isinstance(v, (bool, np.bool_)) for v in y if not isinstance(v, (str, bytes))}) > 1:
            self.fail("has both booleans and numbers as labels: write them in one way")
        return texts

    def _channels_last(self, X: Any) -> Any:
        """X of (n, C, T), an array or a list of (C, T_i), as (n, T, C)."""
        self._fail_at_a_mask(X, "values")
        X = _as_array(X)
        ragged = X.dtype == object and X.ndim == 1 and {_as_array(one).ndim for one in X} == {2}
        if X.ndim != 3 and not ragged:
            self.fail(
                f"has shape {X.shape}, not (series, channels, time) as channels_first says: leave "
                "that out"
            )
        return [np.asarray(series).T for series in X] if ragged else X.swapaxes(1, 2)

    def _some(self, X: Any) -> np.ndarray:
        X = _as_array(X)
        if X.shape[:1] == (0,):
            self.fail("is empty: it needs at least one series")
        return X

    def _one(self, row: Any, series: int) -> np.ndarray:
        """One series as (T, C) float64."""
        try:
            row = np.asarray(row)
        except ValueError:
            self.fail("has channels of different lengths", series)
        self._fail_at_a_type(row)
        if row.ndim not in (1, 2) or 0 in row.shape:
            self.fail(f"has shape {row.shape}: it must be (time[, channels])", series)
        with np.errstate(over="ignore"):
            return row.reshape(len(row), -1).astype(np.float64)

    def _fail_at_a_type(self, X: np.ndarray) -> None:
        if X.dtype.kind not in "biuf":
            self.fail(f"has series of type {X.dtype}: they must be real numbers")

    def _fail_at_another_length(self, lengths: list[int]) -> None:
        for i, length in enumerate(lengths):
            if length != lengths[0]:
                self.fail(
                    f"has length {length}, but series 0 has {lengths[0]}: {ONE_LENGTH}", series=i
                )

    def _fail_at_a_mask(self, values: Any, what: str) -> None:
        if _is_masked(values):
            single = isinstance(values, np.ndarray) and values.ndim == 0
            rows = () if single else values
            series = next((i for i, row in enumerate(rows) if _is_masked(row)), None)
            self.fail(f"has {what} under a mask: fill it, or drop the series", series)

    def _fail_at_infinity(self, x: np.ndarray, first: int = 0) -> None:
        problem = "is not finite: replace it, or drop the series"
        self._fail_at_first(np.isinf(x), x, problem, first)

    def _fail_at_first(self, bad: np.ndarray, x: np.ndarray, problem: str, first: int = 0) -> None:
        """Fails at the first bad value of x (n, T, C), whose first series is called `first`."""
        if bad.any():
            series, time, channel = np.unravel_index(bad.argmax(), bad.shape)
            at = f", time {time}" + (f", channel {channel}" if x.shape[2] > 1 else "")
            value = x[series, time, channel]
            self.fail(f"has value {value}, which {problem}", first + int(series), at)


def _as_array(X: Any) -> np.ndarray:
    """X as an array; where its series are of several shapes, one of objects, (n,)."""
    try:
        return np.asarray(X)
    except ValueError:  # how NumPy refuses ragged lists
        return np.fromiter(X, dtype=object)


def _is_masked(values: Any) -> bool:
    """Whether a mask hides any value of an array, or of one inside lists."""
    if isinstance(values, np.ma.MaskedArray):
        return np.ma.is_masked(values)
    if isinstance(values, np.ndarray):
        return values.dtype == object and any(map(_is_masked, values.flat))
    return isinstance(values, (list, tuple)) and any(map(_is_masked, values))
