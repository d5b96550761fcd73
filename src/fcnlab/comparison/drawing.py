"""Drawings of simple shapes in points (1/72 inch), and their text as SVG.

On the page, the style sheet sets colours by class, so that drawings follow its theme. In a paper, each shape has its
own colours: those of ``STYLES``, which people with any kind of colour vision can distinguish (Okabe and Ito, 2008).
"""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

COLUMN, WIDE = 237.6, 496.8  # 3.3 and 6.9 inches: a column and the width of a page with two columns
TEXT = 7.5  # size of all text
CHARACTER = 0.6 * TEXT  # width of a character of it, on average
FONTS = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
SERIES = 8  # with distinct styles; further series are grey
SERIES_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b3578f", "#000000", "#b87f00", "#2f93d1", "#882255")
DASHES = ((), (5, 2), (1.5, 2), (6, 2, 1.5, 2))
INK, SOFT, FAINT = "#000000", "#595959", "#d9d9d9"
MORE, LESS = "#0072b2", "#d55e00"


class Style(NamedTuple):
    """Colours of a shape, and width and dashes of its line in points."""

    fill: str | None = None
    stroke: str | None = None
    width: float = 0.6
    dash: tuple[float, ...] = ()
    opacity: float = 1.0


def _series_styles(name: str, colour: str, dash: tuple[float, ...]) -> dict[str, Style]:
    return {
        f"line {name}": Style(stroke=colour, width=1.2, dash=dash),
        f"marker {name}": Style(fill=colour),
        f"band {name}": Style(fill=colour, opacity=0.15),
    }


STYLES = {
    "text": Style(fill=INK),
    "grid": Style(stroke=FAINT, width=0.5),
    "axis": Style(stroke=SOFT),
    "zero": Style(stroke=SOFT, dash=(2, 2)),
    "mean": Style(stroke=SOFT, width=0.8, dash=(1.5, 2)),
    "interval": Style(stroke=MORE, width=1.8),
    "value": Style(fill=MORE),
    "seed": Style(fill=SOFT, opacity=0.75),
    "cell more": Style(fill=MORE),
    "cell less": Style(fill=LESS),
    **_series_styles("rest", SOFT, ()),
}
for _number, _colour in enumerate(SERIES_COLOURS):
    STYLES |= _series_styles(f"s{_number}", _colour, DASHES[_number % len(DASHES)])


class Path(NamedTuple):
    """Straight lines through points, or the area that they enclose; ``title`` is the tooltip."""

    points: Sequence[tuple[float, float]]
    style: str
    closed: bool = False
    opacity: float | None = None
    title: str = ""


class Circle(NamedTuple):
    """A filled circle; ``title`` is the tooltip."""

    x: float
    y: float
    radius: float
    style: str
    title: str = ""


class Text(NamedTuple):
    """A line of text; ``anchor`` is start, middle or end; turned text reads from bottom to top."""

    x: float
    y: float
    text: str
    anchor: str = "start"
    turned: bool = False
    title: str = ""


Shape = Path | Circle | Text


class Drawing(NamedTuple):
    """Shapes on a white or transparent area; ``description`` is for readers who do not see it."""

    width: float
    height: float
    description: str
    shapes: list[Shape]


def series_name(series: int) -> str:
    return f"s{series}" if series < SERIES else "rest"


def marker(x: float, y: float, series: int, title: str = "") -> Shape:
    """Return the marker of a series: a circle, a square, a triangle or a diamond."""
    style = f"marker {series_name(series)}"
    outlines = {
        1: ((-2.2, -2.2), (2.2, -2.2), (2.2, 2.2), (-2.2, 2.2)),
        2: ((0, -2.8), (2.8, 2.2), (-2.8, 2.2)),
        3: ((0, -3.1), (3.1, 0), (0, 3.1), (-3.1, 0)),
    }
    if series % 4 == 0:
        return Circle(x, y, 2.4, style, title)
    return Path([(x + right, y + down) for right, down in outlines[series % 4]], style, closed=True, title=title)


