"""Rebuild W&B runs from the folders of runs, with the functions that a live run uses."""

import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

from fcnlab.comparison.runs import MAX_NUMBER
from fcnlab.errors import UserError, first_line
from fcnlab.files.reading import read_rows
from fcnlab.tracking.connection import START_TIMEOUT, wandb_logger
from fcnlab.tracking.contents import numbers
from fcnlab.tracking.end import END_TIMEOUT, end_run
from fcnlab.tracking.media import Evaluation, log_evaluation
from fcnlab.tracking.mirror import Mirror, attempt
from fcnlab.tracking.recorded_run import RecordedRun, evaluation
from fcnlab.tracking.server import check_server, check_settings, reachable_mode

EXIT_CODES = {"finished": 0}  # all others have 1
MARK = "fcnlab-push"  # an empty file in the folder of a pushed W&B run: it is not the live run's


class NoAnswer(UserError):
    """The server did not take a run within its time, so it would not take further runs, either."""


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


class _Content(NamedTuple):
    """What a run has logged: its rows with their steps, and its scores if there are any."""

    rows: list[tuple[int, dict[str, float]]]
    evaluation: Evaluation | None


def settled_mode(mode: str) -> str:
    """Return "online" or "offline" for all runs of a push.

    Raises
    ------
    UserError
        ``mode`` or WANDB_MODE is "online", and the server cannot be reached; WANDB_MODE is neither online nor offline;
        or W&B rejects its settings.
    """
    check_settings()
    settled = reachable_mode() if mode == "auto" else mode
    if settled == "online":
        check_server()  # also of an API key, for which W&B would prompt
    elif settled != "offline":
        raise UserError(f"WANDB_MODE={settled} in the environment: nothing would be written. Unset it")
    return settled


def exists(run: RecordedRun, destination: Destination) -> str | None:
    """Return where W&B has the data of a live run, which a push would replace; None if it has none.

    Only a run whose id was recorded has been live. Offline, only the folder of the run says so: it has the files of the
    live run, which was online or offline.

    Raises
    ------
    NoAnswer
        The server does not say it.
    """
    if not run.id.is_recorded:
        return None
    if destination.mode == "offline":
        return next((str(path) for path in _files(run) if not _is_pushed(path)), None)
    import wandb
    from wandb.apis.public.runs import RunNotFoundError

    try:
        owner = [destination.entity] if destination.entity else []
        return str(wandb.Api().run("/".join([*owner, destination.project, run.id.text])).url)
    except RunNotFoundError:
        return None
    except Exception as error:  # errors of W&B and of its answers have no common type
        raise NoAnswer(f"W&B does not say whether it has the run {run.id.text}: {first_line(error)}") from error


def push(run: RecordedRun, destination: Destination) -> Pushed:
    """Write a run to W&B: config, curves, and the summary and tables of its scores.

    It replaces what an earlier push has written, but no files of a live run. The folder is read before the W&B run is
    started, so that a folder that changes meanwhile leaves no part of a run there.

    Raises
    ------
    UserError
        W&B does not start the run or does not get all of it, a file of the folder was changed or removed, or files of
        an earlier push cannot be removed.
    NoAnswer
        As before, because the server did not answer in time.
    """
    content = _content(run)
    _remove_earlier_pushes(run)
    logger = _opened(run, destination)
    limit = logger.experiment.settings.finish_timeout or END_TIMEOUT
    try:
        _mark(_folder(logger))
        for step, values in content.rows:
            logger.log_metrics(values, step)
        if content.evaluation is not None:
            log_evaluation(logger, content.evaluation)
        address = logger.experiment.url if destination.mode == "online" else None
    finally:
        began = time.monotonic()
        reason: str | None = end_run(logger.experiment, run.status, EXIT_CODES.get(run.status, 1))
    if reason:
        raise _error(f"W&B does not have all of it ({reason})", destination, began, limit)
    return Pushed(run.folder, address, None if address else _folder(logger))


def _content(run: RecordedRun) -> _Content:
    """Read what a run has logged."""
    try:
        rows = _rows(run.folder)
        last = rows[-1][0] if rows else 0
        return _Content(rows, None if run.scored is None else evaluation(run.scored, last))
    except Exception as error:  # one folder must not stop the others
        raise UserError(f"the folder was changed while it was read: {first_line(error)}. Push it again") from error


def _rows(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Return the rows of metrics.csv with their steps."""
    rows = []
    for row in read_rows(folder, "metrics.csv"):
        values = numbers(row)
        step = values.pop("step", -1.0)
        if 0 <= step < MAX_NUMBER:
            rows.append((int(step), values))
    return rows


def _remove_earlier_pushes(run: RecordedRun) -> None:
    """Remove the files of earlier pushes of a run, since ``wandb sync`` would send all of them."""
    try:
        for path in _files(run):
            if _is_pushed(path) or not run.id.is_recorded:
                shutil.rmtree(path)
    except OSError as error:
        raise UserError(f"the files of an earlier push cannot be removed: {first_line(error)}") from error


def _opened(run: RecordedRun, destination: Destination) -> Mirror:
    """Start a W&B run with the id and the labels of the recorded run."""
    mode: Any = destination.mode
    before, began = _files(run), time.monotonic()
    try:
        logger: Any = wandb_logger(
            run.home,
            project=destination.project,
            entity=destination.entity,
            mode=mode,
            run_id=run.id.text,
            recorded_host=run.host,
            **run.labels,
        )
    except UserError as error:
        for path in set(_files(run)) - set(before):  # W&B leaves the folder of a run that did not start
            _mark(path)
        raise _error(str(error), destination, began, START_TIMEOUT) from error
    return logger


def _error(reason: str, destination: Destination, began: float, limit: float) -> UserError:
    """Return the error of one run; one that ends the push if the server did not answer within ``limit`` seconds."""
    is_late = destination.mode == "online" and time.monotonic() - began >= limit
    return NoAnswer(reason) if is_late else UserError(reason)


def _folder(logger: Mirror) -> Path:
    """Return the folder of the files of a W&B run."""
    return Path(logger.experiment.dir).parent


def _mark(folder: Path) -> None:
    attempt("facts", (folder / MARK).touch)


def _is_pushed(path: Path) -> bool:
    return (path / MARK).is_file()


def _files(run: RecordedRun) -> list[Path]:
    """Return the folders of W&B runs with the id of a run: ``run-DATE_TIME-ID``, and ``offline-run-...``."""
    home = run.home / "wandb"
    if home.is_symlink():
        return []
    found = [path for kind in ("run", "offline-run") for path in home.glob(f"{kind}-????????_??????-{run.id.text}")]
    return sorted(path for path in found if path.is_dir() and not path.is_symlink())
