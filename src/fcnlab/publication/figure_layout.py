"""Places of the images, titles and legend of an example figure, in points from the upper left corner."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from fcnlab.publication.example_figure import ExampleFigure

GAP, LINE, SWATCH = 2.5, 9.0, 7.0  # points: between cells, from line to line, side of a colour of the legend
OUTLINE = 0.4  # points: line around a colour
MOST_LINES = 3  # of a title
Measure = Callable[[str], float]  # width of a text in points


class Box(NamedTuple):
    """A rectangle in points."""

    left: float
    top: float
    width: float
    height: float


class Layout(NamedTuple):
    """Places in points: of the cells by row and column, of titles by column and line, and of the legend's entries."""

    width: float
    height: float
    cells: list[list[Box]]
    titles: list[list[tuple[float, float, str]]]
    legend: list[Box]


def layout(figure: ExampleFigure, width: float, text_width: Measure) -> Layout:
    """Return the places of everything in a figure of ``width`` points.

    All rows have the same height, which is the largest at which each image keeps its aspect ratio and fits its column.
    """
    columns = len(figure.titles)
    cell_width = (width - (columns - 1) * GAP) / columns
    height = min(cell_width * row.target.shape[0] / row.target.shape[1] for row in figure.rows)
    lines = [fitted(title, cell_width, text_width) for title in figure.titles]
    top = LINE * max(map(len, lines)) + 1
    cells = [
        [
            _centred(column * (cell_width + GAP), top + number * (height + GAP), cell_width, height, row.target.shape)
            for column in range(columns)
        ]
        for number, row in enumerate(figure.rows)
    ]
    titles = [
        [
            (column * (cell_width + GAP) + cell_width / 2, top - 3 - LINE * (len(own) - 1 - line), text)
            for line, text in enumerate(own)
        ]
        for column, own in enumerate(lines)
    ]
    bottom = top + len(figure.rows) * (height + GAP) + 2
    legend = _legend_boxes([name for name, _ in figure.legend], bottom, width, text_width)
    return Layout(width, legend[-1].top + LINE + 1, cells, titles, legend)


def _centred(left: float, top: float, width: float, height: float, shape: tuple[int, ...]) -> Box:
    own = height * shape[1] / shape[0]
    return Box(left + (width - own) / 2, top, own, height)


def _legend_boxes(names: Sequence[str], top: float, width: float, text_width: Measure) -> list[Box]:
    """Return the places of the colours and names, in as many lines as the width requires."""
    boxes, left = [], OUTLINE
    for name in names:
        needed = min(width - OUTLINE, SWATCH + 3 + text_width(name))
        if left + needed > width and left > OUTLINE:
            left, top = OUTLINE, top + LINE + 1
        boxes.append(Box(left, top, needed, LINE))
        left += needed + 8
    return boxes


def fitted(text: str, width: float, text_width: Measure) -> list[str]:
    """Return a text in lines that fit a width, broken at spaces and after ``=``; what does not fit is cut."""
    lines: list[str] = []
    for word in text.replace("=", "=\0").replace(" ", " \0").split("\0"):
        if lines and text_width((lines[-1] + word).rstrip()) <= width:
            lines[-1] += word
        else:
            lines.append(word)
    cut = len(lines) > MOST_LINES
    kept = [_cut(line.rstrip(), width, text_width) for line in lines[:MOST_LINES]]
    return [*kept[:-1], _cut(f"{kept[-1]}…", width, text_width)] if cut else kept


def _cut(text: str, width: float, text_width: Measure) -> str:
    """Return a text, or as much of its beginning as fits a width, with an ellipsis."""
    if text_width(text) <= width:
        return text
    return next((f"{text[:end]}…" for end in range(len(text), 0, -1) if text_width(f"{text[:end]}…") <= width), "…")


def fitted_name(name: str, box: Box, text_width: Measure) -> str:
    """Return a name of the legend, cut to the width of its place."""
    return _cut(name, box.width - SWATCH - 3 + 0.01, text_width)
