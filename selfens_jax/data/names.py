"""What the words for a data set mean, a name of the archives or a path; and what it is called."""

import os
import pathlib
import re
import unicodedata

from selfens_jax.errors import UserError

TEXT_ENDINGS = (".tsv", ".txt", ".ts", ".csv")
PACKED = (".gz", ".bz2", ".xz", ".zip")
# One of the two files of a set, as CBF_TRAIN.tsv: its name, split and ending.
HALF = re.compile(
    rf"(.+)_(train|test)({'|'.join(map(re.escape, TEXT_ENDINGS))})", re.IGNORECASE | re.DOTALL
)


def is_path(dataset: str) -> bool:
    """Whether the words for a data set are the path of a file, not a name of the archive.

    A path ends (in any case) as files do that are read, .npz, .ts, .csv, .tsv or .txt, or as
    compressed ones do; or it contains a path separator, or begins with ~.
    """
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return (
        dataset.lower().endswith((".npz", *TEXT_ENDINGS, *PACKED))
        or dataset.startswith("~")
        or any(separator in dataset for separator in separators)
    )


def name_of(dataset: str) -> str:
    """The data set's name: the words themselves or, of a path, the name of the file or folder.

    A file's name goes without its .npz or, of text files, without their ending and _TRAIN or _TEST
    before it. Runs are kept in a folder of this name.

    Raises:
        UserError: no folder can have the name, or it holds a control character.
    """
    name = dataset
    if is_path(dataset):
        name = pathlib.PurePath(dataset).name
        half = HALF.fullmatch(name)
        ending = next((e for e in (".npz", *TEXT_ENDINGS) if name.lower().endswith(e)), "")
        name = half[1] if half else name[: len(name) - len(ending)]
    # tslearn empties the cache folder of the name it downloads, so "" or ".." must never reach it.
    if name in ("", ".", "..") or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        raise UserError(
            f"data set {dataset!r}: a folder of runs cannot be called {name!r}; give a name of the "
            "archive or the path of a .npz file, or rename the file"
        )
    return name
