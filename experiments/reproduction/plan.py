"""What each table and figure of the paper needs: trained runs, and the jobs that make them.

    Table 3's cell (data set, sigma, model, ensemble)  ->  Cell  ->  train.py, certify.py

Nothing here runs anything.
"""

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from reproduction.jobs import Job

from selfens_jax import data, models, runs

KEEP, NUM_MASKS = 0.9, 5  # the paper's, unless a figure varies them; the scripts' defaults
ENSEMBLES = ("single", "de", "mb", "mc")  # the paper's
SIGMAS = (0.1, 0.2, 0.4, 0.8, 1.6)
ENSEMBLE_SIZES = (1, 2, 5, 10, 20)  # Figure 5
KEEPS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # Figure 6; the paper's text does not list its own
ATTACK = {"steps": 40, "restarts": 1, "attack_draws": 16}  # attack.py's defaults
EPSILONS = (0.25, 0.5, 0.75, 1.0)  # Table 4


@dataclasses.dataclass(frozen=True)
class Settings:
    """How thoroughly everything is measured; the same for all results of a results directory."""

    epochs: int
    num_draws: int
    num_examples: int | None  # evenly spaced test series; None: all
    num_attacked: int | None  # test series that are attacked; None: as many as num_examples
    attack: tuple[str, ...]  # further flags of attack.py
    margin_masks: int  # masks drawn for the theory check
    margin_examples: int
    class_weights: str = "balanced"

    @property
    def trained(self) -> str:
        """How networks are trained, in words."""
        weights = "" if self.class_weights == "balanced" else ", no class weights"
        return f"{self.epochs} epochs{weights}"

    @property
    def attacked(self) -> int | None:
        return self.num_examples if self.num_attacked is None else self.num_attacked


