"""A comparison as text for the terminal."""

from collections.abc import Sequence

from fcnlab.comparison.comparison import Comparison
from fcnlab.comparison.formats import counted, percent, points
from fcnlab.comparison.names import common_settings, usual_line
from fcnlab.comparison.plan import Plan
from fcnlab.comparison.ranking import answers, needs
from fcnlab.comparison.tables import (
    Cell,
    Column,
    Table,
    difference_table,
    headline,
    pair_name,
    published_table,
    score_table,
)
from fcnlab.escaping import escape_line

ROWS = 20  # the files contain all rows
WIDTH = 120  # characters of a line of a table
FEWEST = 3  # columns beside the first one
MOST_PLANS = 10  # pairs


def terminal(comparison: Comparison) -> str:
    """Format the comparison for the terminal; long tables are truncated."""
    parts = [escape_line(headline(comparison)), *common_lines(comparison)]
    for table in (score_table(comparison), difference_table(comparison), published_table(comparison)):
        if table.rows:
            parts += [escape_line(f"{table.title}. {table.caption}"), _aligned(table)]
    parts.append(f"{comparison.resamples:,} bootstrap resamples") if comparison.pairs else None
    notes = map(escape_line, [*comparison.notes, *comparison.selection])
    return "\n\n".join([*parts, *notes, "\n".join(map(escape_line, answers(comparison)))])


def common_lines(comparison: Comparison) -> list[str]:
    """Return the lines on typed settings that all groups share, and on those that names leave out, if there are any."""
    shared = common_settings([run for group in comparison.groups for run in group.runs])
    lines = {
        "Shared settings": shared,
        "Settings of each group, unless its name has others": usual_line(comparison.groups),
    }
    return [escape_line(f"{title}: {settings}") for title, settings in lines.items() if settings]


def plan_text(comparison: Comparison, plans: Sequence[Plan]) -> str:
    """Format which differences would be found with how many seeds and images."""
    parts = [
        "Plan: differences in mIoU, in percentage points, that would be found with a probability of 80 %, by number of"
        " seeds of each group and of images. The variances are those of these runs; from few seeds they are rough."
    ]
    for plan in plans[:MOST_PLANS]:
        columns = [Column("seeds", False), *(Column(counted(images, "image")) for images in plan.images)]
        rows = [
            [Cell(str(seeds)), *(Cell(percent(value)) for value in values)]
            for seeds, values in zip(plan.seeds, plan.detectable, strict=True)
        ]
        observed = f"observed {points(plan.pair.difference)}, {plan.pair.of_seeds}"
        head = escape_line(f"{pair_name(plan.pair, comparison)}: {observed}. {needs(plan.pair)}")
        parts.append(f"{head}\n{_aligned(Table('plan', 'Plan', '', columns, rows))}")
    return "\n\n".join(parts)


def _aligned(table: Table) -> str:
    """Return a table in aligned columns; those that do not fit into a line follow below, beside the first column."""
    head = [column.title for column in table.columns]
    shown = [[escape_line(cell.text) for cell in row] for row in table.rows[:ROWS]]
    widths = [max(map(len, column)) for column in zip(head, *shown, strict=True)]
    blocks = []
    for columns in _blocks(widths):
        lines = ["  ".join(row[place].ljust(widths[place]) for place in columns) for row in (head, *shown)]
        blocks.append("\n".join(f"  {line.rstrip()}" for line in lines))
    hidden = len(table.rows) - ROWS
    more = f"\n  ({counted(hidden, 'more row')} in the files)" if hidden > 0 else ""
    return "\n\n".join(blocks) + more


def _blocks(widths: Sequence[int]) -> list[list[int]]:
    """Return the columns that are printed side by side, by their places; the first one is in each block.

    A block has at least ``FEWEST`` others: beside long names, a block for each column would be longer and no narrower.
    """
    blocks = [[0]]
    for place in range(1, len(widths)):
        if sum(2 + widths[other] for other in [*blocks[-1], place]) > WIDTH and len(blocks[-1]) > FEWEST:
            blocks.append([0])
        blocks[-1].append(place)
    return blocks
