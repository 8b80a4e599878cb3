"""Arithmetic without rounding, and numbers rounded to the safe side."""

import decimal
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np

DOWN, UP = decimal.ROUND_FLOOR, decimal.ROUND_CEILING


def whole_numbers(*arrays: np.ndarray) -> tuple[list[np.ndarray], Fraction]:
    """Arrays of float64, broadcast, as Python's whole numbers of one unit, a power of two.

    Returns:
      The arrays, of type object, and the unit.
    """
    mantissa, exponent = np.frexp(np.stack(np.broadcast_arrays(*arrays)))
    least = int(exponent.min(where=mantissa != 0, initial=1100))
    places = np.maximum(exponent - least, 0).astype(object)  # below 0 for zeros only
    whole = np.ldexp(mantissa, 53).astype(np.int64).astype(object) * 2**places
    return list(whole), Fraction(2) ** (least - 53)


def largest_below(bound: Fraction) -> int:
    """The largest whole number strictly below."""
    return math.ceil(bound) - 1


def root_below(square: Fraction) -> float:
    """The largest float64 whose square is not above `square`."""
    # 2^shift times the root is found as a whole number of 64 bits or more.
    shift = max(0, 64 - (square.numerator.bit_length() - square.denominator.bit_length()) // 2)
    root = Fraction(math.isqrt(math.floor(square * 4**shift)), 2**shift)
    try:
        nearest = float(root)
    except OverflowError:
        return float(np.finfo(np.float64).max)
    return nearest if Fraction(nearest) <= root else math.nextafter(nearest, 0)


def shown(value: float, digits: int = 6, rounding: str = DOWN) -> str:
    """A number in decimal with so many significant digits, rounded down, or `UP`, exactly."""
    if not math.isfinite(value):
        return str(value)
    context = decimal.Context(prec=digits, rounding=rounding)
    number = context.create_decimal_from_float(value).normalize(context)
    return format(number, "f" if -6 < number.adjusted() < 16 else "e")


def percent(share: float, digits: int = 3) -> str:
    """A finite share in percent, rounded down as `shown` does."""
    return f"{Decimal(shown(share, digits)).scaleb(2).normalize():f} %"
