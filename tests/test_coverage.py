"""What a radius covers: at each number a norm of R is reached, and below it is not.

Norms are worked out here in fractions, from changes that are written out, never from the formulas.
"""

import dataclasses
import inspect
import itertools
import math
import re
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from selfens_jax import coverage, exact
from selfens_jax.coverage import COUNTS, SIZES, Coverage, cover, is_covered
from selfens_jax.errors import UserError

ERROR = 1e-11  # relative, of sines


def cases(number: int = 60) -> Iterator[tuple[float, np.ndarray, np.random.Generator]]:
    """Radii and series (T, C) of all kinds and scales, T = 1 and 2 among them."""
    rng = np.random.default_rng(0)
    for i in range(number):
        shape = (1 + i % 9, 1 + i % 3)
        scale = 10.0 ** rng.integers(-12, 12)
        x = scale * [
            rng.standard_normal(shape),
            rng.standard_normal(shape).cumsum(axis=0),
            rng.integers(-3, 4, shape).astype(float),
            np.full(shape, rng.standard_normal()),
        ][i % 4].astype(np.float32 if i % 5 else np.float64)
        radius = float(scale * rng.exponential(2) * (1 if i % 2 else rng.integers(1, 4)))
        yield radius, x, rng


def exactly(values) -> np.ndarray:
    """An array of fractions."""
    return np.vectorize(Fraction, otypes=[object])(np.asarray(values, np.float64))


def square(change: np.ndarray):
    """The squared norm of a change of fractions."""
    return sum(value * value for value in change.flat)


def first(shape: tuple[int, int], number: int) -> np.ndarray:
    """Ones at so many samples, zeros at the others."""
    change = np.zeros(shape[0] * shape[1])
    change[:number] = 1
    return exactly(change.reshape(shape))


def ramp(steps: int, channels: int) -> np.ndarray:
    """From 0 to 1 on all channels."""
    time = [Fraction(t, steps - 1) for t in range(steps)]
    return np.array([[t] * channels for t in time], dtype=object)


def worst(kind: str, x: np.ndarray, asked: Coverage) -> np.ndarray:
    """The longest change of size 1 of this kind."""
    shape, one = x.shape, exactly(np.ones(x.shape))
    match kind:
        case "offset" | "every_sample":
            return one
        case "channel_offset":
            return one * (np.arange(shape[1]) == 0)
        case "gain":
            return exactly(x)
        case "sample" | "total":
            return first(shape, 1)
        case "samples":
            return first(shape, asked.num_samples)
        case "drift":
            return ramp(*shape) if len(x) > 1 else one
        case "centred_drift":
            return ramp(*shape) - Fraction(1, 2) if len(x) > 1 else one
        case "quantisation":
            return one / 2
    raise ValueError(kind)


@pytest.mark.parametrize("kind", [kind for kind in SIZES if kind != "sinusoid"])
def test_a_size_is_the_supremum(kind):
    met = 0
    for radius, x, rng in cases():
        found = cover(radius, x, num_samples=int(rng.integers(1, 12)))
        size = getattr(found, kind)
        change = worst(kind, x, found)
        if square(change) == 0:
            assert size == math.inf
            continue
        met += 1
        above = math.nextafter(size, math.inf)
        limit = Fraction(radius) ** 2
        assert square(change * Fraction(size)) <= limit < square(change * Fraction(above))
        inside = square(change * Fraction(math.nextafter(size, 0)))
        assert inside < limit  # what is below the number has a norm below R
    assert met > 40


def test_no_change_of_a_kind_is_longer_than_the_worst():
    """Random changes of size 1 of the kinds of which many are possible."""
    for radius, x, rng in cases():
        k = int(rng.integers(1, 12))
        found = cover(radius, x, num_samples=k)
        some = rng.permutation(x.size) < k
        moved = (rng.uniform(-1, 1, x.size) * some).reshape(x.shape)
        assert square(exactly(moved * found.samples)) < Fraction(radius) ** 2
        moved = rng.uniform(-1, 1, x.shape)
        assert square(exactly(moved * found.every_sample)) < Fraction(radius) ** 2
        grid = rng.uniform(0.999, 1) * found.quantisation
        rounded = np.rint(x / grid + 0.3) - 0.3
        difference = (exactly(rounded) - exactly(x / grid)) * Fraction(grid)
        assert square(difference) < Fraction(radius) ** 2 * (1 + Fraction(1, 10**9))
        shares = rng.exponential(1, x.shape) * rng.choice([-1, 1], x.shape)
        shares = (1 - 1e-9) * shares / np.abs(shares).sum()  # whose absolute values sum to 1
        assert square(exactly(shares * found.total)) < Fraction(radius) ** 2


