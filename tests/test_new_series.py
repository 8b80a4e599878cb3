"""New series for a run that is trained: its length and channels, labels or none."""

import hashlib
import json
import struct

import numpy as np
import pytest
from data_files import load_with_warning, message_of, ts_text, write

from selfens_jax import data

RUN = {"length": 3, "num_channels": 1, "classes": ("1", "2", "walk"), "scaling": "none"}
X = [[0.5, 1.5, 2.5], [3.5, 4, 5]]


def load(path, **changes) -> data.Series:
    return data.load_series(path, **(RUN | changes))


def write_npz(folder, **arrays) -> str:
    path = str(folder / "new.npz")
    np.savez(path, **arrays)
    return path


LINES = "0.5\t1.5\t2.5\n3.5\t4\t5\n"
LABELLED = "2\t0.5\t1.5\t2.5\nwalk\t3.5\t4\t5\n"


@pytest.mark.parametrize("ending", [".tsv", ".txt", ".csv"])
@pytest.mark.parametrize("separator", ["\t", ",", " "])
def test_the_number_of_fields_tells_whether_lines_begin_with_labels(tmp_path, ending, separator):
    path = tmp_path / f"new{ending}"
    bare = load(write(path, LINES.replace("\t", separator)))
    assert (bare.name, bare.labels, bare.preparation) == ("new", None, "")
    labelled = load(write(path, LABELLED.replace("\t", separator).replace("\n", "\r\n")))
    np.testing.assert_array_equal(labelled.labels, [1, 2])
    assert labelled.labels.dtype == np.int32
    for series in (bare, labelled):
        np.testing.assert_array_equal(series.x, np.float32(X)[..., None])
        assert series.x.dtype == np.float32
    assert bare.row_sha256 == labelled.row_sha256
    assert bare.sha256 != labelled.sha256


@pytest.mark.parametrize(
    ("arrays", "labels"),
    [
        ({"X": X}, None),
        ({"X": X, "y": ["walk", "1"]}, [2, 0]),
        ({"X_test": X, "y_test": [1.0, 2.0]}, [0, 1]),
        ({"X_train": [[9]], "y_train": [9], "X_test": X}, None),
        ({"X": X, "y": ["walk", "1"], "y_test": ["run"]}, [2, 0]),
        ({"X": np.float32(X)[..., None]}, None),
    ],
)
def test_npz(tmp_path, arrays, labels):
    found = load(write_npz(tmp_path, **arrays))
    np.testing.assert_array_equal(found.x, np.float32(X)[..., None])
    assert found.labels is None if labels is None else found.labels.tolist() == labels


@pytest.mark.parametrize(
    ("lines", "classes", "labels"),
    [
        (["1,2,3:4,5,6"], "false", None),
        (["1,2,3:4,5,6:walk"], "true walk 1", [2]),
        (["1,2,3:4,5,6:1.0"], "true 1", [0]),
        (["1,2,3:4,5,6:?"], "true walk 1", None),
    ],
)
def test_ts(tmp_path, lines, classes, labels):
    found = load(write(tmp_path / "new.ts", ts_text(lines, classes)), num_channels=2)
    np.testing.assert_array_equal(found.x, [[[1, 4], [2, 5], [3, 6]]])
    assert found.labels is None if labels is None else found.labels.tolist() == labels


def test_labels_that_are_numbers_are_compared_as_numbers(tmp_path):
    """Text files write 1 and 1.0 alike; the run's classes may be the texts of an array."""
    path = write(tmp_path / "new.tsv", "2\t5\t6\t7\n1.0\t5\t6\t7\n")
    assert load(path, classes=("01", "2.0", "3")).labels.tolist() == [1, 0]
    message = message_of(load, path, classes=("01", "1.0", "2"))
    assert "series 1 of the file has label '1'" in message


def test_some_series_may_begin_with_a_class(tmp_path):
    found = load(write(tmp_path / "new.csv", "1,6,7\n0.5,6,7\n"))
    assert found.labels is None
    np.testing.assert_array_equal(found.x[..., 0], [[1, 6, 7], [0.5, 6, 7]])


