"""Labels: what one may be, which look the same, their order, and lines of text that begin so."""

import collections
import contextlib
import decimal
import itertools
import math
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from selfens_jax.errors import UserError
from selfens_jax.preparation import FILL_IT, ONE_LENGTH, Preparation

REFUSE = Preparation()
SEPARATORS = "the separators that are read are tab, comma and blanks"

# What tables write where there is no value, pandas' own list included; compared without case.
_MISSING = re.compile(
    r"(nan?|n/a|n\.a\.?|\.|#na|#n/a( n/a)?|none|null|nat|<na>|\?|-?1\.#(ind|qnan)"
    r"|[-–—]+|\*+|missing|undefined|unlabell?ed)?"
)
_PLAIN = re.compile(r"[0-9eE+. -]*")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


def is_number(text: str) -> bool:
    """Whether the text is a decimal number as every program reads it.

    Python's float also takes 1_000, nan and the digits of other scripts.
    """
    return _NUMBER.fullmatch(text.strip()) is not None


def is_missing(text: str) -> bool:
    """Whether the text stands for no value, or for one that is not finite."""
    text = text.strip().casefold()
    try:
        return _MISSING.fullmatch(text) is not None or not math.isfinite(float(text))
    except ValueError:
        return False


def problem(label: str) -> str | None:
    """Why the text cannot be a label, as the end of "label ..., which"; None if it can."""
    if is_missing(label):
        return "means a missing label: drop the series or, if it is a class, give it another name"
    # A lone surrogate cannot be written to a file; the others break the lines of a table.
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in label):
        return (
            "holds a tab, a line break or a control character and would break tables of results: "
            "give the class another name"
        )
    if label.startswith('"'):
        return "begins with a double quote and would break tables of results: remove the quotes"
    return None


def archive_spelling(text: str) -> str:
    """One spelling for the archive's class numbers, which its formats write as 1, 1.0 or 1e+00."""
    if not is_number(text):
        return text
    number = float(text)
    # Above 2^53 a float cannot tell neighbouring whole numbers apart.
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else text


def look(label: str) -> str | decimal.Decimal:
    """What a reader takes a label for: its number, or its letters without case and outer blanks."""
    if is_number(label):
        return decimal.Decimal(label.strip())
    composed = unicodedata.normalize("NFKC", label.casefold())
    visible = (c for c in composed if unicodedata.category(c) != "Cf")  # Cf: of no width
    text = " ".join("".join(visible).split())
    digits = "".join(str(unicodedata.decimal(character, character)) for character in text)
    return decimal.Decimal(digits) if is_number(digits) else digits


def are_index(train: Sequence[str], test: Sequence[str]) -> bool:
    """Whether the labels of both splits count the series, as an index column does."""
    # Fewer numbers that are in order may well be classes.
    return len(train) >= 3 and len(test) >= 2 and _count_up(train) and _count_up(test)


def _count_up(labels: Sequence[str]) -> bool:
    if not all(is_number(label) for label in labels):
        return False
    numbers = [float(label) for label in labels]
    return numbers[0].is_integer() and all(b - a == 1 for a, b in itertools.pairwise(numbers))


def are_measured(train: Sequence[str]) -> bool:
    """Whether the labels are values of something measured: the series' own, or a regression's."""
    numbers = [float(label) for label in train if is_number(label)]
    differ = len(train) >= 4 and len(set(train)) > len(train) / 2
    return differ and len(numbers) == len(train) and not all(map(float.is_integer, numbers))


