"""Weights & Biases as a mirror of the run's folder: it never prompts, never blocks and never ends a run."""

import atexit
import configparser
import io
import logging
import os
import re
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from hashlib import blake2b
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from fcnlab.data.temporary_folders import held_folder, remove_leftovers
from fcnlab.errors import UserError, first_line
from fcnlab.files.reading import Unreadable, bytes_of
from fcnlab.metrics.scores import Scores

log = logging.getLogger("fcnlab")
SERVER_TIMEOUT = 3.0  # seconds
TEMPORARY_PREFIX = "fcnlab-wandb-"  # of the folder for W&B's temporary folders
# Maximum numbers of characters: W&B refuses to start a run with more.
MAX_TAG, MAX_JOB_TYPE, MAX_NAME, MAX_PROJECT = 64, 64, 128, 128
FORBIDDEN_IN_PROJECT = re.compile(r"[/\\#?%:]")
START_TIMEOUT = 20.0  # seconds; W&B's default is 90
REQUIRED_SPACE = 1 << 20  # bytes
SETTINGS_FILES = (Path("wandb/settings"), Path(".wandb/settings"))  # in the current folder; W&B reads them
SETTINGS_BYTES = 64 << 10  # limit on such a file
HARMLESS = {"mode", "disabled", "quiet", "silent", "project"}  # fcnlab sets them itself, or they hide text


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
    run_id: str | None = None,
) -> WandbLogger:
    """Return the logger of a new W&B run in ``folder/wandb/``, or of the existing run ``run_id``.

    ``mode="auto"`` means online if an API key is configured and the server answers, otherwise offline.
    """
    if getattr(rank_zero_only, "rank", 0):  # other ranks never log
        return WandbLogger()
    logging.getLogger().addFilter(_is_not_about_image_sizes)
    if "wandb" not in sys.modules:
        with temporary_files_in_own_folder():
            import wandb  # noqa: F401  which creates temporary folders
    Path(folder).mkdir(parents=True, exist_ok=True)
    _set_wandb_folders(Path(folder) / "wandb")
    described = {
        "dir": folder, "config": sendable(config), "id": run_id, "name": shortened(name, MAX_NAME),
        "project": accepted_project(project), "entity": sendable(entity), "group": shortened(group, MAX_NAME),
        "job_type": shortened(job_type, MAX_JOB_TYPE),
        "tags": list(dict.fromkeys(shortened(tag, MAX_TAG) for tag in tags if tag)),
    }  # fmt: skip
    can_be_sent = sendable(str(folder)) == str(folder)
    if not can_be_sent:
        log.warning("Warning: W&B cannot write to %s, whose name is not UTF-8: this run is not logged there", folder)
    with _sendable_arguments():
        run = _started(described, mode if can_be_sent else "disabled")
    if run_id:  # W&B keeps the old values, and a resumed run may have new ones
        run.config.update(described["config"], allow_val_change=True)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return Mirror(experiment=run)


@contextmanager
def _sendable_arguments() -> Iterator[None]:
    """Make the command-line arguments sendable, since W&B sends them, too."""
    before, sys.argv = sys.argv, sendable(sys.argv)
    try:
        yield
    finally:
        sys.argv = before


class Mirror(WandbLogger):
    """Lightning's W&B logger, whose errors never end a run."""

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


def _set_wandb_folders(folder: Path) -> None:
    """Set W&B's data and cache folders: the usual ones if they are writable, otherwise subfolders of ``folder``.

    They are always set: without HOME, W&B's process finds no place for its log and writes it to the terminal.
    """
    for variable, usual in _usual_folders():
        os.environ[variable] = str(usual if _is_writable(usual) else folder / variable.lower())


@cache
def _usual_folders() -> tuple[tuple[str, Path], ...]:
    """Return W&B's data and cache folders by environment variable, as the user has set them."""
    from wandb import env

    return (env.DATA_DIR, Path(env.get_data_dir())), (env.CACHE_DIR, env.get_cache_dir())


