"""Loading: where data come from, what is refused and how, and what is recorded."""

import json
import pathlib
import socket
import subprocess
import sys
import urllib.error
import warnings

import numpy as np
import pytest
from data_files import load_with_warning, message_of

from selfens_jax import data

ARCHIVE = pathlib.Path(__file__).parents[2] / "shared" / "ucr"


def good_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "X_train": rng.normal(size=(4, 6)),
        "y_train": np.array([1, 2, 1, 2]),
        "X_test": rng.normal(size=(3, 6)),
        "y_test": np.array([2, 1, 1]),
    }


def write_npz(folder: pathlib.Path, **changes) -> str:
    path = folder / "mine.npz"
    np.savez(path, **(good_arrays() | changes))
    return str(path)


def write_ucr(folder: pathlib.Path, train: str, test: str, name="Toy", extension="tsv") -> str:
    (folder / name).mkdir()
    (folder / name / f"{name}_TRAIN.{extension}").write_text(train)
    (folder / name / f"{name}_TEST.{extension}").write_text(test)
    return str(folder)


TRAIN = "1\t0.5\t1.5\t2.5\n2\t3\t4\t5\n"
TEST = "2\t0\t0.1\t0.2\n"


class FakeArchive:
    """Stands for tslearn's loader: `answer` is what load_dataset returns, or raises."""

    answer = urllib.error.URLError("no network")
    names = ("CBF", "ECG200")
    asked = ()

    def __init__(self, root_dir=None):
        FakeArchive.asked = (root_dir,)

    def list_datasets(self):
        if isinstance(self.answer, Exception):
            raise AttributeError("no list was downloaded")
        return list(self.names)

    def load_dataset(self, name):
        warnings.warn("tslearn talks\nmuch", RuntimeWarning, stacklevel=2)
        FakeArchive.asked += (name,)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def tslearn(monkeypatch):
    """tslearn without a network; tests set FakeArchive.answer through it."""
    module = type(sys)("tslearn.datasets")
    module.UCR_UEA_datasets = FakeArchive
    monkeypatch.setitem(sys.modules, "tslearn", type(sys)("tslearn"))
    monkeypatch.setitem(sys.modules, "tslearn.datasets", module)

    def answer(value):
        monkeypatch.setattr(FakeArchive, "answer", value)

    answer(urllib.error.URLError("no network"))
    return answer


# --- sources -------------------------------------------------------------------------------------


def test_directory(tmp_path):
    folder = write_ucr(tmp_path, TRAIN, TEST)
    toy = data.load("Toy", data_dir=folder)
    assert (toy.name, toy.source, toy.scaling) == ("Toy", "directory", "none")
    assert toy.classes == ("1", "2")
    np.testing.assert_array_equal(toy.x_train[..., 0], [[0.5, 1.5, 2.5], [3, 4, 5]])
    np.testing.assert_array_equal(toy.x_test, np.float32([[[0], [0.1], [0.2]]]))
    np.testing.assert_array_equal(toy.y_train, [0, 1])
    np.testing.assert_array_equal(toy.y_test, [1])
    assert toy.x_train.dtype == toy.x_test.dtype == np.float32
    assert toy.y_train.dtype == toy.y_test.dtype == np.int32
    assert (toy.num_classes, toy.length, toy.num_channels) == (2, 3, 1)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        pytest.param(TRAIN.replace("\t", ","), TEST.replace("\t", ","), id="commas"),
        pytest.param(TRAIN.replace("\t", "  "), TEST.replace("\t", " "), id="blanks"),
        pytest.param(
            "  1.0000000e+00  0.5 1.5 2.5\r\n  2.0000000e+00 3 4 5\r\n\r\n",
            "  2.0000000e+00  0 0.1 0.2\r\n",
            id="old-archive",
        ),
    ],
)
def test_directory_txt_is_the_same_data(tmp_path, train, test):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    tsv = data.load("Toy", data_dir=write_ucr(tmp_path / "a", TRAIN, TEST))
    txt = data.load("Toy", data_dir=write_ucr(tmp_path / "b", train, test, extension="txt"))
    assert txt.classes == ("1", "2")
    assert txt.sha256 == tsv.sha256


@pytest.mark.parametrize("labels", [np.array([1, 2]), np.array(["1.0", "2.0"])])
def test_tslearn_and_directory_are_the_same_data(tmp_path, tslearn, labels):
    x_train = np.array([[0.5, 1.5, 2.5], [3, 4, 5]])[..., None]
    tslearn((x_train, labels, np.array([[[0.0], [0.1], [0.2]]]), labels[1:]))
    toy = data.load("Toy", cache_dir=str(tmp_path / "cache"))
    assert FakeArchive.asked == (str(tmp_path / "cache"), "Toy")
    assert toy.source == "tslearn"
    assert toy.classes == ("1", "2")
    assert toy.sha256 == data.load("Toy", data_dir=write_ucr(tmp_path, TRAIN, TEST)).sha256


def test_many_channels_of_the_archive_are_meant(tslearn):
    X = np.random.default_rng(0).normal(size=(4, 3, 8))
    tslearn((X, np.array([1, 2, 1, 2]), X[:2], np.array([1, 2])))
    assert data.load("Toy").num_channels == 8


def test_directory_comes_before_tslearn(tmp_path, tslearn):
    FakeArchive.asked = ()
    write_ucr(tmp_path, TRAIN, TEST, name="CBF")
    assert data.load("CBF", data_dir=str(tmp_path)).source == "directory"
    assert FakeArchive.asked == ()


