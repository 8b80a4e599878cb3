"""Drawings in SVG that stretch with the page, with axes whose texts do not."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT = 1000, 400  # of a figure, in units that are stretched to the space there is


@dataclasses.dataclass(frozen=True)
class Axis:
    """Places the values low to high from start to end, in units of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def place(self, values: np.ndarray) -> np.ndarray:
        return self.start + (values - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, number: int, whole: bool = False) -> list[float]:
        """About so many round values."""
        from matplotlib.ticker import MaxNLocator

        locator = MaxNLocator(number, steps=[1, 2, 2.5, 5, 10], integer=whole)
        values = locator.tick_values(self.low, self.high)
        return [float(value) + 0.0 for value in values if self.low <= value <= self.high]


def spread(values: np.ndarray, points: int) -> np.ndarray:
    """Where to draw at most so many values: the ends, and the extremes of each stretch."""
    if len(values) <= points:
        return np.arange(len(values))
    length = math.ceil(len(values) / (points // 2 - 1))
    stretches = np.pad(values, (0, -len(values) % length), "edge").reshape(-1, length)
    extremes = np.stack([stretches.argmin(axis=1), stretches.argmax(axis=1)])
    inside = extremes + length * np.arange(len(stretches))
    return np.unique(np.append(inside, [0, len(values) - 1]))


def line(kind: str, x: np.ndarray, y: np.ndarray) -> str:
    tag = "polygon" if kind in ("area", "band") else "polyline"
    points = " ".join(f"{a},{b}" for a, b in zip(_short(x), _short(y), strict=True))
    return f'<{tag} class="{kind}" points="{points}"/>'


def _short(places: np.ndarray) -> list[str]:
    return [f"{place:.1f}".removesuffix(".0") for place in places]


def swatch(kind: str) -> str:
    """A sample of a line for a key."""
    shape = {"main": "M0 6H24", "bar": "M12 0V12"}.get(kind, "M0 0H24V12H0Z")
    return f'<svg viewBox="0 0 24 12" aria-hidden="true"><path class="{kind}" d="{shape}"/></svg>'


def plot(
    shapes: str,
    x: Axis,
    y: Axis,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    told: str,
    over: str,
    under: str,
) -> str:
    """Shapes with axes. The drawing stretches with the page; its texts are HTML and do not.

    told: what it shows, for readers who do not see it. over, under: texts at the axes.
    """
    across, up = _short(x.place(np.array(x_ticks))), _short(y.place(np.array(y_ticks)))
    grid = "".join(f"M{a} 0V{HEIGHT}" for a in across) + "".join(f"M0 {b}H{WIDTH}" for b in up)
    texts = "".join(
        f'<span class="x" style="left:{float(a) / WIDTH:.2%}">{text}</span>'
        for a, text in zip(across, _texts(x_ticks), strict=True)
    ) + "".join(
        f'<span class="y" style="top:{float(b) / HEIGHT:.2%}">{text}</span>'
        for b, text in zip(up, _texts(y_ticks), strict=True)
    )
    return (
        f'<div class="plot"><svg role="img" aria-label="{told}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'preserveAspectRatio="none"><path class="grid" d="{grid}"/>{shapes}</svg>'
        f'<div aria-hidden="true">{texts}<span class="over">{over}</span>'
        f'<span class="under">{under}</span></div></div>'
    )


def _texts(ticks: Sequence[float]) -> list[str]:
    """Of ticks, with the digits that tell them apart."""
    precision = 6
    if len(ticks) > 1:
        spread = math.log10(np.abs(ticks).max() / (ticks[1] - ticks[0]))
        precision = max(precision, 2 + math.ceil(spread))
    return [f"{tick:.{precision}g}".replace("-", "−") for tick in ticks]
