"""Weights & Biases as a mirror of the run's folder: never a prompt, never a hang, never in the way of training."""

import atexit
import configparser
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
ANSWER_WITHIN = 3.0  # seconds
TEMPORARY = "fcnlab-wandb-"  # how the name of the folder begins that holds W&B's temporary ones
# Characters that W&B takes; it refuses to start a run with more.
MOST_IN_TAG, MOST_IN_JOB_TYPE, MOST_IN_NAME, MOST_IN_PROJECT = 64, 64, 128, 128
NOT_IN_PROJECT = re.compile(r"[/\\#?%:]")
START_WITHIN = 20.0  # seconds; W&B itself would try for 90
PLACES = (Path("wandb/settings"), Path(".wandb/settings"))  # in the current folder, which W&B reads
ROOM = 1 << 20  # bytes
SETTINGS_BYTES = 64 << 10  # of a file of W&B's settings
HARMLESS = {
    "mode",
    "disabled",
    "quiet",
    "silent",
    "project",
}  # settings there that fcnlab sets itself, or that hide text


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
    """A run of its own in ``folder/wandb/``, or, with ``run_id``, the continuation of one.

    ``mode="auto"`` is online where a key is configured and the server answers, else offline.
    """
    if getattr(rank_zero_only, "rank", 0):  # other ranks never log
        return WandbLogger()
    logging.getLogger().addFilter(_no_word_of_sizes)
    if "wandb" not in sys.modules:
        with temporary_files_in():
            import wandb  # noqa: F401  which makes folders
    Path(folder).mkdir(parents=True, exist_ok=True)
    _let_it_write(Path(folder) / "wandb")
    described = {
        "dir": folder, "config": sendable(config), "id": run_id, "name": shortened(name, MOST_IN_NAME),
        "project": accepted_project(project), "entity": sendable(entity), "group": shortened(group, MOST_IN_NAME),
        "job_type": shortened(job_type, MOST_IN_JOB_TYPE),
        "tags": list(dict.fromkeys(shortened(tag, MOST_IN_TAG) for tag in tags if tag)),
    }  # fmt: skip
    can_be_sent = sendable(str(folder)) == str(folder)
    if not can_be_sent:
        log.warning("Warning: W&B cannot write into %s, whose name is not UTF-8: it gets nothing of this run", folder)
    with _words_sendable():
        run = _started(described, mode if can_be_sent else "disabled")
    if run_id:  # W&B keeps the values of before, and a resumed run may have others
        run.config.update(described["config"], allow_val_change=True)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return Mirror(experiment=run)


@contextmanager
def _words_sendable() -> Iterator[None]:
    """W&B sends the words of the command, too."""
    before, sys.argv = sys.argv, sendable(sys.argv)
    try:
        yield
    finally:
        sys.argv = before


class Mirror(WandbLogger):
    """Lightning's logger, of which nothing ends a run whose files are elsewhere."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with in_nobodys_way("numbers"):
            super().log_metrics(metrics, step)


@contextmanager
def in_nobodys_way(what: str) -> Iterator[None]:
    """Make a warning of whatever W&B raises, once for each kind: what it shows is in the run's folder as well."""
    try:
        yield
    except Exception as error:  # of files, of its server, of its process: they have no kind in common
        _warn_of_missing(what, first_line(error))


@cache
def _warn_of_missing(what: str, why: str) -> None:
    log.warning("Warning: W&B does not have all %s of this run (%s): the run's folder does", what, why)


def _let_it_write(folder: Path) -> None:
    """Name the places outside of a run's folder where W&B writes; inside ``folder`` where they take no files.

    Named in any case: without HOME its process finds no place for a log, and writes it to the terminal.
    """
    for variable, usual in _usual_places():
        os.environ[variable] = str(usual if _takes_files(usual) else folder / variable.lower())


