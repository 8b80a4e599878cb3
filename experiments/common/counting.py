"""What each test example comes to, one line of a log at a time.

A killed command goes on where it stopped. Several processes, on one machine or several, each take
every so-manieth example and write a log of their own; the first process waits for the others and
merges. Who counts an example changes nothing about its counts.
"""

import contextlib
import dataclasses
import glob
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from common import cli, trained
from tqdm import tqdm

from selfens_jax import data, locks, runs, smoothing
from selfens_jax.errors import UserError
from selfens_jax.streams import stream

FLAGS = flags.FLAGS

Measure = Callable[[np.ndarray], list[tuple[int, ...]]]


def define_flags() -> None:
    """The flags of counting, beside `cli.define_run_flags` and `trained.define_flags`."""
    flags.DEFINE_integer(
        "batch_size", None, "Noised series in flight; bounds memory, changes no result."
    )
    flags.DEFINE_integer(
        "consensus", None, "Ask all masks (members) only where this many first ones disagree."
    )
    flags.DEFINE_enum(
        "precision",
        "float32",
        smoothing.PRECISIONS,
        "Of products on an accelerator; the classifier at this precision is what is certified.",
    )
    flags.DEFINE_integer("num_processes", None, "Processes that share the examples.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0; 0 merges.")
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0: they are one jax.distributed program."
    )
    flags.DEFINE_bool(
        "distributed", False, "Let JAX find out processes and coordinator: TPU pods, Slurm."
    )
    flags.DEFINE_integer(
        "wait", 600, "Seconds without news after which process 0 gives the others up."
    )


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be counted, and how; the same for a fixed number of draws and a target radius."""

    folder: Path  # where its results go
    dataset: data.Dataset
    chosen: np.ndarray  # (N,) places in the test split
    predict: smoothing.Predict
    settings: dict[str, Any]  # all that votes depend on
    batch_size: int
    mesh: jax.sharding.Mesh | None

    @property
    def num_members(self) -> int:
        """Forward passes that a draw costs without consensus."""
        predict = self.predict
        return (predict.ensemble if isinstance(predict, smoothing.Consensus) else predict).size

    def count(
        self, examples: np.ndarray, first_draw: int, num_draws: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Votes (M, K) of some draws of some examples, and the forward passes (M,) they took."""
        arguments = {
            "x": self.dataset.x_test[examples],
            "sigma": self.settings["sigma"],
            "num_draws": num_draws,
            "key": stream(self.settings["noise_seed"], "certification"),
            "batch_size": self.batch_size,
            "indices": examples,
            "first_draw": first_draw,
            "draws_per_block": self.settings["draws_per_block"],
            "precision": self.settings["precision"],
            "mesh": self.mesh,
        }
        if not isinstance(self.predict, smoothing.Consensus):
            counts = smoothing.count_votes(self.predict, **arguments)
            return counts, np.full(len(examples), num_draws * self.num_members)
        counts, asked_all = smoothing.count_consensus_votes(self.predict, **arguments)
        first = self.predict.first
        return counts, num_draws * first + asked_all * (self.num_members - first)


def prepare(run: Path, config: dict[str, Any], draws_per_block: int, batch_size: int) -> Job:
    """The job that the flags ask of a run; `batch_size` if --batch_size is not given.

    Raises:
      UserError: if the flags contradict the run or each other.
    """
    if FLAGS.precision != "float32" and jax.default_backend() == "cpu":
        raise UserError(f"--precision={FLAGS.precision}: a CPU computes in float32; leave it out")
    dataset = trained.load_data(run, config)
    chosen = runs.evenly_spaced(FLAGS.num_examples, len(dataset.x_test))
    predict, classifier = trained.load_classifier(run, config, dataset)
    if FLAGS.consensus is not None:
        predict = smoothing.consensus(predict, FLAGS.consensus)
        classifier["consensus"] = FLAGS.consensus
    settings = {
        **trained.settings_of(config, classifier),
        "draws_per_block": draws_per_block,
        "precision": FLAGS.precision,
    }
    batch_size = FLAGS.batch_size or batch_size
    folder = trained.output_folder(run)
    return Job(folder, dataset, chosen, predict, settings, batch_size, local_mesh())


