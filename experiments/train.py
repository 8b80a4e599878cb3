"""Trains a classifier under noise and masks (Algorithm 1), so that certify.py can certify it.

    python experiments/train.py --dataset=CBF --sigma=0.8
    python experiments/train.py --dataset=CBF --sigmas=0.1,0.4,0.8 --seeds=0,1,2
    python experiments/train.py --dataset=CBF --sigma=0.8 --objective=consistency
    python experiments/train.py --dataset=CBF --sigma=0.8 --ensemble=single --member_of_de

A killed run, started again, goes on and ends with the same parameters.
"""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import cli, trained

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from selfens_jax import bursts, data, locks, models, paths, runs, training
from selfens_jax.blocks import PRECISIONS
from selfens_jax.errors import UserError, check_resolution

_DEFAULTS = training.TrainConfig()
cli.define_run_flags()
cli.define_several()
flags.DEFINE_integer("epochs", _DEFAULTS.epochs, "Passes over the training series.")
flags.DEFINE_integer("batch_size", _DEFAULTS.batch_size, "The largest training batch.")
flags.DEFINE_enum(
    "class_weights",
    _DEFAULTS.class_weights,
    list(training.CLASS_WEIGHTS),
    "balanced: every class has the same share of the loss, however rare; none: every series.",
)
flags.DEFINE_float("learning_rate", _DEFAULTS.learning_rate, "Adam's first learning rate.")
flags.DEFINE_integer("num_members", 5, "Networks of a deep ensemble (--ensemble=de).")
flags.DEFINE_bool(
    "member_of_de",
    False,
    "Train nothing: take the first network of the deep ensemble that was trained with the same "
    "flags, which is the one that --ensemble=single would train.",
)
flags.DEFINE_integer(
    "burst", None, "Steps of the bursts that certify.py --burst is to certify (--ensemble=mw)."
)
flags.DEFINE_float(
    "consistency_weight", None, "lambda, of --objective=consistency: that views agree; 5."
)
flags.DEFINE_float(
    "entropy_weight", None, "eta, of --objective=consistency: that they are sure; 0.5."
)
flags.DEFINE_enum(
    "precision",
    "float32",
    PRECISIONS,
    "Of products in training on an accelerator; certify.py has its own.",
)
flags.DEFINE_float("checkpoint_every", 30.0, "Seconds between saved states.")
flags.DEFINE_bool("overwrite", False, "Delete the run, with its certificates, and train again.")
FLAGS = flags.FLAGS


@dataclasses.dataclass
class Run:
    """A run in training: what it is, and how far it has come."""

    folder: Path
    trainer: training.Trainer
    states: training.States
    history: training.Rows
    done: int  # epochs
    spent: float | None  # seconds of earlier calls; None if they left no time
    saved: bool = False  # whether its last epoch is on disk


def main() -> None:
    configs = check_flags()
    dataset = cli.load_data(FLAGS)
    if FLAGS.burst is not None:
        bursts.windows(dataset.length, FLAGS.burst)  # refuses one that is too long
    every = np.concatenate([dataset.x_train, dataset.x_test])
    try:
        for sigma in {config.sigma for config in configs} - {0.0}:
            check_resolution(every, sigma, dataset.units)
    except UserError as error:
        raise UserError(f"{paths.shown(FLAGS.dataset)}: {error}") from None
    folders = [
        runs.directory(
            FLAGS.runs_dir, dataset.name, FLAGS.model, config.ensemble, config.sigma, config.seed
        )
        for config in configs
    ]
    asked = [asked_of(config, dataset) for config in configs]
    for folder, wanted in zip(folders, asked, strict=True):
        refuse_another(folder, wanted)
    open_ones = [
        (folder, config, wanted)
        for folder, config, wanted in zip(folders, configs, asked, strict=True)
        if FLAGS.overwrite or not is_trained(folder)
    ]
    if FLAGS.member_of_de:
        for *_, wanted in open_ones:
            with or_alone():  # refuses before anything is written
                source = deep_ensemble_of(wanted)
                runs.load_networks(source)
                runs.read_history(source)
    with contextlib.ExitStack() as stack:
        for folder, *_ in open_ones:
            what = f"the training, or other work on, {folder}"
            stack.enter_context(locks.held(trained.lock_of(folder), what))
        for folder, _, wanted in open_ones:
            refuse_another(folder, wanted)  # what another process may have trained meanwhile
        if FLAGS.member_of_de:
            take_members([(folder, wanted) for folder, _, wanted in open_ones])
            return
        for folder, _, wanted in open_ones:
            prepare(folder, wanted)
        todo = [
            open_run(folder, config, dataset)
            for folder, config, _ in open_ones
            if not is_trained(folder)
        ]
        # Side by side are those that have come equally far.
        for done in sorted({run.done for run in todo}, reverse=True):
            together = [run for run in todo if run.done == done]
            try:
                train(together, dataset)
            except UserError as error:
                if len(together) == 1:
                    raise
                others = "the runs beside it stop too; without it they go on from their last epoch "
                raise UserError(f"{error}; {others}that was saved") from None


