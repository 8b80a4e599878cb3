"""From vote counts to certificates: confidence intervals, radii, abstention.

Everything here is NumPy and SciPy in float64 and knows nothing of networks: it starts from the
integer array of votes, shape (..., K), that Algorithm 2 of the paper counts.

Guarantee
---------
*Statement.* Fix a series x, sigma > 0 and alpha in (0, 1). Let f be the base classifier (here the
self-ensemble), let p_c = P(f(x + sigma * noise) = c) and let the smoothed classifier g return the
class with the largest p_c. ``certify_counts`` with its default interval either abstains or returns
a class c and a radius R, and with probability at least 1 - alpha over the draws, whatever f, x and
the number of classes K, it abstains or g(x + d) = c for every d with ||d||_2 < R.

*Assumptions.* (1) The n draws are independent; a pseudo-random generator stands in for them. Each
is Gaussian, or on a grid (`noise`, the default): then x is a grid point, and the draw is
round_q(x + sigma * Z) of a Gaussian Z up to a total variation of delta. (2) f is one fixed
measurable function, chosen before the draws: weights, masks and batch statistics are the same for
every draw and do not depend on how the work is cut into batches. (3) f is what the device computes.
On a grid its input is exact; with float32 noise the rounding of x + sigma * noise is taken as part
of f, and f must not tell the generator's 2^23 values from others. (4) n, alpha and x are fixed
before the draws are known (no drawing until it certifies; no series made to fit known noise, so
that whoever certifies the series of others keeps the seed to himself). What happens here on the
host is rounded down: see ``_MARGIN``.

*Proof.* Write a = alpha/2 < 1/2, N_c ~ Bin(n, p_c) for the count of class c, and T_k(p) =
P(Bin(n, p) >= k), which for k >= 1 increases strictly from 0 to 1 in p. The Clopper-Pearson bound
is L(0) = 0 and L(k) = the p with T_k(p) = a; it increases with k, and L(k) > t iff T_k(t) < a
(for every t in [0, 1]; T_0 is 1).

1. Coverage. For every t the set {k : L(k) > t} is {k >= k(t)}, where k(t) is the least k with
   T_k(t) < a. So P(L(N_c) > p_c) = T_{k(p_c)}(p_c) < a, or 0 if there is no such k.
2. What is certified. Class c is certified iff L(N_c) > 1/2, iff N_c >= k0 := k(1/2). For k <= n/2
   symmetry gives T_k(1/2) >= 1/2 > a, so k0 > n/2: at most one class is certified, it holds the
   strict majority of the votes, and a tie for the top abstains.
3. What a false certificate is. If p_c >= L(N_c) then p_c > 1/2, so c is g's class at x, and by
   Theorem 1 of Cohen et al. (2019) with p_B = 1 - p_A its true radius is at least
   sigma * Phi^-1(p_c) >= sigma * Phi^-1(L(N_c)) = R. So a wrong class or a radius above the true
   one needs, for some c, the event F_c: L(N_c) > max(1/2, p_c).
4. A class with p_c >= 1/2: P(F_c) = P(L(N_c) > p_c) <= a by step 1.
5. A class with p_c <= 1/2: P(F_c) = T_k0(p_c) (0 if k0 does not exist). The derivative of T_k0 is
   proportional to p^(k0-1) (1-p)^(n-k0), which increases while p <= (k0-1)/(n-1). As k0 is an
   integer above n/2, 2 k0 >= n + 1 and (k0-1)/(n-1) >= 1/2, so T_k0 is convex on [0, 1/2] (linear
   if n = 1). A convex function lies below its chord: with T_k0(0) = 0 and T_k0(1/2) < a this is
   P(F_c) <= 2 p_c a.
6. Sum. If every p_c < 1/2: sum_c P(F_c) <= 2a sum_c p_c = 2a = alpha. If some p_A >= 1/2: step 4
   for A and step 5 for the others give a + 2a (1 - p_A) <= a + a = alpha.
7. On a grid, steps 1 to 6 hold for the p'_c of the draws as they are, and |p'_c - p_c| <= delta
   for those of h = f o round_q under the Gaussian: L(N_c) - delta takes the place of L(N_c) in
   step 3. There p_c are the probabilities of h, a function of all of R^(T C), so that Cohen's
   theorem holds as it stands; it speaks of h smoothed at the grid point of x. The smoothed
   classifier g rounds its series to the grid too. If ||d|| < R = sigma * Phi^-1(L - delta) -
   q sqrt(T C), the grid points of x and x + d, each within q/2 sqrt(T C) of its series, are less
   than sigma * Phi^-1(L - delta) apart, and g(x + d) = c. QED

The level must be alpha/2, not alpha: the same counts choose the class and bound it. At level alpha
two classes near 1/2 make false certificates at almost twice that rate (9.2 % for alpha = 5 %,
n = 60).

*Not promised.* Nothing about norms other than L2, about perturbations before any scaling or other
preprocessing that precedes the noise, or about f without noise. That c is the right label. Anything
jointly over many examples: alpha is per example, so of N certificates up to alpha * N may be
expected to be false. And not for the other intervals: Goodman's is an asymptotic approximation,
Sison and Glaz's covers far less than it says. ``Certificates.valid`` and ``.statement`` say so.

Sources: the paper's Algorithm 2, Theorem 4.1 and Eq. (6); Cohen, Rosenfeld, Kolter, ICML 2019;
Li, Chen, Wang, Carin, NeurIPS 2019; Clopper & Pearson, Biometrika 1934; Goodman, Technometrics
1965; Sison & Glaz, JASA 1995; May & Johnson, J. Stat. Software 2000.
"""

