"""Margins under noise and masks, and the check of the paper's variance theory (Section 4).

The logits come from `smoothing.draw_logits`: the argmax of each is a vote that is certified. All
that is here is NumPy on the host.

What is random
--------------
For a fixed network and series x, the margin of class A over class i under mask M and noise e is

    z_i(M, e) = f(M * (x + e))_A - f(M * (x + e))_i                       (Eqs. 7, 21)

*Masks fixed* (what is certified): the m masks are drawn once, only e is random, and all masks share
it. The clean part of Lemma 4.2 is then a constant, and moves the mean margin, not its variance.
*Masks redrawn*: e and the masks are random. The clean part then has the variance of f(M * x) over
masks; two masks are drawn independently, so zeta_c is 0. The paper's Sigma_c and zeta_c are over
the training process: a single network cannot show them, and they are not estimated here.

Definitions, for each class i (Eqs. 13 to 16 for the scalar z_i):

    clean variance         Sigma_c = Var_M z_i(M, 0)
    perturbation variance  V_p     = E_M Var_e z_i(M, e)
    zeta_p                 = E_{M != M'} Cov_e(z_i(M, e), z_i(M', e)) / V_p
    masks fixed            Var(mean) = (1 + zeta_p (m - 1)) / m * V_p
    masks redrawn          the same + (1 + zeta_c (m - 1)) / m * Sigma_c, with zeta_c = 0
    probability            p_A = prod_i Phi(mean z_i / sqrt(Var z_i))     (Eqs. 22, 24)

Where the paper's assumptions enter
-----------------------------------
Given V_p and zeta_p, the formula for fixed masks is algebra (Eq. 15): it can only miss by the
sampling of masks and draws, which is why it is estimated on half of the draws and compared on the
other half. What can fail: that noise and masks leave the mean alone (Eqs. 10, 11: compare the three
means); that the clean part without noise is the part that varies with the mask (Taylor expansion,
Eq. 13); that masking shrinks V_p by keep^2 (Eq. 18: compare `shrinkage`); that margins are normal
and the classes' margins positively dependent (Eqs. 22, 24: compare p_A).
"""

import dataclasses

import numpy as np
from scipy import stats

from selfens_jax.errors import UserError


def top_two(logits: np.ndarray) -> tuple[int, int]:
    """A and B, from logits (n, K): the most voted class, and of the others that of highest mean."""
    top = int(np.bincount(logits.argmax(axis=1), minlength=logits.shape[1]).argmax())
    means = logits.mean(axis=0)
    means[top] = -np.inf
    return top, int(means.argmax())


def of_class(logits: np.ndarray, top: int) -> np.ndarray:
    """Margins (..., K - 1) of class `top` over the others, in their order, from logits (..., K)."""
    logits = np.asarray(logits, np.float64)
    return logits[..., [top]] - np.delete(logits, top, axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Components:
    """What Lemma 4.2 needs to know of one example; each (K - 1,), one number a class but A.

    Attributes:
      mean: of z under noise and masks.
      clean, perturbation, correlation: the module's Sigma_c, V_p and zeta_p.
    """

    mean: np.ndarray
    clean: np.ndarray
    perturbation: np.ndarray
    correlation: np.ndarray

    def variance(self, num_masks: int, masks_redrawn: bool) -> np.ndarray:
        """Eq. (9) for the mean margin over `num_masks` masks."""
        m = num_masks
        fixed = (1 + self.correlation * (m - 1)) / m * self.perturbation
        return fixed + self.clean / m if masks_redrawn else fixed

    def top_probability(self, num_masks: int) -> float:
        """Eqs. (22) and (24): p_A if the margins are normal and independent, masks redrawn."""
        deviation = np.sqrt(self.variance(num_masks, masks_redrawn=True))
        return float(np.prod(stats.norm.cdf(self.mean / deviation)))


def components(noisy: np.ndarray, clean: np.ndarray) -> Components:
    """Estimates the components from margins of P masks, which share the draws.

    Args:
      noisy: (n, P, K - 1) z_i(M, e), P and n at least 2.
      clean: (P, K - 1) z_i(M, 0).

    Raises:
      UserError: for fewer than two draws or masks.
    """
    n, masks, _ = noisy.shape
    if min(n, masks) < 2:
        raise UserError(f"a variance needs at least 2 draws and 2 masks, not {n} and {masks}")
    perturbation = noisy.var(axis=0, ddof=1).mean(axis=0)
    # Var_e of the mean over P masks is V_p / P + (P - 1) / P times the mean covariance of a pair.
    variance = noisy.mean(axis=1).var(axis=0, ddof=1)
    covariance = (masks * variance - perturbation) / (masks - 1)
    return Components(
        mean=noisy.mean(axis=(0, 1)),
        clean=clean.var(axis=0, ddof=1),
        perturbation=perturbation,
        correlation=covariance / perturbation,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What ensembles of m masks do.

    Attributes:
      masks_fixed, masks_redrawn: (K - 1,) variances of the mean margin; masks_redrawn is None
        where there is only one ensemble, which cannot vary.
      top_probability: p_A.
    """

    masks_fixed: np.ndarray
    masks_redrawn: np.ndarray | None
    top_probability: float


def measure(noisy: np.ndarray, num_masks: int) -> Measured:
    """Cuts the masks of `noisy` (n, P, K - 1) into P // m ensembles and averages over them."""
    n, masks, others = noisy.shape
    groups = masks // num_masks
    if groups < 1 or n < 2:
        raise UserError(f"{masks} masks and {n} draws make no ensemble of {num_masks} with spread")
    cut = noisy[:, : groups * num_masks].reshape(n, groups, num_masks, others)
    means = cut.mean(axis=2)
    fixed = means.var(axis=0, ddof=1).mean(axis=0)
    between = means.mean(axis=0).var(axis=0, ddof=1) if groups > 1 else None
    return Measured(
        masks_fixed=fixed,
        masks_redrawn=None if between is None else fixed + between,
        top_probability=float((means > 0).all(axis=-1).mean()),
    )
