"""What the commands that use a trained run share: finding it, and making its classifier."""

import contextlib
import math
import os
import secrets
import shlex
from pathlib import Path
from typing import Any

from common import cli

import jax
import numpy as np
from absl import flags

from selfens_jax import data, locks, masks, noise, runs, smoothing, training
from selfens_jax.errors import UserError

FLAGS = flags.FLAGS
RANDOM = "random"
_COMPARED = ("model", "ensemble", "sigma", "keep", "seed", "objective", "average", "hidden_as")


def define_flags() -> None:
    """Which classifier a run makes, and how it is examined; beside `cli.define_run_flags`."""
    flags.DEFINE_integer("num_masks", 5, "m, masks of a self-ensemble.")
    flags.DEFINE_integer("mask_seed", None, "Seed of the masks; --seed if not given.")
    flags.DEFINE_enum(
        "mask_design",
        masks.DESIGNS[0],
        masks.DESIGNS,
        "Of mb and mc: masks drawn independently, or so that they hide different steps as far as "
        "they can.",
    )
    cli.define_path("run_dir", None, "The run to use; found from the other flags if not given.")
    cli.define_path("output_dir", None, "Where the results go; into the run if not given.")
    flags.DEFINE_integer("num_draws", 1000, "n, noise draws an example for the votes.")
    flags.DEFINE_enum(
        "noise",
        "grid",
        noise.KINDS,
        "grid: certificates are proven for any classifier; float32: as earlier versions drew it.",
    )
    flags.DEFINE_float(
        "grid", None, "Distance of the grid's points, a power of two; from sigma if not given."
    )
    flags.DEFINE(
        _SeedParser(),
        "noise_seed",
        None,
        "Seed of all noise drawn here; random: from the operating system, told with the results. "
        "--seed if not given; random for --series.",
    )
    flags.DEFINE_integer("num_examples", None, "Take this many evenly spaced test examples.")


class _SeedParser(flags.ArgumentParser[int | str]):
    """A whole number, or the word random."""

    def parse(self, argument: int | str) -> int | str:
        if argument == RANDOM:
            return RANDOM
        try:
            seed = int(argument)
        except ValueError:
            seed = -1
        if not 0 <= seed < 2**32:
            raise ValueError("it must be random, or a whole number from 0 to below 2**32")
        return seed

    def flag_type(self) -> str:
        return "seed"


def find_run(
    noisy: bool = False, own: tuple[float, int] | None = None
) -> tuple[Path, dict[str, Any]]:
    """The run directory that the flags name and its configuration, which must agree with them.

    Args:
      noisy: whether it must have been trained under noise.
      own: sigma and seed of one of several runs; those of the flags if None.

    Raises:
      UserError: if there is none, if it is unfinished, if a flag contradicts it, or if it must be
        `noisy` and was trained with sigma 0.
    """
    sigma, seed = own or (FLAGS.sigma, FLAGS.seed)
    asked = {name: FLAGS[name].value for name in _COMPARED} | {"sigma": sigma, "seed": seed}
    if noisy and not 0 < sigma < math.inf:
        raise UserError(f"--sigma={sigma:g}: without noise there is no radius; above 0 needed")
    if FLAGS.run_dir is None:
        masks.check_hidden_as(FLAGS.hidden_as, FLAGS.ensemble)
        run = _run_of(sigma, seed)
    else:
        run = Path(FLAGS.run_dir).absolute()
        asked = {name: value for name, value in asked.items() if FLAGS[name].present}
    if FLAGS.ensemble in ("single", "de", "mw"):
        asked.pop("keep", None)  # there is no mask whose share could differ
    file = run / "config.json"
    if file.exists():  # what is in use is not trained again meanwhile
        cli.HELD.enter_context(locks.held(lock_of(run), f"the training of {run}", shared=True))
    if not file.exists() or not runs.is_finished(run):
        state = "is unfinished" if file.exists() else "does not exist"
        if FLAGS.run_dir is not None:
            remedy = "--run_dir is the folder of one run, which holds its config.json"
            raise UserError(f"the run {run} {state}; {remedy}")
        every = [(sigma, seed)] if own is None else cli.every_run()
        missing = [each for each in every if not runs.is_finished(_run_of(*each))]
        more = f", and so it is with {len(missing) - 1} more" if len(missing) > 1 else ""
        if "series" in FLAGS and FLAGS.series is not None and not FLAGS["dataset"].present:
            remedy = "--run_dir=RUN says by which run --series is to be certified"
        else:
            remedy = f"this trains {'them' if more else 'it'}: {train_command(missing)}"
        raise UserError(f"the run {run} {state}{more}; {remedy}")
    config = runs.read_config(run)
    differences = runs.differences(training.completed(config), asked)
    if differences:
        raise UserError(f"the run {run} was trained otherwise: {differences}")
    if noisy and config["sigma"] == 0:
        raise UserError(f"the run {run} was trained with sigma 0: without noise there is no radius")
    return run, config


