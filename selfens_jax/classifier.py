"""A certified classifier with scikit-learn's verbs: fit, predict, certify, save, load."""

import dataclasses
import numbers
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from tqdm import tqdm

from selfens_jax import (
    backend,
    blocks,
    bursts,
    certificates,
    classifier_files,
    data,
    masks,
    models,
    noise,
    paths,
    runs,
    sequential,
    smoothing,
    training,
)
from selfens_jax.classifier_files import Saved
from selfens_jax.correction import Correction
from selfens_jax.coverage import Coverage, channel_radii, cover
from selfens_jax.errors import UserError, check_number, check_resolution, check_whole
from selfens_jax.fit_arguments import (
    check_seed,
    labels_of_classes,
    one_column,
    plain,
    refuse_sparse,
    train_config,
)
from selfens_jax.runs.records import DECISION_NAMES
from selfens_jax.streams import stream

if TYPE_CHECKING:
    import pandas


@dataclasses.dataclass(frozen=True, eq=False)
class Certified:
    """What `certify` says of N series.

    Attributes:
      label: (N,) the class of each, as in `fit`; None where it abstains.
      radius: (N,) no change with an L2 norm below it changes the class; 0 where it abstains.
      abstained: (N,) bool.
      counts: (N, K) the votes for each of `classes_` that all this rests on.
      certificates: with the statement, alpha and bounds.
      series: (N, T, C) what was certified, in the units of the radius.
      units: (C,) that each channel of X was divided by, with scaling="channel"; else ().
    """

    label: np.ndarray
    radius: np.ndarray
    abstained: np.ndarray
    counts: np.ndarray
    certificates: certificates.Certificates
    series: np.ndarray
    units: tuple[float, ...] = ()

    @property
    def statement(self) -> str:
        return self.certificates.statement

    def table(self) -> "pandas.DataFrame":
        """A row for each series: label, radius, abstained, and the share of votes for its class.

        With scaling="channel" also radius_0, radius_1, ...: `channel_radii`.
        """
        import pandas

        own = self.channel_radii.T if self.units else ()
        return pandas.DataFrame(
            {
                "label": self.label,
                "radius": self.radius,
                **{f"radius_{channel}": radii for channel, radii in enumerate(own)},
                "abstained": self.abstained,
                "share": self.counts.max(axis=1) / self.counts.sum(axis=1),
            }
        )

    def covers(self, **asked: Any) -> list[Coverage]:
        """What the radius of each series covers: an offset, a gain error, spikes, a drift and more.

        Args:
          asked: num_samples, by, low, high, frequency, as in `coverage.cover`.
        """
        rows = zip(self.radius, self.series, strict=True)
        return [cover(radius, x, units=self.units, **asked) for radius, x in rows]

    @property
    def channel_radii(self) -> np.ndarray:
        """(N, C) norms, in X's units, below which a change of one channel alone is covered."""
        return channel_radii(self.radius, self.units or (1.0,) * self.series.shape[2])


@dataclasses.dataclass(frozen=True, eq=False)
class Decided:
    """What `decide` says of N series at one radius.

    Attributes:
      label: (N,) the class where it is certified at the radius, else None.
      decision: (N,) "certified", "rejected" (too few votes for a certificate) or "undecided".
      draws: (N,) noise draws that it took.
    """

    label: np.ndarray
    decision: np.ndarray
    draws: np.ndarray

    @property
    def certified(self) -> np.ndarray:
        """(N,) bool."""
        return self.decision == DECISION_NAMES[sequential.CERTIFIED]

    def table(self) -> "pandas.DataFrame":
        """A row for each series: label, decision and draws."""
        import pandas

        return pandas.DataFrame(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, eq=False)
class CertifiedBursts:
    """What `certify_bursts` says of N series at one length.

    Attributes:
      label: (N,) the answer of double masking; None where the network answers NaN.
      certified: (N,) bool, whether it stays whatever replaces so many consecutive steps; of a
        series that lacks values, whatever these are, and no burst besides.
      bursts: with the statement, the windows, and which series lack values.
    """

    label: np.ndarray
    certified: np.ndarray
    bursts: bursts.Bursts

    def table(self) -> "pandas.DataFrame":
        """A row for each series: label, certified, and whether it lacks values."""
        import pandas

        return pandas.DataFrame(
            {"label": self.label, "certified": self.certified, "lacks": self.bursts.lacks}
        )


