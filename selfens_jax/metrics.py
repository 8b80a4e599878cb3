"""Summaries of certificates over a test set. Pure NumPy.

Every function takes `prediction` (n,) int (-1 = abstain), `radius` (n,) float and, where the truth
matters, `labels` (n,) nonnegative int; radii are in the units of the series. An abstention never
counts as correct. One infinite radius makes a mean infinite: it is returned as inf, not dropped.
All raise UserError for empty arrays, other shapes, negative labels and NaN or negative radii.

The mean of the paper
---------------------
The paper's "ACR" (Table 3) is not the field's. Its procedure caps a radius at 2.4813 sigma
(1000 votes of 1000), so a mean that counts wrong predictions as 0 cannot exceed 2.4813 * sigma *
accuracy, and 131 of the 360 cells do: ChlorineConcentration at sigma 1.6, InceptionTime, M_C, has
3.752 at an accuracy of 54.5 %, where that limit is 2.164. All 360 lie below 2.4813 * sigma, as
`mean_radius` and `mean_radius_of_correct` both must; the table alone cannot tell these two apart.
`mean_radius` is the plain mean of the radius column that the published code writes, which has a row
for every test series, so that is what to compare with, giving the other beside it.

Guarantee over a whole test set
-------------------------------
*Statement.* Of N certificates at level alpha, more than q = `most_false` are false with probability
at most rho, where q is the (1 - rho)-quantile of Bin(N, alpha): the least q with P(Bin(N, alpha) >
q) <= rho. So with probability at least 1 - rho, and at every radius r at once: if K series are
certified, and correct, with a radius of at least r, then for K - q of them or more it is true.

*Assumptions.* Those of each certificate (`certificates`), and that their draws are independent:
the noise of every series is drawn by a key of its own, made from its index. N and rho are fixed
before the draws.

*Proof.* Let p_i <= alpha be the probability that certificate i is there and false, and U_1, ...,
U_N independent and uniform on (0, 1). As the draws are independent, the number of false ones is
distributed as sum_i [U_i < p_i] <= sum_i [U_i < alpha], which is Bin(N, alpha). So it exceeds q
with probability at most P(Bin(N, alpha) > q) <= rho. If it does not, at most q of any K of the
certificates are false, whichever they are. QED

All N hold at once with probability 1 - A if alpha is at most A / N (`alpha_of_each`): some are
false with probability at most N alpha, independent or not.
"""

import decimal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from selfens_jax.errors import UserError, check_alpha, check_number, check_whole

RHO = 0.001  # probability that more certificates are false than `most_false` says


def accuracy(prediction: ArrayLike, labels: ArrayLike) -> float:
    """The share of predictions that are correct; abstentions are not."""
    return float(np.mean(_correct(prediction, labels)))


def abstention_rate(prediction: ArrayLike) -> float:
    """The share of abstentions."""
    return float(np.mean(_vector("prediction", prediction) < 0))


def most_frequent_share(labels: ArrayLike) -> float:
    """The share of the most frequent class: the accuracy of naming it whatever the series."""
    counts = np.unique(_vector("labels", labels), return_counts=True)[1]
    return float(counts.max() / counts.sum())


def certified_accuracy(
    prediction: ArrayLike, radius: ArrayLike, labels: ArrayLike, radii: ArrayLike
) -> np.ndarray:
    """The share that is correct with a radius of at least r, for each r in `radii`.

    "At least" as in the analysis code of Cohen et al. (2019).

    Args:
      prediction, radius, labels: (n,), see the module.
      radii: (...,).

    Returns:
      (...,) float64.
    """
    correct, radius = _correct(prediction, labels), _radius(radius, prediction)
    return np.mean(correct & (radius >= np.asarray(radii)[..., None]), axis=-1)


