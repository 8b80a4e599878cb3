"""Which training objective buys radius: every objective at equal cost, paired series by series.

    python experiments/studies/objectives.py --datasets=SyntheticControl --sigmas=0.8,1.6 \
        --objectives=cross_entropy,two_views,consistency,ensemble,smoothmix --seeds=0,1,2

Runs train.py and certify.py for each cell (data set, model, ensemble, sigma, seed, objective). Cost
is counted in passes of a series through the network and back: --passes of them for each training
series, so an objective that takes two a step is trained for half of the epochs. An objective may
have further flags of train.py: two_views+average=0.999, consistency+consistency_weight=1,
cross_entropy+keep=0.5+hidden_as=last. Each is compared with --control of its own ensemble, or with
that of one ensemble for all: --control=single/cross_entropy.

    <results_dir>/runs/<objective>/        the trained runs, with their certificates
    <results_dir>/cells/<cell>.json        what a cell comes to, once it is done
    <results_dir>/cells.csv                a line for each of them
    <results_dir>/series/<cell>.csv        the certificate of each series
    <results_dir>/table.md, shares.png     what the cells come to

A killed call, started again, goes on: a cell that is done is not done again. Several calls may
share a folder, each with other cells; the table and the picture are of all that are in it.
"""

import csv
import dataclasses
import itertools
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from scipy import special

from selfens_jax import (
    certificates,
    data,
    metrics,
    models,
    noise,
    objectives,
    plots,
    runs,
    training,
)
from selfens_jax.errors import UserError
from selfens_jax.runs import records

FLAGS = flags.FLAGS

SCRIPTS = Path(__file__).parents[1]
ALPHA = 0.001
RADII = (0.25, 0.5, 1.0, 1.5)  # sigmas
ENSEMBLES = ("single", "mb", "mc")  # of one network
OF_TRAINING: dict[str, Callable[[str], Any]] = {  # flags of train.py that an objective may have
    "average": float,
    "batch_size": int,
    "class_weights": str,
    "consistency_weight": float,
    "entropy_weight": float,
    "hidden_as": str,
    "keep": float,
    "learning_rate": float,
}
SHARED = ("average", "keep", "hidden_as")  # flags that certify.py has too


class Group(NamedTuple):
    """What cells that are compared have in common."""

    dataset: str
    model: str
    sigma: float
    passes: int
    num_draws: int
    num_examples: int