@pytest.mark.parametrize("name", ["CBF", "SyntheticControl"])
@pytest.mark.parametrize("answer", [urllib.error.URLError("no network"), (None,) * 4])
def test_generated_when_nothing_can_be_reached(tslearn, name, answer):
    tslearn(answer)
    generated, message = load_with_warning(data.load, name)
    assert "generator" in message
    assert name in message
    assert generated.source == "generated"
    sizes = {"CBF": (30, 900, 128), "SyntheticControl": (300, 300, 60)}
    assert (len(generated.x_train), len(generated.x_test), generated.length) == sizes[name]
    assert np.ptp(np.bincount(generated.y_train)) == np.ptp(np.bincount(generated.y_test)) == 0
    both = np.concatenate([generated.x_train, generated.x_test])
    assert len(np.unique(both, axis=0)) == len(both)  # train and test are different series
    with pytest.warns(UserWarning, match="generator"):
        assert data.load(name).sha256 == generated.sha256


def test_broken_download_of_another_set(tslearn):
    tslearn((None,) * 4)
    message = message_of(data.load, "CricketX")
    assert "tslearn talks much" in message
    assert "data_dir" in message


def test_unreachable_set_says_how_to_get_it(tslearn):
    message = message_of(data.load, "CricketX")
    for part in ("CricketX_TRAIN.tsv", "no network", "data_dir", ".npz"):
        assert part in message


@pytest.mark.parametrize(
    ("name", "meant"), [("cbf", "CBF"), ("Cricket_X", "CricketX"), ("ecg20", "ECG200")]
)
def test_misspelt_name(tslearn, name, meant):
    tslearn((None,) * 4)
    assert f"did you mean {meant}" in message_of(data.load, name)


@pytest.mark.parametrize(
    ("dataset", "path", "name"),
    [
        ("CBF", False, "CBF"),
        ("plain.v2", False, "plain.v2"),
        ("mine.npz", True, "mine"),
        ("MINE.NPZ", True, "MINE"),
        ("sub/plain", True, "plain"),
        ("/a/plain.v2", True, "plain.v2"),
        ("a/two.npz.npz", True, "two.npz"),
        ("a/x_TRAIN.npz", True, "x_TRAIN"),
        ("x_TRAIN.ts", True, "x"),
        ("a/x_TEST.csv", True, "x"),
        ("x_y_train.TSV", True, "x_y"),
        ("x.y.txt", True, "x.y"),
        ("a/_TRAIN.ts", True, "_TRAIN"),
        ("a/x_TRAIN_TEST.ts", True, "x_TRAIN"),
        ("a/folder.ts/", True, "folder"),
        ("x_TRAIN.ts.gz", True, "x_TRAIN.ts.gz"),
        ("~/mine.npz", True, "mine"),
        ("~mine", True, "~mine"),
        ("a/..mine", True, "..mine"),
        ("心电 [1] $HOME", False, "心电 [1] $HOME"),
    ],
)
def test_one_way_from_words_to_a_name(dataset, path, name):
    assert data.is_path(dataset) == path
    assert data.name_of(dataset) == name


NO_NAMES = ["", ".", "..", ".npz", "a/..npz", "a/..", "/", "a\nb", "a/b\0.npz", "a\x7f", "a\ud800"]


@pytest.mark.parametrize("dataset", NO_NAMES)
def test_name_that_no_folder_can_have_never_reaches_tslearn(tslearn, dataset):
    FakeArchive.asked = ()
    assert repr(dataset) in message_of(data.name_of, dataset)
    assert repr(dataset) in message_of(data.load, dataset)
    assert repr(dataset) in message_of(data.load, dataset, data_dir="/")
    assert FakeArchive.asked == ()


def test_name_that_the_archive_cannot_have_is_not_asked_for(tslearn):
    FakeArchive.asked = ()
    assert "'[a] b'" in message_of(data.load, "[a] b")
    assert FakeArchive.asked == ()


