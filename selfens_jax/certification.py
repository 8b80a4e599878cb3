"""Algorithm 2 of the paper: certify a classifier by its votes under noise.

    input  classifier f, masks M_1..M_m, series x, sigma, n, alpha
    1      counts <- 0
    2      for d = 1..n:
    3          noise_d ~ N(0, sigma^2 I), on a grid                         `noised`
    4          logits_d <- mean_i f(M_i * (x + noise_d))                    `vote`
    5          counts[argmax_k logits_d[k]] += 1                            `vote`, `count_votes`
    6      class, p_A <- the most voted class, a lower bound of its probability at level alpha
    7      if p_A > 1/2: return class, R = sigma * Phi^-1(p_A)              `certify`
    8      else: abstain

The m masks of a draw share its noise, and the logits, not the votes, are averaged. The device
counts (lines 1 to 5), the host certifies in float64 (lines 6 to 8): `certificates` states what is
guaranteed and proves it. Draw d of example i is keyed by `fold_in(fold_in(key, i), d)`, and how the
draws are cut into blocks (`blocks`) changes nothing.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selfens_jax import blocks
from selfens_jax.blocks import Block
from selfens_jax.certificates import Certificates, certify_counts, check_budget
from selfens_jax.classifiers import as_classifier, check_num_classes
from selfens_jax.ensembles import Predict, mean_logits
from selfens_jax.errors import UserError, check_whole
from selfens_jax.noise import correction
from selfens_jax.streams import stream


def certify(
    predict: Any,
    x: np.ndarray,
    *,
    sigma: float,
    alpha: float = 0.001,
    num_draws: int = 1000,
    key: jax.Array | None = None,
    variables: Any = None,
    num_classes: int | None = None,
    interval: str = "clopper_pearson",
    bound: str = "cohen",
    noise: str = "grid",
    grid: float | None = None,
    **how: Any,
) -> Certificates:
    """Certifies any classifier on series x: class and radius, or abstention, for each.

    With probability at least 1 - alpha for each series, no change with an L2 norm below its radius
    changes the class of the smoothed classifier, the one that answers what `predict` answers most
    often under noise. `certificates` has the statement, its assumptions and its proof.

    Args:
      predict: one of
        - a JAX function of series (B, T, C) that returns logits (B, K); best a pytree whose weights
          are leaves, as `smoothing.self_ensemble` and `jax.tree_util.Partial` make;
        - a Flax module: Linen with its `variables`, or NNX in evaluation mode;
        - any other function, of NumPy, PyTorch, Keras, scikit-learn or aeon: float32 NumPy series
          (B, T, C) in, scores (B, K) or class indices (B,) out.
      x: (N, T) or (N, T, C) series, in the units in which the radius is meant.
      sigma: standard deviation of the noise, in the same units.
      alpha: probability, for each series, that its certificate is false.
      num_draws: n, noise draws a series; 1000 allow radii up to 2.4 sigma.
      key: of the noise; `streams.stream(0, "certification")` if None.
      variables: of a Linen module.
      num_classes: for functions that return class indices, if there are more than 256 classes.
      interval, bound: as in `certificates.certify_counts`.
      noise, grid: as in `count_votes`.
      how: batch_size, indices, draws_per_block, precision, mesh of `smoothing.count_votes`.

    Returns:
      Certificates with .prediction (N,), -1 where it abstains, and .radius (N,).

    Raises:
      UserError: for whatever cannot be certified, in one line.
    """
    check_budget(check_whole("num_draws", num_draws, 1), alpha, 2, interval, bound)
    classifier, series = as_classifier(predict, variables, num_classes), with_channels(x)
    counts = count_votes(
        classifier,
        series,
        sigma=sigma,
        num_draws=num_draws,
        key=stream(0, "certification") if key is None else key,
        noise=noise,
        grid=grid,
        **how,
    )
    given_up = correction(noise, sigma, grid, series[0].size if len(series) else 1)
    return certify_counts(counts, sigma, alpha, interval, bound, given_up)


def count_votes(
    predict: Predict,
    x: np.ndarray,
    *,
    sigma: float,
    num_draws: int = 1000,
    key: jax.Array,
    batch_size: int | None = None,
    indices: np.ndarray | None = None,
    first_draw: int = 0,
    draws_per_block: int | None = None,
    precision: str = "float32",
    mesh: Mesh | None = None,
    noise: str = "grid",
    grid: float | None = None,
) -> np.ndarray:
    """Counts the votes of the smoothed classifier (Algorithm 2, lines 1 to 5).

    Args:
      predict: maps noised series (B, T, C) to logits (B, K), one row whatever the others are. It
        must be a pytree whose weights are leaves, as `self_ensemble` and `jax.tree_util.Partial`
        make; a plain function has its weights compiled in. What JAX cannot compile is called on
        the host, with NumPy arrays; see `certify`.
      x: (N, T, C) series, in the units in which the radius is meant.
      sigma: standard deviation of the noise, in the units of x; rounded up to float32, so that
        a radius computed with it is never too large.
      num_draws: n, noise draws an example.
      key: the random key of the noise.
      batch_size: noised series in flight in one call (times m masks inside `predict`): it
        bounds memory and changes no count; `blocks.default_batch_size` if None.
      indices: (N,) each example's index in its data set, which keys its noise; 0..N-1 if None.
      first_draw: the first draw's number: the counts of draws [0, a) and [a, b) add up to those
        of [0, b).
      draws_per_block: draws of one network call; `blocks.default_draws_per_block` if None. It is
        part of the classifier, down to the last bit of its rounding.
      precision: of products on an accelerator, one of `blocks.PRECISIONS`; part of the classifier
        too. A CPU computes in float32 whatever it is.
      mesh: a one-dimensional device mesh to spread the blocks over; one device if None.
      noise: "grid", for which the guarantee is proven for any classifier, or "float32", that of
        `jax.random.normal`, which a classifier could recognise (see `noise`).
      grid: q, a power of two; `noise.default_grid(sigma)` if None. Series are rounded to it.

    Returns:
      (N, K) int64 counts; every row sums to num_draws.

    Raises:
      UserError: for x that is not finite or not (N, T, C), sigma that is not positive or too small
        for float32 near the largest value of x, an index or a draw outside [0, 2**32 - 1), an
        unknown precision, num_draws, batch_size or draws_per_block below 1, a predict that returns
        anything else than logits (B, K) or whose rows depend on each other, or NaN from it.
    """
    program = blocks.prepare(
        predict,
        x,
        sigma=sigma,
        key=key,
        batch_size=batch_size,
        draws_per_block=draws_per_block,
        indices=indices,
        precision=precision,
        mesh=mesh,
        noise=noise,
        grid=grid,
    )
    rows, draws = blocks.cut(program, first_draw, num_draws)
    counts = np.zeros((len(program.x), program.num_classes), np.int64)
    for which, votes in blocks.compute(program, vote, rows, draws):
        np.add.at(counts, rows[which], votes)
    return check_no_loss(counts, num_draws, program.indices)


def vote(block: Block) -> jax.Array:
    """The votes (K,) of a block's draws: argmax of the mean over masks under shared noise."""
    logits = mean_logits(block.predict, noised(block))
    return tally(block, logits)


