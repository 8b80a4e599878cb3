"""Data sets of the UCR and UEA archives by name: asked of tslearn, of aeon, or generated.

tslearn and aeon are imported only when they are asked: they are large and slow to import.
"""

import contextlib
import dataclasses
import difflib
import os
import pathlib
import re
import socket
import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from selfens_jax import synthetic
from selfens_jax.data import labels, ucr
from selfens_jax.errors import UserError
from selfens_jax.preparation import Preparation

PAPER_DATASETS = (
    "CBF",
    "ChlorineConcentration",
    "CricketX",
    "CricketY",
    "CricketZ",
    "SyntheticControl",
)
# The 30 multivariate sets of A. Bagnall et al., The UEA multivariate time series classification
# archive, arXiv:1811.00075, 2018.
UEA_DATASETS = (
    *("ArticularyWordRecognition", "AtrialFibrillation", "BasicMotions", "CharacterTrajectories"),
    *("Cricket", "DuckDuckGeese", "ERing", "EigenWorms", "Epilepsy", "EthanolConcentration"),
    *("FaceDetection", "FingerMovements", "HandMovementDirection", "Handwriting", "Heartbeat"),
    *("InsectWingbeat", "JapaneseVowels", "LSST", "Libras", "MotorImagery", "NATOPS", "PEMS-SF"),
    *("PenDigits", "PhonemeSpectra", "RacketSports", "SelfRegulationSCP1", "SelfRegulationSCP2"),
    *("SpokenArabicDigits", "StandWalkJump", "UWaveGestureLibrary"),
)
NETWORK_TIMEOUT = 10.0  # seconds without an answer, per connection
ARCHIVE_URL = "https://www.timeseriesclassification.com"

