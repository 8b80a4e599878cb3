"""Draws docs/what_a_certificate_means.png: noise, votes, a radius, and what more draws buy.

    python experiments/studies/figure_certificate.py

Everything in it is computed: generated CBF series, a nearest-class-mean classifier as the base
classifier, its votes under noise, the certificates of these votes. Seconds on one core.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from selfens_jax import certificates, smoothing, streams, synthetic
from selfens_jax.plots import COLOURS

FLAGS = flags.FLAGS
flags.DEFINE_string("output", "docs/what_a_certificate_means.png", "The file to write.")

BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK = COLOURS
CLASSES = ("cylinder", "bell", "funnel")
CLASS_COLOURS = (SKY, BLUE, YELLOW)
SIGMA, ALPHA, DRAWS = 0.8, 0.001, 1000
BUDGETS = (100, 1000, 10_000, 100_000)


def nearest_mean(means: jax.Array, x: jax.Array) -> jax.Array:
    """Logits (B, K): minus the squared distances of series (B, T, 1) to the class means (K, T)."""
    return -jnp.square(x[:, None, :, 0] - means).sum(axis=-1)


def votes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Series (N, T), their classes (N,) and their votes (N, K)."""
    x, y = synthetic.cbf(0, 330)
    train, test = slice(0, 30), slice(30, None)
    means = jnp.stack([x[train][y[train] == c].mean(axis=0) for c in (1, 2, 3)])
    counts = smoothing.count_votes(
        jax.tree_util.Partial(nearest_mean, means),
        x[test][..., None],
        sigma=SIGMA,
        num_draws=DRAWS,
        key=streams.stream(0, "certification"),
    )
    return x[test], y[test] - 1, counts


def draw_noise(axes: Axes, series: np.ndarray) -> None:
    time = np.arange(len(series))
    rng = np.random.default_rng(1)
    for _ in range(2):
        copy = series + SIGMA * rng.standard_normal(len(series))
        axes.plot(time, copy, color=SKY, linewidth=0.9)
    axes.plot(time, series, color=BLACK, linewidth=1.6, label="the series")
    axes.plot([], [], color=SKY, label=f"two of {DRAWS:,} noisy copies")
    axes.set(
        title=f"1  Add noise, {DRAWS:,} times  (sigma = {SIGMA:g})", xlabel="time step", ylabel="x"
    )
    axes.legend(loc="lower left", frameon=False, ncols=2, fontsize=9)
    axes.set_ylim(bottom=axes.get_ylim()[0] - 1)


def draw_votes(axes: Axes, counts: np.ndarray) -> None:
    """Draws votes as bars.

    Args:
      axes: where.
      counts: (2, K), one certified and one abstention.
    """
    result = certificates.certify_counts(counts, SIGMA, ALPHA)
    for row, (count, p_a) in enumerate(zip(counts, result.p_a, strict=True)):
        top, left = count.argmax(), 0.0
        for c in np.argsort(-count, kind="stable"):
            share = count[c] / count.sum()
            axes.barh(row, share, left=left, height=0.42, color=CLASS_COLOURS[c], edgecolor="white")
            if share > 0.2:  # wide enough for its words
                text = f"{CLASSES[c]} {count[c]}"
                colour = "white" if c == 1 else "black"
                axes.text(left + 0.015, row, text, va="center", color=colour, fontsize=10)
            left += share
        axes.plot([p_a, p_a], [row - 0.29, row + 0.29], color=ORANGE, linewidth=3)
        says = "abstains: it might be less than half"
        if result.prediction[row] >= 0:
            radius = certificates.format_radius(result.radius[row], digits=3)
            says = f"answers {CLASSES[top]}, radius {radius}"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(0.0, row - 0.4, says, va="center", fontsize=10, weight="bold", bbox=box)
        axes.text(
            p_a, row + 0.34, f"at least {p_a:.1%}", color=ORANGE, ha="center", va="top", bbox=box
        )
    axes.axvline(0.5, color="0.25", linestyle="--", linewidth=1)
    axes.text(0.505, -0.62, "half", color="0.25", va="center", fontsize=9)
    axes.spines["left"].set_visible(False)
    axes.set(title="2  Count the votes", xlim=(0, 1), ylim=(1.6, -0.75), yticks=[])
    axes.set_xlabel(f"share of the votes; orange: its lower bound, confidence {1 - ALPHA:.1%}")