def is_trained(run: Path) -> bool:
    """Whether the run is finished, which it then says.

    Raises:
      UserError: if it is, but its network cannot be used.
    """
    if not runs.is_finished(run):
        return False
    _, variables, _ = runs.load_networks(run)
    training.check_finite(variables, f"the network of {run}", "--overwrite trains it again")
    shutil.rmtree(run / "progress", ignore_errors=True)  # of one that was killed as it finished
    cli.say(f"{run} has already been trained; --overwrite trains it again")
    return True


def check_flags() -> list[training.TrainConfig]:
    """What is to be trained: every sigma with every seed."""
    every = cli.every_run()
    if (FLAGS.burst is None) == (FLAGS.ensemble == "mw"):
        raise UserError(
            "--ensemble=mw hides windows, and --burst says how long the bursts are that they are "
            "for: give both, or neither"
        )
    if FLAGS.member_of_de and FLAGS.ensemble != "single":
        raise UserError("--member_of_de makes a run of --ensemble=single; give that too")
    if FLAGS["num_members"].present and FLAGS.ensemble != "de":
        raise UserError("--num_members is of --ensemble=de; leave it out")
    if not FLAGS.checkpoint_every >= 0:  # nor NaN, which would save nothing
        given = FLAGS.checkpoint_every
        raise UserError(f"--checkpoint_every must be seconds, at least 0, not {given:g}")
    cli.check_precision()
    names = ("consistency_weight", "entropy_weight")
    weights: dict[str, Any] = {n: FLAGS[n].value for n in names if FLAGS[n].value is not None}
    if weights and FLAGS.objective != "consistency":
        raise UserError(f"--{next(iter(weights))} is of --objective=consistency; leave it out")
    configs = [
        training.TrainConfig(
            ensemble=FLAGS.ensemble,
            sigma=sigma,
            keep=FLAGS.keep,
            num_members=FLAGS.num_members if FLAGS.ensemble == "de" else 1,
            epochs=FLAGS.epochs,
            batch_size=FLAGS.batch_size,
            class_weights=FLAGS.class_weights,
            learning_rate=FLAGS.learning_rate,
            seed=seed,
            burst=FLAGS.burst,
            objective=FLAGS.objective,
            average=FLAGS.average,
            precision=FLAGS.precision,
            hidden_as=FLAGS.hidden_as,
            **weights,
        )
        for sigma, seed in every
    ]
    return list(dict.fromkeys(configs))


def asked_of(config: training.TrainConfig, dataset: data.Dataset) -> dict[str, Any]:
    """What a run's config.json says of it, versions apart."""
    return {"model": FLAGS.model, **config.settings(), "data": data.describe(dataset)}


def refuse_another(run: Path, asked: dict[str, Any]) -> None:
    """Refuses a run directory that holds something else and is not to be overwritten.

    Raises:
      UserError: for such a directory.
    """
    file = run / "config.json"
    if not file.exists() or not runs.is_begun(run) or FLAGS.overwrite:
        return
    found, wanted = training.completed(runs.read_json(file)), training.completed(asked)
    differences = runs.differences(found, wanted)
    if differences:
        raise UserError(
            f"{run} was trained otherwise: {differences}; "
            "--overwrite replaces it, another --runs_dir keeps both"
        )


def prepare(run: Path, asked: dict[str, Any]) -> None:
    """Makes the run directory, unless it is there and is to be kept."""
    file = run / "config.json"
    if file.exists() and FLAGS.overwrite:
        shutil.rmtree(run)
    if not runs.is_begun(run):
        runs.write_json(file, {**asked, "versions": runs.versions()})


def take_members(wanted: list[tuple[Path, dict[str, Any]]]) -> None:
    """Makes finished runs of the first networks of deep ensembles, whose random keys are theirs.

    Args:
      wanted: run directories, and what is asked of each.

    Raises:
      UserError: if there is no such deep ensemble; nothing is written then.
    """
    with contextlib.ExitStack() as stack:
        sources = []
        for _, asked in wanted:
            with or_alone():
                source = deep_ensemble_of(asked)
                lock = locks.held(trained.lock_of(source), f"the training of {source}", shared=True)
                stack.enter_context(lock)
                sources.append((source, *runs.load_networks(source)[1:], runs.read_history(source)))
        for (folder, asked), (source, variables, config, history) in zip(
            wanted, sources, strict=True
        ):
            shutil.rmtree(folder, ignore_errors=True)  # what was begun of the same network
            origin = {"run": str(source), "weights_sha256": runs.digest(variables)}
            record = {**asked, "member_of": origin, "versions": config["versions"]}
            runs.write_json(folder / "config.json", record)
            first = jax.tree.map(lambda leaf: leaf[:1], variables)
            runs.save_networks(folder, first, [row for row in history if row["member"] == 0])
            cli.say(f"the first network of {source}")
            print(folder)