@dataclasses.dataclass(frozen=True)
class Cell:
    """One trained and certified run."""

    dataset: str
    model: str
    ensemble: str
    sigma: float
    objective: str  # with its flags: consistency+consistency_weight=1
    seed: int
    epochs: int
    num_draws: int
    num_examples: int | None
    passes: int  # that were asked for; epochs are whole, so that their cost may be a little off

    @property
    def group(self) -> Group:
        """What cells that are compared have in common."""
        series = 0 if self.num_examples is None else self.num_examples  # 0: all of them
        return Group(self.dataset, self.model, self.sigma, self.passes, self.num_draws, series)

    @property
    def kind(self) -> tuple[str, str]:
        """What cells that are averaged have in common besides."""
        return self.ensemble, self.objective

    @property
    def name(self) -> str:
        size = "all" if self.num_examples is None else self.num_examples
        return (
            f"{self.dataset}-{self.model}-{self.ensemble}-sigma{self.sigma:g}-{self.objective}-"
            f"epochs{self.epochs}-seed{self.seed}-n{self.num_draws}-{size}ex"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """The certificates of a cell's N series."""

    index: np.ndarray  # (N,) in the test split
    label: np.ndarray  # (N,)
    voted: np.ndarray  # (N,) the most voted class
    radius: np.ndarray  # (N,) in units of sigma; 0 where wrong or abstained
    share: np.ndarray  # (N,) of the votes, those for the label

    def certified(self, radius: float) -> np.ndarray:
        """(N,) 1 where the answer is right and certified at so many sigmas, else 0."""
        return ((self.radius > 0) & (self.radius >= radius)).astype(float)

    @property
    def summary(self) -> dict[str, float]:
        answers = np.bincount(self.voted)
        return {
            "accuracy": float(np.mean(self.voted == self.label)),
            **{f"certified_at_{r:g}_sigma": float(self.certified(r).mean()) for r in RADII},
            "acr_over_sigma": float(self.radius.mean()),
            "most_answered": float(answers.max() / answers.sum()),
            "most_frequent": metrics.most_frequent_share(self.label),
        }


def define_flags() -> None:
    """Defined by the command alone: other commands have flags of the same names."""
    flags.DEFINE_list("datasets", ["SyntheticControl"], "Names of the UCR archive, or .npz files.")
    flags.DEFINE_list("models", ["lstm_fcn"], "Architectures.")
    flags.DEFINE_list("ensembles", ["mc"], "Ensembles; objectives not theirs are skipped.")
    flags.DEFINE_list("sigmas", ["1.6"], "Noise levels.")
    flags.DEFINE_list("seeds", ["0"], "Every cell once for each of these seeds.")
    flags.DEFINE_list("objectives", list(objectives.OBJECTIVES), "Each with +flag=value, if any.")
    flags.DEFINE_string(
        "control",
        "two_views",
        "What the others are compared with; as single/cross_entropy, that of one ensemble.",
    )
    flags.DEFINE_list(
        "radii", [], "In the units of the series: a second table, of what is certified at them."
    )
    for name, default, meaning in (
        ("passes", 1000, "Passes of each training series, the cost of every cell."),
        ("num_draws", 1000, "n of the certificates."),
        ("num_examples", None, "Evenly spaced test series; all if not given."),
    ):
        flags.DEFINE_integer(name, default, meaning, lower_bound=1)
    flags.DEFINE_string("data_dir", None, "A folder in the archive's layout: NAME/NAME_TRAIN.tsv.")
    flags.DEFINE_string("results_dir", "results-objectives", "Where runs and tables are kept.")
    flags.DEFINE_float("time_limit", None, "Minutes after which no further cell is begun.")


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise UserError(f"unexpected argument {arguments[1]!r}; flags look like --name=value")
    if FLAGS.time_limit is not None and not FLAGS.time_limit > 0:  # nor is NaN
        raise UserError(f"--time_limit={FLAGS.time_limit:g}: must be more than 0 minutes")
    results, began = Path(FLAGS.results_dir), time.monotonic()
    asked, radii = cells(FLAGS), numbers("radii", FLAGS.radii)
    refuse_other_data(results, asked, FLAGS.data_dir)
    for place, cell in enumerate(asked):
        if record_file(results, cell).exists():
            continue
        if FLAGS.time_limit is not None and time.monotonic() - began > 60 * FLAGS.time_limit:
            print("the time limit is reached; the same command goes on from here", file=sys.stderr)
            break
        print(f"[{place + 1}/{len(asked)}] {cell.name}", file=sys.stderr, flush=True)
        measure(results, cell)
    known = cells_in(results)
    if not known:
        return
    write_lines(results)
    measured = {cell: read_series(results, cell) for cell in known}
    lines = [*table(measured, FLAGS.control), *table_at(measured, radii)]
    text = "\n".join(lines) + "\n"
    runs.write_bytes(results / "table.md", text.encode())
    runs.write_bytes(results / "shares.png", figure(measured))
    print(text, end="")


def cells(asked: Any) -> list[Cell]:
    """Those that are asked for, one seed after the other.

    Args:
      asked: all flags, or what has the same attributes.

    Raises:
      UserError: for a number that is none, a model, an ensemble or an objective that there is not,
        or none of whose ensembles is asked for, or too few draws.
    """
    try:
        certificates.check_budget(asked.num_draws, ALPHA, num_classes=2)
    except UserError as error:
        raise UserError(f"--num_draws: {error}") from None
    for flag in ("datasets", "models", "ensembles", "objectives"):
        if not all(getattr(asked, flag) or [""]):
            raise UserError(f"--{flag}: a name is missing")
    if unknown := [name for name in asked.models if name not in models.NAMES]:
        raise UserError(f"--models: unknown {unknown[0]!r}; choose from {', '.join(models.NAMES)}")
    sigmas, seeds = numbers("sigmas", asked.sigmas), numbers("seeds", asked.seeds, int)
    if not sigmas or not seeds:
        raise UserError("--sigmas and --seeds: at least one number each")
    ensemble, of_one, control = asked.control.rpartition("/")
    kinds: dict[tuple[str, str], None] = {}
    for flag, ensembles, names in (
        ("control", [ensemble] if of_one else asked.ensembles, [control]),
        ("objectives", asked.ensembles, asked.objectives),
    ):
        for name in names:
            reasons = {own: refusal(own, name) for own in ensembles}
            if all(reasons.values()):
                raise UserError(f"--{flag}={name}: {next(iter(reasons.values()))}")
        kinds |= {(o, n): None for o in ensembles for n in names if not refusal(o, n)}
    every = itertools.product(seeds, asked.datasets, asked.models, sigmas, kinds)
    return [
        Cell(
            dataset=dataset,
            model=model,
            ensemble=ensemble,
            sigma=sigma,
            objective=objective,
            seed=seed,
            epochs=max(1, round(asked.passes / passes_of(objective))),
            num_draws=asked.num_draws,
            num_examples=asked.num_examples,
            passes=asked.passes,
        )
        for seed, dataset, model, sigma, (ensemble, objective) in every
    ]


def numbers(flag: str, texts: Sequence[str], convert: Callable[[str], Any] = float) -> list[Any]:
    """Those of a list flag, each once: above 0, or, of int, whole and from 0 to below 2^32.

    Raises:
      UserError: for what is none.
    """
    try:
        values = list(dict.fromkeys(convert(text) for text in texts))
    except ValueError:
        values = [math.nan]
    whole = convert is int
    if not all(0 <= value < 2**32 if whole else 0 < value < math.inf for value in values):
        kind = "whole numbers from 0 to below 4294967296" if whole else "numbers above 0"
        raise UserError(f"--{flag} must be {kind}, not {','.join(texts)!r}")
    return values


def refusal(ensemble: str, objective: str) -> str:
    """Why there is no such training at the cost of one network; empty if there is."""
    if ensemble not in ENSEMBLES:
        return f"unknown ensemble {ensemble!r}; choose from {', '.join(ENSEMBLES)}"
    name, *others = objective.split("+")
    pairs = [other.partition("=") for other in others]
    if unknown := [flag for flag, _, _ in pairs if flag not in OF_TRAINING]:
        return f"unknown flag {unknown[0]!r}; choose from {', '.join(OF_TRAINING)}"
    if bare := [flag for flag, _, value in pairs if not value]:
        return f"{bare[0]} has no value: +{bare[0]}=VALUE"
    try:
        values = {flag: OF_TRAINING[flag](value) for flag, _, value in pairs}
        training.TrainConfig(ensemble=ensemble, objective=name, **values)
    except (UserError, ValueError) as error:
        return str(error)
    return ""


def passes_of(objective: str) -> int:
    return objectives.OBJECTIVES[objective.partition("+")[0]].passes


# Measuring


def measure(results: Path, cell: Cell) -> None:
    """Trains and certifies a cell, and writes its series and its line.

    Raises:
      UserError: if a command fails.
    """
    objective, *others = cell.objective.split("+")
    runs_dir = results / "runs" / f"{cell.objective}-epochs{cell.epochs}"
    named = [
        f"--dataset={cell.dataset}",
        f"--model={cell.model}",
        f"--ensemble={cell.ensemble}",
        f"--sigma={cell.sigma:g}",
        f"--seed={cell.seed}",
        f"--objective={objective}",
        f"--runs_dir={runs_dir}",
        *(f"--{other}" for other in others if other.partition("=")[0] in SHARED),
        *([f"--data_dir={FLAGS.data_dir}"] if FLAGS.data_dir is not None else []),
    ]
    training = [f"--{other}" for other in others if other.partition("=")[0] not in SHARED]
    size = [] if cell.num_examples is None else [f"--num_examples={cell.num_examples}"]
    began = time.monotonic()
    run("train", *named, f"--epochs={cell.epochs}", *training)
    trained = time.monotonic()
    run("certify", *named, f"--num_draws={cell.num_draws}", *size)
    certified = time.monotonic()
    folder = runs.directory(
        runs_dir, data.name_of(cell.dataset), cell.model, cell.ensemble, cell.sigma, cell.seed
    )
    found = measured_in(folder, cell)
    write_series(results, cell, found)
    seconds = {"training_seconds": trained - began, "certification_seconds": certified - trained}
    line = {"cell": cell.name, **dataclasses.asdict(cell), **found.summary, **seconds}
    config = runs.read_json(folder / "config.json")
    origin = {"device": config["versions"]["device"], "data_sha256": config["data"]["sha256"]}
    runs.write_json(record_file(results, cell), {**line, **origin})
    write_lines(results)


def run(script: str, *arguments: str) -> None:
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), *arguments]
    finished = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if finished.returncode:
        lines = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
        reason = lines[-1] if lines else f"status {finished.returncode}"
        raise UserError(f"{script}.py {' '.join(arguments)}: {reason}")


