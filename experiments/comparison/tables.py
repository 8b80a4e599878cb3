"""The benchmark's results: rows, as a table in Markdown and CSV, and as a picture."""

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import ticker

from selfens_jax import plots, runs

TABLE_HEADS = {
    "certify": "One example certified",
    "train": "One training step",
    "scaling": "Time for all examples of one call",
}
PARTS = tuple(TABLE_HEADS)


@dataclasses.dataclass
class Row:
    """One line of the table. Times are seconds an example (certify) or a training step (train)."""

    what: str
    model: str
    dataset: str
    contender: str
    num_draws: int | None = None
    num_masks: int | None = None
    num_examples: int | None = None
    repeats: int = 0
    median_seconds: float | None = None
    min_seconds: float | None = None
    max_seconds: float | None = None
    ratio_to_jax: float | None = None
    forwards_per_second: float | None = None
    gflop_per_second: float | None = None
    share_of_matrix_rate: float | None = None
    compile_seconds: float | None = None
    peak_megabytes: float | None = None
    note: str = ""


def write(path: Path, rows: list[Row], facts: dict[str, str]) -> None:
    """The rows as `path` with .csv, .md and .png; each is complete, or as it was."""
    names = [field.name for field in dataclasses.fields(Row)]
    text = io.StringIO()
    for key, value in facts.items():
        text.write(f"# {key}: {value}\n")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    runs.write_bytes(path.with_name(path.name + ".csv"), text.getvalue().encode())
    runs.write_bytes(path.with_name(path.name + ".md"), markdown(rows, facts).encode())
    runs.write_bytes(path.with_name(path.name + ".png"), figure(rows, facts))


_WHO = (("model", "model", "{}"), ("dataset", "series", "{}"), ("contender", "contender", "{}"))


def _spread(form: str) -> tuple[tuple[str, str, str], ...]:
    heads = {"median_seconds": "s", "min_seconds": "min", "max_seconds": "max"}
    return tuple((name, head, form) for name, head in heads.items())


_RATIO, _COMPILE = (
    ("ratio_to_jax", "times jax", "{:.2f}"),
    ("compile_seconds", "compile s", "{:.1f}"),
)
_PEAK = ("peak_megabytes", "peak MB", "{:.0f}")
COLUMNS = {  # field of a row, its head, its format
    "certify": (
        *_WHO,
        *_spread("{:.3f}"),
        _RATIO,
        ("forwards_per_second", "forwards/s", "{:.0f}"),
        ("gflop_per_second", "GFLOP/s", "{:.1f}"),
        ("share_of_matrix_rate", "of matrix rate", "{:.0%}"),
        _PEAK,
        _COMPILE,
    ),
    "train": (*_WHO, *_spread("{:.4f}"), _RATIO, _COMPILE, ("note", "", "{}")),
    "scaling": (
        ("model", "model", "{}"),
        ("note", "varied", "{}"),
        ("num_draws", "n", "{}"),
        ("num_masks", "m", "{}"),
        ("num_examples", "examples", "{}"),
        *_spread("{:.3f}"),
        _PEAK,
    ),
}


def markdown(rows: list[Row], facts: dict[str, str]) -> str:
    lines = ["# Benchmark", "", *(f"- {key}: {value}" for key, value in facts.items())]
    for what, head in TABLE_HEADS.items():
        part = [row for row in rows if row.what == what]
        if not part:
            continue
        columns = COLUMNS[what]
        lines += ["", f"## {head}", ""]
        if what == "certify":
            lines += [
                f"n = {part[0].num_draws}, m = {part[0].num_masks}, {part[0].num_examples} "
                f"example(s), {part[0].repeats} turn(s) in alternation; medians, with the fastest "
                "and the slowest turn. Peak MB: highest during a warm run, beyond the imported "
                "libraries.",
                "",
            ]
        lines.append("| " + " | ".join(title for _, title, _ in columns) + " |")
        lines.append("|" + "---|" * len(columns))
        for row in part:
            cells = [
                "" if getattr(row, name) is None else form.format(getattr(row, name))
                for name, _, form in columns
            ]
            lines.append("| " + " | ".join(cells) + " |")
        if what == "certify":
            lines += [""] + [
                f"- {row.model}, {row.dataset}, {row.contender}: {row.note}"
                for row in part
                if row.note and not row.contender.startswith("matrix")
            ]
        if what == "scaling":
            for model in dict.fromkeys(row.model for row in part):
                alike = [row for row in part if row.model == model]
                lines += [""] + [
                    f"- {model}, {straight_line(alike, varied)}"
                    for varied in ("num_draws", "num_masks", "num_examples")
                ]
    return "\n".join(lines) + "\n"


