"""Unequal lengths and gaps: refused, or made equal and filled as asked; the test split decides
nothing, and what was done is said."""

import numpy as np
import pytest
from data_files import message_of

from selfens_jax import data, preparation

NAN = np.nan


def column(*values: float) -> np.ndarray:
    """A series of one channel, (T, 1)."""
    return np.array(values, np.float64)[:, None]


RAGGED = [column(1, 2), column(3, 4, 5, 6), column(7, 8, 9)]
Y = ["a", "b", "a"]


def load(X_train=None, X_test=None, **options) -> data.Dataset:
    X_train = RAGGED if X_train is None else X_train
    X_test = RAGGED[:2] if X_test is None else X_test
    y_train, y_test = (["a", "b", "a", "b", "a"][: len(X)] for X in (X_train, X_test))
    return data.from_arrays("toy", X_train, y_train, X_test, y_test, **options)


# --- gaps ----------------------------------------------------------------------------------------

GAPS = column(NAN, NAN, 1, NAN, NAN, 4, 2, NAN)


@pytest.mark.parametrize(
    ("missing", "filled"),
    [
        ("zero", [0, 0, 1, 0, 0, 4, 2, 0]),
        ("last", [1, 1, 1, 1, 1, 4, 2, 2]),  # the first observed goes before, too
        ("linear", [1, 1, 1, 2, 3, 4, 2, 2]),
        ("refuse", GAPS[:, 0]),
    ],
)
def test_gaps_are_filled_in_each_channel_by_itself(missing, filled):
    whole = column(5, 4, 3, 2, 1, 0, 0, 0)
    both = preparation.filled(np.hstack([GAPS, whole]), missing)
    np.testing.assert_array_equal(both, np.stack([filled, whole[:, 0]], axis=1))


@pytest.mark.parametrize("missing", ["zero", "last", "linear"])
def test_missing_values_of_a_table(missing):
    X = np.array([[1, NAN, 3], [4, 5, NAN]])
    made = load(X, np.array([[NAN, 2, 3]]), missing=missing)
    expected = {"zero": [0, 0, 0], "last": [1, 5, 2], "linear": [2, 5, 2]}[missing]
    np.testing.assert_array_equal(made.x_train[..., 0], [[1, expected[0], 3], [4, 5, expected[1]]])
    np.testing.assert_array_equal(made.x_test[..., 0], [[expected[2], 2, 3]])
    assert data.describe(made)["missing"] == missing
    assert "unequal" not in data.describe(made)


# --- lengths -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unequal", "x_train"),
    [
        ("pad", [[1, 2, 0, 0], [3, 4, 5, 6], [7, 8, 9, 0]]),
        ("cut", [[1, 2], [3, 4], [7, 8]]),
        ("resample", [[1, 4 / 3, 5 / 3, 2], [3, 4, 5, 6], [7, 7 + 2 / 3, 8 + 1 / 3, 9]]),
    ],
)
def test_training_series_decide_the_length(unequal, x_train):
    length = len(x_train[0])
    for X_test in (RAGGED[:2], [column(*range(9))], [column(1, 2)]):
        made = load(X_test=X_test, unequal=unequal)
        np.testing.assert_allclose(made.x_train[..., 0], np.float32(x_train), rtol=1e-6)
        assert made.x_test.shape == (len(X_test), length, 1)
        assert data.describe(made)["unequal"] == unequal


@pytest.mark.parametrize(
    ("unequal", "longer", "shorter"),
    [
        ("pad", [9, 8, 7, 6], [9, 8, 0, 0]),
        ("cut", [9, 8, 7], [9, 8, 0]),
        ("resample", [9, 8, 7, 6], [9, 9 - 1 / 3, 9 - 2 / 3, 8]),
    ],
)
def test_test_series_of_other_lengths(unequal, longer, shorter):
    """Longer ones end early under "cut" and "pad", shorter ones get zeros under both."""
    X_train = [column(1, 2, 3), column(3, 4, 5, 6), column(7, 8, 9)]
    long = column(9, 8, 7, 6, 5, 4)
    if unequal == "resample":
        long = column(9, 8.5, 8, 7.5, 7, 6.5, 6)  # the same line, read more often
    made = load(X_train, [long, column(9, 8)], unequal=unequal)
    np.testing.assert_allclose(made.x_test[0, :, 0], longer, rtol=1e-6)
    np.testing.assert_allclose(made.x_test[1, :, 0], shorter, rtol=1e-6)


