"""Labelled time series: by archive name, from text files, from a .npz file, from arrays.

Whatever the source, `from_arrays` checks the numbers and makes the `Dataset`. Nothing is rescaled,
filled, padded or cut unless asked for: a certified radius is in the units of the series as they are
held here. `load_series` reads new series for a run that is trained.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import warnings
from typing import Any

import numpy as np

from selfens_jax import paths, preparation
from selfens_jax.data import archives, labels, npz_files, ucr
from selfens_jax.data.names import PACKED, TEXT_ENDINGS, is_path, name_of
from selfens_jax.data.splits import Split, channel_units, check_scaling
from selfens_jax.errors import UserError
from selfens_jax.preparation import Preparation

NPZ_KEYS = ("X_train", "y_train", "X_test", "y_test")
NEED = (
    f"a .npz file with {', '.join(NPZ_KEYS)} is needed, without the last two if there is no test "
    "split, or two files NAME_TRAIN and NAME_TEST that end with .ts, .csv, .tsv or .txt"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split of equally long series, checked and complete."""

    name: str  # as `name_of` says: "CBF", or the user's file without its ending
    x_train: np.ndarray  # (n, T, C) float32
    y_train: np.ndarray  # (n,) int32 class indices
    x_test: np.ndarray  # (n', T, C) float32; n' is 0 if there is no test split
    y_test: np.ndarray  # (n',) int32 class indices; all -1 if X_test has no labels
    classes: tuple[str, ...]  # class index -> the label as the user wrote it
    source: str  # "directory", "tslearn", "aeon", "generated", "file" or "arrays"
    scaling: str  # one of `SCALINGS`
    sha256: str  # of the arrays and classes above: changes if any value in them changes
    unequal: str = "refuse"  # as `preparation.Preparation` says
    missing: str = "refuse"
    channels_first: bool = False  # whether the user's arrays were (n, channels, time)
    units: tuple[float, ...] = ()  # (C,) that scaling "channel" divided by
    preparation: str = ""  # what was done to unequal lengths and gaps, to be said beside a radius

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def length(self) -> int:
        """T, in time steps."""
        return self.x_train.shape[1]

    @property
    def num_channels(self) -> int:
        return self.x_train.shape[2]


def describe(dataset: Dataset) -> dict[str, Any]:
    """What a data set is and where it came from, as values that JSON can hold.

    How it was prepared is told only if it was: records of earlier data sets stay what they were.
    """
    prepared = {
        "unequal": dataset.unequal,
        "missing": dataset.missing,
        "channels_first": dataset.channels_first,
    }
    return {
        "name": dataset.name,
        "source": dataset.source,
        "scaling": dataset.scaling,
        **({"units": list(dataset.units)} if dataset.units else {}),
        "sha256": dataset.sha256,
        "num_train": len(dataset.x_train),
        "num_test": len(dataset.x_test),
        "length": dataset.length,
        "num_channels": dataset.num_channels,
        "classes": list(dataset.classes),
        **{key: value for key, value in prepared.items() if value not in ("refuse", False)},
    }


