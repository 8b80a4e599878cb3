"""Data sets in the formats people have: .ts and .csv pairs, folders, no test split, aeon."""

import builtins
import json
import pathlib
import sys
import urllib.error

import numpy as np
import pytest
from data_files import load_with_warning, message_of, ts_text, write

from selfens_jax import data

TWO = ["1,2,3:4,5,6:a", "-1,2.5,1e1:0,.5,7.:b"]  # two channels
TWO_X = [[[1, 4], [2, 5], [3, 6]], [[-1, 0], [2.5, 0.5], [10, 7]]]
ONE = ["1,2,3:a", "3,2,1:b"]


def write_pair(folder: pathlib.Path, train: str, test: str | None = None, ending=".ts") -> str:
    """The path of Toy_TRAIN in the folder, beside Toy_TEST."""
    write(folder / f"Toy_TEST{ending}", train if test is None else test)
    return write(folder / f"Toy_TRAIN{ending}", train)


# --- .ts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"dimensions": 2, "equalLength": "true", "seriesLength": 3, "univariate": "false"},
        {"DIMENSION": 2, "missing": "False", "equallength": "false", "seriesLength": 0},
        {"targetLabel": "false", "problemName": "Toy\n@problemName Other\n%more\n\n"},
    ],
)
def test_ts(tmp_path, line_end, tags):
    text = ts_text(TWO, **tags).replace("\n", line_end)
    toy = data.load(write_pair(tmp_path, "\ufeff" + text, ts_text(TWO[1:])))
    assert (toy.name, toy.source, toy.classes) == ("Toy", "file", ("a", "b"))
    np.testing.assert_array_equal(toy.x_train, TWO_X)
    np.testing.assert_array_equal(toy.x_test, TWO_X[1:])
    np.testing.assert_array_equal(toy.y_train, [0, 1])
    np.testing.assert_array_equal(toy.y_test, [1])


def test_ts_and_tsv_are_the_same_data(tmp_path):
    tsv = write_pair(tmp_path / "tsv", "1\t5\t2\t3\n2\t3\t2\t1\n", ending=".tsv")
    ts = write_pair(tmp_path / "ts", ts_text(["5,2,3:1.0", "3,2,1:2"], "true 1 2.0"))
    assert data.load(ts).classes == ("1", "2")
    assert data.load(ts).sha256 == data.load(tsv).sha256


def test_a_ts_pair_may_begin_with_the_same_series(tmp_path):
    """It is no header, as it may be in other text files."""
    toy = data.load(write_pair(tmp_path, ts_text(ONE), ts_text(ONE[:1])))
    np.testing.assert_array_equal(toy.x_test[0], toy.x_train[0])


def test_many_channels_of_a_ts_file_are_meant(tmp_path):
    toy = data.load(write_pair(tmp_path, ts_text(["1,2:3,4:5,6:a", "1,2:3,4:5,6:b"])))
    assert (toy.length, toy.num_channels) == (2, 3)  # and no warning, which would be an error


def test_ts_of_unequal_lengths_with_gaps(tmp_path):
    lines = ["1,?,3:4,5,6:a", "1,2:NaN,4:b"]
    path = write_pair(tmp_path, ts_text(lines, equalLength="false", missing="true"))
    assert "missing=" in message_of(data.load, path)
    assert "missing=" in message_of(data.load, path, unequal="pad")
    assert "series 1 of the training split) has 2 time steps" in message_of(
        data.load, path, missing="linear"
    )
    toy = data.load(path, unequal="pad", missing="linear")
    np.testing.assert_array_equal(toy.x_train[0], [[1, 4], [2, 5], [3, 6]])
    np.testing.assert_array_equal(toy.x_train[1], [[1, 4], [2, 4], [0, 0]])


