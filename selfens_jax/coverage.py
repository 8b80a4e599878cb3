"""What a radius covers: the largest change of each kind, in the series' own units.

A sample is one value, of one channel at one step. Everything here is NumPy on the host; no network
is asked again.

Guarantee
---------
*Statement.* Let R be the radius of a certificate for the series x of shape (T, C), c its class and
g the smoothed classifier. With probability at least 1 - alpha, the alpha of that certificate and no
further one, g answers c for every change of x of every kind below, each by itself, whose size s is
below the number given (for a count: that does not exceed it). Each number is the supremum: from it
on, or at the next count, some change of the kind has a norm of R or more.

    kind            change of size s                                   N: largest norm is s sqrt(N)
    offset          all samples by s                                   T C
    channel_offset  all samples of one channel by s                    T
    gain            x becomes (1 + s) x or (1 - s) x                   ||x||^2
    sample          one sample by s                                    1
    samples         any k samples by at most s each                    min(k, T C)
    every_sample    all samples by at most s each (L-infinity)         T C
    total           by s in all, summed over samples (L1)              1
    sinusoid        s sin(2 pi f t + phase), a phase for each channel  C (T + |S|) / 2, see 3
    drift           from 0 at the first step to s at the last          C T (2T - 1) / (6 (T - 1))
    centred_drift   from -s/2 at the first step to s/2 at the last     C T (T + 1) / (12 (T - 1))
    quantisation    samples rounded to steps of s: by s/2 at most      T C / 4

    count           change                                             largest squared norm
    moved           k samples by at most e each                        min(k, T C) e^2
    replaced        k samples by anything from low to high             the k largest of
                                                             max((x - low)^2, (high - x)^2), summed
    delay           x comes d steps late or early, edges held          over all delays up to d
    dropout         b steps in a row, all channels, become 0           the largest sum of their x^2

Several kinds at once are covered if their shares s / number sum to at most 1: half the offset with
half the drift. So is a delay between two whole ones that are covered, by linear interpolation.

*Own units.* Where each channel was divided by a unit before the noise (`units`; scaling "channel"),
a change of the series by d is one of x by d / units, and R speaks of the norm of that: what is
covered is an ellipsoid, sum_c ||d_c||^2 / units_c^2 < R^2. All sizes above are then in units: size
s is s * units_c in channel c, for all channels at once where a kind changes several; of `total` the
changes are summed after the division, so that s * units_c is for channel c alone. A change of
channel c alone is covered if its norm is below R * units_c (`channel_radii`). Gains, delays and
counts are what they are.

*Assumptions.* Those of the certificate (`certificates`), and that x is the series that was
certified, in the units that the noise was added in. Where it abstains R is 0, and nothing is
covered: all numbers are 0.

*Proof.* Let E be the event that g(x + d) = c for every d with ||d||_2 < R, of probability at least
1 - alpha.

1. E speaks of all d at once, so on E every change with a norm below R leaves c, whatever its kind.
   It remains to show how large norms are.
2. The changes of a kind of the first table are s u for u in a set U, and N is the maximum of
   ||u||^2 over U: for s < R / sqrt(N) all have norms below R, for s = R / sqrt(N) one has not.
   U is one vector, or all u with |u_i| <= 1 in at most k places, where k ones are the longest, or
   the ball sum |u_i| <= 1, where ||u||_2 <= ||u||_1 = 1, or what 3 and 4 sum. Rounding is within
   |d_i| <= s/2, and all of that is taken to happen.
3. sum_t sin^2(2 pi f t + phase) = T/2 - Re(exp(2i phase) S)/2 with S = sum_t exp(4 pi i f t), which
   is at most (T + |S|)/2, and equal for some phase; |S| = |sin(2 pi f T) / sin(2 pi f)|, or T where
   2f is whole. Phases of different channels do not depend on each other.
4. sum_t (t/(T-1))^2 and sum_t (t/(T-1) - 1/2)^2 over t = 0, ..., T-1 are as the table says. A
   series of one step is taken to move by all of s.
5. Counts: an added sample or step adds a square, so the norm grows with k and b; of the values from
   low to high one end is farthest from x; delays are looked at one by one.
6. Shares: ||d_1 + d_2|| <= ||d_1|| + ||d_2|| < (share_1 + share_2) R. A delay of d + w steps
   (0 < w < 1) changes x by (1 - w) times the change of d and w times that of d + 1. QED

Squares are summed in whole numbers of the last place of x, and roots are rounded down, so that no
number is above its supremum, nor a whole last place of float64 below; sines are taken 1e-12 larger.

*Not promised.* Anything about changes that come before any scaling or other preparation of x, or
that are larger: these may or may not change the answer.
"""

