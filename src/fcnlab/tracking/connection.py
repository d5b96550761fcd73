"""Start a W&B run: online or offline, without a prompt, without blocking and without ending the run."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from fcnlab.config.ranges import TableImages
from fcnlab.errors import UserError
from fcnlab.library_internals.wandb import log_tables_without_waiting
from fcnlab.tracking.accepted_values import (
    MAX_JOB_TYPE,
    MAX_NAME,
    MAX_TAG,
    accepted_project,
    sendable,
    shortened,
)
from fcnlab.tracking.contents import STEP, TABLE_IMAGES, WITHOUT_CHARTS
from fcnlab.tracking.end import END_TIMEOUT, limit_exit
from fcnlab.tracking.folders import import_wandb, set_folders
from fcnlab.tracking.mirror import Artifacts, Mirror, define_without_chart, warn_again
from fcnlab.tracking.server import (
    reachable_mode,
    read_environment,
    reason_of,
    redirecting_settings,
    redirection_error,
)

log = logging.getLogger("fcnlab")
START_TIMEOUT = 10.0  # seconds; W&B's default is 90
FLUSH_INTERVAL = 1.0  # seconds between writes to the .wandb file; W&B's default is 15
UPLOAD_TIMEOUT = 600.0  # seconds that a push, and the end of a run with artifacts, wait until all files are sent
LONGEST_END = 86_400.0  # seconds, of WANDB_FINISH_TIMEOUT
REBUILT = {  # W&B's settings of a run that ended elsewhere or earlier: nothing of this process belongs to it
    "silent": True,  # fcnlab reports what is written
    "finish_timeout": UPLOAD_TIMEOUT,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "disable_git": True,
    "save_code": False,
}


def wandb_logger(
    folder: str | Path,
    config: dict[str, Any],
    name: str | None = None,
    project: str = "fcnlab",
    entity: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Sequence[str] = (),
    mode: Literal["auto", "online", "offline"] = "auto",
    alerts: bool = False,
    run_id: str | None = None,
    table_images: TableImages = TABLE_IMAGES,
    artifacts: Artifacts = "none",
    recorded_host: str | None = None,
) -> WandbLogger:
    """Return the logger of a new W&B run in ``folder/wandb/``, or of the existing run ``run_id``.

    ``mode="auto"`` means online if an API key is configured and the server answers, otherwise offline.
    Of the images that ``predictions.zip`` keeps, the ``table_images`` with the lowest mean IoU and as many with the
    highest are drawn in the table of an evaluation's images; "all" draws all of them. ``artifacts`` says which files
    are logged as artifacts at the end of the run (:mod:`fcnlab.tracking.artifacts`). ``alerts`` sends an alert when the
    run ends, is interrupted or diverges, if it is online. ``recorded_host`` is the machine of a run that is rebuilt
    from its records: such a run replaces the data of an existing run ``run_id``, and contains nothing of this machine.
    None: a live run.
    """
    if getattr(rank_zero_only, "rank", 0):  # other ranks never log
        return WandbLogger()
    logging.getLogger().addFilter(_is_not_about_image_sizes)
    warn_again()
    import_wandb()
    Path(folder).mkdir(parents=True, exist_ok=True)
    set_folders(Path(folder) / "wandb")
    described = {
        "dir": folder, "config": sendable(config), "id": run_id, "name": shortened(name, MAX_NAME),
        "project": accepted_project(project), "entity": sendable(entity), "group": shortened(group, MAX_NAME),
        "job_type": shortened(job_type, MAX_JOB_TYPE),
        "tags": list(dict.fromkeys(shortened(tag, MAX_TAG) for tag in tags if tag)),
    }  # fmt: skip
    is_rebuilt = recorded_host is not None
    if is_rebuilt:
        described |= {"resume": None, "settings": REBUILT | {"host": sendable(recorded_host)}}
    elif artifacts != "none":
        described |= {"settings": {"finish_timeout": UPLOAD_TIMEOUT}}
    can_be_sent = sendable(str(folder)) == str(folder)
    if not can_be_sent:
        log.warning("Warning: W&B cannot write to %s, whose name is not UTF-8: this run is not logged there", folder)
    with _sendable_arguments():
        run = _started(described, mode if can_be_sent else "disabled")
    if run_id and not is_rebuilt:  # W&B keeps the old values, and a resumed run may have new ones
        run.config.update(described["config"], allow_val_change=True)
    limit_exit()
    log_tables_without_waiting(run)
    for metric in WITHOUT_CHARTS:
        define_without_chart(run, metric)
    run.define_metric("*", step_metric=STEP, step_sync=True)
    drawn = None if table_images == "all" else table_images
    return Mirror(experiment=run, table_images=drawn, artifacts=artifacts, alerts=alerts)


@contextmanager
def _sendable_arguments() -> Iterator[None]:
    """Make the command-line arguments sendable, since W&B sends them, too."""
    before, sys.argv = sys.argv, sendable(sys.argv)
    try:
        yield
    finally:
        sys.argv = before


def _is_not_about_image_sizes(record: logging.LogRecord) -> bool:
    """Return False for W&B's warning that images differ in size, which it repeats at every validation."""
    return not record.getMessage().startswith("Images sizes do not match")


def _started(described: dict[str, Any], mode: Any) -> Any:
    """Start W&B's run; with ``mode="auto"``, start it offline if the server fails to start one."""
    import wandb

    elsewhere = redirecting_settings() - ({"entity"} if described["entity"] else set())
    read_environment()
    chosen: Any = reachable_mode() if mode == "auto" else mode
    if elsewhere and chosen not in ("offline", "disabled"):
        raise redirection_error(elsewhere)
    # Offline, the id is enough to join the parts of a run when they are synced.
    resume = {"resume": "allow" if described["id"] and chosen == "online" else None}
    usual = {
        "quiet": True,
        "console": "off",
        "init_timeout": START_TIMEOUT,
        "finish_timeout": END_TIMEOUT,
        "x_transaction_log_flush_interval": FLUSH_INTERVAL,
    }
    settings = wandb.Settings(**(usual | described.get("settings", {}) | _typed_end_timeout()))
    arguments: dict[str, Any] = resume | described | {"settings": settings}
    try:
        return wandb.init(**arguments, mode=chosen, reinit="create_new")
    except (wandb.Error, ValueError) as error:
        if mode != "auto" or chosen == "offline":
            raise UserError(f"W&B did not start a run in mode={mode}: {reason_of(error)}") from error
        log.warning("Warning: W&B did not start a run (%s): this run is logged offline", reason_of(error))
        return _started(described, "offline")


def _typed_end_timeout() -> dict[str, float]:
    """Return ``finish_timeout`` if the environment sets it; W&B itself accepts values that limit nothing.

    Raises
    ------
    UserError
        It is no number of seconds up to ``LONGEST_END``.
    """
    typed = os.environ.get("WANDB_FINISH_TIMEOUT")
    if not typed:
        return {}
    seconds = float(typed)  # wandb.setup has checked that it is a number
    if not 0 < seconds <= LONGEST_END:
        raise UserError(
            f"WANDB_FINISH_TIMEOUT={typed} in the environment must be more than 0 and at most {LONGEST_END:.0f} seconds"
        )
    return {"finish_timeout": seconds}