@pytest.mark.parametrize("file", ["./plain.v2", "./UPPER.NPZ", "sub/心 [1].npz", "~odd"])
def test_npz_of_any_name(tmp_path, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    pathlib.Path(write_npz(tmp_path)).rename(file)
    assert data.load(file).name == data.name_of(file)


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_npz(tmp_path)
    write_ucr(tmp_path, TRAIN, TEST)
    assert data.load("~/mine.npz").name == "mine"
    assert data.load("Toy", data_dir="~").source == "directory"
    assert "nobody-here" in message_of(data.load, "~nobody-here/mine.npz")
    assert "nobody-here" in message_of(data.load, "Toy", data_dir="~nobody-here")


def test_name_of_a_file_says_how_to_read_the_file(tmp_path, tslearn, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path)
    assert "write ./mine.npz" in message_of(data.load, "mine")
    assert "write ./mine.npz" in message_of(data.load, "mine", data_dir=".")
    assert "mine.npz to read" in message_of(data.load, "./mine")
    (tmp_path / "mine.npz").rename("plain")
    assert "write ./plain" in message_of(data.load, "plain")


def test_data_dir_beside_a_path_is_not_used(tmp_path):
    path = write_npz(tmp_path)
    mine, message = load_with_warning(data.load, path, data_dir="nowhere")
    assert mine.source == "file"
    assert "'nowhere' is not used" in message


def test_tslearn_waits_no_longer_than_the_timeout(tslearn, monkeypatch):
    seen = []
    monkeypatch.setattr(
        FakeArchive, "list_datasets", lambda _: seen.append(socket.getdefaulttimeout()) or []
    )
    before = socket.getdefaulttimeout()
    message_of(data.load, "CricketX")
    assert seen == [data.NETWORK_TIMEOUT]
    assert socket.getdefaulttimeout() == before


def test_import_leaves_tslearn_alone():
    code = "import sys, selfens_jax.data; print('tslearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_npz(tmp_path, channels):
    shape = (6,) if channels is None else (6, channels)
    X_train = np.arange(4 * 6 * (channels or 1)).reshape(4, *shape)
    mine = data.load(write_npz(tmp_path, X_train=X_train, X_test=X_train[:3]))
    assert (mine.name, mine.source) == ("mine", "file")
    assert mine.x_train.shape == (4, 6, channels or 1)
    np.testing.assert_array_equal(mine.x_train.reshape(X_train.shape), X_train)
    assert mine.x_train.dtype == np.float32


def test_archive_sets_load():
    if not ARCHIVE.is_dir():
        pytest.skip(f"the UCR archive is not at {ARCHIVE}")
    sizes = {"CBF": (30, 900, 128, 3), "SyntheticControl": (300, 300, 60, 6)}
    sizes["CricketX"] = (390, 390, 300, 12)
    for name, size in sizes.items():
        found = data.load(name, data_dir=str(ARCHIVE))
        assert (len(found.x_train), len(found.x_test), found.length, found.num_classes) == size
        assert found.classes == tuple(str(i + 1) for i in range(found.num_classes))


# --- labels, scaling, provenance -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([10, 9, -1], ("-1", "9", "10")),
        ([2.0, 1.0, 1.5], ("1", "1.5", "2")),
        (np.array([0.1, 0.2, -0.0], np.float32), ("0", "0.1", "0.2")),
        (["b", "a", "10"], ("10", "a", "b")),
        (["10", "09", "1.0"], ("1.0", "09", "10")),
        ([b"walk", b"run", b"sit"], ("run", "sit", "walk")),
        ([True, False, True], ("False", "True")),
        (["läuft", "steht still", "läuft"], ("läuft", "steht still")),
        (["N", "Inf.", "nano"], ("Inf.", "N", "nano")),
        (["a'b", 'a"b', "+"], ("+", 'a"b', "a'b")),
    ],
)
@pytest.mark.parametrize("as_array", [False, True])
def test_labels_of_any_type(labels, classes, as_array):
    labels = np.asarray(labels) if as_array else labels
    X = np.arange(12.0).reshape(3, 4)
    for order in ([0, 1, 2], [2, 0, 1]):
        y = [labels[i] for i in order]
        y = np.asarray(y) if as_array else y
        made = data.from_arrays("toy", X, y, X, y)
        assert made.classes == classes
        written = [v.decode() if isinstance(v, bytes) else str(v) for v in y]
        for label, index in zip(written, made.y_train, strict=True):
            same = made.classes[index]
            assert same == label or float(same) == float(label)


def test_classes_come_from_training():
    arrays = good_arrays() | {"y_test": np.array([2.0, 2.0, 2.0])}
    made = data.from_arrays("toy", **arrays)
    assert made.classes == ("1", "2")
    np.testing.assert_array_equal(made.y_test, 1)


def test_no_silent_rescaling():
    arrays = good_arrays()
    made = data.from_arrays("toy", **arrays)
    np.testing.assert_array_equal(made.x_train[..., 0], arrays["X_train"].astype(np.float32))