import dataclasses
import decimal
import math

import numpy as np
import scipy  # loads stats and optimize, which take a second, only where they are used
from numpy.typing import ArrayLike
from scipy import special

from selfens_jax.correction import NOTHING_GIVEN_UP, Correction
from selfens_jax.errors import MAX_DRAWS, UserError, check_alpha, check_counts, check_sigma

ABSTAIN = -1
INTERVALS = ("clopper_pearson", "goodman", "sison_glaz")
BOUNDS = ("cohen", "renyi")
PAPER_ALPHA = 0.05  # the published code's level, whatever level its caller asks for
PAPER_ORDERS = np.linspace(1.01, 2, 100)  # and its grid for the order of the Renyi divergence

# Quantiles are computed to about 1e-14 (relative) and then moved to the safe side by 1e-12, so that
# no float error makes a radius larger than the exact one. It costs a radius a part of 2e-11 for a
# thousand unanimous draws and 5e-7 for 10^8, where 1 - p_A is small against the rounding of p_A.
_MARGIN = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class Certificates:
    """Predictions with radii, and what they rest on. Arrays have the shape (...,) of the examples.

    Attributes:
      prediction: int64, the class, or ABSTAIN (-1).
      radius: float64, L2, in the units of the series that enters the noise; 0 where abstaining.
      p_a, p_b: float64, the lower bound of the top class and the upper bound of every other class.
      sigma, alpha, interval, bound: as given; alpha is the level that was really used.
      valid: whether the module's guarantee covers these certificates.
      statement: one line that says so, for outputs.
    """

    prediction: np.ndarray
    radius: np.ndarray
    p_a: np.ndarray
    p_b: np.ndarray
    sigma: float
    alpha: float
    interval: str
    bound: str
    valid: bool
    statement: str


def check_budget(
    num_draws: int,
    alpha: float,
    num_classes: int,
    interval: str = "clopper_pearson",
    bound: str = "cohen",
) -> None:
    """Refuses a number of draws with which no series could be certified.

    Args:
      num_draws: n.
      num_classes: K.
      alpha, interval, bound: as in ``certify_counts``.

    Raises:
      UserError: if all n votes for one class would still be an abstention; it names the least n
        that is enough.
    """

    def enough(draws: int) -> bool:
        unanimous = draws * np.eye(1, num_classes, dtype=np.int64)
        return bool(certify_counts(unanimous, 1.0, alpha, interval, bound).prediction[0] >= 0)

    if num_draws >= 1 and enough(num_draws):
        return
    too_few, least = 0, 1
    while least < MAX_DRAWS and not enough(least):
        too_few, least = least, min(2 * least, MAX_DRAWS)
    while least - too_few > 1:
        middle = (too_few + least) // 2
        too_few, least = (too_few, middle) if enough(middle) else (middle, least)
    raise UserError(
        f"{num_draws} draws can certify nothing at alpha {alpha:g}, even if all votes agree: at "
        f"least {least} are needed"
    )


