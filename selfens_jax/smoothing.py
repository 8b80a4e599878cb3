"""Algorithm 2, its device half: the votes of a smoothed (self-)ensemble.

    noise_1, ..., noise_n ~ N(0, sigma^2 I)
    vote_d = argmax_k  mean_i f(M_i * (x + noise_d))_k
    counts = the number of votes for each class

The m masks of a draw share its noise, and the logits, not the votes, are averaged. Everything
statistical starts from the counts (`certificates.certify_counts`).

The classifier being certified must be one fixed function. Float rounding can depend on the shape
a kernel is compiled for, so every network call here has the same shape: a block of
`draws_per_block` draws of one example, the last block padded. How the blocks are grouped into
calls, reordered or spread over devices changes neither their shape nor their noise: draw d of
example i is keyed by `fold_in(fold_in(key, i), d)`.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selfens_jax.classifiers import as_pytree, check_classifier
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
from selfens_jax.errors import (
    UserError,
    check_number,
    check_resolution,
    check_series,
    check_whole,
)

__all__ = [
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

PRECISIONS = ("float32", "tensorfloat32", "bfloat16")

_NO_DRAW = np.uint32(2**32 - 1)  # fills blocks up; never counted


def default_batch_size() -> int:
    """Noised series in flight that keep this backend busy: an example of n = 1000 on a CPU."""
    return 1000 if jax.default_backend() == "cpu" else 64_000


def default_draws_per_block() -> int:
    """Draws of one network call: on a CPU few enough that their activations stay in its cache."""
    return 20 if jax.default_backend() == "cpu" else 100


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
) -> np.ndarray:
    """Counts the votes of the smoothed classifier (Algorithm 2, lines 4 to 7).

    Args:
      predict: maps noised series (B, T, C) to logits (B, K), one row whatever the others are. It
        must be a pytree whose weights are leaves, as `self_ensemble` and `jax.tree_util.Partial`
        make; a plain function has its weights compiled in. One that JAX cannot compile, of NumPy
        or another library, is called through `jax.pure_callback`.
      x: (N, T, C) series, in the units in which the radius is meant.
      sigma: standard deviation of the noise, in the units of x; rounded up to float32, so that
        a radius computed with it is never too large.
      num_draws: n, noise draws an example.
      key: the random key of the noise.
      batch_size: noised series in flight in one call (times m masks inside `predict`): it
        bounds memory and changes no count; `default_batch_size` if None.
      indices: (N,) each example's index in its data set, which keys its noise; 0..N-1 if None.
      first_draw: the first draw's number: the counts of draws [0, a) and [a, b) add up to those
        of [0, b).
      draws_per_block: draws of one network call; `default_draws_per_block` if None. It is part of
        the classifier, down to the last bit of its rounding.
      precision: of products on an accelerator, one of PRECISIONS; part of the classifier too. A
        CPU computes in float32 whatever it is.
      mesh: a one-dimensional device mesh to spread the blocks over; one device if None.

    Returns:
      (N, K) int64 counts; every row sums to num_draws.

    Raises:
      UserError: for x that is not finite or not (N, T, C), sigma that is not positive or too small
        for float32 near the largest value of x, an index or a draw outside [0, 2**32 - 1), an
        unknown precision, num_draws, batch_size or draws_per_block below 1, a predict that returns
        anything else than logits (B, K) or whose rows depend on each other, or NaN from it.
    """
    program = _program(
        predict, x, sigma, key, batch_size, indices, draws_per_block, precision, mesh
    )
    rows, draws = _blocks(len(program.x), first_draw, num_draws, program.draws_per_block)
    counts = np.zeros((len(program.x), program.num_classes), np.int64)
    for some, votes in _calls(program, _vote, rows, draws):
        np.add.at(counts, rows[some], votes)
    return _without_loss(counts, num_draws, program.indices)


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
) -> tuple[np.ndarray, np.ndarray]:
    """Counts the votes of a consensus, asking all members only where the first disagree.

    A draw costs `predict.first` forward passes, and the other members' only where those disagree:
    such draws of one example are gathered, in their order, into blocks of `UNDECIDED_PER_BLOCK`,
    for which the noise is made again from its keys. No block mixes examples, so that here, too,
    counts do not depend on how the work is cut.

    Args, errors: as in `count_votes`.

    Returns:
      (N, K) int64 counts, and (N,) int64 the number of draws that needed every member.
    """
    if not isinstance(predict, Consensus):
        raise UserError("predict must be a consensus, which smoothing.consensus(ensemble, k) makes")
    program = _program(
        predict, x, sigma, key, batch_size, indices, draws_per_block, precision, mesh
    )
    rows, draws = _blocks(len(program.x), first_draw, num_draws, program.draws_per_block)
    counts = np.zeros((len(program.x), program.num_classes), np.int64)
    undecided = []
    for some, (votes, asks, sums) in _calls(program, _vote_of_first, rows, draws):
        np.add.at(counts, rows[some], votes)
        block, place = np.nonzero(asks)
        undecided.append((rows[some][block], draws[some][block, place], sums[block, place]))
    row, draw, first_sum = (np.concatenate(parts) for parts in zip(*undecided, strict=True))

    rows, (draws, sums) = _gathered(row, draw, first_sum)
    # Padding blocks cost as much as others, and few draws come here: few blocks in a call.
    for some, votes in _calls(program, _vote_of_all, rows, draws, sums, share=0.02):
        np.add.at(counts, rows[some], votes)
    asked_all = np.bincount(row, minlength=len(counts))
    return _without_loss(counts, num_draws, program.indices), asked_all


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
) -> np.ndarray:
    """The logits (N, num_draws, K) whose argmax `count_votes` counts.

    Args, errors: as in `count_votes`.
    """
    program = _program(predict, x, sigma, key, batch_size, indices, None, precision, None)
    rows, draws = _blocks(len(program.x), 0, num_draws, program.draws_per_block)
    calls = _calls(program, _mean_logits, rows, draws)
    logits = np.concatenate([logits for _, logits in calls])
    return logits.reshape(len(program.x), -1, program.num_classes)[:, :num_draws]


# What one block computes. draws: (B,) uint32, _NO_DRAW where padded.


def _mean_logits(block: "_Block") -> jax.Array:
    return mean_logits(block.predict, block.noised())


def _vote(block: "_Block") -> jax.Array:
    return block.votes(_mean_logits(block))


def _vote_of_first(block: "_Block") -> tuple[jax.Array, jax.Array, jax.Array]:
    """Votes (K,) of the agreed draws; which draws (B,) were not; the first members' sums (B, K)."""
    first_sum, agreed = block.predict.begin(block.noised())
    return block.votes(first_sum, agreed), ~agreed & block.counted(), first_sum