def test_z_score(tmp_path):
    X_train = good_arrays()["X_train"] * 50 + 1e6
    X_train[2] = 0.1
    made = data.load(write_npz(tmp_path, X_train=X_train), scaling="z_score")
    assert made.scaling == "z_score"
    kept = np.delete(made.x_train, 2, axis=0)
    np.testing.assert_allclose(kept.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(kept.std(axis=1, ddof=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(made.x_train[2], 0)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float16, np.longdouble])
def test_any_real_type(dtype):
    arrays = good_arrays()
    arrays["X_train"] = (arrays["X_train"] > 0).astype(dtype)
    made = data.from_arrays("toy", **arrays | {"X_test": np.ma.array(arrays["X_test"])})
    np.testing.assert_array_equal(made.x_train[..., 0], arrays["X_train"].astype(np.float32))


def test_arrays_are_copies():
    arrays = {k: v.astype(np.float32) for k, v in good_arrays().items()}
    made = data.from_arrays("toy", **arrays)
    before = made.x_train.copy()
    arrays["X_train"][:] = 0
    np.testing.assert_array_equal(made.x_train, before)


def change(key, index, value):
    arrays = good_arrays()
    arrays[key][index] = value
    return arrays


def test_sha256_tells_any_change():
    longer = {k: np.concatenate([v, v[:1]]) for k, v in good_arrays().items()}
    texts = {k: v if k[0] == "X" else np.array(["a", "b"])[v - 1] for k, v in longer.items()}
    variants = [
        good_arrays(),
        change("X_train", (3, 5), 0.25),
        change("X_test", (0, 0), 0.25),
        change("y_train", 0, 2),
        change("y_test", 0, 1),
        longer,
        texts,
    ]
    hashes = [data.from_arrays("toy", **v).sha256 for v in variants]
    hashes.append(data.from_arrays("toy", **good_arrays(), scaling="z_score").sha256)
    assert len(set(hashes)) == len(hashes)
    assert data.from_arrays("other", **good_arrays(), source="file").sha256 == hashes[0]


def test_describe_is_json():
    made = data.from_arrays("toy", **good_arrays())
    assert json.loads(json.dumps(data.describe(made))) == {
        "name": "toy",
        "source": "arrays",
        "scaling": "none",
        "sha256": made.sha256,
        "num_train": 4,
        "num_test": 3,
        "length": 6,
        "num_channels": 1,
        "classes": ["1", "2"],
    }


# --- bad input -----------------------------------------------------------------------------------


def with_value(value, where, shape=(4, 6)):
    X = np.zeros(shape)
    X[where] = value
    return X


BAD_ARRAYS = [
    pytest.param(
        {"X_train": with_value(np.nan, (3, 2))}, ["series 3", "training", "time 2", "nan"]
    ),
    pytest.param(
        {"X_test": with_value(-np.inf, (1, 5), (3, 6))}, ["series 1", "test", "time 5", "inf"]
    ),
    pytest.param(
        {"X_train": with_value(np.nan, (2, 4, 1), (4, 6, 2)), "X_test": np.zeros((3, 6, 2))},
        ["series 2", "training", "time 4", "channel 1"],
        id="nan-channel",
    ),
    pytest.param(
        {"X_test": with_value(1e39, (2, 0), (3, 6))},
        ["series 2", "test", "time 0", "1e+39", "float32"],
    ),
    pytest.param({"X_test": np.zeros((3, 7))}, ["test split", "(7, 1)", "(6, 1)"], id="length"),
    pytest.param({"X_test": np.zeros((3, 6, 2))}, ["test split", "(6, 2)"], id="channels"),
    pytest.param({"y_test": np.array([1, 2, 3])}, ["series 2", "test", "'3'"], id="unseen"),
    pytest.param({"y_train": np.array([1, 1, 1, 1])}, ["training", "one class"], id="one-class"),
    pytest.param({"X_train": np.zeros((0, 6))}, ["training split is empty"], id="empty-train"),
    pytest.param({"X_test": np.zeros((0, 6))}, ["test split is empty"], id="empty-test"),
    pytest.param({"y_train": np.array([1, 2, 1])}, ["training", "4 series", "(3,)"], id="counts"),
    pytest.param({"y_test": np.eye(3)}, ["test", "3 series", "(3, 3)"], id="one-hot"),
    pytest.param({"X_train": np.zeros(4)}, ["training", "shape (4,)"], id="rank-1"),
    pytest.param({"X_train": np.zeros((4, 6, 1, 1))}, ["training", "(4, 6, 1, 1)"], id="rank-4"),
    pytest.param({"X_train": np.array(1.0)}, ["training", "shape ()"], id="rank-0"),
    pytest.param({"X_train": np.zeros((4, 6, 0))}, ["training", "(4, 6, 0)"], id="no-channel"),
    pytest.param({"X_train": np.zeros((4, 1))}, ["training", "length 1"], id="one-step"),
    pytest.param({"X_test": np.zeros((3, 6), complex)}, ["test", "complex128"], id="complex"),
    pytest.param({"X_test": np.full((3, 6), "a")}, ["test", "<U1"], id="text"),
    pytest.param({"y_train": np.array([1, 2, np.nan, 1])}, ["series 2", "training", "nan"]),
    pytest.param({"y_train": np.array([1, 2, 1j, 1])}, ["series 0", "training", "label"]),
    pytest.param({"y_train": np.array(["a", "b", "NA", "b"])}, ["series 2", "'NA'", "missing"]),
    pytest.param({"y_test": np.array([1, 2, np.inf])}, ["series 2", "test", "'inf'"], id="inf"),
    pytest.param({"y_train": np.array(["1", "2", "1\t", "2"])}, ["series 2", r"'1\t'", "tab"]),
    pytest.param({"X_train": np.zeros((4, 1, 6))}, ["(4, 1, 6)", "length 1", "transpose(0, 2, 1)"]),
    pytest.param(
        {"y_train": np.arange(4), "y_test": np.arange(4, 7)},
        ["y counts the series", "an index column?"],
        id="index",
    ),
    pytest.param({"y_test": np.array(["1", "2", "2 "])}, ["'2 '", "is it '2'?"], id="alike"),
    pytest.param(
        {"y_train": np.array([0.3, 0.1, 0.2, 0.7])},
        ["y has 4 different numbers for 4 training series, such as 0.3", "measured values?"],
        id="targets",
    ),
    pytest.param(
        {"y_train": np.array([3, 1, 4, 2]), "y_test": np.array([9, 1, 2])},
        ["series 0 of the test", "no two training series share a label"],
        id="all-differ",
    ),
    pytest.param(
        {"X_train": np.full((4, 6), np.finfo(np.longdouble).max)}, ["series 0", "time 0"], id="long"
    ),
]


@pytest.mark.parametrize(("changes", "parts"), BAD_ARRAYS)
def test_bad_npz(tmp_path, changes, parts):
    path = write_npz(tmp_path, **changes)
    message = message_of(data.load, path)
    for part in [path, *parts]:
        assert part in message


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"X_train": [[1, 2], [1, 2], [1, 2, 3], [1, 2]]}, ["series 2", "training", "length 3"]),
        ({"X_test": [[1, 2], [[1], [2, 3]], [1, 2]]}, ["test", "type object"]),
        ({"X_test": np.array([1, None])}, ["test", "type object"]),
        ({"y_train": [1, 2, None, 1]}, ["series 2", "training", "None"]),
        ({"y_train": [1, [2], [1, 2], 1]}, ["series 1", "training", "[2]"]),
        ({"y_train": [1, True, 2, False]}, ["training", "booleans and numbers"]),
        ({"X_test": np.ones((3, 6), object)}, ["test", "type object"]),
        ({"X_test": [["1", "2"]] * 3}, ["test", "type <U1"]),
        ({"X_test": np.ma.masked_equal(np.eye(3, 6), 0)}, ["series 0", "test", "under a mask"]),
        ({"X_train": [[1, 2], [1, np.ma.masked], [1, 2], [1, 2]]}, ["series 1", "under a mask"]),
        ({"X_train": (np.ma.zeros(6), np.ma.masked_all(6))}, ["series 1", "under a mask"]),
        ({"X_train": np.ma.masked}, ["training", "under a mask"]),
        ({"y_train": np.ma.array([1, 2, 1, 2], mask=[0, 0, 0, 1])}, ["series 3", "label under"]),
        ({"y_train": [1, 2, np.ma.masked, 2]}, ["series 2", "training", "label under a mask"]),
    ],
)
def test_bad_lists(changes, parts):
    message = message_of(data.from_arrays, "toy", **(good_arrays() | changes))
    for part in ["toy", *parts]:
        assert part in message


