"""New series for a run that is trained: of its length and channels, with labels or without."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selfens_jax import paths, preparation
from selfens_jax.data import labels, names, npz_files, text_files, ts_files
from selfens_jax.data.names import PACKED, TEXT_ENDINGS
from selfens_jax.data.splits import Split, check_scaling
from selfens_jax.errors import UserError
from selfens_jax.preparation import Preparation

LINES = (".csv", ".tsv", ".txt")  # a series a line
NEED = "new series come in a .npz file with X (and y, if there are labels), or in a .ts, .csv, "
NEED += ".tsv or .txt file"


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """Series that a run can certify."""

    x: np.ndarray  # (N, T, C) float32
    labels: np.ndarray | None  # (N,) int32 indices of the run's classes; None if there are none
    name: str
    sha256: str  # of the series and labels: changes if any of them changes
    row_sha256: tuple[str, ...]  # N; `series_digest` of each
    preparation: str  # what was done to unequal lengths and gaps; empty if nothing was


def series_digest(x_row: np.ndarray) -> str:
    """The sha256 of one series (T, C), in hex: of its shape and its values in float32.

    The same on every machine. Files show the first 16 digits.
    """
    if np.ndim(x_row) != 2:
        raise ValueError(f"one series (time, channels) is needed, not shape {np.shape(x_row)}")
    digest = hashlib.sha256(json.dumps(np.shape(x_row)).encode())
    digest.update(np.asarray(x_row).astype("<f4").tobytes())
    return digest.hexdigest()


def load_series(
    path: str | os.PathLike[str],
    *,
    length: int,
    num_channels: int,
    classes: Sequence[str],
    scaling: str,
    units: Sequence[float] = (),
    channels_first: bool = False,
    unequal: str = "refuse",
    missing: str = "refuse",
    labelled: bool | None = None,
    name: str | None = None,
) -> Series:
    """Series to certify, which need no labels.

    A .npz file holds X, or X_test; and y, or y_test, if there are labels. A .ts file says itself
    whether there are labels; "?" for every series means that there are none. A line of a .csv, .tsv
    or .txt file is a series of one channel, with its label before it or without: see `labelled`.

    Args:
        path: the file.
        length: T of the run.
        num_channels: C of the run.
        classes: the run's classes, as its `Dataset` has them.
        scaling: the run's.
        units: the run's, (C,), of scaling "channel".
        channels_first: X in a .npz file is (n, channels, time).
        unequal: as `Preparation` says, but for the length of the run.
        missing: as `Preparation` says.
        labelled: of text files, whether lines begin with a label. If None, lines of `length` fields
            do not, lines of one field more do, and others are refused.
        name: what to call the series; as `name_of` says if None.

    Raises:
        UserError: the file is none of these, its series do not fit the run, or a label is none of
            the run's classes; the message names the file and the place.
    """
    check_scaling(scaling)
    file = paths.expand(path)
    shown = paths.shown(file)
    how = Preparation(unequal, missing)
    if os.path.isdir(file):
        raise UserError(f"{shown}: is a folder; {NEED}")
    ending = file.suffix.lower()
    if ending in PACKED:
        raise UserError(f"{shown}: compressed files are not read: unpack it first")
    if ending in TEXT_ENDINGS and channels_first:
        raise UserError(f"{shown}: channels_first is for .npz files: leave it out")
    if labelled is not None and ending not in LINES:
        raise UserError(f"{shown}: labelled is for .csv, .tsv and .txt files: leave it out")
    X, y = _read(file, length, num_channels, classes, how, labelled)

    split = Split(shown, None, channels_first)
    part = split.prepare(X, how, length)
    _check_size(split, part.x.shape[1:], (length, num_channels), labelled)
    indices = None if y is None else _indices(split, y, classes, len(part.x))
    x = split.to_float32(part, scaling, units)
    rows = tuple(map(series_digest, x))
    named = None if indices is None else [classes[index] for index in indices]
    content = json.dumps({"series": rows, "labels": named})
    name = names.name_of(os.fspath(path)) if name is None else name
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    return Series(x, indices, name, sha256, rows, preparation.sentence(how, [part], scaling))


def check_new_series(
    X: Any, described: Mapping[str, Any], channels_first: bool = False
) -> np.ndarray:
    """Series in memory to certify, (n, T, C) float32, prepared and scaled as a run's data were.

    Args:
        X: (n, T) or (n, T, C); (n, C, T) with channels_first.
        described: the run's data, as `data.describe` has them.
        channels_first: how X comes.

    Raises:
        UserError: they are no series, or do not fit.
    """
    split = Split("X", None, channels_first)
    how = Preparation(described.get("unequal", "refuse"), described.get("missing", "refuse"))
    part = split.prepare(X, how, described["length"])
    _check_size(split, part.x.shape[1:], (described["length"], described["num_channels"]))
    return split.to_float32(part, described["scaling"], described.get("units", ()))


def _check_size(
    split: Split, size: tuple[int, ...], needed: tuple[int, int], labelled: bool | None = None
) -> None:
    """Refuses series of another (T, C) than the run needs.

    labelled: what was said of the lines of a text file.
    """
    if size == needed:
        return
    remedy = ""
    if size == needed[::-1]:
        remedy = f"; {split.other_order}"
    elif labelled is not None and size[0] == needed[0] + (-1 if labelled else 1):
        first = "is" if labelled else "is not"
        remedy = f"; it was said that the first field of a line {first} a label: leave that out"
    elif size[1] == needed[1]:
        remedy = " (unequal=pad, cut or resample makes them so)"
    has, needs = (
        f"{length} time steps and {channels} channel{'s' * (channels != 1)}"
        for length, channels in (size, needed)
    )
    raise UserError(f"{split.place}: has series of {has}; the run needs {needs}{remedy}")


def _read(
    file: pathlib.Path,
    length: int,
    num_channels: int,
    classes: Sequence[str],
    how: Preparation,
    labelled: bool | None,
) -> tuple[Any, Any]:
    """The series and labels of the file, None if there are no labels."""
    shown = paths.shown(file)
    ending = file.suffix.lower()
    if ending in TEXT_ENDINGS and not os.path.isfile(file):
        raise UserError(f"{shown}: {paths.absence(file)}; {NEED}")
    if ending == ".ts":
        x, y = ts_files.read(file, "", how)
        unknown = sum(label == ts_files.UNLABELLED for label in y or ())
        if y is not None and 0 < unknown < len(y):
            series = y.index(ts_files.UNLABELLED)
            raise UserError(
                f"{shown}: series {series} has no label ({ts_files.UNLABELLED!r}), but others "
                "have: label all of them or none"
            )
        return x, None if unknown else y
    if ending in LINES:
        if num_channels > 1:
            raise UserError(
                f"{shown}: a {ending} file holds series of one channel; the run needs "
                f"{num_channels}: give a .ts or .npz file"
            )
        return text_files.read_new(file, length, classes, how, labelled)
    return _read_npz(file)


def _read_npz(file: pathlib.Path) -> tuple[Any, Any]:
    shown = paths.shown(file)
    arrays = npz_files.read(file, ("X", "y", "X_test", "y_test"), NEED)
    if ("X" in arrays) == ("X_test" in arrays):
        state = "holds both X and X_test" if "X" in arrays else "X missing"
        raise UserError(f"{shown}: {state}; {NEED}")
    (x, y), (_, other) = (("X", "y"), ("X_test", "y_test"))[:: 1 if "X" in arrays else -1]
    if other in arrays and y not in arrays:
        raise UserError(f"{shown}: holds {x} and {other}: call the labels {y}")
    return arrays[x], arrays.get(y)


def _indices(split: Split, y: Any, classes: Sequence[str], num_series: int) -> np.ndarray:
    """Which class each label is, (N,) int32."""
    indices = []
    for i, label in enumerate(split.check_labels(y, num_series)):
        index = labels.find(label, classes)
        if index is None:
            alike = [other for other in classes if labels.look(other) == labels.look(label)]
            named = ", ".join(map(labels.quoted, classes[:10])) + ", ..." * (len(classes) > 10)
            remedy = f"is it {alike[0]!r}? then write it so" if alike else f"they are {named}"
            split.fail(
                f"has label {labels.quoted(label)}, which is none of the run's classes: {remedy}",
                series=i,
            )
        indices.append(index)
    return np.array(indices, np.int32)