def doubts(train: Sequence[str], x: np.ndarray, column: str) -> Iterator[str]:
    """What is odd about the labels of the training split and may yet be meant.

    Args:
        train: (n,) labels.
        x: (n, T) the series, or their first channel.
        column: what to call the labels' place.
    """
    groups = collections.defaultdict(set)
    for label in set(train):
        groups[look(label)].add(label)
    alike = sorted(sorted(group) for group in groups.values() if len(group) > 1)
    if alike:
        named = "; ".join(" and ".join(map(_distinct, group)) for group in alike[:3])
        yield f"labels that look the same are different classes: {named}; are they one class?"
    if _all_differ(train):
        yield f"each of {len(train)} training series has a class of its own: is {column} the label?"
    if len(train) < 10:
        return  # too few to tell from chance
    numbers = np.array([float(label) if is_number(label) else np.nan for label in train])
    for time in (0, x.shape[1] - 1):
        start = x[0, time]
        if (x[:, time] == numbers).all():
            yield f"time {time} of every training series is its label: is it a column too many?"
        elif abs(start) < 2**53 and (x[:, time] == start + np.arange(len(x))).all():
            yield f"time {time} counts the training series: is it an index column?"


def _distinct(label: str) -> str:
    """The label in quotes; accents that a letter's other spelling shows just so, as numbers."""
    return repr(label) if unicodedata.is_normalized("NFC", label) else ascii(label)


def remedy(label: str, train: Sequence[str], column: str) -> str:
    """What to do about a label of the test split that no training series has."""
    if _all_differ(train):
        return f"no two training series share a label either; does {column} hold the labels?"
    alike = [other for other in train if look(other) == look(label)]
    return f"is it {alike[0]!r}? then write it so" if alike else "remove it"


def find(label: str, classes: Sequence[str]) -> int | None:
    """Which class the label is: the one written so, else the only one of the same number."""
    label = label.strip()
    if label in classes:
        return classes.index(label)
    same = [i for i, other in enumerate(classes) if is_number(label) and look(other) == look(label)]
    return same[0] if len(same) == 1 else None


def _all_differ(train: Sequence[str]) -> bool:
    return len(set(train)) == len(train) >= 4


def order(labels: Collection[str]) -> tuple[str, ...]:
    """Numeric order if every label is a finite number, else text order."""
    try:
        numbers = {label: float(label) for label in labels}
    except ValueError:
        numbers = {}
    return tuple(sorted(labels, key=lambda label: (numbers.get(label, 0.0), label)))


def split(line: str) -> list[str]:
    """The fields of a line: separated by tabs, else by commas, else by blanks."""
    return line.split(next((s for s in "\t," if s in line), None))  # None: any run of blanks


def read_line(
    line: str, at: str, first: bool, how: Preparation = REFUSE
) -> tuple[str, list[float]]:
    """The label and the values of a line of a UCR text file.

    Args:
        line: a label, then values; separated as in `split`.
        at: what error messages call the line.
        first: whether it is the first, which could be a header.
        how: whether values may be missing; they are then NaN.

    Raises:
        UserError: the line is not certainly of this form; the message names the column.
    """
    header = ": a header? then remove the line" if first else ""
    label, *cells = split(line)
    label = label.strip()
    if not label:
        raise UserError(f"{at}, column 1: the label is missing{header}")
    wrong = problem(label)
    if wrong:
        raise UserError(f"{at}, column 1: label {quoted(label)} {wrong}")
    if not cells:
        raise UserError(f"{at}, column 1: label {quoted(label)} has no values; {SEPARATORS}")
    if _are_several(label) or _are_halves(cells):
        raise UserError(
            f"{at}, column 1: after {quoted(label)} it is not clear where values begin and end: "
            f"write decimals with a point; {SEPARATORS}"
        )
    return archive_spelling(label), read_values(cells, f"{at}, column", 2, header, how)


def read_values(
    cells: Sequence[str], at: str, first: int = 1, header: str = "", how: Preparation = REFUSE
) -> list[float]:
    """Cells as numbers, NaN where a value is missing and may be.

    Args:
        cells: numbers as text.
        at: what error messages call a cell, before its number.
        first: the first cell's number.
        header: what error messages add, where the line could be a header.
        how: whether values may be missing.

    Raises:
        UserError: a cell is not a finite number, nor missing where it may be.
    """
    if _PLAIN.fullmatch("".join(cells)):  # of these characters float makes what is_number takes
        with contextlib.suppress(ValueError):
            values = [float(cell) for cell in cells]
            if all(map(math.isfinite, values)):
                return values
    values = []
    for place, cell in enumerate(cells):
        value = float(cell) if is_number(cell) else math.nan
        if not math.isfinite(value):
            wrong = _cell_problem(cells[place:], header, how)
            if wrong:
                raise UserError(f"{at} {first + place}: {wrong}")
            value = math.nan
        values.append(value)
    return values


