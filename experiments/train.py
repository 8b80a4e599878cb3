"""Trains a classifier under noise and masks (Algorithm 1), so that certify.py can certify it.

    python experiments/train.py --dataset=CBF --sigma=0.8

A killed run, started again, goes on and ends with the same parameters.
"""

import dataclasses
import shutil
import time
from pathlib import Path

import cli
import jax
from absl import flags
from tqdm import tqdm

from selfens_jax import data, models, runs, training
from selfens_jax.errors import UserError

_DEFAULTS = training.TrainConfig()
cli.define_run_flags()
flags.adopt_module_key_flags(cli)
flags.DEFINE_integer("epochs", _DEFAULTS.epochs, "Passes over the training series.")
flags.DEFINE_integer("batch_size", _DEFAULTS.batch_size, "The largest training batch.")
flags.DEFINE_float("learning_rate", _DEFAULTS.learning_rate, "Adam's first learning rate.")
flags.DEFINE_integer("num_members", 5, "Networks of a deep ensemble (--ensemble=de).")
flags.DEFINE_float("checkpoint_every", 30.0, "Seconds between saved states.")
flags.DEFINE_bool("overwrite", False, "Delete the run, with its certificates, and train again.")
FLAGS = flags.FLAGS


def main() -> None:
    config = training.TrainConfig(
        ensemble=FLAGS.ensemble,
        sigma=FLAGS.sigma,
        keep=FLAGS.keep,
        num_members=FLAGS.num_members if FLAGS.ensemble == "de" else 1,
        epochs=FLAGS.epochs,
        batch_size=FLAGS.batch_size,
        learning_rate=FLAGS.learning_rate,
        seed=FLAGS.seed,
    )
    dataset = cli.load_data(FLAGS)
    run = runs.directory(
        FLAGS.runs_dir, dataset.name, FLAGS.model, config.ensemble, config.sigma, config.seed
    )
    prepare(run, config, dataset)
    if runs.is_finished(run):
        cli.say(f"{run} has already been trained; --overwrite trains it again")
        return
    train(run, config, dataset)


def prepare(run: Path, config: training.TrainConfig, dataset: data.Dataset) -> None:
    """Makes the run directory, or refuses one that holds something else."""
    asked = {
        "model": FLAGS.model,
        **dataclasses.asdict(config),
        "data": data.describe(dataset),
    }
    file = run / "config.json"
    if file.exists() and FLAGS.overwrite:
        shutil.rmtree(run)
    if file.exists():
        found = runs.read_json(file)
        differences = runs.differences(found, asked)
        if differences:
            raise UserError(
                f"{run} was trained otherwise: {differences}; "
                "--overwrite replaces it, another --runs_dir keeps both"
            )
        return
    runs.write_json(file, {**asked, "versions": runs.versions()})


def train(run: Path, config: training.TrainConfig, dataset: data.Dataset) -> None:
    model = models.create(FLAGS.model, dataset.num_classes)
    x, y = dataset.x_train, dataset.y_train
    trainer = training.Trainer(model, config, len(x))
    states = training.init_states(trainer, x)
    done, history, spent = 0, [], 0.0
    saved = runs.load_progress(run, states)
    if saved is not None:
        done, states, history = saved
        spent = runs.read_training_time(run)
        cli.say(f"going on after epoch {done}")

    started = last_save = time.monotonic()

    def save_time() -> None:
        if spent is not None:  # else an earlier part left no time, and the total is not known
            runs.write_training_time(run, spent + time.monotonic() - started)

    with tqdm(total=config.epochs, initial=done, unit="epoch", desc="training") as bar:
        for latest, rows in training.train(trainer, x, y, states):
            states = latest
            history += rows
            done = rows[-1]["epoch"]
            bar.set_postfix(loss=f"{rows[-1]['loss']:.4f}", accuracy=f"{rows[-1]['accuracy']:.3f}")
            bar.update(done - bar.n)
            if time.monotonic() - last_save > FLAGS.checkpoint_every:
                save_time()
                runs.save_progress(run, done, states, history)
                last_save = time.monotonic()
    save_time()
    if saved is None or saved[0] < config.epochs:
        runs.save_progress(run, done, states, history)
    variables = models.stack(training.finish(trainer, x, states))
    save_time()
    runs.finish(run, variables, history)

    last = [row for row in history if row["epoch"] == config.epochs]
    seconds = (spent or 0.0) + time.monotonic() - started
    cli.say(
        f"trained in {seconds:.1f} s on {jax.devices()[0].device_kind}: final training loss "
        f"{sum(row['loss'] for row in last) / len(last):.4f}, accuracy "
        f"{sum(row['accuracy'] for row in last) / len(last):.3f}"
    )
    print(run)


if __name__ == "__main__":
    cli.run(main)
