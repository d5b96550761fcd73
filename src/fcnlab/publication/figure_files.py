"""Write an example figure as PDF, with embedded fonts, and as PNG."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fcnlab.comparison.pdf import embedded_fonts
from fcnlab.files.writing import atomic_write
from fcnlab.publication.example_figure import ExampleFigure
from fcnlab.publication.figure_layout import OUTLINE, SWATCH, Box, Layout, Measure, fitted_name, layout
from fcnlab.runs.drawing import RGB, colours

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 72  # to an inch
DOTS = 300  # pixels to an inch, of the PNG and of the images in the PDF
WIDTHS = {"column": 3.25, "text": 6.875}  # inches: a column, and both columns with their gap, of CVPR's style


def write_figure(figure: ExampleFigure, width: str, pdf: Path, png: Path, description: str) -> None:
    """Write a figure as wide as a ``column`` or as the ``text``; equal figures give equal files.

    ``description`` is the title in the PDF. matplotlib must be installed.
    """
    from matplotlib.figure import Figure

    with embedded_fonts():
        measure = text_measure()
        places = layout(figure, POINTS * WIDTHS[width], measure)
        drawing = Figure(figsize=(places.width / POINTS, places.height / POINTS), facecolor="white")
        _draw(drawing, figure, places, measure)
        for path, kind, metadata in (
            (pdf, "pdf", {"Title": description, "CreationDate": None}),
            (png, "png", {"Software": None}),
        ):
            with atomic_write(path) as part:
                drawing.savefig(part, format=kind, dpi=DOTS, metadata=metadata)


def text_measure() -> Measure:
    """Return the function that measures a text in points, in the font of the figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=POINTS)
    renderer: Any = FigureCanvasAgg(figure).get_renderer()
    shown = figure.text(0, 0, "", parse_math=False)

    def width(text: str) -> float:
        shown.set_text(text)
        return float(shown.get_window_extent(renderer).width)

    return width


def _draw(drawing: "Figure", figure: ExampleFigure, places: Layout, measure: Measure) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.transforms import Affine2D

    # Points from the upper left corner.
    place = Affine2D().scale(1 / places.width, -1 / places.height).translate(0, 1) + drawing.transFigure
    for row, boxes in zip(figure.rows, places.cells, strict=True):
        maps = [colours(labels, figure.palette) for labels in (*row.predictions, row.target)]
        for pixels, box in zip((row.image, *maps), boxes, strict=True):
            _add_image(drawing, pixels, box, places, smooth=pixels is row.image)
    look: dict[str, Any] = {"parse_math": False, "transform": place, "va": "baseline"}
    for lines in places.titles:
        for x, y, text in lines:
            drawing.text(x, y, text, ha="center", **look)
    for (name, colour), box in zip(figure.legend, places.legend, strict=True):
        face = [value / 255 for value in colour]
        swatch = Rectangle((box.left, box.top), SWATCH, SWATCH, facecolor=face, edgecolor="black", linewidth=OUTLINE)
        swatch.set_transform(place)
        drawing.add_artist(swatch)
        drawing.text(box.left + SWATCH + 3, box.top + SWATCH - 1, fitted_name(name, box, measure), ha="left", **look)


def _add_image(drawing: "Figure", pixels: RGB, box: Box, places: Layout, smooth: bool) -> None:
    """Add an image, resampled to the pixels of the PNG; class maps without mixing colours."""
    size = (max(1, round(box.width * DOTS / POINTS)), max(1, round(box.height * DOTS / POINTS)))
    filter = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    area = (box.left / places.width, 1 - (box.top + box.height) / places.height)
    axes = drawing.add_axes((*area, box.width / places.width, box.height / places.height))
    axes.imshow(Image.fromarray(pixels).resize(size, filter), aspect="auto", interpolation="none")
    axes.set_axis_off()
