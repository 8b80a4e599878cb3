"""Measures what matters on a machine with a GPU or TPU, most valuable first, within some minutes.

    python experiments/accelerator_run.py --prepare --data_dir=UCR    anywhere, on a CPU: minutes
    python experiments/accelerator_run.py --minutes=9                 there, with what this filled
    python experiments/accelerator_run.py --minutes=5 --steps=table3  some of it, or again

Neither needs a network or tslearn. --prepare trains a small network on generated series and counts
its votes on a CPU. The measuring then does, as long as there is time:

    votes       the same votes counted at every precision: how many differ from the CPU's, and once
                more in another process, where none may differ
    certify     seconds an example, beside PyTorch if it is installed (benchmark.py); on a GPU also
                with whatever kernels XLA finds fastest, which is what fixed ones cost
    train       seconds a step of one network, and of 5 and 25 side by side (benchmark.py)
    compiled    what the compiler says of these programs (compile_report.py)
    table3      InceptionTime's cells of Table 3, for the data sets that --prepare found in
                --data_dir (reproduce.py, which goes on from what an earlier call did)

Every step is a command of its own. <folder>/results has its output as soon as it ends, and
steps.csv a line for each: what a step that was stopped had not written is lost, nothing else. A
step that is run again counts and measures again, and its line is replaced; --smoke has a folder of
its own, results-smoke.
"""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import cli, commands

import numpy as np
from absl import flags
from reproduction import jobs

from selfens_jax import backend, data, runs, synthetic
from selfens_jax.blocks import PRECISIONS
from selfens_jax.errors import UserError
from selfens_jax.runs import records

