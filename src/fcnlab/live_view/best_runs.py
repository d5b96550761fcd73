"""The best runs so far in sentences, which the page and the terminal share: those of each sweep, as sweeps differ."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fcnlab.comparison.formats import counted, percent
from fcnlab.comparison.intervals import FEWEST_IMAGES

MOST_SWEEPS = 5  # with sentences

Row = dict[str, Any]


def best_runs(rows: Mapping[int, Row], sweeps: Sequence[Row], most: int = MOST_SWEEPS) -> list[list[str]]:
    """Return the sentences on each sweep with a validated run, the one with the highest score first.

    ``rows`` are those of the runs by number, ``sweeps`` those of the sweeps; ``most`` limits the sweeps.
    """
    known = [sweep for sweep in sweeps if sweep["best"] is not None]
    known.sort(key=lambda sweep: rows[sweep["best"]]["best"], reverse=True)
    sentences = [list(_sentences(rows, sweep, len(sweeps) > 1)) for sweep in known[:most]]
    left_out = len(known) - len(sentences)
    return [*sentences, *([[f"And {counted(left_out, 'more sweep')}."]] if left_out else [])] or [
        ["No validation yet."]
    ]


def _sentences(rows: Mapping[int, Row], sweep: Row, has_others: bool) -> Iterator[str]:
    """Yield sentences on the best run of a sweep, and on its score or that of the best scored run."""
    row, scored = rows[sweep["best"]], rows.get(sweep["best_scored"])
    where = f" in {sweep['name']}" if sweep["name"] else " outside of sweeps" if has_others else ""
    step = "" if row["best_step"] is None else f" at step {row['best_step']:.0f}"
    yield (
        f"{_name(row)}{where}: {percent(row['best'])} % validation mIoU{step},"
        f" the highest of {counted(sweep['validated'], 'run')} ({row['status']})."
    )
    if scored is None:
        yield "No run has been scored yet."
    else:
        yield ("It is scored" if scored is row else f"The best scored run is {_name(scored)}") + _score(scored)


def _score(row: Row) -> str:
    score = f"{' on ' + row['set'] if row['set'] else ''}: {percent(row['scored'])} %"
    if not row["interval"]:
        return f"{score} (no interval: {row['no_interval']})." if row["no_interval"] else f"{score}."
    low, high = row["interval"]
    few = ", too few for a reliable one" if row["images"] < FEWEST_IMAGES else ""
    images = counted(row["images"], "image")
    return f"{score}, 95 % interval over {images} {percent(low)} to {percent(high)} %{few}."


def _name(row: Row) -> str:
    return row["name"] or row["folder"]
