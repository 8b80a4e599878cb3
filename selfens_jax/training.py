"""Algorithm 1: train a classifier under Gaussian noise and random masks.

    for each batch (x, y):
        noise ~ N(0, sigma^2 I), M <- a fresh mask for every series  (none for `single` and `de`)
        theta <- theta - rate * grad L(f_theta(M * (x + noise)), y)              `train_step`

Adam, with balanced class weights unless told otherwise; the learning rate halves when the training
loss has not improved for 50 epochs. The test split takes no part. At the end the BatchNorm
statistics are estimated again under noise and masks with the final weights, because running
averages over the last few small batches make the last model's accuracy swing.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from selfens_jax import masks, models
from selfens_jax.errors import UserError, check_series
from selfens_jax.models.layers import BATCH_NORM_MOMENTUM
from selfens_jax.streams import stream

Variables = dict[str, Any]
CLASS_WEIGHTS = ("balanced", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a trained network depends on, besides its data and architecture.

    Attributes:
      ensemble: `single` (no mask), `de` (several networks without a mask), `mb`, `mc`.
      sigma: standard deviation of the training noise, in the units of the series; 0 for none.
      keep: p, the share of time steps that a mask keeps.
      num_members: networks trained; 1 except for `de`.
      batch_size: the largest batch. An epoch's batches are of equal size: 300 series in batches
        of at most 128 are 3 batches of 100.
      class_weights: `balanced`, every class has the same share of the loss, or `none`, every series
        has.
      learning_rate, plateau_*: Adam's rate, halved (factor) after `patience` epochs without a
        better training loss, down to `floor`.
      seed: fixes initialization, order, noise, masks and dropout.
    """

    ensemble: str = "mc"
    sigma: float = 0.8
    keep: float = 0.9
    num_members: int = 1
    epochs: int = 1000
    batch_size: int = 128
    class_weights: str = "balanced"
    learning_rate: float = 1e-3
    plateau_factor: float = 0.5
    plateau_patience: int = 50
    plateau_floor: float = 1e-4
    recalibration_passes: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ensemble not in masks.ENSEMBLES:
            raise UserError(
                f"unknown ensemble {self.ensemble!r}; choose from {', '.join(masks.ENSEMBLES)}"
            )
        if self.class_weights not in CLASS_WEIGHTS:
            raise UserError(
                f"unknown class_weights {self.class_weights!r}; choose from "
                f"{', '.join(CLASS_WEIGHTS)}"
            )
        if not (np.isfinite(self.sigma) and self.sigma >= 0):
            raise UserError(f"sigma must be a finite number >= 0, not {self.sigma}")
        if not 0 < self.keep <= 1:
            raise UserError(f"keep must be in (0, 1], not {self.keep}")
        if not 1e-37 < self.learning_rate < 3e38:  # the numbers of float32
            raise UserError(
                f"learning_rate must be positive and finite in float32, not {self.learning_rate}"
            )
        for name in ("num_members", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed must be in [0, 2**32), not {self.seed}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """One network in training; `step` counts its optimizer steps."""

    step: jax.Array
    params: Any  # trees of arrays
    batch_stats: Any
    opt_state: Any  # of `Step.optimizer`: Adam's, then that of the plateaus

    @property
    def variables(self) -> Variables:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


States = tuple[TrainState, ...]  # of a run's members
Rows = list[dict[str, float]]  # of a run's history


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Noise:
    """What a network does not share with those trained beside it."""

    key: jax.Array  # of its order, noise, masks and dropout, the same at every step
    sigma: jax.Array  # (), float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """All that a step of training depends on, but for its noise and data.

    Hashable, and without sigma and seed: one compiled program serves them all.
    """

    model: nn.Module
    ensemble: str
    keep: float
    num_examples: int
    steps_per_epoch: int
    batch_size: int
    learning_rate: float
    plateau_factor: float
    plateau_patience: int
    plateau_floor: float

    @property
    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        return optax.chain(
            optax.adam(self.learning_rate),
            optax.contrib.reduce_on_plateau(
                factor=self.plateau_factor,
                patience=self.plateau_patience,
                min_scale=min(1.0, self.plateau_floor / self.learning_rate),
                accumulation_size=self.steps_per_epoch,
            ),
        )


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The fixed surroundings of a training run."""

    model: nn.Module
    config: TrainConfig
    num_examples: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_examples // self.config.batch_size)

    def noise(self, name: str) -> tuple[Noise, ...]:
        """Each member's, of the stream `name`."""
        config = self.config
        keys = [stream(config.seed, name, member) for member in range(config.num_members)]
        return tuple(Noise(key, jnp.float32(config.sigma)) for key in keys)

    @property
    def step(self) -> Step:
        config = self.config
        return Step(
            model=self.model,
            ensemble=config.ensemble,
            keep=config.keep,
            num_examples=self.num_examples,
            steps_per_epoch=self.steps_per_epoch,
            batch_size=-(-self.num_examples // self.steps_per_epoch),
            learning_rate=config.learning_rate,
            plateau_factor=config.plateau_factor,
            plateau_patience=config.plateau_patience,
            plateau_floor=config.plateau_floor,
        )


def class_weights(y: np.ndarray, num_classes: int, kind: str = "balanced") -> np.ndarray:
    """(K,) float32: N / (K N_k), which gives every class the same share of the loss, or ones."""
    if kind == "none":
        return np.ones(num_classes, np.float32)
    of_class = np.maximum(np.bincount(y, minlength=num_classes), 1)  # a class may have no series
    return (len(y) / (num_classes * of_class)).astype(np.float32)


def init_states(trainer: Trainer, x: np.ndarray) -> States:
    """Fresh members for series x (N, T, C).

    Raises:
      UserError: if the network is none that `fit` can train.
    """
    _check_arguments(trainer.model)

    @jax.jit
    def init(key: jax.Array) -> TrainState:
        variables = dict(_init(trainer.model, key, jnp.zeros((1, *x.shape[1:])))[1])
        params, batch_stats = variables.pop("params", {}), variables.pop("batch_stats", {})
        if variables:
            raise UserError(
                f"the network has the variables {', '.join(variables)}; what can be trained has "
                "params, and batch_stats at most"
            )
        opt_state = trainer.step.optimizer.init(params)
        return TrainState(jnp.int32(0), params, batch_stats, opt_state)

    seed = trainer.config.seed
    members = range(trainer.config.num_members)
    return tuple(init(stream(seed, "initialization", member)) for member in members)


def _init(model: nn.Module, key: jax.Array, x: jax.Array) -> tuple[Any, Any]:
    """What a network with fresh variables answers in evaluation, and these variables."""
    evaluation: dict[str, Any] = {"train": False} if models.takes_train(model) else {}
    return model.init_with_output(key, x, **evaluation)


def _check_arguments(model: nn.Module) -> None:
    """Raises UserError unless a network can be called with series, and `train` at most."""
    others = list(inspect.signature(type(model).__call__).parameters.values())[2:]
    modes = ("training", "is_training", "deterministic", "use_running_average")
    for other in others:
        named = other.kind not in (other.VAR_POSITIONAL, other.VAR_KEYWORD)
        needed = named and other.default is other.empty
        switch = other.name in modes and not models.takes_train(model)
        if switch or (needed and other.name != "train"):
            raise UserError(
                f"the network's __call__ has an argument {other.name}; it is called with series, "
                "and train=True in training and False afterwards if it has an argument train"
            )
    try:
        hash(model)
    except TypeError:
        raise UserError(
            f"the network {type(model).__name__} holds a list or an array and so cannot be "
            "compiled once for all steps: give it tuples, as in nn.Sequential((...))"
        ) from None


def train_step(
    step: Step,
    class_weights: jax.Array,
    noise: Noise,
    state: TrainState,
    x: jax.Array,
    y: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of Algorithm 1 on the batch that `state.step` is due; pure.

    Args:
      step: what the steps of all networks share.
      class_weights: (K,), from `class_weights`.
      noise: this network's.
      state: this network's, before the step.
      x: (N, T, C) series, the complete training split.
      y: (N,) their class indices.

    Returns:
      The next state, and the step's loss, accuracy and learning rate.
    """
    rows, inputs, dropout_key = _inputs(step, noise, state.step, x)  # M * (x + sigma * noise)
    labels = y[rows]

    def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, batch_stats = _apply_in_training(step.model, variables, inputs, dropout_key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        loss = jnp.average(losses, weights=class_weights[labels])
        return loss, (logits, batch_stats)

    (loss, (logits, batch_stats)), gradient = jax.value_and_grad(loss_of, has_aux=True)(
        state.params
    )
    updates, opt_state = step.optimizer.update(gradient, state.opt_state, state.params, value=loss)
    next_state = TrainState(
        state.step + 1, optax.apply_updates(state.params, updates), batch_stats, opt_state
    )
    metrics = {
        "loss": loss,
        "accuracy": (logits.argmax(axis=-1) == labels).mean(),
        "learning_rate": step.learning_rate * next_state.opt_state[-1].scale,
    }
    return next_state, metrics


def noisy_masked(step: Step, noise: Noise, x: jax.Array) -> jax.Array:
    """M * (x + sigma * noise) with a fresh mask and noise for every series of x (B, T, C)."""
    noise_key, mask_key = jax.random.split(noise.key)
    noisy = x + noise.sigma * jax.random.normal(noise_key, x.shape)
    mask = masks.draw(step.ensemble, mask_key, x.shape[0], x.shape[1], step.keep)
    return mask[:, :, None] * noisy


def _apply_in_training(
    model: nn.Module, variables: Variables, inputs: jax.Array, dropout_key: jax.Array
) -> tuple[jax.Array, Any]:
    """Logits (B, K) in training, and the batch statistics after them; {} without BatchNorm."""
    training: dict[str, Any] = {"train": True} if models.takes_train(model) else {}
    logits, updated = model.apply(
        variables,
        inputs,
        **training,
        mutable=["batch_stats"],
        rngs={"dropout": dropout_key},
    )
    return logits, updated.get("batch_stats", {})


def train(
    trainer: Trainer,
    x: np.ndarray,
    y: np.ndarray,
    states: States,
    epochs_per_report: int = 10,
) -> Iterator[tuple[States, Rows]]:
    """Trains every member to `config.epochs`, reporting as it goes.

    A run may be cut at any report and continued from its states: the final parameters are the
    same bits, however it was cut.

    Args:
      trainer: what the run is.
      x: (N, T, C) series, the complete training split.
      y: (N,) their class indices.
      states: from `init_states`, or of an earlier report.
      epochs_per_report: epochs between two reports.

    Yields:
      (states, rows): the members after some more epochs, and for each of these epochs and each
      member a row of epoch (from 1), member, mean loss, mean accuracy and learning rate.
    """
    for (report,) in train_side_by_side((trainer,), x, y, (states,), epochs_per_report):
        yield report


def train_side_by_side(
    trainers: Sequence[Trainer],
    x: np.ndarray,
    y: np.ndarray,
    states: Sequence[States],
    epochs_per_report: int = 10,
) -> Iterator[list[tuple[States, Rows]]]:
    """Trains several runs that differ in sigma and seed, on an accelerator in one program.

    Each ends as if it had been trained alone: on a CPU with the same bits, on an accelerator up to
    float rounding, which may depend on how many networks are trained together.

    Args:
      trainers: what the runs are.
      states: of each run, as in `train`.
      x, y, epochs_per_report: as in `train`.

    Yields:
      For each run what `train` yields.

    Raises:
      UserError: if the runs differ in more than sigma and seed, or in how far they are trained; or
        if a loss or a weight is no finite number, before anything of that epoch is handed on.
    """
    flat = tuple(state for members in states for state in members)
    configs = [dataclasses.replace(t.config, sigma=0.0, seed=0) for t in trainers]
    (step, *others), steps = {t.step for t in trainers}, {int(s.step) for s in flat}
    if others or len(set(configs)) > 1 or len(steps) > 1:
        raise UserError("runs trained side by side may differ in sigma and seed only")
    config = configs[0]
    weights = jnp.asarray(class_weights(y, _num_classes(step.model, x, y), config.class_weights))
    series, labels = jnp.asarray(x), jnp.asarray(y)
    noise = tuple(each for t in trainers for each in t.noise("training"))
    members = config.num_members
    done = steps.pop() // step.steps_per_epoch
    while done < config.epochs:
        epochs = min(epochs_per_report, config.epochs - done)
        number = epochs * step.steps_per_epoch
        flat, metrics = _advance(step, weights, noise, flat, series, labels, number)
        runs = [slice(run * members, (run + 1) * members) for run in range(len(trainers))]
        reports = [
            (flat[run], _rows({name: metrics[name][run] for name in metrics}, done, epochs))
            for run in runs
        ]
        for trainer, (members_of_run, rows) in zip(trainers, reports, strict=True):
            _refuse_divergence(trainer.config, members_of_run, rows)
        yield reports
        done += epochs


def _refuse_divergence(config: TrainConfig, states: States, rows: Rows) -> None:
    losses = {row["epoch"]: row["loss"] for row in rows if not np.isfinite(row["loss"])}
    if losses:
        epoch, loss = next(iter(losses.items()))
        what = f"the loss is {loss:g} in epoch {epoch}"
    elif not _all_finite([state.variables for state in states]):
        what = f"weights are not finite after epoch {rows[-1]['epoch']}"
    else:
        return
    raise UserError(
        f"training diverged (sigma {config.sigma:g}, seed {config.seed}): {what}; lower the "
        f"learning rate, now {config.learning_rate:g}, or bring the series to a smaller scale"
    )


def check_finite(variables: Any, what: str, remedy: str) -> None:
    """Refuses weights or statistics that are not finite.

    Args:
      variables: a tree of arrays.
      what, remedy: for the message.

    Raises:
      UserError: if one is not a finite number.
    """
    if not _all_finite(variables):
        raise UserError(f"{what} holds numbers that are not finite; {remedy}")


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _rows(metrics: dict[str, np.ndarray], done: int, epochs: int) -> Rows:
    """Metrics (members, steps) of the epochs after `done`, as the history has them."""
    per_epoch = {name: np.split(values, epochs, axis=1) for name, values in metrics.items()}
    return [
        {
            "epoch": done + epoch + 1,
            "member": member,
            "loss": float(per_epoch["loss"][epoch][member].mean()),
            "accuracy": float(per_epoch["accuracy"][epoch][member].mean()),
            "learning_rate": float(per_epoch["learning_rate"][epoch][member, -1]),
        }
        for epoch in range(epochs)
        for member in range(len(metrics["loss"]))
    ]


def _num_classes(model: nn.Module, x: np.ndarray, y: np.ndarray) -> int:
    """The number of logits that a network answers series x with.

    Raises:
      UserError: if a label has no logit.
    """
    one = jax.ShapeDtypeStruct((1, *x.shape[1:]), np.float32)
    answer = jax.eval_shape(lambda v: _init(model, jax.random.key(0), v)[0], one)
    shape = getattr(answer, "shape", None)
    least = max(2, int(np.max(y)) + 1)
    if shape is None or len(shape) != 2 or shape[1] < least:
        came = f"a {type(answer).__name__}" if shape is None else f"an array of shape {shape[1:]}"
        raise UserError(
            f"the network answers a series with {came}; needed is one logit for each class, at "
            f"least {least}, since the class indices reach {int(np.max(y))}"
        )
    return shape[1]


def recalibrated(trainer: Trainer, x: np.ndarray, states: States) -> tuple[Variables, ...]:
    """Each member's final variables: its weights, with BatchNorm statistics estimated again.

    The statistics are averages over `recalibration_passes` noisy, masked batches of the training
    series; one step's batch at a time, so that they are what BatchNorm saw in training.

    Raises:
      UserError: if a weight or statistic is not a finite number.
    """
    passes = trainer.config.recalibration_passes
    if not passes or not jax.tree.leaves(states[0].batch_stats):
        return tuple(state.variables for state in states)
    series = jnp.asarray(x)
    momentum = _batch_norm_momentum(trainer.model, states[0], series[:1])
    finished = []
    for noise, state in zip(trainer.noise("recalibration"), states, strict=True):
        total = jax.tree.map(jnp.zeros_like, state.batch_stats)
        for number in range(passes):
            total = _add_batch_stats(
                trainer.step, momentum, total, state.params, series, noise, jnp.int32(number)
            )
        batch_stats = jax.tree.map(lambda leaf: leaf / passes, total)
        finished.append({"params": state.params, "batch_stats": batch_stats})
    check_finite(finished, "the trained network", "lower the learning rate")
    return tuple(finished)


def _batch_norm_momentum(model: nn.Module, state: TrainState, x: jax.Array) -> tuple[float, ...]:
    """What each statistic keeps of its old value in a step, in the order of the tree's leaves."""
    if type(model) in models.NAMES.values():
        return (BATCH_NORM_MOMENTUM,) * len(jax.tree.leaves(state.batch_stats))

    # The update, momentum * old + (1 - momentum) * batch, is linear in the old value.
    zeros, ones = (jax.tree.map(of, state.batch_stats) for of in (jnp.zeros_like, jnp.ones_like))
    before, after = (_updated(model, state.params, stats, x) for stats in (zeros, ones))
    kept = [np.asarray(b) - np.asarray(a) for a, b in zip(before, after, strict=True)]
    paths, _ = jax.tree.flatten_with_path(state.batch_stats)
    for (path, _), values in zip(paths, kept, strict=True):
        if np.ptp(values) > 1e-3 or not -1e-3 < np.mean(values) < 1 - 1e-6:
            raise UserError(
                f"the network's batch_stats{jax.tree_util.keystr(path)} is not updated in training "
                "as BatchNorm's is, so it cannot be estimated again: switch BatchNorm by an "
                "argument train, use_running_average=not train, or set recalibration_passes=0"
            )
    return tuple(round(float(np.mean(values)), 6) for values in kept)


@partial(jax.jit, static_argnums=0)
def _updated(model: nn.Module, params: Any, stats: Any, x: jax.Array) -> list[jax.Array]:
    """The leaves of the batch statistics after a step of training on zeros like x."""
    variables = {"params": params, "batch_stats": stats}
    return jax.tree.leaves(
        _apply_in_training(model, variables, jnp.zeros_like(x), jax.random.key(0))[1]
    )


def fit(
    model: nn.Module, x: np.ndarray, y: np.ndarray, config: TrainConfig
) -> tuple[tuple[Variables, ...], list[dict[str, float]]]:
    """Trains from scratch in one go.

    Args:
      model: a Linen network: series (B, T, C) -> logits (B, K). If its `__call__` has an argument
        `train`, that is True in training; it switches BatchNorm and dropout.
      x: (N, T, C) series.
      y: (N,) their class indices, whole numbers from 0.
      config: of the training.

    Returns:
      The variables of each member, and the history rows of `train`.

    Raises:
      UserError: if model, series or labels are not so, and as `train_side_by_side` and
        `recalibrated`.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model must be a Flax Linen module, not of type {type(model).__name__}")
    x, y = check_series(x), np.asarray(y)
    if not len(x) or y.shape != x.shape[:1] or y.dtype.kind not in "iu" or y.min() < 0:
        raise UserError(
            f"y must hold a class index, a whole number from 0, for each of {len(x)} series, not "
            f"{y.dtype} of shape {y.shape}; np.unique(y, return_inverse=True)[1] makes them"
        )
    trainer = Trainer(model, config, len(x))
    states, history = init_states(trainer, x), []
    if config.recalibration_passes and jax.tree.leaves(states[0].batch_stats):
        _batch_norm_momentum(model, states[0], jnp.asarray(x[:1]))  # refuses before the training
    for latest, rows in train(trainer, x, y, states):
        states = latest
        history += rows
    return recalibrated(trainer, x, states), history


def _inputs(
    step: Step, noise: Noise, number: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A step's rows of x, what the network is shown of them, and the step's key for dropout."""
    order_key, step_key = (jax.random.fold_in(noise.key, which) for which in (0, 1))
    rows = _batch_rows(step, order_key, number)
    inputs_key, dropout_key = jax.random.split(jax.random.fold_in(step_key, number))
    this_step = dataclasses.replace(noise, key=inputs_key)
    return rows, noisy_masked(step, this_step, x[rows]), dropout_key


def _batch_rows(step: Step, key: jax.Array, number: jax.Array) -> jax.Array:
    # Each epoch is a new permutation cut into equal batches. Where they do not divide evenly, the
    # last is filled from the start of the permutation, so every series is seen every epoch.
    epoch, position = number // step.steps_per_epoch, number % step.steps_per_epoch
    order = jax.random.permutation(jax.random.fold_in(key, epoch), step.num_examples)
    rows = position * step.batch_size + jnp.arange(step.batch_size)
    return order[rows % step.num_examples]


def _advance(
    step: Step,
    class_weights: jax.Array,
    noise: tuple[Noise, ...],
    states: States,
    x: jax.Array,
    y: jax.Array,
    number: int,
) -> tuple[States, dict[str, np.ndarray]]:
    """Runs `number` steps of every network; metrics (networks, steps).

    The one place that decides how steps are batched into compiled calls. XLA's CPU backend runs
    the gradient of a convolution 24 to 60 times slower inside any control flow, and grouped
    convolutions slower than one after another: there, a Python loop over one compiled step. On an
    accelerator, one call scans over all steps with the networks side by side.
    """
    if jax.default_backend() == "cpu":
        ends, metrics = [], []
        for own_noise, state in zip(noise, states, strict=True):
            rows = []
            for _ in range(number):
                state, row = _compiled_step(step, class_weights, own_noise, state, x, y)
                rows.append(row)
            ends.append(state)
            metrics.append(jax.tree.map(lambda *leaves: np.stack(leaves), *rows))
        return tuple(ends), jax.tree.map(lambda *leaves: np.stack(leaves), *metrics)
    stacked, metrics = _scanned_steps(
        step, class_weights, models.stack(noise), models.stack(states), x, y, number
    )
    return models.unstack(stacked), jax.tree.map(np.asarray, metrics)


_compiled_step: Callable[..., Any] = jax.jit(train_step, static_argnums=0)


@partial(jax.jit, static_argnums=(0, 6))
def _scanned_steps(
    step: Step,
    class_weights: jax.Array,
    noise: Noise,
    stacked: TrainState,
    x: jax.Array,
    y: jax.Array,
    number: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    def one_network(noise: Noise, state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
        return jax.lax.scan(
            lambda s, _: train_step(step, class_weights, noise, s, x, y), state, length=number
        )

    return jax.vmap(one_network)(noise, stacked)


@partial(jax.jit, static_argnums=(0, 1))
def _add_batch_stats(
    step: Step,
    momentum: tuple[float, ...],
    total: Any,
    params: Any,
    x: jax.Array,
    noise: Noise,
    number: jax.Array,
) -> Any:
    _, inputs, dropout_key = _inputs(step, noise, number, x)
    # BatchNorm's update is momentum * old + (1 - momentum) * batch; from zeros, the batch's part.
    variables = {"params": params, "batch_stats": jax.tree.map(jnp.zeros_like, total)}
    _, updated = _apply_in_training(step.model, variables, inputs, dropout_key)
    kept = jax.tree.unflatten(jax.tree.structure(total), momentum)
    return jax.tree.map(lambda t, u, m: t + u / (1 - m), total, updated, kept)
