"""Charts as drawings: axes, curves, points, rows with intervals, and heat maps, in the size of a paper's column.

The number of a series determines its colour, dash and marker, so that no series is identified by colour alone.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from fcnlab.comparison.drawing import (
    CHARACTER,
    COLUMN,
    SERIES,
    TEXT,
    WIDE,
    Circle,
    Drawing,
    Path,
    Shape,
    Text,
    legend_key,
    marker,
    series_name,
    shortened_label,
)

LEFT, RIGHT, TOP, PLOT = 34, 8, 8, 140  # points: margins of a plot, and its height
AXIS = 26  # height of the ticks and the label below a plot
ROW, ROW_LABEL = 11, 130  # height of a row, and width of the longest label
LEGEND_ROW = 10
FEW_CLASSES, MOST_CLASSES = 8, 40  # a heat map of few classes fits a column; one of many would be unreadable
DARKEST = 0.75  # opacity of a cell, on which text stays readable


class Point(NamedTuple):
    """A marker with a line from ``low`` to ``high``; ``text`` is the tooltip; ``series`` None: without a series."""

    x: float
    y: float
    low: float
    high: float
    series: int | None
    text: str


class Line(NamedTuple):
    """A curve with a band from ``low`` to ``high``; ``text`` is its name."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    series: int
    text: str


class Row(NamedTuple):
    """A value with its interval and the values of single seeds; ``text`` is the tooltip."""

    label: str
    value: float
    ends: tuple[float, float] | None
    dots: Sequence[float]
    text: str


