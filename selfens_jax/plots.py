"""Figures, in one style. Matplotlib is imported when one is drawn."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def certified_accuracy_curve(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    title: str,
    note: str = "",
    what: str = "certified accuracy",
) -> bytes:
    """A PNG of certified accuracy against radius.

    Args:
      curves: as in `draw_certified_accuracy`.
      title: above the axes.
      note: small print below the axes: what the certificates rest on.
      what: is counted: "certified accuracy", or "series certified" where labels are unknown.
    """
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    draw_certified_accuracy(axes, curves)
    axes.set_ylabel(f"{what} at r (%)")
    axes.set_title(title)
    axes.legend(frameon=False)
    return png(figure, title, note)


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def draw_certified_accuracy(
    axes: "Axes",
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    labels: Sequence[str] = (),
) -> None:
    """Draws the share of examples that are correct with a radius of at least r, against r.

    Args:
      curves: for each legend entry, (radius, correct) of the examples: (N,) each. An abstention is
        not correct. More curves than colours are told apart by their dashes.
      labels: all legend entries of a figure of several axes, so that one has one colour in all of
        them; by default those of `curves`.
    """
    labels = list(labels or curves)
    finite = [radius[np.isfinite(radius)] for radius, _ in curves.values()]
    highest = max((values.max() for values in finite if values.size), default=0.0)
    right = 1.05 * highest if highest else 1.0
    for label, (radius, correct) in curves.items():
        number = labels.index(label)
        # The share of examples that are correct with at least this radius falls at each radius.
        steps = np.sort(radius[correct])
        x = np.concatenate([[0.0], steps, [right]])
        y = np.concatenate([len(steps) - np.arange(len(steps) + 1), [0]]) / len(radius)
        axes.step(
            x,
            100 * np.append(y[:1], y[:-1]),
            where="pre",
            color=COLOURS[number % len(COLOURS)],
            linestyle=("-", "--")[number // len(COLOURS) % 2],
            label=label,
        )
    axes.set(
        xlim=(0, right),
        ylim=(0, 103),
        xlabel="radius r (L2 norm, in the units of the series)",
        ylabel="certified accuracy at r (%)",
    )
    axes.grid(alpha=0.3)


def burst_curve(
    lengths: np.ndarray,
    shares: np.ndarray,
    num_steps: int,
    title: str,
    note: str = "",
    what: str = "certified accuracy",
) -> bytes:
    """A PNG of certified accuracy against the length of bursts.

    Args:
      lengths: (L,) steps of the bursts.
      shares: (L,) of the series, for each.
      num_steps: T, for a second axis, of the share of the series.
      title, note, what: as in `certified_accuracy_curve`.
    """
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    axes.plot(lengths, 100 * shares, color=COLOURS[0], marker="o")
    axes.set(
        xlim=(0, 1.05 * lengths.max()),
        ylim=(0, 103),
        xlabel="burst length (time steps)",
        ylabel=f"{what} (%)",
        title=title,
    )
    axes.grid(alpha=0.3)
    percent = 100 / num_steps

    def to_percent(steps: "ArrayLike") -> np.ndarray:
        return np.asarray(steps) * percent

    def to_steps(share: "ArrayLike") -> np.ndarray:
        return np.asarray(share) / percent

    above = axes.secondary_xaxis("top", functions=(to_percent, to_steps))
    above.set_xlabel("share of the series (%)")
    return png(figure, title, note)


def perturbations(
    original: np.ndarray, adversarial: Mapping[str, np.ndarray], title: str, note: str = ""
) -> bytes:
    """A PNG of one series under attacks: a row for each, with the series and their difference.

    Of several channels it shows the one that the last attack changes most.

    Args:
      original: (T, C) series.
      adversarial: for each row's heading, the (T, C) series of that attack.
      title: above the axes.
      note: small print below the axes.
    """
    last = list(adversarial.values())[-1]
    channel = int(np.linalg.norm(last - original, axis=0).argmax())
    value = "value" if original.shape[1] == 1 else f"value, channel {channel + 1}"

    rows = len(adversarial)
    figure = new_figure(9.6, 1.2 + 2.1 * rows)
    axes = figure.subplots(rows, 2, sharex=True, sharey="col", squeeze=False)
    for (both, difference), (heading, series) in zip(axes, adversarial.items(), strict=True):
        both.plot(original[:, channel], color=COLOURS[0], label="original")
        both.plot(series[:, channel], color=COLOURS[1], linestyle="--", label="perturbed")
        both.set_title(heading)
        both.set_ylabel(f"{value}\n(units of the series)")
        difference.axhline(0, color="0.7", linewidth=0.8)
        difference.plot((series - original)[:, channel], color=COLOURS[2])
        difference.set_ylabel("perturbed - original\n(units of the series)")
        for either in (both, difference):
            either.grid(alpha=0.3)
    for bottom in axes[-1]:
        bottom.set_xlabel("time step")
    axes[0, 0].legend(frameon=False, ncols=2)
    figure.suptitle(title)
    return png(figure, title, note)


def png(figure: "Figure", title: str, note: str = "") -> bytes:
    """The figure as a PNG, with `note` in small print below it and both texts in its metadata."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    _set_note(figure, note)
    _make_drawable(figure)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Title": title, "Description": note})
    return buffer.getvalue()


def svg(figure: "Figure", title: str, note: str = "") -> bytes:
    """The figure as an SVG, as `png`; the same figure gives the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    _set_note(figure, note)
    _make_drawable(figure)
    buffer = io.BytesIO()
    metadata = {"Title": title, "Description": note, "Date": None}
    with matplotlib.rc_context({"svg.hashsalt": title}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata=metadata)
    return buffer.getvalue()


def _set_note(figure: "Figure", note: str) -> None:
    # An empty one too: a figure that is drawn again may have another.
    width = int(18 * figure.get_figwidth())  # characters that fit
    wrapped = "\n".join(textwrap.fill(line, width) for line in note.splitlines())
    figure.supxlabel(wrapped, fontsize=7, color="0.35")


def _make_drawable(figure: "Figure") -> None:
    """Shows names in texts as they are: $ is no formula, and every character has a glyph.

    What the usual font lacks comes from the first font of this machine that has it, else it is
    written as its code point.
    """
    from matplotlib import font_manager

    texts = [*figure.texts]  # with the title and the note
    for axes in figure.axes:
        legend = axes.get_legend()
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        texts += legend.get_texts() if legend else []

    families = ["DejaVu Sans"]  # comes with Matplotlib
    missing = set("".join(text.get_text() for text in texts)) - {"\n"}
    missing -= _glyphs(font_manager.findfont(families[0]))
    for font in sorted(font_manager.fontManager.ttflist, key=lambda f: f.name) if missing else ():
        if font.name in families or font.name.startswith("Last Resort"):  # which draws boxes
            continue
        if found := missing & _glyphs(font.fname):
            families.append(font.name)
            missing -= found
    names = {ord(character): f"<U+{ord(character):04X}>" for character in missing}
    for text in texts:
        text.set_parse_math(False)
        text.set_text(text.get_text().translate(names))
        text.set_fontfamily(families)


def _glyphs(file: str) -> set[str]:
    """The characters that a font file draws."""
    from matplotlib import font_manager

    try:
        return {chr(code) for code in font_manager.get_font(file).get_charmap()}
    except (OSError, RuntimeError):  # a font that is gone, or broken
        return set()