def test_names_of_columns_are_skipped_with_a_warning(tmp_path):
    path = write(tmp_path / "new.csv", "t0,t1,t2\n0.5,1.5,2.5\n")
    found, message = load_with_warning(load, path)
    assert found.x.shape == (1, 3, 1)
    assert found.labels is None
    assert f"{path}: line 1 names columns and was skipped" in message


def test_name_scaling_and_channels_first(tmp_path):
    path = write_npz(tmp_path, X=np.arange(12.0).reshape(2, 2, 3))
    found = load(path, num_channels=2, channels_first=True, scaling="z_score", name="mine")
    assert found.name == "mine"
    np.testing.assert_allclose(found.x, np.float32([[[-1, -1], [0, 0], [1, 1]]] * 2), atol=1e-6)


# --- what is recorded ----------------------------------------------------------------------------


def test_digest_of_a_series_is_of_its_values_and_shape():
    """Written out by hand, so that another program can compute it too."""
    x = np.float32([[1, 2], [3, 4], [0.1, -0.5]])
    text = b"[3, 2]" + struct.pack("<6f", 1, 2, 3, 4, 0.1, -0.5)
    assert data.series_digest(x) == hashlib.sha256(text).hexdigest()
    assert data.series_digest(x.astype(">f8")) == data.series_digest(x)
    assert data.series_digest(x.reshape(2, 3)) != data.series_digest(x)
    with pytest.raises(ValueError, match=r"\(1, 3, 2\)"):
        data.series_digest(x[None])


def test_digests_follow_the_series(tmp_path):
    found = load(write_npz(tmp_path, X=X))
    turned = load(write_npz(tmp_path, X=X[::-1]))
    assert found.row_sha256 == tuple(data.series_digest(x) for x in found.x)
    assert turned.row_sha256 == found.row_sha256[::-1]
    content = json.dumps({"series": found.row_sha256, "labels": None})
    assert found.sha256 == hashlib.sha256(content.encode()).hexdigest() != turned.sha256
    labelled = [load(write_npz(tmp_path, X=X, y=y)).sha256 for y in ([1, 2], [2, 1])]
    assert len({found.sha256, turned.sha256, *labelled}) == 4


# --- lengths and gaps ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unequal", "x", "said"),
    [
        ("pad", [[1, 2, 0], [1, 2, 3], [1, 2, 3]], "padded with zeros or cut to 3 time steps"),
        ("cut", [[1, 2, 0], [1, 2, 3], [1, 2, 3]], "padded with zeros or cut to 3 time steps"),
        ("resample", [[1, 1.5, 2], [1, 2, 3], [1, 2.5, 4]], "resampled linearly to 3 time steps"),
    ],
)
def test_the_run_decides_the_length(tmp_path, unequal, x, said):
    table = [[1, 2, np.nan, np.nan], [1, 2, 3, np.nan], [1, 2, 3, 4]]
    path = write_npz(tmp_path, X=table)
    found = load(path, unequal=unequal)
    np.testing.assert_array_equal(found.x[..., 0], x)
    assert found.preparation.startswith(f"unequal lengths {said}; radii are")
    lines = ts_text(["1,2", "1,2,3", "1,2,3,4"], "false")
    other = load(write(tmp_path / "new.ts", lines), unequal=unequal)
    assert other.sha256 == found.sha256
    lines = "1,2\n1,2,3\n1,2,3,4\n"
    other = load(write(tmp_path / "new.csv", lines), unequal=unequal, labelled=False)
    assert other.sha256 == found.sha256


def test_series_of_one_other_length_are_prepared_too(tmp_path):
    found = load(write_npz(tmp_path, X=[[1, 2, 3, 4, 5]]), unequal="cut")
    np.testing.assert_array_equal(found.x[..., 0], [[1, 2, 3]])