def load(
    dataset: str,
    data_dir: str | None = None,
    scaling: str = "none",
    cache_dir: str | None = None,
    *,
    channels_first: bool = False,
    unequal: str = "refuse",
    missing: str = "refuse",
) -> Dataset:
    """Load a data set by archive name, or the user's own from files.

    With `data_dir`, a name is looked for there (NAME/NAME_TRAIN.tsv and _TEST.tsv, or .txt, .ts,
    .csv) and nowhere else. Without, it is asked of tslearn (its cache, else its download), and of
    aeon if it is of the multivariate archive and tslearn cannot give it; CBF and SyntheticControl
    are generated when tslearn cannot give them.

    Args:
        dataset: a name of the UCR or UEA archive, or a path (`is_path`): of a .npz file that holds
            X_train, y_train and, if there is a test split, X_test and, if they are known, its
            labels y_test; of one of two files NAME_TRAIN and NAME_TEST that end with .ts, .csv,
            .tsv or .txt, or of their folder; or of one such file without _TRAIN or _TEST in its
            name, which is then the training split.
            The Dataset's name is `name_of(dataset)`.
        data_dir: folder of an unpacked UCR or UEA archive.
        scaling: "none"; "channel" (each channel divided by its standard deviation over the training
            series, a constant of the data); or "z_score" (each series and channel by itself to mean
            0 and standard deviation 1).
        cache_dir: where tslearn and aeon keep their downloads; their own defaults if None.
        channels_first: the arrays of a .npz file are (series, channels, time).
        unequal: what to do about series of unequal lengths, as `preparation.Preparation` says.
        missing: what to do about missing values, likewise.

    Raises:
        UserError: the data cannot be found or are not usable; the message says where and why.

    Warns:
        UserWarning: series were generated, `data_dir` was given with a file, which does not need
            it, a line that names the columns of a .csv file
            was skipped, or as in `from_arrays`.
    """
    check_scaling(scaling)
    how = Preparation(unequal, missing)
    _refuse_hidden(how)
    name = name_of(dataset)
    options: dict[str, Any] = {"scaling": scaling, "unequal": unequal, "missing": missing}
    if is_path(dataset):
        found = _load_path(paths.expand(dataset), name, how, channels_first, options)
        if data_dir is not None:
            warnings.warn(
                f"data_dir={data_dir!r} is not used: {dataset!r} is the path of a file",
                UserWarning,
                stacklevel=2,
            )
        return found
    if channels_first:
        raise UserError(f"{name}: channels_first is for .npz files: leave it out")
    if data_dir is not None:
        return _of_pair(name, ucr.read(name, paths.expand(data_dir), how), "directory", options)
    found = archives.find(name, cache_dir, how)
    return from_arrays(
        name,
        *found.arrays,
        source=found.source,
        places=found.places,
        column=found.column,
        **options,
    )


def from_arrays(
    name: str,
    X_train: Any,
    y_train: Any,
    X_test: Any = None,
    y_test: Any = None,
    *,
    source: str = "arrays",
    scaling: str = "none",
    places: tuple[str, str] | None = None,
    column: str = "y",
    channels_first: bool = False,
    unequal: str = "refuse",
    missing: str = "refuse",
) -> Dataset:
    """Check arrays and make a Dataset of them.

    Classes are the labels of the training split, in numeric order if all of them are numbers, else
    in text order. A whole number is written without a decimal point, so 1 and 1.0 are one label.

    Args:
        name: what to call the data.
        X_train: (n, T) or (n, T, C) real numbers, T >= 2. If `unequal` allows it, also a list of n
            series (T_i,) or (T_i, C).
        y_train: (n,) labels: numbers, booleans, text or bytes.
        X_test: (n', T) or (n', T, C), likewise; None if there is no test split.
        y_test: (n',) labels, each of which occurs in y_train; None if they are not known.
        source: where the arrays came from; kept as provenance.
        scaling: as in `load`.
        places: what error messages call the two splits, such as their files; the name if None.
        column: what messages call the place of the labels.
        channels_first: X is (n, C, T) instead.
        unequal: what to do about series of unequal lengths, as `preparation.Preparation` says.
        missing: what to do about missing values, NaN, likewise.

    Raises:
        UserError: anything that is not as above, a value that is missing and not to be filled,
            masked, not finite or overflows float32, a label that is missing, masked or would break
            a table, labels that are an index or measured values, or fewer than two classes; the
            message names the split and, where there is one, the series, time step and channel.

    Warns:
        UserWarning: more channels than time steps, labels that look the same, as many classes as
            training series, or a first or last time step that holds the label or an index.
    """
    check_scaling(scaling)
    how = Preparation(unequal, missing)
    _refuse_hidden(how)
    place_train, place_test = places or (paths.shown(name), paths.shown(name))
    train, test = (
        Split(place, split, channels_first)
        for place, split in ((place_train, "training"), (place_test, "test"))
    )
    if X_test is None and y_test is not None:
        test.fail("has labels, but no series")
    part = train.prepare(X_train, how)
    parts = [part, preparation.none_like(part)]
    if X_test is not None:
        parts[1] = test.prepare(X_test, how, part.x.shape[1])
    x_train, x_test = (part.x for part in parts)
    if x_train.shape[1:] != x_test.shape[1:]:
        test.fail(
            f"has (length, channels) {x_test.shape[1:]}, but the training split has "
            f"{x_train.shape[1:]}: both need the same"
        )
    labels_train = train.check_labels(y_train, len(x_train))
    labels_test = [] if y_test is None else test.check_labels(y_test, len(x_test))
    if labels.are_index(labels_train, labels_test):
        raise UserError(
            f"{place_train}: {column} counts the {'lines' if column != 'y' else 'series'} from "
            f"{labels_train[0]}, in the test split too: an index column? give the labels instead; "
            "if these are classes, put the series in another order"
        )
    if labels.are_measured(labels_train):
        without = "" if column == "y" else "; certify.py --series takes series without labels"
        raise UserError(
            f"{place_train}: Unknown label type: {column} has {len(set(labels_train))} different "
            f"numbers for {len(labels_train)} training series, such as {labels_train[0]}, not all "
            f"of them whole: measured values? give the names of classes there{without}"
        )
    classes = labels.order(set(labels_train))
    if len(classes) < 2:
        train.fail(f"has one class only, {labels_train[0]!r}: a classifier needs at least two")
    index = {label: i for i, label in enumerate(classes)}
    for i, label in enumerate(labels_test):
        if label not in index:
            remedy = labels.remedy(label, labels_train, column)
            test.fail(f"has label {label!r}, which no training series has: {remedy}", series=i)
    units = channel_units(part) if scaling == "channel" else ()
    arrays = {
        "x_train": train.to_float32(parts[0], scaling, units),
        "y_train": np.array([index[label] for label in labels_train], np.int32),
        "x_test": test.to_float32(parts[1], scaling, units),
        "y_test": np.array([index[label] for label in labels_test], np.int32),
    }
    if y_test is None:
        arrays["y_test"] = np.full(len(x_test), -1, np.int32)
    # In the archives' files, and from tslearn, it is certain which axis is which.
    if x_train.shape[2] > x_train.shape[1] and column == "y" and source != "tslearn":
        shape = f"X_train has shape {x_train.shape}, more channels than time steps"
        train.warn(f"{shape}; {train.other_order}")
    for doubt in labels.doubts(labels_train, x_train[:, :, 0], column):
        train.warn(doubt)
    return Dataset(
        name,
        **arrays,
        classes=classes,
        source=source,
        scaling=scaling,
        sha256=_sha256(arrays, classes),
        unequal=unequal,
        missing=missing,
        channels_first=channels_first,
        units=units,
        preparation=preparation.sentence(how, parts, scaling),
    )