def measured_in(folder: Path, cell: Cell) -> Measured:
    """The latest certification in a run's folder, which was this cell's."""
    files = sorted(folder.glob(f"counts-n{cell.num_draws}-*.npz"), key=lambda f: f.stat().st_mtime)
    counted = records.read_counts(files[-1])
    counts, labels, sigma = counted.counts, counted.labels, counted.settings["sigma"]
    certified = certificates.certify_counts(
        counts, sigma, ALPHA, given_up=noise.given_up(counted.settings)
    )
    credited = metrics.credited_radius(certified.prediction, certified.radius, labels)
    rows = np.arange(len(labels))
    share = counts[rows, labels] / counts.sum(axis=1)
    return Measured(counted.indices, labels, counts.argmax(axis=1), credited / sigma, share)


# Files


def write_series(results: Path, cell: Cell, measured: Measured) -> None:
    names = [field.name for field in dataclasses.fields(Measured)]
    values = zip(*(getattr(measured, name).tolist() for name in names), strict=True)
    rows = (dict(zip(names, row, strict=True)) for row in values)
    runs.write_csv(series_file(results, cell), names, rows)


def read_series(results: Path, cell: Cell) -> Measured:
    """The series of a cell that is done.

    Raises:
      UserError: if they are not those of its record.
    """
    path, record = series_file(results, cell), runs.read_json(record_file(results, cell))
    try:
        with path.open(newline="", encoding="utf-8") as file:
            found = measured_of(list(csv.DictReader(file)))
        for name, value in found.summary.items():
            if not math.isclose(value, record[name], rel_tol=1e-9):
                raise ValueError(name)
    except (OSError, KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} does not hold the series of {record_file(results, cell)}: remove both, and "
            "the command of this cell measures it again"
        ) from None
    return found