def find_runs(noisy: bool = False) -> list[tuple[Path, dict[str, Any]]]:
    """As `find_run`, for every sigma with every seed, if the flags name several.

    Raises:
      UserError: also if --run_dir names one run and they name several.
    """
    several = [name for name in ("sigmas", "seeds") if FLAGS[name].present]
    if several and FLAGS.run_dir is not None:
        raise UserError(f"--run_dir is one run; leave out --{several[0]}")
    return [find_run(noisy, own) for own in cli.every_run()]


def lock_of(run: Path) -> Path:
    """The lock that a training of the run holds; beside the run, which it may delete."""
    return run.with_name(f".{run.name}.lock")


def _run_of(sigma: float, seed: int) -> Path:
    name = data.name_of(FLAGS.dataset)
    return runs.directory(FLAGS.runs_dir, name, FLAGS.model, FLAGS.ensemble, sigma, seed)


def train_command(missing: list[tuple[float, int]]) -> str:
    """What trains every sigma with every seed of these; train.py leaves out what is trained."""
    sigmas, seeds = (list(dict.fromkeys(values)) for values in zip(*missing, strict=True))
    words = [f"--dataset={FLAGS.dataset}", _one_or_several("sigma", sigmas)]
    others = ("data_dir", *cli.PREPARING, "model", "ensemble", "keep", "objective", "average")
    values = {name: FLAGS[name].value for name in (*others, "hidden_as", "runs_dir")}
    words += [f"--{n}={value}" for n, value in values.items() if value != FLAGS[n].default]
    if seeds != [FLAGS["seed"].default]:
        words.append(_one_or_several("seed", seeds))
    if FLAGS.ensemble == "mw":
        asked = (FLAGS["burst"].value or []) if "burst" in FLAGS else []  # by certify.py
        lengths = [int(text) for text in asked if text.isdigit()]
        words.append(f"--burst={max(lengths, default=8)}")
    return shlex.join(["python", "experiments/train.py", *words])


def _one_or_several(name: str, values: list[Any]) -> str:
    """The flag that names one value, or the one that names several."""
    return f"--{name}{'s' * (len(values) > 1)}={','.join(map(str, values))}"


def output_folder(run: Path) -> Path:
    """Where the results of a run go: --output_dir, or the run itself."""
    if FLAGS.output_dir is None:
        return run
    folder = Path(FLAGS.output_dir).absolute()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir={FLAGS.output_dir} is not a folder")
    return folder


def load_data(run: Path, config: dict[str, Any]) -> data.Dataset:
    """The data set of the flags, which must be the one that the run was trained on.

    Raises:
      UserError: if it is another or prepared otherwise, or has no test split.
    """
    check_preparation(run, config["data"])
    recorded = None if FLAGS.run_dir is None else config["data"]
    dataset = cli.load_data(FLAGS, recorded=recorded)
    differences = runs.differences(config, {"data": data.describe(dataset)})
    if differences:
        raise UserError(
            f"{run}: {differences}; give the data that it was trained on, or train another; "
            "certify.py --series=FILE certifies new series"
        )
    if not len(dataset.x_test):
        raise UserError(
            f"{dataset.name} has no test split; certify.py --series=FILE certifies new series"
        )
    return dataset


