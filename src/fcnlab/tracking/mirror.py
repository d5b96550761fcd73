"""W&B as a mirror of the run's folder: its errors never end a run."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

from lightning.pytorch.loggers import WandbLogger

from fcnlab.errors import first_line

log = logging.getLogger("fcnlab")


class Mirror(WandbLogger):
    """Lightning's W&B logger, whose errors never end a run."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with errors_as_warnings("metrics"):
            super().log_metrics(metrics, step)


@contextmanager
def errors_as_warnings(content: str, tracker: str = "W&B") -> Iterator[None]:
    """Turn every error of a tracker into a warning, once per kind: the run's folder contains the same information."""
    try:
        yield
    except Exception as error:  # errors of files, server and process have no common type
        _warn_about_missing(content, tracker, first_line(error))


@cache
def _warn_about_missing(content: str, tracker: str, reason: str) -> None:
    log.warning(
        "Warning: some %s of this run are missing in %s (%s), but not in the run's folder", content, tracker, reason
    )