FREQUENCIES = (0, 0.5, 1, -0.5, 3.5, 0.1, -0.1, 0.25, 1 / 3, 0.4999999, 1e-9, 1e-300, 50 / 360)
FREQUENCIES += (7.3, 123456.7)


@pytest.mark.parametrize("frequency", FREQUENCIES)
def test_a_sinusoid_of_the_worst_phase_reaches_the_radius(frequency):
    for radius, x, rng in cases(40):
        steps, channels = x.shape
        amplitude = cover(radius, x, frequency=frequency).sinusoid
        # a sin(wt + phase) = a sin(phase) cos(wt) + a cos(phase) sin(wt): the largest norm is that
        # of a quadratic form. The phase is reduced exactly, so that sines of wt are right.
        turns = [float((t * Fraction(frequency)) % 1) for t in range(steps)]
        angle = 2 * np.pi * np.array(turns)
        waves = np.stack([np.cos(angle), np.sin(angle)])
        longest = math.sqrt(channels * np.linalg.eigvalsh(waves @ waves.T)[-1])
        assert amplitude * longest == pytest.approx(radius, rel=ERROR)
        assert amplitude * longest <= radius * (1 + 1e-14)
        phases = rng.uniform(0, 2 * np.pi, channels)
        hum = amplitude * np.sin(angle[:, None] + phases)
        assert np.linalg.norm(hum) <= radius * (1 + 1e-14)


def test_a_sinusoid_that_does_not_move_is_an_offset_and_whole_cycles_reach_further():
    for radius, x, _ in cases(20):
        found = {f: cover(radius, x, frequency=f) for f in (0, 0.5, 1)}
        assert all(one.sinusoid == one.offset for one in found.values())
        if len(x) > 2:
            assert cover(radius, x).sinusoid == pytest.approx(math.sqrt(2) * found[0].offset)


# Counts


def brute_moved(radius, x, asked):
    fits = [k for k in range(x.size + 1) if k * Fraction(asked.by) ** 2 < Fraction(radius) ** 2]
    return max(fits)


def brute_replaced(radius, x, asked):
    """The largest k for which no k samples, moved to either limit, reach the radius."""
    low, high = exactly(asked.low), exactly(asked.high)
    ends = [(exactly(x) - low) ** 2, (high - exactly(x)) ** 2]
    costs = [max(pair) for pair in zip(*(end.flat for end in ends), strict=True)]
    for k in range(x.size, 0, -1):
        if all(sum(some) < Fraction(radius) ** 2 for some in itertools.combinations(costs, k)):
            return k
    return 0


def shifted(x: np.ndarray, steps: int) -> np.ndarray:
    """Late if positive; written out."""
    last = len(x) - 1
    return np.stack([x[min(max(t - steps, 0), last)] for t in range(len(x))])


def brute_delay(radius, x, asked):
    whole = exactly(x)
    for d in range(1, len(x)):
        for steps in (d, -d):
            if square(shifted(whole, steps) - whole) >= Fraction(radius) ** 2:
                return d - 1
    return len(x) - 1


def brute_dropout(radius, x, asked):
    whole = exactly(x)
    for run in range(1, len(x) + 1):
        for start in range(len(x) - run + 1):
            if square(whole[start : start + run]) >= Fraction(radius) ** 2:
                return run - 1
    return len(x)


BRUTE = {"moved": brute_moved, "replaced": brute_replaced}
BRUTE |= {"delay": brute_delay, "dropout": brute_dropout}


@pytest.mark.parametrize("kind", COUNTS)
def test_a_count_is_the_largest(kind):
    found = set()
    for radius, x, rng in cases(160):
        x = x[:4]
        radius *= float(rng.choice([0.3, 1, 3]))
        limits = {}
        if rng.random() < 0.5:  # not those of the series, which may lie outside
            edges = np.sort(x.mean() + radius * rng.uniform(-1, 1, (2, x.shape[1])), axis=0)
            limits = {"low": edges[0], "high": edges[1], "by": radius * rng.uniform(0.1, 1)}
        asked = cover(radius, x, **limits)
        count = getattr(asked, kind)
        assert count == BRUTE[kind](radius, x, asked)
        found.add(count)
    assert {0, 1, 2} <= found


