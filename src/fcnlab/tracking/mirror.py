"""W&B as a mirror of the run's folder: its errors never end a run, and its server never holds one up."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Literal

from lightning.pytorch.loggers import WandbLogger

from fcnlab.errors import first_line
from fcnlab.tracking.accepted_values import sendable
from fcnlab.tracking.bounded_calls import calls
from fcnlab.tracking.contents import (
    STEP,
    TABLE_IMAGES,
    VALIDATION,
    best_validation,
    class_curves,
    curves,
    final_values,
    without_charts,
)

log = logging.getLogger("fcnlab")
PASSWORD = re.compile(r"://\S*@")  # in an address
Artifacts = Literal["none", "best", "all"]


class Mirror(WandbLogger):
    """Lightning's W&B logger, whose errors never end a run and whose calls last some seconds at most.

    It logs the rows of metrics.csv as W&B shows them. Of the kept images, ``table_images`` of the lowest mIoU and as
    many of the highest are drawn in the table of an evaluation; None draws all. ``artifacts`` says which files W&B
    stores, and ``alerts`` whether alerts are sent.
    """

    def __init__(
        self,
        experiment: Any,
        table_images: int | None = TABLE_IMAGES,
        artifacts: Artifacts = "none",
        alerts: bool = False,
    ):
        super().__init__(experiment=experiment)
        self.table_images, self.artifacts, self.alerts = table_images, artifacts, alerts
        self._best: dict[str, float] = {}
        self._classes: set[str] = set()  # names of the curves of classes

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row of metrics.csv: its curves, and the values for the summary."""
        attempt("metrics", partial(self._log, dict(metrics), step))

    def _log(self, metrics: Mapping[str, float], step: int | None) -> None:
        values = sendable(curves(metrics))
        self._hide_charts(values)
        if values.keys() - {"epoch"}:
            super().log_metrics(values, step)
        summary = final_values(metrics)
        if VALIDATION in metrics:
            summary |= self._new_best({VALIDATION: metrics[VALIDATION], "step": step or 0})
        if summary:
            self.experiment.summary.update(summary)

    def _new_best(self, row: Mapping[str, float]) -> dict[str, float]:
        """Return the best validation if it is that of this row."""
        before = {VALIDATION: self._best["best/miou"], "step": self._best["best/step"]} if self._best else {}
        best = best_validation([before, row])
        if best == self._best:
            return {}
        self._best = best
        return best

    def restore_best(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Read the best validation so far from the rows of metrics.csv, of a run that resumes."""
        self._best = best_validation(rows)
        attempt("facts", partial(self.experiment.summary.update, self._best))

    def _hide_charts(self, values: Iterable[str]) -> None:
        """Tell W&B that the curves of many classes get no charts of their own; users may still add charts of them."""
        before = without_charts(self._classes)
        self._classes |= class_curves(values)
        for name in sorted(without_charts(self._classes) - before):
            if "*" not in name:  # which W&B takes as a pattern
                define_without_chart(self.experiment, name)


def define_without_chart(run: Any, name: str) -> None:
    """Define a metric over the steps that gets no chart of its own."""
    run.define_metric(name, step_metric=None if name == STEP else STEP, hidden=True)


def attempt(content: str, call: Callable[[], object]) -> None:
    """Call W&B for some seconds at most; its errors become warnings, once per run and kind of ``content``."""

    def guarded() -> None:
        with errors_as_warnings(content):
            call()

    calls.run(guarded)


def warn_again() -> None:
    """Warn about each kind of error once more: a new run begins."""
    _warn_about_missing.cache_clear()


@contextmanager
def errors_as_warnings(content: str, tracker: str = "W&B") -> Iterator[None]:
    """Turn errors of a tracker into warnings, one per run and kind: the run's folder contains the same information."""
    try:
        yield
    except Exception as error:  # errors of files, server and process have no common type
        _warn_about_missing(content, tracker, PASSWORD.sub("://...@", first_line(error)))


@cache
def _warn_about_missing(content: str, tracker: str, reason: str) -> None:
    log.warning(
        "Warning: some %s of this run are missing in %s (%s), but not in the run's folder", content, tracker, reason
    )
