"""Draw charts as SVG text, without a library; the page's style sheet sets the colours, so charts follow its theme.

The number of a series determines its colour, dash and marker (``.s0`` ...), so that no series is identified by colour
alone. All text is escaped here.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 46
SERIES = 8  # with distinct styles; further series are grey
MARKERS = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0",
    "M-4,-4h8v8h-8z",
    "M0,-5L5,4H-5z",
    "M0,-5.5L5.5,0L0,5.5L-5.5,0z",
)


class Point(NamedTuple):
    """A marker with a line from ``low`` to ``high``; ``text`` is the tooltip."""

    x: float
    y: float
    low: float
    high: float
    series: int
    text: str


class Line(NamedTuple):
    """A curve with a band from ``low`` to ``high``; ``text`` is the tooltip."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    series: int
    text: str


class Axis(NamedTuple):
    """A map from values to pixels."""

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


def line_chart(lines: Sequence[Line], title: str, x_label: str, y_label: str, log: bool = False) -> Markup:
    """Draw curves over steps; ``log`` sets a logarithmic axis of values."""
    log = log and all(min(line.low) > 0 for line in lines)
    x = axis([value for line in lines for value in (line.x[0], line.x[-1])], LEFT, WIDTH - RIGHT)
    y = axis([v for line in lines for v in (min(line.low), max(line.high))], HEIGHT - BOTTOM, TOP, log)
    bands = [_band(line, x, y) for line in lines]
    curves = [_curve(line, x, y) for line in lines]
    return _svg(title, [_frame(y, y_label), _horizontal_axis(x, x_label), *bands, *curves])


def _band(line: Line, x: Axis, y: Axis) -> str:
    edge = [*zip(line.x, line.high, strict=True), *reversed(list(zip(line.x, line.low, strict=True)))]
    return f'<polygon class="band {_series(line.series)}" points="{_points(edge, x, y)}"/>'


def _curve(line: Line, x: Axis, y: Axis) -> str:
    points = list(zip(line.x, line.y, strict=True))
    marks = [_marker(x.at(a), y.at(b), line.series) for a, b in points] if len(points) <= 12 else []
    drawn = f'<polyline class="line {_series(line.series)}" points="{_points(points, x, y)}"/>{"".join(marks)}'
    return f"<g><title>{escape(line.text)}</title>{drawn}</g>"


def scatter(points: Sequence[Point], title: str, x_label: str, y_label: str) -> Markup:
    """Draw accuracy over cost; the axis of costs is logarithmic if they span a decade or more."""
    costs = [point.x for point in points]
    x = axis(costs, LEFT, WIDTH - RIGHT, log=min(costs) > 0 and max(costs) > 10 * min(costs))
    y = axis([value for point in points for value in (point.low, point.high)], HEIGHT - BOTTOM, TOP)
    return _svg(title, [_frame(y, y_label), _horizontal_axis(x, x_label), *(_dot(point, x, y) for point in points)])


def categories(
    points: Sequence[Point], names: Sequence[str], means: Sequence[float], title: str, y_label: str
) -> Markup:
    """Draw the points of each category (``x`` is its index) and a line through the means."""
    x = Axis(-0.5, len(names) - 0.5, LEFT, WIDTH - RIGHT)
    y = axis([v for point in points for v in (point.low, point.high)] + list(means), HEIGHT - BOTTOM, TOP)
    most = max(6, int(70 / len(names)))  # characters that fit
    labels = [
        f'<text class="tick" x="{x.at(place):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">'
        f"<title>{escape(name)}</title>{escape(name if len(name) <= most else name[: most - 1] + '…')}</text>"
        for place, name in enumerate(names)
    ]
    through = _points(list(enumerate(means)), x, y)
    mean = f'<polyline class="mean" points="{through}"/>'
    drawn = [_dot(point, x, y) for point in points]
    return _svg(title, [_frame(y, y_label), *labels, mean, *drawn])


def _dot(point: Point, x: Axis, y: Axis) -> str:
    across = x.at(point.x)
    spread = (
        f'<path class="line {_series(point.series)}" d="M{across:.1f},{y.at(point.low):.1f}V{y.at(point.high):.1f}"/>'
    )
    mark = _marker(across, y.at(point.y), point.series)
    return f"<g><title>{escape(point.text)}</title>{spread if point.high > point.low else ''}{mark}</g>"