BAD_TS = [
    ("", ["the file is empty"]),
    (" \n\r\n", ["the file is empty"]),
    (ts_text([]), ["no series after @data"]),
    (ts_text(ONE).replace("@data\n", ""), ["line 5", "'1,2,3:a' comes before @data"]),
    ("@classLabel true a b\n", ["no line @data"]),
    (ts_text(ONE).replace("@data", "@data 1"), ["line 5", "follows @data"]),
    ("1\t2\t3\n", ["line 1", "'1' comes before @data", "another format"]),
    (ts_text(ONE, timeStamps="true"), ["@timestamps", "'true'", "times are not read"]),
    (ts_text(["(0,1),(1,2):a"]), ["line 6", "times in parentheses"]),
    (ts_text(ONE, timeStamps="maybe"), ["@timestamps", "'maybe'", "true or false"]),
    (ts_text(ONE, targetLabel="true"), ["@targetlabel", "regression"]),
    (ts_text(ONE, classLabel=None), ["no @classLabel"]),
    (ts_text(ONE, "true"), ["@classlabel", "'true'", "the labels there are"]),
    (ts_text(ONE, "false a b"), ["@classlabel", "'false a b'"]),
    (ts_text(ONE, "a b"), ["@classlabel", "'a b'"]),
    (ts_text(ONE, "false"), ["line 6, channel 1, value 1", "'a' is not a number"]),
    (ts_text(["1,2:3,4"], "false"), ["@classLabel says false", "need labels"]),
    (ts_text(["1,2:3,4"], classLabel=None, targetLabel="false"), ["need labels"]),
    (ts_text(ONE, "true a c"), ["line 7", "'b'", "none of the labels of @classLabel: a, c"]),
    (ts_text(["1,2,3"]), ["line 6", "'1,2,3'", "none of the labels"]),
    (ts_text(["a"]), ["line 6", "no values before the label"]),
    (ts_text(["1,2,4:?", "1,2,3:a"]), ["series 0 of the training", "'?'", "missing label"]),
    (ts_text(TWO, dimensions=3), ["line 7", "2 channels, but @dimensions says 3"]),
    (ts_text(TWO, dimensions="2.0"), ["@dimensions", "'2.0'", "whole number"]),
    (ts_text(TWO, univariate="true"), ["line 7", "2 channels, but @univariate says true"]),
    (ts_text(ONE, univariate="true", dimensions=2), ["@dimensions", "@univariate true"]),
    (ts_text([*ONE, TWO[0]]), ["line 8 (series 2 of the training split) has 2 channels, but"]),
    (ts_text(["1,2:1,2,3:a"]), ["line 6", "channel 1 has 3 values, channel 0 has 2"]),
    (ts_text(ONE, seriesLength=4), ["line 7", "3 time steps, but @seriesLength says 4"]),
    (ts_text([*ONE, "1,2:a"]), ["line 8", "2 time steps, but series 0 has 3", "unequal=pad"]),
    (ts_text([*ONE, "1,2:a"], equalLength="true"), ["line 9", "@equalLength says true"]),
    (ts_text(ONE, colour="red"), ["line 5", "'@colour' is not known"]),
    (ts_text(ONE, classlabel="true a c"), ["line 5", "@classlabel is given before"]),
    (ts_text(["1,?,3:a"]), ["line 6, value 2", "'?' is not a finite number", "missing=zero"]),
    (ts_text(["1,2:1,x:a"]), ["line 6, channel 1, value 2", "'x' is not a number"]),
    (ts_text(["1,2,:a"]), ["line 6, value 3", "ends with a separator"]),
    (ts_text(["1,,2:a"]), ["line 6, value 2", "the value is missing"]),
    (ts_text(["1,1_0:a"]), ["line 6, value 2", "without underscores"]),
    (ts_text(["1,1e999:a"]), ["line 6, value 2", "'1e999' is not a finite number"]),
    (ts_text(["1:a", "2:b"]), ["series of length 1"]),
    (b"\x1f\x8b\x08packed", ["compressed (gzip): unpack it first"]),
    (b"@data\n\xff\xfe", ["cannot be read as text"]),
]


@pytest.mark.parametrize(
    ("text", "parts"), [pytest.param(*case, id=case[-1][-1]) for case in BAD_TS]
)
def test_bad_ts(tmp_path, text, parts):
    write(tmp_path / "Toy_TEST.ts", ts_text(ONE))
    path = write(tmp_path / "Toy_TRAIN.ts", text)
    message = message_of(data.load, path)
    assert path in message
    for part in parts:
        assert part in message.replace(path, "")  # which names the case