SCRIPTS = Path(__file__).parent
MODELS = ("lstm_fcn", "inception_time", "macnn")
STEPS = ("votes", "certify", "train", "compiled", "table3")  # and with more behind a hyphen
AGAIN = "votes-again"
SIGMA, SMALLEST = 0.8, 20.0  # seconds in which no step is worth beginning
ENDING = 40.0  # seconds that reproduce.py has to stop its job and write its table
FACTS = """
import json, jax
print(json.dumps({"platform": jax.default_backend(), "kind": jax.devices()[0].device_kind,
                  "devices": jax.device_count(), "jax": jax.__version__}))
"""

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Step:
    """A command after `python`, and what it is for."""

    name: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A line of steps.csv."""

    step: str
    outcome: str  # done, failed, or stopped at the time limit
    seconds: float
    says: str


def define_flags() -> None:
    """Defined by the command alone: other commands have flags of the same names."""
    cli.define_path("folder", "accelerator", "What is carried to the machine, and its results.")
    flags.DEFINE_bool("prepare", False, "Train and count here, on a CPU, what is compared there.")
    cli.define_path("data_dir", None, "With --prepare: a folder in the archive's layout.")
    flags.DEFINE_float("minutes", 9.0, "When to stop.")
    flags.DEFINE_list("steps", [], f"Only some of {', '.join(STEPS)}; lines of others are kept.")
    flags.DEFINE_bool("smoke", False, "Tiny sizes, to see that it runs; the times mean nothing.")
    flags.DEFINE_bool("compilation_cache", False, "Keep compiled programs; hides compile times.")


def main() -> None:
    folder = Path(FLAGS.folder)
    if FLAGS.prepare:
        prepare(folder)
        return
    if not 0.1 <= FLAGS.minutes <= 1000:
        raise UserError(f"--minutes must be from 0.1 to 1000, not {FLAGS.minutes:g}")
    for name in FLAGS.steps:
        if name not in STEPS:
            raise UserError(f"--steps={name}: no such step; choose from {', '.join(STEPS)}")
    if FLAGS.data_dir is not None:
        raise UserError("--data_dir is for --prepare, which copies what is measured with")
    check_votes(folder / "cpu")
    results = folder / ("results-smoke" if FLAGS.smoke else "results")
    lines = results / "steps.csv"
    earlier = read(lines) if lines.exists() else []
    deadline = time.monotonic() + 60 * FLAGS.minutes
    first, facts = look_at_device(results, deadline, earlier)
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    for name in FLAGS.steps:
        if why := impossible(name, folder, facts["platform"]):
            raise UserError(f"--steps={name}: {why}")
    outcomes = [first, *(row for row in earlier if row.step != first.step)]
    ended: list[Outcome] = []
    for step in steps(folder, results, facts["platform"], deadline):
        if FLAGS.steps and step.name.partition("-")[0] not in FLAGS.steps:
            continue
        if time.monotonic() > deadline - (0 if FLAGS.smoke else SMALLEST):
            break
        if step.name.startswith("votes"):
            shutil.rmtree(results / step.name, ignore_errors=True)  # or none would be counted
        outcome = run(step, results, deadline)
        if outcome.outcome == "done":
            outcome = looked_at(outcome, folder, results)
        ended.append(outcome)
        outcomes = [each for each in outcomes if each.step != step.name] + [outcome]
        write(lines, outcomes)
        print(f"{step.name:<24} {outcome.outcome:<10} {outcome.seconds:6.0f} s  {outcome.says}",
              flush=True)  # fmt: skip
    if not ended:
        raise UserError(f"--minutes={FLAGS.minutes:g}: no time was left for a step")
    print(f"written to {results}")
    if failed := [outcome.step for outcome in ended if outcome.outcome == "failed"]:
        raise UserError(f"failed: {', '.join(failed)}; {results} has the log of each")


def check_votes(folder: Path) -> None:
    """Raises UserError if the folder has not the votes, of one count, that --prepare counted."""
    files = counted(folder)
    if not files:
        raise UserError(f"{folder.parent} has no votes of a CPU: run this with --prepare, on a CPU")
    if len(files) > 1:
        raise UserError(f"{folder} has {len(files)} counts; only that of --prepare belongs there")
    try:
        records.read_counts(files[0])
    except UserError as error:
        raise UserError(f"{error}; --prepare --folder=ANOTHER counts again") from None


def look_at_device(
    results: Path, deadline: float, earlier: Sequence[Outcome]
) -> tuple[Outcome, dict[str, Any]]:
    """The first step, and what JAX says of the device.

    Raises:
      UserError: if it finds none, or another than the earlier steps were measured on.
    """
    log = results / "device.log"
    before = log.read_text() if earlier and log.exists() else ""
    found = run(Step("device", ("-c", FACTS)), results, deadline)
    if found.outcome == "stopped":
        raise UserError(f"--minutes={FLAGS.minutes:g}: JAX needs longer to find its devices")
    if found.outcome != "done":
        raise UserError(f"JAX finds no device: {log} says why")
    facts = facts_in(log.read_text())
    if facts_in(before) not in ({}, facts):
        log.write_text(before)
        raise UserError(
            f"{results} was measured on another device, or with another JAX, than {facts}: move it "
            "away, so that a table is of one of them"
        )
    return found, facts


def facts_in(log: str) -> dict[str, Any]:
    """What JAX said of the device, in the last line; {} if it said nothing."""
    try:
        return json.loads(log.splitlines()[-1])
    except (IndexError, ValueError):
        return {}


def impossible(name: str, folder: Path, platform: str) -> str:
    """Why a step that is asked for cannot be run; empty if it can."""
    if name == "compiled" and platform != "gpu":
        return "what the compiler expects of a GPU is compared with one"
    if name == "table3" and not carried(folder):
        return f"{archive(folder)} has no data set: --prepare --data_dir=UCR copies them"
    if name == "table3" and platform == "cpu" and not FLAGS.smoke:
        return "for a GPU or TPU; on a CPU, reproduce.py --what=table3"
    return ""


def looked_at(outcome: Outcome, folder: Path, results: Path) -> Outcome:
    """The outcome of a step that is done, with what came of it."""
    try:
        return dataclasses.replace(outcome, says=found_by(outcome.step, folder, results))
    except UserError as error:
        return dataclasses.replace(outcome, outcome="failed", says=str(error))


def steps(folder: Path, results: Path, platform: str, deadline: float) -> Iterator[Step]:
    """What is measured, most valuable first; each is made when its turn has come."""
    first, *others = PRECISIONS
    named = [(f"votes-{first}", first), (AGAIN, first)]
    named += [(f"votes-{precision}", precision) for precision in others if platform != "cpu"]
    for name, precision in named:
        where = (f"--precision={precision}", f"--output_dir={results / name}")
        yield Step(name, (*certification(folder), *where))
    smoke = ("--smoke", "--datasets=tiny") if FLAGS.smoke else ("--datasets=CBF",)
    for what in ("certify", "train"):
        for model in MODELS[:1] if FLAGS.smoke else MODELS:
            sizes = () if FLAGS.smoke else ("--num_draws=10000", "--repeats=3", "--time_limit=1.5")
            measured = (script("benchmark"), f"--what={what}", f"--models={model}", *smoke, *sizes,
                        "--nomemory", "--notorch_compile")  # fmt: skip
            yield Step(f"{what}-{model}", (*measured, f"--output_dir={results / 'benchmark'}"))
            if platform == "gpu" and (what, model) == ("certify", MODELS[0]):
                where = (f"--output_dir={results / 'benchmark-fastest-kernels'}",)
                kernels = (("XLA_FLAGS", f"--{backend.DETERMINISTIC}=false"),)
                yield Step(f"{what}-{model}-fastest", (*measured, *where), kernels)
    if platform == "gpu":
        yield Step(
            "compiled",
            (script("compile_report"), "--target=h100", f"--models={','.join(MODELS)}",
             f"--precision={','.join(PRECISIONS)}", f"--output={results / 'compiled.csv'}"),
        )  # fmt: skip
    sets = carried(folder)
    minutes = (deadline - time.monotonic() - ENDING) / 60
    if sets and minutes > 0 and (platform != "cpu" or FLAGS.smoke):
        few = ("--profile=smoke", "--models=lstm_fcn", "--ensembles=single", "--sigmas=0.8",
               "--epochs=1", "--num_examples=3")  # fmt: skip
        yield Step(
            "table3",
            (script("reproduce"), "--what=table3", f"--datasets={','.join(sets)}",
             *(few if FLAGS.smoke else ("--models=inception_time",)),
             f"--data_dir={archive(folder)}", f"--results_dir={results / 'table3'}",
             f"--time_limit={minutes:.2f}"),
        )  # fmt: skip


def found_by(step: str, folder: Path, results: Path) -> str:
    """What came of a step that is done, in words; "" where its files say it."""
    if step.startswith("votes"):
        first = results / f"votes-{PRECISIONS[0]}"
        again = step == AGAIN and bool(counted(first))
        with_what = (first, "another process's") if again else (folder / "cpu", "the CPU's")
        return compared(results / step, *with_what)
    if step == "table3":
        done = jobs.read(results / step).values()
        return f"{sum(job.status == jobs.DONE for job in done)} jobs are done"
    return ""


def archive(folder: Path) -> Path:
    """Where the data sets are that are carried."""
    return folder / "ucr"


def carried(folder: Path) -> list[str]:
    """The names of the data sets that are carried."""
    return [name for name in data.PAPER_DATASETS if (archive(folder) / name).is_dir()]


def script(name: str) -> str:
    return str(SCRIPTS / f"{name}.py")


def prepare(folder: Path) -> None:
    """Trains a network and counts its votes, on a CPU wherever this is.

    Raises:
      UserError: if a command fails.
    """
    if FLAGS.data_dir is not None:
        carry(Path(FLAGS.data_dir), archive(folder))
    train, test = synthetic.cbf(1, 30), synthetic.cbf(2, 30)
    arrays = {"X_train": train[0], "y_train": train[1], "X_test": test[0], "y_test": test[1]}
    runs.write_npz(folder / "cbf.npz", **arrays)
    epochs = 2 if FLAGS.smoke else 200
    where = (f"--epochs={epochs}", f"--runs_dir={folder / 'runs'}")
    for name, command in (
        ("train", (script("train"), *dataset(folder), *where)),
        ("count", (*certification(folder), f"--output_dir={folder / 'cpu'}")),
    ):
        outcome = run(Step(name, command), folder, float("inf"), JAX_PLATFORMS="cpu")
        if outcome.outcome != "done":
            raise UserError(
                f"{folder / name}.log says why this failed: {outcome.says} (remove {folder}, or "
                "take another --folder)"
            )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder} has all that is needed there, {size / 2**20:.1f} MiB")


def carry(source: Path, target: Path) -> None:
    """Copies the paper's data sets that a folder in the archive's layout has.

    Raises:
      UserError: if it has none.
    """
    found = [path for name in data.PAPER_DATASETS for path in (source / name).glob(f"{name}_T*")]
    if not found:
        known = ", ".join(data.PAPER_DATASETS)
        raise UserError(f"--data_dir={source} has the folder of none of the data sets {known}")
    for path in found:
        (target / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.parent.name / path.name)


def dataset(folder: Path) -> tuple[str, ...]:
    return f"--dataset={folder / 'cbf.npz'}", f"--sigma={SIGMA}", "--model=lstm_fcn"


def certification(folder: Path) -> tuple[str, ...]:
    sizes = ("--num_examples=3", "--num_draws=100") if FLAGS.smoke else ("--num_examples=20",)
    return (script("certify"), *dataset(folder), f"--runs_dir={folder / 'runs'}", *sizes)


def counted(folder: Path) -> list[Path]:
    return sorted(folder.glob("counts-*.npz"))


def compared(there: Path, other: Path, whose: str) -> str:
    """How far the votes that were counted there are from the others, series by series."""
    ours, theirs = (records.read_counts(counted(each)[-1]) for each in (other, there))
    if not np.array_equal(ours.indices, theirs.indices):
        raise UserError(f"{there} has the votes of other series than {other}")
    moved = np.abs(ours.counts - theirs.counts).sum(axis=1) // 2
    return (
        f"{moved.sum()} of {ours.counts.sum()} votes differ from {whose}, at most {moved.max()} of "
        "a series"
    )


def run(step: Step, folder: Path, deadline: float, **environment: str) -> Outcome:
    """Runs a step until the deadline; what it prints goes to <folder>/<step>.log."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{step.name}.log"
    began = time.monotonic()
    left = None if deadline == float("inf") else max(1.0, deadline - began)
    with log.open("wb") as file:
        child = subprocess.Popen(
            [sys.executable, *step.command],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(step.environment) | environment,
            start_new_session=True,
        )
        try:
            outcome = "failed" if child.wait(left) else "done"
        except subprocess.TimeoutExpired:
            outcome = "stopped"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    said = log.read_text(errors="replace")
    says = commands.error_line(said, child.returncode) if outcome == "failed" else ""
    return Outcome(step.name, outcome, round(time.monotonic() - began, 1), says)


def read(path: Path) -> list[Outcome]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [Outcome(r["step"], r["outcome"], float(r["seconds"]), r["says"]) for r in rows]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is damaged: move it away") from None


def write(path: Path, outcomes: Sequence[Outcome]) -> None:
    names = [field.name for field in dataclasses.fields(Outcome)]
    runs.write_csv(path, names, map(dataclasses.asdict, outcomes))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
