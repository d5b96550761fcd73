"""What a run reports to its user, once whatever the number of processes."""

import logging

from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger("fcnlab")


@rank_zero_only
def log_info(message: str) -> None:
    """Tell the user, once whatever the number of processes."""
    log.info(message)


@rank_zero_only
def log_warning(message: str) -> None:
    """Warn the user, once whatever the number of processes."""
    log.warning("Warning: %s", message)
