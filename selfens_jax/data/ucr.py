"""Data sets of two text files, NAME_TRAIN and NAME_TEST, as the UCR and UEA archives hold them."""

import dataclasses
import difflib
import os
import pathlib
import re
from collections.abc import Iterator

import numpy as np

from selfens_jax import paths
from selfens_jax.data import names, text_files, ts_files
from selfens_jax.data.names import HALF, PACKED
from selfens_jax.data.names import TEXT_ENDINGS as ENDINGS
from selfens_jax.errors import UserError
from selfens_jax.preparation import Preparation


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """What the two files of a set hold, or the one file of a set without a test split."""

    x_train: np.ndarray  # (n, T) or (n, T, C) float64
    y_train: list[str]  # n
    x_test: np.ndarray | None
    y_test: list[str] | None
    places: tuple[str, str]  # what messages call the two
    column: str  # and where they hold the labels


def read(name: str, folder: pathlib.Path, how: Preparation) -> Pair:
    """A set of the archive from the folder that holds its own, NAME/NAME_TRAIN and _TEST.

    Raises:
        UserError: the files are not there, which says what is, or a line is not certainly a series.
    """
    own = folder / name
    pair = paths.shown(f"{own / name}_TRAIN.tsv and {name}_TEST.tsv")
    if not os.path.isdir(folder):
        state = "not a folder" if os.path.exists(folder) else "no such folder"
        raise UserError(
            f"{paths.shown(folder)}: {state}; data_dir must hold {name!r}'s files, {pair}"
        )
    pairs = [
        tuple(own / f"{name}_{split}{ending}" for split in ("TRAIN", "TEST")) for ending in ENDINGS
    ]
    for train, test in pairs:
        if os.path.exists(train) and os.path.exists(test):
            return _read_pair(train, test, how)
    for train, test in pairs:
        if os.path.exists(train) or os.path.exists(test):
            raise UserError(
                f"{paths.shown(test if os.path.exists(train) else train)}: no such file; a data "
                f"set needs both _TRAIN and _TEST, but {_listing(own)}"
            )
    hints = [f"; {hint}" for hint in _directory_hints(name, folder)]
    others = ", ".join(ENDINGS[1:-1]) + f" or {ENDINGS[-1]}"
    raise UserError(
        f"data set {name!r} is not in data_dir: looked for {pair}, or {others}, but "
        f"{_listing(own if os.path.isdir(own) else folder)}{''.join(hints)}{beside(name)}"
    )


def read_path(path: pathlib.Path, how: Preparation) -> Pair:
    """A set from one of its two files, from the folder that holds both, or from a file alone.

    A file whose name ends neither with _TRAIN nor with _TEST is a set without a test split. Of
    several sets in a folder, that of the folder's name is meant, as in the archives.

    Raises:
        UserError: the files are not there or cannot be told, or a line is not certainly a series.
    """
    shown = paths.shown(path)
    if os.path.isdir(path):
        path = _half_in(path)
    elif not os.path.isfile(path):
        raise UserError(f"{shown}: {paths.absence(path)}")
    if path.suffix.lower() in PACKED:
        raise UserError(f"{shown}: compressed files are not read: unpack it first")
    half = HALF.fullmatch(path.name)
    if half is None:
        x, y = _read_labelled(path, "training", how)
        return Pair(x, y, None, None, (shown, shown), _column(path))
    train, test = (path.with_name(name) for name in _both(half))
    for one, other in ((train, test), (test, train)):
        if not os.path.isfile(one):
            raise UserError(
                f"{paths.shown(one)}: no such file; a data set needs both this and {other.name!r}; "
                f"to train without a test split, call the file {half[1] + half[3]!r}"
            )
    return _read_pair(train, test, how)


def _both(half: re.Match[str]) -> tuple[str, str]:
    """The names of a set's files from one of them: _TEST beside _TRAIN, _test beside _train."""
    name, split, ending = half.groups()
    spell = str.upper if split.isupper() else str.lower if split.islower() else str.title
    return f"{name}_{spell('train')}{ending}", f"{name}_{spell('test')}{ending}"


