"""Files of series that several tests write, and how what becomes of them is looked at."""

import pathlib
from typing import Any

import pytest

from selfens_jax.errors import UserError


def load_with_warning(call, *args, **kwargs) -> tuple[Any, str]:
    """What is loaded with one warning of one line, and that line."""
    with pytest.warns(UserWarning, match=r"\w") as caught:
        found = call(*args, **kwargs)
    assert [warning.category for warning in caught] == [UserWarning]
    message = str(caught[0].message)
    assert "\n" not in message
    return found, message


def message_of(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def ts_text(series: list[str], classes: str = "true a b", **tags: object) -> str:
    """A .ts file of lines; tags beside those that are always there, or instead of them."""
    tags = {"problemName": "Toy", "timeStamps": "false", "classLabel": classes} | tags
    header = [f"@{key} {value}" for key, value in tags.items() if value is not None]
    return "\n".join(["# a comment", *header, "@data", *series]) + "\n"


def write(path: pathlib.Path, text: str | bytes) -> str:
    """The path of a file that holds the text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)