def _load_path(
    path: pathlib.Path, name: str, how: Preparation, channels_first: bool, options: dict[str, Any]
) -> Dataset:
    shown = paths.shown(path)
    if os.path.isdir(path) or path.suffix.lower() in (*TEXT_ENDINGS, *PACKED):
        if channels_first:
            raise UserError(f"{shown}: channels_first is for .npz files: leave it out")
        return _of_pair(name, ucr.read_path(path, how), "file", options)
    arrays = npz_files.read(path, NPZ_KEYS, NEED)
    missing = [key for key in NPZ_KEYS[:2] if key not in arrays]
    if "y_test" in arrays and "X_test" not in arrays:
        missing.append("X_test")
    if missing:
        raise UserError(f"{shown}: {', '.join(missing)} missing; {NEED}")
    return from_arrays(
        name,
        **arrays,
        source="file",
        places=(shown, shown),
        channels_first=channels_first,
        **options,
    )


def _of_pair(name: str, pair: ucr.Pair, source: str, options: dict[str, Any]) -> Dataset:
    return from_arrays(
        name,
        pair.x_train,
        pair.y_train,
        pair.x_test,
        pair.y_test,
        source=source,
        places=pair.places,
        column=pair.column,
        **options,
    )


def _sha256(arrays: dict[str, np.ndarray], classes: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    header = {"classes": classes, "shapes": [array.shape for array in arrays.values()]}
    digest.update(json.dumps(header).encode())
    for array in arrays.values():
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _refuse_hidden(how: Preparation) -> None:
    if how.missing == "hide":
        raise UserError(
            "missing='hide' is for new series, certified against bursts: a data set needs every "
            "value (missing='zero', 'last' or 'linear')"
        )