def _half_in(folder: pathlib.Path) -> pathlib.Path:
    """The training file of the one set in a folder."""
    entries = _entries(folder)
    pairs = {_both(half) for half in map(HALF.fullmatch, entries) if half}
    whole = sorted(train for train, test in pairs if {train, test} <= set(entries))
    own = os.path.basename(os.path.abspath(folder))
    whole = [train for train in whole if names.name_of(train) == own] or whole
    shown = paths.shown(folder)
    if len(whole) > 1:
        raise UserError(
            f"{shown}: holds several data sets, {', '.join(map(repr, whole[:5]))}"
            f"{', ...' * (len(whole) > 5)}: give one of these files"
        )
    if not whole:
        raise UserError(
            f"{shown}: is a folder without a data set, files NAME_TRAIN and NAME_TEST that end "
            f"with {', '.join(ENDINGS)}: {_listing(folder)}; a folder of such folders is a data_dir"
        )
    return folder / whole[0]


def _read_pair(train: pathlib.Path, test: pathlib.Path, how: Preparation) -> Pair:
    x_train, y_train = _read_labelled(train, "training", how)
    x_test, y_test = _read_labelled(test, "test", how)
    if train.suffix.lower() != ".ts":
        _refuse_one_header(train, test, (x_train, y_train, x_test, y_test))
    places = (paths.shown(train), paths.shown(test))
    return Pair(x_train, y_train, x_test, y_test, places, _column(train))


def _read_labelled(
    path: pathlib.Path, split: str, how: Preparation
) -> tuple[np.ndarray, list[str]]:
    if path.suffix.lower() != ".ts":
        return text_files.read(path, split, how)
    x, y = ts_files.read(path, split, how)
    if y is None:
        raise UserError(
            f"{paths.shown(path)}: @classLabel says false: the series of the {split} split need "
            "labels"
        )
    return x, y


def _column(path: pathlib.Path) -> str:
    return "the last field" if path.suffix.lower() == ".ts" else "column 1"


def _refuse_one_header(train: pathlib.Path, test: pathlib.Path, splits: tuple) -> None:
    """The first line of both files, of whatever numbers, is a header if it is the same.

    But not where one file is a copy of the other.
    """
    x_train, y_train, x_test, y_test = splits
    same_first = y_train[:1] == y_test[:1] and _same(x_train[:1], x_test[:1])
    if same_first and not (y_train == y_test and _same(x_train, x_test)):
        raise UserError(
            f"{paths.shown(train)} and {paths.shown(test)} begin with the same line: a header? "
            "remove it from both; if it is a series, one split should not have it"
        )


def _same(x: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(x, other, equal_nan=True)


def _directory_hints(name: str, folder: pathlib.Path) -> Iterator[str]:
    """Why the files are perhaps not where they are looked for."""
    own, entries = folder / name, _entries(folder)
    files = _entries(own) if os.path.isdir(own) else []
    half = re.compile(rf"{re.escape(name)}_(train|test)(\..*)", re.IGNORECASE)
    for match in filter(None, map(half.fullmatch, files or entries)):
        right = f"{name}_{match[1].upper()}{match[2]}"
        if match[2] not in ENDINGS:
            yield f"the ending {match[2]!r} is not read"
        elif match[0] != right:
            yield f"{match[0]!r} is not spelled {right!r}"
        if not files:
            parent, base = os.path.split(os.path.abspath(folder))
            remedy = (
                f"give its parent {parent}"
                if base.lower() == name.lower()
                else f"move the files to {own}"
            )
            yield f"data_dir is one level too deep: {paths.shown(remedy)}"
        break  # what is wrong with one half is wrong with the other
    outer = next((e for e in (name, *entries) if os.path.isdir(folder / e / name)), None)
    if outer is not None:
        yield f"data_dir is one level too high: give {paths.shown(folder / outer)}"
    folders = {entry.lower(): entry for entry in entries if os.path.isdir(folder / entry)}
    close = difflib.get_close_matches(name.lower(), folders, n=3)
    if close and not os.path.isdir(own):
        yield f"did you mean {' or '.join(repr(folders[c]) for c in close)}?"


def _entries(folder: pathlib.Path) -> list[str]:
    try:
        return sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))
    except OSError as error:
        raise UserError(f"{paths.shown(folder)}: cannot be read ({error.strerror})") from None


def _listing(folder: pathlib.Path) -> str:
    entries = _entries(folder)
    named = ", ".join(map(repr, entries[:5])) + ", ..." * (len(entries) > 5)
    return f"{paths.shown(folder)} holds {named or 'nothing'}"


def beside(name: str) -> str:
    """A hint at data of that name in the current folder, which a bare name does not read."""
    files = (name, f"{name}.npz", *(f"{name}_TRAIN{ending}" for ending in ENDINGS))
    for file in files:
        if os.path.isfile(file):
            return f"; write {paths.shown(os.path.join(os.curdir, file))} to read that file"
    return ""