@pytest.mark.parametrize(
    ("train", "test", "parts"),
    [
        (TRAIN + "\n1\t1\t2\n", TEST, ["_TRAIN.tsv", "line 4", "series 2", "2 values", "has 3"]),
        (TRAIN + "1\t1\tx2\t3\n", TEST, ["_TRAIN.tsv", "line 3, column 3", "'x2'"]),
        (TRAIN + "1\t1\t\u0662\t3\n", TEST, ["line 3, column 3", "is not a number"]),
        (TRAIN, "1\t1\t2\t3\n2\t0\t0.1\tNaN\n", ["_TEST.tsv", "line 2, column 4", "'NaN'"]),
        (TRAIN + "1\t1\t\t3\n", TEST, ["_TRAIN.tsv", "line 3, column 3", "value is missing"]),
        (TRAIN + "\t1\t2\t3\n", TEST, ["_TRAIN.tsv", "line 3, column 1", "label"]),
        (TRAIN, "", ["_TEST.tsv", "test split is empty"]),
        (TRAIN, "1\n2\n", ["_TEST.tsv", "line 1, column 1", "'1' has no values", "tab, comma"]),
        (TRAIN, "1\t1\t2\t3\t4\n", ["_TEST.tsv", "(4, 1)", "(3, 1)"]),
        (TRAIN, "7\t1\t2\t3\n", ["_TEST.tsv", "series 0", "'7'"]),
        (TRAIN, "1\t1\t2\t1e999\n", ["_TEST.tsv", "line 1, column 4", "'1e999'"]),
        (TRAIN + "1\t-1e308\t1e308\t-1e308\n", TEST, ["_TRAIN.tsv", "series 2", "float32"]),
        (TRAIN, "1\t1\t2\t1e99\n", ["_TEST.tsv", "series 0", "time 2", "float32"]),
    ],
)
def test_bad_ucr_text(tmp_path, train, test, parts):
    folder = write_ucr(tmp_path, train, test)
    message = message_of(data.load, "Toy", data_dir=folder)
    for part in [str(tmp_path / "Toy" / "Toy"), *parts]:
        assert part in message


# A line of a file, where it goes wrong, and what the message says about it.
BAD_LINES = [
    ("1\t1\t2\t3\t", "column 5", "ends with a separator"),
    ("1\t1\t2\t\t", "column 4", "ends with a separator"),
    ("1,1,2,3,", "column 5", "ends with a separator"),
    ("1\t1\t2\t-inf", "column 4", "'-inf' is not a finite number"),
    ("1\t1\t?\t3", "column 3", "'?' is not a finite number"),
    ("1\t1\t1_000\t3", "column 3", "without underscores"),
    ("1\t0,1\t0,2\t0,3", "column 2", "'0,1' is not a number: a decimal comma?"),
    ("walk 0,1 0,2 0,3", "column 2", "'1 0' is several numbers: write decimals with a point"),
    ("1 0,1 0,2 0,3", "column 1", "write decimals with a point"),
    ("1, 0,1, 0,2, 0,3", "column 1", "write decimals with a point"),
    ("1;0,1;0,2;0,3", "column 1", "the separators that are read are tab, comma and blanks"),
    ("1;1;2;3", "column 1", "the separators that are read are tab, comma and blanks"),
    ("1|1|2|3", "column 1", "the separators that are read are tab, comma and blanks"),
    ("1 1\t2\t3", "column 1", "the separators that are read are tab, comma and blanks"),
    ("1\t1 2\t3", "column 2", "the separators that are read are tab, comma and blanks"),
    ("1\t", "column 2", "ends with a separator"),
    ("NaN\t1\t2\t3", "column 1", "'NaN' means a missing label: drop the series"),
    ("None,1,2,3", "column 1", "'None' means a missing label"),
    ("? 1 2 3", "column 1", "'?' means a missing label"),
    ('"1"\t1\t2\t3', "column 1", "double quote"),
    ("a\0b\t1\t2\t3", "column 1", "control character"),
    ("a\u2028b\t1\t2\t3", "column 1", "line break"),
]


