"""Labelled time series: by archive name, from UCR text files, from a .npz file, from arrays.

Whatever the source, `from_arrays` checks the numbers and makes the `Dataset`. Nothing is rescaled
unless asked for: a certified radius is in the units of the series as they are held here.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import os
import pathlib
import re
import socket
import warnings
import zipfile
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from selfens_jax import synthetic
from selfens_jax.errors import UserError

PAPER_DATASETS = (
    "CBF",
    "ChlorineConcentration",
    "CricketX",
    "CricketY",
    "CricketZ",
    "SyntheticControl",
)
SCALINGS = ("none", "z_score")
NETWORK_TIMEOUT = 10.0  # seconds without an answer, per connection
ARCHIVE_URL = "https://www.timeseriesclassification.com"
NPZ_KEYS = ("X_train", "y_train", "X_test", "y_test")

# name: (generator, training series, test series), with the archive's sizes
_GENERATORS = {
    "CBF": (synthetic.cbf, 30, 900),
    "SyntheticControl": (synthetic.synthetic_control, 300, 300),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split of equally long series, checked and complete."""

    name: str  # "CBF", or the stem of the user's file
    x_train: np.ndarray  # (n, T, C) float32
    y_train: np.ndarray  # (n,) int32 class indices
    x_test: np.ndarray  # (n', T, C) float32
    y_test: np.ndarray  # (n',) int32 class indices
    classes: tuple[str, ...]  # class index -> the label as the user wrote it
    source: str  # "directory", "tslearn", "generated", "file" or "arrays"
    scaling: str  # "none" or "z_score"
    sha256: str  # of the arrays and classes above: changes if any value in them changes

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def length(self) -> int:
        """T, in time steps."""
        return self.x_train.shape[1]

    @property
    def num_channels(self) -> int:
        return self.x_train.shape[2]


def describe(dataset: Dataset) -> dict[str, Any]:
    """What a data set is and where it came from, as values that JSON can hold."""
    return {
        "name": dataset.name,
        "source": dataset.source,
        "scaling": dataset.scaling,
        "sha256": dataset.sha256,
        "num_train": len(dataset.x_train),
        "num_test": len(dataset.x_test),
        "length": dataset.length,
        "num_channels": dataset.num_channels,
        "classes": list(dataset.classes),
    }


def load(
    dataset: str, data_dir: str | None = None, scaling: str = "none", cache_dir: str | None = None
) -> Dataset:
    """Load a data set by archive name, or the user's own from a .npz file.

    A name is looked for in `data_dir` (NAME/NAME_TRAIN.tsv or .txt, and _TEST), then through
    tslearn (its cache, else its download); CBF and SyntheticControl are generated when neither has
    them, with one UserWarning.

    Args:
        dataset: a name of the UCR archive, or the path of a .npz file (it ends in .npz or contains
            a path separator) that holds X_train, y_train, X_test, y_test.
        data_dir: folder of an unpacked UCR archive.
        scaling: "none", or "z_score" (each series and channel to mean 0 and standard deviation 1).
        cache_dir: where tslearn keeps its downloads; its own default if None.

    Raises:
        UserError: the data cannot be found or are not usable; the message says where and why.
    """
    _check_scaling(scaling)
    if dataset.endswith(".npz") or any(s in dataset for s in (os.sep, os.altsep) if s):
        return _load_npz(pathlib.Path(dataset).expanduser(), scaling)
    # tslearn empties the cache folder of the name it downloads, so "" or ".." must never reach it.
    if not re.fullmatch(r"\w[\w.-]*", dataset):
        raise UserError(f"data set {dataset!r} is neither an archive name nor the path of a .npz")

    tried = []
    if data_dir is not None:
        found = _load_directory(dataset, pathlib.Path(data_dir).expanduser(), scaling)
        if found is not None:
            return found
        tried.append(f"not in {data_dir!r}")

    arrays, reason, known = _ask_tslearn(dataset, cache_dir)
    if arrays is not None:
        X_train, y_train, X_test, y_test = arrays
        y_train, y_test = ([_archive_label(str(v)) for v in y] for y in (y_train, y_test))
        splits = (X_train, y_train, X_test, y_test)
        return from_arrays(dataset, *splits, source="tslearn", scaling=scaling)
    tried.append(f"tslearn: {reason}")

    if dataset in _GENERATORS:
        warnings.warn(
            f"{dataset} could not be loaded ({'; '.join(tried)}): using series from its published "
            "generator instead, which are NOT the archive's data",
            UserWarning,
            stacklevel=2,
        )
        generate, num_train, num_test = _GENERATORS[dataset]
        splits = (*generate((0, 0), num_train), *generate((0, 1), num_test))
        return from_arrays(dataset, *splits, source="generated", scaling=scaling)
    raise UserError(_not_found(dataset, "; ".join(tried), known))


def from_arrays(
    name: str,
    X_train: Any,
    y_train: Any,
    X_test: Any,
    y_test: Any,
    *,
    source: str = "arrays",
    scaling: str = "none",
    places: tuple[str, str] | None = None,
) -> Dataset:
    """Check arrays and make a Dataset of them.

    Classes are the labels of the training split, in numeric order if all of them are numbers, else
    in text order. A whole number is written without a decimal point, so 1 and 1.0 are one label.

    Args:
        name: what to call the data.
        X_train: (n, T) or (n, T, C) real numbers, T >= 2.
        y_train: (n,) labels: numbers, booleans, text or bytes.
        X_test: (n', T) or (n', T, C).
        y_test: (n',) labels, each of which occurs in y_train.
        source: where the arrays came from; kept as provenance.
        scaling: "none" or "z_score".
        places: what error messages call the two splits, such as their files; the name if None.

    Raises:
        UserError: anything that is not as above, a value that is not finite or overflows float32,
            or fewer than two classes; the message names the split, series, time step and channel.
    """
    _check_scaling(scaling)
    place_train, place_test = places or (name, name)
    train, test = _Split(place_train, "training"), _Split(place_test, "test")
    x_train, x_test = train.check_series(X_train), test.check_series(X_test)
    if x_train.shape[1:] != x_test.shape[1:]:
        test.fail(
            f"has (length, channels) {x_test.shape[1:]}, but the training split has "
            f"{x_train.shape[1:]}: both need the same"
        )
    labels_train = train.check_labels(y_train, len(x_train))
    labels_test = test.check_labels(y_test, len(x_test))
    classes = _order(set(labels_train))
    if len(classes) < 2:
        train.fail(f"has one class only, {classes[0]!r}: a classifier needs at least two")
    index = {label: i for i, label in enumerate(classes)}
    for i, label in enumerate(labels_test):
        if label not in index:
            test.fail(f"has label {label!r}, which no training series has: remove it", series=i)
    arrays = {
        "x_train": train.to_float32(x_train, scaling),
        "y_train": np.array([index[label] for label in labels_train], np.int32),
        "x_test": test.to_float32(x_test, scaling),
        "y_test": np.array([index[label] for label in labels_test], np.int32),
    }
    sha256 = _sha256(arrays, classes)
    return Dataset(name, **arrays, classes=classes, source=source, scaling=scaling, sha256=sha256)


def _check_scaling(scaling: str) -> None:
    if scaling not in SCALINGS:
        raise UserError(f"scaling {scaling!r} is unknown: use one of {', '.join(SCALINGS)}")


