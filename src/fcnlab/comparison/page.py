"""Write a comparison as one self-contained HTML page: no network, no library, no other files.

Its template, style and script are in ``html/``. jinja2 escapes all text from run folders (autoescape), and images are
encoded again.
"""

import base64
import io
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from fcnlab.comparison import figures, formats, tables
from fcnlab.comparison.comparison import Comparison
from fcnlab.comparison.confusions import confusions
from fcnlab.comparison.csv_files import table_csv
from fcnlab.comparison.drawing import SERIES, page_svg, paper_svg, swatch
from fcnlab.comparison.figures import CurveFigure, Figure
from fcnlab.comparison.grouping import Group
from fcnlab.comparison.intervals import FEWEST_IMAGES
from fcnlab.comparison.latex import latex
from fcnlab.comparison.pairs import Pair, image_scores
from fcnlab.comparison.ranking import answers
from fcnlab.comparison.tables import Table
from fcnlab.comparison.terminal import common_lines
from fcnlab.escaping import escape_terminal
from fcnlab.files.reading import bytes_of
from fcnlab.files.writing import atomic_write

LONG_WORD = re.compile(r"\S{25,}")
BREAK = re.compile(r"(?<=[=/_])(?=\w)|(?<=[a-z]\.)(?=[a-z])")
MOST_PANELS, MOST_SHOWN_GROUPS = 6, 4
PANEL_WIDTH = 960  # pixels
PANEL_BYTES, PANEL_PIXELS = 64 << 20, 60_000_000  # limits on a drawing of three images side by side


class Panel(NamedTuple):
    """A group's drawing of an image, and its mean IoU on it."""

    group: Group
    miou: float
    seed: int | None
    data: str


def write_page(path: Path, comparison: Comparison, command: str) -> None:
    """Write the page atomically."""
    with atomic_write(path) as part:
        part.write_text(escape_terminal(page(comparison, command)), encoding="utf-8", errors="replace")


def page(comparison: Comparison, command: str) -> str:
    """Return the HTML text; ``command`` is the command line that made the comparison."""
    loader = PackageLoader("fcnlab.comparison", "html")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": formats.percent,
        "points": formats.points,
        "svg": page_svg,
        "breakable": _breakable,
        "download": _download,
    }
    found = confusions(comparison)
    return environment.get_template("page.html").render(
        it=comparison,
        command=command,
        made=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        style=_part(loader, environment, "page.css"),
        script=_part(loader, environment, "page.js"),
        answers=answers(comparison),
        headline=tables.headline(comparison),
        common=common_lines(comparison),
        titled=tables.titled,
        series={found.name: place for place, found in enumerate(comparison.groups)},
        swatch=swatch,
        most_series=SERIES,
        paper_svg=paper_svg,
        latex=latex,
        csv=table_csv,
        tables={table.name: table for table in tables.result_tables(comparison)},
        class_differences=tables.class_difference_tables(comparison),
        runs=tables.run_table(comparison),
        excluded=tables.excluded_table(comparison),
        differences=figures.difference_figure(comparison),
        scores=figures.score_figure(comparison),
        confusions=figures.confusion_figures(comparison, found),
        unreadable=[group for group, matrix in zip(found.groups, found.matrices, strict=True) if matrix is None],
        curves=[_with_values(each, comparison) for each in figures.curve_figures(comparison)],
        costs=figures.cost_figures(comparison),
        settings=figures.setting_figures(comparison),
        apart=_apart(comparison),
        panels=_panels(comparison),
        alpha=1 - comparison.confidence,
        fewest_images=FEWEST_IMAGES,
        made_with=tables.made_with(comparison),
        level=f"{100 * comparison.confidence:g} %",
    )


def _with_values(each: CurveFigure, comparison: Comparison) -> tuple[Figure, Table]:
    """Return a figure of curves and the table of its values."""
    name, title = each.figure.name, each.figure.title
    return each.figure, tables.curve_table(name, title, each.curves, each.scale, comparison)


def _breakable(text: str) -> Markup:
    """Return text in which lines may break inside a long word, behind its punctuation."""
    return Markup(LONG_WORD.sub(lambda word: BREAK.sub("<wbr>", word[0]), str(escape(text))))


def _download(text: str, kind: str) -> str:
    """Return the address of a file that is inside the page."""
    return f"data:{kind};base64,{base64.b64encode(text.encode(errors='replace')).decode()}"


def _part(loader: PackageLoader, environment: Environment, name: str) -> Markup:
    """Return a file of the package, unescaped."""
    return Markup(loader.get_source(environment, name)[0])


def _apart(comparison: Comparison) -> list[Pair]:
    """Return the pairs for which the page lists images."""
    return [pair for pair in comparison.pairs if pair.apart][:MOST_PANELS]


def _panels(comparison: Comparison) -> list[tuple[str, list[Panel]]]:
    """Return the images that several groups drew, with their drawings; those with the largest difference first."""
    drawing = [(group, shown) for group in comparison.groups if (shown := _drawn(group))][:MOST_SHOWN_GROUPS]
    if len(drawing) < 2:
        return []
    names = [name for name in drawing[0][1] if all(name in shown for _, shown in drawing)]
    by_name = [_by_image(group) for group, _ in drawing]
    scored = [(name, [mious[name] for mious in by_name]) for name in names]
    scored.sort(key=lambda entry: min(entry[1]) - max(entry[1]))
    panels = []
    for name, mious in scored[:MOST_PANELS]:
        row = [
            Panel(group, miou, group.runs[0].seed, data)
            for (group, shown), miou in zip(drawing, mious, strict=True)
            if (data := _image(shown[name]))
        ]
        if len(row) > 1:
            panels.append((name, row))
    return panels


def _drawn(group: Group) -> dict[str, Path]:
    """Return the drawings of a group's first run by image name."""
    run = group.runs[0]
    paths = {name: run.panel(name) for name in run.names} if (run.folder / "predictions").is_dir() else {}
    return {name: path for name, path in paths.items() if path}


def _by_image(group: Group) -> dict[str, float]:
    """Return the mean IoU of a group's first run on each image."""
    first = Group(group.parts, group.runs[:1])
    return dict(zip(first.runs[0].names, image_scores(first).tolist(), strict=True))


def _image(path: Path) -> str | None:
    """Return an image as a data URL, scaled to the page; None if it is invalid or too large."""
    try:
        with Image.open(io.BytesIO(bytes_of(path, PANEL_BYTES)), formats=["PNG"]) as image:
            if image.width * image.height > PANEL_PIXELS:
                return None
            image.thumbnail((PANEL_WIDTH, PANEL_WIDTH))
            file = io.BytesIO()
            image.convert("RGB").save(file, "JPEG", quality=88, subsampling=0)
    except Exception:  # PIL's plugins raise many kinds of errors
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