@pytest.mark.parametrize(("line", "column", "part"), BAD_LINES)
@pytest.mark.parametrize("place", [1, 3])
def test_bad_line(tmp_path, line, column, part, place):
    lines = TRAIN.splitlines()
    lines.insert(place - 1, line)
    folder = write_ucr(tmp_path, "\n".join(lines), TEST)
    message = message_of(data.load, "Toy", data_dir=folder)
    for found in ("Toy_TRAIN.tsv", f"line {place}, {column}: ", part):
        assert found in message
    assert "header" not in message


BODY = "1\t5\t2\t3\n2\t3\t1\t5\n1\t3\t4\t4\n2\t2\t1\t0\n"
WORDS = BODY.replace("1\t", "run\t", 1).replace("\n1\t", "\nrun\t").replace("\n2\t", "\nwalk\t")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param("label\t0\t1\t2\n" + BODY, 1, id="pandas"),
        pytest.param("0\t1\t2\t3\n" + BODY, 1, id="pandas-numbers-all"),
        pytest.param("label\t0\t1\t2\n" + WORDS, 1, id="text-classes"),
        pytest.param("\n\nrun\t1\t2\t3\n" + WORDS, 3, id="label-of-a-class"),
        pytest.param("label\t0.0\t0.1\t0.2\n" + WORDS, 1, id="times"),
        pytest.param("label\t0.033\t0.067\t0.1\n" + WORDS, 1, id="rounded-times"),
        pytest.param("label\t1990\t1991\t1992\n" + WORDS, 1, id="years"),
        pytest.param("label\t400\t398\t396\n" + WORDS, 1, id="wave-numbers"),
        pytest.param("y\t0\t0.1\t0.2\nrun\t4\t5\t2\nwalk\t3\t1\t1\n", 1, id="short"),
        pytest.param("label\t7\t3\t5\n" + BODY, 1, id="text-label"),
        pytest.param("label\t0\t1\n1\t5\t2\n2\t4\t3\n", 1, id="two-values"),
        pytest.param(BODY + "label\t0\t1\t2\n" + BODY, 5, id="in-the-middle"),
        pytest.param("label\t0\t1\t2\n" * 2 + BODY, 1, id="twice"),
        pytest.param("label\tt0\tt1\tt2\n" + BODY, 1, id="names"),
        pytest.param("label\tt_0\tt_1\tt_2\n" + BODY, 1, id="names-with-underscores"),
        pytest.param("\t0\t1\t2\n" + BODY, 1, id="index-without-name"),
        pytest.param("# label t0 t1\n" + BODY, 1, id="comment"),
    ],
)
@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
def test_header(tmp_path, text, line, split):
    good = WORDS if "run" in text else BODY
    texts = {"TRAIN": good, "TEST": good} | {split: text}
    folder = write_ucr(tmp_path, texts["TRAIN"], texts["TEST"])
    message = message_of(data.load, "Toy", data_dir=folder)
    for part in (f"Toy_{split}.tsv: line {line}", "header", "remove"):
        assert part in message


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(BODY + "1\t0\t1\t2\n", id="ramp-below"),
        pytest.param(WORDS + "up\t0\t1\t2\n", id="only-ramp-of-its-class-below"),
        pytest.param("1\t0\t1\t2\n2\t1\t2\t3\n", id="all-ramps"),
        pytest.param("1\t0\t0.1\t0.2\n" + BODY, id="ramp-of-a-class-of-two"),
        pytest.param("9\t0\t0\t0\n" + BODY, id="constant"),
        pytest.param("9\t0.1\t0.2\t0.9\n" + BODY, id="only-one-of-its-class"),
        pytest.param("1\t0.5\t1.5\t2.5\n2\t3\t4\t6\n", id="two-lines"),
        pytest.param("1\t0\t1\n2\t3\t4\n", id="two-values"),
        pytest.param("10\t4\t1\t3\n1_0\t3\t4\t6\n", id="underscore-is-no-number"),
        pytest.param("walk fast,4,1,3\nrun, 3.0, 4.5, 6\n", id="blanks-in-a-label"),
        pytest.param("\ufeffa\t1.\t.5\t+1e-3\r\nb\t3\t4\t6\r\n\r\n", id="spellings"),
    ],
)
def test_no_header(tmp_path, text):
    folder = write_ucr(tmp_path, text, text)
    found = data.load("Toy", data_dir=folder)
    assert len(found.x_train) == text.rstrip().count("\n") + 1


@pytest.mark.parametrize(
    "header",
    [
        pytest.param("class\t1\t1.58\t2.51", id="text"),
        pytest.param("0\t2000\t2001\t2003", id="number"),
        pytest.param("1\t2\t5\t6", id="of-a-class"),
    ],
)
def test_header_of_both_files(tmp_path, header):
    """Uneven times are told from a series by standing in both."""
    words = WORDS if header.startswith("class") else BODY
    other = words.replace("\t", "\t1")
    folder = write_ucr(tmp_path, f"{header}\n{words}", f"{header}\n{other}")
    message = message_of(data.load, "Toy", data_dir=folder)
    for part in ("Toy_TRAIN.tsv and", "Toy_TEST.tsv begin with the same line", "header", "remove"):
        assert part in message


INDEX = [
    (range(4), range(3)),
    (range(1, 4), range(1, 3)),
    (range(4), range(4, 7)),
    (range(100, 105), range(2)),
    (["0.0", "1.0", "2.0"], ["0.0", "1.0"]),
    (["007", "008", "009"], ["010", "011"]),
]


