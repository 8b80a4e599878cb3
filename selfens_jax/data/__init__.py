"""Labelled time series: by archive name, from text files, from a .npz file, from arrays.

Nothing is rescaled, filled, padded or cut unless asked for: a certified radius is in the units of
the series as they are held here.

    archives, ucr, text_files, ts_files, npz_files     read
    splits, labels                                     check, and name the place of what is wrong
    datasets, new_series                               make a `Dataset`, or `Series` for a run
"""

from selfens_jax.data.archives import ARCHIVE_URL, NETWORK_TIMEOUT, PAPER_DATASETS, UEA_DATASETS
from selfens_jax.data.datasets import Dataset, describe, from_arrays, load
from selfens_jax.data.names import is_path, name_of
from selfens_jax.data.new_series import Series, check_new_series, load_series, series_digest
from selfens_jax.data.splits import SCALINGS
from selfens_jax.preparation import MISSING, UNEQUAL

__all__ = [
    "ARCHIVE_URL",
    "MISSING",
    "NETWORK_TIMEOUT",
    "PAPER_DATASETS",
    "SCALINGS",
    "UEA_DATASETS",
    "UNEQUAL",
    "Dataset",
    "Series",
    "check_new_series",
    "describe",
    "from_arrays",
    "is_path",
    "load",
    "load_series",
    "name_of",
    "series_digest",
]
