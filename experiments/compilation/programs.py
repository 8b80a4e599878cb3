"""The library's own programs of accelerators, lowered for a described device."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from common import flop

import jax
import jax.numpy as jnp
import numpy as np
from compilation import reading, targets
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selfens_jax import attacks, backend, blocks, certification, ensembles, models, noise, training

CLASSES = 3
SIGMA = 0.8
EXAMPLES = 30  # CBF's training split, which a batch holds whole
STEPS = 10  # of a call of an attack; one program has one loop, whatever the number
ATTACK_DRAWS = 16
WHAT = ("certify", "train", "attack")


@dataclasses.dataclass(frozen=True)
class Case:
    """What is compiled.

    networks: trained side by side; devices: that blocks are spread over; draws: of a block, those
    of the library if None.
    """

    target: str
    what: str
    model: str
    length: int
    precision: str = "float32"
    ensemble: str = "mc"
    num_members: int = 5  # masks, or networks of a deep ensemble
    networks: int = 1
    devices: int = 1
    draws: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(Case):
    """What came of it; figures of one block or step, None where the compiler does not tell."""

    compile_seconds: float
    temporary_mb: float | None
    kernels: int
    moved_mb: float | None  # on a GPU
    collectives: int
    megacycles: float | None  # on a TPU
    gigaflops: float  # of the networks alone
    share: float | None  # of the peak at this precision, implied by the cycles
    milliseconds: float | None  # of cycles; on a GPU a lower bound, by bytes and operations


def compile_case(case: Case) -> Row:
    """Compiles a case and reads what the compiler made.

    Raises:
      UserError: if the target cannot be compiled for here.
    """
    target = targets.TARGETS[case.target]
    mesh = Mesh(np.array(targets.devices(case.target)[: case.devices]), ("devices",))
    with backend.compiling_for(target.kind):
        draws = 0
        if case.what == "certify":
            draws = case.draws or blocks.default_draws_per_block(case.length)
        case = dataclasses.replace(case, draws=draws)
        lower = {"certify": _certification, "train": _training, "attack": _attack}[case.what]
        began = time.monotonic()
        with jax.default_matmul_precision(case.precision):
            lowered = lower(case, mesh)
        with targets.quiet():
            compiled = lowered.compile()
        seconds = time.monotonic() - began
    flops = _flops(case, draws)
    memory = compiled.memory_analysis()
    steps = training.STEPS_PER_REPORT if case.what == "train" else None
    found = reading.figures(compiled.as_text(), steps)
    on_tpu = target.kind == "tpu"
    peak, cycles = 1e12 * target.peak[case.precision], found.megacycles
    if on_tpu:
        milliseconds = None if cycles is None else cycles / target.clock
    else:
        milliseconds = 1e3 * max(found.megabytes / 1e3 / target.bandwidth, flops / peak)
    share = None
    if on_tpu and cycles:
        share = flops / (cycles * 1e6 / (target.clock * 1e9)) / peak
    return Row(
        **dataclasses.asdict(case),
        compile_seconds=seconds,
        temporary_mb=None if memory is None else memory.temp_size_in_bytes / 1e6,
        kernels=found.kernels,
        moved_mb=None if on_tpu else found.megabytes,
        collectives=found.collectives,
        megacycles=cycles,
        gigaflops=flops / 1e9,
        share=share,
        milliseconds=milliseconds,
    )


def _variables(case: Case) -> Any:
    """Shapes of a network's variables."""
    series = jnp.zeros((1, case.length, 1))
    model = models.create(case.model, CLASSES)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), series))


def _classifier(case: Case) -> ensembles.SelfEnsemble | ensembles.DeepEnsemble:
    model, variables = models.create(case.model, CLASSES), _variables(case)
    if case.ensemble == "de":
        stacked = jax.tree.map(
            lambda leaf: _shape((case.num_members, *leaf.shape), leaf.dtype), variables
        )
        return ensembles.DeepEnsemble(model, stacked)
    masks: Any = _shape((case.num_members, case.length), jnp.float32)
    return ensembles.SelfEnsemble(model, variables, masks)


def _shape(shape: Sequence[int], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(tuple(shape), dtype)


def _on(mesh: Mesh, tree: Any, *axes: str) -> Any:
    """The arrays of a tree as shapes on the devices of a mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def _certification(case: Case, mesh: Mesh) -> Any:
    assert case.draws is not None
    size = (1, case.length, 1)
    grid_noise, _ = noise.make_noise(
        "grid", SIGMA, None, np.zeros(size), np.zeros(size, np.float32)
    )
    number = case.devices * (blocks.default_batch_size() // case.draws)
    shared = _on(mesh, (_classifier(case), grid_noise, jax.random.key(0)))
    each = (
        _shape((number, case.length, 1), jnp.float32),
        _shape((number,), jnp.uint32),
        _shape((number, case.draws), jnp.uint32),
    )
    return blocks.on_device().lower(
        *shared,
        _on(mesh, each, "devices"),
        _on(mesh, _shape((case.devices,), jnp.int32), "devices"),
        function=certification.vote,
        num_classes=CLASSES,
        mesh=mesh if case.devices > 1 else None,
    )


def _training(case: Case, mesh: Mesh) -> Any:
    model = models.create(case.model, CLASSES)
    config = training.TrainConfig(ensemble=case.ensemble, sigma=SIGMA)
    trainer = training.Trainer(model, config, EXAMPLES)
    x = np.zeros((EXAMPLES, case.length, 1), np.float32)
    state = jax.eval_shape(lambda: training.init_states(trainer, x)[0])
    networks = ((each,) * case.networks for each in (trainer.noise("training")[0], state))
    arrays = (_shape((CLASSES,), jnp.float32), *networks, _shape(x.shape, x.dtype),
              _shape((EXAMPLES,), jnp.int32))  # fmt: skip
    return training._scanned_steps.lower(
        trainer.step, *_on(mesh, arrays), training.STEPS_PER_REPORT
    )


def _attack(case: Case, mesh: Mesh) -> Any:
    number = attacks.EXAMPLES_PER_CALL
    x, each = _shape((number, case.length, 1), jnp.float32), _shape((number,), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), number))
    labels = _shape((number,), jnp.int32)
    attack = attacks._Attack(
        _classifier(case), _shape((), jnp.float32), x, labels, each, each, keys
    )
    state = (x, x, each)
    shaped = _on(mesh, (attack, keys, state))
    return attacks.scanned_steps().lower(*shaped, STEPS, ATTACK_DRAWS)


def _flops(case: Case, draws: int) -> float:
    """Operations of the networks' products in a block or step.

    A training step is three forward passes' worth; so is one of an attack, which needs no gradient
    of weights but compares its point on other noise.
    """
    passes = {
        "certify": draws * case.num_members,
        "train": 3 * EXAMPLES * case.networks,
        "attack": 3 * attacks.EXAMPLES_PER_CALL * ATTACK_DRAWS * case.num_members,
    }
    one = flop.of_forward_pass(models.create(case.model, CLASSES), case.length)
    return passes[case.what] * one
