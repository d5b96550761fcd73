"""metrics.csv: the run's metrics, written to disk as soon as they are logged, whatever other loggers there are."""

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
FINAL_PREFIXES = ("final/", "test/")  # metrics of the final evaluation: see Segmenter.scored_as
VALIDATION_METRIC = "val/miou"
REPLACE_HINT = "move it away to resume without the earlier metrics"


class MetricsCsv(Logger):
    """Write a row for each logging call: ``step`` (optimiser steps), ``epoch``, and a column for each metric.

    Rows are written to disk immediately. A resumed run drops the rows after its checkpoint and appends new ones.
    Lightning's own CSV logger deletes the old file and keeps rows in memory.

    ``count`` is the number of rows on disk, ``validations`` the number of those from validations.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        self.path = Path(path)
        check_own(self.path)
        self._complete = False  # a full disk can leave an incomplete row at the end, which is dropped before writing
        try:
            self._columns = self._checked_columns()
            self._count()
        except Unreadable as error:
            raise WriteError(f"{self.path.parent}/{error}: {REPLACE_HINT}") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise WriteError(
                f"{self.path} is not a valid CSV file in UTF-8 ({first_line(error)}): repair it, or {REPLACE_HINT}"
            ) from error

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's configuration is in .hydra/."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: float = 0) -> None:
        row = {"step": int(step)} | {name: value for name, value in metrics.items() if not math.isnan(value)}
        epoch = row.pop("epoch", None)
        if epoch is not None and not any(name.startswith(FINAL_PREFIXES) for name in row):  # after the last epoch
            row["epoch"] = int(epoch)
        try:
            self._append(row)
        except OSError as error:
            raise WriteError(f"{self.path} could not be written: {error}") from error
        self.count += 1
        self.validations += VALIDATION_METRIC in row

    def _count(self) -> None:
        self.count = self.validations = 0
        for row in self.rows():
            self.count += 1
            self.validations += bool(row.get(VALIDATION_METRIC))

    def _append(self, row: dict[str, float]) -> None:
        self._drop_incomplete_row()
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
        """Keep the first ``count`` rows; the resumed run logs the later ones again."""
        self._drop_incomplete_row()
        if self.count > count:
            self._rewrite(islice(self.rows(), count))
            self._count()

    def _drop_incomplete_row(self) -> None:
        if not self._complete and self.path.is_file() and not (text := self.path.read_bytes()).endswith(b"\n"):
            with os.fdopen(open_own(self.path, os.O_WRONLY), "ab") as file:
                file.truncate(text.rfind(b"\n") + 1)
        self._complete = True

    def _lines(self) -> Iterator[str]:
        """Yield the complete lines on disk."""
        if self.path.is_file():
            with self.path.open("rb") as file:
                yield from _complete_lines(file)

    def rows(self) -> Iterator[dict[str, str]]:
        """Yield the rows on disk, as text; a value that was not logged is an empty string."""
        return csv.DictReader(self._lines())

    def _checked_columns(self) -> list[str]:
        """Return the header; check that all rows have as many cells, since short rows would fill the memory."""
        if not self.path.is_file():
            return []
        with self.path.open("rb") as file:
            rows = csv.reader(_complete_lines(lines_within_limits(file, self.path.name)))
            columns = next(rows, [])
            for number, row in enumerate(rows, start=2):
                if row and len(row) != len(columns):
                    raise csv.Error(f"row {number} has {len(row)} cells, but the header has {len(columns)}")
        return columns

    def _rewrite(self, rows: Iterable[dict[str, str]]) -> None:
        """Write a new file and rename it, so that a kill in between loses nothing."""
        with atomic_write(self.path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(rows)


def _complete_lines(lines: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines, without an incomplete one at the end."""
    return (line.decode() for line in lines if line.endswith(b"\n"))