def measured_of(rows: list[dict[str, str]]) -> Measured:
    """The lines that `write_series` wrote."""
    if not rows:
        raise ValueError("no series")
    columns = {
        field.name: np.array([float(row[field.name]) for row in rows])
        for field in dataclasses.fields(Measured)
    }
    whole = {name: columns[name].astype(int) for name in ("index", "label", "voted")}
    return Measured(**columns | whole)


def series_file(results: Path, cell: Cell) -> Path:
    return results / "series" / f"{cell.name.replace('/', '_')}.csv"


def cells_in(results: Path) -> list[Cell]:
    """Those that are done, whatever call did them."""
    names = [field.name for field in dataclasses.fields(Cell)]
    return [Cell(**{name: line[name] for name in names}) for line in lines_in(results)]


def lines_in(results: Path) -> list[dict[str, Any]]:
    """What the cells that are done come to, a line of cells.csv each."""
    lines = []
    for file in sorted((results / "cells").glob("*.json")):
        try:
            lines.append(runs.read_json(file))
        except UserError:
            raise UserError(
                f"{file} is damaged: remove it, and the command of this cell measures it again"
            ) from None
    of_name: dict[str, str] = {}
    for line in lines:  # those of before 2026-11-28 have neither passes nor the hash of their data
        line.setdefault("passes", line["epochs"] * passes_of(line["objective"]))
        own, name = line.get("data_sha256", ""), line["dataset"]
        if own and of_name.setdefault(name, own) != own:
            raise UserError(
                f"{results / 'cells'} holds cells of different data of the name {name}, of "
                f"{line['cell']} and of another: remove the records of one, or give it another "
                "--results_dir"
            )
    return lines