@cache
def _usual_places() -> tuple[tuple[str, Path], ...]:
    """As the user left them: where files wait to be sent, and what is kept of those that were."""
    from wandb import env

    return (env.DATA_DIR, Path(env.get_data_dir())), (env.CACHE_DIR, env.get_cache_dir())


def _takes_files(folder: Path) -> bool:
    """Whether there is room for a table or two: a full disk is as bad as one that is only read."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ROOM))
    except OSError:
        return False
    return True


@cache
def _held_temporary_folder() -> Path:
    """Of this process, until it ends; those of processes that were killed are removed."""
    parent, held = Path(tempfile.gettempdir()), ExitStack()
    remove_leftovers(parent, TEMPORARY)
    atexit.register(held.close)
    return held.enter_context(held_folder(parent, TEMPORARY))


@contextmanager
def temporary_files_in() -> Iterator[None]:
    """Let temporary files be made where the next run finds them, should this one be killed: W&B's have any name."""
    folder = _held_temporary_folder()
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def shortened(text: str | None, most: int) -> Any:
    """At most so many characters that can be sent; a hash at the end keeps texts apart that begin alike."""
    text = sendable(text)
    if text is None or len(text) <= most:
        return text
    return f"{text[: most - 9]}-{blake2b(text.encode(), digest_size=4).hexdigest()}"


def accepted_project(project: str) -> str:
    """The name of a project that W&B takes; said where it is another, since the run is found there."""
    accepted = shortened(NOT_IN_PROJECT.sub("-", sendable(project)), MOST_IN_PROJECT)
    if accepted != project:
        log.warning(
            "Warning: logger.wandb.project=%s: W&B takes at most %d characters and none of / \\ # ? %% : there. The run"
            " is in the project %s",
            *(project, MOST_IN_PROJECT, accepted),
        )
    return accepted


def sendable(value: Any) -> Any:
    """Plain values under keys that are texts, which can all be encoded: odd bytes of a name not in UTF-8 are shown."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        return {sendable(str(key)): sendable(each) for key, each in value.items()}
    return [sendable(each) for each in value] if isinstance(value, (list, tuple)) else value


def _no_word_of_sizes(record: logging.LogRecord) -> bool:
    """W&B warns at every validation that images have sizes of their own, which here they shall have."""
    return not record.getMessage().startswith("Images sizes do not match")


def _started(described: dict[str, Any], mode: Any) -> Any:
    """W&B's run; offline where ``mode="auto"`` and the server that answered starts none after all."""
    import wandb

    elsewhere = _settings_of_folder() - HARMLESS - ({"entity"} if described["entity"] else set())
    try:
        wandb.setup()  # reads the environment
    except (wandb.Error, ValueError) as error:
        raise UserError(
            f"W&B refuses what its own settings say: {_why(error)}. Correct or unset that variable (WANDB_...) in the"
            " environment, or train with logger=csv"
        ) from error
    chosen: Any = reachable_mode() if mode == "auto" else mode
    if elsewhere and chosen not in ("offline", "disabled"):
        raise _names_another_place(elsewhere)
    # Offline, the id alone joins the parts of a run when they are synced.
    described = described | {"resume": "allow" if described["id"] and chosen == "online" else None}
    settings = wandb.Settings(quiet=True, console="off", init_timeout=START_WITHIN)
    try:
        return wandb.init(**described, mode=chosen, settings=settings, reinit="create_new")
    except (wandb.Error, ValueError) as error:
        if mode != "auto" or chosen == "offline":
            raise UserError(f"logger.wandb.mode={mode}: W&B did not start a run: {_why(error)}") from error
        log.warning("Warning: W&B did not start a run (%s): this one is offline", _why(error))
        return _started(described, "offline")


