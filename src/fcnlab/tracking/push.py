"""Rebuild W&B runs from the folders of runs, with the functions that a live run uses."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fcnlab.comparison.runs import MAX_NUMBER
from fcnlab.errors import UserError, first_line
from fcnlab.files.reading import Unreadable, read_rows
from fcnlab.tracking.connection import check_server, reachable_mode, wandb_logger
from fcnlab.tracking.contents import numbers
from fcnlab.tracking.end import end_run
from fcnlab.tracking.media import log_evaluation
from fcnlab.tracking.mirror import Mirror
from fcnlab.tracking.recorded_run import RecordedRun, evaluation

EXIT_CODES = {"finished": 0}  # all others have 1


class Destination(NamedTuple):
    """Where runs are pushed: a project of an entity (None: W&B's default), online or offline."""

    project: str
    entity: str | None
    mode: str


class Pushed(NamedTuple):
    """A pushed run: its address on the server, or the folder of its files for ``wandb sync``."""

    folder: Path
    address: str | None
    files: Path | None


def settled_mode(mode: str) -> str:
    """Return "online" or "offline" for all runs of a push.

    Raises
    ------
    UserError
        ``mode`` or WANDB_MODE is "online", and the server cannot be reached; or WANDB_MODE is neither online nor
        offline.
    """
    settled = reachable_mode() if mode == "auto" else mode
    if settled == "online":
        check_server()  # also of an API key, for which W&B would prompt
    elif settled != "offline":
        raise UserError(f"WANDB_MODE={settled} in the environment: nothing would be written. Unset it")
    return settled


def exists(run: RecordedRun, destination: Destination) -> str | None:
    """Return where W&B has the data of a live run, which a push would replace; None if it has none.

    Only a run whose id was recorded has been live. The files of an offline run are in its folder.

    Raises
    ------
    UserError
        The server does not answer.
    """
    if not run.id.is_recorded:
        return None
    if destination.mode == "offline":
        return next((str(path) for path in _offline_files(run)), None)
    import wandb
    from wandb.apis.public.runs import RunNotFoundError

    try:
        owner = [destination.entity] if destination.entity else []
        return str(wandb.Api().run("/".join([*owner, destination.project, run.id.text])).url)
    except RunNotFoundError:
        return None
    except Exception as error:  # errors of W&B and of its answers have no common type
        raise UserError(f"W&B does not say whether it has the run {run.id.text}: {first_line(error)}") from error


def push(run: RecordedRun, destination: Destination) -> Pushed:
    """Write a run to W&B: config, curves, and the summary and tables of its scores.

    A run whose id follows from its record replaces what an earlier push has written.

    Raises
    ------
    UserError
        W&B does not start the run, or a file of its folder was changed or removed meanwhile.
    """
    try:
        return _push(run, destination)
    except (OSError, Unreadable) as error:
        raise UserError(f"{run.folder} was changed while it was read: {first_line(error)}. Push it again") from error


def _push(run: RecordedRun, destination: Destination) -> Pushed:
    if not run.id.is_recorded and not run.home.joinpath("wandb").is_symlink():
        for path in _offline_files(run):  # of an earlier push; wandb sync would send both
            shutil.rmtree(path)
    with _opened(run, destination) as logger:
        step = _log_curves(logger, run.folder)
        if run.scored is not None:
            log_evaluation(logger, evaluation(run.scored, step))
    if destination.mode == "online":
        return Pushed(run.folder, logger.experiment.url, None)
    return Pushed(run.folder, None, Path(logger.experiment.dir).parent)


@contextmanager
def _opened(run: RecordedRun, destination: Destination) -> Iterator[Mirror]:
    """Open a W&B run, and end it with the status and the exit code of the recorded run."""
    mode: Any = destination.mode
    logger: Any = wandb_logger(
        run.home,
        project=destination.project,
        entity=destination.entity,
        mode=mode,
        run_id=run.id.text,
        recorded_host=run.host,
        **run.labels,
    )
    status, code = "failed", 1
    try:
        yield logger
        status, code = run.status, EXIT_CODES.get(run.status, 1)
    finally:
        end_run(logger.experiment, status, code)


def _log_curves(logger: Mirror, folder: Path) -> int:
    """Log the rows of metrics.csv; return the last step."""
    last = 0
    for row in read_rows(folder, "metrics.csv"):
        values = numbers(row)
        step = values.pop("step", -1.0)
        if 0 <= step < MAX_NUMBER:
            last = int(step)
            logger.log_metrics(values, last)
    return last


def _offline_files(run: RecordedRun) -> list[Path]:
    """Return the folders of offline runs with the id of a run."""
    found = (run.home / "wandb").glob(f"offline-run-*-{run.id.text}")
    return sorted(path for path in found if path.is_dir() and not path.is_symlink())
