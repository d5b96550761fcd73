"""The curves of a metrics.csv that may still grow: only what was appended is read."""

import math
import os
from array import array
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from fcnlab.comparison.runs import MAX_NUMBER
from fcnlab.files.reading import CSV_ROWS, LINE, Unreadable, cells_of, open_regular, path_inside

NAME = "metrics.csv"
SCORE = "val/miou"  # a mean IoU, from 0 to 1: other values are skipped
NAMES = (SCORE, "train/loss", "val/loss")
MOST_POINTS = 500  # of a curve that is sent to the page
READ_AT_A_TIME = 2 << 20  # bytes of a file in one update; the rest follows in the next ones
CHECKED = 64  # bytes before the position that must be unchanged

Points = list[tuple[float, float]]


class Curves:
    """The curves of a run's metrics.csv, and its last ``step``; None before the first row.

    A file that was replaced, truncated or rewritten is read again from its start. An incomplete last line is read when
    it is complete. ``problem`` says why the file cannot be used, and is "" otherwise. ``version`` grows with each
    change. ``is_complete`` is False while a part of the file is left to be read.
    """

    def __init__(self, folder: Path, version: int = 0):
        self.folder = folder
        self.version = version
        self.is_complete = True
        self._stamp: tuple[int, ...] | None = None
        self._restart()

    def _restart(self) -> None:
        self._position, self._before, self._rows = 0, b"", 0
        self._columns: dict[str, int] = {}
        self._points = {name: (array("d"), array("d")) for name in NAMES}
        self.step: int | None = None
        self.problem = ""

    def update(self) -> bool:
        """Read what was appended; return whether anything changed."""
        try:
            status = (self.folder / NAME).stat()
        except OSError:
            return self._drop()
        stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if stamp == self._stamp:
            return False
        is_replaced = self._stamp is not None and stamp[:2] != self._stamp[:2]
        if is_replaced or self.problem or status.st_size < self._position:
            self._restart()
        try:
            with open_regular(path_inside(self.folder, NAME)) as file:
                if not self._is_continued(file):
                    self._restart()
                self.is_complete = self._read(file)
        except (OSError, Unreadable) as error:
            self._restart()
            self.problem, self.is_complete = str(error), True
        self._stamp = stamp if self.is_complete else (*stamp[:2], -1, -1)
        self.version += 1
        return True

    def _drop(self) -> bool:
        existed = self._stamp is not None
        self._stamp, self.is_complete = None, True
        if existed:
            self._restart()
            self.version += 1
        return existed

    def _is_continued(self, file: BinaryIO) -> bool:
        """Return whether the bytes before the position are those that were read there."""
        file.seek(self._position - len(self._before))
        return file.read(len(self._before)) == self._before

    def _read(self, file: BinaryIO) -> bool:
        """Read complete lines from the position on; return whether the end of the file was reached."""
        file.seek(self._position)
        data = file.read(READ_AT_A_TIME)
        complete = data[: data.rfind(b"\n") + 1]
        if len(data) - len(complete) > LINE:
            raise Unreadable(f"{NAME} has more than {LINE:,} bytes in a row")
        self._position += len(complete)
        self._before = (self._before + complete)[-CHECKED:]
        lines = complete.split(b"\n")[:-1]
        if lines and not self._columns:
            self._columns = {name: place for place, name in enumerate(cells_of(lines.pop(0)))}
            if "step" not in self._columns:
                raise Unreadable(f"{NAME} has no column step: fcnlab did not write it")
        for line in lines:
            self._add(line)
        return self._position + len(data) - len(complete) == os.fstat(file.fileno()).st_size

    def _add(self, line: bytes) -> None:
        """Add the values of a row; cells that are no numbers are skipped."""
        self._rows += 1
        if self._rows > CSV_ROWS:
            raise Unreadable(f"{NAME} has more than {CSV_ROWS:,} rows")
        cells = cells_of(line)
        step = self._value(cells, "step")
        if step is None:
            return
        self.step = int(step)
        for name, (steps, values) in self._points.items():
            value = self._value(cells, name)
            if value is not None and (name != SCORE or 0 <= value <= 1):
                steps.append(step)
                values.append(value)

    def _value(self, cells: list[str], name: str) -> float | None:
        """Return the number in a cell; None if it is missing, no number, infinite, or too large for an axis."""
        place = self._columns.get(name)
        try:
            value = float(cells[place]) if place is not None and place < len(cells) else math.nan
        except ValueError:
            return None
        return value if abs(value) < MAX_NUMBER else None

    def values(self, name: str) -> Sequence[float]:
        """Return all values of a curve."""
        return self._points[name][1]

    def last(self, name: str) -> float | None:
        """Return the last value of a curve."""
        values = self._points[name][1]
        return values[-1] if values else None

    def highest(self, name: str) -> tuple[float, int] | None:
        """Return the highest value of a curve and its first step."""
        steps, values = self._points[name]
        if not values:
            return None
        place = max(range(len(values)), key=values.__getitem__)
        return values[place], int(steps[place])

    def thinned(self, name: str) -> Points:
        """Return at most ``MOST_POINTS`` points of a curve: the lowest and the highest of each part of it."""
        steps, values = self._points[name]
        return [(steps[place], values[place]) for place in thinned_places(values, MOST_POINTS)]


def thinned_places(values: Sequence[float], most: int) -> list[int]:
    """Return the places of at most ``most`` values: all, or the first, the last and the extremes of equal parts."""
    if len(values) <= most:
        return list(range(len(values)))
    parts = (most - 2) // 2
    bounds = [1 + (len(values) - 2) * part // parts for part in range(parts + 1)]
    places = {0, len(values) - 1}
    for start, end in pairwise(bounds):
        places |= {min(range(start, end), key=values.__getitem__), max(range(start, end), key=values.__getitem__)}
    return sorted(places)
