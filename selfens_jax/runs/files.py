"""Files that appear whole or not at all, are never unpickled, and whose damage is noticed."""

import contextlib
import csv
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfens_jax.errors import UserError

_CHECKSUM = "crc32"


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_csv(path: Path, names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a table: a line of names, and one for each row, which has a value for each."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def checksum(text: str) -> str:
    """What tells a text from one that is damaged, in eight hexadecimal digits."""
    return f"{zlib.crc32(text.encode()):08x}"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a record; its last entry is the checksum of the others."""
    checked = {**value, _CHECKSUM: checksum(json.dumps(value))}
    write_bytes(path, (json.dumps(checked, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A record, without its checksum, which those of earlier versions lack.

    Raises:
      UserError: if there is none, or it is damaged.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be read ({reason}); train again with --overwrite") from None
    found = value.pop(_CHECKSUM, None) if isinstance(value, dict) else ""
    if found not in (None, checksum(json.dumps(value))):
        raise UserError(
            f"{path} is damaged: it is not what was written; train again with --overwrite (if you "
            f"changed it on purpose, remove its line {_CHECKSUM})"
        )
    return value


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]  # none is an option's name
    write_bytes(path, buffer.getvalue())


def read_npz(
    path: Path, names: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The named arrays of a .npz file, and the `optional` ones that it has, never unpickling.

    Raises:
      UserError: if the file is missing or damaged or lacks one of them.
    """
    try:
        # Given a path, NumPy leaves the file open where it is damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            known = [*names, *(name for name in optional if name in file)]
            return {name: file[name] for name in known}
    except KeyError as error:
        raise UserError(f"{path} lacks the array {error}; it is not a file of this kind") from None
    except (OSError, TypeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        # A TypeError is of a .npy file, whose one array is no context.
        if isinstance(error, (TypeError, ValueError)) and not zipfile.is_zipfile(path):
            reason = "it is no .npz file"  # where NumPy tells how to read it without safety
        raise UserError(f"{path} cannot be read: {reason}; move it away if it is damaged") from None
