"""Charts: their axes, the escaping of their text, and drawings as SVG and PDF."""

import logging
import re
import xml.etree.ElementTree as ElementTree

import pytest

from fcnlab.comparison.charts import (
    LEFT,
    PLOT,
    RIGHT,
    TOP,
    Axis,
    HeatCell,
    Line,
    Point,
    Row,
    axis,
    categories,
    heat_map,
    line_chart,
    row_chart,
    scatter,
)
from fcnlab.comparison.drawing import (
    COLUMN,
    SERIES,
    STYLES,
    WIDE,
    Drawing,
    Path,
    Text,
    page_svg,
    paper_svg,
    shortened_label,
    swatch,
)
from fcnlab.comparison.pdf import write_pdf

BAD = "<script>alert('x')</script>&\""


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (3.1, 47, [10, 20, 30, 40]), (-2, 2, [-2, -1, 0, 1, 2]), (99.1, 99.4, None)],
)
def test_ticks_are_round_and_inside_the_axis(low, high, ticks):
    positions = Axis(low, high, 0, 100).ticks()
    assert ticks is None or positions == pytest.approx(ticks)
    assert 3 <= len(positions) <= 7 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in positions)


def test_logarithmic_axis():
    logarithmic = Axis(1, 1000, 0, 300, log=True)
    assert [logarithmic.at(value) for value in (1, 10, 100, 1000)] == pytest.approx([0, 100, 200, 300])
    assert logarithmic.ticks() == pytest.approx([1, 10, 100, 1000])
    assert Axis(0.1, 20, 0, 1, log=True).ticks() == pytest.approx([0.1, 0.2, 0.5, 1, 2, 5, 10, 20])


@pytest.mark.parametrize("values", [[0.5], [0, 0], [-3, -3], [1e-9, 2e-9], [5, 1e6]])
def test_an_axis_contains_its_values(values):
    fitted = axis(values, 10, 90)
    assert all(10 <= fitted.at(value) <= 90 for value in values)


def drawings() -> dict[str, Drawing]:
    points = [Point(1, 50, 45, 55, 0, BAD), Point(2000, 60, 60, 60, 9, BAD), Point(3, 50, 45, 55, None, BAD)]
    line = Line([1, 2, 3], [3, 2, 1], [2, 1, 0.5], [4, 3, 2], 1, BAD)
    rows = [Row(BAD, 1, (-1, 2), [0.5], BAD), Row("b", 2, None, [], BAD)]
    cells = [[HeatCell("+1.0", 0.5, BAD), HeatCell("", 0, "")], [HeatCell("-2.0", -1, ""), HeatCell("", 0, "")]]
    return {
        "lines": line_chart([line], BAD, BAD, BAD),
        "log": line_chart([line], BAD, BAD, BAD, log=True),
        "scatter": scatter(points, [(0, BAD), (9, BAD)], BAD, BAD, BAD),
        "categories": categories([Point(0, 50, 45, 55, 0, BAD)], [BAD, "b"], [50, 60], BAD, BAD, BAD),
        "rows": row_chart(rows, BAD, BAD, zero=True),
        "heat map": heat_map(cells, [BAD, "b"], BAD, BAD, BAD),
    }


@pytest.mark.parametrize("name", drawings())
def test_text_is_escaped_and_drawings_are_well_formed(name):
    drawing = drawings()[name]
    root = ElementTree.fromstring(page_svg(drawing))
    assert {element.tag for element in root.iter()} <= {"svg", "text", "title", "polyline", "polygon", "circle"}
    assert (root.get("role"), root.get("aria-label")) == ("img", BAD)
    paper = ElementTree.fromstring(paper_svg(drawing))
    assert paper[0].text == BAD and len(paper) == len(drawing.shapes) + 1
    assert ElementTree.fromstring(swatch(3)).get("aria-hidden") == "true"


@pytest.mark.parametrize("name", drawings())
def test_figures_fit_the_column_of_a_paper(name):
    """They are 3.3 inches wide, in text of 7.5 points, with their own colours and no style sheet."""
    drawing = drawings()[name]
    text = paper_svg(drawing)
    root = ElementTree.fromstring(text)
    assert root.get("width") == "237.6pt" and root.get("font-size") == "7.5" and float(root.get("height")[:-2]) < 300
    assert "class=" not in text and "<style" not in text and "var(" not in text
    for shape in drawing.shapes:
        places = shape.points if isinstance(shape, Path) else [(shape.x, shape.y)]
        assert all(-0.1 <= x <= COLUMN + 0.1 and -0.1 <= y <= drawing.height + 0.1 for x, y in places), shape


def test_a_heat_map_of_many_classes_is_as_wide_as_the_page():
    cells = [[HeatCell("1.0", 0.1, "")] * 21] * 21
    assert heat_map(cells, [f"class {place}" for place in range(21)], "", "", "").width == WIDE


def test_numbers_of_a_heat_map_stay_inside_their_cells():
    """A number that is too wide loses its decimals, or is left to the colour."""
    cell = HeatCell("+39.4", 1, "a predicted as b: +39.4 %", "+39")
    shown = {}
    for classes in (2, 21, 40):
        drawing = heat_map([[cell] * classes] * classes, ["class"] * classes, "", "", "")
        shown[classes] = {shape.text for shape in drawing.shapes if isinstance(shape, Text)} - {"class", ""}
        assert {shape.title for shape in drawing.shapes if isinstance(shape, Path)} == {cell.title}
    assert shown == {2: {"+39.4"}, 21: {"+39"}, 40: set()}


def test_series_differ_in_colour_and_in_dash_or_marker():
    colours = [STYLES[f"line s{series}"].stroke for series in range(SERIES)]
    assert len(set(colours)) == SERIES
    assert all(STYLES[f"line s{place}"].dash != STYLES[f"line s{place + 1}"].dash for place in range(SERIES - 1))


def test_long_labels_keep_their_ends():
    assert shortened_label("abc", 50) == "abc"
    short = shortened_label("a" * 40 + "b" * 40, 45)
    assert len(short) == 10 and re.fullmatch("a+…b+", short)


def test_scatter_points_have_the_right_positions():
    """The better of two points is higher, the more expensive is to the right, both are inside the frame."""
    chart = scatter([Point(1, 50, 50, 50, 0, "a"), Point(2, 60, 60, 60, 4, "b")], [], "", "", "")
    (x1, y1), (x2, y2) = (
        (float(mark.get("cx")), float(mark.get("cy")))
        for mark in ElementTree.fromstring(page_svg(chart)).iter("circle")
    )
    assert LEFT < x1 < x2 < COLUMN - RIGHT and TOP < y2 < y1 < TOP + PLOT


@pytest.mark.slow
def test_a_pdf_has_the_size_of_the_drawing_and_embeds_its_fonts(tmp_path):
    """A text with signs of TeX stays as it is, and two files of one drawing are equal."""
    drawing = drawings()["rows"]._replace(shapes=[*drawings()["rows"].shapes, Text(5, 9, "$x_1$ \\alpha", turned=True)])
    level = logging.getLogger("fontTools").level
    for name in ("a", "b"):
        write_pdf(tmp_path / f"{name}.pdf", drawing)
    logging.getLogger("fontTools").setLevel(level)
    content = (tmp_path / "a.pdf").read_bytes()
    assert content.startswith(b"%PDF") and content == (tmp_path / "b.pdf").read_bytes()
    (width, height) = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", content).groups()
    assert (float(width), float(height)) == pytest.approx((COLUMN, drawing.height), abs=0.1)
    assert b"/FontFile2" in content