def _is_writable(folder: Path) -> bool:
    """Return whether a small file can be written to a folder: neither read-only nor full."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(REQUIRED_SPACE))
    except OSError:
        return False
    return True


@cache
def _held_temporary_folder() -> Path:
    """Return this process's temporary folder, which is removed at its end; remove those of killed processes."""
    parent, stack = Path(tempfile.gettempdir()), ExitStack()
    remove_leftovers(parent, TEMPORARY_PREFIX)
    atexit.register(stack.close)
    return stack.enter_context(held_folder(parent, TEMPORARY_PREFIX))


@contextmanager
def temporary_files_in_own_folder() -> Iterator[None]:
    """Create temporary files in a folder that the next run removes if this one is killed: W&B uses arbitrary names."""
    folder = _held_temporary_folder()
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def shortened(text: str | None, most: int) -> Any:
    """Return a sendable text of at most ``most`` characters; a hash at the end distinguishes shortened texts."""
    text = sendable(text)
    if text is None or len(text) <= most:
        return text
    return f"{text[: most - 9]}-{blake2b(text.encode(), digest_size=4).hexdigest()}"


def accepted_project(project: str) -> str:
    """Return a project name that W&B accepts; warn where it differs from the requested one."""
    accepted = shortened(FORBIDDEN_IN_PROJECT.sub("-", sendable(project)), MAX_PROJECT)
    if accepted != project:
        log.warning(
            "Warning: logger.wandb.project=%s: W&B accepts at most %d characters, without / \\ # ? %% : . The run is in"
            " the project %s",
            *(project, MAX_PROJECT, accepted),
        )
    return accepted


def sendable(value: Any) -> Any:
    """Return plain values with text keys, all encodable as UTF-8; other bytes of a name are escaped."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        return {sendable(str(key)): sendable(each) for key, each in value.items()}
    return [sendable(each) for each in value] if isinstance(value, (list, tuple)) else value


def _is_not_about_image_sizes(record: logging.LogRecord) -> bool:
    """Return False for W&B's warning that images differ in size, which it repeats at every validation."""
    return not record.getMessage().startswith("Images sizes do not match")


def _started(described: dict[str, Any], mode: Any) -> Any:
    """Start W&B's run; with ``mode="auto"``, start it offline if the server fails to start one."""
    import wandb

    elsewhere = _settings_of_folder() - HARMLESS - ({"entity"} if described["entity"] else set())
    try:
        wandb.setup()  # reads the environment
    except (wandb.Error, ValueError) as error:
        raise UserError(
            f"W&B rejects its settings: {_reason(error)}. Correct or unset that environment variable (WANDB_...), or"
            " train with logger=csv"
        ) from error
    chosen: Any = reachable_mode() if mode == "auto" else mode
    if elsewhere and chosen not in ("offline", "disabled"):
        raise _redirection_error(elsewhere)
    # Offline, the id is enough to join the parts of a run when they are synced.
    described = described | {"resume": "allow" if described["id"] and chosen == "online" else None}
    settings = wandb.Settings(quiet=True, console="off", init_timeout=START_TIMEOUT)
    try:
        return wandb.init(**described, mode=chosen, settings=settings, reinit="create_new")
    except (wandb.Error, ValueError) as error:
        if mode != "auto" or chosen == "offline":
            raise UserError(f"logger.wandb.mode={mode}: W&B did not start a run: {_reason(error)}") from error
        log.warning("Warning: W&B did not start a run (%s): this run is logged offline", _reason(error))
        return _started(described, "offline")