def certify_counts(
    counts: ArrayLike,
    sigma: float,
    alpha: float = 0.001,
    interval: str = "clopper_pearson",
    bound: str = "cohen",
    given_up: Correction = NOTHING_GIVEN_UP,
) -> Certificates:
    """Certificates from votes; with the default interval, valid with probability 1 - alpha each.

    Args:
      counts: (..., K) votes per class, K >= 2, nonnegative integers (a float array is taken if
        every entry is an integer, a boolean one is not); rows may have different totals.
      sigma: standard deviation of the noise, in the units of the series.
      alpha: probability, per example, that the certificate is false.
      interval: "clopper_pearson" bounds the top class from below at alpha/2 and the rest by p_B =
        1 - p_A (see the module's Guarantee; the only valid choice). "goodman" (approximate) and
        "sison_glaz" (not valid) are simultaneous intervals at alpha over all classes: p_A is the
        lower bound of the top class and p_B the upper bound of the best other one.
      bound: "cohen", the tight one, or "renyi", the paper's Eq. (6), never larger.
      given_up: what noise on a grid takes off probabilities and radii; `noise.correction`.

    Returns:
      Certificates that abstain unless p_A > p_B; a tie for the top class therefore abstains under
      every interval. The radius is infinite only if p_A is 1, which only the Sison-Glaz interval
      ever claims.

    Raises:
      UserError: for bad counts, sigma, alpha or names.
    """
    counts, sigma, alpha = check_counts(counts), check_sigma(sigma), check_alpha(alpha)
    _check_name("interval", interval, INTERVALS)
    _check_name("bound", bound, BOUNDS)
    if interval == "clopper_pearson":
        p_a = clopper_pearson_lower(counts.max(axis=-1), counts.sum(axis=-1), alpha / 2)
        p_a = np.maximum(p_a - given_up.deviation, 0)
        p_b = 1 - p_a  # exact in floating point wherever p_a >= 1/2
    else:
        intervals = goodman_intervals if interval == "goodman" else sison_glaz_intervals
        p_a, p_b = _top_two(counts, *intervals(counts, alpha))
        p_a = np.maximum(p_a - given_up.deviation, 0)
        p_b = np.minimum(p_b + given_up.deviation, 1)
    certified = p_a > p_b
    radius = (cohen_radius if bound == "cohen" else renyi_radius)(p_a, p_b, sigma)
    if given_up.rounding:
        radius = np.maximum(np.nextafter(radius - given_up.rounding, -np.inf), 0)
    holds = {
        "clopper_pearson": f"each holds with probability at least 1 - {alpha:g}",
        "goodman": f"approximate, not proven to hold with probability 1 - {alpha:g}",
        "sison_glaz": f"NOT valid certificates, they fail far more often than {alpha:g}",
    }[interval]
    return Certificates(
        prediction=np.where(certified, counts.argmax(axis=-1), ABSTAIN),
        radius=np.where(certified, radius, 0.0),
        p_a=p_a,
        p_b=p_b,
        sigma=sigma,
        alpha=alpha,
        interval=interval,
        bound=bound,
        valid=interval == "clopper_pearson",
        statement=f"{interval} interval, {bound} bound: {holds}",
    )


