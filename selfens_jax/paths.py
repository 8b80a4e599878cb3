"""Paths as a user writes them."""

import os
import pathlib

from selfens_jax.errors import UserError


def expand(text: str | os.PathLike[str]) -> pathlib.Path:
    """The path that the words name: a leading `~` or `~user` is that home directory.

    A file or folder that is really called so goes first, as in a folder that holds `~backup.npz`.

    Raises:
      UserError: if the home directory is not known, or the words cannot be a path.
    """
    text = os.fspath(text)
    if not text or "\0" in text:
        raise UserError(f"{text!r} is not a path")
    path = pathlib.Path(text)
    if not text.startswith("~") or path.exists():
        return path
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(
            f"{text}: the home directory of {path.parts[0]} is not known; write the whole path, or "
            f"./{text} for a name that begins with ~"
        ) from None


def shown(path: object) -> str:
    """A path or name in one line, whatever characters it holds."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def absence(path: str | os.PathLike[str]) -> str:
    """Why there is no file at the path: none, or a folder on the way that may not be entered."""
    try:
        os.stat(path)
    except PermissionError as error:
        return f"cannot be looked for ({error.strerror})"
    except (OSError, ValueError):
        pass
    return "there is no such file"
