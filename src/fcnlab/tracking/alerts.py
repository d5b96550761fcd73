"""Alerts of W&B, which sends them by e-mail or Slack: a run has ended, was interrupted or has diverged."""

from typing import Literal

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from fcnlab.tracking.accepted_values import sendable
from fcnlab.tracking.mirror import Mirror, attempt


def alert_about_end(logger: Logger, name: str, miou: float) -> None:
    """Send that a run has ended, with its mean IoU (0 to 1) under the name of its scores ("final" or "test")."""
    send_alert(logger, "The run has ended", f"{name}/miou: {100 * miou:.2f} %")


@rank_zero_only
def send_alert(logger: Logger, title: str, text: str, level: Literal["INFO", "WARN", "ERROR"] = "INFO") -> None:
    """Send an alert about a run, if it is online and alerts are on; a title has fewer than 64 characters."""
    if isinstance(logger, Mirror) and logger.alerts and not logger.experiment.offline:
        attempt("alerts", lambda: logger.experiment.alert(title, sendable(text), level))
