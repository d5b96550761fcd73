"""Write a drawing as PDF with matplotlib, an optional package, which embeds fonts as publishers require."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

from fcnlab.comparison.drawing import TEXT, Circle, Drawing, Path, Text, style_of

HINT = "PDF figures need matplotlib: pip install 'fcnlab[paper]'"

FONT = "DejaVu Sans"
MISSING_GLYPHS = (
    f"The font of the figures, {FONT}, lacks characters of some names, which are drawn as boxes. Choose other names for"
    " the groups with names=, or rename the classes"
)


def is_available() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write_pdf(path: FilePath, drawing: Drawing) -> None:
    """Write a drawing in its own size; two equal drawings give equal files."""
    from matplotlib.figure import Figure
    from matplotlib.transforms import Affine2D

    figure = Figure(figsize=(drawing.width / 72, drawing.height / 72))
    # Points from the upper left corner, as in SVG.
    place = Affine2D().scale(1 / drawing.width, -1 / drawing.height).translate(0, 1) + figure.transFigure
    with embedded_fonts():
        for shape in drawing.shapes:
            figure.add_artist(_text(shape, place) if isinstance(shape, Text) else _patch(shape, place))
        metadata: dict[str, Any] = {"Title": drawing.description, "CreationDate": None}
        figure.savefig(path, format="pdf", transparent=True, metadata=metadata)


@contextmanager
def embedded_fonts() -> Iterator[None]:
    """Make matplotlib draw text in one size and embed its font as TrueType, not as Type 3."""
    from matplotlib import rc_context

    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it logs each table of a font
    style: dict[Any, Any] = {"pdf.fonttype": 42, "font.family": FONT, "font.size": TEXT}
    with rc_context(style), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    missing = [each for each in caught if str(each.message).startswith("Glyph ")]
    if missing:
        logging.getLogger("fcnlab").warning(MISSING_GLYPHS)
    for other in (each for each in caught if each not in missing):
        warnings.warn(other.message, other.category, stacklevel=2)


def _text(shape: Text, place: Any) -> Any:
    from matplotlib.text import Text as TextArtist

    along = {"start": "left", "middle": "center", "end": "right"}[shape.anchor]
    across = {"start": "bottom", "middle": "center", "end": "top"}[shape.anchor]
    look: dict[str, Any] = {"ha": along, "va": "baseline"}
    if shape.turned:
        look = {"ha": "right", "va": across, "rotation": 90}
    colour = style_of(shape).fill
    return TextArtist(shape.x, shape.y, shape.text, color=colour, parse_math=False, transform=place, **look)


def _patch(shape: Circle | Path, place: Any) -> Any:
    from matplotlib import patches

    style = style_of(shape)
    look: dict[str, Any] = {
        "facecolor": style.fill or "none",
        "edgecolor": style.stroke or "none",
        "linewidth": style.width if style.stroke else 0,
        "linestyle": (0, style.dash) if style.dash else "solid",
        "alpha": style.opacity if style.opacity < 1 else None,
        "transform": place,
    }
    if isinstance(shape, Circle):
        return patches.Circle((shape.x, shape.y), shape.radius, **look)
    return patches.Polygon(list(shape.points), closed=shape.closed, **look)
