"""The paper's Figures 2 to 6, from what has been measured, with exact certificates."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from reproduction.captions import NOT_MEASURED, described
from reproduction.measured import ALPHA, Margins, certified, margins
from reproduction.plan import ENSEMBLES, NUM_MASKS, Cell, Grid, Settings
from scipy import stats

from selfens_jax import certificates, plots, runs

RENYI_ORDERS = (1.01, 2.0, 4.0, 8.0, 16.0)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure; None where nothing of it has been measured."""

    name: str
    title: str
    caption: str
    figure: Figure | None

    def paths(self, results_dir: Path) -> list[Path]:
        return [results_dir / "figures" / f"{self.name}.{kind}" for kind in ("png", "svg")]

    def write(self, results_dir: Path) -> None:
        """As PNG and SVG, with the caption below."""
        if self.figure is not None:
            for path, draw in zip(self.paths(results_dir), (plots.png, plots.svg), strict=True):
                runs.write_bytes(path, draw(self.figure, self.title, self.caption))

    def text(self, results_dir: Path) -> str:
        """For a terminal: where it is."""
        where = ", ".join(map(str, self.paths(results_dir)))
        shown = NOT_MEASURED if self.figure is None else where
        return f"{self.title}\n\n{shown}\n\n{self.caption}"


