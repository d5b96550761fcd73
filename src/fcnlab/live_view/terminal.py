"""The live view as text: counts, the best runs, and a table of the runs that matter most now."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fcnlab.comparison.formats import counted, percent
from fcnlab.live_view.best_runs import MOST_SWEEPS
from fcnlab.live_view.monitor import Monitor
from fcnlab.live_view.run_state import STATUSES
from fcnlab.sweeps.sweep_table import COLOURS, MARKS, duration_text

BARS = "▁▂▃▄▅▆▇█"
CURVE = 12  # characters of a curve
LOOK = {status: (MARKS.get(status, "✗"), COLOURS.get(status, COLOURS["failed"])) for status in STATUSES}
MOST_PROBLEMS = 3
LINES_PER_SWEEP = 12  # of the view for each sweep whose best run is described: most is left for the table
# Characters: the narrowest view, the columns beside the name, and those that a wide view adds; names of a wide view.
LEAST_WIDTH, COLUMNS, WIDE_COLUMNS, NAME = 48, 39, 22, (16, 60)

Row = dict[str, Any]


def lines(monitor: Monitor, width: int, height: int, colours: bool) -> list[str]:
    """Return the view in lines of at most ``width`` characters, and at most ``height`` lines."""
    rows = sorted(monitor.rows, key=_order)
    width = max(LEAST_WIDTH, width)
    problems = [sweep.problem for sweep in monitor.sweeps.values() if sweep.problem][:MOST_PROBLEMS]
    best = map(" ".join, monitor.best_runs(min(MOST_SWEEPS, max(1, height // LINES_PER_SWEEP))))
    texts = (summary(monitor), *problems, f"Best so far: {next(best)}", *best)
    top = [line for text in texts for line in _wrapped(text, width)]
    top = top[: max(1, height - 4)]
    head = f"  {'':1} {'run':<{_name_width(width)}} {'state':<11} {'step':>13} {'val mIoU':>8}"
    if _is_wide(width):
        head += f" {'curve':<{CURVE}} {'left':>8}"
    room = max(2, height - len(top) - 1)
    shown = rows[:room] if len(rows) <= room else rows[: room - 1]
    for row in shown:
        monitor.runs[row["number"]].update_curves()
    body = [_row(monitor, row, width, colours) for row in shown]
    hidden = len(rows) - len(shown)
    more = [f"    and {counted(hidden, 'more run')}"] if hidden else []
    return [line[:width] for line in (*top, head)] + body + more


def summary(monitor: Monitor) -> str:
    """Return the counts of the runs in each state."""
    counts = Counter(row["status"] for row in monitor.rows)
    parts = [f"{counts[status]} {status}" for status in STATUSES if counts[status]]
    unread = len(monitor.runs) - len(monitor.rows)
    return ", ".join([*parts, *([f"{unread} still to be read"] if unread else [])]) or "No run was found here yet."


def spark_line(values: Sequence[float], length: int) -> str:
    """Return a curve as one line of bars: the last value of each of ``length`` equal parts."""
    if len(values) > length:
        values = [values[len(values) * (part + 1) // length - 1] for part in range(length)]
    if not values:
        return ""
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in values)


def _order(row: Row) -> tuple[Any, ...]:
    best = -1.0 if row["best"] is None else row["best"]
    by_score = -best if row["status"] == "finished" else 0.0
    place = row["number"] if row["job"] is None else row["job"]
    return STATUSES.index(row["status"]), by_score, row["sweep"], place


def _is_wide(width: int) -> bool:
    """Return whether the view has a curve and the time left."""
    return width >= COLUMNS + WIDE_COLUMNS + NAME[0]


def _name_width(width: int) -> int:
    return min(NAME[1], width - COLUMNS - (WIDE_COLUMNS if _is_wide(width) else 0))


def _row(monitor: Monitor, row: Row, width: int, colours: bool) -> str:
    size, (mark, colour) = _name_width(width), LOOK[row["status"]]
    name = row["name"] or row["folder"]
    name = name if len(name) <= size else f"{name[: size - 1]}…"
    step = "" if row["step"] is None else f"{row['step']} of {row['total']}" if row["total"] else str(row["step"])
    text = f"  {mark} {name:<{size}} {row['status']:<11} {step:>13} {percent(row['best']):>8}"
    if _is_wide(width):
        left = "" if row["left"] is None else duration_text(row["left"])
        values = monitor.runs[row["number"]].curves.values("val/miou")
        text += f" {spark_line(values, CURVE):<{CURVE}} {left:>8}"
    text = text[:width].rstrip()
    return f"\x1b[{colour}m{text}\x1b[0m" if colours else text


def _wrapped(text: str, width: int) -> list[str]:
    """Return a sentence in lines that break between words."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("  " + word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines
