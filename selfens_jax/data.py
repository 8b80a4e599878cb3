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
import unicodedata
import warnings
import zipfile
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from selfens_jax import labels, paths, synthetic, ucr
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
TRANSPOSE = "time comes before channels: is it (series, channels, time)? then X.transpose(0, 2, 1)"

# name: (generator, training series, test series), with the archive's sizes
_GENERATORS = {
    "CBF": (synthetic.cbf, 30, 900),
    "SyntheticControl": (synthetic.synthetic_control, 300, 300),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split of equally long series, checked and complete."""

    name: str  # as `name_of` says: "CBF", or the user's file without its .npz
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


def is_path(dataset: str) -> bool:
    """Whether the words for a data set are the path of a file, not a name of the archive.

    A path ends in .npz (in any case), contains a path separator or begins with ~.
    """
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return (
        dataset.lower().endswith(".npz")
        or dataset.startswith("~")
        or any(separator in dataset for separator in separators)
    )


def name_of(dataset: str) -> str:
    """The data set's name: the words themselves or, of a path, the file's name without its .npz.

    Runs are kept in a folder of this name.

    Raises:
        UserError: no folder can have the name, or it holds a control character.
    """
    name = dataset
    if is_path(dataset):
        name = pathlib.PurePath(dataset).name
        name = name[: -len(".npz")] if name.lower().endswith(".npz") else name
    # tslearn empties the cache folder of the name it downloads, so "" or ".." must never reach it.
    if name in ("", ".", "..") or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        raise UserError(
            f"data set {dataset!r}: a folder of runs cannot be called {name!r}; give a name of the "
            "archive or the path of a .npz file, or rename the file"
        )
    return name


def load(
    dataset: str, data_dir: str | None = None, scaling: str = "none", cache_dir: str | None = None
) -> Dataset:
    """Load a data set by archive name, or the user's own from a .npz file.

    With `data_dir`, a name is looked for there (NAME/NAME_TRAIN.tsv and _TEST.tsv, or .txt) and
    nowhere else. Without, it is asked of tslearn (its cache, else its download); CBF and
    SyntheticControl are generated when tslearn cannot give them.

    Args:
        dataset: a name of the UCR archive, or the path (`is_path`) of a .npz file that holds
            X_train, y_train, X_test, y_test. The Dataset's name is `name_of(dataset)`.
        data_dir: folder of an unpacked UCR archive.
        scaling: "none", or "z_score" (each series and channel to mean 0 and standard deviation 1).
        cache_dir: where tslearn keeps its downloads; its own default if None.

    Raises:
        UserError: the data cannot be found or are not usable; the message says where and why.

    Warns:
        UserWarning: series were generated, `data_dir` was given with a file, which does not need
            it, or as in `from_arrays`.
    """
    _check_scaling(scaling)
    name = name_of(dataset)
    if is_path(dataset):
        found = _load_npz(paths.expand(dataset), name, scaling)
        if data_dir is not None:
            warnings.warn(
                f"data_dir={data_dir!r} is not used: {dataset!r} is the path of a file",
                UserWarning,
                stacklevel=2,
            )
        return found
    if data_dir is not None:
        splits, places = ucr.read(name, paths.expand(data_dir))
        return from_arrays(name, *splits, source="directory", scaling=scaling, places=places)

    arrays, reason, known = _ask_tslearn(name, cache_dir)
    if arrays is not None:
        X_train, y_train, X_test, y_test = arrays
        y_train, y_test = ([labels.archive_spelling(str(v)) for v in y] for y in (y_train, y_test))
        splits = (X_train, y_train, X_test, y_test)
        return from_arrays(name, *splits, source="tslearn", scaling=scaling)

    if name in _GENERATORS:
        warnings.warn(
            f"{name} could not be loaded (tslearn: {reason}): using series from its published "
            "generator instead, which are NOT the archive's data",
            UserWarning,
            stacklevel=2,
        )
        generate, num_train, num_test = _GENERATORS[name]
        splits = (*generate((0, 0), num_train), *generate((0, 1), num_test))
        return from_arrays(name, *splits, source="generated", scaling=scaling)
    raise UserError(_not_found(name, f"tslearn: {reason}", known) + ucr.beside(name))


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
        UserError: anything that is not as above, a value that is missing, masked, not finite or
            overflows float32, a label that is missing, masked or would break a table, labels that
            are an index, or fewer than two classes; the message names the split and, where there
            is one, the series, time step and channel.

    Warns:
        UserWarning: more channels than time steps, labels that look the same, as many classes as
            training series, or a first or last time step that holds the label or an index.
    """
    _check_scaling(scaling)
    place_train, place_test = places or (paths.shown(name), paths.shown(name))
    train, test = _Split(place_train, "training"), _Split(place_test, "test")
    x_train, x_test = train.check_series(X_train), test.check_series(X_test)
    if x_train.shape[1:] != x_test.shape[1:]:
        test.fail(
            f"has (length, channels) {x_test.shape[1:]}, but the training split has "
            f"{x_train.shape[1:]}: both need the same"
        )
    labels_train = train.check_labels(y_train, len(x_train))
    labels_test = test.check_labels(y_test, len(x_test))
    column = "column 1" if source == "directory" else "y"
    if labels.are_index(labels_train, labels_test):
        raise UserError(
            f"{place_train}: {column} counts the {'lines' if column != 'y' else 'series'} from "
            f"{labels_train[0]}, in the test split too: an index column? give the labels instead; "
            "if these are classes, put the series in another order"
        )
    classes = labels.order(set(labels_train))
    if len(classes) < 2:
        train.fail(f"has one class only, {classes[0]!r}: a classifier needs at least two")
    index = {label: i for i, label in enumerate(classes)}
    for i, label in enumerate(labels_test):
        if label not in index:
            remedy = labels.remedy(label, labels_train, column)
            test.fail(f"has label {label!r}, which no training series has: {remedy}", series=i)
    arrays = {
        "x_train": train.to_float32(x_train, scaling),
        "y_train": np.array([index[label] for label in labels_train], np.int32),
        "x_test": test.to_float32(x_test, scaling),
        "y_test": np.array([index[label] for label in labels_test], np.int32),
    }
    # The archive's own sets may have many channels, and tslearn gives them in the right order.
    if x_train.shape[2] > x_train.shape[1] and source != "tslearn":
        train.warn(f"X_train has shape {x_train.shape}, more channels than time steps; {TRANSPOSE}")
    for doubt in labels.doubts(labels_train, x_train[:, :, 0], column):
        train.warn(doubt)
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

    def warn(self, doubt: str) -> None:
        warnings.warn(f"{self.place}: {doubt}", UserWarning, stacklevel=3)

    def check_series(self, X: Any) -> np.ndarray:
        """X as (n, T, C) float64, all finite."""
        self._fail_at_a_mask(X, "values")  # np.asarray would show what the mask hides
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
            order = f"; {TRANSPOSE}" if X.shape[1] < X.shape[-1] and X.ndim == 3 else ""
            self.fail(
                f"has shape {X.shape}, series of length {X.shape[1]}: at least two time steps are "
                f"needed{order}"
            )
        with np.errstate(over="ignore"):  # of a long double; it is then refused as infinite
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

    def _fail_at_a_mask(self, values: Any, what: str) -> None:
        if _is_masked(values):
            single = isinstance(values, np.ndarray) and values.ndim == 0
            rows = () if single else values
            series = next((i for i, row in enumerate(rows) if _is_masked(row)), None)
            self.fail(f"has {what} under a mask: fill it, or drop the series", series)

    def _fail_at_first(self, bad: np.ndarray, x: np.ndarray, problem: str) -> None:
        if bad.any():
            series, time, channel = np.unravel_index(bad.argmax(), bad.shape)
            at = f", time {time}" + (f", channel {channel}" if x.shape[2] > 1 else "")
            self.fail(f"has value {x[series, time, channel]}, which {problem}", int(series), at)


def _is_masked(values: Any) -> bool:
    """Whether a mask hides any value of an array, or of one inside lists."""
    if isinstance(values, np.ma.MaskedArray):
        return np.ma.is_masked(values)
    if isinstance(values, np.ndarray):
        return values.dtype == object and any(map(_is_masked, values.flat))
    return isinstance(values, (list, tuple)) and any(map(_is_masked, values))


def _sha256(arrays: dict[str, np.ndarray], classes: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    header = {"classes": classes, "shapes": [array.shape for array in arrays.values()]}
    digest.update(json.dumps(header).encode())
    for array in arrays.values():
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _load_npz(path: pathlib.Path, name: str, scaling: str) -> Dataset:
    shown = paths.shown(path)
    need = f"a .npz file with {', '.join(NPZ_KEYS)} is needed"
    if os.path.isdir(path):
        raise UserError(
            f"{shown}: is a folder; {need}, or for the archive's text files the name as data set "
            "and their folder's parent as data_dir"
        )
    if not os.path.isfile(path):  # unlike pathlib's, it raises for no path
        longer = f"{path}.npz"
        hint = f"; write {paths.shown(longer)} to read that file" if os.path.isfile(longer) else ""
        raise UserError(f"{shown}: there is no such file; {need}{hint}")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{shown}: not a .npz file; {need}")
    try:
        # Pickled arrays can run code when they are read, so they are never allowed.
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in NPZ_KEYS if key not in file]
            arrays = [file[key] for key in NPZ_KEYS if key in file]
    except Exception as error:  # a user's file can be broken in any way that zip or NumPy knows
        if "Object arrays" in str(error):
            raise UserError(
                f"{shown}: holds pickled Python objects, which are never loaded: save series of "
                "equal length as numbers, and labels as numbers or text (y.astype(str))"
            ) from None
        raise UserError(f"{shown}: cannot be read ({_one_line(error)}); {need}") from None
    if missing:
        raise UserError(f"{shown}: {', '.join(missing)} missing; {need}")
    return from_arrays(name, *arrays, source="file", scaling=scaling, places=(shown, shown))


def _ask_tslearn(
    name: str, cache_dir: str | None
) -> tuple[tuple[np.ndarray, ...] | None, str, Sequence[str]]:
    """(arrays or None, why there are none, the archive's names as far as tslearn knows them)."""
    known: Sequence[str] = ()
    if not re.fullmatch(r"\w[\w.-]*", name):
        return None, "no set of the archive is called so", known
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