def refuse_other_data(results: Path, asked: Sequence[Cell], data_dir: str | None) -> None:
    """Raises UserError, before anything is trained, if cells that are done are of other data."""
    lines = lines_in(results)
    known = {line["dataset"]: line["data_sha256"] for line in lines if "data_sha256" in line}
    for name in dict.fromkeys(cell.dataset for cell in asked):
        if name in known and data.describe(data.load(name, data_dir))["sha256"] != known[name]:
            raise UserError(
                f"{results / 'cells'} holds cells of other data of the name {name}: give the "
                "--data_dir of those, or another --results_dir"
            )


def record_file(results: Path, cell: Cell) -> Path:
    return results / "cells" / f"{cell.name.replace('/', '_')}.json"


def write_lines(results: Path) -> None:
    """cells.csv, of all cells that are done."""
    lines = lines_in(results)
    names = list(dict.fromkeys(name for line in lines for name in line))
    blank = dict.fromkeys(names, "")  # for what the records of before do not say
    runs.write_csv(results / "cells.csv", names, [blank | line for line in lines])


# Comparison


@dataclasses.dataclass(frozen=True)
class Difference:
    """The mean difference of an objective to the control, paired by seed and series.

    Attributes:
      mean: over seeds and series.
      over_series: its standard error as series vary: that of the series' differences, each averaged
        over the seeds.
      over_seeds: as trainings vary: that of the seeds' mean differences; NaN for one seed.
    """

    mean: float
    over_series: float
    over_seeds: float

    @classmethod
    def of(cls, differences: np.ndarray) -> "Difference":
        """differences: (seeds, series)."""
        of_series, of_seeds = differences.mean(axis=0), differences.mean(axis=1)
        return cls(float(differences.mean()), standard_error(of_series), standard_error(of_seeds))

    def text(self, scale: float = 1.0, digits: int = 3) -> str:
        def shown(value: float) -> str:
            return "?" if math.isnan(value) else f"{scale * value:.{digits}f}"

        over = f"{shown(self.over_series)}, {shown(self.over_seeds)}"
        return f"{scale * self.mean:+.{digits}f} ({over})"


def standard_error(values: np.ndarray) -> float:
    if len(values) < 2:
        return math.nan
    return float(values.std(ddof=1) / math.sqrt(len(values)))


HEADINGS = (
    "data set",
    "model",
    "ensemble",
    "sigma",
    "n",
    "series",
    "objective",
    "epochs",
    "seeds",
    "accuracy (%)",
    *(f"certified at {r:g} sigma (%)" for r in RADII),
    "ACR / sigma",
    "most answered (%)",
    "more ACR / sigma",
    "more certified at 0.5 sigma (points)",
)
NAMED = HEADINGS.index("objective") + 1  # columns that say what a row is of


