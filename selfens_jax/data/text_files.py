"""Text files of the UCR archive's kind: one series a line, its label first. .tsv, .txt and .csv.

Files of new series may do without labels: the length of the run's series decides.
"""

import pathlib
import re
import warnings
from collections.abc import Sequence

import numpy as np

from selfens_jax import paths
from selfens_jax.data import labels
from selfens_jax.errors import UserError
from selfens_jax.preparation import ONE_LENGTH, Preparation

_WORD = re.compile(r"\s*[\"']?[^\W\d]")  # how the name of a column begins


def read_lines(path: pathlib.Path) -> list[str]:
    """The lines of a text file in UTF-8, whatever system ended them.

    Raises:
        UserError: it cannot be read, or is no such text.
    """
    shown = paths.shown(path)
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        if packed:
            raise UserError(f"{shown}: is compressed (gzip): unpack it first")
        # Not splitlines(), which also breaks lines where a file does not.
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{shown}: cannot be read as text ({' '.join(str(error).split())})"
        ) from None


def read(path: pathlib.Path, split: str, how: Preparation) -> tuple[np.ndarray, list[str]]:
    """The series and labels of a file: (n, T) float64 and n texts.

    NaN stands for what is missing, and ends series that are shorter, where `how` allows it.

    Args:
        path: one series a line, its label first.
        split: which it is of, for error messages.
        how: what may be unequal or missing.

    Raises:
        UserError: a line is not certainly of this form; the message names it.

    Warns:
        UserWarning: the first line of a .csv file named the columns, and was skipped.
    """
    return _read_rows(path, _series_lines(path), f" of the {split} split", how, labelled=True)


def read_new(
    path: pathlib.Path,
    length: int,
    classes: Sequence[str],
    how: Preparation,
    labelled: bool | None = None,
) -> tuple[np.ndarray, list[str] | None]:
    """The series of a file that are to be certified, and their labels if it holds any.

    Args:
        path: one series a line, with or without its label before it.
        length: T of the run. If `labelled` is None, lines of T fields are series without labels,
            lines of T + 1 fields begin with one, and others are refused.
        classes: the run's labels. Lines of T fields that all begin with one of them are refused,
            since they may well be labels and series that are too short.
        how: what may be unequal or missing.
        labelled: whether the first field is a label.

    Raises:
        UserError: a line is not certainly of this form; the message names it.
    """
    lines = _series_lines(path)
    if not lines:
        raise UserError(f"{paths.shown(path)}: the file is empty: it needs at least one series")
    if labelled is None:
        labelled = _begins_with_labels(path, lines, length, classes, how)
    x, names = _read_rows(path, lines, "", how, labelled)
    return x, names if labelled else None


def _series_lines(path: pathlib.Path) -> list[tuple[int, str]]:
    """The lines that hold something, each with its number; without the names of a .csv's columns.

    Only a .csv may have these, as programs write them. They are skipped if nothing else is
    possible: each begins with a letter and stands for no value, and there is one for each field.
    """
    lines = [(n, line) for n, line in enumerate(read_lines(path), start=1) if line.strip()]
    if path.suffix.lower() != ".csv" or len(lines) < 2:
        return lines
    names, fields = (labels.split(line) for _, line in lines[:2])
    words = all(_WORD.match(name) and not labels.is_missing(name) for name in names)
    if not words or len(names) != len(fields) or len(names) < 2:
        return lines
    warnings.warn(
        f"{paths.shown(path)}: line {lines[0][0]} names columns and was skipped, from "
        f"{labels.quoted(names[0].strip())} to {labels.quoted(names[-1].strip())}",
        UserWarning,
        stacklevel=4,
    )
    return lines[1:]


def _begins_with_labels(
    path: pathlib.Path,
    lines: list[tuple[int, str]],
    length: int,
    classes: Sequence[str],
    how: Preparation,
) -> bool:
    """Whether the first field of each line is a label, as the number of fields tells."""
    shown = paths.shown(path)
    rows = [labels.split(line) for _, line in lines]
    widths = [len(row) for row in rows]
    if how.unequal != "refuse":
        # Perhaps each ends with a separator, and has a field less.
        dubious = all(not row[-1].strip() for row in rows)
        if dubious or len(set(widths)) > 1:
            raise UserError(
                f"{shown}: lines of {min(widths) - dubious} to {max(widths)} fields: their number "
                "does not tell whether the first is a label: give labelled=true or false, or a .ts "
                "or .npz file"
            )
    if widths[0] == length + 1:
        return True
    if widths[0] != length:
        raise UserError(
            f"{shown}: line {lines[0][0]} has {widths[0]} fields; the run needs series of {length} "
            f"values, with or without a label before them{_remedy(how)}"
        )
    if all(labels.find(row[0], classes) is not None for row in rows):
        raise UserError(
            f"{shown}: every line has {length} fields, as a series of the run without a label, and "
            f"begins with one of the run's classes, such as {labels.quoted(rows[0][0].strip())}: "
            "labels, before series that are too short? if not, give labelled=false, or a .ts or "
            ".npz file"
        )
    return False


def _remedy(how: Preparation) -> str:
    if how.unequal == "refuse":
        return f": {ONE_LENGTH}, in a .ts or .npz file or with labelled=true or false"
    return ": give labelled=true or false, or a .ts or .npz file"


def _read_rows(
    path: pathlib.Path, lines: list[tuple[int, str]], of: str, how: Preparation, labelled: bool
) -> tuple[np.ndarray, list[str]]:
    shown = paths.shown(path)
    rows: list[list[float]] = []
    names: list[str] = []
    for number, line in lines:
        at = f"{shown}: line {number}"
        if labelled:
            name, row = labels.read_line(line, at, first=not rows, how=how)
        else:
            header = "" if rows else ": a header? then remove the line"
            name, row = (
                "0",
                labels.read_values(labels.split(line), f"{at}, column", header=header, how=how),
            )
        names.append(name)
        rows.append(row)
        if how.unequal == "refuse" and len(row) != len(rows[0]):
            raise UserError(
                f"{at} (series {len(rows) - 1}{of}) has {len(row)} values, but line "
                f"{lines[0][0]} has {len(rows[0])}: all series must have one length"
            )
    x = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for to, row in zip(x, rows, strict=True):
        to[: len(row)] = row
    header = labels.find_header(names, x) if len(x) > 1 else None
    if header is not None:
        series, why = header
        other = "; if it is a series, move it below another one" if series == 0 else ""
        raise UserError(
            f"{shown}: line {lines[series][0]} looks like a header, {why}: remove it{other}"
        )
    return x, names