def test_a_header_of_a_ts_file_holds_where_lengths_may_differ(tmp_path):
    text = ts_text([*ONE, "1,2:a"], equalLength="true")
    assert "@equalLength says true" in message_of(
        data.load, write_pair(tmp_path, text), unequal="pad"
    )


def test_infinity_is_not_missing(tmp_path):
    path = write_pair(tmp_path, ts_text(["1,inf,3:a", "1,2,3:b"]))
    assert "'inf' is not a finite number: replace it" in message_of(
        data.load, path, missing="linear", unequal="pad"
    )


# --- .csv and other lines ------------------------------------------------------------------------

CSV = "a,5,2,3\nb,3,2,1\n"


def test_csv(tmp_path):
    toy = data.load(write_pair(tmp_path, CSV, "b,0,0,1\n", ".csv"))
    assert (toy.name, toy.classes) == ("Toy", ("a", "b"))
    np.testing.assert_array_equal(toy.x_train[..., 0], [[5, 2, 3], [3, 2, 1]])
    np.testing.assert_array_equal(toy.x_test[..., 0], [[0, 0, 1]])


@pytest.mark.parametrize("header", ["label,t0,t1,t2", '"label","t 0","t 1","t 2"', "y, a, b, c"])
def test_names_of_columns_of_a_csv_are_skipped_with_a_warning(tmp_path, header):
    path = write_pair(tmp_path, f"\n{header}\n{CSV}", CSV, ".csv")
    toy, message = load_with_warning(data.load, path)
    assert f"{path}: line 2 names columns and was skipped" in message
    np.testing.assert_array_equal(toy.x_train[..., 0], [[5, 2, 3], [3, 2, 1]])


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ("label,0,1,2\n" + CSV, ".csv"),  # numbers could be a series
        ("label,t0,t1,\n" + CSV, ".csv"),
        ("label,t0,nan,t2\n" + CSV, ".csv"),
        ("label,t0,t1\n" + CSV, ".csv"),  # another number of fields
        ("label,t0,t1,t2\n", ".csv"),  # the only line
        ("label\tt0\tt1\tt2\n" + CSV.replace(",", "\t"), ".tsv"),
    ],
)
def test_other_headers_are_refused(tmp_path, text, ending):
    path = write_pair(tmp_path, text, CSV.replace(",", "\t") if ending == ".tsv" else CSV, ending)
    message = message_of(data.load, path)
    assert f"{path}: line 1" in message


@pytest.mark.parametrize(
    "text",
    [
        "a,5,2,3\nb,3,3,NaN\nb,4,?,6\n",
        "a,5,2,3\nb,3,3,\nb,4,,6\n",  # as pandas writes them
        "a,5,2,3\nb,3,3\nb,4,NA,6\n",
        "a,5,2,3,\nb,3,3,,\nb,4,,6,\n",  # a separator ends each line
    ],
)
def test_unequal_lines_with_gaps(tmp_path, text):
    path = write_pair(tmp_path, text, ending=".csv")
    message_of(data.load, path)
    toy = data.load(path, unequal="pad", missing="linear")
    np.testing.assert_array_equal(toy.x_train[..., 0], [[5, 2, 3], [3, 3, 0], [4, 5, 6]])


def test_a_separator_that_ends_lines_is_no_gap(tmp_path):
    path = write_pair(tmp_path, "a,1,2,3,\nb,3,2,1,\n", ending=".csv")
    assert "ends with a separator" in message_of(data.load, path, missing="zero")