def straight_line(rows: list[Row], varied: str) -> str:
    """How far the measured times are from a line: a sentence."""
    points = [
        (getattr(row, varied), row.median_seconds)
        for row in rows
        if row.note == varied and row.median_seconds
    ]
    if len(points) < 3:
        return f"{varied}: too few points"
    sizes, seconds = np.array(points, float).T
    slope, start = np.polyfit(sizes, seconds, 1, w=1 / seconds)
    off = np.abs((start + slope * sizes) / seconds - 1).max()
    return (
        f"{varied}: {start:.3g} s + {slope:.3g} s each; the farthest point is {off:.1%} off the "
        "line"
    )


def figure(rows: list[Row], facts: dict[str, str]) -> bytes:
    """A PNG with one line of panels for certification, one for training, one for scaling."""
    parts = [what for what in PARTS if any(row.what == what for row in rows)]
    drawn = plots.new_figure(9.6, 3.6 * len(parts))
    panels = drawn.subfigures(len(parts), 1, squeeze=False)[:, 0]
    for what, panel in zip(parts, panels, strict=True):
        measured = [row for row in rows if row.what == what and row.median_seconds]
        measured = [row for row in measured if not row.contender.startswith("matrix")]
        (_lines if what == "scaling" else _points)(panel, measured, what)
    note = "; ".join(
        f"{key}: {facts[key]}" for key in ("date", "processor", "PyTorch") if key in facts
    )
    return plots.png(drawn, "Benchmark", note)


def _points(panel: Any, rows: list[Row], what: str) -> None:
    axes = panel.subplots()
    groups = list(dict.fromkeys((row.model, row.dataset) for row in rows))
    names = list(dict.fromkeys(row.contender for row in rows))
    width = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        own = [row for row in rows if row.contender == name]
        x = [groups.index((r.model, r.dataset)) + (number + 0.5) * width for r in own]
        middle = np.array([row.median_seconds for row in own])
        spread = [
            middle - [row.min_seconds for row in own],
            [row.max_seconds for row in own] - middle,
        ]
        colour = plots.COLOURS[number % len(plots.COLOURS)]
        axes.errorbar(x, middle, spread, fmt="o", color=colour, capsize=3, label=name)
    axes.set_xticks(
        np.arange(len(groups)) + 0.4, [f"{model}\n{data}" for model, data in groups], fontsize=7
    )
    unit = "an example" if what == "certify" else "a step"
    axes.set(yscale="log", ylabel=f"seconds {unit}", title=TABLE_HEADS[what])
    axes.margins(y=0.25)
    low, high = axes.get_ylim()
    named = range(2, 10) if high < 10 * low else (2, 5)  # the labels of all would overlap
    axes.yaxis.set_minor_locator(ticker.LogLocator(subs=named))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=7, ncols=max(1, len(names)), loc="upper left")


def _lines(panel: Any, rows: list[Row], what: str) -> None:
    panels = panel.subplots(1, 4)
    for number, model in enumerate(dict.fromkeys(row.model for row in rows)):
        colour = plots.COLOURS[number % len(plots.COLOURS)]
        for axes, varied in zip(
            panels[:3], ("num_draws", "num_masks", "num_examples"), strict=True
        ):
            line = [row for row in rows if row.note == varied and row.model == model]
            x = [getattr(row, varied) for row in line]
            axes.plot(x, [row.median_seconds for row in line], "o-", color=colour, label=model)
            axes.set(xlabel=varied)
        for varied, style in (("num_draws", "o-"), ("num_examples", "s--")):
            line = [row for row in rows if row.note == varied and row.model == model]
            line = [row for row in line if row.peak_megabytes is not None]
            x = [(row.num_draws or 1) * (row.num_examples or 1) for row in line]
            label = f"{model}, {varied}"
            y = [row.peak_megabytes for row in line]
            panels[3].plot(x, y, style, color=colour, label=label)
    panels[0].set(ylabel="seconds", title="Time")
    panels[3].set(xlabel="n x examples", ylabel="peak MB", title="Memory")
    for axes in panels:
        axes.grid(alpha=0.3)
        # Room above the points, however flat they lie.
        axes.set(xlim=(0, 1.1 * axes.get_xlim()[1]), ylim=(0, 1.1 * axes.get_ylim()[1]))
    panels[0].legend(frameon=False, fontsize=7)
    panels[3].legend(frameon=False, fontsize=6)
