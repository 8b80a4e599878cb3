"""The paper's Tables 1 to 4: its number, ours by its procedure, ours with a valid certificate."""

import csv
import dataclasses
import io
import itertools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from reproduction.captions import NOT_MEASURED, described, series
from reproduction.measured import (
    ALPHA,
    attack_success,
    certified,
    hardware,
    margins,
    paper_rows,
    paper_table3,
    training_seconds,
)
from reproduction.plan import EPSILONS, Cell, Grid, Settings, benign

from selfens_jax import data, metrics, runs
from selfens_jax.errors import UserError

NOT_IN_PAPER = "-"
# Of the records of margins.py: the name of a number, its heading and form.
PARTS = {
    "mean_plain": ("mean, series itself", ".3f"),
    "mean_masked": ("mean, masked", ".3f"),
    "mean_noisy": ("mean, masked and noised", ".3f"),
    "clean_variance": ("Sigma_c", ".4g"),
    "perturbation_variance": ("V_p", ".4g"),
    "correlation": ("zeta_p", ".3f"),
    "unmasked_variance": ("V without masks", ".4g"),
    "shrinkage": ("V_p / V without masks", ".3f"),
    "keep_squared": ("keep²", ".3f"),
}
PREDICTIONS = {
    "predicted_fixed": ("masks fixed, predicted", ".4g"),
    "measured_fixed": ("masks fixed, measured", ".4g"),
    "predicted_redrawn": ("masks redrawn, predicted", ".4g"),
    "measured_redrawn": ("masks redrawn, measured", ".4g"),
    "predicted_p_a": ("p_A, predicted", ".4f"),
    "measured_p_a": ("p_A, measured", ".4f"),
}


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number measured with several seeds: its mean and its range."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        return cls(float(np.mean(values)), min(values), max(values)) if values else None