PROFILES = {
    "paper": Settings(1000, 1000, None, None, (), 100, 5),
    "smoke": Settings(5, 100, 20, None, ("--attack_draws=8", "--steps=5", "--restarts=1"), 20, 2),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One trained run: what the paper's tables have one number for."""

    dataset: str
    model: str
    ensemble: str
    sigma: float
    seed: int = 0
    keep: float = KEEP

    @property
    def run(self) -> str:
        """Its run directory, relative to the results directory."""
        # A run directory's name does not tell keep, so other keeps have a folder of their own.
        folder = "runs" if self.keep == KEEP else f"runs-keep{self.keep:g}"
        settings = (self.dataset, self.model, self.ensemble, self.sigma, self.seed)
        return runs.directory(folder, *settings).relative_to(Path().absolute()).as_posix()

    @property
    def masked(self) -> bool:
        return self.ensemble in ("mb", "mc")

    @property
    def flags(self) -> tuple[str, ...]:
        """Those that name the run, in every script."""
        keep = (f"--keep={self.keep:g}",) if self.keep != KEEP else ()
        return (
            f"--dataset={self.dataset}",
            f"--model={self.model}",
            f"--ensemble={self.ensemble}",
            f"--sigma={self.sigma:g}",
            f"--seed={self.seed}",
            *keep,
        )


@dataclasses.dataclass(frozen=True)
class Grid:
    """The settings that a table or figure ranges over."""

    datasets: tuple[str, ...] = data.PAPER_DATASETS
    models: tuple[str, ...] = ("inception_time",)
    sigmas: tuple[float, ...] = (0.4,)
    ensembles: tuple[str, ...] = ENSEMBLES
    seeds: tuple[int, ...] = (0,)

    def cells(self, keep: float = KEEP) -> list[Cell]:
        every = itertools.product(
            self.datasets, self.models, self.sigmas, self.ensembles, self.seeds
        )
        return [
            Cell(dataset, model, ensemble, sigma, seed, keep)
            for dataset, model, sigma, ensemble, seed in every
        ]


CHLORINE = ("ChlorineConcentration",)
# Where the paper does not say which network or sigma it used, InceptionTime and 0.4 (its Figure 3
# and Table 4) are taken.
GRIDS = {
    "table1": Grid(),
    "table2": Grid(),
    "table3": Grid(models=tuple(models.NAMES), sigmas=SIGMAS),
    "table4": Grid(datasets=("ChlorineConcentration", "CricketX")),
    "figure2": Grid(),
    "figure3": Grid(datasets=CHLORINE),
    "figure4": Grid(datasets=CHLORINE, sigmas=(0.2, 0.4, 0.8, 1.6)),
    "figure5": Grid(datasets=CHLORINE, ensembles=("mb", "mc")),
    "figure6": Grid(datasets=("CricketX",), ensembles=("single", "mb", "mc")),
    "theory": Grid(datasets=CHLORINE, ensembles=("single", "mb", "mc")),
}
NAMES = tuple(GRIDS)


def smoke(grid: Grid) -> Grid:
    """The part of a grid that a CPU runs in minutes."""
    sigmas = tuple(sigma for sigma in grid.sigmas if sigma in (0.4, 0.8))
    return dataclasses.replace(grid, datasets=("CBF",), models=("lstm_fcn",), sigmas=sigmas)


def ensemble_sizes(profile: str) -> tuple[int, ...]:
    return ENSEMBLE_SIZES if profile == "paper" else (1, 5)


def keeps(profile: str) -> tuple[float, ...]:
    return KEEPS if profile == "paper" else (0.5, KEEP)


# Jobs


def train(cell: Cell, settings: Settings) -> Job:
    others = (f"--epochs={settings.epochs}", f"--class_weights={settings.class_weights}")
    return Job("train", cell.run, (*cell.flags, *others))


def certify(cell: Cell, settings: Settings, num_masks: int = NUM_MASKS) -> Job:
    size = examples(settings.num_examples)
    arguments = [*cell.flags, f"--num_draws={settings.num_draws}", *size]
    if cell.masked:
        arguments.append(f"--num_masks={num_masks}")
    variant = f"m={num_masks}" if cell.masked else ""
    return Job("certify", cell.run, tuple(arguments), train(cell, settings).id, variant)


def measure_margins(cell: Cell, settings: Settings) -> Job:
    arguments = (
        *cell.flags,
        f"--num_draws={settings.num_draws}",
        f"--num_examples={settings.margin_examples}",
        f"--num_random_masks={settings.margin_masks}",
    )
    return Job("margins", cell.run, arguments, train(cell, settings).id)


def attack(cell: Cell, settings: Settings) -> Job:
    epsilons = ",".join(f"{epsilon:g}" for epsilon in EPSILONS)
    size = examples(settings.attacked)
    arguments = [*cell.flags, f"--epsilons={epsilons}", *size, *settings.attack]
    arguments.append(f"--num_draws={settings.num_draws}")
    return Job("attack", cell.run, tuple(arguments), train(cell, settings).id)


def attack_settings(cell: Cell, settings: Settings) -> dict[str, Any]:
    """What the record of the attack says of it."""
    given = {name: int(value) for name, value in attack(cell, settings).flags.items()
             if name in ATTACK}  # fmt: skip
    found = {"epsilons": list(EPSILONS), **ATTACK, **given, "noise_seed": cell.seed}
    if cell.sigma == 0:  # without noise there are no draws
        del found["attack_draws"]
        return {"target": "mean_logits", **found}
    return {"target": "smoothed", **found, "num_draws": settings.num_draws}


def examples(number: int | None) -> tuple[str, ...]:
    return () if number is None else (f"--num_examples={number}",)


def benign(cell: Cell) -> Cell:
    """The network of the same data and architecture trained without noise (Table 4)."""
    return dataclasses.replace(cell, ensemble="single", sigma=0.0)


def jobs_of(name: str, grid: Grid, settings: Settings, profile: str) -> Iterator[Job]:
    """The jobs of one table or figure, each after the one that it needs."""
    for cell in grid.cells():
        if name in ("table1", "table3", "figure3", "figure4", "figure5", "theory"):
            yield train(cell, settings)
        if name in ("table3", "figure4"):
            yield certify(cell, settings)
        elif name in ("figure3", "theory"):
            yield measure_margins(cell, settings)
        elif name == "figure5" and cell.masked:
            for num_masks in ensemble_sizes(profile):
                yield certify(cell, settings, num_masks)
        elif name == "figure6":
            for keep in keeps(profile) if cell.masked else (KEEP,):
                masked = dataclasses.replace(cell, keep=keep)
                yield train(masked, settings)
                yield certify(masked, settings)
        elif name == "table4":
            for attacked in (benign(cell), cell):
                yield train(attacked, settings)
                yield attack(attacked, settings)


def with_members_taken(jobs: Sequence[Job], apart: Collection[str]) -> list[Job]:
    """The jobs, where deep ensembles come before `single` networks, which are taken from them.

    A deep ensemble's first network has the random keys of `single`: it is trained once for both.

    Args:
      apart: the ids of trainings that neither take a network nor have one taken from them.
    """
    trainings = [job for job in jobs if job.script == "train" and job.id not in apart]
    deep = {job.run: job for job in trainings if job.flags["ensemble"] == "de"}
    sources = {
        job.id: deep.get(job.run.replace("/single/", "/de/"))
        for job in trainings
        if job.flags["ensemble"] == "single"
    }
    ordered = []
    for job in jobs:
        if source := sources.get(job.id):
            ordered.append(source)
            arguments = (*job.arguments, "--member_of_de")
            job = dataclasses.replace(job, arguments=arguments, needs=source.id)
        ordered.append(job)
    return list({job.id: job for job in ordered}.values())


def all_jobs(grids: dict[str, Grid], settings: Settings, profile: str) -> list[Job]:
    """The jobs of several tables and figures, without repetition."""
    jobs = (job for name, grid in grids.items() for job in jobs_of(name, grid, settings, profile))
    return list({job.id: job for job in jobs}.values())
