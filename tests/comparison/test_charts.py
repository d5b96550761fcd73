"""Charts: their axes, and the escaping of their text."""

import xml.etree.ElementTree as ElementTree

import pytest

from fcnlab.comparison.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Line,
    Point,
    axis,
    categories,
    dots,
    interval_bar,
    line_chart,
    scatter,
    swatch,
)

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


def drawn() -> dict[str, str]:
    points = [Point(1, 50, 45, 55, 0, BAD), Point(2000, 60, 60, 60, 9, BAD)]
    line = Line([1, 2, 3], [3, 2, 1], [2, 1, 0.5], [4, 3, 2], 1, BAD)
    return {
        "lines": line_chart([line], BAD, BAD, BAD),
        "log": line_chart([line], BAD, BAD, BAD, log=True),
        "scatter": scatter(points, BAD, BAD, BAD),
        "categories": categories([Point(0, 50, 45, 55, 0, BAD)], [BAD, "b"], [50, 60], BAD, BAD),
        "interval": interval_bar((-1, 2), 1, [0.5], Axis(-2, 3, 6, 160), BAD),
        "dots": dots([1, 2], Axis(0, 3, 6, 160), BAD),
        "swatch": swatch(3),
    }


@pytest.mark.parametrize("name", drawn())
def test_text_is_escaped_and_charts_are_well_formed(name):
    root = ElementTree.fromstring(drawn()[name])
    tags = {element.tag for element in root.iter()}
    assert tags <= {"svg", "g", "path", "text", "title", "polyline", "polygon", "circle"}
    assert name == "swatch" or (root.get("role"), root.get("aria-label")) == ("img", BAD)


def test_scatter_points_have_the_right_positions():
    """The better of two points is higher, the more expensive is to the right, both are inside the frame."""
    chart = scatter([Point(1, 50, 50, 50, 0, "a"), Point(2, 60, 60, 60, 1, "b")], "", "", "")
    marks = [
        element.get("transform") for element in ElementTree.fromstring(chart).iter("path") if element.get("transform")
    ]
    (x1, y1), (x2, y2) = ([float(part) for part in mark[10:-1].split(",")] for mark in marks)
    assert LEFT < x1 < x2 < WIDTH - RIGHT and TOP < y2 < y1 < HEIGHT - BOTTOM