def test_missing_values_change_no_length():
    X = np.array([[1, NAN, 3], [4, 5, 6]])
    for X_test in (np.ones((2, 2)), np.ones((2, 4))):
        message = message_of(load, X, X_test, missing="zero")
        assert "both need the same" in message


@pytest.mark.parametrize("unequal", ["pad", "cut", "resample"])
def test_a_table_with_missing_ends_holds_shorter_series(unequal):
    """As the UCR archive writes them; in several channels only where all of them end."""
    table = np.full((3, 6), NAN)
    for row, series in zip(table, RAGGED, strict=True):
        row[: len(series)] = series[:, 0]
    made = load(table, table[:2], unequal=unequal)
    assert made.sha256 == load(unequal=unequal).sha256

    two = np.array([[[1, 1], [2, 2], [3, NAN], [NAN, NAN]]])
    assert preparation.trimmed(two[0]).tolist()[:2] == [[1, 1], [2, 2]]
    assert len(preparation.trimmed(two[0])) == 3


def test_gaps_are_filled_before_lengths_change():
    made = load([column(0, NAN, 2), column(*range(5))], unequal="resample", missing="linear")
    np.testing.assert_array_equal(made.x_train[0, :, 0], [0, 0.5, 1, 1.5, 2])
    X = [column(1, NAN, NAN), column(1, NAN, 3)]  # these ends are gaps where lengths may not differ
    ends = load(X, X, missing="last")
    np.testing.assert_array_equal(ends.x_train[..., 0], [[1, 1, 1], [1, 1, 3]])