def credited_radius(prediction: ArrayLike, radius: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """(N,) radii, 0 for a wrong prediction or an abstention."""
    return np.where(_correct(prediction, labels), _radius(radius, prediction), 0.0)


def average_certified_radius(prediction: ArrayLike, radius: ArrayLike, labels: ArrayLike) -> float:
    """The field's ACR: mean radius with 0 for a wrong prediction or an abstention.

    Zhai et al., MACER, ICLR 2020; the area under the curve of `certified_accuracy`.
    """
    return float(np.mean(credited_radius(prediction, radius, labels)))


def mean_radius(prediction: ArrayLike, radius: ArrayLike) -> float:
    """Mean radius over all predictions, right or wrong, with 0 for abstentions; see the module."""
    radius = _radius(radius, prediction)
    return float(np.mean(np.where(np.asarray(prediction) >= 0, radius, 0.0)))


def mean_radius_of_correct(prediction: ArrayLike, radius: ArrayLike, labels: ArrayLike) -> float:
    """Mean radius over the correct predictions only; NaN if there is none."""
    correct, radius = _correct(prediction, labels), _radius(radius, prediction)
    return float(np.mean(radius[correct])) if correct.any() else float("nan")


def most_false(num_series: int, alpha: float, rho: float = RHO) -> int:
    """The number of false certificates that is not exceeded, with probability 1 - rho; see above.

    Args:
      num_series: N.
      alpha: of each certificate.
      rho: in (0, 1).

    Raises:
      UserError: for a number of series below 1, or probabilities outside (0, 1).
    """
    check_whole("num_series", num_series, 1)
    alpha, rho = check_alpha(alpha), check_number("rho", rho, 0, 1)

    if num_series == 1:
        return int(alpha > rho)

    def enough(q: int) -> bool:
        # P(Bin(N, alpha) > q) as an incomplete beta function, which SciPy knows to about 1e-13.
        return q == num_series or special.betainc(q + 1, num_series - q, alpha) <= rho * (1 - 1e-9)

    low, high = -1, num_series
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def surely_true(number: int, num_series: int, alpha: float, rho: float = RHO) -> float:
    """The least share of all series for which it is true, if `number` of them are certified so.

    Args:
      number: of the N series, those certified, or certified and correct, or that with a radius.
      num_series, alpha, rho: as in `most_false`.

    Returns:
      (number - q) / N, or 0.
    """
    if not 0 <= number <= num_series:
        raise UserError(f"{number} of {num_series} series cannot be")
    return max(number - most_false(num_series, alpha, rho), 0) / num_series


def alpha_of_each(alpha_total: float, num_series: int) -> float:
    """alpha_total / N, rounded down to six significant digits, so that all of it can be shown.

    Raises:
      UserError: for a number of series below 1, or a probability outside (0, 1).
    """
    check_whole("num_series", num_series, 1)
    total = decimal.Decimal(repr(check_number("alpha_total", alpha_total, 0, 1)))  # as written
    context = decimal.Context(prec=6, rounding=decimal.ROUND_FLOOR)
    return float(context.divide(total, num_series))


def _vector(what: str, values: ArrayLike) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or values.size == 0:
        raise UserError(f"{what} must be a nonempty vector, got shape {values.shape}")
    return values


def _correct(prediction: ArrayLike, labels: ArrayLike) -> np.ndarray:
    prediction, labels = _vector("prediction", prediction), _vector("labels", labels)
    if prediction.shape != labels.shape:
        raise UserError(f"{prediction.size} predictions but {labels.size} labels")
    if np.any(labels < 0):
        raise UserError("labels must not be negative: -1 means abstain")
    return prediction == labels


def _radius(radius: ArrayLike, prediction: ArrayLike) -> np.ndarray:
    prediction, radius = _vector("prediction", prediction), _vector("radius", radius)
    if prediction.shape != radius.shape:
        raise UserError(f"{prediction.size} predictions but {radius.size} radii")
    if not np.all(radius >= 0):
        raise UserError("radii must be nonnegative numbers")
    return radius
