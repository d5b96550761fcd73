"""Write a comparison as one self-contained HTML page: no network, no library, no other files.

Its template, style and script are in ``html/``. jinja2 escapes all text from run folders (autoescape).
"""

import base64
import re
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from fcnlab.comparison import figures, formats, tables
from fcnlab.comparison.comparison import Comparison
from fcnlab.comparison.confusions import confusions
from fcnlab.comparison.csv_files import table_csv
from fcnlab.comparison.drawing import SERIES, page_svg, paper_svg, swatch
from fcnlab.comparison.figures import CurveFigure, Figure
from fcnlab.comparison.image_panels import image_panels
from fcnlab.comparison.intervals import FEWEST_IMAGES
from fcnlab.comparison.latex import latex
from fcnlab.comparison.pairs import Pair
from fcnlab.comparison.ranking import answers
from fcnlab.comparison.tables import Table
from fcnlab.comparison.terminal import common_lines
from fcnlab.escaping import escape_terminal
from fcnlab.files.writing import atomic_write

LONG_WORD = re.compile(r"\S{25,}")
BREAK = re.compile(r"(?<=[=/_])(?=\w)|(?<=[a-z]\.)(?=[a-z])")
MOST_LISTED_PAIRS = 6  # with a list of the images on which they differ most


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
        scripts=[_part(loader, environment, name) for name in ("page.js", "theme.js")],
        answers=answers(comparison),
        headline=tables.headline(comparison),
        common=common_lines(comparison),
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
        panels=image_panels(comparison),
        alpha=1 - comparison.confidence,
        fewest_images=FEWEST_IMAGES,
        made_with=tables.made_with(comparison),
        level=Markup(f"{100 * comparison.confidence:g}&nbsp;%"),
    )


def _with_values(each: CurveFigure, comparison: Comparison) -> tuple[Figure, Table]:
    """Return a figure of curves and the table of its values."""
    name, title = each.figure.name, each.figure.title
    return each.figure, tables.curve_table(name, title, each.curves, each.scale, comparison)


def _breakable(text: str) -> Markup:
    """Return text in which lines may break inside a long word, behind its punctuation, but never before %."""
    broken = LONG_WORD.sub(lambda word: BREAK.sub("<wbr>", word[0]), str(escape(text)))
    return Markup(broken.replace(" %", "&nbsp;%"))


def _download(text: str, kind: str) -> str:
    """Return the address of a file that is inside the page."""
    return f"data:{kind};base64,{base64.b64encode(text.encode(errors='replace')).decode()}"


def _part(loader: PackageLoader, environment: Environment, name: str) -> Markup:
    """Return a file of the package, unescaped."""
    return Markup(loader.get_source(environment, name)[0])


def _apart(comparison: Comparison) -> list[Pair]:
    """Return the pairs for which the page lists images."""
    return [pair for pair in comparison.pairs if pair.apart][:MOST_LISTED_PAIRS]