def test_delays_are_looked_at_one_by_one():
    """A delay by a whole period changes little, but those before it do not."""
    x = np.tile([0.0, 4.0, 0.0, -4.0], 8)
    assert is_covered(10, x, coverage.delayed(x, 4))
    assert is_covered(10, x, coverage.delayed(x, -4))
    assert not is_covered(10, x, coverage.delayed(x, 1))
    assert cover(10, x).delay == 0


def test_a_delay_between_two_covered_ones_is_covered():
    for radius, x, rng in cases():
        steps = cover(radius, x).delay
        if steps:
            weight = rng.uniform()
            delays = coverage.delayed(x, steps - 1), coverage.delayed(x, steps)
            between = (1 - weight) * delays[0].astype(float) + weight * delays[1].astype(float)
            norm = np.linalg.norm(between - x)
            assert norm < radius * (1 + 1e-12)


def test_late_and_early_hold_the_edges():
    x = np.array([[1.0], [2.0], [3.0], [4.0]])
    assert coverage.delayed(x, 2).ravel().tolist() == [1, 1, 1, 2]
    assert coverage.delayed(x, -1).ravel().tolist() == [2, 3, 4, 4]
    assert coverage.delayed(x, 9).ravel().tolist() == [1, 1, 1, 1]


def test_shares_of_several_kinds_add_up():
    kinds = [kind for kind in SIZES if kind != "sinusoid"]
    for radius, x, rng in cases():
        found = cover(radius, x)
        shares = rng.dirichlet(np.ones(3)) * rng.uniform(0.9, 1 - 1e-9)
        change = np.zeros(x.shape)
        for kind, share in zip(rng.choice(kinds, 3), shares, strict=True):
            size = getattr(found, kind)
            if math.isfinite(size):
                change = change + rng.choice([-1, 1]) * share * size * worst(kind, x, found).astype(
                    float
                )
        assert np.linalg.norm(change) < radius


# A change that is given


def test_a_change_whose_norm_is_the_radius_is_not_covered():
    x = np.array([1.0, 2.0, 3.0])
    assert not is_covered(5, x, [4, 2, 7])
    assert is_covered(5, x, [4, 2, 6.9999999999])
    assert is_covered(math.nextafter(5, 6), x, [4, 2, 7])
    assert is_covered(1e-30, x, x)
    assert not is_covered(0, x, x)  # where it abstains nothing is covered
    assert is_covered(math.inf, x, 1e30 * x)
    assert not is_covered(1e-9, [1e9], [math.nextafter(1e9, 0)])


def test_a_given_change_is_measured_without_rounding():
    for radius, x, rng in cases():
        for length in (0.5, 1 - 1e-15, 1, 1 + 1e-15, 2):
            change = rng.standard_normal(x.shape)
            changed = x + length * radius * change / np.linalg.norm(change)
            norm = square(exactly(changed) - exactly(x))
            assert is_covered(radius, x, changed) == (norm < Fraction(radius) ** 2)
        zeroed = np.where(rng.random(len(x)) < 0.5, 0, x.T).T
        norm = square(exactly(zeroed) - exactly(x))
        assert is_covered(radius, x, zeroed) == (norm < Fraction(radius) ** 2)


# Edges


def test_without_a_radius_nothing_is_covered():
    for x in (np.zeros((4, 2)), np.ones(3), np.arange(5.0)):
        found = cover(0, x)
        assert [getattr(found, name) for name in (*SIZES, *COUNTS)] == [0] * 15
        assert {word for _, word in found.rows()} == {"none"}


def test_an_infinite_radius_covers_all():
    found = cover(math.inf, np.arange(6.0).reshape(3, 2))
    assert all(getattr(found, kind) == math.inf for kind in SIZES)
    assert (found.moved, found.replaced, found.delay, found.dropout) == (6, 6, 2, 3)
    assert {word for _, word in found.rows()} == {"any", "any number"}


def test_a_constant_series_may_come_late_and_a_zero_one_in_any_strength():
    found = cover(1e-9, np.full((300, 1), 7.0))
    assert found.delay == 299
    assert (found.moved, found.replaced, found.by) == (300, 300, 0)  # by no more than nothing
    assert found.gain < 1e-9
    silent = cover(1e-9, np.zeros((20, 2)))
    assert silent.gain == math.inf
    assert (silent.dropout, silent.delay) == (20, 19)


def test_more_samples_than_there_are_are_all_samples():
    found = cover(1.0, np.arange(6.0).reshape(3, 2), num_samples=1000)
    assert found.samples == found.every_sample == found.offset
    assert ("any 6 samples", "below 0.408 each") in found.rows()


