"""sweep.json: the jobs of a sweep and their status, from which an interrupted sweep is resumed."""

import logging
import os
import platform
import time
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, Literal

from fcnlab.config.overrides import (
    combinations_override,
    format_override,
    resume_override,
    searchpath_folders,
    shell_join,
)
from fcnlab.config.ranges import Seed, is_valid
from fcnlab.errors import UserError
from fcnlab.files.in_place import open_own
from fcnlab.files.locks import FolderLock, try_lock
from fcnlab.files.reading import Unreadable, display_path, read_json, read_yaml, texts
from fcnlab.files.writing import as_json, atomic_write, timestamp

log = logging.getLogger("fcnlab")
NAME = "sweep.json"
JOBS_LOCK = ".jobs.lock"
Status = Literal["waiting", "running", "finished", "interrupted", "failed"]


@dataclass
class Job:
    """One job of a sweep.

    ``folder`` is relative to the sweep's folder. ``name`` lists the settings in which the jobs differ. ``miou`` is the
    job's score. Status ``interrupted``: a signal stopped the job. ``settings`` is a hash of the composed settings.
    """

    number: int
    folder: str
    overrides: list[str]
    name: str
    status: Status = "waiting"
    exit_code: int | None = None
    started: str | None = None
    ended: str | None = None
    miou: float | None = None
    settings: str = ""


@dataclass
class Manifest:
    """The record of a sweep in ``folder``; it is replaced atomically at each change.

    ``overrides`` are the typed overrides, ``params`` those of ``hydra.sweeper.params`` that the typed ones do not
    replace. ``launched_by`` are overrides of Hydra's own settings, such as the launcher, and options such as
    --config-dir; they are recorded for display only. Each job of the overrides is run with each of the
    ``combinations``, if there are any (``sweep.confirm``), and its settings again with each of the ``added_seeds``
    (``sweep.extend``). ``option`` names the setting of the command that reads this record, for messages.
    """

    folder: Path
    verb: str
    overrides: list[str]
    status: str = "running"
    started: str = field(default_factory=timestamp)
    ended: str | None = None
    jobs: dict[int, Job] = field(default_factory=dict)
    params: list[str] = field(default_factory=list)
    launched_by: list[str] = field(default_factory=list)
    combinations: list[list[str]] = field(default_factory=list)
    added_seeds: list[int] = field(default_factory=list)
    option: str = "sweep.resume"

    @property
    def request(self) -> str:
        """The setting that named this sweep's folder."""
        return f"{self.option}={display_path(self.folder)}"

    @property
    def all_overrides(self) -> list[str]:
        """The overrides that make the jobs: those of the file and the typed ones."""
        return [*self.params, *self.overrides]

    @property
    def command(self) -> str:
        more = self._combinations_typed
        if self.added_seeds:
            more.append(format_override("sweep.added_seeds", ",".join(map(str, self.added_seeds))))
        return shell_join(["fcnlab", self.verb, "-m", *self.launched_by, *self.all_overrides, *more])

    @property
    def _combinations_typed(self) -> list[str]:
        return [combinations_override(self.combinations)] if self.combinations else []

    @property
    def _config_dir(self) -> list[str]:
        return self.launched_by[:2] if self.launched_by[:1] == ["--config-dir"] else []

    @property
    def _own_folders(self) -> list[Path]:
        return [*map(Path, self._config_dir[1:]), *searchpath_folders(self.launched_by)]

    @property
    def params_source(self) -> str:
        """Where ``hydra.sweeper.params`` comes from, for a message: the files of the user's folders that set it."""
        files = [path for folder in self._own_folders for path in sorted(folder.rglob("*.yaml")) if _sets_params(path)]
        return f"set in {', '.join(map(display_path, files))}" if files else "as typed"

    @property
    def resume_command(self) -> str:
        """The command that resumes the sweep, with all settings if a record may not bring some of them back."""
        from fcnlab.config.locations import config_roots
        from fcnlab.config.trust import UntrustedError, check_overrides

        repeated = []
        try:
            check_overrides([*self.all_overrides, *chain(*self.combinations)], [*config_roots(), *self._own_folders])
        except UntrustedError:
            repeated = [*self.all_overrides, *self._combinations_typed]
        return shell_join(["fcnlab", self.verb, "-m", *self.launched_by, resume_override(self.folder), *repeated])

    def settings_error(self, difference: str) -> UserError:
        """Return the error for settings that differ from those the sweep was started with."""
        advice = (
            "Type only new seeds: all other settings are repeated from the sweep"
            if self.option == "sweep.extend"
            else f"Type the same settings, or none: {self.resume_command}"
        )
        return UserError(f"{self.request}: the settings differ from those of that sweep{difference}\n{advice}")

    def write(self) -> None:
        facts = {"command": self.command, "process": {"host": platform.node(), "pid": os.getpid()}}
        facts |= {"config_dir": next(iter(self._config_dir[1:]), None)}
        names = ("verb", "params", "overrides", "combinations", "added_seeds", "status", "started", "ended")
        facts |= {name: getattr(self, name) for name in names}
        facts["jobs"] = [asdict(job) for _, job in sorted(self.jobs.items())]
        with atomic_write(self.folder / NAME) as part:
            part.write_text(as_json(facts), encoding="utf-8")

    def mark_running(self) -> None:
        """Set the status of a running sweep, without writing the file."""
        self.status, self.ended = "running", None

    def end(self, status: str) -> None:
        self.status, self.ended = status, timestamp()
        self.write()

    def plan(self, requested: Job) -> Job:
        """Return the recorded job of this number; record the requested one if there is none.

        Raises
        ------
        UserError
            The recorded job has other settings; another job uses the same folder.
        """
        job = self.jobs.setdefault(requested.number, requested)
        job.name = requested.name  # the recorded name may be another version's
        for recorded in self.jobs.values():
            if recorded is not job and recorded.folder == job.folder:
                raise UserError(
                    f"jobs {recorded.number} and {job.number} would both use the folder"
                    f" {display_path(self.folder / job.folder)}. Give each job its own hydra.sweep.subdir, such as"
                    " ${hydra.job.num}"
                )
        if job.overrides != requested.overrides:
            raise UserError(
                f"{self.request}: job {job.number} was started with other settings"
                f"{describe_difference(job.overrides, requested.overrides)}"
            )
        return job


