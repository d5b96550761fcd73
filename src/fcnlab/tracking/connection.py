"""Start a W&B run: online or offline, without a prompt, without blocking and without ending the run."""

import atexit
import configparser
import io
import logging
import os
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal, TypeVar

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from fcnlab.config.ranges import TableImages
from fcnlab.data.temporary_folders import held_folder, remove_leftovers
from fcnlab.errors import UserError, first_line
from fcnlab.files.reading import Unreadable, bytes_of
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
from fcnlab.tracking.mirror import Artifacts, Mirror, define_without_chart, warn_again

log = logging.getLogger("fcnlab")
Result = TypeVar("Result")
SERVER_TIMEOUT = 3.0  # seconds
TEMPORARY_PREFIX = "fcnlab-wandb-"  # of the folder for W&B's temporary folders
START_TIMEOUT = 10.0  # seconds; W&B's default is 90
FLUSH_INTERVAL = 1.0  # seconds between writes to the .wandb file; W&B's default is 15
REQUIRED_SPACE = 1 << 20  # bytes
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
    _import_wandb()
    Path(folder).mkdir(parents=True, exist_ok=True)
    _set_wandb_folders(Path(folder) / "wandb")
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


def _import_wandb() -> None:
    """Import W&B, which creates temporary folders."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # reports to W&B's makers, which may hold up the exit
    if "wandb" not in sys.modules:
        with temporary_files_in_own_folder():
            import wandb  # noqa: F401


@contextmanager
def _sendable_arguments() -> Iterator[None]:
    """Make the command-line arguments sendable, since W&B sends them, too."""
    before, sys.argv = sys.argv, sendable(sys.argv)
    try:
        yield
    finally:
        sys.argv = before


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


def _is_not_about_image_sizes(record: logging.LogRecord) -> bool:
    """Return False for W&B's warning that images differ in size, which it repeats at every validation."""
    return not record.getMessage().startswith("Images sizes do not match")


def _started(described: dict[str, Any], mode: Any) -> Any:
    """Start W&B's run; with ``mode="auto"``, start it offline if the server fails to start one."""
    import wandb

    elsewhere = _settings_of_folder() - HARMLESS - ({"entity"} if described["entity"] else set())
    _read_environment()
    chosen: Any = reachable_mode() if mode == "auto" else mode
    if elsewhere and chosen not in ("offline", "disabled"):
        raise _redirection_error(elsewhere)
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
            raise UserError(f"W&B did not start a run in mode={mode}: {_reason(error)}") from error
        log.warning("Warning: W&B did not start a run (%s): this run is logged offline", _reason(error))
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


def _read_environment() -> Any:
    """Return W&B's settings after it has read the environment."""
    import wandb

    try:
        return wandb.setup()
    except (wandb.Error, ValueError) as error:
        raise UserError(
            f"W&B rejects its settings: {_reason(error)}. Correct or unset that environment variable (WANDB_...). To"
            " train without W&B, set logger=csv"
        ) from error


def check_server() -> None:
    """Check within seconds that W&B's server can be asked for something.

    Raises
    ------
    UserError
        ``WANDB_MODE`` forbids it, no key is configured, the server does not respond, or a file in the current folder
        names another server.
    """
    _import_wandb()
    elsewhere = _settings_of_folder() - HARMLESS - {"entity"}
    if elsewhere:
        raise _redirection_error(elsewhere)
    settings = _read_environment().settings
    mode = os.environ.get("WANDB_MODE")
    if mode not in (None, "", "online"):
        raise UserError(f"WANDB_MODE={mode} in the environment forbids the connection to W&B: unset it")
    if not _has_key(settings):
        raise UserError("no API key of W&B is configured. Type wandb login, or set WANDB_API_KEY in the environment")
    if not _answers(settings.base_url):
        raise UserError(f"W&B's server {settings.base_url} does not respond within {SERVER_TIMEOUT:g} seconds")


def download_folder() -> Path:
    """Return the folder for downloaded checkpoints, in W&B's cache folder.

    Raises
    ------
    UserError
        The cache folder is not writable.
    """
    cache = next(usual for variable, usual in _usual_folders() if variable == "WANDB_CACHE_DIR")
    if not _is_writable(cache):
        raise UserError(f"W&B's cache folder {cache} is not writable: set WANDB_CACHE_DIR to another folder")
    return cache / "fcnlab"


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
        " environment. Otherwise remove the file. To train without W&B, set logger=csv"
    )


def _reason(error: Exception) -> str:
    """Return W&B's reason for rejecting a setting; pydantic's errors contain it in their parts."""
    parts: Any = getattr(error, "errors", list)()
    messages = [f"{'.'.join(map(str, part['loc']))}={part['input']!r:.100}: {part['msg']}" for part in parts]
    return "; ".join(messages) or first_line(error)


def check_settings() -> Any:
    """Check what W&B reads of the current folder and of the environment; return its settings.

    Raises
    ------
    UserError
        W&B would read a file in the current folder without end, or it rejects its settings.
    """
    _import_wandb()
    _settings_of_folder()  # first: W&B's own reader would wait for a FIFO
    return _read_environment()


def reachable_mode() -> str:
    """Return "online" if the server can be reached: without this check, W&B takes over a minute to fail.

    Raises
    ------
    UserError
        As :func:`check_settings`.
    """
    setup = check_settings()
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    settings = setup.settings
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

    urllib's timeout applies to each read, so a slow answer would never time out.
    """
    try:
        return within(SERVER_TIMEOUT, _request, server)
    except TimeoutError:
        return False


def within(seconds: float, function: Callable[..., Result], *arguments: Any) -> Result:
    """Return the result of a function that runs in a thread, which is left alone after ``seconds``.

    Raises
    ------
    TimeoutError
        The function has not returned by then. Its own errors are raised, too.
    """
    result: Future[Result] = Future()

    def run() -> None:
        try:
            result.set_result(function(*arguments))
        except Exception as error:  # raised in the calling thread
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result(seconds)


def _request(server: str) -> bool:
    try:
        urllib.request.urlopen(server, timeout=SERVER_TIMEOUT).close()
    except urllib.error.HTTPError as response:
        return response.code < 500
    except (OSError, ValueError, HTTPException):
        return False
    return True
