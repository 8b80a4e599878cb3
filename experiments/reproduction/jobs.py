"""Jobs: command lines of the other scripts, run one after another, that survive being killed.

Trainings that differ in sigma and seed alone can share a command, which trains them side by side.
So can certifications, which then share a compiled program.

How each job ended is a line of <results_dir>/jobs.csv, which is rewritten whole after every job.
What a job makes, and how it goes on after a kill, is its script's business.
"""

import contextlib
import csv
import dataclasses
import datetime
import filecmp
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from common import cli, commands

from selfens_jax import runs
from selfens_jax.errors import UserError

CHECKOUT = Path(__file__).parents[2]
DONE, FAILED, INTERRUPTED = "done", "failed", "interrupted"
SIDE_BY_SIDE = 5  # the paper's sigmas
GROUPED = ("train", "certify")  # scripts that take several runs
SHARED = ("sigma", "seed")  # what the runs of one command may differ in
GRACE = 60.0  # seconds that an interrupted script has to write down what it did


@dataclasses.dataclass(frozen=True)
class Job:
    """One command line: python experiments/<script>.py <arguments> --runs_dir=<results>/<runs>.

    Attributes:
      script: its name, without .py.
      run: the run directory that it writes into, below the results directory.
      arguments: the script's.
      needs: the id of the job that must be done before; "" if none.
      variant: tells the jobs of one script and run apart.
    """

    script: str
    run: str
    arguments: tuple[str, ...]
    needs: str = ""
    variant: str = ""

    @property
    def id(self) -> str:
        return f"{self.script} {self.run} {self.variant}".strip()

    @property
    def flags(self) -> dict[str, str]:
        """The arguments' values by name."""
        pairs = (argument.removeprefix("--").partition("=") for argument in self.arguments)
        return {name: value for name, _, value in pairs}

    @property
    def folder(self) -> str:
        """Of the runs, below the results directory."""
        return self.run.split("/")[0]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A line of jobs.csv: how a job ended, where and when. All text, as in the file."""

    id: str
    needs: str
    run: str
    command: str
    status: str
    seconds: str
    date: str
    host: str
    device: str
    message: str


Outcomes = dict[str, Outcome]  # by the job's id
FIELDS = tuple(field.name for field in dataclasses.fields(Outcome))


def read(results_dir: Path) -> Outcomes:
    """How the jobs ended so far.

    Raises:
      UserError: if jobs.csv is damaged.
    """
    file = results_dir / "jobs.csv"
    if not file.exists():
        return {}
    outcomes: list[Outcome] = []
    try:
        with file.open(newline="") as lines:
            rows = csv.DictReader(lines, strict=True)
            outcomes = [Outcome(**row) for row in rows]
        intact = tuple(rows.fieldnames or ()) == FIELDS and all(
            o.status in (DONE, FAILED, INTERRUPTED)
            and float(o.seconds) >= 0
            and o.message is not None
            and not Path(o.run).is_absolute()
            and ".." not in Path(o.run).parts
            for o in outcomes
        )
    except (TypeError, ValueError, csv.Error):
        intact = False
    if not intact:
        raise UserError(f"{file} is damaged; move it away: finished work is found again")
    return {outcome.id: outcome for outcome in outcomes}


def write(results_dir: Path, outcomes: Iterable[Outcome]) -> None:
    rows = (dataclasses.asdict(outcome) for outcome in outcomes)
    runs.write_csv(results_dir / "jobs.csv", FIELDS, rows)


def command(group: Sequence[Job], results_dir: Path, common: Sequence[str]) -> list[str]:
    """The command line of a job, or of several as `together` has them, after `python`.

    It is relative to the checkout.
    """
    first, *others = group
    arguments = list(first.arguments)
    for place, name in enumerate(first.flags):
        if others and name in SHARED:
            values = dict.fromkeys(job.flags[name] for job in group)
            arguments[place] = f"--{name}s={','.join(values)}"
    runs_dir = f"--runs_dir={results_dir / first.folder}"
    return [f"experiments/{first.script}.py", *arguments, runs_dir, *common]


def together(todo: Sequence[Job], outcomes: Outcomes, most: int) -> list[Job]:
    """The first job and, if its script takes several runs, others for the same command.

    They are every pair of some sigmas and some seeds, at most so many, of what can be run now. What
    failed before is tried alone, so that one training that diverges stops no other.
    """

    def kind(job: Job) -> tuple[str, str, dict[str, str]]:
        rest = {name: value for name, value in job.flags.items() if name not in SHARED}
        return job.script, job.folder, rest

    def failed(job: Job) -> bool:
        return job.id in outcomes and outcomes[job.id].status == FAILED

    first = todo[0]
    if first.script not in GROUPED or failed(first):
        return [first]
    alike = [job for job in todo if kind(job) == kind(first) and not failed(job)]
    pairs = {(job.flags["sigma"], job.flags["seed"]): job for job in alike}
    own = first.flags["seed"]
    sigmas = [sigma for sigma, seed in pairs if seed == own][: max(1, most)]
    seeds = [
        seed
        for seed in dict.fromkeys(seed for _, seed in pairs)
        if all((sigma, seed) in pairs for sigma in sigmas)
    ]
    some = seeds[: max(1, most // len(sigmas))]
    return [pairs[sigma, seed] for sigma in sigmas for seed in some]


def is_done(job_id: str, outcomes: Outcomes, results_dir: Path) -> bool:
    """Whether the job was done and its run directory is still there."""
    outcome = outcomes.get(job_id)
    return outcome is not None and outcome.status == DONE and (results_dir / outcome.run).is_dir()


# Running


def run_all(
    plan: Sequence[Job],
    results_dir: Path,
    common: Sequence[str],
    time_limit: float | None,
    side_by_side: int | None = None,
    alone: Collection[str] = (),
) -> None:
    """Runs what is not done, in order. A job that fails stops only those that need it.

    Args:
      common: flags that every script is given.
      time_limit: seconds after which the running job is interrupted and no other is started.
      side_by_side: the most runs of one command; if None, SIDE_BY_SIDE on a GPU or TPU, where they
        share a program, and else 1.
      alone: the ids of those that have a command of their own.

    Raises:
      KeyboardInterrupt: once the running job has been interrupted too and recorded.
    """
    began = time.monotonic()
    deadline = None if time_limit is None else began + time_limit
    outcomes = read(results_dir)
    todo = [job for job in plan if not is_done(job.id, outcomes, results_dir)]
    done = len(plan) - len(todo)
    cli.say(f"{len(plan)} jobs, of which {done} are done")
    platform_name, device = device_kind() if todo else ("", "")
    if side_by_side is None:
        side_by_side = SIDE_BY_SIDE if platform_name in ("gpu", "tpu") else 1

    def is_ready(job: Job) -> bool:
        return not job.needs or is_done(job.needs, outcomes, results_dir)

    left = todo
    while left:
        job, *others = left
        if not is_ready(job):
            left = others
            continue
        group = [job]
        if job.id not in alone:
            ready = [other for other in left if other.id not in alone and is_ready(other)]
            group = together(ready, outcomes, side_by_side)
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            cli.say("the time limit is reached; the same command goes on from here")
            return
        cli.say(
            f"[{len(plan) - len(left) + 1}/{len(plan)}] {job.id} {beside(group)}"
            f"({clock(time.monotonic() - began)} spent, {time_left(left, outcomes)})"
        )
        ended, interrupted = run(group, results_dir, common, device, remaining)
        outcomes |= {outcome.id: outcome for outcome in ended}
        write(results_dir, outcomes.values())
        if ended[0].status == FAILED:
            cli.say(f"failed: {ended[0].message}")
        if ended[0].status != FAILED or len(group) == 1:  # else each is tried alone
            left = [other for other in left if other not in group]
        if interrupted:
            raise KeyboardInterrupt


def beside(group: Sequence[Job]) -> str:
    return f"and {len(group) - 1} beside it " if len(group) > 1 else ""


def run(
    group: Sequence[Job],
    results_dir: Path,
    common: Sequence[str],
    device: str,
    time_limit: float | None,
) -> tuple[list[Outcome], bool]:
    """Runs the jobs of a command; how each ended, and whether this process was interrupted.

    A job's seconds are its share of the command's.
    """
    words = command(group, results_dir, common)
    began, date = time.monotonic(), datetime.datetime.now().astimezone()
    # In a session of its own, so that an interrupt from the keyboard reaches it once, from here.
    process = subprocess.Popen(
        [sys.executable, str(CHECKOUT / words[0]), *words[1:]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    said = bytearray()
    reader = threading.Thread(target=pass_through, args=(process.stderr, said))
    reader.start()
    stopped = interrupted = False
    try:
        process.wait(time_limit)
    except subprocess.TimeoutExpired:
        stopped = True
        interrupt(process)
    except KeyboardInterrupt:
        stopped = interrupted = True
        interrupt(process)
    reader.join()
    if process.returncode == 0:
        status, message = DONE, ""
    elif stopped:
        status, message = INTERRUPTED, "goes on with the next call"
    else:
        status, message = (
            FAILED,
            commands.error_line(said.decode(errors="replace"), process.returncode),
        )
    seconds = (time.monotonic() - began) / len(group)
    ended = [
        Outcome(
            id=job.id,
            needs=job.needs,
            run=job.run,
            command=" ".join(["python", *words]),
            status=status,
            seconds=f"{seconds:.1f}",
            date=date.isoformat(timespec="seconds"),
            host=platform.node(),
            device=device,
            message=message,
        )
        for job in group
    ]
    return ended, interrupted


def interrupt(process: subprocess.Popen) -> None:
    """Interrupts a script, which then writes down what it did; kills it if it does not end."""
    process.terminate()  # not SIGINT, which is ignored where a shell started this in the background
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        pass
    finally:
        process.kill()
        process.wait()


def pass_through(pipe: BinaryIO, said: bytearray) -> None:
    """Copies what a script says to standard error, and keeps the end of it in `said`."""
    while chunk := os.read(pipe.fileno(), 4096):
        with contextlib.suppress(OSError):  # nobody reads it any more; the script must go on
            sys.stderr.buffer.write(chunk)
            sys.stderr.flush()
        said += chunk
        del said[:-65536]
    pipe.close()


def time_left(todo: Sequence[Job], outcomes: Outcomes) -> str:
    """An estimate in words: jobs take what done ones of the same script took, best alike ones."""
    seconds: dict[str, list[float]] = {}
    for outcome in outcomes.values():
        if outcome.status == DONE:
            for kind in kinds(outcome.id):
                seconds.setdefault(kind, []).append(float(outcome.seconds))
    estimates = [
        next((statistics.mean(seconds[kind]) for kind in kinds(job.id) if kind in seconds), None)
        for job in todo
    ]
    known = [estimate for estimate in estimates if estimate is not None]
    if len(known) < len(estimates):
        return "time left not known yet"
    return f"about {clock(sum(known))} left"


def kinds(job_id: str) -> tuple[str, str]:
    """The job's script, data set, model and ensemble; its script."""
    return job_id.split("/sigma=")[0], job_id.split()[0]


def clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def device_kind() -> tuple[str, str]:
    """What the jobs run on: cpu, gpu or tpu, and its name.

    Asked in a process of its own, which then lets go of the device.
    """
    ask = "import jax; from selfens_jax import runs; print(jax.default_backend())"
    ask += "; print(runs.device_name())"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    kind, _, name = done.stdout.strip().partition("\n")
    return kind, name or "unknown"


# Merging


def merge(results_dir: Path, other: Path) -> None:
    """Takes over the jobs done in another results directory that are not done here.

    A run that both have trained is taken over only where both trainings were the same, step for
    step; else a result could come from other weights than the run it lies in.
    """
    ours, theirs = read(results_dir), read(other)
    taken, left = 0, set()
    for outcome in theirs.values():
        if is_done(outcome.id, ours, results_dir) or not is_done(outcome.id, theirs, other):
            continue
        if take_run(other / outcome.run, results_dir / outcome.run):
            ours[outcome.id] = outcome
            taken += 1
        else:
            left.add(outcome.run)
    write(results_dir, ours.values())
    cli.say(f"{taken} jobs taken over from {other}")
    for run in sorted(left):
        cli.say(f"warning: {run} was trained here too, otherwise; ours is kept, theirs left out")


def take_run(source: Path, target: Path) -> bool:
    """Copies a run, or what a run lacks; False if the two were not trained alike."""
    if not runs.is_finished(target):
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        shutil.copytree(source, temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        return True
    if not filecmp.cmp(source / "history.csv", target / "history.csv", shallow=False):
        return False
    for file in source.iterdir():
        if file.is_file() and not (target / file.name).exists():
            temporary = target / f".{file.name}.{os.getpid()}.tmp"
            shutil.copy2(file, temporary)
            temporary.replace(target / file.name)
    return True


# What is left


def missing(plan: Sequence[Job], results_dir: Path) -> Mapping[str, list[str]]:
    """The ids of planned jobs that failed, and of those not run to their end yet."""
    outcomes = read(results_dir)
    open_jobs = [job.id for job in plan if not is_done(job.id, outcomes, results_dir)]
    failed = [i for i in open_jobs if i in outcomes and outcomes[i].status == FAILED]
    return {"failed": failed, "not run": [i for i in open_jobs if i not in failed]}
