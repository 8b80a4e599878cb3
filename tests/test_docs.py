"""The newcomer's page: its numbers are the project's, and what it points to is there."""

import io
import itertools
import math
import pathlib
import re
import types

import numpy as np
import pytest
from absl import app
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats
from studies import figure_bursts, figure_certificate, figure_coverage

from selfens_jax import coverage, exact, metrics, noise
from selfens_jax.certificates import certify_counts, certify_counts_as_published, format_radius

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "certificates.md"
TEXT = PAGE.read_text()
COVERS = ROOT / "docs" / "coverage.md"
FLAT = " ".join(TEXT.split())


def two_classes(n: int) -> np.ndarray:
    """All counts of n votes that the first of two classes leads."""
    top = np.arange(n // 2 + 1, n + 1)
    return np.stack([top, n - top], axis=-1)


def radius(top: int, n: int, alpha: float, digits: int = 3) -> str:
    return format_radius(certify_counts([top, n - top], 1.0, alpha).radius, digits)


def test_the_table_of_reachable_radii_is_computed():
    alphas = (0.05, 0.001, 1e-6)
    rows = [
        "| n | " + " | ".join(f"alpha = {alpha:g}" for alpha in alphas) + " |",
        "|---" * 4 + "|",
    ]
    for n in (100, 1000, 10_000, 100_000):
        cells = [f"{n:,}"]
        for alpha in alphas:
            counts = two_classes(n)
            least = counts[certify_counts(counts, 1.0, alpha).prediction == 0].min(axis=0)[0]
            share = math.ceil(1000 * least / n) / 10
            cells.append(f"{radius(n, n, alpha)}, from {share:.1f} %")
        rows.append(f"| {' | '.join(cells)} |")
    table = TEXT.split("<!-- table: reach -->\n")[1].split("<!-- end -->")[0]
    assert table.splitlines() == rows


def test_the_numbers_in_the_text_are_computed():
    published = {
        k: certify_counts_as_published([k, 1000 - k], 1.0).radius for k in (500, 990, 1000)
    }
    assert f"500 of 1000 votes get {format_radius(published[500], 3)} sigma" in FLAT
    for k, digits in ((1000, 4), (990, 3)):
        low, high = radius(k, 1000, 0.001), radius(k, 1000, 0.05)
        theirs = f"| {k} of 1000 votes | {format_radius(published[k], digits)} sigma"
        assert theirs in FLAT
        assert f"{low} sigma at alpha = 0.001, {high} sigma at 0.05" in FLAT
    assert published[1000] > certify_counts([1000, 0], 1.0, 0.001).radius

    few, many = radius(900, 1000, 0.001, 2), radius(90_000, 100_000, 0.001, 2)
    assert f"to 100,000 draws gives {many} instead of {few} sigma" in FLAT
    loss = 1 - float(radius(1000, 1000, 0.001, 6)) / float(radius(1000, 1000, 0.05, 6))
    assert f"takes {100 * loss:.0f} % off the largest radius" in FLAT
    least = next(n for n in itertools.count(1) if certify_counts([n, 0], 1.0).prediction == 0)
    assert f"below n = {least} nothing can be certified at alpha = 0.001" in FLAT
    assert "ten samples off by 0.31 mV each, or 128 samples off by 0.088 mV each" in FLAT
    assert 0.31 * math.sqrt(10) < 1 < 0.32 * math.sqrt(10)
    assert 0.088 * math.sqrt(128) < 1 < 0.089 * math.sqrt(128)


def test_the_price_of_the_grid_is_computed():
    largest = certify_counts([1000, 0], 1.0, 0.001).radius
    for number, words in ((128, "% of the largest radius for 128 values"), (300, "% for 300, at")):
        share = noise.rounding(1 / 8192, number) / largest  # of the coarsest of the usual grids
        assert f"{100 * share:.2f} {words}" in FLAT
    assert noise.deviation(16384, 128) < 1e-8
    assert "less than 1e-8 for 128 values" in FLAT
    for sigma in (0.3, 0.8, 1.0, 1.99):
        grid = noise.default_grid(sigma)
        assert sigma / 16384 < grid <= sigma / 8192
        assert 1000 * sigma < grid * noise.LARGEST - noise.REACH * sigma < 2050 * sigma
    assert "sigma / 16,384 to sigma / 8,192" in FLAT
    assert "values beyond about 1,000 sigma" in FLAT


def test_the_comparison_with_the_published_procedure_is_computed():
    counts = two_classes(1000)
    ours = certify_counts(counts, 1.0, 0.05)
    sure = ours.prediction == 0
    assert (ours.radius > certify_counts_as_published(counts, 1.0).radius)[sure].all()
    assert "larger than the published one for every certified count of 1,000" in FLAT

    renyi = certify_counts(counts, 1.0, 0.05, bound="renyi").radius
    gain = ours.radius[sure] / renyi[sure] - 1
    assert f"{100 * gain.min():.0f} to {100 * gain.max():.0f} % larger for the same" in FLAT

    every = np.stack([np.arange(1001), 1000 - np.arange(1001)], axis=-1)
    result = certify_counts_as_published(every, 1.0)
    wrong = (result.prediction == 1) | (result.radius > stats.norm.ppf(0.501))
    rate = stats.binom.pmf(every[:, 0], 1000, 0.501)[wrong].sum()
    assert f"{100 * rate:.1f} % of its certificates are false" in FLAT


def test_the_table_of_what_is_covered_is_computed():
    x = np.zeros(128)
    x[0] = 16  # the norm
    found = coverage.cover(1.0, x, frequency=3 / 128)

    def size(name: str) -> str:
        return f"below {exact.shown(getattr(found, name), 3)} mV"

    told = {
        size("offset"): ("below R / √(T C)", 1 / math.sqrt(128), found.every_sample),
        size("sample"): ("less than R", 1, found.sample),
        f"{size('samples')} each": ("less than R / √10 each", 1 / math.sqrt(10), found.samples),
        f"{size('drift')} at the end": (
            "below R √(6 (T - 1) / (T C (2 T - 1))) at the end",
            math.sqrt(6 * 127 / (128 * 255)),
            found.drift,
        ),
        size("sinusoid"): ("below R √(2 / (T C))", math.sqrt(2 / 128), found.sinusoid),
        f"to steps {size('quantisation')}": (
            "to steps below 2 R / √(T C)",
            2 / math.sqrt(128),
            found.quantisation,
        ),
        f"below {exact.percent(found.gain)}, if that is 16 mV": (
            "below R / the norm of the series",
            1 / 16,
            found.gain,
        ),
    }
    table = (
        COVERS.read_text()
        .split("<!-- table: covered -->\n")[1]
        .split("<!-- end -->")[0]
        .splitlines()
    )
    rows = [row.strip("| ").split(" | ") for row in table[2:]]
    assert [row[2] for row in rows] == list(told)
    for (_, formula, _), (words, value, number) in zip(rows, told.values(), strict=True):
        assert formula.endswith(words)
        assert number == pytest.approx(value)
    most = metrics.most_false(10_000, 0.001)
    assert f"with probability 0.999 no more than {most} are" in FLAT


@pytest.mark.parametrize(
    ("page", "picture"),
    [(PAGE, "what_a_certificate_means.png"), (COVERS, "what_a_radius_covers.png")],
)
def test_what_the_page_points_to_is_there(page, picture):
    text = page.read_text()
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    assert picture in targets
    for target in targets:
        assert (page.parent / target).exists(), target
    for name in re.findall(r"`(test_\w+\.py)`", text):
        assert (ROOT / "tests" / name).exists(), name
    for name in re.findall(r"`python (\S+\.py)", text):
        assert (ROOT / name).exists(), name


def test_the_picture_of_what_is_covered_can_be_drawn():
    drawn = figure_coverage.figure()
    png = io.BytesIO()
    FigureCanvasAgg(drawn).print_png(png)
    assert png.getvalue().startswith(b"\x89PNG")
    x, radius = figure_coverage.certified_series()
    bands = [axes.collections[0] for axes in drawn.axes[:4]]
    for band in bands:  # a change, and its opposite, of which neither is longer than the radius
        edges = np.asarray(band.get_paths()[0].vertices)
        reach = [np.ptp(edges[edges[:, 0] == t, 1]) / 2 for t in range(len(x))]
        assert 0.99 * radius < np.linalg.norm(reach) < radius * (1 + 1e-6)
    titles = [axes.get_title() for axes in drawn.axes]
    assert len(titles) == len(set(titles)) == 8


@pytest.mark.parametrize("study", [figure_bursts, figure_certificate, figure_coverage])
def test_a_picture_is_written_unless_more_is_asked(study, tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    monkeypatch.setattr(study, "figure", Figure)
    if study is figure_bursts:
        monkeypatch.setattr(study, "PICTURE", path)
    else:
        monkeypatch.setattr(study, "FLAGS", types.SimpleNamespace(output=path, picture=path))
    with pytest.raises(app.UsageError, match="unexpected argument 'more'"):
        study.main(["script", "more"])
    assert not path.exists()
    study.main(["script"])
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_picture_of_bursts_can_be_drawn():
    png = io.BytesIO()
    drawn = figure_bursts.figure()
    FigureCanvasAgg(drawn).print_png(png)
    assert png.getvalue().startswith(b"\x89PNG")
    rows = [row for row in figure_bursts.measured() if row["dataset"] == "CBF"]
    shown = [line for line in drawn.axes[1].lines]
    assert sum(len(line.get_xdata()) for line in shown) == len(rows)
    for row in rows:
        point = (int(row["burst"]), 100 * float(row["certified_and_right"]))
        assert any(point in zip(*line.get_data(), strict=True) for line in shown)


def test_the_numbers_on_bursts_are_those_measured():
    rows = [
        row
        for row in figure_bursts.measured()
        if (row["dataset"], row["model"], row["ensemble"]) == ("CBF", "inception_time", "mw")
    ]
    shares = {
        burst: [100 * float(row["certified_and_right"]) for row in rows if row["burst"] == burst]
        for burst in ("4", "8", "16")
    }
    assert {len(values) for values in shares.values()} == {3}
    text = " ".join(COVERS.read_text().split())
    for burst, words in (
        ("4", "{:.0f} to {:.0f} % of 300 test series for bursts of 4 steps"),
        ("8", "{:.0f} to {:.0f} % for 8"),
        ("16", "{:.0f} to {:.0f} % for 16"),
    ):
        assert words.format(min(shares[burst]), max(shares[burst])) in text


def test_the_curves_of_more_draws_are_radii():
    axes = Figure().subplots()
    figure_certificate.draw_budgets(axes)
    curves = {str(line.get_label()): line.get_xydata().T for line in axes.get_lines()}
    for n in (100, 1000, 10_000, 100_000):
        share, radius = curves[f"n = {n:,}"]
        votes = np.rint(share * n)
        lower = stats.beta.ppf(0.001 / 2, votes, n - votes + 1)  # either class may lead
        expected = stats.norm.ppf(lower)
        np.testing.assert_allclose(radius, expected, rtol=1e-3, atol=1e-3)
        assert share[-1] == 1
        assert share[0] < 0.5 + 3 / np.sqrt(n)


def test_the_picture_can_be_drawn():
    png = io.BytesIO()
    FigureCanvasAgg(figure_certificate.figure()).print_png(png)
    assert png.getvalue().startswith(b"\x89PNG")
    sure = certify_counts([900, 100], figure_certificate.SIGMA).radius
    assert float(sure) == pytest.approx(0.883, abs=1e-3)  # as the picture on the page says
