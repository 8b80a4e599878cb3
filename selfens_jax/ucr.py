"""The UCR archive's own text files: a folder a set, one series a line, its label first."""

import difflib
import os
import pathlib
import re
from collections.abc import Iterator

import numpy as np

from selfens_jax import labels, paths
from selfens_jax.errors import UserError

ENDINGS = (".tsv", ".txt")


def read(
    name: str, folder: pathlib.Path
) -> tuple[tuple[np.ndarray, list[str], np.ndarray, list[str]], tuple[str, str]]:
    """A set of the archive from its folder, as X_train, y_train, X_test, y_test; and its files.

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
    for ending in ENDINGS:
        train, test = (own / f"{name}_{split}{ending}" for split in ("TRAIN", "TEST"))
        there = [os.path.exists(path) for path in (train, test)]
        if all(there):
            splits = (*_read_file(train, "training"), *_read_file(test, "test"))
            _refuse_one_header(train, test, splits)
            return splits, (paths.shown(train), paths.shown(test))
        if any(there):
            raise UserError(
                f"{paths.shown(test if there[0] else train)}: no such file; a data set needs both "
                f"_TRAIN and _TEST, but {_listing(own)}"
            )
    hints = [f"; {hint}" for hint in _directory_hints(name, folder)]
    raise UserError(
        f"data set {name!r} is not in data_dir: looked for {pair}, or .txt, but "
        f"{_listing(own if os.path.isdir(own) else folder)}{''.join(hints)}{beside(name)}"
    )


def _refuse_one_header(train: pathlib.Path, test: pathlib.Path, splits: tuple) -> None:
    """The first line of both files, of whatever numbers, is a header if it is the same.

    But not where one file is a copy of the other.
    """
    x_train, y_train, x_test, y_test = splits
    same_first = y_train[:1] == y_test[:1] and np.array_equal(x_train[:1], x_test[:1])
    if same_first and not (y_train == y_test and np.array_equal(x_train, x_test)):
        raise UserError(
            f"{paths.shown(train)} and {paths.shown(test)} begin with the same line: a header? "
            "remove it from both; if it is a series, one split should not have it"
        )


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


def _read_file(path: pathlib.Path, split: str) -> tuple[np.ndarray, list[str]]:
    """A UCR text file: one series a line, its label first."""
    shown = paths.shown(path)
    try:
        # Not splitlines(), which also breaks lines where a file does not.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{shown}: cannot be read as text ({' '.join(str(error).split())})"
        ) from None
    rows: list[list[float]] = []
    names: list[str] = []
    numbers: list[int] = []  # which line each series is
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, row = labels.read_line(line, f"{shown}: line {number}", first=not rows)
        names.append(name)
        rows.append(row)
        numbers.append(number)
        if len(row) != len(rows[0]):
            raise UserError(
                f"{shown}: line {number} (series {len(rows) - 1} of the {split} split) has "
                f"{len(row)} values, but line {numbers[0]} has {len(rows[0])}: all series must "
                "have one length"
            )
    x = np.array(rows, np.float64)
    header = labels.find_header(names, x) if len(x) > 1 else None
    if header is not None:
        series, why = header
        other = "; if it is a series, move it below another one" if series == 0 else ""
        raise UserError(
            f"{shown}: line {numbers[series]} looks like a header, {why}: remove it{other}"
        )
    return x, names


def beside(name: str) -> str:
    """A hint at data of that name in the current folder, which a bare name does not read."""
    for file in (name, f"{name}.npz"):
        if os.path.isfile(file):
            return f"; write {paths.shown(os.path.join(os.curdir, file))} to read that file"
    return ""
