"""How much work is planned, before any of it is done."""

import functools
from collections.abc import Sequence
from pathlib import Path

from common import flop

from compilation.targets import TARGETS
from reproduction import jobs, measured
from reproduction.jobs import Job

from selfens_jax import models

MEMBERS = 5  # of a deep ensemble; train.py's default
PASSES_OF_A_STEP = 3  # forward; backward for the activations, and for the weights


def text(plan: Sequence[Job], results_dir: Path) -> str:
    """A table of the jobs left by script, model and data set, and least times by device."""
    outcomes = jobs.read(results_dir)
    left = [job for job in plan if not jobs.is_done(job.id, outcomes, results_dir)]
    lines = [f"{len(plan)} jobs, of which {len(plan) - len(left)} are done"]
    if not left:
        return lines[0]
    lines += ["", "| script | model | data set | jobs | PFLOP |", "|---|---|---|---|---|"]
    work: dict[tuple[str, str, str], list[float]] = {}
    for job in left:
        kind = (job.script, job.flags["model"], job.flags["dataset"])
        work.setdefault(kind, []).append(operations(job))
    for kind, each in work.items():
        shown = f"{sum(each) / 1e15:.3g}" if kind[0] in COUNTED else ""
        lines.append(f"| {' | '.join(kind)} | {len(each)} | {shown} |")
    total = sum(map(sum, work.values()))
    least = (
        f"{name} {total / (1e12 * target.peak['float32']) / 3600:.2g} h"
        for name, target in TARGETS.items()
    )
    lines += [
        "",
        f"PFLOP: 10^15 operations of products, together {total / 1e15:.3g}; those of attacks and "
        "of margins.py are not counted.",
        f"Least time, if all were done at the device's full rate in float32, which no program "
        f"reaches: {', '.join(least)}.",
        f"As long as the done jobs in {results_dir} took: {jobs.time_left(left, outcomes)}.",
    ]
    return "\n".join(lines)


def operations(job: Job) -> float:
    """Floating-point operations of a job's networks; 0 for a script that is not counted."""
    return COUNTED[job.script](job.flags) if job.script in COUNTED else 0.0


def _training(flags: dict[str, str]) -> float:
    if "member_of_de" in flags:
        return 0.0
    series = int(_paper(flags["dataset"])["train"])
    networks = MEMBERS if flags["ensemble"] == "de" else 1
    return PASSES_OF_A_STEP * int(flags["epochs"]) * series * networks * _forward_pass(flags)


def _certification(flags: dict[str, str]) -> float:
    series = int(_paper(flags["dataset"])["test"])
    series = min(series, int(flags.get("num_examples", series)))
    networks = {"single": 1, "de": MEMBERS}.get(flags["ensemble"]) or int(flags["num_masks"])
    return series * int(flags["num_draws"]) * networks * _forward_pass(flags)


COUNTED = {"train": _training, "certify": _certification}


def _forward_pass(flags: dict[str, str]) -> float:
    row = _paper(flags["dataset"])
    return _of_network(flags["model"], int(row["classes"]), int(row["length"]))


@functools.cache
def _of_network(model: str, classes: int, length: int) -> float:
    return flop.of_forward_pass(models.create(model, classes), length)


@functools.cache
def _paper(dataset: str) -> dict[str, str]:
    """The sizes of a data set."""
    return next(
        row for row in measured.paper_rows("table2_datasets.csv") if row["dataset"] == dataset
    )