def _vote_of_all(block: "_Block", first_sum: jax.Array) -> jax.Array:
    return block.votes(block.predict.complete(block.noised(), first_sum))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Block:
    """Some draws of one example."""

    predict: Any
    sigma: jax.Array
    key: jax.Array
    series: jax.Array  # (T, C)
    index: jax.Array
    draws: jax.Array  # (B,)
    num_classes: int = dataclasses.field(metadata={"static": True})

    def noised(self) -> jax.Array:
        """(B, T, C)"""
        example_key = jax.random.fold_in(self.key, self.index)
        draw_keys = jax.vmap(partial(jax.random.fold_in, example_key))(self.draws)
        noise = jax.vmap(lambda k: jax.random.normal(k, self.series.shape, jnp.float32))(draw_keys)
        return self.series[None] + self.sigma * noise

    def counted(self) -> jax.Array:
        return self.draws != _NO_DRAW

    def votes(self, logits: jax.Array, of: jax.Array | bool = True) -> jax.Array:
        """Counts (K,) of the draws `of` (B,); a draw with NaN logits votes for nobody."""
        counted = of & self.counted() & ~jnp.isnan(logits).any(axis=-1)
        votes = jax.nn.one_hot(logits.argmax(axis=-1), self.num_classes, dtype=jnp.int32)
        return jnp.where(counted[:, None], votes, 0).sum(axis=0)


