"""Figures, in one style. Matplotlib is imported when one is drawn."""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def certified_accuracy_curve(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str, note: str = ""
) -> bytes:
    """A PNG of certified accuracy against radius.

    Args:
      curves: for each legend entry, (radius, correct) of the examples: (N,) each. An abstention
        is not correct.
      note: small print below the axes: what the certificates rest on.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    finite = [radius[np.isfinite(radius)] for radius, _ in curves.values()]
    highest = max((values.max() for values in finite if values.size), default=0.0)
    right = 1.05 * highest if highest else 1.0
    for colour, (label, (radius, correct)) in zip(
        np.resize(COLOURS, len(curves)), curves.items(), strict=True
    ):
        # The share of examples that are correct with at least this radius falls at each radius.
        steps = np.sort(radius[correct])
        x = np.concatenate([[0.0], steps, [right]])
        y = np.concatenate([len(steps) - np.arange(len(steps) + 1), [0]]) / len(radius)
        axes.step(x, 100 * np.append(y[:1], y[:-1]), where="pre", color=colour, label=label)
    axes.set(
        xlim=(0, right),
        ylim=(0, 103),
        xlabel="radius r (L2 norm, in the units of the series)",
        ylabel="certified accuracy at r (%)",
        title=title,
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", frameon=False)
    return png(figure, title, note)


def png(figure: "Figure", title: str, note: str = "") -> bytes:
    """The figure as a PNG, with `note` in small print below it and both texts in its metadata."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if note:
        figure.supxlabel(note, fontsize=7, color="0.35")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Title": title, "Description": note})
    return buffer.getvalue()
