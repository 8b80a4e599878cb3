import io

import numpy as np
from matplotlib.image import imread
from PIL import Image

from selfens_jax import plots


def test_the_curve_is_a_png_that_depends_on_the_certificates():
    radius, correct = np.array([0.5, 1.0, 0.0]), np.array([True, True, False])
    png = plots.certified_accuracy_curve({"a": (radius, correct)}, "title", note="note")
    assert png.startswith(b"\x89PNG")
    picture = imread(io.BytesIO(png))
    assert picture.shape[0] > 200
    again = plots.certified_accuracy_curve({"a": (radius, correct)}, "title", note="note")
    assert png == again
    other = plots.certified_accuracy_curve({"a": (radius, ~correct)}, "title", note="note")
    assert not np.array_equal(picture, imread(io.BytesIO(other)))


def test_the_same_figure_is_the_same_svg():
    def drawn(radius: float) -> bytes:
        figure = plots.new_figure(4, 3)
        curves = {"a": (np.array([radius, 0.2]), np.array([True, True]))}
        plots.draw_certified_accuracy(figure.subplots(), curves)
        return plots.svg(figure, "title", note="note")

    assert b"<svg" in drawn(0.5)
    assert drawn(0.5) == drawn(0.5)
    assert drawn(0.5) != drawn(0.7)


def test_curves_without_any_certificate_or_with_infinite_radii_can_be_drawn():
    nothing = (np.zeros(2), np.array([False, False]))
    infinite = (np.array([np.inf, 1.0]), np.array([True, True]))
    assert plots.certified_accuracy_curve({"a": nothing, "b": infinite}, "title")


def test_a_legend_entry_has_one_colour_in_all_axes():
    curve = (np.array([1.0]), np.array([True]))
    left, right = plots.new_figure(4, 3).subplots(1, 2)
    plots.draw_certified_accuracy(left, {"a": curve, "b": curve}, ["a", "b"])
    plots.draw_certified_accuracy(right, {"b": curve}, ["a", "b"])
    first, second = (line.get_color() for line in left.get_lines())
    assert first != second
    assert [line.get_color() for line in right.get_lines()] == [second]


def test_perturbations_have_a_row_each_and_show_the_channel_that_changes_most():
    original = np.zeros((9, 2))
    first, second = original.copy(), original.copy()
    first[4, 1], second[4, 1] = 1.0, 2.0
    headings = {"epsilon 1: taken for $b": first, "epsilon 2": second}
    drawn = imread(io.BytesIO(plots.perturbations(original, headings, "title $a", note="note")))
    one = imread(io.BytesIO(plots.perturbations(original, {"epsilon 1": first}, "title")))
    assert drawn.shape[0] > one.shape[0]
    unseen = {**headings, "epsilon 2": second + np.array([0.1, 0.0])}
    again = imread(io.BytesIO(plots.perturbations(original, unseen, "title $a", note="note")))
    np.testing.assert_array_equal(drawn, again)
    other = {**headings, "epsilon 2": second + np.array([0.0, 0.1])}
    assert not np.array_equal(
        drawn, imread(io.BytesIO(plots.perturbations(original, other, "title $a", note="note")))
    )


def test_a_picture_tells_its_title_and_note():
    figure = plots.new_figure(2, 2)
    with Image.open(io.BytesIO(plots.png(figure, "a title", "a note"))) as image:
        assert image.text["Title"] == "a title"
        assert image.text["Description"] == "a note"


def figure_of(monkeypatch, draw):
    figures = []
    monkeypatch.setattr(plots, "png", lambda figure, *_: figures.append(figure) or b"")
    draw()
    return figures[0]


def written_on(monkeypatch, draw):
    """Titles and labels of all axes of the figure that `draw` draws, in order, each once."""
    found = []
    for axes in figure_of(monkeypatch, draw).axes:
        found.append(axes.get_title())
        for each in (axes, *axes.child_axes):
            found += [each.get_xlabel(), each.get_ylabel()]
    return [text for text in dict.fromkeys(found) if text]


def test_axes_say_what_is_drawn_and_in_which_units(monkeypatch):
    curve = {"a": (np.array([1.0]), np.array([True]))}

    def certified(**what):
        return written_on(monkeypatch, lambda: plots.certified_accuracy_curve(curve, "CBF", **what))

    radius = "radius r (L2 norm, in the units of the series)"
    assert certified() == ["CBF", radius, "certified accuracy at r (%)"]
    assert certified(what="series certified")[2] == "series certified at r (%)"

    lengths, shares = np.array([2, 4]), np.array([0.9, 0.5])
    found = written_on(monkeypatch, lambda: plots.burst_curve(lengths, shares, 50, "CBF, bursts"))
    expected = ["burst length (time steps)", "certified accuracy (%)", "share of the series (%)"]
    assert found == ["CBF, bursts", *expected]

    x = np.zeros((8, 2))
    moved = x + np.array([0.0, 0.1])
    found = written_on(monkeypatch, lambda: plots.perturbations(x, {"epsilon 1": moved}, "CBF"))
    assert found == [
        "epsilon 1",
        "time step",
        "value, channel 2\n(units of the series)",
        "perturbed - original\n(units of the series)",
    ]
    found = written_on(
        monkeypatch, lambda: plots.perturbations(x[:, :1], {"a": moved[:, 1:]}, "CBF")
    )
    assert "value\n(units of the series)" in found


def test_all_of_a_curve_is_in_sight(monkeypatch):
    curve = {"a": (np.array([1.0, 2.0]), np.array([True, True]))}
    lengths, shares = np.array([2, 4]), np.array([1.0, 0.0])
    for draw in (
        lambda: plots.certified_accuracy_curve(curve, "CBF"),
        lambda: plots.burst_curve(lengths, shares, 50, "CBF"),
    ):
        (axes,) = figure_of(monkeypatch, draw).axes
        low, high = axes.get_ylim()
        assert low == 0
        assert high > 100
        (line,) = axes.get_lines()
        right = line.get_xdata().max()
        assert axes.get_xlim()[0] == 0
        assert right <= axes.get_xlim()[1] <= 1.1 * right


def test_the_share_of_a_series_above_a_burst_curve_is_of_its_length(monkeypatch):
    lengths, shares = np.array([2, 4]), np.array([0.9, 0.5])
    figure = figure_of(monkeypatch, lambda: plots.burst_curve(lengths, shares, 50, "bursts"))
    (axes,) = figure.axes
    figure.draw_without_rendering()
    (above,) = axes.child_axes
    assert above.get_xlim() == tuple(2 * limit for limit in axes.get_xlim())  # 1 of 50 is 2 %