def _settings_of_folder() -> set[str]:
    """Return the settings in W&B's files of the current folder that the environment does not set.

    The folder may come from someone else, and W&B sends its key to the server that such a file names.

    Raises
    ------
    UserError
        W&B would read a file without end or fail, or read other settings than this function: it is over a limit, no
        regular file or not UTF-8, or a value contains a %, which W&B expands (like ``%(name)s``).
    """
    names: set[str] = set()
    for path in SETTINGS_FILES:
        parser = configparser.ConfigParser(interpolation=None)  # a few expanded values can fill the memory
        try:
            # As W&B does, which opens the file as text: "\r" ends a line, too.
            parser.read_file(io.StringIO(bytes_of(path, SETTINGS_BYTES).decode(), newline=None))
            settings = dict(parser.items("default"))
            if any("%" in value.replace("%%", "") for value in settings.values()):
                raise Unreadable("a value contains a %, which must be written as %%")
        except (Unreadable, UnicodeDecodeError) as error:
            raise UserError(f"W&B reads {path} in the current folder: {error}. Correct or remove it") from error
        except (OSError, configparser.Error):  # no file, or no such section; W&B ignores such a file, too
            continue
        names |= settings.keys()
    return {name for name in names if f"WANDB_{name.upper()}" not in os.environ}


def _redirection_error(names: set[str]) -> UserError:
    files = " or ".join(str(path) for path in SETTINGS_FILES if path.is_file())
    variables = " ".join(f"WANDB_{name.upper()}=..." for name in sorted(names))
    return UserError(
        f"{files} in the current folder sets where W&B sends runs and the key, or how: {', '.join(sorted(names))}."
        f" fcnlab does not follow it, because it may come from someone else. If it is yours, set {variables} in the"
        " environment. Otherwise remove the file, or train with logger=csv"
    )


def _reason(error: Exception) -> str:
    """Return W&B's reason for rejecting a setting; pydantic's errors contain it in their parts."""
    parts: Any = getattr(error, "errors", list)()
    messages = [f"{'.'.join(map(str, part['loc']))}={part['input']!r:.100}: {part['msg']}" for part in parts]
    return "; ".join(messages) or first_line(error)


def reachable_mode() -> str:
    """Return "online" if the server can be reached: without this check, W&B takes over a minute to fail."""
    import wandb

    if mode := os.environ.get("WANDB_MODE"):
        return mode
    settings = wandb.setup().settings
    return "online" if _has_key(settings) and _answers(settings.base_url) else "offline"


def _has_key(settings: Any) -> bool:
    """Return whether an API key is configured; silent, since W&B would otherwise request the user's name for 5 s."""
    import wandb

    silent, settings.silent = settings.silent, True
    try:
        return wandb.login(prompt=False, verify=False)
    finally:
        settings.silent = silent


def _answers(server: str) -> bool:
    """Return whether a server answers, without a server error, within ``SERVER_TIMEOUT`` seconds.

    The request runs in a thread: urllib's timeout applies to each read, so a slow answer would never time out.
    """
    answers: list[bool] = []
    request = threading.Thread(target=lambda: answers.append(_request(server)), daemon=True)
    request.start()
    request.join(SERVER_TIMEOUT)
    return answers == [True]


def _request(server: str) -> bool:
    try:
        urllib.request.urlopen(server, timeout=SERVER_TIMEOUT).close()
    except urllib.error.HTTPError as response:
        return response.code < 500
    except (OSError, ValueError, HTTPException):
        return False
    return True


def log_scores(
    logger: WandbLogger, scores: Scores, matrix, classes: Sequence[str], name: str, selection: Mapping[str, Any] | None
) -> None:
    """Log the per-class IoU and the confusion matrix (rows: ground truth) of the final evaluation, below ``name``.

    The summary contains how the scored weights were selected; their score on the validation images is logged, so that
    W&B's sweeps can maximise it.
    """
    import wandb

    classes = sendable(classes)
    table = wandb.Table(["class", "iou"], [[name, float(iou)] for name, iou in zip(classes, scores.iou, strict=True)])
    cells = [[target, *map(int, row)] for target, row in zip(classes, matrix, strict=True)]
    confusion = wandb.Table(["ground truth \\ prediction", *classes], cells)
    facts = {f"selection/{key}": sendable(value) for key, value in (selection or {}).items() if value is not None}
    validated = {key: value for key, value in facts.items() if key == "selection/val_miou"}
    with errors_as_warnings("tables"), temporary_files_in_own_folder():
        logger.experiment.log({f"{name}/per_class": table, f"{name}/confusion": confusion, **validated})
    with errors_as_warnings("facts"):
        logger.experiment.summary.update(facts)