def test_extreme_scales_neither_overflow_nor_vanish():
    tiny, huge = 5e-324, 1.7e308
    found = cover(1e-100, [tiny, 0, -tiny])
    assert 0 < found.gain < math.inf
    assert found.dropout == 3
    assert cover(1e100, [tiny, 0]).gain == np.finfo(np.float64).max  # not more than float64 has
    found = cover(1.0, [huge, -huge])
    assert found.gain * huge == pytest.approx(1 / math.sqrt(2))
    assert (found.dropout, found.delay, found.replaced) == (0, 0, 0)
    assert math.isfinite(found.by)


def test_one_channel_needs_no_axis_and_integers_are_numbers():
    x = np.array([3, -1, 4, 1])
    assert cover(2, x) == cover(2.0, x[:, None].astype(np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"radius": -1}, "a radius must be a nonnegative number"),
        ({"radius": math.nan}, "a radius must be a nonnegative number"),
        ({"x": np.zeros((2, 3, 4))}, r"a series must be numbers \(T, C\) or \(T,\)"),
        ({"x": np.zeros((0, 1))}, "a series must be numbers"),
        ({"x": ["a", "b"]}, "a series must be numbers"),
        ({"x": [1.0, math.inf]}, "NaN or infinity"),
        ({"num_samples": 0}, "num_samples must be a whole number"),
        ({"by": 0}, "by must be a finite number above 0"),
        ({"by": math.nan}, "by must be a finite number above 0"),
        ({"frequency": math.inf}, "frequency must be a finite number, not inf"),
        ({"low": 5}, "low must not be above high"),
        ({"low": [0, 0]}, "low must be a finite number, or one for each of 1 channels"),
        ({"high": math.inf}, "high must be a finite number"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, message):
    arguments = {"radius": 1.0, "x": np.arange(4.0), **changes}
    with pytest.raises(UserError, match=message):
        cover(arguments.pop("radius"), arguments.pop("x"), **arguments)


def test_a_changed_series_has_the_shape_of_the_series():
    with pytest.raises(UserError, match="differ in shape"):
        is_covered(1.0, np.zeros(3), np.zeros(4))


# What is told


def test_records_are_rounded_down_to_six_digits():
    for radius, x, _ in cases():
        found = cover(radius, x)
        numbers = found.numbers()
        assert list(numbers) == ["radius", *SIZES, *COUNTS]
        for name, value in numbers.items():
            full = getattr(found, name)
            if math.isinf(full) or name in COUNTS:
                assert value == full
                continue
            assert Fraction(value) <= Fraction(full)
            assert value == pytest.approx(full, rel=1.001e-5)
            assert len(repr(value).split("e")[0].replace(".", "").strip("0")) <= 6


def test_no_number_that_is_told_is_too_much():
    seen = 0
    for radius, x, _ in cases():
        found = cover(radius, x)
        rows = dict(zip((*SIZES, *COUNTS), found.rows(), strict=True))
        for name, (_, text) in rows.items():
            value = getattr(found, name)
            for number in re.findall(r"(?:below|up to) ([\d.e+-]+)", text):
                told = Fraction(number) / (100 if "%" in text else 1)
                assert told <= Fraction(value)
                assert float(told) == pytest.approx(value, rel=0.01)
                seen += 1
        (by,) = re.findall(r"up to (\S+)", rows["moved"][0])
        assert Fraction(by) <= Fraction(found.by)
        for low, high in re.findall(r"from (\S+) to (\S+)", rows["replaced"][0]):
            assert Fraction(found.low[0]) <= Fraction(low) <= Fraction(high)
            assert Fraction(high) <= Fraction(found.high[0])
    assert seen > 600


def test_the_words_are_those_of_the_series():
    x = np.array([[0.0], [1.0], [1.0], [-1.0]])
    radius = 2.375  # whose square is 5.640625
    rows = dict(cover(radius, x, num_samples=2, by=1.5, low=-1, high=1, frequency=0.25).rows())
    assert rows == {
        "constant offset of all samples": "below 1.18",  # 1.1875
        "constant offset of one channel": "below 1.18",
        "gain error": "below 137 %",  # 2.375 / sqrt(3)
        "one sample": "below 2.37",
        "any 2 samples": "below 1.67 each",  # 2.375 / sqrt(2)
        "all samples (L-infinity)": "below 1.18 each",
        "sum of all changes (L1)": "below 2.37",
        "sinusoid, any phase, 0.25 cycles a step": "below 1.67",
        "linear drift from 0": "below 1.9 at the end",  # 2.375 / sqrt(14 / 9)
        "linear drift around 0": "below 3.18 from start to end",  # 2.375 / sqrt(20 / 36)
        "rounding to steps (quantisation)": "below 2.37 a step",
        "samples moved by up to 1.5": "up to 2 samples",  # 2 * 2.25
        "samples replaced, from -1 to 1": "up to 1 sample",  # by 2
        "late or early, edges held": "up to 1 step",  # squares of 5, then 6 and more
        "steps in a row set to 0": "any number",
    }