@dataclasses.dataclass(frozen=True)
class _Program:
    """Everything that all blocks share."""

    predict: Any
    x: np.ndarray
    indices: np.ndarray
    sigma: np.float32
    key: jax.Array
    batch_size: int
    draws_per_block: int
    num_classes: int
    precision: str
    mesh: Mesh | None


def _program(
    predict: Predict,
    x: np.ndarray,
    sigma: float,
    key: jax.Array,
    batch_size: int | None,
    indices: np.ndarray | None,
    draws_per_block: int | None,
    precision: str,
    mesh: Mesh | None,
) -> _Program:
    batch_size = default_batch_size() if batch_size is None else batch_size
    if draws_per_block is None:
        draws_per_block = default_draws_per_block()
    x, sigma = check_series(x), check_number("sigma", sigma, 0, np.inf)
    check_resolution(x, sigma)
    check_whole("batch_size", batch_size, 1)
    check_whole("draws_per_block", draws_per_block, 1)
    indices = np.arange(len(x)) if indices is None else np.asarray(indices)
    whole = indices.shape == x.shape[:1] and indices.dtype.kind in "iu"
    if not whole or (indices < 0).any() or (indices >= 2**32).any():
        raise UserError("indices must hold one integer in [0, 2**32) for each example of x")
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}")
    if mesh is not None and not (isinstance(mesh, Mesh) and len(mesh.axis_names) == 1):
        raise UserError("mesh must be a jax.sharding.Mesh of one axis")
    predict, key = as_pytree(predict), _check_key(key)
    num_classes = check_classifier(predict, x, sigma, draws_per_block, precision)
    if mesh is not None:  # weights may be bound to one device, as those of a checkpoint can be
        predict, key = jax.device_put((predict, key), NamedSharding(mesh, PartitionSpec()))
    return _Program(
        predict=predict,
        x=x,
        indices=indices.astype(np.uint32),
        sigma=_round_up(sigma),
        key=key,
        batch_size=batch_size,
        draws_per_block=draws_per_block,
        num_classes=num_classes,
        precision=precision,
        mesh=mesh,
    )


# How blocks are cut, called and spread


