"""Runs the Python of the pages, writes what it prints into them, and draws their pictures.

    python docs/pictures.py [PAGE ...]        # tutorial and choosing; minutes on two cores

A page is run from top to bottom, in a folder of its own. A block ```python is run; a block ```text
that follows it holds what it printed. A block ```py is only shown: it needs what the page lacks.
"""

import argparse
import contextlib
import io
import os
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from selfens_jax import plots

DOCS = pathlib.Path(__file__).parent
BLOCK = re.compile(r"```python\n(.*?)```\n(\n```text\n(.*?)```\n)?", re.DOTALL)
BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK = plots.COLOURS

Namespace = dict[str, Any]


def run(text: str, name: str) -> tuple[str, Namespace]:
    """The page with what its code prints now, and the names that the code leaves."""
    namespace: Namespace = {}

    def with_output(match: re.Match) -> str:
        code, shown, _ = match.groups()
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, name, "exec"), namespace)
        if bool(printed.getvalue()) != bool(shown):
            raise SystemExit(f"{name}: a block prints and has no ```text, or the reverse:\n{code}")
        lines = "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines())
        return f"```python\n{code}```\n" + (f"\n```text\n{lines}```\n" if shown else "")

    with tempfile.TemporaryDirectory() as folder:
        before = os.getcwd()
        os.chdir(folder)
        try:
            return BLOCK.sub(with_output, text), namespace
        finally:
            os.chdir(before)


# The tutorial's


def draw_series(page: Namespace) -> bytes:
    """Two series of each class."""
    X, y = page["X_train"], page["y_train"]
    figure = plots.new_figure(7.4, 2.4)
    for axes, label in zip(figure.subplots(1, 3, sharey=True), np.unique(y), strict=True):
        for series, colour in zip(X[y == label], (BLUE, SKY), strict=False):
            axes.plot(series, color=colour)
        axes.set(title=label, xlabel="time step")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("units of the series")
    return plots.png(figure, "Two series of each class")


def draw_noise(page: Namespace) -> bytes:
    """One series under noise of three sigmas."""
    X, y = page["X_train"], page["y_train"]
    series = X[np.argmax(y == "funnel")]
    rng = np.random.default_rng(0)
    figure = plots.new_figure(7.4, 2.4)
    for axes, sigma in zip(figure.subplots(1, 3, sharey=True), (0.2, 0.8, 3.2), strict=True):
        axes.plot(series + sigma * rng.standard_normal(len(series)), color=SKY, linewidth=0.9)
        axes.plot(series, color=BLACK, linewidth=1.2)
        axes.set(title=f"sigma = {sigma:g}", xlabel="time step")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("units of the series")
    return plots.png(figure, "A series under noise")


def draw_curve(page: Namespace) -> bytes:
    """Certified accuracy against radius."""
    result, y = page["result"], page["y_test"]
    curve = (np.asarray(result.radius), np.asarray(result.label == y))
    note = f"{len(y)} test series, sigma = 0.8, n = 1000, alpha = 0.001."
    return plots.certified_accuracy_curve({"this classifier": curve}, "Certified accuracy", note)


def draw_growing_change(page: Namespace) -> bytes:
    """The votes for one series while a change to it grows, beside its radius."""
    clf, X, result = page["clf"], page["X_test"], page["result"]
    certified = np.flatnonzero(~np.asarray(result.abstained))
    radius = np.asarray(result.radius)
    row = certified[np.argsort(radius[certified])[len(certified) // 2]]
    series = X[row]
    others = page["X_train"][page["y_train"] != result.label[row]]
    nearest = others[np.linalg.norm(others - series, axis=1).argmin()] - series
    bump = (np.abs(np.arange(len(series)) - len(series) // 3) < 8).astype(float)
    norms = np.linspace(0, 8 * radius[row], 17)

    figure = plots.new_figure(7.4, 3.4)
    left, right = figure.subplots(1, 2)
    lines = left.plot(series, color=BLACK, label="the series")
    column = list(clf.classes_).index(result.label[row])
    ways = (("changed towards another class", nearest, ORANGE), ("a bump", bump, GREEN))
    for name, way, colour in ways:
        unit = way / np.linalg.norm(way)
        votes = clf.predict_proba(series + norms[:, None] * unit, num_draws=1000)[:, column]
        right.plot(norms, 100 * votes, "o-", markersize=3, color=colour)
        lines += left.plot(series + radius[row] * unit, color=colour, linewidth=1, label=name)
    strip = right.axvspan(0, radius[row], color=SKY, alpha=0.4, label="below the radius")
    right.axhline(50, color="0.4", linestyle="--", linewidth=1)
    right.set(xlabel="L2 norm of the change", ylabel=f"votes for {result.label[row]} (%)")
    right.set(ylim=(0, 103), xlim=(0, norms[-1]))
    left.set(xlabel="time step", title=f"changes of norm {radius[row]:.2f}, the radius")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(handles=[*lines, strip], loc="outside lower center", ncols=4, frameon=False)
    return plots.png(figure, "Votes under growing changes")


# Choosing sigma and n


def draw_sigmas(page: Namespace) -> bytes:
    """A curve of certified accuracy for each sigma."""
    y = page["y_test"]
    curves = {
        f"sigma = {sigma:g}": (np.asarray(result.radius), np.asarray(result.label == y))
        for sigma, result in page["results"].items()
    }
    note = f"LSTM-FCN, {len(y)} test series, n = 200, alpha = 0.001."
    return plots.certified_accuracy_curve(curves, "One network for each sigma", note)


PICTURES: dict[str, dict[str, Callable[[Namespace], bytes]]] = {
    "tutorial": {
        "tutorial_series.png": draw_series,
        "tutorial_noise.png": draw_noise,
        "tutorial_curve.png": draw_curve,
        "tutorial_growing_change.png": draw_growing_change,
    },
    "choosing": {"choosing_sigma.png": draw_sigmas},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs the pages' Python and draws their pictures.")
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=" or ".join(PICTURES))
    pages = parser.parse_args().pages or list(PICTURES)
    if unknown := set(pages) - set(PICTURES):
        parser.error(f"no page is called {unknown.pop()}; there are {', '.join(PICTURES)}")
    for page in pages:
        file = DOCS / f"{page}.md"
        before = file.read_text()
        text, namespace = run(before, file.name)
        for name, draw in PICTURES[page].items():
            (DOCS / name).write_bytes(draw(namespace))
        if file.read_text() != before:
            raise SystemExit(f"{file.name} has been edited meanwhile: run this again")
        file.write_text(text)


if __name__ == "__main__":
    main()