@pytest.mark.parametrize(("train", "test"), INDEX)
def test_index_for_labels(tmp_path, train, test):
    rng = np.random.default_rng(0)
    X_train, X_test = rng.normal(size=(len(train), 5)), rng.normal(size=(len(test), 5))
    message = message_of(data.from_arrays, "toy", X_train, list(train), X_test, list(test))
    assert "toy: y counts the series" in message
    assert "an index column?" in message
    lines = (
        "\n".join("\t".join(map(str, [label, *x])) for label, x in zip(y, X, strict=True))
        for y, X in ((train, X_train), (test, X_test))
    )
    message = message_of(data.load, "Toy", data_dir=write_ucr(tmp_path, *lines))
    assert "Toy_TRAIN.tsv: column 1 counts the lines" in message
    assert "an index column?" in message


@pytest.mark.parametrize(
    ("train", "test"),
    [([1, 2], [1, 2]), ([1, 2, 3], [3]), ([1, 2, 3], [1, 3]), ([2, 1, 3], [1, 2])],
)
def test_few_classes_in_order_are_no_index(train, test):
    X = np.random.default_rng(0).normal(size=(3, 5))
    made = data.from_arrays("toy", X[: len(train)], train, X[: len(test)], test)
    assert made.num_classes == len(train)


@pytest.mark.parametrize(
    "label",
    [
        *("", " ", "nan", "NaN", "-NaN", "inf", "-Infinity", "1e999", "NA", "na ", "n/a", "#N/A"),
        *("None", "NULL", "NaT", "<NA>", "?", "-1.#IND"),
        *("-", " -- ", "—", "*", "Missing", "undefined", "unlabeled", "unlabelled"),
    ],
)
@pytest.mark.parametrize("kind", [str, bytes])
def test_missing_label(label, kind):
    label = label.encode() if kind is bytes else label
    labels = ["a", "b", "a", label]
    message = message_of(data.from_arrays, "toy", **(good_arrays() | {"y_train": labels}))
    assert "series 3 of the training split has label" in message
    assert "missing" in message
    assert "another name" in message


@pytest.mark.parametrize("label", ["a\nb", "a\r", "\ta", "a\x85", "a\u2029b", "\ud800", '"a"', '"'])
def test_label_that_breaks_a_table(label):
    arrays = good_arrays() | {"y_train": ["a", label, "a", "b"]}
    message = message_of(data.from_arrays, "toy", **arrays)
    assert f"series 1 of the training split has label {label!r}" in message


def test_ucr_text_in_another_encoding(tmp_path):
    folder = write_ucr(tmp_path, TRAIN, TEST)
    (tmp_path / "Toy" / "Toy_TEST.tsv").write_bytes(b"\xff\xfe1\t2")
    message = message_of(data.load, "Toy", data_dir=folder)
    assert "Toy_TEST.tsv" in message
    assert "text" in message


@pytest.mark.parametrize(
    ("files", "asked", "folder", "parts"),
    [
        pytest.param([], "CBF", ".", ["CBF/CBF_TRAIN.tsv", "CBF_TEST.tsv", ".txt", "nothing"]),
        pytest.param(["a", "c", "b", "f", "e", "d"], "CBF", ".", ["'a', 'b', 'c', 'd', 'e', ..."]),
        pytest.param(
            ["CBF/CBF_TRAIN.arff", "CBF/CBF_TEST.arff"],
            "CBF",
            ".",
            ["CBF holds 'CBF_TEST.arff', 'CBF_TRAIN.arff'", "the ending '.arff' is not read"],
            id="arff",
        ),
        pytest.param(["CBF/CBF_TRAIN.TSV"], "CBF", ".", ["'.TSV' is not read"], id="upper-ending"),
        pytest.param(["CBF/CBF_TRAIN.tsv.gz"], "CBF", ".", ["'.tsv.gz' is not read"], id="packed"),
        pytest.param(
            ["CBF/CBF_train.tsv"], "CBF", ".", ["'CBF_train.tsv' is not spelled 'CBF_TRAIN.tsv'"]
        ),
        pytest.param(
            ["CBF/CBF_TRAIN.tsv"], "CBF", ".", ["CBF_TEST.tsv: no such file", "both"], id="half"
        ),
        pytest.param(
            ["CBF/CBF_TRAIN.tsv", "CBF/CBF_TEST.txt"],
            "CBF",
            ".",
            ["CBF_TEST.tsv: no such file", "holds 'CBF_TEST.txt', 'CBF_TRAIN.tsv'"],
            id="two-endings",
        ),
        pytest.param(
            ["ucr/CBF/CBF_TRAIN.tsv", "ucr/CBF/CBF_TEST.tsv"],
            "CBF",
            "ucr/CBF",
            ["one level too deep: give its parent", "/ucr"],
            id="deep",
        ),
        pytest.param(
            ["ucr/CBF_TRAIN.tsv"], "CBF", "ucr", ["too deep: move the files to ucr/CBF"], id="loose"
        ),
        pytest.param(
            ["ucr/CBF/CBF_TRAIN.tsv"], "CBF", ".", ["too high: give ucr"], id="outer-folder"
        ),
        pytest.param(
            ["CBF/CBF/CBF_TRAIN.tsv"], "CBF", ".", ["too high: give CBF"], id="folder-in-folder"
        ),
        pytest.param(["CBF/CBF_TRAIN.tsv"], "cbf", ".", ["did you mean 'CBF'?"], id="case"),
        pytest.param(["CricketX/a"], "Cricket_X", ".", ["mean 'CricketX'?"], id="misspelt"),
        pytest.param(["CBF"], "CBF", "CBF", ["not a folder"], id="file"),
        pytest.param([], "CBF", "nowhere", ["nowhere: no such folder"], id="nowhere"),
        pytest.param([], "CBF", "no\nwhere", ["'no\\nwhere': no such folder"], id="odd-folder"),
        pytest.param([], "a\u2028b", ".", ["a\\u2028b"], id="odd-name"),
    ],
)
def test_data_dir_without_the_set(tmp_path, tslearn, monkeypatch, files, asked, folder, parts):
    """Nothing is generated or downloaded: whoever gives a folder means the data in it."""
    monkeypatch.chdir(tmp_path)
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(TRAIN)
    FakeArchive.asked = ()
    message = message_of(data.load, asked, data_dir=folder)
    for part in parts:
        assert part in message
    assert FakeArchive.asked == ()


