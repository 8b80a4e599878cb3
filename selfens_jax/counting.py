"""Algorithm 2 over many examples, one line of a log at a time.

A killed command goes on where it stopped. Several processes, on one machine or several, each take
every so-manieth example and write a log of their own; the first process waits for the others and
merges. Who counts an example changes nothing about its counts.
"""

import contextlib
import dataclasses
import glob
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from selfens_jax import data, locks, noise, sequential, smoothing
from selfens_jax.errors import UserError
from selfens_jax.runs.logs import Entry, append_log, open_log, read_log
from selfens_jax.runs.records import DECISION_NAMES, Counts, Decisions, short_id
from selfens_jax.streams import stream

Entries = dict[int, Entry]


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """What is to be counted, and how.

    Attributes:
      x: (total, T, C) the series of a split or file.
      labels: (total,) class indices, -1 where unknown.
      chosen: (N,) indices of the series to count.
      predict: the classifier.
      settings: all that votes depend on: sigma, noise_seed, draws_per_block, precision and more.
      batch_size: noised series in flight.
      mesh: devices that share the work; None for one.
      seed_file: what keeps a noise seed that was drawn for this job, until its results are there.
    """

    x: np.ndarray
    labels: np.ndarray
    chosen: np.ndarray
    predict: Any
    settings: dict[str, Any]
    batch_size: int
    mesh: jax.sharding.Mesh | None = None
    seed_file: Path | None = None

    @property
    def num_members(self) -> int:
        """Forward passes that a draw costs without consensus."""
        predict = self.predict
        return (predict.ensemble if isinstance(predict, smoothing.Consensus) else predict).size

    def forget_seed(self) -> None:
        """To be called when the results, which tell the seed, are written."""
        if self.seed_file is not None:
            self.seed_file.unlink(missing_ok=True)

    def series_sha256(self) -> np.ndarray:
        """(N,) what tells each chosen series from others, in 16 hexadecimal digits."""
        return np.array([data.series_digest(self.x[i])[:16] for i in self.chosen])

    def count(
        self, examples: np.ndarray, first_draw: int, num_draws: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Votes (M, K) of a range of draws of examples (M,), and the forward passes (M,) taken."""
        arguments = {"x": self.x[examples], **self.how(examples, first_draw, num_draws)}
        if not isinstance(self.predict, smoothing.Consensus):
            counts = smoothing.count_votes(self.predict, **arguments)
            return counts, np.full(len(examples), num_draws * self.num_members)
        counts, asked_all = smoothing.count_consensus_votes(self.predict, **arguments)
        first = self.predict.first
        return counts, num_draws * first + asked_all * (self.num_members - first)

    def how(self, examples: np.ndarray, first_draw: int, num_draws: int) -> dict[str, Any]:
        """What `smoothing.count_votes` is to be given for examples (M,), beside their series."""
        return {
            "sigma": self.settings["sigma"],
            "num_draws": num_draws,
            "key": stream(self.settings["noise_seed"], "certification"),
            "batch_size": self.batch_size,
            "indices": examples,
            "first_draw": first_draw,
            "draws_per_block": self.settings["draws_per_block"],
            "precision": self.settings["precision"],
            "mesh": self.mesh,
            **noise.arguments(self.settings),
        }


@dataclasses.dataclass(frozen=True)
class Share:
    """Which part of the examples this process takes.

    Attributes:
      process, number: this process, from 0, of how many.
      wait: seconds without news after which process 0 gives the others up.
      say: takes a line on how it goes.
    """

    process: int = 0
    number: int = 1
    wait: float = 600
    say: Callable[[str], None] = print


def count_examples(
    job: Job,
    num_draws: int,
    folder: Path,
    share: Share,
    show: Callable[[np.ndarray, np.ndarray], str],
) -> Counts | None:
    """The votes of the job's examples, counted now or by earlier calls.

    Args:
      job: what to count.
      num_draws: n.
      folder: of the log.
      share: the part that this process takes.
      show: the text beside the progress bar, for new examples (M,) and their votes (M, K).

    Returns:
      The counts; None in every process but the first, whose share is done then.

    Raises:
      UserError: as `measure_examples`, and as counting does.
    """
    settings = {**job.settings, "num_draws": num_draws}
    num_classes = len(settings["data"]["classes"])

    def measure(examples: np.ndarray) -> list[tuple[int, ...]]:
        counts, forwards = job.count(examples, 0, num_draws)
        return [tuple(map(int, row)) for row in np.column_stack([forwards, counts])]

    def show_votes(new: Entries) -> str:
        return show(np.array(list(new)), np.array([entry.values[1:] for entry in new.values()]))

    entries = measure_examples(
        share,
        folder / f"votes-{short_id(settings)}",
        settings,
        lambda values: len(values) == 1 + num_classes and sum(values[1:]) == num_draws,
        job.chosen,
        max(1, job.batch_size // num_draws),
        measure,
        show_votes,
    )
    if entries is None:
        return None
    values = np.array([entries[i].values for i in job.chosen])
    return Counts(
        indices=job.chosen,
        counts=values[:, 1:],
        labels=job.labels[job.chosen].astype(np.int64),
        forwards=values[:, 0],
        settings=settings,
        seconds=np.array([entries[i].seconds for i in job.chosen]),
        series_sha256=job.series_sha256(),
    )


def decide_examples(
    job: Job,
    edges: tuple[int, ...],
    radius: float,
    alpha: float,
    alpha_futility: float,
    folder: Path,
    share: Share,
    show: Callable[[dict[str, int]], str],
) -> Decisions | None:
    """Whether the job's examples are certified at one radius, decided now or by earlier calls.

    Args:
      edges: from `sequential.batches`.
      radius, alpha, alpha_futility: as in `sequential`.
      show: the text beside the progress bar, for the number of examples of each decision so far.
      job, folder, share: as in `count_examples`.

    Returns:
      The decisions; None in every process but the first, whose share is done then.

    Raises:
      UserError: as `count_examples`, and for a radius that no votes certify.
    """
    settings = {
        **job.settings,
        "target_radius": radius,
        "alpha": alpha,
        "alpha_futility": alpha_futility,
        "batches": list(edges),
    }
    p0 = sequential.certified_share(radius, settings["sigma"], noise.given_up(settings))
    seen = dict.fromkeys(DECISION_NAMES.values(), 0)

    def measure(examples: np.ndarray) -> list[tuple[int, ...]]:
        state, forwards = sequential.run_tests(
            lambda rows, start, number: job.count(examples[rows], start, number),
            len(examples),
            edges,
            p0,
            alpha,
            alpha_futility,
        )
        columns = (forwards, state.candidate, state.successes, state.draws, state.decision)
        return [tuple(map(int, row)) for row in np.column_stack(columns)]

    def show_decisions(new: Entries) -> str:
        for entry in new.values():
            seen[DECISION_NAMES[entry.values[-1]]] += 1
        return show(seen)

    entries = measure_examples(
        share,
        folder / f"decisions-{short_id(settings)}",
        settings,
        lambda values: len(values) == 5 and values[-1] in DECISION_NAMES,
        job.chosen,
        max(1, job.batch_size // 1000),
        measure,
        show_decisions,
    )
    if entries is None:
        return None
    values = np.array([entries[i].values for i in job.chosen])
    forwards, candidate, successes, tested, decision = values.T
    return Decisions(
        indices=job.chosen,
        labels=job.labels[job.chosen].astype(np.int64),
        forwards=forwards,
        candidate=candidate,
        successes=successes,
        tested=tested,
        decision=decision,
        settings=settings,
        seconds=np.array([entries[i].seconds for i in job.chosen]),
        series_sha256=job.series_sha256(),
    )


def measure_examples(
    share: Share,
    stem: Path,
    settings: dict[str, Any],
    is_complete: Callable[[tuple[int, ...]], bool],
    chosen: np.ndarray,
    per_call: int,
    measure: Callable[[np.ndarray], list[tuple[int, ...]]],
    show: Callable[[Entries], str],
) -> Entries | None:
    """The entries of the chosen examples, measured now or in earlier calls.

    Args:
      share: the part that this process takes.
      stem: path of the log, without suffix.
      settings: everything that the entries depend on.
      is_complete: tells whether an entry's values are complete.
      chosen: (N,) examples.
      per_call: examples that `measure` gets at once.
      measure: the values of examples (M,).
      show: the text beside the progress bar, for new entries.

    Returns:
      The entries; None in every process but the first, whose share is done then.

    Raises:
      UserError: for damaged logs, if another process writes this log, or if entries of other
        processes do not arrive.
    """

    def log(process: int) -> Path:
        return stem.with_name(f"{stem.name}{f'.{process}' if process else ''}.tsv")

    own, mine = log(share.process), chosen[share.process :: share.number]
    what = f"the counting for {own}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(locks.held(own.with_name(f".{own.name}.lock"), what))
        entries = open_log(own, settings, is_complete)
        for other in sorted(own.parent.glob(f"{glob.escape(stem.name)}*.tsv")):
            entries |= read_log(other, settings, is_complete) if other != own else {}
        todo = np.array([i for i in mine if i not in entries], int)
        done = len(mine) - len(todo)
        bar = stack.enter_context(tqdm(total=len(mine), initial=done, unit="ex", desc="certifying"))
        if known := {i: entries[i] for i in mine.tolist() if i in entries}:
            show(known)
        for start in range(0, len(todo), per_call):
            examples = todo[start : start + per_call]
            began = time.monotonic()
            values = measure(examples)
            each = (time.monotonic() - began) / len(examples)
            new = {
                index: Entry(value, each)
                for index, value in zip(examples.tolist(), values, strict=True)
            }
            append_log(own, new)
            entries |= new
            bar.set_postfix_str(show(new))
            bar.update(len(examples))
    if share.process > 0:
        share.say(
            f"process {share.process} of {share.number}: {len(mine)} examples in {own}; "
            "process 0 merges"
        )
        return None

    news = time.monotonic()
    while missing := [i for i in chosen.tolist() if i not in entries]:
        before = len(entries)
        for process in range(1, share.number):
            if log(process).exists():
                entries |= read_log(log(process), settings, is_complete)
        if len(entries) > before:
            news = time.monotonic()
        elif time.monotonic() - news > share.wait:
            raise UserError(
                f"{len(missing)} examples of other processes are not in {stem.parent}, and none "
                f"has come for {share.wait:g} s; copy their {stem.name}.*.tsv there if they have "
                "finished elsewhere, and run the same command again, with as many processes as "
                "you like: it goes on"
            )
        else:
            time.sleep(0.5)
    return entries


def evenly_spaced(num_examples: int | None, total: int) -> np.ndarray:
    """`num_examples` of 0..total-1, evenly spaced from 0; all if None.

    Raises:
      UserError: if there are not that many, or none are asked for.
    """
    if num_examples is None:
        return np.arange(total)
    if not 1 <= num_examples <= total:
        raise UserError(f"num_examples must be between 1 and {total}, not {num_examples}")
    return np.arange(num_examples) * total // num_examples


def local_mesh() -> jax.sharding.Mesh | None:
    """All devices of this process, if it has several."""
    devices = jax.local_devices()
    if len(devices) == 1:
        return None
    automatic = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((len(devices),), ("blocks",), axis_types=automatic, devices=devices)


def title(settings: dict[str, Any], num_examples: int) -> str:
    """What was certified, in a line."""
    name = settings["data"]["name"]
    name = f"{settings['series']['name']}, {name}'s" if "series" in settings else f"{name},"
    return (
        f"{name} {settings['model']}, {ensemble_of(settings)}, "
        f"sigma {settings['sigma']:g}, {num_examples} examples"
    )


def ensemble_of(settings: dict[str, Any]) -> str:
    """The ensemble in words, with what is unusual about it."""
    consensus = f" (consensus of {settings['consensus']})" if "consensus" in settings else ""
    design = f" under {settings['mask_design']} masks" if "mask_design" in settings else ""
    hidden = f", hidden steps as {settings['hidden_as']}" if "hidden_as" in settings else ""
    return f"{settings['ensemble']}{design}{hidden}{consensus}"
