"""Draws docs/what_a_burst_certificate_covers.png: windows over a series, and measured curves.

    python experiments/studies/figure_bursts.py

The series is generated, the curves are those of experiments/results/bursts.csv. Takes seconds.
"""

import csv
from pathlib import Path

import numpy as np
from absl import app
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from selfens_jax import bursts, synthetic
from selfens_jax.plots import COLOURS

PICTURE = "docs/what_a_burst_certificate_covers.png"


RESULTS = Path(__file__).parents[1] / "results" / "bursts.csv"
BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK = COLOURS
LENGTH, BURST, FIRST = 128, 8, 61
NETWORKS = {  # (model, ensemble): its words and colour
    ("inception_time", "mw"): ("InceptionTime, windows hidden in training", BLUE),
    ("lstm_fcn", "mw"): ("LSTM-FCN, windows hidden in training", ORANGE),
    ("lstm_fcn", "single"): ("LSTM-FCN, trained without", BLACK),
}


def draw_windows(axes: Axes) -> None:
    """A series, a burst in it, and the windows, of which one hides all of the burst."""
    windows = bursts.windows(LENGTH, BURST)
    series = synthetic.cbf(3, 3)[0][0]
    changed = series.copy()
    changed[FIRST : FIRST + BURST] = np.random.default_rng(1).uniform(-6, 8, BURST)
    axes.plot(changed, color=ORANGE, linewidth=1.5, label=f"a burst of {BURST} steps")
    axes.plot(series, color=BLACK, linewidth=0.9, label="the series")
    hides = np.asarray(windows.hidden[:, FIRST : FIRST + BURST].all(axis=1))
    for row, (start, covers) in enumerate(zip(windows.starts, hides, strict=True)):
        height = -4.4 - 0.42 * row
        axes.plot([start, start + windows.size], [height] * 2, linewidth=3, solid_capstyle="butt",
                  color=ORANGE if covers else SKY)  # fmt: skip
    axes.text(
        0,
        -4.8 - 0.42 * len(hides),
        f"{len(hides)} windows of {windows.size} steps: every burst of {BURST} lies inside one",
        va="top",
        fontsize=9,
    )
    axes.set(xlabel="time step", yticks=[], ylim=(-6.6 - 0.42 * len(hides), 9.5))
    axes.set_title("Windows, hidden one and two at a time")
    axes.legend(frameon=False, loc="upper right", fontsize=9)


def measured() -> list[dict[str, str]]:
    with RESULTS.open() as file:
        return list(csv.DictReader(file))


def draw_curves(axes: Axes) -> None:
    """Certified accuracy on CBF against the length of bursts, each seed a line."""
    for (model, ensemble), (words, colour) in NETWORKS.items():
        own = [
            row
            for row in measured()
            if (row["dataset"], row["model"], row["ensemble"]) == ("CBF", model, ensemble)
        ]
        for number, seed in enumerate(sorted({row["seed"] for row in own})):
            rows = [row for row in own if row["seed"] == seed]
            lengths = [int(row["burst"]) for row in rows]
            shares = [100 * float(row["certified_and_right"]) for row in rows]
            axes.plot(lengths, shares, "o-", markersize=4, color=colour, label=words * (not number))
    axes.set(xlim=(0, 34), ylim=(0, 103), xlabel="burst length (time steps of 128)")
    axes.set_ylabel("certified and right (%)")
    axes.set_title("Certified accuracy, CBF, 300 test series")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9, loc="lower left")


def figure() -> Figure:
    drawn = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = drawn.subplots(1, 2)
    draw_windows(left)
    draw_curves(right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return drawn


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]!r}")
    FigureCanvasAgg(figure()).print_png(PICTURE)


if __name__ == "__main__":
    app.run(main)