def _settings_of_folder() -> set[str]:
    """What a file in the current folder sets, which W&B follows, and the environment does not set.

    The folder may be a run's, and anybody's. W&B sends its key to the server that such a file names.

    Raises
    ------
    UserError
        It is over a limit, or no regular file: W&B would read it without an end.
    """
    found: set[str] = set()
    for path in PLACES:
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(bytes_of(path, SETTINGS_BYTES).decode())
            found |= set(parser["default"])
        except Unreadable as error:
            raise UserError(f"{path} in the current folder is read by W&B: {error}. Remove it") from error
        except (OSError, UnicodeDecodeError, configparser.Error, KeyError):  # W&B follows none of it either
            continue
    return {name for name in found if f"WANDB_{name.upper()}" not in os.environ}


def _names_another_place(names: set[str]) -> UserError:
    places = " or ".join(str(path) for path in PLACES if path.is_file())
    typed = " ".join(f"WANDB_{name.upper()}=..." for name in sorted(names))
    return UserError(
        f"{places} in the current folder sets what tells W&B where a run and its key are sent, or how:"
        f" {', '.join(sorted(names))}. Whoever made that folder may have written it, so it is not followed. If it is"
        f" yours, put that into the environment ({typed}), else remove the file, or train with logger=csv"
    )


def _why(error: Exception) -> str:
    """What W&B says of a setting that it refuses; pydantic's errors, which it lets through, tell it in their parts."""
    parts: Any = getattr(error, "errors", list)()
    told = [f"{'.'.join(map(str, part['loc']))}={part['input']!r:.100}: {part['msg']}" for part in parts]
    return "; ".join(told) or first_line(error)


def reachable_mode() -> str:
    """Online costs a minute and more before it fails where nobody answers, so ask first."""
    import wandb

    if wanted := os.environ.get("WANDB_MODE"):
        return wanted
    settings = wandb.setup().settings
    return "online" if _has_key(settings) and _answers(settings.base_url) else "offline"


def _has_key(settings: Any) -> bool:
    """Whether a key is configured. Silently: W&B would ask its server for the user's name, and wait for 5 seconds."""
    import wandb

    silent, settings.silent = settings.silent, True
    try:
        return wandb.login(prompt=False, verify=False)
    finally:
        settings.silent = silent


def _answers(server: str) -> bool:
    """Whether a server answers, and not with an error of its own, in ``ANSWER_WITHIN`` seconds.

    Asked in a thread: a timeout of urllib's holds for each read, and one byte a second would never be late.
    """
    answers: list[bool] = []
    asking = threading.Thread(target=lambda: answers.append(_ask(server)), daemon=True)
    asking.start()
    asking.join(ANSWER_WITHIN)
    return answers == [True]


def _ask(server: str) -> bool:
    try:
        urllib.request.urlopen(server, timeout=ANSWER_WITHIN).close()
    except urllib.error.HTTPError as answer:
        return answer.code < 500
    except (OSError, ValueError, HTTPException):
        return False
    return True


def log_scores(
    logger: WandbLogger, found: Scores, matrix, classes: Sequence[str], name: str, selection: Mapping[str, Any] | None
) -> None:
    """The per-class table and the confusion matrix (row: truth) of the final evaluation, below ``name``.

    How the scored weights were selected goes to the summary; their score on the validation images is logged, since that
    is what W&B's sweeps can maximise.
    """
    import wandb

    classes = sendable(classes)
    table = wandb.Table(["class", "iou"], [[name, float(iou)] for name, iou in zip(classes, found.iou, strict=True)])
    cells = [[target, *map(int, row)] for target, row in zip(classes, matrix, strict=True)]
    confusion = wandb.Table(["truth \\ prediction", *classes], cells)
    facts = {f"selection/{key}": sendable(value) for key, value in (selection or {}).items() if value is not None}
    validated = {key: value for key, value in facts.items() if key == "selection/val_miou"}
    with in_nobodys_way("tables"), temporary_files_in():
        logger.experiment.log({f"{name}/per_class": table, f"{name}/confusion": confusion, **validated})
    with in_nobodys_way("facts"):
        logger.experiment.summary.update(facts)