class SelfEnsembleClassifier(ClassifierMixin, BaseEstimator):
    """A time-series classifier whose answers come with a certified radius.

    Algorithm 1 trains one network under Gaussian noise and random masks; Algorithm 2 certifies it
    as a self-ensemble under m fixed masks, smoothed over n noise draws. On one machine, the same
    seed and data give the network of `experiments/train.py` bit for bit, and the certificates of
    `experiments/certify.py`.

    Series are arrays (n, T) or (n, T, C), or (n, C, T) with `channels_first`; labels are numbers,
    booleans or text. Nothing is rescaled unless `scaling` says so: radii are L2 norms in the units
    of X.

    The noise of a series is drawn for its place in X. `certify(X)` twice gives the same answer
    twice; `certify(X[5:6])` asks series 5 with the noise of place 0, and may get other votes. Both
    answers are valid.

    Args:
      model: "inception_time", "lstm_fcn" or "macnn".
      ensemble: "mc" or "mb" (one network under continuous or binomial masks), "single" (without
        masks), "de" (several networks) or "mw" (one network trained with windows hidden, for
        `certify_bursts`; it needs `burst`, and a small sigma, 0.1, suits it).
      sigma: standard deviation of the noise, in the units of X. Larger certifies larger radii, of
        fewer series.
      keep: share of the time steps that a mask keeps.
      num_masks: m, masks of the self-ensemble. They take no part in training: another number, set
        after it, makes another classifier of the same network.
      mask_design: "independent" masks, or "balanced" ones, which hide different steps as far as
        they can; as num_masks.
      num_members: networks of a deep ensemble.
      epochs: passes over the training series.
      batch_size, learning_rate, class_weights: as in `training.TrainConfig`.
      scaling: before the noise: "none"; "channel", each channel divided by its standard deviation
        over the training series; or "z_score", each series by itself.
      burst: b of "mw": the length of bursts that it is trained for.
      objective: what training lowers, one of `objectives.OBJECTIVES`.
      average: decay of an exponential average of the weights, as 0.999; None keeps the last ones.
      hidden_as: what the network is shown of hidden steps, one of `masks.HIDDEN_AS`; for "mb" and
        "mc".
      random_state: fixes everything random; None takes a seed from NumPy's.
      unequal, missing: what to do about series of unequal lengths and about NaN; "refuse", or as
        `preparation.Preparation` says.
      channels_first: whether X is (n, C, T).
      verbose: 1 shows progress bars.

    Attributes:
      classes_: (K,) the labels, sorted; the columns of `predict_proba` are in this order.
      columns_: (K,) which of the network's outputs is for each of `classes_`; the network counts
        labels that are numbers in their order even if they come as text.
      config_: what a run's config.json says of it.
      variables_: the weights, members stacked.
      history_: loss, accuracy and learning rate of each epoch.
    """

    def __init__(
        self,
        *,
        model: str = "inception_time",
        ensemble: str = "mc",
        sigma: float = 0.8,
        keep: float = 0.9,
        num_masks: int = 5,
        mask_design: str = "independent",
        num_members: int = 5,
        epochs: int = 1000,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        class_weights: str = "balanced",
        burst: int | None = None,
        objective: str = "cross_entropy",
        average: float | None = None,
        hidden_as: str = "zero",
        scaling: str = "none",
        unequal: str = "refuse",
        missing: str = "refuse",
        random_state: int | np.random.RandomState | None = 0,
        channels_first: bool = False,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.ensemble = ensemble
        self.sigma = sigma
        self.keep = keep
        self.num_masks = num_masks
        self.mask_design = mask_design
        self.num_members = num_members
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.class_weights = class_weights
        self.burst = burst
        self.objective = objective
        self.average = average
        self.hidden_as = hidden_as
        self.scaling = scaling
        self.unequal = unequal
        self.missing = missing
        self.random_state = random_state
        self.channels_first = channels_first
        self.verbose = verbose

    # Training

    def fit(self, X: Any, y: Any) -> Self:
        """Trains on series X with labels y (n,), from scratch.

        If it fails or is interrupted, the classifier stays as it was.

        Raises:
          UserError: for parameters, series or labels that cannot be meant, or if training diverges.
        """
        check_whole("num_masks", self.num_masks, 1)
        masks.check_design(self.mask_design, self.ensemble)
        if not isinstance(self.channels_first, bool | np.bool_):
            raise UserError(f"channels_first must be True or False, not {self.channels_first!r}")
        refuse_sparse(X)
        y = one_column(y)
        dataset = data.from_arrays(
            "fit",
            X,
            y,
            scaling=self.scaling,
            places=("X", "X"),
            channels_first=bool(self.channels_first),
            unequal=self.unequal,
            missing=self.missing,
        )
        labels = labels_of_classes(y, dataset)
        if not isinstance(self.model, str):
            kind = type(self.model).__name__
            raise UserError(f"model must be one of {', '.join(models.NAMES)}, not a {kind}")
        config = train_config(
            {
                "ensemble": self.ensemble,
                "sigma": self.sigma,
                "keep": self.keep,
                "num_members": self.num_members if self.ensemble == "de" else 1,
                "epochs": self.epochs,
                "batch_size": self.batch_size,
                "class_weights": self.class_weights,
                "learning_rate": self.learning_rate,
                "burst": self.burst,
                "objective": self.objective,
                "average": self.average,
                "hidden_as": self.hidden_as,
                "seed": self._seed(),
            }
        )
        check_resolution(dataset.x_train, config.sigma, dataset.units)
        noise.check_grid(noise.default_grid(config.sigma), config.sigma, dataset.x_train)
        x, network = dataset.x_train, models.create(self.model, dataset.num_classes)
        trainer = training.Trainer(network, config, len(x))
        states, history = training.init_states(trainer, x), []
        with self._bar(config.epochs, "epoch", "training") as bar:
            for latest, rows in training.train(trainer, x, dataset.y_train, states):
                states = latest
                history += rows
                bar.set_postfix(loss=f"{rows[-1]['loss']:.4f}")
                bar.update(rows[-1]["epoch"] - bar.n)
        variables = models.stack(training.recalibrated(trainer, x, states))
        record = {"model": self.model, **config.settings()}
        record |= {"data": data.describe(dataset), "versions": runs.versions()}
        self._keep(record, variables, history, labels)
        return self

    # Answers

    def predict(self, X: Any, num_draws: int = 100) -> np.ndarray:
        """The smoothed classifier's label (n,) of each series: what most draws vote for."""
        counts = self._counts(self._series(X), num_draws)
        return self.classes_[counts.argmax(axis=1)]

    def predict_proba(self, X: Any, num_draws: int = 100) -> np.ndarray:
        """The share (n, K) of draws that vote for each class."""
        return self._counts(self._series(X), num_draws) / num_draws

    def certify(
        self,
        X: Any,
        alpha: float = 0.001,
        num_draws: int = 1000,
        *,
        noise_seed: int | None = None,
    ) -> Certified:
        """The label of each series, and the radius within which no change can change it.

        With probability at least 1 - alpha for each series, no change with an L2 norm below its
        radius changes what the smoothed classifier answers; `certificates` has the statement and
        the proof.

        Args:
          X: series as in `fit`.
          alpha: probability, for each series, that its certificate is false.
          num_draws: n; 1000 allow radii up to 2.4 sigma.
          noise_seed: of the draws; that of the training if None.

        Raises:
          UserError: for series that do not fit, or too few draws.
        """
        check_is_fitted(self)
        check_whole("num_draws", num_draws, 1)
        certificates.check_budget(num_draws, alpha, len(self.classes_))
        series = self._series(X)
        counts = self._counts(series, num_draws, noise_seed)
        found = certificates.certify_counts(
            counts, self.config_["sigma"], alpha, given_up=self._given_up()
        )
        abstained = found.prediction == certificates.ABSTAIN
        return Certified(
            label=_labels(self.classes_, found.prediction, ~abstained),
            radius=found.radius,
            abstained=abstained,
            counts=counts,
            certificates=found,
            series=series,
            units=tuple(self.config_["data"].get("units", ())),
        )

    def decide(
        self,
        X: Any,
        radius: float,
        alpha: float = 0.001,
        *,
        alpha_futility: float = 0.05,
        max_draws: int = 2000,
        noise_seed: int | None = None,
    ) -> Decided:
        """Whether each series is certified at one radius, mostly in a few dozen draws.

        Valid whenever it stops; `sequential` has the statement and the proof.

        Args:
          radius: in the units of X.
          alpha, alpha_futility: probabilities of certifying, and of giving up, wrongly.
          max_draws: after which a series stays undecided.
          X, noise_seed: as in `certify`.

        Raises:
          UserError: as `certify`, and for a radius that no votes certify.
        """
        series = self._series(X)
        count = self._counter(series, noise_seed)
        block = blocks.default_draws_per_block(series.shape[1])
        edges = sequential.batches(block, block, max_draws=max_draws, block=block)
        p0 = sequential.certified_share(radius, self.config_["sigma"], self._given_up())
        sequential.check_budget(edges, p0, alpha)
        check_number("alpha_futility", alpha_futility, 0, 1)
        parts = []
        with self._bar(len(series), "ex", "certifying") as bar:
            for rows in _chunks(len(series), 1 if backend.on_cpu() else 64):
                state, _ = sequential.run_tests(
                    lambda some, start, number, rows=rows: (
                        count(rows[some], start, number),
                        np.full(len(some), number),
                    ),
                    len(rows),
                    edges,
                    p0,
                    alpha,
                    alpha_futility,
                )
                parts.append((state.candidate, state.decision, edges[0] + state.draws))
                bar.update(len(rows))
        candidate, decision, draws = map(np.concatenate, zip(*parts, strict=True))
        return Decided(
            label=_labels(self._labels_in_network(), candidate, decision == sequential.CERTIFIED),
            decision=np.array([DECISION_NAMES[which] for which in decision.tolist()]),
            draws=draws,
        )

    def certify_bursts(
        self, X: Any, lengths: int | Iterable[int], *, stride: int | None = None
    ) -> dict[int, CertifiedBursts]:
        """Whether the answer stays whatever replaces so many consecutive steps; for each length.

        Certain: no noise, no alpha; `bursts` has the statement and the proof. The answer is that of
        double masking, another classifier than the smoothed one of `predict`, with the same
        network. It helps to train with ensemble="mw".

        Args:
          X: series as in `fit`; NaN stands for a value that is not known.
          lengths: b, or several.
          stride: as in `bursts.windows`.

        Raises:
          UserError: for series that do not fit, a length that leaves nothing of them, or a
            classifier that scales each series by itself.
        """
        check_is_fitted(self)
        described = self.config_["data"]
        bursts.refuse_own_scaling(described["scaling"], "fit with scaling='none'")
        refuse_sparse(X)
        if isinstance(lengths, Iterable) and getattr(lengths, "shape", (1,)) != ():
            asked: list[Any] = list(lengths)
        else:
            asked = [lengths]
        gaps = {} if described.get("unequal") == "resample" else {"missing": "hide"}
        series = data.check_new_series(X, gaps | described, channels_first=self.channels_first)
        predict = self._network()
        found = {
            burst: bursts.certify_bursts(predict, series, burst, stride=stride) for burst in asked
        }
        names = self._labels_in_network()
        return {
            burst: CertifiedBursts(
                label=_labels(names, each.prediction, each.prediction >= 0),
                certified=each.certified,
                bursts=each,
            )
            for burst, each in found.items()
        }

    # Files

    def save(self, path: str | pathlib.Path) -> None:
        """Saves everything in a folder: JSON and an Orbax checkpoint, as train.py's runs.

        `certify.py --run_dir=PATH --series=FILE` can use it too.

        Raises:
          UserError: if the folder is there already.
        """
        check_is_fitted(self)
        classifier_files.write(
            paths.expand(path).absolute(),
            Saved(
                self.config_,
                self.variables_,
                self.history_,
                self._labels_in_network(),
                self.num_masks,
                self.mask_design,
            ),
        )

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Self:
        """The classifier that `save` kept, or that a run directory of train.py holds.

        Labels of a run of train.py are text, as in its files. Nothing is written to the folder.

        Raises:
          UserError: if there is none, or it is unfinished or damaged.
        """
        saved = classifier_files.read(paths.expand(path).absolute())
        config, described = saved.config, saved.config["data"]
        params = {name: config[name] for name in cls().get_params() if name in config}
        if config["ensemble"] != "de":
            params.pop("num_members")
        params |= {
            "scaling": described["scaling"],
            "unequal": described.get("unequal", "refuse"),
            "missing": described.get("missing", "refuse"),
            "random_state": config["seed"],
            "channels_first": described.get("channels_first", False),
            "num_masks": saved.num_masks,
            "mask_design": saved.mask_design,
        }
        self = cls(**params)
        self._keep(config, saved.variables, saved.history, saved.labels)
        return self

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        if "variables_" not in state:
            return state
        # Arrays of NumPy, which need no device to be unpickled.
        return {**state, "variables_": jax.tree.map(np.asarray, state["variables_"])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**type(self)().__dict__, **state})  # one of before lacks parameters
        if "variables_" in state:
            self.variables_ = jax.tree.map(jnp.asarray, self.variables_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    # What these share

    def _keep(
        self, config: dict[str, Any], variables: Any, history: training.Rows, labels: np.ndarray
    ) -> None:
        """Makes this the classifier of a network whose classes have these labels (K,)."""
        self.columns_ = np.argsort(labels)
        self.classes_ = labels[self.columns_]
        self.config_, self.variables_, self.history_ = config, variables, history
        self.n_features_in_ = config["data"]["length"]

    def _labels_in_network(self) -> np.ndarray:
        """The labels (K,) in the order of the network's outputs, as `_keep` got them."""
        return self.classes_[np.argsort(self.columns_)]

    def _seed(self) -> int:
        given = self.random_state
        if isinstance(given, numbers.Integral):
            return check_seed("random_state", given)
        return int(check_random_state(given).randint(2**31))

    def _given_up(self) -> Correction:
        """What the grid of the noise takes off probabilities and radii."""
        grid = noise.default_grid(self.config_["sigma"])
        return noise.given_up({**self.config_, "grid": grid})

    def _series(self, X: Any) -> np.ndarray:
        """X as the network is given it, (n, T, C)."""
        check_is_fitted(self)
        refuse_sparse(X)
        described = self.config_["data"]
        return data.check_new_series(X, described, channels_first=self.channels_first)

    def _counts(self, x: np.ndarray, num_draws: int, noise_seed: int | None = None) -> np.ndarray:
        """Votes (n, K) for each of `classes_`, an example at a time, so that a bar can move."""
        count = self._counter(x, noise_seed)
        check_whole("num_draws", num_draws, 1)
        per_call = 1 if backend.on_cpu() else max(1, blocks.default_batch_size() // num_draws)
        parts = []
        with self._bar(len(x), "ex", "certifying") as bar:
            for rows in _chunks(len(x), per_call):
                parts.append(count(rows, 0, num_draws))
                bar.update(len(rows))
        return np.concatenate(parts)[:, self.columns_]

    def _counter(
        self, x: np.ndarray, noise_seed: int | None
    ) -> Callable[[np.ndarray, int, int], np.ndarray]:
        """What counts the votes of draws of some rows of x."""
        config, predict = self.config_, self._network()
        seed = config["seed"] if noise_seed is None else check_seed("noise_seed", noise_seed)
        # On a CPU one block a call, whose one program serves any number of draws.
        block = blocks.default_draws_per_block(x.shape[1])
        batch_size = block if backend.on_cpu() else None

        def count(rows: np.ndarray, first_draw: int, num_draws: int) -> np.ndarray:
            return smoothing.count_votes(
                predict,
                x[rows],
                sigma=config["sigma"],
                num_draws=num_draws,
                key=stream(seed, "certification"),
                batch_size=batch_size,
                indices=rows,
                first_draw=first_draw,
            )

        return count

    def _network(self) -> smoothing.SelfEnsemble | smoothing.DeepEnsemble:
        """The ensemble that is smoothed."""
        network = models.create(self.config_["model"], len(self.classes_))
        asked = {"num_masks": self.num_masks, "mask_design": self.mask_design}
        return runs.make_classifier(network, self.variables_, self.config_, **asked)[0]

    def _bar(self, total: int, unit: str, what: str) -> tqdm:
        return tqdm(total=total, unit=unit, desc=what, disable=not self.verbose)


def _labels(classes: np.ndarray, index: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(N,) the classes as Python values, None where not `known`."""
    values = plain(classes)
    found = [values[i] if sure else None for i, sure in zip(index, known, strict=True)]
    return np.array([*found, None], dtype=object)[:-1]


def _chunks(number: int, size: int) -> Iterator[np.ndarray]:
    for start in range(0, number, size):
        yield np.arange(start, min(start + size, number))