@dataclasses.dataclass(frozen=True)
class _Split:
    """The checks of one split, which name its place and the series in their errors."""

    place: str
    split: str

    def fail(self, problem: str, series: int | None = None, at: str = "") -> NoReturn:
        which = "" if series is None else f"series {series} of "
        raise UserError(f"{self.place}: {which}the {self.split} split{at} {problem}") from None

    def check_series(self, X: Any) -> np.ndarray:
        """X as (n, T, C) float64, all finite."""
        try:
            X = np.asarray(X)
        except ValueError:  # how NumPy refuses ragged lists
            X = np.fromiter(X, dtype=object)
        if X.shape[:1] == (0,):
            self.fail("is empty: it needs at least one series")
        if X.dtype == object and X.ndim == 1:
            lengths = [len(series) if hasattr(series, "__len__") else 0 for series in X]
            for i, length in enumerate(lengths):
                if length != lengths[0]:
                    self.fail(
                        f"has length {length}, but series 0 has {lengths[0]}: cut or pad all "
                        "series to one length",
                        series=i,
                    )
        if X.dtype.kind not in "biuf":
            self.fail(f"has series of type {X.dtype}: they must be real numbers")
        if X.ndim not in (2, 3) or 0 in X.shape[2:]:
            self.fail(f"has shape {X.shape}: it must be (series, time[, channels])")
        if X.shape[1] < 2:
            self.fail(f"has series of length {X.shape[1]}: at least two time steps are needed")
        X = X.reshape(*X.shape[:2], -1).astype(np.float64)
        self._fail_at_first(
            ~np.isfinite(X), X, "is not finite: fill it, or cut padded series to one length"
        )
        return X

    def to_float32(self, x: np.ndarray, scaling: str) -> np.ndarray:
        scaled = synthetic.z_normalise(x) if scaling == "z_score" else x
        with np.errstate(over="ignore"):
            narrow = scaled.astype(np.float32)
        self._fail_at_first(np.isinf(narrow), x, "overflows float32: use smaller units")
        return narrow

    def check_labels(self, y: Any, num_series: int) -> list[str]:
        y = y if isinstance(y, np.ndarray) else np.asarray(y, dtype=object)
        if y.shape != (num_series,):
            self.fail(
                f"has {num_series} series, but its labels have shape {y.shape}: give one label a "
                "series"
            )
        labels = []
        for i, value in enumerate(y):
            if isinstance(value, bytes):
                value = value.decode("utf-8", errors="backslashreplace")
            if not isinstance(value, (str, bool, np.bool_, int, np.integer, float, np.floating)):
                self.fail(f"has label {value!r}, which is neither a number nor text", series=i)
            if isinstance(value, (float, np.floating)):
                if not np.isfinite(value):
                    self.fail(f"has label {value}: labels must be finite", series=i)
                value = int(value) if value == int(value) else value
            labels.append(str(value))
        return labels

    def _fail_at_first(self, bad: np.ndarray, x: np.ndarray, problem: str) -> None:
        if bad.any():
            series, time, channel = np.unravel_index(bad.argmax(), bad.shape)
            at = f", time {time}" + (f", channel {channel}" if x.shape[2] > 1 else "")
            self.fail(f"has value {x[series, time, channel]}, which {problem}", int(series), at)


def _archive_label(text: str) -> str:
    """One spelling for the archive's class numbers, which its formats write as 1, 1.0 or 1e+00."""
    try:
        number = float(text)
    except ValueError:
        return text
    # Above 2^53 a float cannot tell neighbouring whole numbers apart.
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else text


def _order(labels: set[str]) -> tuple[str, ...]:
    """Numeric order if every label is a finite number, else text order."""
    try:
        numbers = {label: float(label) for label in labels}
    except ValueError:
        numbers = {}
    if not np.isfinite(list(numbers.values())).all():
        numbers = {}
    return tuple(sorted(labels, key=lambda label: (numbers.get(label, 0.0), label)))


def _sha256(arrays: dict[str, np.ndarray], classes: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    header = {"classes": classes, "shapes": [array.shape for array in arrays.values()]}
    digest.update(json.dumps(header).encode())
    for array in arrays.values():
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _load_npz(path: pathlib.Path, scaling: str) -> Dataset:
    need = f"a .npz file with {', '.join(NPZ_KEYS)} is needed"
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; {need}")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not a .npz file; {need}")
    try:
        # Pickled arrays can run code when they are read, so they are never allowed.
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in NPZ_KEYS if key not in file]
            arrays = [file[key] for key in NPZ_KEYS if key in file]
    except Exception as error:  # a user's file can be broken in any way that zip or NumPy knows
        if "Object arrays" in str(error):
            raise UserError(
                f"{path}: holds pickled Python objects, which are never loaded: save series of "
                "equal length as numbers, and labels as numbers or text (y.astype(str))"
            ) from None
        raise UserError(f"{path}: cannot be read ({_one_line(error)}); {need}") from None
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} missing; {need}")
    places = (str(path), str(path))
    return from_arrays(path.stem, *arrays, source="file", scaling=scaling, places=places)


