"""The .ts format of the UCR and UEA archives, as sktime and aeon write it: read strictly.

A file begins with comments (#, %) and a header, `@key value`; after `@data` each line is a series:
its channels, separated by colons, each of values separated by commas; then its label if the header
says `@classLabel true` and which labels there are. Timestamps and regression targets are refused.
"""

import dataclasses
import pathlib

import numpy as np

from selfens_jax import paths
from selfens_jax.data import labels
from selfens_jax.data.text_files import read_lines
from selfens_jax.errors import UserError
from selfens_jax.preparation import ONE_LENGTH, Preparation

UNLABELLED = "?"
_FLAGS = ("timestamps", "missing", "univariate", "equallength", "targetlabel")
_NUMBERS = ("dimensions", "serieslength")
_OTHERS = ("problemname", "classlabel")
_SPELT = {"dimension": "dimensions"}  # sktime writes both


@dataclasses.dataclass(frozen=True)
class _Header:
    flags: dict[str, bool]
    numbers: dict[str, int]
    classes: tuple[str, ...] | None  # None: the lines end without a label
    end: int  # the number of the line @data


def read(path: pathlib.Path, split: str, how: Preparation) -> tuple[np.ndarray, list[str] | None]:
    """The series and labels of a .ts file: (n, T, C) float64 and n texts, None without labels.

    NaN stands for what is missing, and ends series that are shorter, where `how` allows it. The
    label of a series without one is "?".

    Args:
        path: the file.
        split: which split it is of, for error messages; "" for none.
        how: what may be unequal or missing.

    Raises:
        UserError: the file is not certainly of this form, or contradicts its header; the message
            names the line.
    """
    shown = paths.shown(path)
    lines = read_lines(path)
    if not any(line.strip() for line in lines):
        raise UserError(f"{shown}: the file is empty")
    header = _read_header(shown, lines)
    rows: list[np.ndarray] = []  # (C, T_i) each
    names: list[str] = []
    for number, line in enumerate(lines[header.end :], start=header.end + 1):
        if not line.strip():
            continue
        at = f"{shown}: line {number} (series {len(rows)}{f' of the {split} split' * bool(split)})"
        fields = line.strip().split(":")
        if header.classes is not None:
            names.append(_read_label(fields.pop(), f"{shown}: line {number}", header.classes))
        rows.append(_read_channels(fields, f"{shown}: line {number}", how))
        _check_shape(rows[-1], rows[0], at, header, how)
    if not rows:
        raise UserError(f"{shown}: there is no series after @data")
    x = np.full((len(rows), max(row.shape[1] for row in rows), len(rows[0])), np.nan)
    for to, row in zip(x, rows, strict=True):
        to[: row.shape[1]] = row.T
    return x, names if header.classes is not None else None


def _read_header(shown: str, lines: list[str]) -> _Header:
    given: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        words, at = line.split(), f"{shown}: line {number}"
        if not words or words[0][0] in "#%":
            continue
        if words[0][0] != "@":
            raise UserError(
                f"{at}: {labels.quoted(words[0])} comes before @data: a .ts file begins with "
                "comments (#) and @ lines; another format has another ending"
            )
        key = words[0][1:].lower()
        key = _SPELT.get(key, key)
        if key == "data":
            if len(words) > 1:
                raise UserError(f"{at}: something follows @data: series begin on the next line")
            return _check_header(shown, given, number)
        if key not in (*_FLAGS, *_NUMBERS, *_OTHERS):
            raise UserError(f"{at}: {labels.quoted(words[0])} is not known: correct or remove it")
        if given.get(key, words[1:]) != words[1:] and key != "problemname":
            raise UserError(f"{at}: {words[0]} is given before, and says something else")
        given[key] = words[1:]
    raise UserError(f"{shown}: there is no line @data, after which the series of a .ts file begin")


def _check_header(shown: str, given: dict[str, list[str]], end: int) -> _Header:
    def fail(key: str, needs: str) -> UserError:
        written = " ".join(given[key]) or "nothing"
        return UserError(f"{shown}: @{key} says {labels.quoted(written)}: {needs}")

    flags, numbers = {}, {}
    for key in (*_FLAGS, *_NUMBERS):
        if key not in given:
            continue
        text = " ".join(given[key]).lower()
        if key in _FLAGS:
            if text not in ("true", "false"):
                raise fail(key, "it must be true or false")
            flags[key] = text == "true"
        else:
            if not (text.isascii() and text.isdigit()):
                raise fail(key, "it must be a whole number")
            numbers[key] = int(text)
    if flags.get("timestamps"):
        raise fail("timestamps", "times are not read; write the values alone, at equal steps")
    if flags.get("targetlabel"):
        raise fail("targetlabel", "a target of regression is no class")
    if "classlabel" not in given:
        if "targetlabel" not in given:
            raise UserError(f"{shown}: there is no @classLabel, which says whether lines end so")
        given = {**given, "classlabel": ["false"]}
    word, *classes = given["classlabel"] or [""]
    if word.lower() not in ("true", "false") or (word.lower() == "true") != bool(classes):
        raise fail("classlabel", "it must be false, or true and the labels there are")
    if flags.get("univariate") and numbers.get("dimensions", 1) > 1:
        raise fail("dimensions", "but @univariate true")
    return _Header(flags, numbers, tuple(classes) or None, end)


def _read_label(text: str, at: str, classes: tuple[str, ...]) -> str:
    label = text.strip()
    looks = {labels.look(known) for known in classes}
    if label != UNLABELLED and labels.look(label) not in looks:
        raise UserError(
            f"{at}: ends with {labels.quoted(label)}, which is none of the labels of @classLabel: "
            f"{', '.join(classes[:10])}{', ...' * (len(classes) > 10)}"
        )
    return labels.archive_spelling(label)


def _read_channels(fields: list[str], at: str, how: Preparation) -> np.ndarray:
    """The channels of a line, (C, T)."""
    if not fields:
        raise UserError(f"{at}: has no values before the label, or no label after them")
    if fields[0].lstrip().startswith("("):
        raise UserError(f"{at}: has times in parentheses, which are not read: write values alone")
    channels = []
    for channel, field in enumerate(fields):
        of = f", channel {channel}" if len(fields) > 1 else ""
        channels.append(labels.read_values(field.split(","), f"{at}{of}, value", how=how))
        if len(channels[-1]) != len(channels[0]):
            raise UserError(
                f"{at}: channel {channel} has {len(channels[-1])} values, channel 0 has "
                f"{len(channels[0])}: the channels of a series must have one length"
            )
    return np.array(channels)


def _check_shape(
    row: np.ndarray, first: np.ndarray, at: str, header: _Header, how: Preparation
) -> None:
    """Refuses a series (C, T) that the header or the first series contradicts."""
    channels, length = row.shape
    if channels != header.numbers.get("dimensions", channels):
        raise UserError(
            f"{at} has {channels} channels, but @dimensions says {header.numbers['dimensions']}"
        )
    if channels > 1 and header.flags.get("univariate"):
        raise UserError(f"{at} has {channels} channels, but @univariate says true")
    if channels != len(first):
        raise UserError(f"{at} has {channels} channels, but series 0 has {len(first)}")
    said = header.numbers.get("serieslength", length)
    equal = header.flags.get("equallength")
    if length != said and equal is not False:
        raise UserError(f"{at} has {length} time steps, but @seriesLength says {said}")
    if length != first.shape[1] and (equal or how.unequal == "refuse"):
        remedy = "@equalLength says true" if equal else ONE_LENGTH
        raise UserError(
            f"{at} has {length} time steps, but series 0 has {first.shape[1]}: {remedy}"
        )
