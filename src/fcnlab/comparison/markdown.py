"""A comparison as Markdown."""

from collections.abc import Sequence

from fcnlab.comparison.comparison import Comparison
from fcnlab.comparison.ranking import answers
from fcnlab.comparison.tables import (
    Table,
    difference_table,
    excluded_table,
    headline,
    made_with,
    result_tables,
    run_table,
    score_table,
)
from fcnlab.comparison.terminal import common_lines
from fcnlab.escaping import escape_markdown


def markdown(comparison: Comparison) -> str:
    """Format the whole comparison as Markdown."""
    parts = ["# Comparison", *_result(comparison), _notes(comparison)]
    for table in (*result_tables(comparison), run_table(comparison)):
        parts += _section(table)
    parts += ["Software and devices of training and evaluation:", bullets(made_with(comparison))]
    if comparison.left_out:
        parts += _section(excluded_table(comparison))
    return "\n\n".join(parts) + "\n"


def result(comparison: Comparison) -> str:
    """Format the result in sentences, the notes, and the tables of scores and differences, without a heading."""
    tables = [table for table in (difference_table(comparison), score_table(comparison)) if table.rows]
    parts = [*_result(comparison), _notes(comparison), *(part for table in tables for part in _section(table))]
    return "\n\n".join(parts) + "\n"


def _result(comparison: Comparison) -> list[str]:
    return [escape_markdown(headline(comparison)) + ".", bullets(answers(comparison))]


def _notes(comparison: Comparison) -> str:
    return bullets([*common_lines(comparison), *comparison.notes, *comparison.selection])


def _section(table: Table) -> list[str]:
    return [f"## {escape_markdown(table.title)}", escape_markdown(table.caption), _pipes(table)]


def bullets(lines: Sequence[str]) -> str:
    """Format sentences as a list."""
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)


def _pipes(table: Table) -> str:
    head = [escape_markdown(column.title) for column in table.columns]
    align = ["---:" if column.is_number else "---" for column in table.columns]
    rows = [[escape_markdown(cell.text) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, align, *rows))
