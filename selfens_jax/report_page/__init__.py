"""One self-contained HTML page on a certification. Pure: the same arguments give the same bytes.

The page loads nothing from elsewhere and can be read without its script, which sorts and filters
the table of series. All texts are escaped; the page's own policy lets no other script run.

What a radius covers
--------------------
A certificate covers every change d of a series (T, C) with ||d||_2 < R. Two of them are drawn:

* all values shifted by the same o: the norm is |o| sqrt(T C), so |o| < o* = R / sqrt(T C);
* one value alone moved by o: the norm is |o|, so |o| < R.

If every |d_t,c| is below o*, then ||d||^2 < T C o*^2 = R^2: whatever stays inside the band of the
first is covered. What leaves it may be covered too, and what stays within +-R of the series, like
the second, need not be. `coverage` has these and other changes, with the proof; a table lists them.
"""

import base64
import dataclasses
import hashlib
import html
import math
import unicodedata
from collections.abc import Sequence

import numpy as np

from selfens_jax.certificates import format_radius
from selfens_jax.coverage import cover, shift_covered
from selfens_jax.errors import UserError, check_series
from selfens_jax.report_page.drawings import HEIGHT, WIDTH, Axis, line, plot, spread, swatch
from selfens_jax.report_page.style import ALERT, SCRIPT, STYLE

SMALL_POINTS = 100  # of a line in the table
LARGE_POINTS = 800  # of a line in a figure
ALL_SMALL_POINTS = 500_000  # in the table, 7 bytes each: later rows go without a line
MAX_CHANNELS = 10  # that are drawn


@dataclasses.dataclass(frozen=True)
class _Results:
    """The checked arguments, and what follows from them."""

    valid: bool
    names: list[str]  # HTML, of the classes, and last, where -1 finds it, of abstention
    index: np.ndarray  # (N,)
    label: np.ndarray  # (N,), -1 where unknown
    prediction: np.ndarray  # (N,), -1 where abstaining
    radius: np.ndarray  # (N,) float64
    series: np.ndarray  # (N, T, C) float32
    digits: int  # of a radius, after the point

    @property
    def certified(self) -> np.ndarray:
        return self.prediction >= 0

    @property
    def known(self) -> np.ndarray:
        return self.label >= 0

    @property
    def right(self) -> np.ndarray:
        return self.certified & (self.prediction == self.label)

    @property
    def word(self) -> str:
        return "certified" if self.valid else "“certified”"