def test_npz_that_does_not_exist(tmp_path):
    path = str(tmp_path / "mine.npz")
    message = message_of(data.load, path)
    assert path in message
    assert "no such file" in message


@pytest.mark.parametrize("content", [b"", b"not an archive\n", b"\x93NUMPY"])
def test_file_that_is_not_an_npz(tmp_path, content):
    path = tmp_path / "mine.npz"
    path.write_bytes(content)
    says = "not a .npz file" if content else "is empty"
    assert f"{path}: {says}" in message_of(data.load, str(path))


def test_damaged_npz(tmp_path):
    path = pathlib.Path(write_npz(tmp_path))
    content = bytearray(path.read_bytes())
    content[150:200] = bytes(50)
    path.write_bytes(content)
    assert f"{path}: cannot be read" in message_of(data.load, str(path))


@pytest.mark.parametrize(
    ("left_out", "named"),
    [
        (["y_train"], "y_train"),
        (["X_train", "y_train"], "X_train, y_train"),
        (["X_test"], "X_test"),
        (["y_train", "X_test"], "y_train, X_test"),
    ],
)
def test_npz_without_a_key(tmp_path, left_out, named):
    path = tmp_path / "mine.npz"
    np.savez(path, **{key: X for key, X in good_arrays().items() if key not in left_out})
    assert f"{path}: {named} missing" in message_of(data.load, str(path))


def test_pickled_arrays_are_refused(tmp_path):
    ragged = np.array([np.zeros(6), np.zeros(5), None], dtype=object)
    path = write_npz(tmp_path, X_test=ragged)
    message = message_of(data.load, path)
    assert path in message
    assert "pickled" in message


def test_unknown_scaling(tmp_path):
    assert "'minmax'" in message_of(data.load, write_npz(tmp_path), scaling="minmax")
    assert "'minmax'" in message_of(data.from_arrays, "toy", **good_arrays(), scaling="minmax")


# --- what may be meant ---------------------------------------------------------------------------


def ten(first_column=None, last_column=None):
    """Ten training series of two classes whose first or last time step is given."""
    X_train = np.random.default_rng(1).normal(size=(10, 6))
    if first_column is not None:
        X_train[:, 0] = first_column
    if last_column is not None:
        X_train[:, -1] = last_column
    return {"X_train": X_train, "y_train": np.arange(10) % 2 + 1}


def alike(label, other):
    return {"y_train": [label, other, label, other], "y_test": [label, other, label]}


WIDE = {"X_train": np.ones((4, 3, 24)), "X_test": np.ones((3, 3, 24))}
DOUBTFUL = [
    pytest.param(WIDE, ["(4, 3, 24)", "X.transpose(0, 2, 1)"], id="channels"),
    pytest.param({"y_train": [1, 2, 4, 3]}, ["each of 4", "class of its own", "y"], id="differ"),
    pytest.param(alike("a", "A "), ["'A ' and 'a'"], id="case"),
    pytest.param(alike("é", "e\u0301"), ["'e\\u0301' and 'é'"], id="composed"),
    pytest.param(alike("a b", "a\u200b  b"), ["look the same"], id="no-width"),
    pytest.param(alike("1", "1.0"), ["'1' and '1.0'"], id="numbers"),
    pytest.param(alike("1", "١"), ["'1' and '١'"], id="digits"),
    pytest.param(alike("2.0", "２"), ["'2.0' and '２'"], id="wide-digits"),
    pytest.param(alike("class 3", "class ३"), ["'class 3' and 'class ३'"], id="digits-inside"),
    pytest.param(ten(np.arange(10) % 2 + 1), ["time 0", "is its label"], id="label-first"),
    pytest.param(ten(None, np.arange(10) % 2 + 1), ["time 5", "is its label"], id="label-last"),
    pytest.param(ten(np.arange(10) + 7), ["time 0 counts", "index"], id="index"),
]


@pytest.mark.parametrize(("changes", "parts"), DOUBTFUL)
def test_one_warning(changes, parts):
    _, message = load_with_warning(data.from_arrays, "toy", **(good_arrays() | changes))
    for part in ["toy: ", *parts]:
        assert part in message


def test_large_constant_is_no_index():
    found = data.from_arrays("toy", **(good_arrays() | ten(1e20)))  # 1e20 + 1 is 1e20
    assert len(found.x_train) == 10  # and no warning, which would be an error
