"""Algorithm 1: train a classifier under Gaussian noise and random masks.

    for each batch (x, y):
        noise ~ N(0, sigma^2 I), M <- a fresh mask for every series  (none for `single` and `de`)
        theta <- theta - rate * grad L(f_theta(M * (x + noise)), y)              `train_step`

Adam, with balanced class weights unless told otherwise; the learning rate halves when the training
loss has not improved for 50 epochs. The test split takes no part. At the end the BatchNorm
statistics are estimated again under noise and masks with the final weights, because running
averages over the last few small batches make the last model's accuracy swing.

L is the cross-entropy of one view M * (x + noise) of each series, or another of `objectives`.
"""

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from selfens_jax import attacks, backend, bursts, masks, models, objectives
from selfens_jax.blocks import PRECISIONS
from selfens_jax.ensembles import Network
from selfens_jax.errors import UserError, check_series, check_whole
from selfens_jax.models.layers import BATCH_NORM_MOMENTUM
from selfens_jax.streams import stream

Variables = dict[str, Any]
CLASS_WEIGHTS = ("balanced", "none")
STEPS_PER_REPORT = 100  # about so many on an accelerator, where each report is a call
MADE_AT_ONCE = 2**26  # bytes of views that an accelerator makes before the steps that see them
# Settings that earlier versions did not have. Records leave them out at their defaults, so that
# those of the same training stay the same.
_ADDED = (
    "burst",
    "objective",
    "consistency_weight",
    "entropy_weight",
    "average",
    "precision",
    "hidden_as",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a trained network depends on, besides its data and architecture.

    Attributes:
      ensemble: `single` (no mask), `de` (several networks without a mask), `mb`, `mc`, or `mw` (one
        network, trained with windows hidden, for certificates against `bursts`).
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
      burst: b, for `mw`: two windows are hidden of the length that certifies bursts of b steps.
      objective: the loss, one of `objectives.OBJECTIVES`.
      consistency_weight, entropy_weight: lambda and eta of the objective `consistency`.
      average: if given, the network is the exponential average of the weights of all steps, each
        step's times (1 - average) average^(steps after it); between 0 and 1, usually 0.99 or more.
      precision: of products in training on an accelerator, one of `blocks.PRECISIONS`; a CPU
        computes in float32.
      hidden_as: what the network is shown of the steps that a mask hides, as in `masks.hide`; for
        `mb` and `mc`.
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
    burst: int | None = None
    objective: str = "cross_entropy"
    consistency_weight: float = objectives.CONSISTENCY
    entropy_weight: float = objectives.ENTROPY
    average: float | None = None
    precision: str = "float32"
    hidden_as: str = "zero"

    def __post_init__(self) -> None:
        if self.ensemble not in masks.ENSEMBLES:
            raise UserError(
                f"unknown ensemble {self.ensemble!r}; choose from {', '.join(masks.ENSEMBLES)}"
            )
        if (self.burst is None) == (self.ensemble == "mw"):
            raise UserError("burst is for the ensemble mw, which needs it")
        if self.burst is not None:
            check_whole("burst", self.burst, 1)
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
        if self.precision not in PRECISIONS:
            raise UserError(
                f"unknown precision {self.precision!r}; choose from {', '.join(PRECISIONS)}"
            )
        masks.check_hidden_as(self.hidden_as, self.ensemble)
        self._check_objective()
        if self.average is not None:
            if not 0 < self.average < 1:
                raise UserError(f"average must be between 0 and 1, not {self.average}")
            if not self.recalibration_passes:
                raise UserError(
                    "average needs recalibration_passes: without them the statistics of BatchNorm "
                    "are those of other weights"
                )

    def _check_objective(self) -> None:
        """Raises UserError for an objective that there is not, or that other settings rule out."""
        if self.objective not in tuple(objectives.OBJECTIVES):
            raise UserError(
                f"unknown objective {self.objective!r}; choose from "
                f"{', '.join(objectives.OBJECTIVES)}"
            )
        masked = self.ensemble not in ("single", "de")
        if self.objective == "ensemble" and self.ensemble not in ("mb", "mc"):
            raise UserError(
                f"the objective ensemble is for mb and mc, whose masks it averages over, not for "
                f"{self.ensemble}"
            )
        if self.objective == "smoothmix" and self.sigma == 0:
            raise UserError("the objective smoothmix moves series by sigmas: sigma must be above 0")
        if self.objective != "cross_entropy" and self.sigma == 0 and not masked:
            raise UserError(
                f"the objective {self.objective} compares views of a series, which are all the "
                f"same for {self.ensemble} with sigma 0"
            )
        for name in ("consistency_weight", "entropy_weight"):
            value = getattr(self, name)
            if not 0 <= value < 3e38:  # the numbers of float32
                raise UserError(f"{name} must be a finite number >= 0, not {value}")
            if value != _defaults()[name] and self.objective != "consistency":
                raise UserError(f"{name} is of the objective consistency, not {self.objective}")

    def settings(self) -> dict[str, Any]:
        """For records: all of it, but what was added later and has its default."""
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in _ADDED or value != _defaults()[name]
        }