def certification_page(
    *,
    title: str,
    statement: str,
    valid: bool,
    summary_rows: Sequence[tuple[str, str]],
    settings_rows: Sequence[tuple[str, str]],
    record_rows: Sequence[tuple[str, str]],
    classes: Sequence[str],
    abstain_name: str,
    index: np.ndarray,
    label: np.ndarray,
    prediction: np.ndarray,
    radius: np.ndarray,
    series: np.ndarray,
    note: str = "",
) -> bytes:
    """The page, in UTF-8.

    Args:
      title: what was certified.
      statement: what the certificates say, in words.
      valid: whether they hold; if not, the page says so at its top and where it speaks of them.
      summary_rows: what the certificates come to; (what, value).
      settings_rows: how they were made.
      record_rows: the versions, data and digests that they rest on.
      classes: K names.
      abstain_name: what stands for no class.
      index: (N,) places in the data set.
      label: (N,) classes, -1 where unknown.
      prediction: (N,) classes, -1 where abstaining.
      radius: (N,) L2, in the units of the series; infinite ones are taken.
      series: (N, T, C), finite.
      note: small print at the end.

    Raises:
      UserError: if the arrays do not fit together, or hold what is no class, radius or series.
    """
    series, num_classes = check_series(series), len(classes)
    index, label, prediction, radius = map(np.asarray, (index, label, prediction, radius))
    shapes = [array.shape for array in (index, label, prediction, radius)]
    if not series.size or set(shapes) != {series.shape[:1]}:
        raise UserError(
            "a page needs N series (N, T, C) of at least one value, and N indices, labels, "
            f"predictions and radii, not {series.shape} with {', '.join(map(str, shapes))}"
        )
    if not np.isin([label, prediction], range(-1, num_classes)).all():
        raise UserError(f"a label or prediction is neither -1 nor one of {num_classes} classes")
    if not (radius >= 0).all():
        raise UserError("radii must be nonnegative numbers")
    largest = float(np.max(radius, where=np.isfinite(radius), initial=0))
    results = _Results(
        valid=valid,
        names=[f"<bdi>{_escape(name)}</bdi>" for name in (*classes, abstain_name)],
        index=index,
        label=label.astype(np.int64),
        prediction=prediction.astype(np.int64),
        radius=radius.astype(np.float64),
        series=series,
        digits=max(6, 4 - math.floor(math.log10(largest))) if largest else 6,
    )
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline';
script-src 'sha256-{digest}'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{"" if valid else "NOT VALID: "}{_escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{_escape(title)}</h1>
{"" if valid else ALERT}<p>{_prose(statement)}</p>
{_headline(results)}
<nav aria-label="Sections"><a href="#curve">Curve</a> <a href="#examples">Least and most robust</a>
<a href="#made">How it was made</a> <a href="#all">All series</a></nav>
</header>
<main>
<section id="curve">{_curve(results, summary_rows)}</section>
<section id="examples"><h2>Least and most robust</h2>
{_examples(results)}</section>
<section id="made"><h2>How it was made</h2>
<div class="beside">{_facts("Settings", settings_rows)}
{_facts("Versions and data", record_rows)}</div></section>
<section id="all"><h2>All series</h2>
{_table(results)}</section>
</main>
<footer><p class="small">{_prose(note)}</p></footer>
<script>{SCRIPT}</script>
</body>
</html>
"""
    return page.encode()


def _headline(results: _Results) -> str:
    """The numbers at the top."""
    certified, known, word = results.certified, results.known, results.word
    every = np.ones(len(known), bool)

    def share(what: str, chosen: np.ndarray, among: np.ndarray) -> tuple[str, str, str]:
        number, of = int((chosen & among).sum()), int(among.sum())
        kind = "series" if of == len(among) else "series with a known label"
        return what, f"{number / of:.2%}", f"{number} of {of} {kind}"

    tiles, remark = [share(word, certified, every)], ""
    if known.any():
        tiles.append(share(f"{word} and right", results.right, known))
        tiles.append(share(f"{word} but wrong", certified & ~results.right, known))
    tiles.append(share("abstained", ~certified, every))
    if certified.any():
        radii = np.sort(results.radius[certified])
        median = format_radius(radii[(len(radii) - 1) // 2], results.digits - 3)
        tiles.append(("median radius", median, f"at least half of the {word} reach it"))
        answers = np.unique(results.prediction[certified])
        if len(answers) == 1 and len(known) > 1:
            remark = (
                f"<p>Every {word} series got the same class, {results.names[answers[0]]}. A "
                "classifier that names one class whatever it is shown has the largest radii.</p>"
            )
    cells = (f"<div><dt>{what}</dt><dd><b>{n}</b>{of}</dd></div>" for what, n, of in tiles)
    return f"<dl>{''.join(cells)}</dl>{remark}"


def _curve(results: _Results, summary_rows: Sequence[tuple[str, str]]) -> str:
    """The share of series with a radius of at least r, against r."""
    word, radius, finite = results.word, results.radius, np.isfinite(results.radius)
    labelled = bool(results.known.any())
    among = results.known if labelled else np.ones(len(radius), bool)
    certified = results.certified & among
    if labelled:
        lines = [("main", f"{word} and right", results.right)]
        lines.append(("area", f"{word}, right or wrong", certified))
    else:
        lines = [("main", f"{word}, right or wrong: no label is known", certified)]

    highest = radius[certified & finite].max(initial=0)
    x, y = Axis(0, 1.05 * highest or 1, 0, WIDTH), Axis(0, 100, HEIGHT, 0)
    ticks = x.ticks(5)
    shapes, keys, told = "", "", ""
    for kind, name, chosen in lines:
        own, falls = np.sort(radius[chosen]), np.unique(radius[chosen & finite])

        def share(r, own=own):
            return 100 * (len(own) - np.searchsorted(own, r)) / among.sum()

        corners = np.concatenate([[0], np.repeat(falls, 2), [x.high]])
        heights = np.repeat(share(np.append(falls, np.inf)), 2)
        if kind == "area":
            corners, heights = np.append(corners, [x.high, 0]), np.append(heights, [0, 0])
        shapes = line(kind, x.place(corners), y.place(heights)) + shapes
        keys += f"<li>{swatch(kind)}{name}</li>"
        told += f" {name}: {', '.join(f'{share(r):.1f}% at {r:.6g}' for r in ticks)}."
    of = f"{among.sum()} series" + " with a known label" * (not among.all())
    caption = f"Share of {of} with a radius of at least r (L2, in the units of the series)."
    if infinite := int((certified & ~finite).sum()):
        caption += f" {infinite} radii are infinite: the curve does not fall to 0."
    drawing = plot(
        shapes, x, y, ticks, [0, 25, 50, 75, 100], caption + told, f"% of {of}", "radius r"
    )
    return f"""<h2>{word.title()} {"accuracy" if labelled else "share"} at each radius</h2>
<div class="beside"><figure>{drawing}<ul class="key">{keys}</ul>
<figcaption>{caption}</figcaption></figure>{_facts("In numbers", summary_rows)}</div>"""


def _examples(results: _Results) -> str:
    """The certified series of smallest and of largest radius, with changes that are covered."""
    places = np.flatnonzero(results.certified)
    if not places.size:
        return f"<p>No series was {results.word}: the classifier abstained on all of them.</p>"
    radii = results.radius[places]
    chosen = {"Least robust": radii.argmin(), "Most robust": radii.argmax()}
    if radii.min() == radii.max():
        chosen = {"All radii are equal" if len(places) > 1 else f"The only {results.word} one": 0}
    figures = "".join(_example(results, places[at], which) for which, at in chosen.items())
    steps, channels = results.series.shape[1:]
    values = f"{steps}" if channels == 1 else f"{steps} × {channels}"
    root = f"√{values}" if channels == 1 else f"√({values})"
    covers = "covers" if results.valid else "would have to cover"
    return f"""<p>A certificate {covers} <strong>every</strong> change whose L2 norm, the root of
the sum of its squares over all {values} values, is below the radius R. Two such changes are
drawn:</p>
<ul class="key"><li>{swatch("band")}an <strong>equal shift</strong> of all values, by less than
R / {root}</li><li>{swatch("bar")}a change of <strong>one value alone</strong>, at any step, by
less than R</li></ul>
<p>A change of any shape that stays inside the band has a norm below R, and so have many that leave
it. The bar is for one value: a change that goes so far at several steps has a larger norm.</p>
<div class="beside">{figures}</div>"""


def _example(results: _Results, i: int, which: str) -> str:
    """A series, channel below channel, with the band and, on the first channel, the bar."""
    radius, (steps, channels) = float(results.radius[i]), results.series.shape[1:]
    drawn = radius if math.isfinite(radius) else 0.0
    offset, middle = drawn / math.sqrt(steps * channels), steps // 2
    x, shown, plots = Axis(0, max(steps - 1, 1), 0, WIDTH), min(channels, MAX_CHANNELS), ""
    x_ticks, widest = [tick for tick in x.ticks(5, whole=True) if tick < steps], 0.0
    for c in range(shown):
        values = _channel(results, i, c)
        reach = values[middle] + drawn * np.array([-1, 1]) if c == 0 else values
        low = min(values.min() - offset, reach.min())
        high = max(values.max() + offset, reach.max())
        margin = 0.06 * (high - low) or 0.1 * abs(high) or 1
        y = Axis(low - margin, high + margin, HEIGHT, 0)
        at, shapes = spread(values, LARGE_POINTS), ""
        widest = max(widest, 2 * offset / (y.high - y.low) * HEIGHT)
        if drawn:
            edges = np.append(values[at] + offset, values[at][::-1] - offset)
            there_and_back = x.place(np.append(at, at[::-1]))
            shapes = line("band", there_and_back, y.place(edges))
        shapes += line("main", x.place(at), y.place(values[at]))
        if drawn and c == 0:
            shapes += line("bar", x.place(np.array([middle, middle])), y.place(reach))
        name = f"channel {c + 1}" if channels > 1 else "value"
        told = f"series {results.index[i]} {name}, from {values.min():.6g} to {values.max():.6g}"
        y_ticks = y.ticks(5 if shown < 3 else 2)
        plots += plot(shapes, x, y, x_ticks, y_ticks, told, name, "time step")

    text = format_radius(radius, results.digits)
    shift = shift_covered(radius, steps * channels, results.digits)
    thin = " (the band is thinner than the line)" if widest < 3 else ""
    key = f"<li>{swatch('band')}all values shifted alike: below {shift}{thin}</li>"
    key += f"<li>{swatch('bar')}one value alone: below {text}</li>"
    if not drawn:
        key = f"<li>No change is drawn: the radius is {'infinite' if radius else '0'}.</li>"
    if shown < channels:
        key += f"<li>The first {shown} of {channels} channels are drawn.</li>"
    label = f", label {results.names[results.label[i]]}" if results.known[i] else ""
    equal = int((results.radius[results.certified] == radius).sum())
    equal = f" (that of {equal} series)" if equal > 1 else ""
    covered = ""
    if results.valid and drawn:
        rows = cover(radius, results.series[i]).rows()
        covered = _facts("Covered, each by itself", rows)
    return f"""<figure style="--height:{max(4.5, 17 / shown):.1f}rem">
<h3>{which}: series {results.index[i]}</h3>
<p>Predicted {results.names[results.prediction[i]]}{label}; radius {text}{equal}</p>
{plots}<ul class="key">{key}</ul>{covered}</figure>"""


def _table(results: _Results) -> str:
    """A row for each series; the first ones, as many as there is room for, are drawn."""
    steps, channels = results.series.shape[1:]
    shown = min(channels, MAX_CHANNELS)
    drawn = max(1, ALL_SMALL_POINTS // (min(steps, SMALL_POINTS) * shown))
    longest = np.max(results.radius, where=np.isfinite(results.radius), initial=0) or 1
    right_or_wrong = np.where(results.right, "right", "wrong")
    rows = ""
    for i, (index, label, prediction, radius) in enumerate(
        zip(results.index, results.label, results.prediction, results.radius, strict=True)
    ):
        outcome, number, name = "abstained", "–", results.names[label] if label >= 0 else "–"
        if prediction >= 0:
            outcome = right_or_wrong[i] if label >= 0 else results.word
            number = f'{format_radius(radius, results.digits)}<i style="width:'
            number += f'{min(1, radius / longest):.0%}"></i>'
        rows += (
            f'<tr><th scope="row">{index}</th><td>{results.names[prediction]}</td><td>{name}</td>'
            f'<td class="{outcome}">{outcome}</td><td>{number}</td>'
            f"<td>{_sparkline(results, i) if i < drawn else ''}</td></tr>\n"
        )
    told = "Radii are rounded down. Each series is drawn to its own scale"
    told += ", channel below channel" * (channels > 1)
    told += f", the first {shown} of {channels}." if shown < channels else "."
    if drawn < len(results.index):
        told += f" To keep the page small, only the first {drawn} of them are drawn."
    return f"""<div class="controls" hidden><output></output></div>
<p class="small" id="told">{told}</p>
<div class="scroll" role="region" aria-label="All series" tabindex="0"><table class="series"
aria-label="All series" aria-describedby="told"><thead><tr>
<th scope="col" data-sort="number">idx</th><th scope="col" data-sort="text">predicted</th>
<th scope="col" data-sort="text">label</th><th scope="col" data-sort="text">outcome</th>
<th scope="col" data-sort="number">radius{"" if results.valid else " (not valid)"}</th>
<th scope="col">series</th></tr></thead>
<tbody>
{rows}</tbody></table></div>"""


def _sparkline(results: _Results, i: int) -> str:
    """The series in the width of a column, channel below channel."""
    lanes = min(results.series.shape[2], MAX_CHANNELS)
    height, lines = 2 * min(26, max(10, 40 // lanes)), ""  # twice the pixels
    for c in range(lanes):
        values = _channel(results, i, c)
        flat = 0 if values.min() < values.max() else max(1, abs(values[0]))
        x = Axis(0, len(values) - 1, 0, 240)
        y = Axis(values.min() - flat, values.max() + flat, (c + 1) * height - 2, c * height + 2)
        at = spread(values, SMALL_POINTS)
        lines += line("", x.place(at).round(), y.place(values[at]).round())
    least, largest = results.series[i].min(), results.series[i].max()
    return (
        f'<svg role="img" aria-label="from {least:.4g} to {largest:.4g}" '
        f'viewBox="0 0 240 {lanes * height}" preserveAspectRatio="none" '
        f'style="height:{lanes * height / 2}px">{lines}</svg>'
    )


def _channel(results: _Results, i: int, c: int) -> np.ndarray:
    """The values of a channel; a single one twice, which makes a line."""
    values = results.series[i, :, c].astype(np.float64)
    return np.repeat(values, 2) if len(values) == 1 else values


def _facts(caption: str, rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{_escape(what)}</th><td>{_prose(value)}</td></tr>\n'
        for what, value in rows
    )
    return f'<table class="facts"><caption>{caption}</caption>{cells}</table>' if rows else ""


def _prose(text: str) -> str:
    return "<br>".join(map(_escape, text.splitlines()))


def _escape(text: str) -> str:
    """Text as HTML, also between quotation marks; control characters become their codes."""
    codes = (
        c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Cs") else c
        for c in text
    )
    return html.escape("".join(codes))
