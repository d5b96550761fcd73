"""W&B as a mirror of the run's folder: its errors never end a run."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Literal

from lightning.pytorch.loggers import WandbLogger

from fcnlab.errors import first_line

log = logging.getLogger("fcnlab")
Artifacts = Literal["none", "best", "all"]


class Mirror(WandbLogger):
    """Lightning's W&B logger, whose errors never end a run; ``artifacts`` says which files W&B stores."""

    artifacts: Artifacts = "none"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with errors_as_warnings("metrics"):
            super().log_metrics(metrics, step)


@contextmanager
def errors_as_warnings(content: str) -> Iterator[None]:
    """Turn every error of W&B's into a warning, once per kind: the run's folder contains the same information."""
    try:
        yield
    except Exception as error:  # errors of files, server and process have no common type
        _warn_about_missing(content, first_line(error))


@cache
def _warn_about_missing(content: str, reason: str) -> None:
    log.warning("Warning: some %s of this run are missing in W&B (%s), but not in the run's folder", content, reason)