def start_processes() -> tuple[int, int]:
    """Joins the other processes; (process_id, num_processes). Before JAX is used.

    Raises:
      UserError: if the flags do not fit together, or the coordinator cannot be reached.
    """
    number, this = FLAGS.num_processes, FLAGS.process_id
    if (number is None) != (this is None):
        raise UserError("--num_processes and --process_id go together")
    if FLAGS.coordinator is not None and number is None:
        raise UserError("--coordinator needs --num_processes and --process_id")
    if number is not None and number < 1:
        raise UserError(f"--num_processes must be at least 1, not {number}")
    if number is not None and not 0 <= this < number:
        raise UserError(f"--process_id must be from 0 to {number - 1}, not {this}")
    if FLAGS.distributed or FLAGS.coordinator is not None:
        try:
            jax.distributed.initialize(FLAGS.coordinator, number, this)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"the processes did not come together: {reason}") from None
        return jax.process_index(), jax.process_count()
    return (0, 1) if number is None else (this, number)


def local_mesh() -> jax.sharding.Mesh | None:
    """All devices of this process, if it has several."""
    devices = jax.local_devices()
    if len(devices) == 1:
        return None
    automatic = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((len(devices),), ("blocks",), axis_types=automatic, devices=devices)


def measure_examples(
    processes: tuple[int, int],
    stem: Path,
    settings: dict[str, Any],
    whole: Callable[[tuple[int, ...]], bool],
    chosen: np.ndarray,
    per_call: int,
    measure: Measure,
    show: Callable[[dict[int, runs.Entry]], str],
) -> dict[int, runs.Entry]:
    """The entries of the chosen examples, measured now or in earlier calls.

    Args:
      processes: (process_id, num_processes).
      stem: path of the log, without suffix.
      settings: everything that the entries depend on.
      whole: tells whether an entry's values are complete.
      chosen: (N,) examples.
      per_call: examples that `measure` gets at once.
      measure: the values of some examples.
      show: the text beside the progress bar, for new entries.

    Raises:
      UserError: for damaged logs, if another process writes this log, or if entries of other
        processes do not arrive.
      SystemExit: with status 0 in every process but the first, when its share is done.
    """
    this, number = processes

    def log(process: int) -> Path:
        return stem.with_name(f"{stem.name}{f'.{process}' if process else ''}.tsv")

    own, share = log(this), chosen[this::number]
    what = f"the counting for {own}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(locks.held(own.with_name(f".{own.name}.lock"), what))
        entries = runs.open_log(own, settings, whole)
        for other in sorted(own.parent.glob(f"{glob.escape(stem.name)}*.tsv")):
            entries |= runs.read_log(other, settings, whole) if other != own else {}
        todo = np.array([i for i in share if i not in entries], int)
        done = len(share) - len(todo)
        bar = stack.enter_context(
            tqdm(total=len(share), initial=done, unit="ex", desc="certifying")
        )
        show({i: entries[i] for i in share.tolist() if i in entries})
        for start in range(0, len(todo), per_call):
            some = todo[start : start + per_call]
            began = time.monotonic()
            values = measure(some)
            each = (time.monotonic() - began) / len(some)
            new = {
                index: runs.Entry(value, each)
                for index, value in zip(some.tolist(), values, strict=True)
            }
            runs.append_log(own, new)
            entries |= new
            bar.set_postfix_str(show(new))
            bar.update(len(some))
    if this > 0:
        cli.say(f"process {this} of {number}: {len(share)} examples in {own}; process 0 merges")
        raise SystemExit(0)

    news = time.monotonic()
    while missing := [i for i in chosen.tolist() if i not in entries]:
        before = len(entries)
        for process in range(1, number):
            if log(process).exists():
                entries |= runs.read_log(log(process), settings, whole)
        if len(entries) > before:
            news = time.monotonic()
        elif time.monotonic() - news > FLAGS.wait:
            raise UserError(
                f"{len(missing)} examples of other processes are not in {stem.parent}, and none "
                f"has come for {FLAGS.wait} s; copy their {stem.name}.*.tsv there if they have "
                "finished elsewhere, and run the same command again, with as many processes as "
                "you like: it goes on"
            )
        else:
            time.sleep(0.5)
    return entries


def short(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def title_of(settings: dict[str, Any], num_examples: int) -> str:
    consensus = f" (consensus of {settings['consensus']})" if "consensus" in settings else ""
    return (
        f"{settings['data']['name']}, {settings['model']}, {settings['ensemble']}{consensus}, "
        f"sigma {settings['sigma']:g}, {num_examples} examples"
    )