def _load_directory(name: str, data_dir: pathlib.Path, scaling: str) -> Dataset | None:
    """The set from its UCR text files, or None if the folder has neither of them."""
    if not data_dir.is_dir():
        raise UserError(f"{data_dir}: no such folder; data_dir must hold {name}/{name}_TRAIN.tsv")
    for extension in ("tsv", "txt"):
        train, test = (
            data_dir / name / f"{name}_{split}.{extension}" for split in ("TRAIN", "TEST")
        )
        if not train.exists() and not test.exists():
            continue
        for path in (train, test):
            if not path.exists():
                raise UserError(f"{path}: no such file; a data set needs both _TRAIN and _TEST")
        splits = (*_read_ucr(train, "training"), *_read_ucr(test, "test"))
        places = (str(train), str(test))
        return from_arrays(name, *splits, source="directory", scaling=scaling, places=places)
    return None


def _read_ucr(path: pathlib.Path, split: str) -> tuple[np.ndarray, list[str]]:
    """A UCR text file: one series a line, its label first."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({_one_line(error)})") from None
    rows: list[list[float]] = []
    labels: list[str] = []
    first = 0  # line number of the first series
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        separator = next((s for s in "\t," if s in line), None)  # None: any run of blanks
        label, *cells = line.split(separator)
        if not label.strip():
            raise UserError(f"{path}: line {number}, column 1: the label is missing")
        labels.append(_archive_label(label.strip()))
        rows.append([])
        for column, cell in enumerate(cells, start=2):
            try:
                rows[-1].append(float(cell))
            except ValueError:
                raise UserError(
                    f"{path}: line {number}, column {column}: {cell!r} is not a number"
                ) from None
        first = first or number
        if len(rows[-1]) != len(rows[0]):
            raise UserError(
                f"{path}: line {number} (series {len(rows) - 1} of the {split} split) has "
                f"{len(rows[-1])} values, but line {first} has {len(rows[0])}: all series must "
                "have one length"
            )
    return np.array(rows, np.float64), labels


def _ask_tslearn(
    name: str, cache_dir: str | None
) -> tuple[tuple[np.ndarray, ...] | None, str, Sequence[str]]:
    """(arrays or None, why there are none, the archive's names as far as tslearn knows them)."""
    known: Sequence[str] = ()
    timeout = socket.getdefaulttimeout()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # urlretrieve, which tslearn calls, takes no timeout and would wait on a mute network.
        socket.setdefaulttimeout(NETWORK_TIMEOUT)
        try:
            from tslearn.datasets import UCR_UEA_datasets  # seconds and 668 MB: only when asked for

            archive = UCR_UEA_datasets(root_dir=cache_dir)
            with contextlib.suppress(Exception):  # the list is a download too
                known = archive.list_datasets()
            arrays = archive.load_dataset(name)
            if all(array is not None for array in arrays):
                return arrays, "", known
            reason = _one_line(caught[-1].message) if caught else "the archive's files are broken"
        except Exception as error:  # import, download, unzip, parse: all mean "not from here"
            reason = f"{type(error).__name__}: {_one_line(error)}"
        finally:
            socket.setdefaulttimeout(timeout)
    return None, reason, known


def _not_found(name: str, tried: str, known: Sequence[str]) -> str:
    names = {other.lower(): other for other in (*known, *PAPER_DATASETS)}
    if name in names.values():
        return (
            f"{name} could not be loaded ({tried}): download the UCR archive from {ARCHIVE_URL} "
            f"and pass its folder as data_dir, with {name}/{name}_TRAIN.tsv and _TEST.tsv in it, "
            "or pass a .npz file"
        )
    close = [names[c] for c in difflib.get_close_matches(name.lower(), names, n=3)]
    return (
        f"data set {name!r} could not be found ({tried}): "
        + (f"did you mean {' or '.join(close)}? " if close else "")
        + f"Known are {', '.join(PAPER_DATASETS)} and, where the archive can be reached, the rest "
        "of it; pass a .npz file or data_dir for your own data"
    )


def _one_line(message: object) -> str:
    return " ".join(str(message).split())
