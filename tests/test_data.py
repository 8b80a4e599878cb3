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

from selfens_jax import data
from selfens_jax.errors import UserError

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


def message_of(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


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


def test_directory_comes_before_tslearn(tmp_path, tslearn):
    FakeArchive.asked = ()
    write_ucr(tmp_path, TRAIN, TEST, name="CBF")
    assert data.load("CBF", data_dir=str(tmp_path)).source == "directory"
    assert FakeArchive.asked == ()


@pytest.mark.parametrize("name", ["CBF", "SyntheticControl"])
@pytest.mark.parametrize("answer", [urllib.error.URLError("no network"), (None,) * 4])
def test_generated_when_nothing_can_be_reached(tmp_path, tslearn, name, answer):
    tslearn(answer)
    with pytest.warns(UserWarning, match="generator") as caught:
        generated = data.load(name, data_dir=str(tmp_path))
    assert len(caught) == 1
    message = str(caught[0].message)
    assert name in message
    assert str(tmp_path) in message
    assert "\n" not in message
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


def test_unreachable_set_says_how_to_get_it(tmp_path, tslearn):
    message = message_of(data.load, "CricketX", data_dir=str(tmp_path))
    for part in ("CricketX_TRAIN.tsv", "no network", "data_dir", ".npz", str(tmp_path)):
        assert part in message


@pytest.mark.parametrize(
    ("name", "meant"), [("cbf", "CBF"), ("Cricket_X", "CricketX"), ("ecg20", "ECG200")]
)
def test_misspelt_name(tslearn, name, meant):
    tslearn((None,) * 4)
    assert f"did you mean {meant}" in message_of(data.load, name)


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_name_that_is_a_folder_never_reaches_tslearn(tslearn, name):
    FakeArchive.asked = ()
    assert "neither an archive name nor" in message_of(data.load, name)
    assert FakeArchive.asked == ()


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
        (["nan", "1", "inf"], ("1", "inf", "nan")),
        (["läuft", "steht\n", "läuft"], ("läuft", "steht\n")),
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
    ],
)
def test_bad_lists(changes, parts):
    message = message_of(data.from_arrays, "toy", **(good_arrays() | changes))
    for part in ["toy", *parts]:
        assert part in message


@pytest.mark.parametrize(
    ("train", "test", "parts"),
    [
        (TRAIN, "1\t1\t2\t3\n2\t0\t0.1\tNaN\n", ["_TEST.tsv", "series 1", "test", "time 2"]),
        (TRAIN + "\n1\t1\t2\n", TEST, ["_TRAIN.tsv", "line 4", "series 2", "2 values", "has 3"]),
        (TRAIN + "1\t1\tx2\t3\n", TEST, ["_TRAIN.tsv", "line 3, column 3", "'x2'"]),
        (TRAIN + "1\t1\t\t3\n", TEST, ["_TRAIN.tsv", "line 3, column 3", "''"]),
        (TRAIN + "\t1\t2\t3\n", TEST, ["_TRAIN.tsv", "line 3, column 1", "label"]),
        (TRAIN, "", ["_TEST.tsv", "test split is empty"]),
        (TRAIN, "1\n2\n", ["_TEST.tsv", "length 0"]),
        (TRAIN, "1\t1\t2\t3\t4\n", ["_TEST.tsv", "(4, 1)", "(3, 1)"]),
        (TRAIN, "7\t1\t2\t3\n", ["_TEST.tsv", "series 0", "'7'"]),
        (TRAIN, "1\t1\t2\t1e999\n", ["_TEST.tsv", "series 0", "time 2", "inf"]),
        (TRAIN, "1\t1\t2\t1e99\n", ["_TEST.tsv", "series 0", "time 2", "float32"]),
    ],
)
def test_bad_ucr_text(tmp_path, train, test, parts):
    folder = write_ucr(tmp_path, train, test)
    message = message_of(data.load, "Toy", data_dir=folder)
    for part in [str(tmp_path / "Toy" / "Toy"), *parts]:
        assert part in message


def test_ucr_text_in_another_encoding(tmp_path):
    folder = write_ucr(tmp_path, TRAIN, TEST)
    (tmp_path / "Toy" / "Toy_TEST.tsv").write_bytes(b"\xff\xfe1\t2")
    message = message_of(data.load, "Toy", data_dir=folder)
    assert "Toy_TEST.tsv" in message
    assert "text" in message


def test_half_a_data_set(tmp_path):
    folder = write_ucr(tmp_path, TRAIN, TEST)
    (tmp_path / "Toy" / "Toy_TEST.tsv").unlink()
    message = message_of(data.load, "Toy", data_dir=folder)
    assert "Toy_TEST.tsv: no such file" in message


def test_data_dir_that_does_not_exist(tmp_path):
    message = message_of(data.load, "CBF", data_dir=str(tmp_path / "nowhere"))
    assert f"{tmp_path / 'nowhere'}: no such folder" in message


def test_npz_that_does_not_exist(tmp_path):
    path = str(tmp_path / "mine.npz")
    message = message_of(data.load, path)
    assert path in message
    assert "no such file" in message


@pytest.mark.parametrize("content", [b"", b"not an archive\n", b"\x93NUMPY"])
def test_file_that_is_not_an_npz(tmp_path, content):
    path = tmp_path / "mine.npz"
    path.write_bytes(content)
    assert f"{path}: not a .npz file" in message_of(data.load, str(path))


def test_damaged_npz(tmp_path):
    path = pathlib.Path(write_npz(tmp_path))
    content = bytearray(path.read_bytes())
    content[150:200] = bytes(50)
    path.write_bytes(content)
    assert f"{path}: cannot be read" in message_of(data.load, str(path))


def test_npz_without_a_key(tmp_path):
    path = tmp_path / "mine.npz"
    arrays = good_arrays()
    del arrays["y_test"]
    np.savez(path, **arrays)
    assert f"{path}: y_test missing" in message_of(data.load, str(path))


def test_pickled_arrays_are_refused(tmp_path):
    ragged = np.array([np.zeros(6), np.zeros(5), None], dtype=object)
    path = write_npz(tmp_path, X_test=ragged)
    message = message_of(data.load, path)
    assert path in message
    assert "pickled" in message


def test_unknown_scaling(tmp_path):
    assert "'minmax'" in message_of(data.load, write_npz(tmp_path), scaling="minmax")
    assert "'minmax'" in message_of(data.from_arrays, "toy", **good_arrays(), scaling="minmax")