def completed(record: dict[str, Any]) -> dict[str, Any]:
    """A record of a training with all settings, also those that `TrainConfig.settings` left out."""
    return {**{name: _defaults()[name] for name in _ADDED}, **record}


def _defaults() -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(TrainConfig)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """One network in training; `step` counts its optimizer steps."""

    step: jax.Array
    params: Any  # trees of arrays
    batch_stats: Any
    opt_state: Any  # of `Step.optimizer`: Adam's, that of the plateaus, and the average if any

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
    burst: int | None
    num_examples: int
    steps_per_epoch: int
    batch_size: int
    learning_rate: float
    plateau_factor: float
    plateau_patience: int
    plateau_floor: float
    objective: str
    consistency_weight: float
    entropy_weight: float
    average: float | None
    hidden_as: str

    @property
    def views(self) -> int:
        """k, of each series in a step."""
        return objectives.OBJECTIVES[self.objective].views

    @property
    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        averages = () if self.average is None else (_average_of_weights(self.average),)
        return optax.chain(
            optax.adam(self.learning_rate),
            optax.contrib.reduce_on_plateau(
                factor=self.plateau_factor,
                patience=self.plateau_patience,
                min_scale=min(1.0, self.plateau_floor / self.learning_rate),
                accumulation_size=self.steps_per_epoch,
            ),
            *averages,
        )


class _Average(NamedTuple):
    """sum_t (1 - decay) decay^(steps after t) * weights_t, a tree like the weights."""

    total: Any


