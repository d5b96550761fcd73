"""Tables as LaTeX for the package booktabs."""

import re
from itertools import compress
from textwrap import wrap

from fcnlab.comparison.formats import MINUS
from fcnlab.comparison.tables import Cell, Table
from fcnlab.escaping import escape_line

SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    '"': r"\textquotedbl{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    MINUS: "$-$",
}
NUMBER = re.compile(r"-(?=\d)")
JOINED = "\u2060"  # in place of a space at which no line ends
MOST_CHARACTERS = 24  # on a line of a cell with text, such as the names of a pair
MANY_COLUMNS = 12  # a table with more, such as a confusion matrix, has its titles turned


def latex(table: Table) -> str:
    """Return a tabular with the best numbers in bold; its first line names the packages that a document needs."""
    table = _printed(table)
    packages = "booktabs,graphicx" if _is_wide(table) else "booktabs"
    kinds = "".join("r" if column.is_number else "l" for column in table.columns)
    lines = [
        f"% {escape_line(table.title)}. {escape_line(table.caption)} Needs \\usepackage{{{packages}}}.",
        rf"\begin{{tabular}}{{{kinds}}}",
        r"\toprule",
        _row([_header(table, place) for place in range(len(table.columns))]),
        r"\midrule",
        *(_row([_cell(cell) for cell in row]) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _printed(table: Table) -> Table:
    """Return the table without the columns that stay out of a paper."""
    shown = [column.printed for column in table.columns]
    return table._replace(
        columns=list(compress(table.columns, shown)), rows=[list(compress(row, shown)) for row in table.rows]
    )


def _is_wide(table: Table) -> bool:
    return len(table.columns) > MANY_COLUMNS


def _header(table: Table, place: int) -> str:
    """Return a title in lines no longer than the column's cells or its own longest word, so that tables are narrow."""
    column, texts = table.columns[place], [row[place].text for row in table.rows]
    if _is_wide(table) and column.is_number:
        return rf"\rotatebox{{90}}{{{escape_latex(column.title)}}}"
    title = column.title.replace(" %", f"{JOINED}%")  # a unit stands behind its word
    lines = wrap(title, max(map(len, [*texts, *title.split(" ")]), default=1), break_on_hyphens=False)
    return _stacked([line.replace(JOINED, " ") for line in lines], "r" if column.is_number else "l")


def _stacked(lines: list[str], side: str) -> str:
    stacked = r" \\ ".join(map(escape_latex, lines))
    return rf"\shortstack[{side}]{{{stacked}}}" if len(lines) > 1 else stacked


def _row(cells: list[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _cell(cell: Cell) -> str:
    if cell.value is None:
        lines = wrap(cell.text, MOST_CHARACTERS, break_on_hyphens=False, break_long_words=False)
        return "--" if cell.text == "-" else _stacked(lines, "l")
    number, plus, spread = escape_latex(NUMBER.sub(MINUS, cell.text)).partition(r" $\pm$")
    return (rf"\textbf{{{number}}}" if cell.best else number) + plus + spread


def escape_latex(text: str) -> str:
    """Return text as one line without commands of LaTeX."""
    return "".join(SPECIAL.get(character, character) for character in escape_line(text))