def certify_counts_as_published(counts: ArrayLike, sigma: float) -> Certificates:
    """What the paper's published code computes, for comparison. NOT valid certificates.

    Sison-Glaz intervals at 0.05 whatever level was asked for, Eq. (6) on 100 orders from 1.01 to 2,
    no abstention: the first of tied classes wins, and since Eq. (6) is symmetric in p_A and p_B,
    reversed intervals (p_A < p_B) get a positive radius too.

    Args:
      counts, sigma: as in ``certify_counts``.

    Raises:
      UserError: for bad counts or sigma.
    """
    counts, sigma = check_counts(counts), check_sigma(sigma)
    p_a, p_b = _top_two(counts, *sison_glaz_intervals(counts, PAPER_ALPHA, as_in_r=True))
    squared = renyi_squared(PAPER_ORDERS, p_a[..., None], p_b[..., None]).max(axis=-1)
    return Certificates(
        prediction=np.asarray(counts.argmax(axis=-1)),
        radius=np.asarray(sigma * np.sqrt(squared)),
        p_a=p_a,
        p_b=p_b,
        sigma=sigma,
        alpha=PAPER_ALPHA,
        interval="sison_glaz",
        bound="renyi",
        valid=False,
        statement="as published (Sison-Glaz at 0.05, renyi bound on a grid, no abstention): "
        "NOT valid certificates",
    )


def clopper_pearson_lower(successes: ArrayLike, totals: ArrayLike, level: float) -> np.ndarray:
    """Exact lower confidence bound of a binomial probability, rounded down.

    For every p the bound exceeds p with probability at most `level` (Clopper & Pearson 1934).

    Args:
      successes, totals: integers of one shape (or broadcasting).
      level: in (0, 1).

    Returns:
      (...,) float64.

    Raises:
      UserError: for a bad level, or successes outside [0, total].
    """
    level = check_alpha(level)
    successes, totals = np.broadcast_arrays(successes, totals)
    if not np.all((successes >= 0) & (successes <= totals)):
        raise UserError("successes must lie between 0 and the total")
    # T_k(p) is the regularised incomplete beta function I_p(k, n - k + 1).
    k = np.maximum(successes, 1)
    bound = special.betaincinv(k, totals - k + 1, level) * (1 - _MARGIN)
    return np.where(successes > 0, bound, 0.0)


