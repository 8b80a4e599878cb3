"""The votes of a smoothed classifier, counted in three ways; the public names of counting.

`count_votes` is Algorithm 2's (see `certification`). `count_consensus_votes` asks most members of
an ensemble only where the first disagree. `draw_logits` returns what the votes are taken from.
"""

import jax
import numpy as np
from jax.sharding import Mesh

from selfens_jax import blocks
from selfens_jax.blocks import PRECISIONS, Block, default_batch_size, default_draws_per_block
from selfens_jax.certification import check_no_loss, count_votes, noised, tally
from selfens_jax.ensembles import (
    Consensus,
    DeepEnsemble,
    Predict,
    SelfEnsemble,
    consensus,
    deep_ensemble,
    mean_logits,
    self_ensemble,
)
from selfens_jax.errors import UserError

__all__ = [
    "PRECISIONS",
    "Consensus",
    "DeepEnsemble",
    "Predict",
    "SelfEnsemble",
    "consensus",
    "count_consensus_votes",
    "count_votes",
    "deep_ensemble",
    "default_batch_size",
    "default_draws_per_block",
    "draw_logits",
    "mean_logits",
    "self_ensemble",
]

UNDECIDED_PER_BLOCK = 20  # draws of one example on which a consensus was not reached


def count_consensus_votes(
    predict: Consensus,
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
) -> tuple[np.ndarray, np.ndarray]:
    """Counts the votes of a consensus, asking all members only where the first disagree.

    A draw costs `predict.first` forward passes, and the other members' only where those disagree:
    such draws of one example are gathered, in their order, into blocks of `UNDECIDED_PER_BLOCK`,
    for which the noise is made again from its keys. No block mixes examples, so that here, too,
    counts do not depend on how the work is cut.

    Args:
      predict: from `consensus`.
      x: as all that follows, as in `count_votes`.

    Returns:
      (N, K) int64 counts, and (N,) int64 the number of draws that needed every member.

    Raises:
      UserError: as `count_votes`, and for a predict that is no consensus.
    """
    if not isinstance(predict, Consensus):
        raise UserError("predict must be a consensus, which smoothing.consensus(ensemble, k) makes")
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
    undecided = []
    for which, (votes, asks, sums) in blocks.compute(program, _vote_of_first, rows, draws):
        np.add.at(counts, rows[which], votes)
        block, position = np.nonzero(asks)
        asked = (rows[which][block], draws[which][block, position], sums[block, position])
        undecided.append(asked)
    row, draw, first_sum = (np.concatenate(parts) for parts in zip(*undecided, strict=True))

    rows, draws, sums = blocks.gather(row, draw, first_sum, UNDECIDED_PER_BLOCK)
    # Padding blocks cost as much as others, and few draws come here: few blocks in a call.
    for which, votes in blocks.compute(program, _vote_of_all, rows, draws, sums, share=0.02):
        np.add.at(counts, rows[which], votes)
    asked_all = np.bincount(row, minlength=len(counts))
    return check_no_loss(counts, num_draws, program.indices), asked_all


def draw_logits(
    predict: Predict,
    x: np.ndarray,
    *,
    sigma: float,
    num_draws: int = 1000,
    key: jax.Array,
    batch_size: int | None = None,
    indices: np.ndarray | None = None,
    precision: str = "float32",
    noise: str = "grid",
    grid: float | None = None,
) -> np.ndarray:
    """The logits (N, num_draws, K) whose argmax `count_votes` counts.

    Args:
      predict: as all that follows, as in `count_votes`.

    Raises:
      UserError: as `count_votes`, but not for NaN.
    """
    program = blocks.prepare(
        predict,
        x,
        sigma=sigma,
        key=key,
        batch_size=batch_size,
        indices=indices,
        precision=precision,
        noise=noise,
        grid=grid,
    )
    rows, draws = blocks.cut(program, 0, num_draws)
    calls = blocks.compute(program, _logits, rows, draws)
    logits = np.concatenate([logits for _, logits in calls])
    return logits.reshape(len(program.x), -1, program.num_classes)[:, :num_draws]


# What one block comes to


def _logits(block: Block) -> jax.Array:
    return mean_logits(block.predict, noised(block))


def _vote_of_first(block: Block) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Votes (K,) of the agreed draws; which draws (B,) were not; the first members' sums (B, K)."""
    first_sum, agreed = block.predict.begin(noised(block))
    return tally(block, first_sum, agreed), ~agreed & block.is_draw(), first_sum


def _vote_of_all(block: Block, first_sum: jax.Array) -> jax.Array:
    return tally(block, block.predict.complete(noised(block), first_sum))
