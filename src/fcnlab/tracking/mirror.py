"""W&B as a mirror of the run's folder: its errors never end a run, and its server never holds one up."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial

from lightning.pytorch.loggers import WandbLogger

from fcnlab.errors import first_line
from fcnlab.tracking.bounded_calls import calls

log = logging.getLogger("fcnlab")


class Mirror(WandbLogger):
    """Lightning's W&B logger, whose errors never end a run and whose calls last some seconds at most."""

    alerts = False  # whether to send alerts

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        attempt("metrics", partial(super().log_metrics, dict(metrics), step))


def attempt(content: str, call: Callable[[], object]) -> None:
    """Call W&B for some seconds at most; its errors become warnings, once per kind of ``content``."""

    def guarded() -> None:
        with errors_as_warnings(content):
            call()

    calls.run(guarded)


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
