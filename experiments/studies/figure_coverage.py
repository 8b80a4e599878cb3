"""Draws docs/what_a_radius_covers.png: one series, its radius, and changes as long as the radius.

    python experiments/studies/figure_coverage.py

Everything in it is computed: heartbeats made of bumps, with T waves up or down, a nearest-class-
mean classifier as the base classifier, its certificates. Seconds on one core.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from selfens_jax import certificates, certify, coverage, exact
from selfens_jax.plots import COLOURS

FLAGS = flags.FLAGS
flags.DEFINE_string("picture", "docs/what_a_radius_covers.png", "The file to write.")

BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK = COLOURS
SIGMA, ALPHA, LENGTH = 0.4, 0.001, 128
CYCLES = 4  # of the hum that is drawn


def nearest_mean(means: jax.Array, x: jax.Array) -> jax.Array:
    """Logits (B, K): minus the squared distances of series (B, T, 1) to the class means (K, T)."""
    return -jnp.square(x[:, None, :, 0] - means).sum(axis=-1)


def beats(t_wave: float, number: int, seed: int) -> np.ndarray:
    """Heartbeats (N, T) in mV, as bumps, with a T wave of about this height."""
    rng, time = np.random.default_rng(seed), np.arange(LENGTH)

    def bump(at: int, width: float, height: np.ndarray) -> np.ndarray:
        return height[:, None] * np.exp(-(((time - at) / width) ** 2) / 2)

    heights = np.array([0.2, 1.4, t_wave]) * rng.normal(1, 0.15, (number, 3))
    p, r, t = heights.T
    beat = bump(28, 5, p) + bump(52, 5, r) + bump(88, 9, t)
    return beat + 0.01 * rng.standard_normal((number, LENGTH))


def certified_series() -> tuple[np.ndarray, float]:
    """The beat (T,) of the median radius among those of the first class, and its radius."""
    means = jnp.stack([beats(t_wave, 30, 0).mean(axis=0) for t_wave in (0.4, -0.3)])
    x = beats(0.4, 31, 1)
    found = certify(jax.tree_util.Partial(nearest_mean, means), x, sigma=SIGMA, alpha=ALPHA)
    median = np.argsort(found.radius)[len(x) // 2]
    return x[median], float(found.radius[median])


def draw_band(axes: Axes, x: np.ndarray, change: np.ndarray, name: str, size: str) -> None:
    """Draws a change and its opposite about the series."""
    time = np.arange(len(x))
    axes.fill_between(time, x - change, x + change, color=SKY, alpha=0.6, linewidth=0)
    axes.plot(time, x, color=BLACK, linewidth=0.8)
    axes.set_title(f"{name}\nbelow {size}", fontsize=10)


def draw_samples(axes: Axes, x: np.ndarray, steps: np.ndarray, by: float, name: str) -> None:
    axes.vlines(steps, x[steps] - by, x[steps] + by, color=ORANGE, linewidth=2.5)
    axes.plot(x, color=BLACK, linewidth=0.8)
    axes.set_title(f"{name}\nbelow {exact.shown(by, 3)}", fontsize=10)


def figure() -> Figure:
    x, radius = certified_series()
    length = len(x)
    time = np.arange(length)
    found = coverage.cover(radius, x, frequency=CYCLES / length)
    size = {name: exact.shown(getattr(found, name), 3) for name in coverage.SIZES}
    hum = found.sinusoid * np.sin(2 * np.pi * found.frequency * time)
    drift = found.drift * time / (length - 1)

    drawn = Figure(figsize=(11, 5.4), layout="constrained")
    panels = drawn.subplots(2, 4, sharex=True, sharey=True).ravel()
    draw_band(panels[0], x, np.full(length, found.offset), "constant offset", size["offset"])
    gain = exact.percent(found.gain)
    draw_band(panels[1], x, found.gain * x, "gain error", gain)
    draw_band(panels[2], x, drift, "linear drift from 0", f"{size['drift']} at the end")
    draw_band(panels[3], x, hum, f"hum of {CYCLES} cycles, any phase", size["sinusoid"])
    draw_samples(panels[4], x, np.array([length // 3]), found.sample, "one sample, any")
    ten = np.linspace(8, length - 9, 10).astype(int)
    draw_samples(panels[5], x, ten, found.samples, "ten samples, any, each")
    step = found.quantisation
    panels[6].step(time, step * np.rint(x / step), where="mid", color=GREEN, linewidth=1.5)
    panels[6].plot(x, color=BLACK, linewidth=0.8)
    panels[6].set_title(f"rounding to steps\nbelow {size['quantisation']}", fontsize=10)
    late = coverage.delayed(x, found.delay)
    panels[7].plot(late, color=PINK, linewidth=1.8)
    panels[7].plot(x, color=BLACK, linewidth=0.8)
    steps = f"{found.delay} step{'s' * (found.delay > 1)}"
    panels[7].set_title(f"late or early\nup to {steps}", fontsize=10)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[4:]:
        axes.set_xlabel("time step")
    for axes in panels[::4]:
        axes.set_ylabel("mV")
    drawn.supxlabel(
        f"Radius {certificates.format_radius(radius, 3)} mV at alpha = {ALPHA:g}: with probability "
        f"{1 - ALPHA:g} none of these changes alters the answer, nor any other of a norm below it. "
        "Generated beats, nearest-class-mean classifier.",
        fontsize=8,
        color="0.35",
    )
    return drawn


def main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]!r}")
    FigureCanvasAgg(figure()).print_png(FLAGS.picture)


if __name__ == "__main__":
    app.run(main)
