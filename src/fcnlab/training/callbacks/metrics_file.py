"""metrics.csv: the run's curves, on disk within a step of being logged, whatever other logger there is."""

import csv
import math
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from fcnlab.errors import WriteError, first_line
from fcnlab.files.in_place import check_own, open_own
from fcnlab.files.reading import Unreadable, lines_within_limits
from fcnlab.files.writing import atomic_write

FIRST = ("step", "epoch")
SCORED = ("final/", "test/")  # what is logged of the scoring at the end, by Segmenter.scored_as
VALIDATED = "val/miou"
AWAY = "move it away; the training then resumes without the curves from before"


class MetricsCsv(Logger):
    """A row for each thing logged: ``step`` (optimiser steps done), ``epoch``, and a column for each metric.

    Rows are on the disk at once. A run that is resumed appends, after dropping rows from beyond the checkpoint that it
    goes on from. Lightning's own CSV logger deletes the old file, and keeps rows in memory.

    ``count`` is the number of rows on disk, ``validations`` of those that hold a validation.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        self.path = Path(path)
        check_own(self.path)
        self._whole = False  # until half a row at the end, which a full disk can leave, is dropped
        try:
            self._columns = self._checked_columns()
            self._count()
        except Unreadable as error:
            raise WriteError(f"{self.path.parent}/{error}: {AWAY}") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise WriteError(f"{self.path} is no table in UTF-8 ({first_line(error)}): repair it, or {AWAY}") from error

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run's configuration is in .hydra/."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: float = 0) -> None:
        row = {"step": int(step)} | {name: value for name, value in metrics.items() if not math.isnan(value)}
        epoch = row.pop("epoch", None)
        if epoch is not None and not any(name.startswith(SCORED) for name in row):  # that is behind all epochs
            row["epoch"] = int(epoch)
        try:
            self._append(row)
        except OSError as error:
            raise WriteError(f"{self.path} could not be written: {error}") from error
        self.count += 1
        self.validations += VALIDATED in row

    def _count(self) -> None:
        self.count = self.validations = 0
        for row in self.rows():
            self.count += 1
            self.validations += bool(row.get(VALIDATED))

    def _append(self, row: dict[str, float]) -> None:
        self._drop_half_a_row()
        new = [name for name in dict.fromkeys((*FIRST, *row)) if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite(self.rows())
        with os.fdopen(open_own(self.path, os.O_WRONLY | os.O_APPEND), "a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)
            file.flush()
            os.fsync(file.fileno())

    @rank_zero_only
    def cut(self, count: int) -> None:
        """Keep the first ``count`` rows; what came after them the resumed run will log again."""
        self._drop_half_a_row()
        if self.count > count:
            self._rewrite(islice(self.rows(), count))
            self._count()

    def _drop_half_a_row(self) -> None:
        if not self._whole and self.path.is_file() and not (text := self.path.read_bytes()).endswith(b"\n"):
            with os.fdopen(open_own(self.path, os.O_WRONLY), "ab") as file:
                file.truncate(text.rfind(b"\n") + 1)
        self._whole = True

    def _lines(self) -> Iterator[str]:
        """The whole lines on disk."""
        if self.path.is_file():
            with self.path.open("rb") as file:
                yield from _whole_lines(file)

    def rows(self) -> Iterator[dict[str, str]]:
        """What is on disk, as text; a value that was not logged in a row is an empty string."""
        return csv.DictReader(self._lines())

    def _checked_columns(self) -> list[str]:
        """The first row, if all others have as many cells: short ones of a long header would fill the memory."""
        if not self.path.is_file():
            return []
        with self.path.open("rb") as file:
            rows = csv.reader(_whole_lines(lines_within_limits(file, self.path.name)))
            columns = next(rows, [])
            for number, row in enumerate(rows, start=2):
                if row and len(row) != len(columns):
                    raise csv.Error(f"row {number} has {len(row)} cells, and the first row {len(columns)}")
        return columns

    def _rewrite(self, rows: Iterable[dict[str, str]]) -> None:
        """Beside the old file, then in its place: a kill in between loses nothing."""
        with atomic_write(self.path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(rows)


def _whole_lines(lines: Iterable[bytes]) -> Iterator[str]:
    """Without half a row at the end."""
    return (line.decode() for line in lines if line.endswith(b"\n"))