@blocks.compiled
def noised(block: Block) -> jax.Array:
    """x + noise_d for each draw of a block, (B, T, C)."""
    example_key = jax.random.fold_in(block.key, block.index)
    draw_keys = jax.vmap(partial(jax.random.fold_in, example_key))(block.draws)
    return block.series[None] + block.noise.draw(draw_keys, block.series.shape)


@blocks.compiled
def tally(block: Block, logits: jax.Array, among: jax.Array | bool = True) -> jax.Array:
    """Votes (K,) of logits (B, K), of the draws `among` (B,); NaN logits vote for nobody."""
    check_num_classes(logits, block.num_classes)
    counted = among & block.is_draw() & ~jnp.isnan(logits).any(axis=-1)
    votes = jax.nn.one_hot(logits.argmax(axis=-1), block.num_classes, dtype=jnp.int32)
    return jnp.where(counted[:, None], votes, 0).sum(axis=0)


def with_channels(x: Any) -> np.ndarray:
    """Series (N, T) or (N, T, C) as one array (N, T, C)."""
    try:
        series = x if np.ma.isMaskedArray(x) else np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, tensors with gradients
        reason = " ".join(str(error).split())
        raise UserError(f"x must be one array, (N, T) or (N, T, C): {reason}") from None
    if series.ndim not in (2, 3):
        one = "; one series alone is x[None]" if series.ndim == 1 else ""
        raise UserError(f"x must be of shape (N, T) or (N, T, C), not {series.shape}{one}")
    return series[:, :, None] if series.ndim == 2 else series


def check_no_loss(counts: np.ndarray, num_draws: int, indices: np.ndarray) -> np.ndarray:
    """The counts (N, K); raises UserError if a draw of an example voted for nobody."""
    lost = num_draws - counts.sum(axis=1)
    if lost.any():
        worst = int(lost.argmax())
        raise UserError(
            f"the network returned NaN on {lost[worst]} of {num_draws} draws of example "
            f"{indices[worst]}: nothing can be certified; look at its weights and at the scale of "
            "the series"
        )
    return counts