# --- which files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".ts", ".csv", ".tsv", ".txt"])
def test_one_of_the_files_or_their_folder_or_data_dir(tmp_path, ending):
    text = ts_text(ONE) if ending == ".ts" else CSV
    train = write_pair(tmp_path / "Toy", text, ending=ending)
    words = [train, train.replace("_TRAIN", "_TEST"), str(tmp_path / "Toy"), f"{tmp_path}/Toy/"]
    for dataset in words:
        toy = data.load(dataset)
        assert (toy.name, toy.source, len(toy.x_test)) == ("Toy", "file", 2)
    archived = data.load("Toy", data_dir=str(tmp_path))
    assert (archived.name, archived.source) == ("Toy", "directory")
    assert archived.sha256 == toy.sha256


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Train", "Test")])
@pytest.mark.parametrize("ending", [".csv", ".CSV"])
def test_other_spellings_of_a_pair(tmp_path, monkeypatch, train, test, ending):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / f"my_{train}{ending}", CSV)
    write(tmp_path / f"my_{test}{ending}", CSV.splitlines()[1])
    for split in (train, test):
        toy = data.load(f"my_{split}{ending}")
        assert (toy.name, len(toy.x_train), len(toy.x_test)) == ("my", 2, 1)


def test_the_set_of_the_folders_name_is_meant(tmp_path):
    """The archive's folders hold a second set, of equal length."""
    write_pair(tmp_path / "Toy", ts_text(ONE))
    for split in ("TRAIN", "TEST"):
        write(tmp_path / "Toy" / f"Toy_eq_{split}.ts", ts_text(TWO))
    assert data.load(str(tmp_path / "Toy")).num_channels == 1


def test_whole_pairs_come_before_halves(tmp_path):
    write_pair(tmp_path / "Toy", ts_text(ONE))
    write(tmp_path / "Toy" / "Toy_TRAIN.tsv", CSV)
    assert data.load("Toy", data_dir=str(tmp_path)).length == 3


@pytest.mark.parametrize(
    ("files", "asked", "parts"),
    [
        (["A_TRAIN.ts"], "A_TRAIN.ts", ["A_TEST.ts: no such file", "both", "call the file 'A.ts'"]),
        (["A_TEST.ts"], "A_TEST.ts", ["A_TRAIN.ts: no such file", "both this and 'A_TEST.ts'"]),
        ([], "A_TRAIN.ts", ["A_TRAIN.ts: there is no such file"]),
        ([], "A.csv", ["A.csv: there is no such file"]),
        (["A_TRAIN.ts.gz"], "A_TRAIN.ts.gz", ["compressed files are not read: unpack it first"]),
        (["A.zip"], "A.zip", ["compressed files are not read"]),
        (["d/A_TRAIN.ts"], "d/", ["d: is a folder without a data set", "holds 'A_TRAIN.ts'"]),
        (["d/A_TRAIN.ts", "d/A_TEST.csv"], "./d", ["is a folder without a data set"]),
        (["d/A/A_TRAIN.ts"], "./d", ["holds 'A'", "a data_dir"]),
        (
            ["d/A_TRAIN.ts", "d/A_TEST.ts", "d/B_TRAIN.ts", "d/B_TEST.ts"],
            "./d",
            ["several data sets, 'A_TRAIN.ts', 'B_TRAIN.ts'", "give one of these"],
        ),
        (
            ["d/d_TRAIN.ts", "d/d_TEST.ts", "d/d_TRAIN.tsv", "d/d_TEST.tsv"],
            "./d",
            ["several data sets, 'd_TRAIN.ts', 'd_TRAIN.tsv'"],
        ),
    ],
)
def test_files_that_are_no_set(tmp_path, monkeypatch, files, asked, parts):
    monkeypatch.chdir(tmp_path)
    for file in files:
        write(tmp_path / file, ts_text(ONE))
    message = message_of(data.load, asked)
    for part in parts:
        assert part in message