@contextlib.contextmanager
def or_alone() -> Iterator[None]:
    """Whatever is wrong with a deep ensemble, its first network can be trained by itself."""
    try:
        yield
    except UserError as error:
        says = "without --member_of_de the network is trained by itself"
        raise UserError(f"{error}; {says}") from None


def deep_ensemble_of(asked: dict[str, Any]) -> Path:
    """The run of the deep ensemble trained as `asked` says of a single network.

    Raises:
      UserError: if there is none.
    """
    name, sigma, seed = asked["data"]["name"], asked["sigma"], asked["seed"]
    run = runs.directory(FLAGS.runs_dir, name, asked["model"], "de", sigma, seed)
    if not runs.is_finished(run):
        raise UserError(
            f"the deep ensemble {run} has not been trained; --ensemble=de in place of "
            "--ensemble=single --member_of_de trains it"
        )
    own = training.completed(asked)
    own = {key: value for key, value in own.items() if key not in ("ensemble", "num_members")}
    differences = runs.differences(training.completed(runs.read_config(run)), own)
    if differences:
        raise UserError(f"the deep ensemble {run} was trained otherwise: {differences}")
    return run


def open_run(folder: Path, config: training.TrainConfig, dataset: data.Dataset) -> Run:
    """A new run, or one that goes on where an earlier call stopped."""
    model = models.create(FLAGS.model, dataset.num_classes)
    trainer = training.Trainer(model, config, len(dataset.x_train))
    states = training.init_states(trainer, dataset.x_train)
    saved = runs.load_progress(folder, states)
    if saved is None:
        return Run(folder, trainer, states, [], 0, 0.0)
    done, states, history = saved
    cli.say(f"going on after epoch {done} of {folder}")
    spent = runs.read_training_time(folder)
    return Run(folder, trainer, states, history, done, spent, saved=done == config.epochs)


def train(together: list[Run], dataset: data.Dataset) -> None:
    """Trains runs that have come equally far, side by side, and finishes them."""
    x, y = dataset.x_train, dataset.y_train
    epochs, done = together[0].trainer.config.epochs, together[0].done
    started = last_save = time.monotonic()

    def seconds() -> float:
        return (time.monotonic() - started) / len(together)  # a run's share of what all took

    def save_times() -> None:
        for run in together:
            if run.spent is not None:
                runs.write_training_time(run.folder, run.spent + seconds())

    def save() -> None:
        save_times()
        for run in together:
            runs.save_progress(run.folder, run.done, run.states, run.history)

    steps = training.train_side_by_side(
        [run.trainer for run in together], x, y, [run.states for run in together]
    )
    with tqdm(total=epochs, initial=done, unit="epoch", desc="training") as bar:
        for reports in steps:
            for run, (states, rows) in zip(together, reports, strict=True):
                run.states, run.done, run.saved = states, int(rows[-1]["epoch"]), False
                run.history += rows
            bar.set_postfix(
                loss=f"{mean_of_last(together, 'loss'):.4f}",
                accuracy=f"{mean_of_last(together, 'accuracy'):.3f}",
            )
            bar.update(together[0].done - bar.n)
            if time.monotonic() - last_save > FLAGS.checkpoint_every:
                save()
                last_save = time.monotonic()
    # Before the last states are saved: what cannot be finished is not to be gone on with.
    finished = [models.stack(training.recalibrated(run.trainer, x, run.states)) for run in together]
    if not all(run.saved for run in together):
        save()
    save_times()
    for run, variables in zip(together, finished, strict=True):
        runs.save_networks(run.folder, variables, run.history)

    for run in together:
        cli.say(
            f"trained in {(run.spent or 0.0) + seconds():.1f} s on {runs.device_name()}: "
            f"final training loss {mean_of_last([run], 'loss'):.4f}, accuracy "
            f"{mean_of_last([run], 'accuracy'):.3f}"
        )
        print(run.folder)


def mean_of_last(together: list[Run], name: str) -> float:
    """A number of the last epoch, averaged over the members of all runs."""
    values = [row[name] for run in together for row in run.history[-len(run.states) :]]
    return sum(values) / len(values)


if __name__ == "__main__":
    cli.run(main)