def test_gaps(tmp_path):
    path = write(tmp_path / "new.csv", "0.5,NaN,2.5\n,4,5\n")
    assert "line 1, column 2" in message_of(load, path)
    found = load(path, missing="last")
    np.testing.assert_array_equal(found.x[..., 0], [[0.5, 0.5, 2.5], [4, 4, 5]])
    assert found.preparation.startswith("missing values filled with the last one observed")


@pytest.mark.parametrize(
    ("text", "labelled", "labels", "x"),
    [
        ("1,2,5\n2,2,6\n", False, None, [[1, 2, 5], [2, 2, 6]]),
        ("1,2,5,6\n2,2,6\n", True, [0, 1], [[2, 5, 6], [2, 6, 0]]),
        ("1,2,5,6\n2,2,6\n", False, None, [[1, 2, 5], [2, 2, 6]]),
    ],
)
def test_labelled_says_what_the_number_of_fields_does_not(tmp_path, text, labelled, labels, x):
    path = write(tmp_path / "new.csv", text)
    message_of(load, path, unequal="pad")
    found = load(path, unequal="pad", labelled=labelled)
    np.testing.assert_array_equal(found.x[..., 0], x)
    assert found.labels is None if labels is None else found.labels.tolist() == labels


@pytest.mark.parametrize("missing", data.MISSING)
def test_only_unequal_changes_lengths(tmp_path, missing):
    message = message_of(load, write_npz(tmp_path, X=[[1, 2, 3, 4]]), missing=missing)
    assert "4 time steps and 1 channel; the run needs 3 time steps and 1 channel" in message
    other = message_of(load, write_npz(tmp_path, X=np.ones((1, 4, 2))), missing=missing)
    assert "unequal=" in message
    assert "unequal=" not in other  # would not make it fit


# --- bad input -----------------------------------------------------------------------------------


BAD_LINES = [
    ("", {}, ["the file is empty"]),
    ("\n\n", {"unequal": "pad"}, ["the file is empty"]),
    ("1,2\n3,4\n", {}, ["line 1 has 2 fields", "series of 3 values", "labelled=true or false"]),
    ("1,2,3,4,5\n", {"unequal": "cut"}, ["line 1 has 5 fields", "labelled=true or false"]),
    (
        "5,6\n5,6,7\n",
        {"unequal": "pad"},
        ["2 to 3 fields", "does not tell", "labelled=true or false"],
    ),
    ("5,6,7,\n5,6,8,\n", {"unequal": "pad"}, ["3 to 4 fields", "does not tell"]),
    ("5,6,7\n5,6\n", {}, ["line 2 (series 1) has 2 values, but line 1 has 3"]),
    ("1,6,7\n2,6,7\n", {}, ["begins with one of the run's classes, such as '1'", "labelled="]),
    ("3,5,6,7\n", {}, ["series 0 of the file", "label '3'", "run's classes", "'1', '2'"]),
    ("Walk,5,6,7\n", {}, ["label 'Walk'", "is it 'walk'? then write it so"]),
    ("?,5,6,7\n", {}, ["line 1, column 1", "missing label"]),
    ("5,6,7,\n", {}, ["line 1, column 4", "ends with a separator"]),
    ("5,x,7\n", {}, ["line 1, column 2", "'x' is not a number: a header?"]),
    ("0,1,2\n5,3,7\n", {}, ["line 1 looks like a header"]),
    ("5,6,7\n8,9,1e39\n", {}, ["series 1 of the file, time 2", "float32"]),
    ("5,6,7\n", {"num_channels": 2}, ["series of one channel; the run needs 2"]),
    ("5,6,7\n", {"channels_first": True}, ["channels_first is for .npz files"]),
    ("5,6,7\n", {"scaling": "minmax"}, ["'minmax'"]),
    ("5,6,7\n", {"unequal": "stretch"}, ["unequal 'stretch' is unknown"]),
    (b"\x1f\x8b\x08", {}, ["compressed (gzip)"]),
    (b"\xff\xfe1\t2", {}, ["cannot be read as text"]),
]