def test_name_of_a_file_says_how_to_read_the_file(tmp_path, tslearn_is_away, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pair(tmp_path, ts_text(ONE))
    assert "write ./Toy_TRAIN.ts to read that file" in message_of(data.load, "Toy")


# --- without a test split ------------------------------------------------------------------------

ARRAYS = {"X_train": np.arange(12.0).reshape(2, 6), "y_train": ["a", "b"]}


def assert_no_test_split(toy: data.Dataset, shape: tuple[int, int]) -> None:
    assert toy.x_test.shape == (0, *shape)
    assert toy.x_test.dtype == np.float32
    assert toy.y_test.shape == (0,)
    assert toy.y_test.dtype == np.int32
    assert json.loads(json.dumps(data.describe(toy)))["num_test"] == 0


@pytest.mark.parametrize("scaling", data.SCALINGS)
@pytest.mark.parametrize("unequal", data.UNEQUAL)
def test_npz_without_a_test_split(tmp_path, scaling, unequal):
    path = str(tmp_path / "mine.npz")
    np.savez(path, **ARRAYS)
    toy = data.load(path, scaling=scaling, unequal=unequal)
    assert_no_test_split(toy, (6, 1))
    whole = data.from_arrays("mine", **ARRAYS, X_test=ARRAYS["X_train"], y_test=ARRAYS["y_train"])
    assert toy.sha256 != whole.sha256


def test_test_series_need_no_labels(tmp_path):
    path = str(tmp_path / "mine.npz")
    np.savez(path, **ARRAYS, X_test=np.ones((3, 6)))
    toy = data.load(path)
    assert toy.x_test.shape == (3, 6, 1)
    assert toy.y_test.tolist() == [-1] * 3
    assert "labels, but no series" in message_of(data.from_arrays, "toy", **ARRAYS, y_test=[1, 2])


@pytest.mark.parametrize("ending", [".ts", ".csv", ".tsv", ".txt"])
def test_one_file_alone_is_a_training_split(tmp_path, ending):
    toy = data.load(write(tmp_path / f"Toy{ending}", ts_text(ONE) if ending == ".ts" else CSV))
    assert toy.name == "Toy"
    assert_no_test_split(toy, (3, 1))


@pytest.mark.parametrize("extra", [[], ["0.5,1.0,2.0,3.0"]], ids=["all-differ", "most-differ"])
def test_new_series_without_labels_are_no_training_split(tmp_path, extra):
    rows = np.random.default_rng(0).normal(size=(5, 4))
    lines = [",".join(f"{value:.3f}" for value in row) for row in rows] + extra * 2
    message = message_of(data.load, write(tmp_path / "new.csv", "\n".join(lines)))
    assert f"column 1 has {len(lines) - len(extra)} different numbers for {len(lines)}" in message
    assert "certify.py --series takes series without labels" in message


@pytest.mark.parametrize("label", ["class {}.5", "{}", "{}e300"], ids=["text", "whole", "large"])
def test_classes_of_one_series_each_may_be_meant(tmp_path, label):
    lines = [f"{label.format(i)},{i},0,{i * i}" for i in (3, 1, 4, 2, 7)]
    with pytest.warns(UserWarning, match="class of its own"):
        toy = data.load(write(tmp_path / "new.csv", "\n".join(lines)))
    assert toy.num_classes == 5


def test_half_numbers_may_name_classes(tmp_path):
    lines = [f"{(i + 1) % 2 + 0.5},{i},0,{i * i}" for i in range(4)]
    assert data.load(write(tmp_path / "half.csv", "\n".join(lines))).num_classes == 2


# --- channels first ------------------------------------------------------------------------------


def test_channels_first(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4, 2, 6))
    first, last = tmp_path / "first.npz", tmp_path / "last.npz"
    y = ["a", "b", "a", "b"]
    np.savez(first, X_train=X, y_train=y, X_test=X[:3], y_test=y[:3])
    X = np.transpose(X, (0, 2, 1))
    np.savez(last, X_train=X, y_train=y, X_test=X[:3], y_test=y[:3])
    turned, plain = data.load(str(first), channels_first=True), data.load(str(last))
    assert turned.sha256 == plain.sha256
    assert data.describe(turned) == data.describe(plain) | {"name": "first", "channels_first": True}
    assert "channels_first" not in data.describe(plain)


def test_channels_first_of_unequal_series():
    X = [np.array([[1, 2, 3], [4, 5, 6]]), np.array([[1, 2], [4, 5]])]
    made = data.from_arrays("toy", X, ["a", "b"], channels_first=True, unequal="pad")
    np.testing.assert_array_equal(made.x_train[1], [[1, 4], [2, 5], [0, 0]])