import dataclasses
import math
from bisect import bisect
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from selfens_jax.certificates import format_radius
from selfens_jax.errors import UserError, check_number, check_whole
from selfens_jax.exact import UP, largest_below, percent, root_below, shown, whole_numbers

SIZES = ("offset", "channel_offset", "gain", "sample", "samples", "every_sample", "total")
SIZES += ("sinusoid", "drift", "centred_drift", "quantisation")
COUNTS = ("moved", "replaced", "delay", "dropout")
_NAMED = 6  # channels whose numbers are told in words


@dataclasses.dataclass(frozen=True)
class Coverage:
    """The largest change of each kind that a radius covers; the module's tables say what they are.

    Attributes:
      radius: R.
      shape: (T, C) of the series.
      num_samples, by, low, high, frequency: what `cover` was asked; `low` and `high` for each
        channel, and as the series, divided by the units.
      units: (C,), or () where nothing was divided.
      offset, ..., quantisation: float64, every change of a size below it is covered.
      moved, replaced, delay, dropout: every change of so many samples or steps is covered.
    """

    radius: float
    shape: tuple[int, int]
    num_samples: int
    by: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    frequency: float
    offset: float
    channel_offset: float
    gain: float
    sample: float
    samples: float
    every_sample: float
    total: float
    sinusoid: float
    drift: float
    centred_drift: float
    quantisation: float
    moved: int
    replaced: int
    delay: int
    dropout: int
    units: tuple[float, ...] = ()

    def numbers(self) -> dict[str, float]:
        """Radius, sizes and counts for records, rounded down to six significant digits."""
        sizes = {name: float(shown(getattr(self, name))) for name in ("radius", *SIZES)}
        return {**sizes, **{name: getattr(self, name) for name in COUNTS}}

    def rows(self, digits: int = 3) -> list[tuple[str, str]]:
        """(what changes, how far it may) in words, with so many significant digits.

        Sizes are in each channel's own units.
        """
        steps, channels = self.shape
        num_values = steps * channels
        (low, high), *others = set(zip(self.low, self.high, strict=True))
        least, most = shown(low, digits, UP), shown(high, digits)
        given = others or self.units or float(least) > float(most)
        limits = "within the limits" if given else f"from {least} to {most}"

        def own(size: float) -> str:
            return own_units(size, self.units, digits)

        def below(size: float, unit: str = "", text: Callable[[float], str] = own) -> str:
            if size in (0, math.inf):
                return "any" if size else "none"
            return f"below {text(size)}{unit}"

        def up_to(count: int, most: int, unit: str) -> str:
            if count in (0, most):
                return "any number" if count else "none"
            return f"up to {count} {unit}{'s' * (count > 1)}"

        return [
            ("constant offset of all samples", below(self.offset)),
            ("constant offset of one channel", below(self.channel_offset)),
            ("gain error", below(self.gain, text=lambda share: percent(share, digits))),
            ("one sample", below(self.sample)),
            (f"any {min(self.num_samples, num_values)} samples", below(self.samples, " each")),
            ("all samples (L-infinity)", below(self.every_sample, " each")),
            (f"sum of all changes (L1){', in one channel' * bool(self.units)}", below(self.total)),
            (f"sinusoid, any phase, {self.frequency!r} cycles a step", below(self.sinusoid)),
            ("linear drift from 0", below(self.drift, " at the end")),
            ("linear drift around 0", below(self.centred_drift, " from start to end")),
            ("rounding to steps (quantisation)", below(self.quantisation, " a step")),
            (
                f"samples moved by up to {own(self.by)}",
                up_to(self.moved, num_values, "sample"),
            ),
            (f"samples replaced, {limits}", up_to(self.replaced, num_values, "sample")),
            ("late or early, edges held", up_to(self.delay, steps - 1, "step")),
            ("steps in a row set to 0", up_to(self.dropout, steps, "step")),
        ]