def table(measured: dict[Cell, Measured], control: str) -> Iterator[str]:
    """Lines of Markdown: a row for each objective of each group."""
    yield f"| {' | '.join(HEADINGS)} |"
    yield "|---" * len(HEADINGS) + "|"
    of_all, _, control = control.rpartition("/")
    rows = dict.fromkeys((cell.group, cell.kind) for cell in measured)

    def control_of(ensemble: str) -> tuple[str, str]:
        return of_all or ensemble, control

    def place(row: tuple[Group, tuple[str, str]]) -> Any:
        group, kind = row  # one control of all comes before all, of each ensemble before its own
        own = kind != control_of(kind[0])
        return (group, own, kind[0]) if of_all else (group, kind[0], own)

    for group, kind in sorted(rows, key=place):
        own = by_seed(measured, group, kind)
        other = by_seed(measured, group, control_of(kind[0]))
        epochs = {c.epochs for c in measured if (c.group, c.kind) == (group, kind)}
        mean = {
            name: float(np.mean([m.summary[name] for m in own.values()]))
            for name in next(iter(own.values())).summary
        }
        cells_of_row = [
            *named(group, kind, own),
            ", ".join(map(str, sorted(epochs))),
            str(len(own)),
            f"{100 * mean['accuracy']:.1f}",
            *(f"{100 * mean[f'certified_at_{r:g}_sigma']:.1f}" for r in RADII),
            f"{mean['acr_over_sigma']:.3f}",
            f"{100 * mean['most_answered']:.0f} of {100 * mean['most_frequent']:.0f}",
        ]
        seeds = sorted(own.keys() & other.keys())
        if kind == control_of(kind[0]) or not seeds:
            cells_of_row += ["", ""]
        else:
            pairs = [(own[seed], other[seed]) for seed in seeds]
            cells_of_row += [
                difference(pairs, lambda m: m.radius).text(),
                difference(pairs, lambda m: m.certified(0.5)).text(100, 1),
            ]
        yield f"| {' | '.join(cells_of_row)} |"
    whose = f"{control} of {of_all}" if of_all else control
    yield ""
    yield (
        f"Of the mean over seeds. 'more': than {whose}, paired by seed and series, with its "
        "standard error over series, and over seeds. 'most answered': the share of series that "
        "are given the class named most often, of the share of the most frequent class."
    )


def table_at(measured: dict[Cell, Measured], radii: Sequence[float]) -> Iterator[str]:
    """Lines of Markdown: what is certified at radii in the units of the series, for every sigma.

    The largest share of a data set, model and size is marked in each column.
    """
    if not radii:
        return
    columns = ("seeds", "accuracy (%)", *(f"certified at {radius:g} (%)" for radius in radii))
    yield ""
    yield f"| {' | '.join((*HEADINGS[:NAMED], *columns))} |"
    yield "|---" * (NAMED + len(columns)) + "|"
    kinds = sorted({(cell.group, cell.kind) for cell in measured})
    shares = {}
    for group, kind in kinds:
        own = by_seed(measured, group, kind).values()
        certified = [np.mean([m.certified(r / group.sigma).mean() for m in own]) for r in radii]
        accuracy = np.mean([m.summary["accuracy"] for m in own])
        shares[group, kind] = np.array([accuracy, *certified])
    for group, kind in kinds:
        alike = [s for (g, _), s in shares.items() if g._replace(sigma=group.sigma) == group]
        best, own = np.max(alike, axis=0), by_seed(measured, group, kind)
        row = [*named(group, kind, own), str(len(own))]
        for share, most in zip(shares[group, kind], best, strict=True):
            row.append(f"**{100 * share:.1f}**" if share == most > 0 else f"{100 * share:.1f}")
        yield f"| {' | '.join(row)} |"
    yield ""
    yield "Certified: right, and certified at that radius or more; L2 norms in the series' units."