def draw_changes(axes: Axes, series: np.ndarray, radius: float) -> None:
    length = len(series)
    spike, bump, shift = np.zeros((3, length))
    spike[np.argmax(series) // 2] = 1
    bump[length // 2 : length // 2 + 10] = 1
    shift[:] = 1
    rows = (
        (spike, ORANGE, "one step by {:.3f}"),
        (bump, GREEN, "ten steps by {:.3f}"),
        (shift, PINK, "every step by {:.3f}"),
    )
    for row, (change, colour, text) in enumerate(rows):
        change = 0.999 * radius * change / np.linalg.norm(change)
        base = series - 4.6 * row
        axes.plot(base + change, color=colour, linewidth=1.8)
        axes.plot(base, color=BLACK, linewidth=0.8)
        label = text.format(change.max())
        axes.text(length, base.mean() + 0.7, label, color=colour, ha="right", weight="bold")
    axes.set(
        title="3  Changes that cannot alter the answer",
        xlabel=f"time step; each change has an L2 norm just below {radius:.3f}",
        ylabel="x, x + change",
        yticks=[],
    )


def draw_budgets(axes: Axes) -> None:
    share = np.linspace(0.5, 0.99999, 2000)
    axes.plot(share, stats.norm.ppf(share), color="0.5", linestyle=":", label="n without limit")
    for n, colour in zip(BUDGETS, (ORANGE, BLUE, GREEN, BLACK), strict=True):
        top = np.unique(np.linspace(n // 2, n, 501).astype(int))
        result = certificates.certify_counts(np.stack([top, n - top], axis=-1), 1.0, ALPHA)
        sure = result.prediction == 0
        axes.plot(top[sure] / n, result.radius[sure], color=colour, label=f"n = {n:,}")
        cap = certificates.format_radius(result.radius[-1], digits=2)
        axes.plot([1], result.radius[-1:], "o", color=colour, markersize=4, clip_on=False)
        axes.text(1.012, result.radius[-1], cap, color=colour, va="center", weight="bold")
    axes.set(
        title="4  More draws: larger radii, fewer abstentions",
        xlabel="share of the votes for the top class (left of a curve: abstains)",
        ylabel="radius / sigma",
        xlim=(0.5, 1),
        ylim=(0, 4),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", frameon=False)


def figure() -> Figure:
    x, y, counts = votes()
    top, right = counts.max(axis=1), counts.argmax(axis=1) == y
    # One series with about nine tenths of the votes, and one with little more than half of them.
    sure = np.argmin(np.abs(top - 900) + DRAWS * ~right)
    unsure = np.argmin(np.abs(top - 520))
    certified = certificates.certify_counts(counts[sure], SIGMA, ALPHA)

    drawn = Figure(figsize=(11, 7.6), layout="constrained")
    ((noise, bars), (changes, budgets)) = drawn.subplots(2, 2)
    draw_noise(noise, x[sure])
    draw_votes(bars, counts[[sure, unsure]])
    draw_changes(changes, x[sure], float(certified.radius))
    draw_budgets(budgets)
    for axes in (noise, bars, changes, budgets):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set(weight="bold", size=12)
        axes.title.set_horizontalalignment("left")
        axes.title.set_x(0)
    drawn.supxlabel(
        f"Generated CBF series, nearest-class-mean classifier, n = {DRAWS:,}, alpha = {ALPHA:g}; "
        "all radii by selfens_jax.certificates",
        fontsize=8,
        color="0.35",
    )
    return drawn


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]!r}")
    FigureCanvasAgg(figure()).print_png(FLAGS.output)


if __name__ == "__main__":
    app.run(main)
