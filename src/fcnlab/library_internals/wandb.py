"""Parts of W&B that are not public: requests that a run makes while it logs, and its helper process."""

import subprocess
from typing import Any


class _UnaskedServer:
    """In place of the API with which a run checks artifacts: nothing is asked, and no artifact is awaited."""

    def __init__(self):
        self.settings = {"entity": "", "project": ""}

    def _expected_artifact_type(self, **artifact: str) -> None:
        """Return no expected type, so that any is accepted."""

    def _set_artifact_save_handle(self, artifact: Any, handle: Any) -> None:
        """Keep no handle: it serves to wait for the upload."""


def log_tables_without_waiting(run: Any) -> None:
    """Let an online run log tables without a request: W&B would verify the key first, which may take 19 s, and fail.

    The table would then be missing in the .wandb file, too.
    """
    run._cached_public_api = _UnaskedServer()


def helper_process() -> subprocess.Popen | None:
    """Return the process of W&B (wandb-core) that this process has started, or None."""
    from wandb.sdk import wandb_setup

    connection = getattr(wandb_setup._singleton, "_connection", None)
    process = getattr(connection, "_proc", None)
    return getattr(process, "_process", None)


def has_other_runs() -> bool:
    """Return whether this process has W&B runs that are not finished."""
    from wandb.sdk import wandb_setup

    return bool(getattr(wandb_setup._singleton, "_active_runs", ()))


def was_sent_in_time(run: Any) -> bool:
    """Return whether a finished run did not reach its ``finish_timeout``."""
    return not getattr(run, "_finish_timed_out", False)  # a disabled run has none
