"""What a certificate gives up because its noise and series are on a grid."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Correction:
    """Nothing, for noise in float32; `noise.correction` computes it for a grid.

    Attributes:
      rounding: off a radius: q sqrt(T C), in the units of the series.
      deviation: off the probability of a class: the total variation of a draw from a Gaussian's.
    """

    rounding: float = 0.0
    deviation: float = 0.0


NOTHING_GIVEN_UP = Correction()
