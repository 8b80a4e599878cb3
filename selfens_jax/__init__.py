"""Certified L2 robustness for time-series classifiers, by randomized smoothing of self-ensembles.

    data -> training -> runs -> smoothing (votes, on the device) -> certificates (on the host)

The public names are the modules' own, and `certify`, which does it all for a classifier of yours;
`certificates` states what is guaranteed.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from selfens_jax import (
    attacks,
    blocks,
    bursts,
    certificates,
    certification,
    classifiers,
    coverage,
    data,
    ensembles,
    errors,
    masks,
    metrics,
    models,
    noise,
    objectives,
    preparation,
    sequential,
    smoothing,
    streams,
    synthetic,
    training,
)
from selfens_jax.certification import certify
from selfens_jax.errors import UserError

if TYPE_CHECKING:
    from selfens_jax import classifier, counting, plots, report_page, runs
    from selfens_jax.classifier import SelfEnsembleClassifier

__all__ = [
    "SelfEnsembleClassifier",
    "UserError",
    "attacks",
    "blocks",
    "bursts",
    "certificates",
    "certification",
    "certify",
    "classifier",
    "classifiers",
    "counting",
    "coverage",
    "data",
    "ensembles",
    "errors",
    "masks",
    "metrics",
    "models",
    "noise",
    "objectives",
    "plots",
    "preparation",
    "report_page",
    "runs",
    "sequential",
    "smoothing",
    "streams",
    "synthetic",
    "training",
]

__version__ = importlib.metadata.version("selfens_jax")

# Imported where they are first used: with them come scikit-learn, pandas, Orbax or Matplotlib.
_LATER = ("classifier", "counting", "plots", "report_page", "runs")


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f"selfens_jax.{name}")
    if name == "SelfEnsembleClassifier":
        return importlib.import_module("selfens_jax.classifier").SelfEnsembleClassifier
    raise AttributeError(f"module 'selfens_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
