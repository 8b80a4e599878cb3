"""Certified L2 robustness for time-series classifiers, by randomized smoothing of self-ensembles.

    data -> training -> runs -> smoothing (votes, on the device) -> certificates (on the host)

The public names are the modules' own; `certificates` states what is guaranteed.
"""

from selfens_jax import certificates, data, masks, metrics, models, smoothing, streams, training
from selfens_jax.errors import UserError

__all__ = [
    "UserError",
    "certificates",
    "data",
    "masks",
    "metrics",
    "models",
    "smoothing",
    "streams",
    "training",
]
