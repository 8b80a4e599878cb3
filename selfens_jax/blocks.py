"""How draws are cut into blocks, and how blocks are computed.

Float rounding can depend on the shape a kernel is compiled for, and the classifier that is
certified must be one fixed function. So every network call has the same shape: a block of some
draws of one example, the last one padded. How blocks are grouped into calls, reordered, or spread
over devices changes neither their shape nor their noise.

    program = prepare(predict, x, ...)           what all blocks share
    rows, draws = cut(...)  or  gather(...)      which draws of which example each block has
    for which, results in compute(program, function, rows, draws): ...

Nothing here knows what `function` makes of a block.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selfens_jax import backend, ensembles
from selfens_jax.classifiers import HostClassifier, as_classifier, check_classifier
from selfens_jax.errors import (
    UserError,
    check_number,
    check_resolution,
    check_series,
    check_whole,
)
from selfens_jax.noise import Noise, make_noise

PRECISIONS = ("float32", "tensorfloat32", "bfloat16")
TPU_STEPS_PER_BLOCK = 15_000  # draws * T
NO_DRAW = np.uint32(2**32 - 1)  # fills blocks up; never counted


def default_batch_size() -> int:
    """Noised series in flight that keep this backend busy: an example of n = 1000 on a CPU."""
    return 1000 if backend.on_cpu() else 64_000


def default_draws_per_block(length: int) -> int:
    """Draws of one network call, for series of this length.

    On a CPU few enough that their activations stay in its cache. On a TPU, too: the cycles that its
    compiler expects for a draw are fewest at 100 draws of 128 steps and rise by half at 200.
    """
    match backend.kind():
        case "cpu":
            return 20
        case "gpu":
            return 100
        case _:
            return min(100, max(10, TPU_STEPS_PER_BLOCK // length // 10 * 10))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Block:
    """Some draws of one example, and what their votes depend on."""

    predict: Any
    noise: Noise
    key: jax.Array
    series: jax.Array  # (T, C), on the grid of the noise
    index: jax.Array  # of the example in its data set
    draws: jax.Array  # (B,) uint32, NO_DRAW where padded
    num_classes: int = dataclasses.field(metadata={"static": True})

    def is_draw(self) -> jax.Array:
        """(B,) False where the block is only filled up."""
        return self.draws != NO_DRAW


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` of a function of a `Block` that does not look at its classifier.

    Without it, one program serves all classifiers, and keeps none of the host's in memory.
    """
    program = jax.jit(function)

    @wraps(function)
    def call(block: Block, *more: Any) -> Any:
        return program(dataclasses.replace(block, predict=None), *more)

    return call


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything that all blocks share, checked."""

    predict: Any
    x: np.ndarray
    indices: np.ndarray
    noise: Noise
    key: jax.Array
    batch_size: int
    draws_per_block: int
    num_classes: int
    precision: str
    mesh: Mesh | None


def prepare(
    predict: Any,
    x: np.ndarray,
    *,
    sigma: float,
    key: jax.Array,
    batch_size: int | None = None,
    draws_per_block: int | None = None,
    indices: np.ndarray | None = None,
    precision: str = "float32",
    mesh: Mesh | None = None,
    noise: str = "grid",
    grid: float | None = None,
) -> Program:
    """Checks what all blocks share; arguments and errors as in `smoothing.count_votes`."""
    given, x, sigma = x, check_series(x), check_number("sigma", sigma, 0, np.inf)
    batch_size = default_batch_size() if batch_size is None else batch_size
    if draws_per_block is None:
        draws_per_block = default_draws_per_block(x.shape[1])
    check_resolution(x, sigma)
    check_whole("batch_size", batch_size, 1)
    check_whole("draws_per_block", draws_per_block, 1)
    indices = np.arange(len(x)) if indices is None else np.asarray(indices)
    integers = indices.shape == x.shape[:1] and indices.dtype.kind in "iu"
    if not integers or (indices < 0).any() or (indices >= 2**32).any():
        raise UserError("indices must hold one integer in [0, 2**32) for each example of x")
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}")
    if mesh is not None and not (isinstance(mesh, Mesh) and len(mesh.axis_names) == 1):
        raise UserError("mesh must be a jax.sharding.Mesh of one axis")
    key = _check_key(key)
    made, x = make_noise(noise, sigma, grid, np.asarray(given, np.float64), x)
    predict, num_classes = check_classifier(
        as_classifier(predict), x, sigma, draws_per_block, precision
    )
    if isinstance(predict, HostClassifier):
        mesh = None  # it is called from here, whatever the devices
    if mesh is not None:  # weights may be bound to one device, as those of a checkpoint can be
        shared = (predict, key, made)
        predict, key, made = jax.device_put(shared, NamedSharding(mesh, PartitionSpec()))
    return Program(
        predict=predict,
        x=x,
        indices=indices.astype(np.uint32),
        noise=made,
        key=key,
        batch_size=batch_size,
        draws_per_block=draws_per_block,
        num_classes=num_classes,
        precision=precision,
        mesh=mesh,
    )


def cut(program: Program, first_draw: int, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Every example's draws in blocks: rows (blocks,) of examples and their draws (blocks, B)."""
    check_whole("num_draws", num_draws, 1)
    check_whole("first_draw", first_draw, 0)
    if first_draw + num_draws > int(NO_DRAW):
        raise UserError(f"draws must be numbered from 0 to below {NO_DRAW}, not {first_draw}")
    blocks = -(-num_draws // program.draws_per_block)
    draws = np.full(blocks * program.draws_per_block, NO_DRAW)
    draws[:num_draws] = first_draw + np.arange(num_draws)
    draws = draws.reshape(blocks, program.draws_per_block)
    num_examples = len(program.x)
    return np.repeat(np.arange(num_examples), blocks), np.tile(draws, (num_examples, 1))


def gather(
    row: np.ndarray, draw: np.ndarray, values: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Single draws, in the order of their examples, in blocks of `size` of one example each.

    Args:
      row, draw: (D,) the example and the number of each draw, rows in order.
      values: (D, ...) what goes with each.

    Returns:
      rows (blocks,), draws (blocks, size) and values (blocks, size, ...).
    """
    examples = np.split(np.arange(len(row)), np.flatnonzero(np.diff(row)) + 1)
    parts = [
        example[start : start + size]
        for example in examples
        for start in range(0, len(example), size)
    ]
    draws = np.full((len(parts), size), NO_DRAW)
    gathered = np.zeros((*draws.shape, *values.shape[1:]), values.dtype)
    for block, part in enumerate(parts):
        draws[block, : len(part)] = draw[part]
        gathered[block, : len(part)] = values[part]
    return np.array([row[part[0]] for part in parts], int), draws, gathered


def compute(
    program: Program,
    function: Callable[..., Any],
    rows: np.ndarray,
    draws: np.ndarray,
    *more: np.ndarray,
    share: float = 1.0,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Computes blocks, this share of the batch size in flight at a time.

    Args:
      function: maps a `Block`, and its part of `more`, to arrays; traced, except for a classifier
        of the host.
      rows, draws: from `cut` or `gather`.
      more: (blocks, ...) arrays.

    Yields:
      (which blocks, their results stacked), in order.
    """
    if not len(rows):
        return
    devices = _num_devices(program)
    per_call = max(1, int(share * program.batch_size) // draws.shape[1])
    if backend.on_cpu():
        # Calls as equal as can be pad least.
        per_call = -(-len(rows) // -(-len(rows) // per_call))
    per_call = -(-per_call // devices) * devices
    in_flight: collections.deque[tuple[np.ndarray, np.ndarray, Any]] = collections.deque()

    def collect() -> tuple[np.ndarray, Any]:
        which, places, results = in_flight.popleft()
        return which, jax.tree.map(lambda r: np.asarray(r)[places], results)

    for start in range(0, len(rows), per_call):
        which = np.arange(start, min(start + per_call, len(rows)))
        places = _places(program, len(which), per_call)
        results = _call(program, function, which, places, per_call, rows, draws, more)
        in_flight.append((which, places, results))
        if len(in_flight) > 2:  # keep the device fed while the host adds up
            yield collect()
    while in_flight:
        yield collect()


def _call(
    program: Program,
    function: Callable[..., Any],
    which: np.ndarray,
    places: np.ndarray,
    per_call: int,
    rows: np.ndarray,
    draws: np.ndarray,
    more: tuple[np.ndarray, ...],
) -> Any:
    """The results of the blocks `which`, at `places` among those of a padded call."""
    on_host = isinstance(program.predict, HostClassifier)
    padded = np.full(len(which) if on_host else per_call, which[-1])
    padded[places] = which
    draws_padded = np.full((len(padded), draws.shape[1]), NO_DRAW)
    draws_padded[places] = draws[which]
    each = (
        program.x[rows[padded]],
        program.indices[rows[padded]],
        draws_padded,
        *(values[padded] for values in more),
    )
    shared = (program.predict, program.noise, program.key)
    with jax.default_matmul_precision(program.precision):
        if on_host:
            results = [
                function(Block(*shared, series, index, block_draws, program.num_classes), *others)
                for series, index, block_draws, *others in zip(*each, strict=True)
            ]
            return jax.tree.map(lambda *r: np.stack(r), *results)
        return on_device()(
            *shared,
            each,
            None if backend.on_cpu() else _shares(program, len(which)),
            function=function,
            num_classes=program.num_classes,
            mesh=program.mesh,
        )


def _num_devices(program: Program) -> int:
    return 1 if program.mesh is None else program.mesh.size


def _shares(program: Program, number: int) -> np.ndarray:
    """(devices,) how many of so many blocks each device computes."""
    devices = _num_devices(program)
    return ((number + devices - 1 - np.arange(devices)) // devices).astype(np.int32)


def _places(program: Program, number: int, per_call: int) -> np.ndarray:
    """Where the blocks of a call stand in its arrays: each in turn on the next device.

    On a CPU one after another, as all are computed.
    """
    blocks = np.arange(number)
    if backend.on_cpu():
        return blocks
    devices = _num_devices(program)
    return blocks % devices * (per_call // devices) + blocks // devices


def _on_device(
    predict: Any,
    noise: Noise,
    key: jax.Array,
    each: tuple[jax.Array, ...],
    numbers: jax.Array | None,
    *,
    function: Callable[..., Any],
    num_classes: int,
    mesh: Mesh | None,
) -> Any:
    """function(block) of every block.

    Args:
      each: series, index, draws and more, blocks first.
      numbers: (devices,) how many of its blocks each device computes, the first ones; the results
        of the others are zeros. All of them if None.
    """

    def all_blocks(
        predict: Any, noise: Noise, key: jax.Array, each: tuple[Any, ...], numbers: Any
    ) -> Any:
        def one_block(one: tuple[Any, ...]) -> Any:
            series, index, draws, *more = one
            return function(Block(predict, noise, key, series, index, draws, num_classes), *more)

        if numbers is None:
            return jax.lax.map(one_block, each)
        return _map_first(one_block, each, numbers[0])

    if mesh is not None:
        (axis,) = mesh.axis_names
        shared, split = PartitionSpec(), PartitionSpec(axis)
        all_blocks = jax.shard_map(
            all_blocks,
            mesh=mesh,
            in_specs=(shared, shared, shared, split, split),
            out_specs=split,
            check_vma=False,
        )
    return all_blocks(ensembles.rounded(predict), noise, key, each, numbers)


on_device = backend.reproducible(_on_device, ("function", "num_classes", "mesh"))


def _map_first(function: Callable[[Any], Any], each: tuple[Any, ...], number: jax.Array) -> Any:
    """`jax.lax.map` over the first `number` rows, zeros after them; one program for any number."""

    def row(i: jax.Array) -> Any:
        return function(jax.tree.map(lambda rows: rows[i], each))

    def put(i: jax.Array, results: Any) -> Any:
        return jax.tree.map(lambda rows, result: rows.at[i].set(result), results, row(i))

    shapes = jax.eval_shape(row, jnp.int32(0))
    zeros = jax.tree.map(lambda s: jnp.zeros((len(each[0]), *s.shape), s.dtype), shapes)
    return jax.lax.fori_loop(0, number, put, zeros)


def _check_key(key: Any) -> jax.Array:
    # Other generators make noise that depends on how the draws are put into blocks.
    try:
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
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
