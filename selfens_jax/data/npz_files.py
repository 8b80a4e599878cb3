"""Files .npz of the user's own: arrays of series and labels, never pickled objects."""

import os
import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np

from selfens_jax import paths
from selfens_jax.errors import UserError


def read(path: pathlib.Path, keys: Sequence[str], need: str) -> dict[str, np.ndarray]:
    """Those of the arrays that the file holds.

    Args:
        path: the file; its name may have any ending.
        keys: the arrays' names.
        need: what is needed, as the end of an error message.

    Raises:
        UserError: there is no such file, or it is broken or none of this kind.
    """
    shown = paths.shown(path)
    if not os.path.isfile(path):  # unlike pathlib's, it raises for no path
        longer = f"{path}.npz"
        hint = f"; write {paths.shown(longer)} to read that file" if os.path.isfile(longer) else ""
        raise UserError(f"{shown}: {paths.absence(path)}; {need}{hint}")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise UserError(f"{shown}: cannot be read ({error.strerror or error})") from None
    if empty:
        raise UserError(f"{shown}: is empty; {need}")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{shown}: not a .npz file; {need}")
    try:
        # Pickled arrays can run code when they are read, so they are never allowed.
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in keys if key in file}
    except Exception as error:  # a user's file can be broken in any way that zip or NumPy knows
        if "Object arrays" in str(error):
            raise UserError(
                f"{shown}: holds pickled Python objects, which are never loaded: save series of "
                "equal length as numbers, shorter ones ended by NaN (unequal=pad, cut or resample "
                "takes them), and labels as numbers or text (y.astype(str))"
            ) from None
        reason = " ".join(str(error).split())
        raise UserError(f"{shown}: cannot be read ({reason}); {need}") from None