def _are_several(cell: str) -> bool:
    """Whether what should be one label or value is several numbers, as `1;0.5` or `1 0`."""
    parts = re.split(r"[\s;|]+", cell.strip())
    return len(parts) > 1 and all(map(is_number, parts))


def _are_halves(cells: list[str]) -> bool:
    """Whether decimal commas have cut the values, as "0,5, 1,5" into `0`, `5`, ` 1`, `5`."""
    whole, decimals = cells[::2], cells[1::2]
    return (
        len(whole) == len(decimals) > 1
        and all(cell[:1].isspace() for cell in whole[1:])
        and all(cell.strip().isdecimal() and not cell[:1].isspace() for cell in decimals)
    )


def _cell_problem(cells: Sequence[str], header: str, how: Preparation) -> str | None:
    """Why the first of the cells that end a line is refused, and what to do; None if it is not."""
    cell = cells[0].strip()
    if how.unequal == "refuse" and not any(rest.strip() for rest in cells):
        return f"the line ends with a separator: remove it, or {ONE_LENGTH}"
    if is_missing(cell):
        with contextlib.suppress(ValueError):
            if math.isinf(float(cell)):
                return f"{cell!r} is not a finite number: replace it, or drop the series"
        if how.allows_gaps:
            return None
        if not cell:
            return f"the value is missing: {FILL_IT}, or drop the series"
        return f"{cell!r} is not a finite number: {FILL_IT}, or {ONE_LENGTH}"
    if is_number(cell.replace("_", "")):
        return f"{cell!r} is not a number: write it without underscores"
    if is_number(cell.replace(",", ".", 1)):
        return f"{cell!r} is not a number: a decimal comma? write a decimal point"
    if _are_several(cell):
        return f"{quoted(cell)} is several numbers: write decimals with a point; {SEPARATORS}"
    return f"{quoted(cell)} is not a number{header}"


def find_header(labels: Sequence[str], x: np.ndarray) -> tuple[int, str] | None:
    """The line that is probably a header although it could be read as numbers, and why.

    pandas calls columns 0 1 2 ..., others write the times. A header is the first line; it can be a
    later one only if its label is text too, as where files were put together.

    Args:
        labels: (n,) of all lines, n >= 2.
        x: (n, T) their values.
    """
    text = np.array([not is_number(label) for label in labels])
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.diff(x, axis=1)
        # A tenth is room for times that were rounded.
        ramp = (np.abs(steps - steps[:, :1]) <= 0.1 * np.abs(steps[:, :1])).all(axis=1)
    ramp &= (steps != 0).all(axis=1) & (steps.shape[1] >= 2)  # one step is always equal
    counts = ramp & (steps == 1).all(axis=1) & np.isin(x[:, :1], (0, 1)).any(axis=1)

    if text[0] and not text[1:].any():
        return 0, f"its label {quoted(labels[0])} is text and all others are numbers"
    if counts[0] and not counts[1]:
        return 0, "its values count up, 0 1 2 ... or 1 2 3 ..."
    others = collections.Counter(labels[1:])
    if ramp[0] and labels[0] not in others:
        # Where every label occurs once, a label of its own says nothing; times may: they begin at
        # 0 or at one step.
        times = np.isclose(x[0, 0], (0, steps[0, 0]), rtol=0.1).any() and not ramp[1:].any()
        if times or max(others.values()) > 1:
            return 0, "its values are in equal steps and no other line has its label"
    if text.any() and not counts.all() and not text[~counts].any():
        line = int(text.argmax())
        return line, f"its values count up and its label {quoted(labels[line])} is text"
    return None


def quoted(value: object) -> str:
    """A user's value in quotes, in one line and not at any length."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