def _sets_params(path: Path) -> bool:
    """Return whether a config file sets ``hydra.sweeper.params``, as an option of any group or of ``hydra/sweeper``."""
    try:
        content = read_yaml(path.parent, path.name)
    except (OSError, Unreadable):
        return False
    for key in () if path.parent.name == "sweeper" else ("hydra", "sweeper"):
        content = content.get(key) if isinstance(content, dict) else None
    return isinstance(content, dict) and content.get("params") is not None


def open_manifest(
    folder: Path, verb: str, overrides: Sequence[str], option: str | None, launched_by: Sequence[str] = ()
) -> Manifest:
    """Return the record of a new sweep, or the one in ``folder``, which ``option`` (``sweep.resume``) names.

    Raises
    ------
    UserError
        The folder holds a sweep that is not to be resumed; there is no sweep to resume; its settings differ.
    """
    if option is None:
        if (folder / NAME).exists():
            raise UserError(
                f"{display_path(folder)} already contains a sweep. Resume it with"
                f" {shell_join([resume_override(folder)])}, or set hydra.sweep.dir to a new folder"
            )
        return Manifest(folder, verb, list(overrides), launched_by=list(launched_by))
    manifest = read_manifest(folder, option)
    manifest.launched_by = list(launched_by)
    typed = list(overrides) if list(overrides) != manifest.all_overrides else manifest.overrides
    if (manifest.verb, manifest.overrides) != (verb, typed):
        raise manifest.settings_error(describe_difference([manifest.verb, *manifest.overrides], [verb, *typed]))
    manifest.mark_running()
    return manifest


