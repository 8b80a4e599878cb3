"""Is the smoothed prediction certified at one radius? Answered with few draws.

Where nearly every draw votes for one class, a few dozen tell that the radius is above R. So draws
arrive in batches, and two tests that are valid at any stopping time look at the votes after each.
NumPy and SciPy on the host, like `certificates`. `run_tests` is the loop over a device's batches:

    edges = batches()                                 # 20, 40, 60, ..., 120, 160, 200, ...
    state = begin(votes of the draws [0, edges[0]), certified_share(radius, sigma))
    for start, stop in itertools.pairwise(edges):
        state = step(state, votes of the draws [start, stop) of the examples state.open)

What is OPEN at the end is undecided. If decide(n, n, p0) is OPEN for n = edges[-1] - edges[0], the
budget is too small to certify anything.

Guarantee
---------
*Statement.* Let f, g and p_c be as in `certificates`, R >= 0 and p0 = Phi(R / sigma); on a grid
p0 = Phi((R + q sqrt(T C)) / sigma) + delta, as in step 7 there. A is the most
voted class of the selection sample, the first draws, whose votes are then forgotten. With
probability at least 1 - alpha, whatever f, x and the number of classes, the series is never
CERTIFIED or g(x + d) = A for every d with ||d||_2 <= R. With probability at least 1 -
alpha_futility, it is never REJECTED or p_A < p0. "Never" is over all batches, up to any budget and
for any reason to stop, a glance at the votes included: running out of time costs decisions, never
validity.

*Assumptions.* (1) to (3) of `certificates`: independent Gaussian draws of one fixed classifier.
(4) Every draw is used once, in order, and the tested draws are not those that chose A. (5) R,
sigma, alpha and the priors below do not depend on the votes. An undecided series must not be
started again with a new key.

*Proof.* Let X_1, X_2, ... tell which fresh draws vote for A, and s = X_1 + ... + X_n. The e-value
against H0: p_A <= p0 is a mixture of likelihood ratios over a prior on (p0, 1]:

    E_n = integral of  p^s (1-p)^(n-s) / (p0^s (1-p0)^(n-s))  over the prior of p,    E_0 = 1.

1. Selection. The fresh draws are independent of those that chose A. Given A they are independent
   Bernoulli(p_A), so that all that follows may be read given A, and the choice costs nothing.
2. Supermartingale. For one p > p0, a draw multiplies the ratio by p/p0 or by (1-p)/(1-p0). The mean
   factor, p_A p/p0 + (1-p_A) (1-p)/(1-p0), is linear and increasing in p_A and 1 at p_A = p0: at
   most 1 under H0. So E_n, an average over p, is a nonnegative supermartingale under H0.
3. Any time. By Ville's inequality P(E_n >= 1/alpha for some n) <= alpha under H0. CERTIFIED needs
   that event. Looking only after each batch, or stopping early, makes it smaller.
4. What it means. If H0 is false, p_A > p0 >= 1/2: A is g's class at x, and by Cohen et al. (2019)
   its radius is at least sigma * Phi^-1(p_A) > R, even for the closed ball. So a false certificate
   needs H0, and given A has probability at most alpha; averaged over A, at most alpha. On a grid
   p_A is that of the draws; under the Gaussian it is less by at most delta, and so above
   Phi((R + q sqrt(T C)) / sigma), and the grid points of x and x + d are no further apart.
5. Futility. With a prior on [0, p0), the mean factor decreases in p_A and is 1 at p0: steps 2 and 3
   hold against H0: p_A >= p0.
6. Never both. p^s (1-p)^(n-s) rises up to p = s/n and then falls. If s/n <= p0 every p > p0 has a
   ratio of at most 1, and if s/n >= p0 every p < p0 has: only one e-value can exceed 1. QED

p0 < 1/2, a negative R, is refused: p_A > p0 would not make A the top class. R = 0 asks for the
class only. p0 is rounded up and the e-values are held against a threshold a hair above 1/alpha.

*Not promised.* REJECTED says that p_A is too small for the certificate, not that the series can be
attacked within R, nor that A is g's class. Nothing holds jointly over examples or several R.

*Priors.* Any is valid. These were chosen for few draws, by exact expectations and on no data:
Beta(1, 1/5) cut to (p0, 1] leans to p = 1, where trained classifiers are; Beta(4, 1) cut to [0, p0)
leans to p0, where the hard cases are.

Sources: Ville 1939 (the inequality); Wald 1945; Robbins, Ann. Math. Stat. 1970 (mixtures);
Waudby-Smith & Ramdas, J. R. Stat. Soc. B 2024 (bounded means by betting); Ramdas, Gruenwald, Vovk,
Shafer, Stat. Sci. 2023 (e-processes); Cohen, Rosenfeld, Kolter, ICML 2019.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from selfens_jax.correction import NOTHING_GIVEN_UP, Correction
from selfens_jax.errors import UserError, check_alpha, check_counts, check_number, check_sigma

REJECTED, OPEN, CERTIFIED = -1, 0, 1

_PRIORS = {"greater": (1.0, 0.2), "less": (4.0, 1.0)}  # Beta parameters, before the cut at p0
_MAX_DRAWS = 10**7
_MARGIN = 1e-6  # added to log(1/alpha); log e-values are exact to 1e-7 up to _MAX_DRAWS


@dataclasses.dataclass(frozen=True, eq=False)
class State:
    """Where the tests stand. Arrays have the shape (N,) of the examples.

    Attributes:
      candidate: int64, the class A whose radius is in question.
      successes, draws: int64, fresh draws that voted for A, and all fresh draws.
      decision: int64, CERTIFIED (1), REJECTED (-1) or OPEN (0); final once it is not OPEN.
      p0, alpha, alpha_futility: as given.
    """

    candidate: np.ndarray
    successes: np.ndarray
    draws: np.ndarray
    decision: np.ndarray
    p0: float
    alpha: float
    alpha_futility: float

    @property
    def open(self) -> np.ndarray:
        """Indices (M,) of the examples that need more draws."""
        return np.flatnonzero(self.decision == OPEN)


def begin(
    selection: ArrayLike, p0: float, alpha: float = 0.001, alpha_futility: float | None = None
) -> State:
    """The state after the selection sample: candidates, and not one draw tested.

    Args:
      selection: (N, K) votes of that sample; of tied classes the first is the candidate.
      p0: from ``certified_share``.
      alpha: error of CERTIFIED, per example.
      alpha_futility: error of REJECTED, per example; alpha if None.

    Raises:
      UserError: for bad votes, p0 or levels.
    """
    candidate = _check_votes(selection).argmax(axis=1)
    level, level_futility = _check_levels(alpha, alpha_futility)
    successes, draws, decision = np.zeros((3, len(candidate)), np.int64)
    share = _check_share(p0)
    return State(candidate, successes, draws, decision, share, level, level_futility)


def step(state: State, counts: ArrayLike) -> State:
    """The state after fresh draws of its open examples.

    Args:
      state: of the draws before.
      counts: (M, K) votes of draws not used before, one row for each of ``state.open``, in order.

    Raises:
      UserError: for counts that are not votes or do not fit the state.
    """
    rows, counts = state.open, _check_votes(counts)
    if len(counts) != len(rows) or (len(rows) and state.candidate.max() >= counts.shape[1]):
        raise UserError(f"counts of shape {counts.shape} do not fit {len(rows)} open examples")
    fresh = np.zeros((2, len(state.decision)), np.int64)
    fresh[:, rows] = counts[np.arange(len(rows)), state.candidate[rows]], counts.sum(axis=1)
    successes, draws = state.successes + fresh[0], state.draws + fresh[1]
    # Without new votes a decided example is decided as before.
    decision = decide(successes, draws, state.p0, state.alpha, state.alpha_futility)
    return dataclasses.replace(state, successes=successes, draws=draws, decision=decision)


def run_tests(
    count: Callable[[np.ndarray, int, int], tuple[np.ndarray, np.ndarray]],
    num_examples: int,
    edges: tuple[int, ...],
    p0: float,
    alpha: float = 0.001,
    alpha_futility: float | None = None,
) -> tuple[State, np.ndarray]:
    """Tests examples until each is decided, or the budget is used up.

    Args:
      count: maps (rows (M,) of examples, first draw, number of draws) to their votes (M, K) and
        their cost (M,), such as forward passes.
      num_examples: N.
      edges: from ``batches``.
      p0, alpha, alpha_futility: as in ``begin``.

    Returns:
      The final state, and what each example (N,) cost.

    Raises:
      UserError: as ``begin`` and ``step``.
    """
    selection, cost = count(np.arange(num_examples), 0, edges[0])
    state = begin(selection, p0, alpha, alpha_futility)
    for start, stop in itertools.pairwise(edges):
        if not len(state.open):
            break
        still_open = state.open
        counts, more = count(still_open, start, stop - start)
        cost[still_open] += more
        state = step(state, counts)
    return state, cost


def certified_share(radius: float, sigma: float, given_up: Correction = NOTHING_GIVEN_UP) -> float:
    """p0 = Phi(radius / sigma), rounded up: a share of votes above it certifies the radius.

    Args:
      radius: L2, in the units of the series.
      sigma: standard deviation of the noise, in the same units.
      given_up: what noise on a grid adds to radius and share; `noise.correction`.

    Raises:
      UserError: for a negative radius, a bad sigma, or a radius above about 8 sigma, where p0 is 1
        in double precision.
    """
    sigma = check_sigma(sigma)
    radius = check_number("radius", radius, -math.inf, math.inf)
    if radius < 0:
        raise UserError(f"the radius must not be negative, got {radius:g}")
    # Phi(-z) is accurate to 1e-13 relative for z up to 9, so rounding z and Phi is covered.
    reached = math.nextafter(radius + given_up.rounding, math.inf)
    p0 = math.nextafter(1 - float(special.ndtr(-reached / sigma)) * (1 - 1e-12), 2)
    p0 = math.nextafter(p0 + given_up.deviation, 2) if given_up.deviation else p0
    if p0 >= 1:
        raise UserError(f"radius {radius:g} is too many sigmas ({sigma:g}): no votes certify it")
    return p0


def log_e_value(
    successes: ArrayLike, draws: ArrayLike, p0: float, alternative: str = "greater"
) -> np.ndarray:
    """Log of the evidence that p_A is "greater" (or "less") than p0; the module's E_n.

    For 0 draws it is 0; it increases (decreases, for "less") with the successes. Where the evidence
    points the other way so strongly that a tail of the beta distribution leaves the floats it is
    -inf; the exact value is below 0.

    Args:
      successes, draws: integers of one shape (or broadcasting).
      p0: from ``certified_share``.
      alternative: "greater" or "less".

    Returns:
      (...,) float64.

    Raises:
      UserError: for bad counts, p0 or alternative.
    """
    if alternative not in _PRIORS:
        raise UserError(f"unknown alternative {alternative!r}: choose greater or less")
    p0 = _check_share(p0)
    successes, draws = np.broadcast_arrays(successes, draws)
    if successes.dtype.kind not in "iu" or draws.dtype.kind not in "iu":
        raise UserError("successes and draws must be integers")
    if not np.all((successes >= 0) & (successes <= draws) & (draws <= _MAX_DRAWS)):
        raise UserError(f"need 0 <= successes <= draws <= {_MAX_DRAWS}")
    s, f = successes.astype(np.float64), (draws - successes).astype(np.float64)
    a, b = _PRIORS[alternative]
    tail = special.betaincc if alternative == "greater" else special.betainc
    mass = tail(a + s, b + f, p0)
    with np.errstate(divide="ignore"):
        posterior = special.betaln(a + s, b + f) + np.log(np.where(mass > 1e-300, mass, 0))
    prior = special.betaln(a, b) + np.log(tail(a, b, p0))
    return np.where(draws > 0, posterior - prior - s * np.log(p0) - f * np.log1p(-p0), 0.0)


def decide(
    successes: ArrayLike,
    draws: ArrayLike,
    p0: float,
    alpha: float = 0.001,
    alpha_futility: float | None = None,
) -> np.ndarray:
    """CERTIFIED, REJECTED or OPEN for each count; valid at any stopping time (see the module).

    Args:
      successes, draws: as in ``log_e_value``.
      p0, alpha, alpha_futility: as in ``begin``.

    Returns:
      (...,) int64.

    Raises:
      UserError: for bad counts, p0 or levels.
    """
    alpha, alpha_futility = _check_levels(alpha, alpha_futility)
    certified = log_e_value(successes, draws, p0, "greater") >= _MARGIN - math.log(alpha)
    rejected = log_e_value(successes, draws, p0, "less") >= _MARGIN - math.log(alpha_futility)
    return certified.astype(np.int64) - rejected


def check_budget(edges: tuple[int, ...], p0: float, alpha: float = 0.001) -> None:
    """Refuses a schedule with which nothing could be certified.

    Args:
      edges: from ``batches``.
      p0, alpha: as in ``begin``.

    Raises:
      UserError: if the budget is too small even for draws that all agree.
    """
    most = edges[-1] - edges[0]
    if decide(most, most, p0, alpha) != CERTIFIED:
        raise UserError(
            f"{most} draws after those that choose the class cannot certify this radius at alpha "
            f"{alpha:g}, even if all votes agree; raise the draws, or lower the radius"
        )


def batches(
    num_selection: int = 20,
    first_batch: int = 20,
    growth: float = 1.25,
    max_draws: int = 1000,
    block: int = 20,
) -> tuple[int, ...]:
    """The schedule: cumulative draws, the selection sample's first, the budget last.

    Args:
      num_selection: draws of the selection sample.
      first_batch: draws that are tested first.
      growth: factor by which the fresh draws grow, rounded up to a block, and by at least one.
      max_draws: the budget.
      block: the draws that the device makes at a time; all of the above are multiples of it.

    Raises:
      UserError: for counts that are no positive multiples, growth below 1 or a small budget.
    """
    counts = {"num_selection": num_selection, "first_batch": first_batch, "max_draws": max_draws}
    for what, value in {"block": block, **counts}.items():
        unit = 1 if what == "block" else block
        integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not (integer and 1 <= value <= _MAX_DRAWS and value % unit == 0):
            raise UserError(f"{what} must be a positive multiple of {unit}, not {value!r}")
    if check_number("growth", growth, 0, math.inf) < 1:
        raise UserError(f"growth must be at least 1, not {growth:g}")
    if num_selection + first_batch > max_draws:
        raise UserError(f"max_draws must be at least {num_selection + first_batch}")
    edges, fresh = [int(num_selection)], int(first_batch)
    while num_selection + fresh < max_draws:
        edges.append(int(num_selection + fresh))
        fresh = max(fresh + block, math.ceil(fresh * growth / block) * block)
    return (*edges, int(max_draws))


def _check_votes(counts: ArrayLike) -> np.ndarray:
    counts = np.asarray(counts)
    if counts.ndim != 2:
        raise UserError(f"votes must be (examples, classes), not of shape {counts.shape}")
    return check_counts(counts)


def _check_levels(alpha: float, alpha_futility: float | None) -> tuple[float, float]:
    alpha = check_alpha(alpha)
    return alpha, alpha if alpha_futility is None else check_alpha(alpha_futility)


def _check_share(p0: float) -> float:
    p0 = check_number("p0", p0, 0, 1)
    if p0 < 0.5:
        raise UserError(f"p0 must be at least 1/2, not {p0:g}: the radius must not be negative")
    return p0
