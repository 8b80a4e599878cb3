"""Files of series that several tests write, and how what becomes of them is looked at."""

import pathlib
from typing import Any

import numpy as np
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


def write_archive(folder: pathlib.Path) -> None:
    """CBF with 16 time steps, in the archive's layout."""
    rng = np.random.default_rng(0)
    (folder / "CBF").mkdir(parents=True)
    for split, size in (("TRAIN", 12), ("TEST", 24)):
        y = np.arange(size) % 3
        x = rng.normal(size=(size, 16)) + 2 * (y - 1)[:, None]
        table = np.column_stack([y + 1, x])
        np.savetxt(folder / "CBF" / f"CBF_{split}.tsv", table, fmt="%.6g", delimiter="\t")