def _blocks(
    num_examples: int, first_draw: int, num_draws: int, draws_per_block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Every example's draws in blocks: rows (blocks,) of examples and their draws (blocks, B)."""
    check_whole("num_draws", num_draws, 1)
    check_whole("first_draw", first_draw, 0)
    if first_draw + num_draws > int(_NO_DRAW):
        raise UserError(f"draws must be numbered from 0 to below {_NO_DRAW}, not {first_draw}")
    blocks = -(-num_draws // draws_per_block)
    draws = np.full(blocks * draws_per_block, _NO_DRAW)
    draws[:num_draws] = first_draw + np.arange(num_draws)
    of_one = draws.reshape(blocks, draws_per_block)
    return np.repeat(np.arange(num_examples), blocks), np.tile(of_one, (num_examples, 1))


def _gathered(
    row: np.ndarray, draw: np.ndarray, first_sum: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Single draws, in the order of their examples, in blocks of UNDECIDED_PER_BLOCK."""
    of_examples = np.split(np.arange(len(row)), np.flatnonzero(np.diff(row)) + 1)
    parts = [
        of_example[start : start + UNDECIDED_PER_BLOCK]
        for of_example in of_examples
        for start in range(0, len(of_example), UNDECIDED_PER_BLOCK)
    ]
    draws = np.full((len(parts), UNDECIDED_PER_BLOCK), _NO_DRAW)
    sums = np.zeros((*draws.shape, first_sum.shape[-1]), first_sum.dtype)
    for block, part in enumerate(parts):
        draws[block, : len(part)] = draw[part]
        sums[block, : len(part)] = first_sum[part]
    return np.array([row[part[0]] for part in parts], int), (draws, sums)


def _calls(
    program: _Program,
    compute: Callable,
    rows: np.ndarray,
    draws: np.ndarray,
    *more: np.ndarray,
    share: float = 1.0,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Computes blocks, this share of the batch size at a time.

    Yields (which blocks, their results), in order.
    """
    devices = 1 if program.mesh is None else program.mesh.size
    if not len(rows):
        return
    per_call = max(1, int(share * program.batch_size) // draws.shape[1])
    # Calls as equal as can be pad least. Elsewhere than on a CPU padding is cheaper than a program
    # for every number of blocks: those fill up to a power of two.
    per_call = -(-len(rows) // -(-len(rows) // per_call))
    if jax.default_backend() != "cpu":
        per_call = 1 << (per_call - 1).bit_length()
    per_call = -(-per_call // devices) * devices
    in_flight: collections.deque[tuple[np.ndarray, Any]] = collections.deque()

    def collect() -> tuple[np.ndarray, Any]:
        some, results = in_flight.popleft()
        return some, jax.tree.map(lambda r: np.asarray(r)[: len(some)], results)

    for start in range(0, len(rows), per_call):
        some = np.arange(start, min(start + per_call, len(rows)))
        padded = np.pad(some, (0, per_call - len(some)), mode="edge")
        draws_of_call = draws[padded]
        draws_of_call[len(some) :] = _NO_DRAW
        each = (
            program.x[rows[padded]],
            program.indices[rows[padded]],
            draws_of_call,
            *(values[padded] for values in more),
        )
        with jax.default_matmul_precision(program.precision):
            results = _compute(
                program.predict,
                program.sigma,
                program.key,
                each,
                compute=compute,
                num_classes=program.num_classes,
                mesh=program.mesh,
            )
        in_flight.append((some, results))
        if len(in_flight) > 2:  # keep the device fed while the host adds up
            yield collect()
    while in_flight:
        yield collect()


@partial(jax.jit, static_argnames=("compute", "num_classes", "mesh"))
def _compute(
    predict: Predict,
    sigma: jax.Array,
    key: jax.Array,
    each: tuple[jax.Array, ...],
    *,
    compute: Callable,
    num_classes: int,
    mesh: Mesh | None,
) -> Any:
    """compute(block, ...) of every block; each: series, index, draws and more, blocks first."""

    def blocks(predict, sigma, key, each):
        def of_one(one):
            series, index, draws, *more = one
            return compute(_Block(predict, sigma, key, series, index, draws, num_classes), *more)

        return jax.lax.map(of_one, each)

    if mesh is not None:
        (axis,) = mesh.axis_names
        shared, split = PartitionSpec(), PartitionSpec(axis)
        blocks = jax.shard_map(
            blocks,
            mesh=mesh,
            in_specs=(shared, shared, shared, split),
            out_specs=split,
            check_vma=False,
        )
    return blocks(predict, sigma, key, each)


def _without_loss(counts: np.ndarray, num_draws: int, indices: np.ndarray) -> np.ndarray:
    lost = num_draws - counts.sum(axis=1)
    if lost.any():
        worst = int(lost.argmax())
        raise UserError(
            f"the network returned NaN on {lost[worst]} of {num_draws} draws of example "
            f"{indices[worst]}: nothing can be certified; look at its weights and at the scale of "
            "the series"
        )
    return counts


def _check_key(key: jax.Array) -> jax.Array:
    # Other generators make noise that depends on how the draws are put into blocks.
    try:
        if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
            known = key.shape == () and str(jax.random.key_impl(key)) == "threefry2x32"
        else:
            known = key.shape == (2,) and key.dtype == np.uint32
            key = jax.random.wrap_key_data(key, impl="threefry2x32") if known else key
    except (AttributeError, TypeError):
        known = False
    if not known:
        raise UserError(
            "key must be one random key of JAX's generator threefry2x32, as streams.stream(seed, "
            "'certification') and jax.random.key(seed) are"
        )
    return key


def _round_up(sigma: float) -> np.float32:
    # Never less noise than the radius is computed for.
    single = np.float32(sigma)
    return single if float(single) >= sigma else np.nextafter(single, np.float32(np.inf))