def read_manifest(folder: Path, option: str) -> Manifest:
    """Read the record in ``folder``, which ``option`` names; raise a UserError if there is none or it is not valid."""
    try:
        facts = read_json(folder, NAME)
        if facts is None:
            raise ValueError(f"there is no {NAME}")
        jobs = {job["number"]: _job(job) for job in facts["jobs"]}
        whole = folder.resolve()
        if any(not (folder / job.folder).resolve().is_relative_to(whole) for job in jobs.values()):
            raise ValueError("a job's folder is outside the sweep's folder")
        recorded = {name: facts[name] for name in ("verb", "overrides", "status", "started", "ended")}
        if not isinstance(recorded["verb"], str):
            raise TypeError("its verb is not a text")
        texts(recorded["overrides"], "overrides")
        recorded["params"] = texts(facts["params"], "params")
        recorded["combinations"] = [texts(words, "combinations") for words in facts.get("combinations", [])]
        recorded["added_seeds"] = _seeds(facts.get("added_seeds", []))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{option}={display_path(folder)}: no valid record of a sweep ({error}). Give a folder with {NAME}."
        ) from error
    return Manifest(folder, **recorded, jobs=jobs, option=option)


def _job(facts: Any) -> Job:
    job = Job(**facts)
    texts(job.overrides, "jobs' overrides")
    if not all(isinstance(text, str) for text in (job.folder, job.name, job.status, job.settings)):
        raise TypeError("the folder, name, status or settings of a job are not a text")
    if not is_subfolder(job.folder):
        raise ValueError("a job's folder is outside the sweep's folder")
    if type(job.number) is not int or type(job.miou) not in (int, float, type(None)):
        raise TypeError("the number or score of a job is not a number")
    return job


def is_subfolder(name: str) -> bool:
    """Return whether the relative path of a job's folder leads below that of its sweep; links may lead elsewhere."""
    path = PurePath(name)
    return bool(path.parts) and ".." not in path.parts and not path.is_absolute()


def _seeds(values: Any) -> list[int]:
    if not isinstance(values, list) or not all(is_valid(value, Seed) for value in values):
        raise TypeError("its added_seeds are not a list of seeds")
    return values


def describe_difference(recorded: Sequence[str], typed: Sequence[str]) -> str:
    """List the overrides that are in only one of two lists, one per line."""
    lines = [f"\n  only in the record:  {override}" for override in recorded if override not in typed]
    lines += [f"\n  only in this sweep:  {override}" for override in typed if override not in recorded]
    return ":" + "".join(lines) if lines else ": their order differs, and with it the numbers of the jobs"


class JobsLock:
    """A lock held by the processes that this process starts in a folder: the jobs of a sweep, the stages of a run.

    ``inherited`` is the file that the started processes keep open, and with it the lock. The system releases the lock
    when the last of them has ended. After a sweep was killed, its jobs may still be saving a checkpoint: they must not
    be started again before they have ended.
    """

    def __init__(self, folder: Path):
        self.folder, path = folder, folder / JOBS_LOCK
        self._is_new = not path.exists()
        self.inherited = open_own(path, os.O_RDWR)
        self.release = weakref.finalize(self, os.close, self.inherited)

    def abandon(self) -> None:
        """Release the lock and remove its file, since nothing was started in the folder."""
        if self._is_new and self.release.alive:
            (self.folder / JOBS_LOCK).unlink(missing_ok=True)
        self.release()

    def try_acquire(self) -> bool:
        """Take the lock for this process's jobs; return False while jobs of an earlier process hold it."""
        return try_lock(self.inherited, self.folder)

    def wait(self) -> None:
        if not self.try_acquire():
            log.info(
                "Waiting for jobs of an earlier process in %s, which are still saving a checkpoint",
                display_path(self.folder),
            )
            while not self.try_acquire():
                time.sleep(0.2)


class SweepLock:
    """The locks of a sweep: ``own`` is held by the one process that runs it, ``jobs`` by the jobs it has started."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.own = FolderLock(folder)
        try:
            self.jobs = JobsLock(folder)
        except BaseException:
            self.own.abandon()
            raise

    def release(self) -> None:
        self.jobs.release()
        self.own.release()

    def abandon(self) -> None:
        """Release the locks and remove their files, since the command was refused."""
        self.jobs.abandon()
        self.own.abandon()
