"""Messages of a run to its user, from rank 0 only."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger("fcnlab")


@rank_zero_only
def log_info(message: str) -> None:
    """Log a message, on rank 0 only."""
    log.info(message)


@rank_zero_only
def log_warning(message: str) -> None:
    """Log a warning, on rank 0 only."""
    log.warning("Warning: %s", message)


@contextmanager
def only_from(level: int, name: str) -> Iterator[None]:
    """Within, a logger of a library logs nothing below ``level``."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