# name: (generator, training series, test series), with the archive's sizes
_GENERATORS = {
    "CBF": (synthetic.cbf, 30, 900),
    "SyntheticControl": (synthetic.synthetic_control, 300, 300),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """A set of the archives, before it is checked."""

    arrays: tuple  # X_train, y_train, X_test, y_test
    source: str  # "tslearn", "aeon" or "generated"
    places: tuple[str, str] | None = None  # the files, where there are some
    column: str = "y"  # where they hold the labels


def find(name: str, cache_dir: str | None, how: Preparation) -> Found:
    """The set of that name: from tslearn, else if it is multivariate from aeon, else generated.

    Args:
        name: as the archives spell it.
        cache_dir: where tslearn and aeon keep their downloads; if None, tslearn's own default and
            ~/.cache/selfens_jax/uea.
        how: what may be unequal or missing.

    Raises:
        UserError: nobody has it, which says who was asked and what to do.

    Warns:
        UserWarning: the series were generated.
    """
    arrays, reason, known = _ask_tslearn(name, cache_dir)
    if arrays is not None:
        X_train, y_train, X_test, y_test = arrays
        y_train, y_test = ([labels.archive_spelling(str(v)) for v in y] for y in (y_train, y_test))
        return Found((X_train, y_train, X_test, y_test), "tslearn")
    if name in UEA_DATASETS:
        pair = _ask_aeon(name, cache_dir, reason, how)
        arrays = (pair.x_train, pair.y_train, pair.x_test, pair.y_test)
        return Found(arrays, "aeon", pair.places, pair.column)
    if name in _GENERATORS:
        warnings.warn(
            f"{name} could not be loaded (tslearn: {reason}): using series from its published "
            "generator instead, which are NOT the archive's data",
            UserWarning,
            stacklevel=3,
        )
        generate, num_train, num_test = _GENERATORS[name]
        return Found((*generate((0, 0), num_train), *generate((0, 1), num_test)), "generated")
    raise UserError(_not_found(name, f"tslearn: {reason}", known) + ucr.beside(name))


def _ask_tslearn(
    name: str, cache_dir: str | None
) -> tuple[tuple[np.ndarray, ...] | None, str, Sequence[str]]:
    """(arrays or None, why there are none, the archive's names as far as tslearn knows them)."""
    known: Sequence[str] = ()
    if not re.fullmatch(r"\w[\w.-]*", name):
        return None, "no set of the archive is called so", known
    with _asking() as caught:
        try:
            from tslearn.datasets import UCR_UEA_datasets  # seconds and 668 MB: only when asked for

            archive = UCR_UEA_datasets(root_dir=cache_dir)
            with contextlib.suppress(Exception):  # the list is a download too
                known = archive.list_datasets()
            arrays = [array for array in archive.load_dataset(name) if array is not None]
            if len(arrays) == 4:
                return tuple(arrays), "", known
            reason = _one_line(caught[-1].message) if caught else "the archive's files are broken"
        except Exception as error:  # import, download, unzip, parse: all mean "not from here"
            reason = f"{type(error).__name__}: {_one_line(error)}"
    return None, reason, known


def _ask_aeon(name: str, cache_dir: str | None, tried: str, how: Preparation) -> ucr.Pair:
    """A multivariate set: aeon downloads its .ts files, which are then read as the user's own.

    aeon's reader is not asked: it writes labels in lower case, and takes lines for numbers that are
    none. Its releases also differ in whether they give series of the original lengths.
    """
    files = (
        f"download it from {ARCHIVE_URL} and give its .ts files: the folder of the archive as "
        f"data_dir, or the path of {name}_TRAIN.ts"
    )
    try:
        folder = pathlib.Path(cache_dir or pathlib.Path.home() / ".cache" / "selfens_jax" / "uea")
        with _asking():
            # An optional extra.
            from aeon.datasets import load_classification  # pyright: ignore[reportMissingImports]

            load_classification(
                name,
                split="test",
                extract_path=os.fspath(folder),
                load_equal_length=False,
                load_no_missing=False,
            )
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "aeon"
        aeon = "not installed" if absent else _one_line(error)
        raise UserError(
            f"{name} could not be loaded (tslearn: {tried}; aeon: {aeon}): pip install "
            f'"selfens_jax[uea]" lets aeon load the multivariate archive; or {files}'
        ) from None
    except Exception as error:  # as for tslearn
        reason = f"{type(error).__name__}: {_one_line(error)}"
        raise UserError(
            f"{name} could not be loaded (tslearn: {tried}; aeon: {reason}): {files}"
        ) from None
    return ucr.read(name, folder, how)


@contextlib.contextmanager
def _asking() -> Iterator[list[warnings.WarningMessage]]:
    """Waits no longer than NETWORK_TIMEOUT on a mute network; what is warned of is collected."""
    timeout = socket.getdefaulttimeout()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # urlretrieve, which tslearn calls, takes no timeout.
        socket.setdefaulttimeout(NETWORK_TIMEOUT)
        try:
            yield caught
        finally:
            socket.setdefaulttimeout(timeout)


def _not_found(name: str, tried: str, known: Sequence[str]) -> str:
    names = {other.lower(): other for other in (*known, *UEA_DATASETS, *PAPER_DATASETS)}
    if name in names.values():
        return (
            f"{name} could not be loaded ({tried}): download the UCR archive from {ARCHIVE_URL} "
            f"and pass its folder as data_dir, with {name}/{name}_TRAIN.tsv and _TEST.tsv in it, "
            "or pass a .npz file"
        )
    close = [names[c] for c in difflib.get_close_matches(name.lower(), names, n=3)]
    return (
        f"data set {name!r} could not be found ({tried}): "
        + (f"did you mean {' or '.join(close)}? " if close else "")
        + f"Known are {', '.join(PAPER_DATASETS)} and, where the archive can be reached, the rest "
        "of it; pass a .npz file or data_dir for your own data"
    )


def _one_line(message: object) -> str:
    return " ".join(str(message).split())