def _average_of_weights(decay: float) -> optax.GradientTransformation:
    """Leaves updates alone, and keeps an average of the weights that they lead to."""

    def init(params: Any) -> _Average:
        return _Average(jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, _Average]:
        latest = optax.apply_updates(params, updates)
        return updates, _Average(optax.incremental_update(latest, state.total, 1 - decay))

    return optax.GradientTransformation(init, update)


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
            burst=config.burst,
            num_examples=self.num_examples,
            steps_per_epoch=self.steps_per_epoch,
            batch_size=-(-self.num_examples // self.steps_per_epoch),
            learning_rate=config.learning_rate,
            plateau_factor=config.plateau_factor,
            plateau_patience=config.plateau_patience,
            plateau_floor=config.plateau_floor,
            objective=config.objective,
            consistency_weight=config.consistency_weight,
            entropy_weight=config.entropy_weight,
            average=config.average,
            hidden_as=config.hidden_as,
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
    seed = trainer.config.seed
    keys = [stream(seed, "initialization", member) for member in range(trainer.config.num_members)]
    return tuple(_fresh_state(trainer.step, x.shape[1:], key) for key in keys)


@partial(jax.jit, static_argnums=(0, 1))
def _fresh_state(step: Step, shape: tuple[int, int], key: jax.Array) -> TrainState:
    variables = dict(_init(step.model, key, masks.blank(*shape, step.hidden_as))[1])
    params, batch_stats = variables.pop("params", {}), variables.pop("batch_stats", {})
    if variables:
        raise UserError(
            f"the network has the variables {', '.join(variables)}; what can be trained has "
            "params, and batch_stats at most"
        )
    return TrainState(jnp.int32(0), params, batch_stats, step.optimizer.init(params))


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
    return _learned(step, class_weights, state, _batch(step, noise, state.step, x, y))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Batch:
    """What a step sees, which does not depend on the network."""

    x: jax.Array  # (B, T, C) series, of which smoothmix makes others
    y: jax.Array  # (B,) their class indices
    views: jax.Array  # (k B, T, C), M * (x + sigma * noise)
    noise: Noise  # with the key of this step
    dropout_key: jax.Array


def _batch(step: Step, noise: Noise, number: jax.Array, x: jax.Array, y: jax.Array) -> _Batch:
    """The batch of step `number`; the other arguments are those of `train_step`."""
    rows, own, dropout_key = _due(step, noise, number)
    series = x[rows]
    return _Batch(series, y[rows], noisy_masked_views(step, own, series), own, dropout_key)


def _learned(
    step: Step, class_weights: jax.Array, state: TrainState, batch: _Batch
) -> tuple[TrainState, dict[str, jax.Array]]:
    """What `train_step` returns."""
    mixed = None
    if step.objective == "smoothmix":
        mixed = _mixed(step, batch.noise, state, batch.x, batch.y)

    def loss_of(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, batch_stats = _logits_of_views(step, variables, batch.views, batch.dropout_key)
        others = ()
        if mixed is not None:  # whose statistics are left out: evaluation is not of mixed series
            key = jax.random.fold_in(batch.dropout_key, 1)
            others = (_logits_of_views(step, variables, mixed.views, key)[0], mixed.shares)
        loss = _loss(step, state.step, logits, batch.y, class_weights[batch.y], *others)
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
        "accuracy": (logits.argmax(axis=-1) == batch.y).mean(),
        "learning_rate": step.learning_rate * next_state.opt_state[1].scale,
    }
    return next_state, metrics


def _logits_of_views(
    step: Step, variables: Variables, views: jax.Array, dropout_key: jax.Array
) -> tuple[jax.Array, Any]:
    """Logits (k, B, K) of views (k B, T, C) in training, in one batch; the statistics after it."""
    logits, batch_stats = _apply_in_training(step.model, variables, views, dropout_key)
    return logits.reshape(step.views, -1, logits.shape[-1]), batch_stats


def _loss(
    step: Step,
    number: jax.Array,
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    mixed_logits: jax.Array | None = None,
    shares: jax.Array | None = None,
) -> jax.Array:
    """The objective of step `number`; the other arguments are as in `objectives`."""
    if step.objective == "ensemble":
        return objectives.ensemble(logits, labels, weights)
    if step.objective not in objectives.WARM_UP:
        return objectives.cross_entropy(logits, labels, weights)
    epochs = objectives.WARM_UP[step.objective]
    so_far = objectives.warm_up(number // step.steps_per_epoch, epochs)
    if mixed_logits is not None and shares is not None:
        return objectives.smoothmix(logits, mixed_logits, shares, labels, weights, so_far)
    agreement, certainty = so_far * step.consistency_weight, so_far * step.entropy_weight
    return objectives.consistency(logits, labels, weights, agreement, certainty)


class _Mixed(NamedTuple):
    """What `smoothmix` shows a network besides."""

    views: jax.Array  # (k B, T, C) of (1 - share) x + share x'
    shares: jax.Array  # (B,)


def _mixed(step: Step, noise: Noise, state: TrainState, x: jax.Array, labels: jax.Array) -> _Mixed:
    """Series x (B, T, C) on the way to x', which is less like their class to the network.

    x' is one step of ascent away, on the loss of the mean of the same views in evaluation.
    """
    network = Network(step.model, state.variables)

    def loss_of(series: Any) -> jax.Array:
        views = noisy_masked_views(step, noise, series)
        views = views.reshape(step.views, len(series), *views.shape[1:])
        return attacks.mean_loss(network, jnp.swapaxes(views, 0, 1), labels)

    step_sizes = objectives.ASCENT * noise.sigma * jnp.ones(len(x))
    moved = attacks.climbed(loss_of, x, step_sizes)
    # A key that no view has; the least share is that of float32, not 0.
    key = jax.random.fold_in(noise.key, step.views + 1)
    shares = jax.random.uniform(key, (len(x),), minval=2.0**-24) / 2
    share = shares[:, None, None]
    return _Mixed(noisy_masked_views(step, noise, (1 - share) * x + share * moved), shares)


def noisy_masked_views(step: Step, noise: Noise, x: jax.Array) -> jax.Array:
    """k views of every series of x (B, T, C), (k B, T, C); first the first of all series.

    Noise and mask are fresh for each view; where views share the noise, the mask alone.
    """
    views = [noisy_masked(step, noise, x, view) for view in range(step.views)]
    return views[0] if len(views) == 1 else jnp.concatenate(views)


def noisy_masked(step: Step, noise: Noise, x: jax.Array, view: int = 0) -> jax.Array:
    """M * (x + sigma * noise) with a fresh mask and noise for every series of x (B, T, C)."""
    noise_key, mask_key = jax.random.split(noise.key)
    if view:  # 0 and 1 are the keys that were split off just now: to fold them in gives them again
        own_key, mask_key = jax.random.split(jax.random.fold_in(noise.key, 1 + view))
        shares_noise = objectives.OBJECTIVES[step.objective].shares_noise
        noise_key = noise_key if shares_noise else own_key
    noisy = x + noise.sigma * jax.random.normal(noise_key, x.shape)
    number, length = x.shape[:2]
    window = 0 if step.burst is None else bursts.windows(length, step.burst).size
    mask = masks.draw(step.ensemble, mask_key, number, length, step.keep, window)
    return masks.hide(noisy, mask, step.hidden_as)


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
    epochs_per_report: int | None = None,
) -> Iterator[tuple[States, Rows]]:
    """Trains every member to `config.epochs`, reporting as it goes.

    A run may be cut at any report and continued from its states: the final parameters are the
    same bits, however it was cut.

    Args:
      trainer: what the run is.
      x: (N, T, C) series, the complete training split.
      y: (N,) their class indices.
      states: from `init_states`, or of an earlier report.
      epochs_per_report: epochs between two reports; if None, 10 or, on an accelerator, so many that
        there are about `STEPS_PER_REPORT` steps.

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
    epochs_per_report: int | None = None,
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
    configs = [dataclasses.replace(t.config, sigma=1.0, seed=0) for t in trainers]
    (step, *others), steps = {t.step for t in trainers}, {int(s.step) for s in flat}
    if others or len(set(configs)) > 1 or len(steps) > 1:
        raise UserError("runs trained side by side may differ in sigma and seed only")
    config = configs[0]
    weights = jnp.asarray(class_weights(y, _num_classes(step, x, y), config.class_weights))
    series, labels = jnp.asarray(x), jnp.asarray(y)
    noise = tuple(each for t in trainers for each in t.noise("training"))
    members = config.num_members
    done = steps.pop() // step.steps_per_epoch
    if epochs_per_report is None:
        some_steps = 0 if backend.on_cpu() else STEPS_PER_REPORT
        epochs_per_report = max(10, some_steps // step.steps_per_epoch)
    while done < config.epochs:
        epochs = min(epochs_per_report, config.epochs - done)
        number = epochs * step.steps_per_epoch
        with _precision_of(config):
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


def _num_classes(step: Step, x: np.ndarray, y: np.ndarray) -> int:
    """The number of logits that a network answers series x with.

    Raises:
      UserError: if a label has no logit.
    """
    _, length, channels = x.shape
    one = masks.blank(length, channels, step.hidden_as)
    answer = jax.eval_shape(lambda v: _init(step.model, jax.random.key(0), v)[0], one)
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

    The weights are the average of those of all steps, if the configuration asks for it. The
    statistics are averages over `recalibration_passes` noisy, masked batches of the training
    series; one step's batch at a time, so that they are what BatchNorm saw in training.

    Raises:
      UserError: if a weight or statistic is not a finite number.
    """
    passes = trainer.config.recalibration_passes
    if trainer.config.average is not None:
        states = tuple(_averaged(state, trainer.config.average) for state in states)
    if not passes or not jax.tree.leaves(states[0].batch_stats):
        return tuple(state.variables for state in states)
    series = jnp.asarray(x)
    momentum = _batch_norm_momentum(trainer, states[0], x.shape[1:])
    finished = []
    for noise, state in zip(trainer.noise("recalibration"), states, strict=True):
        total = jax.tree.map(jnp.zeros_like, state.batch_stats)
        for number in range(passes):
            with _precision_of(trainer.config):
                total = _add_batch_stats(
                    trainer.step, momentum, total, state.params, series, noise, jnp.int32(number)
                )
        batch_stats = jax.tree.map(lambda leaf: leaf / passes, total)
        finished.append({"params": state.params, "batch_stats": batch_stats})
    check_finite(finished, "the trained network", "lower the learning rate")
    return tuple(finished)


def _precision_of(config: TrainConfig) -> contextlib.AbstractContextManager[Any]:
    """Inside, products are computed as the configuration says; a CPU has one way."""
    if backend.on_cpu():
        return contextlib.nullcontext()
    return jax.default_matmul_precision(config.precision)


def _averaged(state: TrainState, decay: float) -> TrainState:
    """A state with the average of its weights in their place, as `recalibrated` says."""
    if not int(state.step):
        return state
    # The average began at 0, which has the share decay^steps of it. In float64: a decay near 1
    # is 1 in float32.
    known = -math.expm1(int(state.step) * math.log(decay))
    average = jax.tree.map(lambda leaf: leaf / known, state.opt_state[-1].total)
    return dataclasses.replace(state, params=average)


def _batch_norm_momentum(
    trainer: Trainer, state: TrainState, shape: tuple[int, int]
) -> tuple[float, ...]:
    """What each statistic keeps of its old value in a step, in the order of the tree's leaves."""
    model, x = trainer.model, masks.blank(*shape, trainer.config.hidden_as)
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
    """The leaves of the batch statistics after a step of training on x."""
    variables = {"params": params, "batch_stats": stats}
    return jax.tree.leaves(_apply_in_training(model, variables, x, jax.random.key(0))[1])


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
        _batch_norm_momentum(trainer, states[0], x.shape[1:])  # refuses before the training
    for latest, rows in train(trainer, x, y, states):
        states = latest
        history += rows
    return recalibrated(trainer, x, states), history


def _due(step: Step, noise: Noise, number: jax.Array) -> tuple[jax.Array, Noise, jax.Array]:
    """A step's rows of the series, its own noise, and its key for dropout."""
    order_key, step_key = (jax.random.fold_in(noise.key, which) for which in (0, 1))
    rows = _batch_rows(step, order_key, number)
    inputs_key, dropout_key = jax.random.split(jax.random.fold_in(step_key, number))
    return rows, dataclasses.replace(noise, key=inputs_key), dropout_key


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
    if backend.on_cpu():
        ends, metrics = [], []
        for own_noise, state in zip(noise, states, strict=True):
            rows = []
            for _ in range(number):
                state, row = _compiled_step(step, class_weights, own_noise, state, x, y)
                rows.append(row)
            ends.append(state)
            metrics.append(jax.tree.map(lambda *leaves: np.stack(leaves), *rows))
        return tuple(ends), jax.tree.map(lambda *leaves: np.stack(leaves), *metrics)
    ends, metrics = _scanned_steps(step, class_weights, noise, states, x, y, number)
    return ends, jax.tree.map(np.asarray, metrics)


_compiled_step: Callable[..., Any] = jax.jit(train_step, static_argnums=0)


@partial(jax.jit, static_argnums=(0, 6))
def _scanned_steps(
    step: Step,
    class_weights: jax.Array,
    noise: tuple[Noise, ...],
    states: States,
    x: jax.Array,
    y: jax.Array,
    number: int,
) -> tuple[States, dict[str, jax.Array]]:
    # Batches do not depend on the network: those of many steps are made at once, before these.
    one_step = 4 * step.views * step.batch_size * x[0].size * len(states)
    most = max(1, MADE_AT_ONCE // one_step)
    together = max(n for n in range(1, min(most, number) + 1) if number % n == 0)

    def one_network(noise: Noise, state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
        def some_steps(state: TrainState, _: None) -> tuple[TrainState, dict[str, jax.Array]]:
            numbers = state.step + jnp.arange(together)
            batches = jax.vmap(lambda due: _batch(step, noise, due, x, y))(numbers)
            return jax.lax.scan(lambda s, b: _learned(step, class_weights, s, b), state, batches)

        end, metrics = jax.lax.scan(some_steps, state, length=number // together)
        return end, jax.tree.map(jnp.ravel, metrics)

    ends, metrics = jax.vmap(one_network)(models.stack(noise), models.stack(states))
    return models.unstack(ends), metrics


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
    rows, own, dropout_key = _due(step, noise, number)
    inputs = noisy_masked(step, own, x[rows])
    # BatchNorm's update is momentum * old + (1 - momentum) * batch; from zeros, the batch's part.
    variables = {"params": params, "batch_stats": jax.tree.map(jnp.zeros_like, total)}
    _, updated = _apply_in_training(step.model, variables, inputs, dropout_key)
    kept = jax.tree.unflatten(jax.tree.structure(total), momentum)
    return jax.tree.map(lambda t, u, m: t + u / (1 - m), total, updated, kept)