def test_padding_stays_zero_when_series_are_scaled():
    rng = np.random.default_rng(0)
    X = [rng.normal(1000, 5, (length, 2)) for length in (5, 9, 7)]
    made = load(X, X[:2], unequal="pad", scaling="z_score")
    for x, series in zip(made.x_train, X, strict=True):
        own = x[: len(series)]
        np.testing.assert_allclose(own.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(own.std(axis=0, ddof=1), 1, rtol=1e-6)
        np.testing.assert_array_equal(x[len(series) :], 0)


def test_resampling_keeps_both_ends_and_straight_lines():
    line = np.stack([np.linspace(0, 1, 7), np.linspace(5, -5, 7)], axis=1)
    for length in (2, 3, 7, 50):
        found = preparation.resampled(line, length)
        expected = np.stack([np.linspace(0, 1, length), np.linspace(5, -5, length)], axis=1)
        np.testing.assert_allclose(found, expected, atol=1e-12)
    assert preparation.resampled(line, 7) is line


# --- what is said and recorded -------------------------------------------------------------------

SAME = "radii are in the units of the series so prepared"
LONG = [column(*range(6))]


@pytest.mark.parametrize(
    ("X_test", "options", "said"),
    [
        (None, {"unequal": "pad"}, f"unequal lengths padded with zeros to 4 time steps; {SAME}"),
        (
            LONG,
            {"unequal": "pad"},
            f"unequal lengths padded with zeros or cut to 4 time steps; {SAME}",
        ),
        (
            None,
            {"unequal": "pad", "scaling": "z_score"},
            f"unequal lengths padded with zeros (after scaling) to 4 time steps; {SAME}",
        ),
        (None, {"unequal": "cut"}, f"unequal lengths cut to 2 time steps; {SAME}"),
        (
            None,
            {"unequal": "resample"},
            f"unequal lengths resampled linearly to 4 time steps; {SAME}",
        ),
        (
            [column(1, NAN, 2, 5), column(1, 2, 3, 4)],
            {"unequal": "pad", "missing": "last"},
            "unequal lengths padded with zeros to 4 time steps; missing values filled with the "
            f"last one observed; {SAME}",
        ),
    ],
)
def test_what_was_done_is_said(X_test, options, said):
    assert load(X_test=X_test, **options).preparation == said


@pytest.mark.parametrize("missing", ["zero", "last", "linear"])
@pytest.mark.parametrize("unequal", ["refuse", "pad", "cut", "resample"])
def test_complete_series_are_left_alone_and_nothing_is_said(unequal, missing):
    X = np.random.default_rng(0).normal(size=(4, 6, 2))
    made = load(X, X[:2], unequal=unequal, missing=missing)
    plain = load(X, X[:2])
    assert made.sha256 == plain.sha256
    assert made.preparation == plain.preparation == ""
    recorded = {"missing": missing} | ({} if unequal == "refuse" else {"unequal": unequal})
    assert data.describe(made) == data.describe(plain) | recorded


# --- bad input -----------------------------------------------------------------------------------

HOLE = [[[1, 2], [NAN, 3], [4, 5]], [[1, 2], [3, 4], [5, 6]]]
BAD = [
    (RAGGED, {}, ["series 1", "length 4, but series 0 has 2", "unequal=pad, cut or resample"]),
    (RAGGED, {"missing": "zero"}, ["series 1", "length 4", "unequal=pad, cut or resample"]),
    (HOLE, {}, ["series 0", "time 1, channel 0", "nan", "missing=zero, last or linear"]),
    (HOLE, {"unequal": "pad"}, ["series 0", "time 1, channel 0", "missing=zero, last or linear"]),
    ([[1, 2], [1, NAN], [1, 2]], {"unequal": "cut"}, ["series 1", "one time step only"]),
    ([[1, 2], [NAN, NAN]], {"unequal": "pad"}, ["series 1", "has no value at all"]),
    ([[1, 2], [NAN, NAN]], {"missing": "zero"}, ["series 1", "has no value at all"]),
    ([[[1, NAN]] * 3] * 2, {"missing": "linear"}, ["series 0", "channel 1", "missing=zero"]),
    ([[1, 2], [1, np.inf]], {"missing": "zero"}, ["series 1", "time 1", "inf", "replace it"]),
    ([[1, 2], [1, np.inf]], {}, ["series 1", "time 1", "inf", "replace it"]),
    ([column(1, 2), np.ones((3, 2))], {"unequal": "pad"}, ["series 1", "2 channels", "has 1"]),
    ([column(1, 2), np.ones((3, 2, 1))], {"unequal": "pad"}, ["series 1", "shape (3, 2, 1)"]),
    ([[1, 2], [[1], [2, 3]]], {"unequal": "pad"}, ["series 1", "channels of different lengths"]),
    ([["1", "2"], ["1"]], {"unequal": "pad"}, ["type <U1", "real numbers"]),
    ([], {"unequal": "pad"}, ["training split is empty"]),
    (np.ones(3), {"unequal": "pad"}, ["shape (3,)"]),
    (np.float64(1), {"missing": "zero"}, ["shape ()"]),
    (np.ma.masked_equal(np.eye(3), 0), {"missing": "zero"}, ["under a mask"]),
    ([[1, 2], [1, 1e39], [1, 3]], {"unequal": "pad"}, ["series 1", "time 1", "1e+39", "float32"]),
]


@pytest.mark.parametrize(
    ("X_train", "options", "parts"), [pytest.param(*case, id=case[-1][-1]) for case in BAD]
)
def test_bad_series(X_train, options, parts):
    y = ["a", "b", "a"]
    message = message_of(data.from_arrays, "toy", X_train, y, X_train, y, **options)
    for part in ["toy: ", *parts]:
        assert part in message


@pytest.mark.parametrize("what", ["unequal", "missing"])
def test_unknown_option(what):
    message = message_of(load, **{what: "truncate"})
    assert f"{what} 'truncate' is unknown" in message
    assert "refuse" in message
