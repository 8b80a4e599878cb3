import base64
import hashlib
import html.parser
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from selfens_jax import coverage, report_page
from selfens_jax.errors import UserError

NAMES = ["<script>alert('x')</script>", 'a "quoted" & b', "שלום\u202e!"]
VOID = {"meta", "br", "path", "polyline", "polygon"}
RAW = {"style", "script"}  # whose content is no markup


class Element:
    def __init__(self, tag: str, attributes: dict[str, str | None]):
        self.tag, self.children = tag, []
        self.attributes = {name: value or "" for name, value in attributes.items()}

    def all(self, *tags: str) -> list["Element"]:
        """The elements inside with one of these tags, in the page's order."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                found += [child] * (child.tag in tags) + child.all(*tags)
        return found

    def of_class(self, name: str) -> list["Element"]:
        inside = self.all("div", "table", "td", "polyline", "polygon", "span", "ul")
        return [element for element in inside if element.attributes.get("class") == name]

    @property
    def text(self) -> str:
        return "".join(c.text if isinstance(c, Element) else c for c in self.children)

    @property
    def read(self) -> str:
        """The text that a reader sees, each white space one blank."""
        parts = [
            "" if getattr(c, "tag", "") in RAW else c.read if isinstance(c, Element) else c
            for c in self.children
        ]
        return " ".join("".join(parts).split())


class Tree(html.parser.HTMLParser):
    """The page as elements; every tag must be closed where it was opened."""

    def __init__(self, page: bytes):
        super().__init__()
        self.root = Element("root", {})
        self.open = [self.root]
        self.feed(page.decode("utf-8"))
        self.close()
        assert self.open == [self.root]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs))
        assert len(element.attributes) == len(attrs)
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


def arguments(**changes) -> dict:
    """Five series: right, wrong, right, abstained, right."""
    given = {
        "title": "a title",
        "statement": "a statement",
        "valid": True,
        "summary_rows": [("ACR", "0.5")],
        "settings_rows": [("sigma", "0.8")],
        "record_rows": [("jax", "1.2.3")],
        "classes": ["first", "second", "third"],
        "abstain_name": "nothing",
        "index": np.array([0, 10, 20, 30, 40]),
        "label": np.array([0, 1, 2, 0, 1]),
        "prediction": np.array([0, 2, 2, -1, 1]),
        "radius": np.array([0.25, 0.75, 1.9999999, 0.0, 0.5]),
        "series": np.random.default_rng(0).normal(size=(5, 64, 1)).astype(np.float32),
        "note": "a note",
    }
    assert changes.keys() <= given.keys()
    return {**given, **changes}


def page_of(**changes) -> Element:
    return Tree(report_page.certification_page(**arguments(**changes))).root


def many(number: int, length: int = 8, channels: int = 1) -> dict:
    """Arguments of so many series, all certified."""
    rng = np.random.default_rng(number)
    return {
        "index": np.arange(number),
        "label": np.arange(number) % 3,
        "prediction": np.arange(number) % 3,
        "radius": rng.uniform(0.1, 2, number),
        "series": rng.normal(size=(number, length, channels)).astype(np.float32),
    }


def rows_of(page: Element) -> list[list[str]]:
    (table,) = page.of_class("series")
    (body,) = table.all("tbody")
    return [[cell.read for cell in row.all("th", "td")] for row in body.all("tr")]


def tiles_of(page: Element) -> dict[str, tuple[str, str]]:
    """For each headline: its number, and what it is a number of."""
    tiles = {}
    for tile in page.all("dl")[0].all("div"):
        (name,), (value,), (whole,) = tile.all("dt"), tile.all("b"), tile.all("dd")
        tiles[name.read] = value.read, whole.read.removeprefix(value.read)
    return tiles


def points_of(line: Element) -> np.ndarray:
    pairs = line.attributes["points"].split()
    return np.array([[float(number) for number in pair.split(",")] for pair in pairs])


def examples_of(page: Element) -> list[Element]:
    return page.all("figure")[1:]  # the first is the curve


def share_at(line: Element, radius: float, right: float) -> float:
    """What a step curve, drawn in 1000 x 400 units from 0 to `right`, shows at a radius."""
    points = points_of(line)
    drawn = 1000 * radius / right
    after = np.flatnonzero(points[:, 0] >= drawn)[0]
    return 1 - points[after, 1] / 400


def test_the_table_has_a_row_for_each_series_with_radii_rounded_down():
    assert [row[:5] for row in rows_of(page_of())] == [
        ["0", "first", "first", "right", "0.250000"],
        ["10", "third", "second", "wrong", "0.750000"],
        ["20", "third", "third", "right", "1.999999"],
        ["30", "nothing", "first", "abstained", "–"],
        ["40", "second", "second", "right", "0.500000"],
    ]


def test_no_radius_is_larger_than_what_was_certified():
    given = many(200)
    for row, radius in zip(rows_of(page_of(**given)), given["radius"], strict=True):
        told = Decimal(row[4])
        assert told <= Decimal(float(radius)) < told + Decimal("0.000001")


def test_small_radii_keep_their_digits():
    given = many(5)
    given["radius"] = given["radius"] * 1e-9
    for row, radius in zip(rows_of(page_of(**given)), given["radius"], strict=True):
        assert float(row[4]) == pytest.approx(radius, rel=1e-3)


def test_the_headline():
    assert tiles_of(page_of()) == {
        "certified": ("80.00%", "4 of 5 series"),
        "certified and right": ("60.00%", "3 of 5 series"),
        "certified but wrong": ("20.00%", "1 of 5 series"),
        "abstained": ("20.00%", "1 of 5 series"),
        "median radius": ("0.500", "at least half of the certified reach it"),
    }


def test_unknown_labels_are_left_out_of_what_needs_them():
    page = page_of(label=np.array([0, 1, -1, -1, -1]))
    tiles = tiles_of(page)
    assert tiles["certified"] == ("80.00%", "4 of 5 series")
    assert tiles["certified and right"] == ("50.00%", "1 of 2 series with a known label")
    assert tiles["certified but wrong"] == ("50.00%", "1 of 2 series with a known label")
    assert [row[2:4] for row in rows_of(page)] == [
        ["first", "right"],
        ["second", "wrong"],
        ["–", "certified"],
        ["–", "abstained"],
        ["–", "certified"],
    ]
    assert "Share of 2 series with a known label" in page.read
    (line,) = page.all("figure")[0].of_class("main")
    assert share_at(line, 0.2, 1.05 * 0.75) == 0.5
    assert share_at(line, 0.3, 1.05 * 0.75) == 0


def test_without_labels_the_curve_is_the_share_that_is_certified():
    page = page_of(label=np.full(5, -1))
    assert list(tiles_of(page)) == ["certified", "abstained", "median radius"]
    assert "Certified share at each radius" in page.read
    assert "no label is known" in page.read
    (line,) = page.all("figure")[0].of_class("main")
    right = 1.05 * 1.9999999
    shares = [share_at(line, r, right) for r in (0.1, 0.3, 0.6, 1, 2.05)]
    assert shares == pytest.approx([0.8, 0.6, 0.4, 0.2, 0])


def test_the_curve():
    page = page_of()
    figure = page.all("figure")[0]
    (line,), (area,) = figure.of_class("main"), figure.of_class("area")
    right = 1.05 * 1.9999999
    radii = (0, 0.1, 0.3, 0.6, 1, 2.05)
    assert [share_at(line, r, right) for r in radii] == pytest.approx([0.6, 0.6, 0.4, 0.2, 0.2, 0])
    assert [share_at(area, r, right) for r in radii] == pytest.approx([0.8, 0.8, 0.6, 0.4, 0.2, 0])
    told = figure.all("svg")[0].attributes["aria-label"]
    assert "certified and right: 60.0% at 0, 40.0% at 0.5, 20.0% at 1," in told
    assert "certified, right or wrong: 80.0% at 0, 60.0% at 0.5, 20.0% at 1," in told


@pytest.mark.parametrize("channels", [1, 3])
def test_the_band_and_the_bar_are_as_wide_as_the_radius_allows(channels):
    given = many(4, 50, channels)
    given["radius"] = np.array([1.0, 0.5, 2.0, 1.5])
    page = page_of(**given)
    least, most = examples_of(page)
    for figure, i, radius in ((least, 1, 0.5), (most, 2, 2.0)):
        assert f"series {i}" in figure.all("h3")[0].read
        plots = figure.of_class("plot")
        assert len(plots) == channels
        for c, plot in enumerate(plots):
            (line,), (band,) = plot.of_class("main"), plot.of_class("band")
            drawn, values = points_of(line), given["series"][i, :, c].astype(float)
            # The line itself tells how many units of the drawing a unit of the series has.
            scale, start = np.polyfit(values, drawn[:, 1], 1)
            np.testing.assert_allclose(drawn[:, 1], start + scale * values, atol=0.1)
            assert scale < 0  # up is more
            upper, lower = np.split(points_of(band), 2)
            offset = radius / np.sqrt(50 * channels)
            np.testing.assert_allclose(upper[:, 1], drawn[:, 1] + scale * offset, atol=0.15)
            np.testing.assert_allclose(lower[::-1, 1], drawn[:, 1] - scale * offset, atol=0.15)
            bars = plot.of_class("bar")
            assert len(bars) == (c == 0)
            for bar in bars:
                (x, bottom), (same, top) = points_of(bar)
                assert x == same == drawn[25, 0]
                np.testing.assert_allclose(bottom - top, -2 * radius * scale, atol=0.2)
                np.testing.assert_allclose((bottom + top) / 2, drawn[25, 1], atol=0.2)
        told = figure.of_class("key")[0].read
        assert f"below {coverage.shift_covered(radius, 50 * channels)}" in told
        assert f"one value alone: below {radius:.6f}" in told


def test_a_shift_of_all_values_by_what_is_told_has_a_norm_of_at_most_the_radius():
    rng = np.random.default_rng(0)
    for radius, size in zip(rng.uniform(0, 9, 300), rng.integers(1, 50_000, 300), strict=True):
        shift = Fraction(coverage.shift_covered(radius, int(size)))
        above = shift + Fraction(1, 10**6)
        assert shift**2 * int(size) <= Fraction(radius) ** 2 < above**2 * int(size)
    assert coverage.shift_covered(1.0, 4) == "0.500000"
    assert coverage.shift_covered(0.0, 4) == "0.000000"
    assert coverage.shift_covered(np.inf, 4) == "inf"


def test_the_changes_that_are_covered_are_listed():
    given = many(4, 32, 2)  # 64 values
    given["radius"] = np.array([1.0, 0.5, 2.0, 1.5])
    for figure, i in zip(examples_of(page_of(**given)), (1, 2), strict=True):
        (table,) = figure.of_class("facts")
        rows = [(row.all("th")[0].read, row.all("td")[0].read) for row in table.all("tr")]
        assert rows == coverage.cover(given["radius"][i], given["series"][i]).rows()
        offset = dict(rows)["constant offset of all samples"]
        assert offset == f"below {given['radius'][i] / 8:g}"
    for changes in ({"valid": False}, {"radius": np.zeros(4)}):
        page = page_of(**{**given, **changes})
        assert not any(figure.of_class("facts") for figure in examples_of(page))


def test_what_is_covered_is_said():
    text = page_of(**many(3, 50)).read
    assert "A certificate covers every change whose L2 norm" in text
    assert "over all 50 values" in text
    assert "R / √50" in text
    text = page_of(**many(3, 50, 2)).read
    assert "over all 50 × 2 values" in text
    assert "R / √(50 × 2)" in text


def test_the_page_loads_nothing_and_runs_its_own_script_only():
    given = arguments(classes=NAMES, note="see https://example.org/x.js")
    text = report_page.certification_page(**given)
    page = Tree(text).root
    allowed = {"html", "head", "meta", "title", "style", "body", "header", "main", "section"}
    allowed |= {"footer", "nav", "a", "h1", "h2", "h3", "p", "strong", "b", "i", "bdi", "br"}
    allowed |= {"dl", "div", "dt", "dd", "figure", "figcaption", "ul", "li", "span", "output"}
    allowed |= {"table", "caption", "thead", "tbody", "tr", "th", "td", "script"}
    allowed |= {"svg", "path", "polyline", "polygon"}
    elements = page.all(*allowed)
    assert len(elements) == len(re.findall(rb"<[a-z]", text))  # there are no others
    for element in elements:
        assert not element.attributes.keys() & {"src", "srcset", "data", "action", "xlink:href"}
        assert not [name for name in element.attributes if name.startswith("on")]
        assert element.attributes.get("href", "#").startswith("#")
        assert "url(" not in element.attributes.get("style", "")
    (style,), (script,) = page.all("style"), page.all("script")
    assert not re.search(r"url\(|@import|//", style.text + script.text)
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    (policy,) = [m for m in page.all("meta") if "http-equiv" in m.attributes]
    assert policy.attributes["content"] == (
        f"default-src 'none'; style-src 'unsafe-inline';\nscript-src 'sha256-{digest}'"
    )


def test_links_lead_to_sections():
    page = page_of()
    sections = {element.attributes["id"] for element in page.all("section")}
    assert {link.attributes["href"] for link in page.all("a")} == {f"#{name}" for name in sections}


def test_texts_are_shown_as_they_are():
    row = ("<i>what</i>", "<!-- 'value' -->")
    texts = {"title": '<b>t</b> & "q"', "statement": "</p><p>first\nsecond", "note": "<u>n</u>"}
    rows = {key: [row] for key in ("summary_rows", "settings_rows", "record_rows")}
    page = page_of(classes=NAMES, **texts, **rows)
    (title,), (heading,) = page.all("title"), page.all("h1")
    assert title.text == heading.text == texts["title"]
    (header,), (footer,) = page.all("header"), page.all("footer")
    statement = header.all("p")[0]
    assert statement.text == "</p><p>firstsecond"
    assert len(statement.all("br")) == 1
    assert footer.text == "<u>n</u>"
    covered = [table for figure in page.all("figure") for table in figure.of_class("facts")]
    facts = [table for table in page.of_class("facts") if table not in covered]
    assert [[cell.text for cell in table.all("th", "td")] for table in facts] == [list(row)] * 3
    assert [row[1] for row in rows_of(page)] == [NAMES[0], NAMES[2], NAMES[2], "nothing", NAMES[1]]
    assert len(page.all("script")) == 1
    names = [element.text for element in page.all("bdi")]  # keeps a direction to itself
    assert set(names) == {*NAMES, "nothing"}
    assert page.read.count("שלום") == names.count(NAMES[2])


def test_control_characters_and_halves_of_characters_are_told_as_codes():
    page = page_of(classes=["a\nb", "\x00\x1b", "\ud800"])
    assert [row[2] for row in rows_of(page)][:3] == ["a\\nb", "\\x00\\x1b", "\\ud800"]


def test_it_can_be_read_without_the_script():
    page = page_of()
    hidden = [e for e in page.all("div", "tr", "td", "section") if "hidden" in e.attributes]
    assert [element.attributes["class"] for element in hidden] == ["controls"]
    assert hidden[0].read == ""
    assert len(rows_of(page)) == 5
    for text in ("a title", "a statement", "ACR 0.5", "sigma 0.8", "jax 1.2.3", "a note"):
        assert text.replace(" ", "") in page.read.replace(" ", "")


def test_every_drawing_is_described_or_hidden_from_those_who_cannot_see_it():
    page = page_of()
    for drawing in page.all("svg"):
        attributes = drawing.attributes
        assert attributes.get("aria-hidden") == "true" or (
            attributes["role"] == "img" and attributes["aria-label"]
        )
    low, high = arguments()["series"][0].min(), arguments()["series"][0].max()
    first = page.of_class("series")[0].all("svg")[0]
    assert first.attributes["aria-label"] == f"from {low:.4g} to {high:.4g}"
    assert page.all("html")[0].attributes["lang"] == "en"
    for cell in page.all("th"):
        assert cell.attributes["scope"] in ("row", "col")


def assert_drawn_inside(page: Element) -> None:
    """Every point lies in the view box of its drawing."""
    drawings = page.all("svg")
    assert drawings
    for drawing in drawings:
        left, top, width, height = map(float, drawing.attributes["viewbox"].split())
        assert left == top == 0
        for line in drawing.all("polyline", "polygon"):
            points = points_of(line)
            assert len(points) >= 2
            assert np.isfinite(points).all()
            assert (points >= 0).all()
            assert (points <= [width, height]).all()


@pytest.mark.parametrize("length", [1, 2, 100, 101, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("channels", [1, 4])
def test_drawings_stay_in_their_boxes(length, channels):
    given = many(4, length, channels)
    given["series"][0] = 0.0
    given["series"][1] = 3e38
    given["series"][2] *= np.float32(1e-30)
    assert_drawn_inside(page_of(**given))


@pytest.mark.parametrize(
    "radius",
    [
        [0.0, 0.0, 0.0, 0.0],
        [np.inf, np.inf, np.inf, np.inf],
        [np.inf, 0.0, 1.0, 2.0],
        [1e-102, 2e-102, 0.0, 5e-324],
        [1e102, 1.0, np.inf, 0.5],
        [1.5, 1.5, 1.5, 1.5],
    ],
)
@pytest.mark.parametrize("value", [0.0, -1e30, 1.0])
def test_any_radius_can_be_drawn(radius, value):
    given = many(4, 30)
    given["radius"] = np.array(radius)
    given["series"] = np.full((4, 30, 1), value, np.float32)
    page = page_of(**given)
    assert_drawn_inside(page)
    assert "nan" not in page.read.lower()
    told = [row[4] for row in rows_of(page)]
    for text, r in zip(told, radius, strict=True):
        assert (text == "inf") == np.isinf(r)
        assert float(text) <= r


def test_an_infinite_radius_is_said():
    given = many(3)
    given["radius"] = np.array([np.inf, 1.0, np.inf])
    page = page_of(**given)
    assert "2 radii are infinite: the curve does not fall to 0" in page.read
    (line,) = page.all("figure")[0].of_class("main")
    np.testing.assert_allclose(points_of(line)[-1], [1000, 400 / 3], atol=0.1)
    least, most = examples_of(page)
    assert "radius 1.000000" in least.read
    assert "radius inf (that of 2 series)" in most.read
    assert "No change is drawn: the radius is infinite" in most.read
    assert not most.of_class("band") + most.of_class("bar")


def test_a_radius_of_zero_covers_nothing():
    given = many(2)
    given["radius"] = np.array([0.0, 1.0])
    least, most = examples_of(page_of(**given))
    assert "No change is drawn: the radius is 0." in least.read
    assert not least.of_class("band") + least.of_class("bar")
    assert len(most.of_class("band")) == len(most.of_class("bar")) == 1


def test_a_band_too_thin_to_be_seen_is_said():
    given = many(2)
    given["radius"] = np.array([0.001, 1.0])
    least, most = examples_of(page_of(**given))
    assert "(the band is thinner than the line)" in least.read
    assert "thinner" not in most.read


def test_nothing_certified():
    page = page_of(prediction=np.full(5, -1), radius=np.zeros(5))
    assert tiles_of(page)["abstained"] == ("100.00%", "5 of 5 series")
    assert "median radius" not in tiles_of(page)
    assert "No series was certified: the classifier abstained on all of them." in page.read
    assert examples_of(page) == []
    assert {row[3] for row in rows_of(page)} == {"abstained"}
    assert_drawn_inside(page)


def test_a_single_series_and_equal_radii_are_drawn_once():
    (figure,) = examples_of(page_of(**many(1)))
    assert "The only certified one: series 0" in figure.read
    given = many(3)
    given["radius"] = np.full(3, 0.5)
    (figure,) = examples_of(page_of(**given))
    assert "All radii are equal: series 0" in figure.read
    assert "radius 0.500000 (that of 3 series)" in figure.read


def test_one_class_for_all_is_remarked():
    remark = "Every certified series got the same class, second."
    assert remark in page_of(prediction=np.array([1, 1, 1, -1, 1])).read
    assert "got the same class" not in page_of().read


def test_certificates_that_do_not_hold_carry_a_warning():
    page, valid = page_of(valid=False), page_of()
    (header,) = page.all("header")
    assert "Not valid certificates" in header.read
    assert "do not rely on them" in header.read
    assert page.all("title")[0].text == "NOT VALID: a title"
    assert "radius (not valid)" in page.of_class("series")[0].read
    assert "A certificate would have to cover every change" in page.read
    assert not re.search("(?<!“)certified", page.read)
    assert "valid" not in valid.read.lower()
    assert "“" not in valid.read


def test_a_small_line_keeps_every_peak_and_the_ends():
    rng = np.random.default_rng(0)
    for length in (101, 137, 999, 5000):
        series = rng.normal(size=(1, length, 1)).astype(np.float32)
        up, down = rng.choice(length, 2, replace=False)
        series[0, [up, down], 0] = 50, -50
        page = page_of(**{**many(1, length), "series": series})
        (line,) = page.of_class("series")[0].all("polyline")
        points = points_of(line)
        assert len(points) <= 100
        assert (np.diff(points[:, 0]) >= 0).all()
        top, bottom = points[:, 1].argmin(), points[:, 1].argmax()
        assert points[:, 1].min() < 5  # of 52: the peaks fill the height
        assert points[:, 1].max() > 47
        for place, step in ((top, up), (bottom, down)):
            assert abs(points[place, 0] - 240 * step / (length - 1)) <= 0.5
        assert points[0, 0] == 0
        assert points[-1, 0] == 240


def test_a_short_series_is_drawn_whole():
    given = many(1, 100)
    (line,) = page_of(**given).of_class("series")[0].all("polyline")
    assert len(points_of(line)) == 100


@pytest.mark.parametrize(("length", "channels", "drawn"), [(300, 1, 5000), (120, 10, 500)])
def test_five_thousand_series_stay_below_ten_megabytes(length, channels, drawn):
    given = arguments(**many(5000, length, channels))
    text = report_page.certification_page(**given)
    assert len(text) < 10e6
    page = Tree(text).root
    cells = [row.all("td")[-1] for row in page.of_class("series")[0].all("tbody")[0].all("tr")]
    assert [bool(cell.all("svg")) for cell in cells] == [True] * drawn + [False] * (5000 - drawn)
    assert ("only the first 500 of them are drawn" in page.read) == (drawn == 500)
    assert len(cells[0].all("polyline")) == channels
    assert ("channel below channel" in page.read) == (channels > 1)
    assert "the first 10 of 10" not in page.read


def test_of_many_channels_the_first_are_drawn_and_it_is_said():
    given = many(2, 20, 12)
    page = page_of(**given)
    assert "channel below channel, the first 10 of 12" in page.read
    assert "The first 10 of 12 channels are drawn" in examples_of(page)[0].read
    assert len(examples_of(page)[0].of_class("plot")) == 10
    shift = coverage.shift_covered(given["radius"].max(), 20 * 12)
    assert f"below {shift}" in examples_of(page)[1].read


def test_the_same_certificates_make_the_same_page():
    first = report_page.certification_page(**arguments())
    assert first == report_page.certification_page(**arguments())
    other = arguments(radius=np.array([0.25, 0.75, 1.5, 0.0, 0.5]))
    assert first != report_page.certification_page(**other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": np.arange(4)}, "N indices"),
        ({"radius": np.zeros((5, 1))}, "radii"),
        ({"series": np.zeros((5, 0, 1))}, "at least one value"),
        ({"series": np.full((5, 4, 1), np.nan)}, "NaN"),
        ({"label": np.array([0, 1, 2, 3, 0])}, "one of 3 classes"),
        ({"prediction": np.array([0, 1, 2, -2, 0])}, "one of 3 classes"),
        ({"radius": np.array([0, 1, 2, np.nan, 0])}, "nonnegative"),
        ({"radius": np.array([0, 1, 2, -1.0, 0])}, "nonnegative"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        report_page.certification_page(**arguments(**changes))


def luminance(colour: str) -> float:
    """Relative luminance, as the Web Content Accessibility Guidelines 2 define it."""
    digits = colour.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    parts = np.array([int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_texts_stand_out_from_their_ground_in_light_and_in_dark():
    (style,) = page_of().all("style")
    themes = re.findall(r":root \{([^}]*)\}", style.text)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--(\w+): (#\w+)", theme))
        pairs = [(c, "back") for c in ("text", "soft", "blue", "right", "wrong")]
        pairs += [("text", "panel"), ("soft", "panel"), ("text", "alert"), ("wrong", "alert")]
        for text, ground in pairs:
            dark, light = sorted((luminance(colours[text]), luminance(colours[ground])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