class Axis(NamedTuple):
    """A map from values to positions in points."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Return about five round values; on a logarithmic axis 1, 2 and 5 of each decade."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if self.high < 300 * self.low else (1,)
            return [t for d in decades for s in steps if self.low <= (t := s * 10.0**d) <= self.high]
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return [place * step for place in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)


def axis(values: Sequence[float], start: float, end: float, log: bool = False) -> Axis:
    """Return an axis that covers the values with a margin."""
    low, high = min(values), max(values)
    if log and low > 0 and high > low:
        return Axis(low / 1.2, high * 1.2, start, end, log=True)
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return Axis(low - room, high + room, start, end)


def line_chart(lines: Sequence[Line], description: str, x_label: str, y_label: str, log: bool = False) -> Drawing:
    """Draw curves over steps with a legend; ``log`` sets a logarithmic axis of values."""
    log = log and all(min(line.low) > 0 for line in lines)
    x = _across([value for line in lines for value in (line.x[0], line.x[-1])])
    y = _upwards([v for line in lines for v in (min(line.low), max(line.high))], log)
    shapes = [*_vertical_axis(y, y_label), *_horizontal_axis(x, x_label, TOP + PLOT)]
    shapes += [_band(line, x, y) for line in lines]
    shapes += [shape for line in lines for shape in _curve(line, x, y)]
    return _with_legend(shapes, [(line.series, line.text) for line in lines], description)


def _across(values: Sequence[float], log: bool = False) -> Axis:
    return axis(values, LEFT, COLUMN - RIGHT, log)


def _upwards(values: Sequence[float], log: bool = False) -> Axis:
    return axis(values, TOP + PLOT, TOP, log)


def _band(line: Line, x: Axis, y: Axis) -> Path:
    edge = [*zip(line.x, line.high, strict=True), *reversed(list(zip(line.x, line.low, strict=True)))]
    return Path([(x.at(a), y.at(b)) for a, b in edge], f"band {series_name(line.series)}", closed=True)


def _curve(line: Line, x: Axis, y: Axis) -> list[Shape]:
    points = [(x.at(a), y.at(b)) for a, b in zip(line.x, line.y, strict=True)]
    marks = [marker(*point, line.series, line.text) for point in points] if len(points) <= 12 else []
    return [Path(points, f"line {series_name(line.series)}", title=line.text), *marks]


def scatter(
    points: Sequence[Point], names: Sequence[tuple[int, str]], description: str, x_label: str, y_label: str
) -> Drawing:
    """Draw accuracy over cost with a legend; the axis of costs is logarithmic if they span a decade or more."""
    costs = [point.x for point in points]
    x = _across(costs, log=min(costs) > 0 and max(costs) > 10 * min(costs))
    y = _upwards([value for point in points for value in (point.low, point.high)])
    shapes = [*_vertical_axis(y, y_label), *_horizontal_axis(x, x_label, TOP + PLOT)]
    shapes += [shape for point in points for shape in _dot(point, x, y)]
    return _with_legend(shapes, names, description)


def categories(
    points: Sequence[Point], names: Sequence[str], means: Sequence[float], description: str, x_label: str, y_label: str
) -> Drawing:
    """Draw the points of each category (``x`` is its index) and a line through the means."""
    x = Axis(-0.5, len(names) - 0.5, LEFT, COLUMN - RIGHT)
    y = _upwards([v for point in points for v in (point.low, point.high)] + list(means))
    room = (x.end - x.start) / len(names) - 4
    labels = [
        Text(x.at(place), TOP + PLOT + 10, shortened_label(name, room), "middle", title=name)
        for place, name in enumerate(names)
    ]
    title = Text((x.start + x.end) / 2, TOP + PLOT + 22, shortened_label(x_label, COLUMN - LEFT), "middle")
    mean = Path([(x.at(place), y.at(value)) for place, value in enumerate(means)], "mean")
    dots = [shape for point in points for shape in _dot(point, x, y)]
    return _with_legend([*_vertical_axis(y, y_label), *labels, title, mean, *dots], [], description)


def _dot(point: Point, x: Axis, y: Axis) -> list[Shape]:
    across, style = x.at(point.x), "line rest" if point.series is None else f"line {series_name(point.series)}"
    spread = Path([(across, y.at(point.low)), (across, y.at(point.high))], style)
    place = across, y.at(point.y)
    mark = Circle(*place, 2.4, "seed", point.text) if point.series is None else marker(*place, point.series, point.text)
    return [*([spread] if point.high > point.low else []), mark]


def row_chart(rows: Sequence[Row], description: str, x_label: str, zero: bool) -> Drawing:
    """Draw a row for each value: its interval, and seeds as small dots; ``zero`` marks the zero of differences."""
    label = min(ROW_LABEL, max(len(row.label) for row in rows) * CHARACTER)
    values = [v for row in rows for v in (row.value, *(row.ends or ()), *row.dots)] + ([0.0] if zero else [])
    x = axis(values, label + 8, COLUMN - RIGHT)
    bottom = 4 + ROW * len(rows)
    shapes: list[Shape] = [Path([(x.at(tick), 2), (x.at(tick), bottom)], "grid") for tick in _spaced(x)]
    shapes += [Path([(x.at(0), 2), (x.at(0), bottom)], "zero")] if zero else []
    for place, row in enumerate(rows):
        shapes += _row(row, 4 + ROW * (place + 0.5), x, label)
    shapes += _horizontal_axis(x, x_label, bottom)
    return Drawing(COLUMN, bottom + AXIS, description, shapes)


def _row(row: Row, middle: float, x: Axis, label: float) -> list[Shape]:
    name = Text(label + 3, middle + TEXT / 3, shortened_label(row.label, label), "end", title=row.label)
    ends = [Path([(x.at(row.ends[0]), middle), (x.at(row.ends[1]), middle)], "interval")] if row.ends else []
    dots = [Circle(x.at(dot), middle + 3.2, 1.2, "seed") for dot in row.dots]
    return [name, *ends, *dots, Circle(x.at(row.value), middle, 2.4, "value", row.text)]


class HeatCell(NamedTuple):
    """The text of a cell, and its colour: from -1 (less) over 0 (none) to 1 (more).

    A cell that is too narrow for its text has ``short`` instead, or only the colour and the tooltip ``title``.
    """

    text: str
    shade: float
    title: str
    short: str = ""


def heat_map(
    cells: Sequence[Sequence[HeatCell]], names: Sequence[str], description: str, x_label: str, y_label: str
) -> Drawing:
    """Draw a table of classes by classes with coloured cells."""
    width = COLUMN if len(names) <= FEW_CLASSES else WIDE
    room = min(60.0, max(map(len, names)) * CHARACTER)
    left, top = room + 14, room + 14
    size = (width - left - 2) / len(names)
    height = min(size, 16.0)
    shapes: list[Shape] = [Text(left + (width - left) / 2, 8, x_label, "middle")]
    shapes.append(Text(8, top + height * len(names) / 2, y_label, "middle", turned=True))
    for place, name in enumerate(names):
        short = shortened_label(name, room)
        shapes.append(Text(left - 3, top + height * (place + 0.5) + TEXT / 3, short, "end", title=name))
        shapes.append(Text(left + size * (place + 0.5) + TEXT / 3, top - 3, short, "start", turned=True, title=name))
    for row, line in enumerate(cells):
        for column, cell in enumerate(line):
            shapes += _heat_cell(cell, left + size * column, top + height * row, size, height)
    return Drawing(width, top + height * len(names) + 2, description, shapes)


def _heat_cell(cell: HeatCell, x: float, y: float, width: float, height: float) -> list[Shape]:
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    style, opacity = "cell more" if cell.shade >= 0 else "cell less", DARKEST * min(1.0, abs(cell.shade))
    area = [Path(corners, style, closed=True, opacity=opacity, title=cell.title)] if opacity >= 0.01 else []
    text = next((text for text in (cell.text, cell.short) if len(text) * CHARACTER <= width), "")
    return [*area, Text(x + width / 2, y + height / 2 + TEXT / 3, text, "middle")]


def _with_legend(shapes: list[Shape], names: Sequence[tuple[int, str]], description: str) -> Drawing:
    """Add a legend below a plot: one line of entries after the other, as many as fit."""
    top = TOP + PLOT + AXIS
    x, y, legend = LEFT, top + 4, list[Shape]()
    for series, name in names[:SERIES]:
        text = shortened_label(name, COLUMN - LEFT - RIGHT - 18)
        width = 18 + len(text) * CHARACTER + 8
        if x > LEFT and x + width > COLUMN:
            x, y = LEFT, y + LEGEND_ROW
        legend += [*legend_key(x, y, series), Text(x + 18, y + TEXT / 3, text, title=name)]
        x += width
    return Drawing(COLUMN, y + 8 if legend else top, description, [*shapes, *legend])


def _vertical_axis(y: Axis, label: str) -> list[Shape]:
    """Draw grid lines, value labels and both axes of a plot."""
    shapes: list[Shape] = []
    for tick in y.ticks():
        shapes.append(Path([(LEFT, y.at(tick)), (COLUMN - RIGHT, y.at(tick))], "grid"))
        shapes.append(Text(LEFT - 4, y.at(tick) + TEXT / 3, _short(tick), "end"))
    shapes.append(Path([(LEFT, TOP), (LEFT, TOP + PLOT), (COLUMN - RIGHT, TOP + PLOT)], "axis"))
    shapes.append(Text(9, TOP + PLOT / 2, label, "middle", turned=True))
    return shapes


def _horizontal_axis(x: Axis, label: str, bottom: float) -> list[Shape]:
    """Draw the line, the ticks and the label of the horizontal axis."""
    shapes: list[Shape] = [Path([(x.start, bottom), (x.end, bottom)], "axis")]
    for tick in _spaced(x):
        shapes.append(Path([(x.at(tick), bottom), (x.at(tick), bottom + 3)], "axis"))
        shapes.append(Text(x.at(tick), bottom + 11, _short(tick), "middle"))
    # The label of a narrow plot may begin left of it.
    width = len(label) * CHARACTER
    middle = min((x.start + x.end) / 2, COLUMN - RIGHT - width / 2) if width < COLUMN else COLUMN / 2
    return [*shapes, Text(middle, bottom + 22, shortened_label(label, COLUMN - RIGHT), "middle")]


def _spaced(x: Axis) -> list[float]:
    """Return ticks that do not overlap."""
    ticks = x.ticks()
    near = any(abs(x.at(b) - x.at(a)) < 22 for a, b in pairwise(ticks))
    return ticks[::2] if near else ticks


def _short(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:g}" if abs(value) < 1e4 else f"{value / 1000:g}k"