def check_preparation(run: Path, described: dict[str, Any]) -> None:
    """Raises UserError if the flags prepare series otherwise than the run's data, `described`.

    With --run_dir, those that are not given are the run's.
    """
    for name in cli.PREPARING:
        flag = FLAGS[name]
        known = described.get(name, flag.default)
        if flag.value == known or (FLAGS.run_dir is not None and not flag.present):
            continue
        words = f"--{name}" if known is True else f"--{name}={known}"
        if known == flag.default:
            raise UserError(f"the run {run} was trained without --{name}; leave it out")
        raise UserError(f"the run {run} was trained with {words}; give {words}")


def noise_seed(config: dict[str, Any]) -> int:
    """That of the flags.

    Raises:
      UserError: for --noise_seed=random, which only certify.py can remember.
    """
    if FLAGS.noise_seed == RANDOM:
        raise UserError("--noise_seed=random is for certify.py; give a number")
    return config["seed"] if FLAGS.noise_seed is None else FLAGS.noise_seed


def shared_settings(
    config: dict[str, Any], classifier: dict[str, Any], seed: int | None
) -> dict[str, Any]:
    """What every result of a run depends on, whatever is asked of its classifier.

    seed: of the noise; None if there is none.
    """
    versions = runs.versions()
    noise_settings = {"noise_seed": seed, **grid_setting(config["sigma"])}
    return {
        **classifier,
        "data": config["data"],
        "sigma": config["sigma"],
        **({} if seed is None else noise_settings),
        "platform": jax.local_devices()[0].platform,
        "versions": {name: versions[name] for name in ("selfens_jax", "jax")},
    }


def draw_seed(file: Path) -> int:
    """A seed from the operating system, which `file` keeps until the results are written.

    So a killed command goes on with it, and processes that share the work have one.
    """
    if not file.exists():
        own = file.with_name(f"{file.name}.{os.getpid()}")
        runs.write_json(own, {"noise_seed": secrets.randbits(32)})
        with contextlib.suppress(FileExistsError):  # another process was first
            os.link(own, file)
        own.unlink()
    return int(runs.read_json(file)["noise_seed"])


def grid_setting(sigma: float) -> dict[str, float]:
    """The grid of the noise, as settings have it; nothing for noise in float32, as ever.

    Raises:
      UserError: if --grid does not go with --noise or sigma.
    """
    if FLAGS.noise == "float32" or sigma == 0:
        if FLAGS.grid is not None:
            what = "a run of sigma 0" if sigma == 0 else "--noise=float32"
            raise UserError(f"{what} has no grid; leave out --grid")
        return {}
    if FLAGS.grid is None:
        return {"grid": noise.default_grid(sigma)}
    try:
        return {"grid": noise.check_grid(FLAGS.grid, sigma, np.zeros(0))}
    except UserError as error:
        raise UserError(f"--grid={FLAGS.grid}: {error}") from None


def load_classifier(
    run: Path,
) -> tuple[smoothing.SelfEnsemble | smoothing.DeepEnsemble, dict[str, Any]]:
    """The ensemble to certify, and the part of the settings that says which it is."""
    saved = runs.read_config(run).get("classifier", {})  # with a SelfEnsembleClassifier
    own: dict[str, Any] = {
        name: FLAGS[name].value if FLAGS[name].present else saved.get(name, FLAGS[name].value)
        for name in ("num_masks", "mask_design")
    }
    return runs.load_classifier(
        run,
        **own,
        mask_seed=FLAGS.mask_seed,
        masks_folder=None if FLAGS.output_dir is None else output_folder(run),
    )
