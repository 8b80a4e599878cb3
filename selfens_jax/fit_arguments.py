"""What a classifier is given to fit, checked beyond what `data` and `training` check."""

import json
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.exceptions import DataConversionWarning

from selfens_jax import data, training
from selfens_jax.data.splits import Split
from selfens_jax.errors import UserError, check_number, check_whole

SEEDS = 2**32  # from 0 to below


def train_config(values: Mapping[str, Any]) -> training.TrainConfig:
    """The configuration, of Python's own numbers, which JSON can hold."""
    number: dict[str, float] = {"sigma": check_number("sigma", values["sigma"], 0, math.inf)}
    for name in ("keep", "learning_rate"):  # whose ranges TrainConfig knows
        number[name] = check_number(name, values[name], -math.inf, math.inf)
    for name in ("num_members", "epochs", "batch_size"):
        number[name] = check_whole(name, values[name], 1)
    if values.get("burst") is not None:
        number["burst"] = check_whole("burst", values["burst"], 1)
    for name in ("average", "consistency_weight", "entropy_weight"):
        if values.get(name) is not None:
            number[name] = check_number(name, values[name], -math.inf, math.inf)
    number["seed"] = check_seed("seed", values["seed"])
    return training.TrainConfig(**{**values, **number})


def check_seed(what: str, value: Any) -> int:
    if check_whole(what, value, 0) >= SEEDS:
        raise UserError(f"{what} must be below 2**32, not {value}")
    return int(value)


def refuse_sparse(X: Any) -> None:
    if sparse.issparse(X):
        raise UserError("X is sparse, which is not supported: give X.toarray()")


def one_column(y: Any) -> Any:
    """The labels; those of one column (n, 1) as (n,)."""
    if y is None:  # how scikit-learn calls an estimator that needs none
        raise UserError("a classifier requires y to be passed, but the target y is None")
    if getattr(y, "shape", ())[1:] != (1,):
        return y
    warnings.warn(
        "y is one column; an array (n,) is expected, as y.ravel() is",
        DataConversionWarning,
        stacklevel=3,
    )
    return np.ravel(y)


def labels_of_classes(y: Any, dataset: data.Dataset) -> np.ndarray:
    """The user's own label of each class (K,), in the data set's order."""
    if len({isinstance(label, str) for label in np.asarray(y, dtype=object)}) > 1:
        raise UserError("y holds both text and numbers: write them in one way")
    _, first = np.unique(dataset.y_train, return_index=True)
    labels = np.asarray(y)[first]
    try:  # what `load` will need
        json.dumps(plain(labels))
        known = Split("X", "training").check_labels(labels, len(labels)) == list(dataset.classes)
    except TypeError:
        known = False
    if not known:
        kind = type(np.asarray(y, dtype=object)[0]).__name__
        raise UserError(f"y holds labels of type {kind}: make numbers, booleans or text of them")
    return labels


def plain(labels: np.ndarray) -> list[Any]:
    """Labels as values of Python's own types, which JSON can hold."""
    return [label.item() if isinstance(label, np.generic) else label for label in labels.tolist()]