@dataclasses.dataclass(frozen=True)
class Column:
    """A column's heading, with its unit, and how its numbers are printed."""

    heading: str
    form: str = ""  # of a number, as in format(); "" for text, which stands to the left
    scale: float = 1.0  # 100 prints a share as a percentage

    def text(self, value: "str | float | Spread | None") -> str:
        if value is None:
            return NOT_MEASURED
        if isinstance(value, Spread):
            if value.low == value.high:
                return self.text(value.mean)
            return f"{self.text(value.mean)} ({self.text(value.low)}..{self.text(value.high)})"
        return value if isinstance(value, str) else format(self.scale * value, self.form)

    def in_full(self, value: str | float | None) -> str:
        """For a CSV: not rounded to what a page has room for."""
        return dataclasses.replace(self, form=".10g").text(value)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; each row has one value a column. None: not measured."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: list[tuple[Any, ...]]

    def texts(self) -> list[list[str]]:
        return [
            [column.text(value) for column, value in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]

    def write(self, results_dir: Path) -> None:
        runs.write_bytes(results_dir / "tables" / f"{self.name}.csv", self.csv())

    def text(self, results_dir: Path) -> str:
        """For a terminal: text to the left, numbers to the right."""
        lines = [[column.heading for column in self.columns], *self.texts()]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        text = [
            "  ".join(
                cell.rjust(width) if column.form else cell.ljust(width)
                for cell, width, column in zip(line, widths, self.columns, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, "", *text, "", self.caption])

    def csv(self) -> bytes:
        """Numbers as they are, in units of the heading; a spread has two columns more."""
        spread = [
            any(isinstance(row[i], Spread) for row in self.rows) for i in range(len(self.columns))
        ]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        heading = []
        for column, wide in zip(self.columns, spread, strict=True):
            names = ("", ", least", ", most") if wide else ("",)
            heading += [column.heading + name for name in names]
        writer.writerow(heading)
        for row in self.rows:
            cells = []
            for column, wide, value in zip(self.columns, spread, row, strict=True):
                values = [value] * (3 if wide else 1)
                if isinstance(value, Spread):
                    values = [value.mean, value.low, value.high]
                cells += map(column.in_full, values)
            writer.writerow(cells)
        return text.getvalue().encode()


def over_seeds(cells: Sequence[Cell], measure: Callable[[Cell], float | None]) -> Spread | None:
    """What was measured of cells that differ in their seeds only."""
    return Spread.of([value for cell in cells if (value := measure(cell)) is not None])


def same_but_seed(grid: Grid) -> list[list[Cell]]:
    """The cells of a grid, those that differ in their seeds only together."""
    groups: dict[Cell, list[Cell]] = {}
    for cell in grid.cells():
        groups.setdefault(dataclasses.replace(cell, seed=0), []).append(cell)
    return list(groups.values())


def difference(ours: Spread | None, paper: float | str) -> float | str | None:
    if isinstance(paper, str):
        return paper
    return None if ours is None else ours.mean - paper


# The tables


def table1(results_dir: Path, grid: Grid, settings: Settings) -> Table:
    paper = {row["dataset"]: row for row in paper_rows("table1_training_seconds.csv")}
    rows = []
    for cells in same_but_seed(grid):
        cell = cells[0]
        ours = over_seeds(cells, lambda c: training_seconds(results_dir, c, settings))
        comparable = cell.model == "inception_time"
        theirs = float(paper[cell.dataset][cell.ensemble]) if comparable else NOT_IN_PAPER
        rows.append((cell.dataset, cell.model, cell.sigma, cell.ensemble, theirs, ours))
    where = hardware(results_dir, grid.cells()) or "nothing yet"
    return Table(
        "table1",
        "Table 1: training time",
        "Seconds of training, compilation included, over all parts of a run that was interrupted; "
        "the paper's on an RTX 4090, 1000 epochs. Sigma does not change the time. "
        f"Ours on {where}: {described(results_dir, grid, settings, what='')}",
        (
            Column("data set"),
            Column("model"),
            Column("sigma", "g"),
            Column("ensemble"),
            Column("paper (s)", ".1f"),
            Column("ours (s)", ".1f"),
        ),
        rows,
    )


def table2(grid: Grid, data_dir: str | None) -> Table:
    paper = {row["dataset"]: row for row in paper_rows("table2_datasets.csv")}
    rows = []
    for name in grid.datasets:
        row = paper[name]
        counts = {key: int(row[key]) for key in ("train", "test", "classes", "length")}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # `source` says what it would say
                found = data.load(name, data_dir)
        except UserError:
            rows.append((name, row["type"], *[None] * 5, NOT_MEASURED))
            continue
        ours = {
            "train": len(found.x_train),
            "test": len(found.x_test),
            "classes": found.num_classes,
            "length": found.length,
        }
        cells = [
            str(ours[key]) if ours[key] == counts[key] else f"{ours[key]} (paper: {counts[key]})"
            for key in counts
        ]
        share = metrics.most_frequent_share(found.y_test)
        rows.append((name, row["type"], *cells, share, found.source))
    columns = (
        Column("data set"),
        Column("type (paper)"),
        *(Column(heading, "d") for heading in ("train", "test", "classes", "length")),
        Column("most frequent (%)", ".1f", 100),
        Column("source"),
    )
    return Table(
        "table2",
        "Table 2: data sets",
        "Counted in the data themselves: numbers of series, classes and time steps. The paper's "
        "number stands beside ours where they differ. Most frequent: the test series of the most "
        "frequent class, the accuracy of naming it whatever the series.",
        columns,
        rows,
    )


def table3(results_dir: Path, grid: Grid, settings: Settings) -> Table:
    paper = paper_table3()
    rows = []
    for cells in same_but_seed(grid):
        cell = cells[0]
        found = [certified(results_dir, c, settings) for c in cells]
        found = [one for one in found if one is not None]
        accuracy = Spread.of([one.accuracy for one in found])
        radius = Spread.of([one.published_radius for one in found])
        key = (cell.dataset, cell.sigma, cell.model, cell.ensemble)
        their_accuracy, their_radius = paper.get(key, (NOT_IN_PAPER, NOT_IN_PAPER))
        rows.append(
            (
                cell.dataset,
                cell.sigma,
                cell.model,
                cell.ensemble,
                f"{len(found)}/{len(cells)}",
                their_accuracy,
                accuracy,
                difference(accuracy, their_accuracy),
                Spread.of([one.certified_accuracy for one in found]),
                their_radius,
                radius,
                difference(radius, their_radius),
                mean_and_error([one.published.radius for one in found])[1],
                Spread.of([one.acr for one in found]),
            )
        )
    return Table(
        "table3",
        "Table 3: accuracy and average certified radius",
        "Paper: as printed. Ours: the paper's procedure on our counts, that is the accuracy of the "
        "most voted class and the mean radius over all series, whose radii are not valid "
        f"certificates. Valid: exact certificates at alpha {ALPHA:g}, which may abstain; certified "
        "is the share certified with the right class, ACR counts the others as radius 0. Radii are "
        "L2 norms in the units of the series. s.e.: the standard error of our mean radius from the "
        "choice of series. Several seeds: mean (least..most). "
        f"{described(results_dir, grid, settings)}",
        (
            Column("data set"),
            Column("sigma", "g"),
            Column("model"),
            Column("ensemble"),
            Column("seeds", "s"),
            Column("accuracy, paper (%)", ".1f", 100),
            Column("accuracy, ours (%)", ".1f", 100),
            Column("difference (points)", "+.1f", 100),
            Column("certified, valid (%)", ".1f", 100),
            Column("radius, paper", ".3f"),
            Column("radius, ours", ".3f"),
            Column("difference", "+.3f"),
            Column("s.e.", ".3f"),
            Column("ACR, valid", ".3f"),
        ),
        rows,
    )


def gains(results_dir: Path, grid: Grid, settings: Settings) -> Table:
    """What Table 3's ensembles add to `single`, series by series."""
    paper = paper_table3()
    rows = []
    for cells in same_but_seed(grid):
        cell = cells[0]
        if cell.ensemble == "single":
            continue
        alone = [dataclasses.replace(c, ensemble="single") for c in cells]
        found = [
            (certified(results_dir, of, settings), certified(results_dir, to, settings))
            for of, to in zip(cells, alone, strict=True)
        ]
        pairs = [(of, to) for of, to in found if of is not None and to is not None]
        radius = [of.published.radius - to.published.radius for of, to in pairs]
        valid = [of.credited_radius - to.credited_radius for of, to in pairs]
        keys = [(c.dataset, c.sigma, c.model, c.ensemble) for c in (cell, alone[0])]
        theirs = paper[keys[0]][1] - paper[keys[1]][1] if keys[0] in paper else NOT_IN_PAPER
        numbers = (f"{len(pairs)}/{len(cells)}", theirs, *mean_and_error(radius))
        rows.append((*keys[0], *numbers, *mean_and_error(valid)))
    return Table(
        "table3_gains",
        "Table 3: what an ensemble adds to single",
        "Differences in the mean radius (the paper's procedure) and in the valid ACR between an "
        "ensemble and single, on the same series under the same noise. s.e.: the standard error of "
        "that mean from the choice of series, for these trained networks; networks trained from "
        f"other seeds differ besides. {described(results_dir, grid, settings)}",
        (
            Column("data set"),
            Column("sigma", "g"),
            Column("model"),
            Column("ensemble"),
            Column("seeds", "s"),
            Column("radius, paper", "+.3f"),
            Column("radius, ours", "+.3f"),
            Column("s.e. (radius)", ".3f"),
            Column("ACR, valid", "+.3f"),
            Column("s.e. (ACR)", ".3f"),
        ),
        rows,
    )


def mean_and_error(seeds: Sequence[np.ndarray]) -> tuple[float | None, float | None]:
    """The mean over seeds and series, and its standard error over series."""
    if not seeds:
        return None, None
    means = np.mean(seeds, axis=0)  # of each series
    error = means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else None
    return float(means.mean()), error


def table4(results_dir: Path, grid: Grid, settings: Settings) -> Table:
    paper = {
        (row["dataset"], float(row["epsilon"])): row
        for row in paper_rows("table4_attack_success_rate.csv")
    }

    def rates(cell: Cell, epsilon: float) -> tuple[float, float] | tuple[None, None]:
        return attack_success(results_dir, cell, settings).get(epsilon, (None, None))

    rows = []
    for cells in same_but_seed(grid):
        cell = cells[0]
        attacked = {cell.ensemble: cells}
        if cell == first_of(grid, cell):
            attacked = {"benign": [benign(c) for c in cells], **attacked}
        for (name, those), epsilon in itertools.product(attacked.items(), EPSILONS):
            in_paper = cell.sigma == 0.4 and (cell.dataset, epsilon) in paper
            theirs = float(paper[cell.dataset, epsilon][name]) if in_paper else NOT_IN_PAPER
            ours, ours_of_all = (
                over_seeds(those, lambda c, e=epsilon, i=i: rates(c, e)[i]) for i in (0, 1)
            )
            settled = (cell.dataset, cell.model, name, those[0].sigma, epsilon)
            rows.append((*settled, theirs, ours, difference(ours, theirs), ours_of_all))
    attacked = f"{series(settings.attacked)}, n = {settings.num_draws}, "
    return Table(
        "table4",
        "Table 4: attack success rate",
        "Share of the series classified right before that PGD in an L2 ball of radius epsilon gets "
        "misclassified, which the paper's numbers are to be compared with (BUILD_NOTES), and the "
        "share of all series that are wrong under attack; benign is the network trained without "
        "noise. Epsilon is in the units of the series. "
        f"attack.py with {' '.join(settings.attack) or 'its defaults'}; "
        f"{described(results_dir, grid, settings, attacked)}",
        (
            Column("data set"),
            Column("model"),
            Column("ensemble"),
            Column("sigma", "g"),
            Column("epsilon", "g"),
            Column("paper (%)", ".1f", 100),
            Column("ours (%)", ".1f", 100),
            Column("difference (points)", "+.1f", 100),
            Column("ours, of all (%)", ".1f", 100),
        ),
        rows,
    )


def first_of(grid: Grid, cell: Cell) -> Cell:
    """The first cell of a grid with this one's data set and model."""
    alike = (c for c in grid.cells() if (c.dataset, c.model) == (cell.dataset, cell.model))
    return next(alike)


def theory(results_dir: Path, grid: Grid, settings: Settings) -> list[Table]:
    """Lemma 4.2 and Theorem 4.3 against what was measured; see theory.py."""
    parts, predictions = [], []
    for cell in grid.cells():
        settled = (cell.dataset, cell.model, cell.ensemble, cell.sigma, cell.seed)
        drawn = margins(results_dir, cell, settings)
        if drawn is None:
            predictions.append((*settled, None, None, *[None] * len(PREDICTIONS)))
            if cell.masked:
                parts.append((*settled, None, *[None] * len(PARTS)))
        elif cell.masked:
            for example in drawn.checks:
                head = (*settled, example["index"])
                shrinkage = example["perturbation_variance"] / example["unmasked_variance"]
                values = example | {"shrinkage": shrinkage, "keep_squared": cell.keep**2}
                parts.append((*head, *[values[name] for name in PARTS]))
                for row in example["ensembles"]:
                    values = [row[name] for name in PREDICTIONS]
                    predictions.append((*head, row["num_masks"], *values))
        else:
            for index, margin, p_a in zip(drawn.indices, drawn.margin, drawn.p_a, strict=True):
                variance = float(margin.var(ddof=1))
                measured = {"measured_fixed": variance, "measured_p_a": float(p_a)}
                values = [measured.get(name, NOT_IN_PAPER) for name in PREDICTIONS]
                predictions.append((*settled, int(index), NOT_IN_PAPER, *values))
    which = (
        *map(Column, ("data set", "model", "ensemble")),
        *(Column(heading, "g") for heading in ("sigma", "seed", "series")),
    )
    size = f"n = {settings.num_draws}, {settings.margin_masks} masks, "
    where = described(results_dir, grid, settings, size)
    return [
        Table(
            "theory",
            "Theory: variance of the margin and p_A, predicted and measured",
            "Lemma 4.2 and Theorem 4.3 for z = c_A - c_B of one network, A the top class and B the "
            "next. Masks fixed, as in certification: only the noise is random, and the clean part "
            "is a constant. Masks redrawn: noise and masks are random, with zeta_c = 0 since masks "
            "are independent. Predicted from one half of the draws, measured on the other; p_A is "
            "Eqs. 22 and 24, masks redrawn. single has no masks to predict from. " + where,
            (
                *which,
                Column("m", "g"),
                *(Column(heading, form) for heading, form in PREDICTIONS.values()),
            ),
            predictions,
        ),
        Table(
            "theory_parts",
            "Theory: what enters Lemma 4.2, and its assumptions",
            "The paper assumes the three means to be equal (Eqs. 10, 11), and the perturbation "
            "variance V_p to be keep² of that without masks (Eq. 18). Sigma_c is the variance of "
            "the margin over masks without noise; the paper's, over trainings, is not measured. "
            + where,
            (*which, *(Column(heading, form) for heading, form in PARTS.values())),
            parts,
        ),
    ]