@pytest.mark.parametrize(
    ("text", "options", "parts"),
    [pytest.param(*case, id=case[-1][-1]) for case in BAD_LINES],
)
def test_bad_lines(tmp_path, text, options, parts):
    path = write(tmp_path / "new.csv", text)
    message = message_of(load, path, **options)
    assert path in message or "unknown" in message
    for part in parts:
        assert part in message.replace(path, "")  # which names the case


BAD_NPZ = [
    ({"y": [1]}, {}, ["X missing"]),
    ({"X_train": X, "y_train": [1, 2]}, {}, ["X missing"]),
    ({"X": X, "X_test": X}, {}, ["both X and X_test"]),
    ({"X": X, "y_test": [1, 2]}, {}, ["holds X and y_test: call the labels y"]),
    ({"X_test": X, "y": [1, 2]}, {}, ["holds X_test and y: call the labels y_test"]),
    ({"X": np.zeros((0, 3))}, {}, ["the file is empty"]),
    ({"X": [1.0, 2, 3]}, {}, ["shape (3,)"]),
    ({"X": X, "y": [1]}, {}, ["2 series", "labels have shape (1,)"]),
    ({"X": X, "y": [1, 3]}, {}, ["series 1 of the file", "'3'", "none of the run's classes"]),
    ({"X": X, "y": ["1", "?"]}, {}, ["series 1 of the file", "'?'", "missing label"]),
    ({"X": [[1, 2], [3, 4]]}, {}, ["2 time steps and 1 channel;", "3 time steps", "unequal="]),
    ({"X": np.ones((2, 3, 2))}, {}, ["3 time steps and 2 channels", "needs 3 time steps and 1"]),
    (
        {"X": np.ones((2, 2, 3))},
        {"num_channels": 2},
        ["2 time steps and 3 channels", "channels_first"],
    ),
    ({"X": X}, {"channels_first": True}, ["as channels_first says"]),
    ({"X": [[1, np.nan, 2]]}, {}, ["series 0 of the file, time 1", "missing=zero"]),
    ({"X": X}, {"labelled": False}, ["labelled is for .csv, .tsv and .txt files"]),
    ({"X": np.array([None, X], object)}, {}, ["pickled"]),
]


@pytest.mark.parametrize(
    ("arrays", "options", "parts"),
    [pytest.param(*case, id=case[-1][-1]) for case in BAD_NPZ],
)
def test_bad_npz(tmp_path, arrays, options, parts):
    path = write_npz(tmp_path, **arrays)
    message = message_of(load, path, **options)
    assert path in message
    for part in parts:
        assert part in message.replace(path, "")  # which names the case


@pytest.mark.parametrize(
    ("lines", "classes", "parts"),
    [
        (["1,2,3:?", "1,2,3:1"], "true 1", ["series 0 has no label ('?'), but others have"]),
        (["1,2,3:run"], "true run", ["label 'run'", "none of the run's classes"]),
        (["1,2:1"], "true 1", ["2 time steps and 1 channel", "the run needs 3 time steps"]),
        (["1,2,3:1,2,3:1"], "true 1", ["3 time steps and 2 channels", "and 1 channel"]),
        (["1,2,3", "1,2"], "false", ["line 7 (series 1) has 2 time steps"]),
    ],
)
def test_bad_ts(tmp_path, lines, classes, parts):
    path = write(tmp_path / "new.ts", ts_text(lines, classes))
    message = message_of(load, path)
    assert path in message
    for part in parts:
        assert part in message.replace(path, "")  # which names the case


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("new.ts", ["there is no such file"]),
        ("new.csv", ["there is no such file"]),
        ("new.npz", ["there is no such file"]),
        ("folder", ["is a folder", ".npz file with X"]),
        ("new.csv.gz", ["compressed files are not read"]),
        ("there.json", ["not a .npz file", ".npz file with X"]),
    ],
)
def test_other_files(tmp_path, file, parts):
    (tmp_path / "folder").mkdir()
    write(tmp_path / "there.json", "{}")
    message = message_of(load, tmp_path / file)
    for part in [str(tmp_path / file), *parts]:
        assert part in message