def figure2() -> Drawing:
    """L^2 / sigma^2 against p_A with p_B = 1 - p_A: Eq. (6) at single orders, and its supremum."""
    p_a = np.linspace(0.5, 0.999, 500)
    figure = plots.new_figure(6.4, 4.2)
    axes = figure.subplots()
    for order, colour in zip(RENYI_ORDERS, plots.COLOURS, strict=False):
        squared = certificates.renyi_squared(order, p_a, 1 - p_a)
        axes.plot(p_a, squared, color=colour, linewidth=1, label=f"Renyi, order {order:g}")
    best = certificates.renyi_radius(p_a, 1 - p_a, 1.0) ** 2
    cohen = certificates.cohen_radius(p_a, 1 - p_a, 1.0) ** 2
    axes.plot(p_a, best, color="0.4", linewidth=2.5, linestyle=":", label="Renyi, best order")
    axes.plot(p_a, cohen, color="black", linewidth=1.8, label="Cohen et al., tight")
    axes.set(
        title="Squared radius against the top class's probability",
        xlabel="p_A, probability of the top class under noise (p_B = 1 - p_A)",
        ylabel="L² / σ²",
        xlim=(0.5, 1),
        ylim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", frameon=False)
    return Drawing(
        "figure2",
        "Figure 2: L² against p_A",
        "Theorem 4.1 (Eq. 6) at several orders alpha of the Renyi divergence, at the best order, "
        "and Cohen's bound, which no valid bound exceeds. For p_B = 1 - p_A orders near 1 and 2 "
        "coincide: both are -log(4 p_A p_B). Computed; nothing is measured.",
        figure,
    )


def figure3(results_dir: Path, grid: Grid, settings: Settings) -> list[Drawing]:
    """Margin and score of one example under noise, for each ensemble."""
    drawings = []
    for one in panels(dataclasses.replace(grid, seeds=grid.seeds[:1])):
        found = {
            cell.ensemble: measured
            for cell in one.cells()
            if (measured := margins(results_dir, cell, settings)) is not None
        }
        figure = draw_margins(found) if found else None
        (dataset,), (model,), (sigma,) = one.datasets, one.models, one.sigmas
        index = next(iter(found.values())).indices[0] if found else 0
        drawings.append(
            Drawing(
                f"figure3-{dataset}-{model}-sigma{sigma:g}",
                f"Figure 3: margin and score, {dataset}, {model}, sigma {sigma:g}",
                f"Test series {index} under {settings.num_draws} noise draws, the same for every "
                "ensemble. Left: the margin z = c_A - c_B of the mean logits, A the most voted "
                "class of that ensemble and B the class of the next highest mean logit. Right: "
                f"c_A. Dashed: means; grey: z = 0. m = {NUM_MASKS}; "
                f"{described(results_dir, one, settings, what='')}{absent(one.ensembles, found)}",
                figure,
            )
        )
    return drawings


def draw_margins(found: Mapping[str, Margins]) -> Figure:
    figure = plots.new_figure(10, 4.2)
    left, right = figure.subplots(1, 2)
    for ensemble, measured in found.items():
        colour = plots.COLOURS[ENSEMBLES.index(ensemble)]
        for axes, values in ((left, measured.margin[0]), (right, measured.score[0])):
            label = f"{ensemble}: mean {values.mean():.2f}, variance {values.var(ddof=1):.3g}"
            axes.hist(values, bins="fd", density=True, color=colour, alpha=0.3)
            if values.std() > 0:
                grid = np.linspace(values.min(), values.max(), 300)
                density = stats.gaussian_kde(values)(grid)
                axes.plot(grid, density, color=colour, linewidth=1.6, label=label)
            axes.axvline(values.mean(), color=colour, linestyle="--", linewidth=1)
    left.axvline(0, color="0.4", linewidth=1)
    left.set(title="margin", xlabel="z = c_A - c_B (logits)", ylabel="density (1 / logit)")
    right.set(title="score of the top class", xlabel="c_A (logits)", ylabel="density (1 / logit)")
    for axes in (left, right):
        axes.set_ylim(top=1.5 * axes.get_ylim()[1])  # room for the legend
        axes.legend(loc="upper left", framealpha=0.9, edgecolor="none", fontsize=8)
    return figure


def figure4(results_dir: Path, grid: Grid, settings: Settings) -> list[Drawing]:
    """Certified accuracy against radius, a panel for each sigma."""
    drawings = []
    for dataset in grid.datasets:
        for model in grid.models:
            one = dataclasses.replace(grid, datasets=(dataset,), models=(model,))
            curves = {
                f"sigma {panel.sigmas[0]:g}": {
                    ensemble: pooled(results_dir, cells_of(panel, ensemble), settings)
                    for ensemble in grid.ensembles
                }
                for panel in panels(one)
            }
            drawings.append(
                drawing_of_curves(
                    f"figure4-{dataset}-{model}",
                    f"Figure 4: certified accuracy for several sigma, {dataset}, {model}",
                    f"m = {NUM_MASKS}",
                    curves,
                    described(results_dir, one, settings),
                )
            )
    return drawings


def figure5(
    results_dir: Path, grid: Grid, settings: Settings, sizes: Sequence[int]
) -> list[Drawing]:
    """Certified accuracy against radius for several ensemble sizes, a panel for each ensemble."""
    drawings = []
    for one in panels(grid):
        (dataset,), (model,), (sigma,) = one.datasets, one.models, one.sigmas
        curves = {
            ensemble: {
                f"m = {size}": pooled(results_dir, cells_of(one, ensemble), settings, size)
                for size in sizes
            }
            for ensemble in grid.ensembles
        }
        drawings.append(
            drawing_of_curves(
                f"figure5-{dataset}-{model}-sigma{sigma:g}",
                f"Figure 5: ensemble size, {dataset}, {model}, sigma {sigma:g}",
                "m masks on one network",
                curves,
                described(results_dir, one, settings),
                compared="m =",
            )
        )
    return drawings


def figure6(
    results_dir: Path, grid: Grid, settings: Settings, keeps: Sequence[float]
) -> list[Drawing]:
    """Certified accuracy against radius for several keep ratios, a panel for each ensemble."""
    drawings = []
    for one in panels(grid):
        (dataset,), (model,), (sigma,) = one.datasets, one.models, one.sigmas
        curves = {}
        for ensemble in [e for e in grid.ensembles if e in ("mb", "mc")]:
            cells = cells_of(one, ensemble)
            curves[ensemble] = {
                f"keep {keep:g}": pooled(
                    results_dir, [dataclasses.replace(c, keep=keep) for c in cells], settings
                )
                for keep in keeps
            }
            if "single" in grid.ensembles:
                reference = cells_of(one, "single")
                curves[ensemble]["single"] = pooled(results_dir, reference, settings)
        drawings.append(
            drawing_of_curves(
                f"figure6-{dataset}-{model}-sigma{sigma:g}",
                f"Figure 6: keep ratio, {dataset}, {model}, sigma {sigma:g}",
                f"m = {NUM_MASKS}, a network for each keep ratio (the share of time steps that a "
                "mask keeps)",
                curves,
                described(results_dir, one, settings),
                compared="keep",
            )
        )
    return drawings


# What the figures share


Curve = tuple[np.ndarray, np.ndarray]  # radius and correct, (N,) each


def panels(grid: Grid) -> list[Grid]:
    """The grid cut into one for each data set, model and sigma."""
    return [
        dataclasses.replace(grid, datasets=(dataset,), models=(model,), sigmas=(sigma,))
        for dataset in grid.datasets
        for model in grid.models
        for sigma in grid.sigmas
    ]


def cells_of(grid: Grid, ensemble: str) -> list[Cell]:
    return dataclasses.replace(grid, ensembles=(ensemble,)).cells()


def pooled(
    results_dir: Path, cells: Sequence[Cell], settings: Settings, num_masks: int = NUM_MASKS
) -> Curve | None:
    """Radius and correctness of the examples of all seeds together; None unless all were run."""
    found = [certified(results_dir, cell, settings, num_masks) for cell in cells]
    measured = [one for one in found if one is not None]
    if len(measured) < len(found):
        return None
    radius = np.concatenate([one.exact.radius for one in measured])
    return radius, np.concatenate([one.correct for one in measured])


def drawing_of_curves(
    name: str,
    title: str,
    what: str,
    curves: Mapping[str, Mapping[str, Curve | None]],
    ending: str,
    compared: str = "",
) -> Drawing:
    """Panels side by side, each with its curves; those not measured are named in the caption.

    With `compared`, a panel is drawn only if two of its labels that begin so were measured.
    """
    measured = {
        panel: {label: curve for label, curve in lines.items() if curve is not None}
        for panel, lines in curves.items()
    }
    left_out = [
        f"{panel} {label}"
        for panel, lines in curves.items()
        for label in lines
        if label not in measured[panel]
    ]
    caption = (
        f"Exact certificates at alpha {ALPHA:g}; an abstention is not correct. {what}; {ending}"
    )
    if left_out:
        caption += f" Not measured: {', '.join(left_out)}."
    least = 2 if compared else 1
    drawn = {
        panel: lines
        for panel, lines in measured.items()
        if sum(label.startswith(compared) for label in lines) >= least
    }
    if not drawn:
        return Drawing(name, title, caption, None)
    columns = min(len(drawn), 2)
    rows = -(-len(drawn) // columns)
    figure = plots.new_figure(4.6 * columns + 0.6, 4.2 * rows)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    labels = list(dict.fromkeys(label for lines in curves.values() for label in lines))
    for number, (panel, lines) in enumerate(drawn.items()):
        axes: Axes = grid.flat[number]
        plots.draw_certified_accuracy(axes, lines, labels)
        axes.set_title(panel)
        axes.legend(frameon=False)
        axes.set_xlabel("radius r (L2 norm, units of the series)")
        if number % columns:
            axes.set_ylabel("")
    for axes in grid.flat[len(drawn) :]:
        axes.remove()
    return Drawing(name, title, caption, figure)


def absent(wanted: Sequence[str], found: Mapping[str, object]) -> str:
    left_out = [name for name in wanted if name not in found]
    return f" Not measured: {', '.join(left_out)}." if left_out else ""