def shortened_label(text: str, width: float) -> str:
    """Return a text that fits a width in points, with an ellipsis in its middle if it was too long."""
    most = max(4, int(width / CHARACTER))
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def page_svg(drawing: Drawing) -> Markup:
    """Return a drawing for the page, whose style sheet sets the colours."""
    least = 800 if drawing.width > COLUMN else 0  # pixels; the box around a wide drawing scrolls
    size = f"width: {1.9 * drawing.width:.0f}px; max-width: 100%; min-width: {least}px"
    box = f'viewBox="0 0 {drawing.width:g} {drawing.height:g}" style="{size}"'
    shapes = "".join(_element(shape, _class(shape)) for shape in drawing.shapes)
    return Markup(f'<svg role="img" aria-label="{escape(drawing.description)}" {box}>{shapes}</svg>')


def paper_svg(drawing: Drawing) -> str:
    """Return a file with a drawing for a paper: its size in points, all colours inside."""
    size = (
        f'width="{drawing.width:g}pt" height="{drawing.height:g}pt" viewBox="0 0 {drawing.width:g} {drawing.height:g}"'
    )
    shapes = "\n".join(_element(shape, _colours(shape)) for shape in drawing.shapes)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{FONTS}" font-size="{TEXT}">'
    return f"{head}\n<title>{escape(drawing.description)}</title>\n{shapes}\n</svg>\n"


def swatch(series: int) -> Markup:
    """Draw the line and marker of a series, for a table of the page."""
    shapes = "".join(_element(shape, _class(shape)) for shape in legend_key(1, 4, series))
    return Markup(f'<svg class="swatch" aria-hidden="true" viewBox="0 0 16 8" width="30" height="15">{shapes}</svg>')


def legend_key(x: float, y: float, series: int) -> list[Shape]:
    """Return the line and marker of a series, 14 points wide."""
    return [Path([(x, y), (x + 14, y)], f"line {series_name(series)}"), marker(x + 7, y, series)]


def _class(shape: Shape) -> str:
    style = "text" if isinstance(shape, Text) else shape.style
    opacity = shape.opacity if isinstance(shape, Path) else None
    return f'class="{style}"' + (f' fill-opacity="{opacity:.2f}"' if opacity is not None else "")


def style_of(shape: Shape) -> Style:
    """Return the style of a shape in a paper."""
    if isinstance(shape, Text):
        return STYLES["text"]
    style = STYLES[shape.style]
    return style._replace(opacity=shape.opacity) if isinstance(shape, Path) and shape.opacity is not None else style


def _colours(shape: Shape) -> str:
    style = style_of(shape)
    values: list[tuple[str, str]] = [("fill", style.fill or "none")]
    if style.stroke:
        values += [("stroke", style.stroke), ("stroke-width", f"{style.width:g}")]
    if style.dash:
        values.append(("stroke-dasharray", " ".join(f"{length:g}" for length in style.dash)))
    if style.opacity < 1:
        values.append(("fill-opacity", f"{style.opacity:.2f}"))
    return " ".join(f'{name}="{value}"' for name, value in values)


def _element(shape: Shape, look: str) -> str:
    title = f"<title>{escape(shape.title)}</title>" if shape.title else ""
    if isinstance(shape, Circle):
        return f'<circle {look} cx="{shape.x:.1f}" cy="{shape.y:.1f}" r="{shape.radius:g}">{title}</circle>'
    if isinstance(shape, Path):
        tag, points = "polygon" if shape.closed else "polyline", " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
        return f'<{tag} {look} points="{points}">{title}</{tag}>'
    place = f'x="{shape.x:.1f}" y="{shape.y:.1f}"'
    if shape.turned:
        place = f'transform="translate({shape.x:.1f},{shape.y:.1f}) rotate(-90)"'
    return f'<text {look} {place} text-anchor="{shape.anchor}">{title}{escape(shape.text)}</text>'