def interval_bar(
    ends: tuple[float, float] | None, value: float, dots: Sequence[float], scale: Axis, text: str
) -> Markup:
    """Draw a value, its interval and the values of seeds as dots, on the common scale of a table column."""
    zero = f'<path class="zero" d="M{scale.at(0):.1f},0V24"/>'
    bar = f'<path class="interval" d="M{scale.at(ends[0]):.1f},8H{scale.at(ends[1]):.1f}"/>' if ends else ""
    mark = f'<circle class="value" cx="{scale.at(value):.1f}" cy="8" r="4"/>'
    seeds = "".join(f'<circle class="seed" cx="{scale.at(dot):.1f}" cy="18" r="2.5"/>' for dot in dots)
    size = f'viewBox="0 0 {scale.end + 6:.0f} 24" width="{scale.end + 6:.0f}" height="24"'
    return Markup(f'<svg class="bar" role="img" aria-label="{escape(text)}" {size}>{zero}{bar}{mark}{seeds}</svg>')


def dots(values: Sequence[float], scale: Axis, text: str) -> Markup:
    """Draw values as dots on the common scale of a table column."""
    size = f'viewBox="0 0 {scale.end + 6:.0f} 16" width="{scale.end + 6:.0f}" height="16"'
    line = f'<path class="grid" d="M{scale.start},8H{scale.end}"/>'
    drawn = "".join(f'<circle class="seed" cx="{scale.at(value):.1f}" cy="8" r="4"/>' for value in values)
    return Markup(f'<svg class="bar" role="img" aria-label="{escape(text)}" {size}>{line}{drawn}</svg>')


def swatch(series: int) -> Markup:
    """Draw the line and marker of a series, for a legend."""
    line = f'<path class="line {_series(series)}" d="M2,8H26"/>'
    return Markup(
        f'<svg class="swatch" aria-hidden="true" viewBox="0 0 28 16" width="28" height="16">{line}'
        f"{_marker(14, 8, series)}</svg>"
    )


def _series(number: int) -> str:
    return f"s{number}" if number < SERIES else "rest"


def _marker(x: float, y: float, series: int) -> str:
    shape = MARKERS[series % len(MARKERS)]
    return f'<path class="marker {_series(series)}" transform="translate({x:.1f},{y:.1f})" d="{shape}"/>'


def _points(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    return " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in points)


def _frame(y: Axis, y_label: str) -> str:
    """Draw grid lines, value labels and both axes."""
    bottom = HEIGHT - BOTTOM
    parts = [
        f'<path class="grid" d="M{LEFT},{y.at(tick):.1f}H{WIDTH - RIGHT}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y.at(tick) + 4:.1f}" text-anchor="end">{_short(tick)}</text>'
        for tick in y.ticks()
    ]
    parts.append(f'<path class="axis" d="M{LEFT},{TOP}V{bottom}H{WIDTH - RIGHT}"/>')
    turned = f"translate(14,{(TOP + bottom) / 2}) rotate(-90)"
    parts.append(f'<text class="label" transform="{turned}" text-anchor="middle">{escape(y_label)}</text>')
    return "".join(parts)


def _horizontal_axis(x: Axis, label: str) -> str:
    """Draw the ticks and the label of the horizontal axis."""
    bottom = HEIGHT - BOTTOM
    parts = [
        f'<path class="grid" d="M{x.at(tick):.1f},{bottom}v4"/>'
        f'<text class="tick" x="{x.at(tick):.1f}" y="{bottom + 17}" text-anchor="middle">{_short(tick)}</text>'
        for tick in _spaced(x)
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(label)}</text>')
    return "".join(parts)


def _spaced(x: Axis) -> list[float]:
    """Return ticks that do not overlap."""
    ticks = x.ticks()
    near = any(x.at(b) - x.at(a) < 34 for a, b in pairwise(ticks))
    return ticks[::2] if near else ticks


def _short(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:g}" if abs(value) < 1e4 else f"{value / 1000:g}k"


def _svg(title: str, parts: Sequence[str]) -> Markup:
    drawn = "".join(parts)
    return Markup(f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {WIDTH} {HEIGHT}">{drawn}</svg>')