def named(group: Group, kind: tuple[str, str], own: dict[int, Measured]) -> list[str]:
    """The first cells of a row, which say what it is of."""
    (ensemble, objective), number = kind, len(next(iter(own.values())).index)
    sizes = (f"{group.sigma:g}", str(group.num_draws), str(number))
    return [group.dataset, group.model, ensemble, *sizes, objective]


def by_seed(
    measured: dict[Cell, Measured], group: Group, kind: tuple[str, str]
) -> dict[int, Measured]:
    return {c.seed: m for c, m in measured.items() if (c.group, c.kind) == (group, kind)}


def difference(
    pairs: Sequence[tuple[Measured, Measured]], value_of: Callable[[Measured], np.ndarray]
) -> Difference:
    """That of the first to the second of each pair, which are of the same series."""
    for first, second in pairs:
        if not np.array_equal(first.index, second.index):
            raise UserError("cells of different series cannot be compared: give one --num_examples")
        if not np.array_equal(first.label, second.label):
            raise UserError(
                "cells of different data cannot be compared: give one --data_dir, and one "
                "--results_dir to each"
            )
    return Difference.of(np.stack([value_of(a) - value_of(b) for a, b in pairs]))


def figure(measured: dict[Cell, Measured]) -> bytes:
    """A PNG: for each group, the share of series whose label has at most so many votes."""
    groups = sorted({(cell.group, cell.ensemble) for cell in measured})
    names = list(dict.fromkeys(cell.objective for cell in measured))
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    drawn = plots.new_figure(1.5 + 4.5 * columns, 0.8 + 3.6 * lines)
    panels = drawn.subplots(lines, columns, squeeze=False).ravel()
    ticks = np.array([0.01, 0.1, 0.5, 0.9, 0.99, 0.999])
    named: dict[str, Any] = {}
    for axes, (group, ensemble) in zip(panels, groups, strict=False):
        for name in names:
            own = by_seed(measured, group, (ensemble, name)).values()
            if not own:
                continue
            # Half a vote off either end, where the quantile would be infinite.
            half = 0.5 / group.num_draws
            shares = np.sort(np.concatenate([m.share for m in own]).clip(half, 1 - half))
            (named[name],) = axes.step(
                special.ndtri(shares),
                100 * np.arange(1, len(shares) + 1) / len(shares),
                where="post",
                color=plots.COLOURS[names.index(name) % len(plots.COLOURS)],
                linestyle=("-", "--")[names.index(name) // len(plots.COLOURS) % 2],
                label=name,
            )
        axes.axvline(0, color="0.6", linewidth=0.8)
        axes.set_xticks(special.ndtri(ticks), [f"{tick:g}" for tick in ticks])
        sizes = f"sigma {group.sigma:g}, n = {group.num_draws}, {group.num_examples} series"
        axes.set(
            title=f"{group.dataset}, {group.model}, {ensemble}\n{sizes}",
            xlabel="share of the votes that are for the label",
            ylabel="series with at most this share (%)",
            ylim=(0, 103),
        )
        axes.grid(alpha=0.3)
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    drawn.legend(
        handles=list(named.values()),
        loc="outside upper center",
        ncols=int(drawn.get_figwidth() // 3),  # inches that a name may take
        fontsize=8,
        frameon=False,
    )
    title = "Votes for the true class, by training objective at equal cost"
    note = (
        "Lower is better. The axis is stretched as radii are: a step to the right is the same gain "
        "of radius everywhere. Right of the grey line the smoothed classifier is right."
    )
    return plots.png(drawn, title, note)


def start(arguments: list[str]) -> None:
    # An exception ends the command that is waited for, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main(arguments)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    define_flags()
    app.run(start)
