"""Algorithm 2, its device half: the votes of a smoothed (self-)ensemble.

    noise_1, ..., noise_n ~ N(0, sigma^2 I)
    vote_d = argmax_k  mean_i f(M_i * (x + noise_d))_k
    counts = the number of votes for each class

The m masks of a draw share its noise, and the logits, not the votes, are averaged. Everything
statistical starts from the counts (`certificates.certify_counts`).

The classifier being certified must be one fixed function. Float rounding can depend on the shape
a kernel is compiled for, so every network call here has the same shape: `DRAWS_PER_BLOCK` draws
of one example, the last block padded. How the blocks are grouped into calls, reordered or spread
over devices changes neither their shape nor their noise: draw d of example i is keyed by
`fold_in(fold_in(key, i), d)`.
"""

import collections
import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec

from selfens_jax import models
from selfens_jax.errors import UserError

DRAWS_PER_BLOCK = 100  # times 5 masks, a block of activations stays in a CPU's cache

Predict = Callable[[jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SelfEnsemble:
    """predict: series (B, T, C) -> mean logits (B, K) of one network under m masks (Eq. 7)."""

    model: nn.Module = dataclasses.field(metadata={"static": True})
    variables: dict
    masks: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        masked = self.masks[:, None, :, None] * x
        logits = jax.vmap(lambda v: self.model.apply(self.variables, v, train=False))(masked)
        return logits.mean(axis=0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeepEnsemble:
    """predict: series (B, T, C) -> mean logits (B, K) of independently trained networks (Eq. 5)."""

    model: nn.Module = dataclasses.field(metadata={"static": True})
    stacked_variables: dict

    def __call__(self, x: jax.Array) -> jax.Array:
        # Members written out one after another: on CPU, vmap over weights makes slow grouped
        # convolutions, and a loop over members would make their gradients (attacks) slow.
        members = models.unstack(self.stacked_variables)
        logits = [self.model.apply(variables, x, train=False) for variables in members]
        return jnp.stack(logits).mean(axis=0)


def self_ensemble(model: nn.Module, variables: dict, masks: jax.Array) -> SelfEnsemble:
    """The self-ensemble of a network under masks (m, T); m = 1 and ones is the plain network.

    Raises:
      UserError: if the masks are not a matrix of zeros and ones.
    """
    values = np.asarray(masks)
    if values.ndim != 2 or not np.isin(values, (0, 1)).all():
        raise UserError(f"masks must be an (m, T) array of 0 and 1, not of shape {values.shape}")
    return SelfEnsemble(model, variables, jnp.asarray(masks, jnp.float32))


def deep_ensemble(model: nn.Module, stacked_variables: dict) -> DeepEnsemble:
    """The deep ensemble of members whose variables are stacked along a first axis."""
    return DeepEnsemble(model, stacked_variables)


def mean_logits(predict: Predict, x: jax.Array) -> jax.Array:
    """Logits (B, K) of `predict`, averaged over members where it returns (members, B, K)."""
    logits = predict(x)
    return logits.mean(axis=0) if logits.ndim == 3 else logits


def default_batch_size() -> int:
    """Noised series in flight that keep this backend busy: an example of n = 1000 on CPU."""
    return 1000 if jax.default_backend() == "cpu" else 64_000


def count_votes(
    predict: Predict,
    x: np.ndarray,
    *,
    sigma: float,
    num_draws: int = 1000,
    key: jax.Array,
    batch_size: int = 1000,
    indices: np.ndarray | None = None,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Counts the votes of the smoothed classifier (Algorithm 2, lines 4 to 7).

    Args:
      predict: maps noised series (B, T, C) to logits (B, K), or (members, B, K), which are
        averaged over members. It must be a pytree whose weights are leaves, as `self_ensemble`
        and `jax.tree_util.Partial` make; a plain function has its weights compiled in.
      x: (N, T, C) series, in the units in which the radius is meant.
      sigma: standard deviation of the noise, in the units of x; rounded up to float32, so that
        a radius computed with it is never too large.
      num_draws: n, noise draws an example.
      key: the random key of the noise.
      batch_size: noised series in flight in one call (times m masks inside `predict`): it
        bounds memory and changes no count.
      indices: (N,) each example's index in its data set, which keys its noise; 0..N-1 if None.
      mesh: a one-dimensional device mesh to spread the blocks over; one device if None.

    Returns:
      (N, K) int64 counts; every row sums to num_draws.

    Raises:
      UserError: for x that is not finite or not (N, T, C), sigma that is not positive, an index
        outside [0, 2**32), num_draws or batch_size below 1, or a network that returns NaN.
    """
    x = np.asarray(x, np.float32)
    indices = np.arange(len(x)) if indices is None else np.asarray(indices)
    _check(x, sigma, num_draws, batch_size, indices)
    if jax.tree_util.all_leaves([predict]):  # a plain function
        predict = jax.tree_util.Partial(predict)
    devices = 1 if mesh is None else mesh.size
    one = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    num_classes = jax.eval_shape(predict, one).shape[-1]
    counts = np.zeros((len(x), num_classes), np.int64)

    blocks_per_example = -(-num_draws // DRAWS_PER_BLOCK)
    rows = np.repeat(np.arange(len(x)), blocks_per_example)
    first_draws = np.tile(np.arange(blocks_per_example) * DRAWS_PER_BLOCK, len(x))
    per_call = min(max(1, batch_size // DRAWS_PER_BLOCK), len(rows))
    per_call = -(-per_call // devices) * devices

    in_flight: collections.deque[tuple[np.ndarray, jax.Array]] = collections.deque()

    def collect() -> None:
        done_rows, votes = in_flight.popleft()
        np.add.at(counts, done_rows, np.asarray(votes)[: len(done_rows)])

    for start in range(0, len(rows), per_call):
        row = rows[start : start + per_call]
        padding = (0, per_call - len(row))
        # A padding block starts at draw num_draws, so none of its votes count.
        first = np.pad(first_draws[start : start + per_call], padding, constant_values=num_draws)
        padded = np.pad(row, padding)
        votes = _count_blocks(
            predict,
            x[padded],
            indices[padded].astype(np.uint32),
            first.astype(np.uint32),
            np.uint32(num_draws),
            _round_up(sigma),
            key,
            num_classes=num_classes,
            mesh=mesh,
        )
        in_flight.append((row, votes))
        if len(in_flight) > 2:  # keep the device fed while the host adds up
            collect()
    while in_flight:
        collect()

    lost = num_draws - counts.sum(axis=1)
    if lost.any():
        worst = int(lost.argmax())
        raise UserError(
            f"the network returned NaN on {lost[worst]} of {num_draws} draws of example "
            f"{indices[worst]}: nothing can be certified; train it again"
        )
    return counts


@partial(jax.jit, static_argnames=("num_classes", "mesh"))
def _count_blocks(
    predict: Predict,
    x: jax.Array,
    indices: jax.Array,
    first_draws: jax.Array,
    num_draws: jax.Array,
    sigma: jax.Array,
    key: jax.Array,
    *,
    num_classes: int,
    mesh: Mesh | None,
) -> jax.Array:
    """Votes of each block: x (blocks, T, C), indices and first_draws (blocks,) -> (blocks, K)."""

    def blocks(predict, num_draws, sigma, key, x, indices, first_draws):
        return jax.lax.map(
            lambda block: _votes(predict, num_draws, sigma, key, num_classes, *block),
            (x, indices, first_draws),
        )

    if mesh is not None:
        (axis,) = mesh.axis_names
        shared, split = PartitionSpec(), PartitionSpec(axis)
        blocks = jax.shard_map(
            blocks,
            mesh=mesh,
            in_specs=(shared,) * 4 + (split,) * 3,
            out_specs=split,
            check_vma=False,
        )
    return blocks(predict, num_draws, sigma, key, x, indices, first_draws)


def _votes(
    predict: Predict,
    num_draws: jax.Array,
    sigma: jax.Array,
    key: jax.Array,
    num_classes: int,
    series: jax.Array,
    index: jax.Array,
    first_draw: jax.Array,
) -> jax.Array:
    draws = first_draw + jnp.arange(DRAWS_PER_BLOCK, dtype=jnp.uint32)
    example_key = jax.random.fold_in(key, index)
    draw_keys = jax.vmap(partial(jax.random.fold_in, example_key))(draws)
    noise = jax.vmap(lambda k: jax.random.normal(k, series.shape))(draw_keys)
    logits = mean_logits(predict, series + sigma * noise)
    counted = (draws < num_draws) & ~jnp.isnan(logits).any(axis=-1)
    votes = jax.nn.one_hot(logits.argmax(axis=-1), num_classes, dtype=jnp.int32)
    return jnp.where(counted[:, None], votes, 0).sum(axis=0)


def _round_up(sigma: float) -> np.float32:
    # Never less noise than the radius is computed for.
    single = np.float32(sigma)
    return single if float(single) >= sigma else np.nextafter(single, np.float32(np.inf))


def _check(
    x: np.ndarray, sigma: float, num_draws: int, batch_size: int, indices: np.ndarray
) -> None:
    if x.ndim != 3:
        raise UserError(f"x must be (examples, time, channels), not of shape {x.shape}")
    if not np.isfinite(x).all():
        raise UserError("x contains NaN or infinity: nothing can be certified")
    if not (np.isfinite(sigma) and sigma > 0):
        raise UserError(f"sigma must be positive and finite, not {sigma}")
    if num_draws < 1 or batch_size < 1:
        raise UserError(f"num_draws ({num_draws}) and batch_size ({batch_size}) must be at least 1")
    whole = indices.shape == x.shape[:1] and indices.dtype.kind in "iu"
    if not whole or (indices < 0).any() or (indices >= 2**32).any():
        raise UserError("indices must hold one integer in [0, 2**32) for each example of x")