def goodman_intervals(counts: ArrayLike, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Simultaneous intervals of Goodman (1965), (lower, upper), each (..., K). Approximate.

    Score intervals for every class at alpha/K. They rest on the normal approximation, which is
    poor where a class has few votes, as it has wherever a radius is large. No rate above alpha was
    found by the enumeration in experiments/studies/interval_coverage.py, but nothing proves that
    there is none.

    Args:
      counts: (..., K) votes.
      alpha: probability that some class lies outside its interval.

    Raises:
      UserError: for bad counts or alpha.
    """
    counts, alpha = check_counts(counts), check_alpha(alpha)
    n = counts.sum(axis=-1, keepdims=True)
    q = scipy.stats.chi2.isf(alpha / counts.shape[-1], df=1)
    half = np.sqrt(q * (q + 4 * counts * ((n - counts) / n)))
    lower, upper = q + 2 * counts - half, q + 2 * counts + half
    return np.clip(lower / (2 * (n + q)), 0, 1), np.clip(upper / (2 * (n + q)), 0, 1)


def sison_glaz_intervals(
    counts: ArrayLike, alpha: float, as_in_r: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Simultaneous intervals of Sison & Glaz (1995), (lower, upper), each (..., K). Not valid here.

    With c the largest integer for which nu(c), their approximation to the probability that every
    count falls within c of its mean, stays below 1 - alpha: [(x - c)/n, (x + c + 2 delta)/n], delta
    interpolating between nu(c) and nu(c+1), as in May & Johnson (2000). Where one class has nearly
    all the votes c is 0 and the lower bound is the observed frequency itself. Where nu never
    reaches 1 - alpha (tiny n or alpha) the interval is [0, 1].

    Args:
      counts, alpha: as in ``goodman_intervals``.
      as_in_r: leave out the squared skewness, as R's MultinomialCI does: its formula runs over two
        lines and R ends it at the first. It moves the bounds in the fifth digit.

    Raises:
      UserError: for bad counts or alpha.
    """
    counts, alpha = check_counts(counts), check_alpha(alpha)
    x = counts.reshape(-1, counts.shape[-1])
    n = x.sum(axis=-1)
    # nu(c) = prod_i P(|X_i - x_i| <= c) * density / P(Poisson(n) = n), with X_i ~ Poisson(x_i) and
    # the density of the sum of the truncated X_i at n from an Edgeworth expansion. `raw[r]` sums
    # (X - x)^r over the window; taken about x, not about 0, so that no digits cancel.
    raw = [scipy.stats.poisson.pmf(x, x)] + [np.zeros(x.shape)] * 4
    nu = np.zeros(n.shape)
    reached = np.zeros(n.shape, bool)
    width, delta = n.astype(np.float64), np.zeros(n.shape)
    # Forty standard deviations on, the window holds all of the distribution and nu stays put.
    for c in range(1, 10 + int(40 * math.sqrt(n.max(initial=1)))):
        above, below = scipy.stats.poisson.pmf(x + c, x), scipy.stats.poisson.pmf(x - c, x)
        raw = [raw[r] + float(c) ** r * (above + (-1) ** r * below) for r in range(5)]
        previous, nu = nu, _probability_of_sum(raw, as_in_r) / scipy.stats.poisson.pmf(n, n)
        new = ~reached & (nu > 1 - alpha)
        width[new] = c - 1
        delta[new] = (1 - alpha - previous[new]) / (nu[new] - previous[new])
        reached |= new
        if reached.all():
            break
    lower = (x - width[:, None]) / n[:, None]
    upper = (x + (width + 2 * delta)[:, None]) / n[:, None]
    return np.clip(lower, 0, 1).reshape(counts.shape), np.clip(upper, 0, 1).reshape(counts.shape)


def _probability_of_sum(raw: list[np.ndarray], as_in_r: bool) -> np.ndarray:
    """P(every X_i in its window) times the density at 0 of the sum of X_i - x_i; (rows,).

    Args:
      raw: unnormalised moments 0 to 4 of X_i - x_i within the window, each (rows, K).
      as_in_r: as in ``sison_glaz_intervals``.
    """
    mass = raw[0]
    m1, m2, m3, m4 = (moment / mass for moment in raw[1:])
    variance = m2 - m1**2
    third = m3 - 3 * m1 * m2 + 2 * m1**3
    excess = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4 - 3 * variance**2
    total = variance.sum(axis=-1)
    g1 = third.sum(axis=-1) / total**1.5
    g2 = excess.sum(axis=-1) / total**2
    z = -m1.sum(axis=-1) / np.sqrt(total)
    edgeworth = 1 + g1 / 6 * (z**3 - 3 * z) + g2 / 24 * (z**4 - 6 * z**2 + 3)
    if not as_in_r:
        edgeworth += g1**2 / 72 * (z**6 - 15 * z**4 + 45 * z**2 - 15)
    return mass.prod(axis=-1) * scipy.stats.norm.pdf(z) * edgeworth / np.sqrt(total)


def cohen_radius(p_a: ArrayLike, p_b: ArrayLike, sigma: float) -> np.ndarray:
    """sigma/2 (Phi^-1(p_A) - Phi^-1(p_B)), rounded down; 0 where p_A <= p_B (Cohen et al. 2019).

    Tight: no larger radius holds for every classifier with these probabilities. Infinite where
    p_A = 1 or p_B = 0.

    Args:
      p_a: (...,) lower bound of the top class.
      p_b: (...,) upper bound of the others.
      sigma: standard deviation of the noise.

    Returns:
      (...,) float64, in the units of sigma.

    Raises:
      UserError: for probabilities outside [0, 1], or a bad sigma.
    """
    p_a, p_b, sigma = _check_probability(p_a), _check_probability(p_b), check_sigma(sigma)
    z_a, z_b = special.ndtri(p_a), special.ndtri(p_b)
    with np.errstate(invalid="ignore"):  # inf - inf where p_A = p_B, not used
        gap = z_a * (1 - np.copysign(_MARGIN, z_a)) - z_b * (1 + np.copysign(_MARGIN, z_b))
    return np.where(p_a > p_b, sigma / 2 * np.maximum(gap, 0), 0.0)


def renyi_radius(p_a: ArrayLike, p_b: ArrayLike, sigma: float) -> np.ndarray:
    """The radius of the paper's Eq. (6), rounded down; 0 where p_A <= p_B (Li et al. 2019).

    The supremum over every order above 1 is bracketed on a logarithmic grid and refined by bounded
    minimisation, once per distinct pair; each order gives a valid radius, so an imperfect search
    costs size, never validity. Arguments, result, errors: as in ``cohen_radius``.
    """
    p_a, p_b, sigma = _check_probability(p_a), _check_probability(p_b), check_sigma(sigma)
    p_a, p_b = np.broadcast_arrays(p_a, p_b)
    certified = p_a > p_b
    pairs, inverse = np.unique(np.stack([p_a, p_b], -1)[certified], axis=0, return_inverse=True)
    best = np.array([_best_renyi_squared(high, low) for high, low in pairs])
    radius = np.zeros(p_a.shape)
    radius[certified] = sigma * np.sqrt(best[inverse.reshape(-1)]) * (1 - _MARGIN)
    return radius


def _best_renyi_squared(p_a: float, p_b: float) -> float:
    log_orders = np.linspace(-20, 10, 121)  # of order - 1; the supremum may be the limit at order 1
    on_grid = renyi_squared(1 + np.exp(log_orders), p_a, p_b)
    best = int(np.argmax(on_grid))
    if np.isinf(on_grid[best]):
        return math.inf
    bracket = log_orders[max(best - 1, 0)], log_orders[min(best + 1, len(log_orders) - 1)]
    refined = scipy.optimize.minimize_scalar(
        lambda t: -renyi_squared(1 + np.exp(t), p_a, p_b), bounds=bracket, method="bounded"
    )
    on_paper_grid = renyi_squared(PAPER_ORDERS, p_a, p_b).max()
    return max(-refined.fun, on_grid[best], on_paper_grid)


def renyi_squared(order: float | np.ndarray, p_a: ArrayLike, p_b: ArrayLike) -> np.ndarray:
    """(L / sigma)^2 of Eq. (6) at one order, -2/order log(1 - 2 M_1 + 2 M_{1-order}), rounded down.

    The bracket has derivatives (M/p)^order - 1 in p = p_A and p = p_B, and p_B <= M <= p_A: it
    falls in p_A and rises in p_B, so a lower bound of p_A and an upper one of p_B are safe.

    Args:
      order: of the Renyi divergence, above 1.
      p_a, p_b: probabilities, which broadcast with it.
    """
    high, low = np.maximum(p_a, p_b), np.minimum(p_a, p_b)
    with np.errstate(divide="ignore"):  # p_B = 0 makes the mean of negative order 0
        # M_{1-order} = low * ((1 + (high/low)^(1-order)) / 2)^(1/(1-order)), without overflow
        half = np.expm1((1 - order) * (np.log(high) - np.log(low))) / 2
        mean = np.exp(np.log(low) - np.log1p(half) / (order - 1))
        inside = (1 - high) - low + 2 * mean
        # 1e-14 covers the rounding of `inside`, which is 0 only at (1, 0): an infinite radius.
        inside = np.where(inside > 0, np.minimum(inside + 1e-14, 1), 0)
        return 2 / order * np.abs(np.log(inside))


def format_radius(radius: float, digits: int = 6) -> str:
    """The radius in decimal, rounded down exactly: the number read back never exceeds it.

    Args:
      radius: nonnegative; an infinite one is "inf".
      digits: after the point.

    Raises:
      UserError: for a negative or NaN radius.
    """
    radius = float(radius)
    if not radius >= 0:
        raise UserError(f"a radius must be a nonnegative number, not {radius}")
    if math.isinf(radius):
        return "inf"
    context = decimal.Context(prec=400 + digits, rounding=decimal.ROUND_FLOOR)
    exact = decimal.Decimal(abs(radius))
    return format(exact.quantize(decimal.Decimal(1).scaleb(-digits), context=context), "f")


def _top_two(
    counts: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of intervals (..., K), the lower bound of the top class and the largest upper of the rest."""
    top = counts.argmax(axis=-1)[..., None]
    p_a = np.take_along_axis(lower, top, axis=-1)[..., 0]
    return p_a, np.where(np.arange(counts.shape[-1]) == top, 0.0, upper).max(axis=-1)


def _check_probability(p: ArrayLike) -> np.ndarray:
    p = np.asarray(p, dtype=np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise UserError("probabilities must lie in [0, 1]")
    return p


def _check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise UserError(f"unknown {what} {name!r}: choose one of {', '.join(known)}")
