"""Logs of what each example came to: one line each, appended, so that a killed command goes on."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from selfens_jax.errors import UserError
from selfens_jax.runs.files import checksum, write_bytes

_CHECKSUM = "\t#"  # what begins it in a line


@dataclasses.dataclass(frozen=True)
class Entry:
    """What one example came to, as whole numbers, and the seconds that took."""

    values: tuple[int, ...]
    seconds: float


def read_log(
    path: Path, settings: dict[str, Any], is_complete: Callable[[tuple[int, ...]], bool]
) -> dict[int, Entry]:
    """The entries of a log, by example; a last line that is still being written does not count.

    The first line is the settings, every further line one example's entry, with a checksum, which
    those of earlier versions lack.

    Raises:
      UserError: if the file is of other settings, or a line is damaged or not complete.
    """
    lines = _complete_lines(path).decode(errors="replace").splitlines()
    if not lines or lines[0] != _header(settings):
        raise UserError(f"{path} is of other settings; move it away to begin again")
    entries: dict[int, Entry] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            fields, mark, found = line.partition(_CHECKSUM)
            if mark and found != checksum(fields):
                raise ValueError
            index, seconds, *values = fields.split("\t")
            example, entry = int(index), Entry(tuple(map(int, values)), float(seconds))
            if not is_complete(entry.values):
                raise ValueError
        except ValueError:
            raise UserError(f"{path} is damaged in line {number}; move it away") from None
        # Two processes may have counted an example: the same votes, in other seconds.
        if entries.setdefault(example, entry).values != entry.values:
            raise UserError(
                f"{path} has example {index} twice, differently (line {number}); move it away"
            )
    return entries


def open_log(
    path: Path, settings: dict[str, Any], is_complete: Callable[[tuple[int, ...]], bool]
) -> dict[int, Entry]:
    """`read_log` of a file to append to: made if there is none, and a torn last line is cut off."""
    if not path.exists():
        write_bytes(path, (_header(settings) + "\n").encode())
        return {}
    entries = read_log(path, settings, is_complete)
    with path.open("rb+") as file:
        file.truncate(len(_complete_lines(path)))
    return entries


def append_log(path: Path, entries: Mapping[int, Entry]) -> None:
    """Adds lines to an opened log, on disk when this returns."""
    lines = []
    for index, entry in entries.items():
        fields = "\t".join([str(index), f"{entry.seconds:.4f}", *map(str, entry.values)])
        lines.append(f"{fields}{_CHECKSUM}{checksum(fields)}\n")
    with path.open("r+") as file:  # not "a", which would make a log without its first line
        file.seek(0, os.SEEK_END)
        file.write("".join(lines))
        file.flush()
        os.fsync(file.fileno())


def _header(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _complete_lines(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]