@pytest.mark.parametrize("X", [np.ones((2, 6)), [[1, 2], [1, 2]], [[1, 2], [[1], [1, 2]]]])
def test_channels_first_needs_channels(X):
    message = message_of(data.from_arrays, "toy", X, ["a", "b"], channels_first=True)
    assert "not (series, channels, time) as channels_first says" in message


def test_channels_first_by_mistake_is_doubted():
    X = np.random.default_rng(0).normal(size=(2, 24, 3))
    made, message = load_with_warning(data.from_arrays, "toy", X, ["a", "b"], channels_first=True)
    assert "(2, 3, 24)" in message
    assert "leave channels_first out" in message
    assert made.num_channels == 24


def test_channels_first_is_for_arrays(tmp_path):
    path = write_pair(tmp_path / "Toy", ts_text(TWO))
    for dataset, data_dir in ((path, None), ("Toy", str(tmp_path)), ("CBF", None)):
        message = message_of(data.load, dataset, data_dir, channels_first=True)
        assert "channels_first is for .npz files" in message


# --- the multivariate archive --------------------------------------------------------------------


@pytest.fixture
def tslearn_is_away(monkeypatch):
    class Away:
        def __init__(self, root_dir=None):
            raise urllib.error.URLError("no network")

    module = type(sys)("tslearn.datasets")
    module.UCR_UEA_datasets = Away
    monkeypatch.setitem(sys.modules, "tslearn", type(sys)("tslearn"))
    monkeypatch.setitem(sys.modules, "tslearn.datasets", module)


def put_aeon(monkeypatch, load_classification) -> None:
    module = type(sys)("aeon.datasets")
    module.load_classification = load_classification
    monkeypatch.setitem(sys.modules, "aeon", type(sys)("aeon"))
    monkeypatch.setitem(sys.modules, "aeon.datasets", module)


@pytest.mark.parametrize("cache", [None, "cache"])
def test_aeon_loads_the_multivariate_archive(tmp_path, monkeypatch, tslearn_is_away, cache):
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = []

    def load_classification(name, split, extract_path, load_equal_length, load_no_missing):
        asked.append((name, extract_path, load_equal_length, load_no_missing))
        folder = pathlib.Path(extract_path) / name
        for half in ("TRAIN", "TEST"):
            write(folder / f"{name}_{half}.ts", ts_text(TWO, "true a b"))

    put_aeon(monkeypatch, load_classification)
    folder = tmp_path / (cache or ".cache/selfens_jax/uea")
    toy = data.load("BasicMotions", cache_dir=None if cache is None else str(folder))
    assert (toy.name, toy.source, toy.classes) == ("BasicMotions", "aeon", ("a", "b"))
    np.testing.assert_array_equal(toy.x_test, TWO_X)
    assert asked == [("BasicMotions", str(folder), False, False)]


def test_without_aeon_the_extra_is_named(monkeypatch, tslearn_is_away):
    real = builtins.__import__

    def no_aeon(name, *args, **kwargs):
        if name.startswith("aeon"):
            raise ModuleNotFoundError("No module named 'aeon'", name="aeon")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_aeon)
    message = message_of(data.load, "BasicMotions")
    for part in ("no network", "not installed", 'pip install "selfens_jax[uea]"', ".ts files"):
        assert part in message
    assert "aeon" not in message_of(data.load, "CricketX")


def test_aeon_that_cannot_load(monkeypatch, tslearn_is_away):
    def load_classification(*args, **kwargs):
        raise ValueError("Zenodo is\naway")

    put_aeon(monkeypatch, load_classification)
    message = message_of(data.load, "PEMS-SF")
    for part in ("tslearn: URLError", "aeon: ValueError: Zenodo is away", "PEMS-SF_TRAIN.ts"):
        assert part in message


def test_misspelt_name_of_the_multivariate_archive(tslearn_is_away):
    assert "did you mean BasicMotions" in message_of(data.load, "BasicMotion")