def cover(
    radius: float,
    x: ArrayLike,
    *,
    num_samples: int = 10,
    by: float | None = None,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    frequency: float | None = None,
    units: Sequence[float] = (),
) -> Coverage:
    """What the radius of a series covers; the module has the statement and the proof.

    Args:
      radius: R, of a certificate of this series; 0 covers nothing.
      x: (T, C) or (T,), in the units that the noise was added in.
      num_samples: k of `samples`.
      by: e of `moved`; a tenth of what x spans if None.
      low, high: limits of `replaced`, for all channels or (C,) for each, in their own units; the
        least and largest value of each channel if None.
      frequency: f of `sinusoid`, in cycles a step; one cycle in T steps if None.
      units: (C,) that each channel of x was divided by; () if none was.

    Raises:
      UserError: for a negative or NaN radius, a series that is empty or not finite, limits in the
        wrong order, or what is no number.
    """
    radius, x = _check_radius(radius), _check_series(x)
    steps, channels = x.shape
    units = check_units(units, channels)
    lows = x.min(axis=0) if low is None else _limits("low", low, units, channels, -np.inf)
    highs = x.max(axis=0) if high is None else _limits("high", high, units, channels, np.inf)
    if (lows > highs).any():
        raise UserError(f"low must not be above high: {lows.tolist()} and {highs.tolist()}")
    tenth = float(x.max()) / 10 - float(x.min()) / 10
    by = tenth if by is None else check_number("by", by, 0, math.inf)
    frequency = check_number(
        "frequency", 1 / steps if frequency is None else frequency, -math.inf, math.inf
    )
    num_samples = check_whole("num_samples", num_samples, 1)
    (whole, below, above), unit = whole_numbers(x, lows[None], highs[None])
    budget = _budget(radius, unit)
    ramp, centred = _ramps(steps)
    return Coverage(
        radius=radius,
        shape=(steps, channels),
        num_samples=num_samples,
        by=by,
        low=tuple(lows.tolist()),
        high=tuple(highs.tolist()),
        frequency=frequency,
        offset=limit(radius, x.size),
        channel_offset=limit(radius, steps),
        gain=limit(radius, (whole**2).sum() * unit**2),
        sample=limit(radius, 1),
        samples=limit(radius, min(num_samples, x.size)),
        every_sample=limit(radius, x.size),
        total=limit(radius, 1),
        sinusoid=limit(radius, channels * sinusoid_squares(steps, frequency)),
        drift=limit(radius, channels * ramp),
        centred_drift=limit(radius, channels * centred),
        quantisation=limit(radius, Fraction(x.size, 4)),
        moved=samples_moved(radius, by, x.size),
        replaced=_replaced(np.maximum((whole - below) ** 2, (above - whole) ** 2), budget),
        delay=_delay(whole, budget),
        dropout=_dropout((whole**2).sum(axis=1), budget),
        units=units,
    )


def is_covered(radius: float, x: ArrayLike, changed: ArrayLike) -> bool:
    """Whether the radius of x covers the change to this other series: its norm is below R, exactly.

    Args:
      radius, x: as in `cover`.
      changed: of the shape of x.
    """
    radius, x, changed = _check_radius(radius), _check_series(x), _check_series(changed)
    if x.shape != changed.shape:
        raise UserError(f"x {x.shape} and the changed series {changed.shape} differ in shape")
    (before, after), unit = whole_numbers(x, changed)
    return bool(((after - before) ** 2).sum() <= _budget(radius, unit))


def delayed(x: np.ndarray, steps: int) -> np.ndarray:
    """x (T, ...) that many steps late, or early if negative; the first or last value is held."""
    return x[np.clip(np.arange(len(x)) - steps, 0, len(x) - 1)]


def limit(radius: float, squares: Fraction | int) -> float:
    """R / sqrt(N), rounded down to float64: below it s sqrt(N) < R; 0 if R is 0."""
    if radius == 0:
        return 0.0
    if math.isinf(radius) or squares == 0:
        return math.inf
    return root_below(Fraction(radius) ** 2 / squares)


def samples_moved(radius: float, by: float, num_values: int) -> int:
    """The largest k <= T C for which any k samples, moved by at most `by` each, are covered."""
    if radius == 0 or math.isinf(radius) or by == 0:
        return num_values if radius else 0
    return min(num_values, largest_below((Fraction(radius) / Fraction(by)) ** 2))


def sinusoid_squares(steps: int, frequency: float) -> Fraction:
    """The largest sum of sin^2(2 pi f t + phase) over t < T, whatever the phase; rounded up."""
    turn = 2 * Fraction(frequency)  # of exp(4 pi i f), in cycles; whole ones change nothing
    turn -= round(turn)
    ratio = float(steps)
    if abs(turn) > Fraction(1, 10**100):
        turns = steps * turn
        turns -= round(turns)
        ratio = abs(math.sin(math.pi * turns) / math.sin(math.pi * turn)) * (1 + 1e-12)
    return (steps + Fraction(min(ratio, steps))) / 2


def channel_radii(radius: ArrayLike, units: Sequence[float]) -> np.ndarray:
    """(..., C) L2 norms in each channel's own units: changes of it alone below them are covered.

    Args:
      radius: (...,) R.
      units: (C,) that the channels were divided by.
    """
    product = np.asarray(radius, np.float64)[..., None] * np.asarray(units)
    return np.where(product > 0, np.nextafter(product, 0), product)