def test_limits_of_several_channels_are_not_told_as_one():
    rows = cover(1.0, np.array([[0.0, 10.0], [1.0, 30.0]])).rows()
    assert "samples replaced, within the limits" in dict(rows)
    same = cover(1.0, np.array([[0.0, 0.0], [1.0, 1.0]])).rows()
    assert "samples replaced, from 0 to 1" in dict(same)


def test_decimals_are_rounded_to_the_side_that_is_asked():
    rng = np.random.default_rng(1)
    for value in [*np.exp(rng.uniform(-60, 60, 200)), 0.3, 0.1, 1.0, 5e-324, 1.7e308]:
        for digits in (3, 6):
            low, high = exact.shown(value, digits), exact.shown(value, digits, exact.UP)
            assert Fraction(low) <= Fraction(value) <= Fraction(high)
            assert Fraction(high) - Fraction(low) <= Fraction(value) * Fraction(10) ** (1 - digits)
            assert Fraction(exact.shown(-value, digits)) == -Fraction(high)
    assert exact.shown(0.0) == "0"
    assert exact.shown(0.5) == "0.5"
    assert exact.shown(123456.7, 3) == "123000"
    assert exact.shown(1e-7) == "9.99999e-8"  # float64's 1e-7 is less
    assert exact.shown(math.inf) == "inf"
    assert exact.percent(0.3) == "29.9 %"  # as its 0.3 is
    assert exact.percent(0.0) == "0 %"


def test_a_root_is_the_largest_float_whose_square_is_not_above():
    rng = np.random.default_rng(2)
    squares = [Fraction(*map(int, rng.integers(1, 2**62, 2))) for _ in range(200)]
    squares += [Fraction(1, 4), Fraction(2), Fraction(9), Fraction(1, 3), Fraction(2) ** -400]
    for number in squares:
        root = exact.root_below(number)
        above = math.nextafter(root, math.inf)
        assert Fraction(root) ** 2 <= number < Fraction(above) ** 2
    assert exact.root_below(Fraction(10) ** 700) == np.finfo(np.float64).max
    assert exact.root_below(Fraction(1, 10**700)) == 0


def test_whole_numbers_are_the_values_in_their_unit():
    for _, x, _ in cases():
        (whole, also), unit = exact.whole_numbers(x.astype(np.float64), np.array(0.1))
        assert (whole * unit == exactly(x)).all()
        assert (also * unit == Fraction(0.1)).all()


def test_the_table_names_every_number():
    names = [field.name for field in dataclasses.fields(Coverage)]
    assert names[-16:] == [*SIZES, *COUNTS, "units"]
    text = inspect.getdoc(coverage) or ""
    for name in (*SIZES, *COUNTS):
        assert re.search(rf"^    {name}  ", text, re.MULTILINE), name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"radius": None}, "a radius must be"),
        ({"radius": "a"}, "a radius must be"),
        ({"radius": [1.0, 2.0]}, "a radius must be"),
        ({"x": [[1.0], [1.0, 2.0]]}, "a series must be numbers"),
        ({"x": np.ma.masked_array([1.0, 2.0], [0, 1])}, "under a mask"),
        ({"x": np.array([2**53 + 1, 0])}, "float64 cannot hold"),
        pytest.param(
            {"x": np.array([np.longdouble("1e400"), 0])},
            "float64 cannot hold",
            marks=pytest.mark.skipif(
                np.finfo(np.longdouble).max <= np.finfo(float).max,
                reason="NumPy's longest float is float64 here",
            ),
        ),
        ({"low": "a"}, "low must be a finite number"),
        ({"low": [[1.0], [1.0, 2.0]]}, "low must be a finite number"),
        ({"low": -1e300, "high": 1e300, "units": (1e-10,)}, "low is too large"),
    ],
)
def test_what_is_no_number_is_refused_in_a_line(arguments, says):
    radius, x, *_ = arguments.pop("radius", 1.0), arguments.pop("x", np.ones((4, 1)))
    with pytest.raises(UserError, match=says):
        coverage.cover(radius, x, **arguments)