def own_units(size: float, units: Sequence[float], digits: int = 6) -> str:
    """A size in each channel's own units, rounded down; the size itself without units."""
    if not units:
        return shown(size, digits)
    own = [shown(float(number), digits) for number in channel_radii(size, units)[:_NAMED]]
    more = ", ..." if len(units) > _NAMED else ""
    return f"{', '.join(own)}{more} (by channel)"


def check_units(units: Sequence[float], channels: int) -> tuple[float, ...]:
    """Units (C,), or none.

    Raises:
      UserError: unless there is a positive finite number for each channel.
    """
    try:
        values = np.asarray(units)
    except ValueError:  # how NumPy refuses ragged lists
        values = np.zeros(())
    if values.shape == (0,):
        return ()
    numbers = values.shape == (channels,) and values.dtype.kind in "iuf"
    if not numbers or not (np.isfinite(values) & (values > 0)).all():
        raise UserError(f"units must be a positive number for each of {channels} channels")
    return tuple(float(value) for value in values.ravel())


def shift_covered(radius: float, num_values: int, digits: int = 6) -> str:
    """radius / sqrt(num_values) in decimal, rounded down; an infinite one is "inf"."""
    return format_radius(limit(radius, num_values), digits)


def _budget(radius: float, unit: Fraction) -> float:
    """The largest whole number of squared units below R^2: -1, which no change has, if R is 0."""
    return math.inf if math.isinf(radius) else largest_below((Fraction(radius) / unit) ** 2)


def _replaced(squares: np.ndarray, budget: float) -> int:
    worst_first = np.sort(squares, axis=None)[::-1]
    return int((np.cumsum(worst_first) <= budget).sum())


def _delay(whole: np.ndarray, budget: float) -> int:
    """The most steps, late or early, up to which all changes are within the budget."""

    def fits(steps: int) -> bool:
        moved = (delayed(whole, steps) - whole, delayed(whole, -steps) - whole)
        return all((change**2).sum() <= budget for change in moved)

    length = len(whole)
    if (whole == whole[0]).all():  # which no delay changes
        return length - 1 if budget >= 0 else 0
    return next((steps - 1 for steps in range(1, length) if not fits(steps)), length - 1)


def _dropout(squares: np.ndarray, budget: float) -> int:
    """The longest run of steps, wherever it lies, whose squares (T,) are within the budget."""
    sums = np.concatenate([[0], np.cumsum(squares)])
    runs = range(1, len(sums))
    return bisect(runs, False, key=lambda run: (sums[run:] - sums[:-run]).max() > budget)


def _ramps(steps: int) -> tuple[Fraction, Fraction]:
    """Sums of squares of a drift from 0 to 1, and from -1/2 to 1/2."""
    if steps == 1:
        return Fraction(1), Fraction(1)
    whole = Fraction(steps * (2 * steps - 1), 6 * (steps - 1))
    return whole, Fraction(steps * (steps + 1), 12 * (steps - 1))


def _check_radius(radius: float) -> float:
    try:
        number = float(radius)
    except (TypeError, ValueError):
        number = math.nan
    if not number >= 0:
        raise UserError(f"a radius must be a nonnegative number, not {radius!r}")
    return number


def _check_series(x: ArrayLike) -> np.ndarray:
    """One series as float64 (T, C)."""
    if np.ma.is_masked(x):
        raise UserError("the series has values under a mask: fill them")
    try:
        series = np.asarray(x)
    except ValueError:  # how NumPy refuses ragged lists
        series = np.zeros((0,))
    if series.ndim not in (1, 2) or not series.size or series.dtype.kind not in "biuf":
        raise UserError(
            f"a series must be numbers (T, C) or (T,), not {series.dtype} of shape {series.shape}"
        )
    if not np.isfinite(series).all():
        raise UserError("the series contains NaN or infinity: no change to it is covered")
    with np.errstate(over="ignore"):
        wide = series.astype(np.float64)
    whole = series.dtype.kind in "iu"
    if not np.isfinite(wide).all() or (whole and (wide.astype(series.dtype) != series).any()):
        raise UserError("the series has values that float64 cannot hold: rescale it")
    return wide.reshape(len(series), -1)


def _limits(
    what: str, values: ArrayLike, units: Sequence[float], channels: int, outward: float
) -> np.ndarray:
    """Limits (C,) of each channel, divided by its unit; rounded outward, to allow no less."""
    try:
        limits = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        limits = np.array(np.nan)
    if limits.shape not in ((), (channels,)) or not np.isfinite(limits).all():
        raise UserError(f"{what} must be a finite number, or one for each of {channels} channels")
    limits = np.broadcast_to(limits, (channels,))
    if not units:
        return limits
    with np.errstate(over="ignore"):
        divided = np.nextafter(limits / np.asarray(units), outward)
    if not np.isfinite(divided).all():
        raise UserError(f"{what} is too large for channels in units of {units}")
    return divided
