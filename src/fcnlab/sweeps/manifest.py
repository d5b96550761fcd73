"""sweep.json: the jobs of a sweep and what became of each, so that it can go on after whatever ended it."""

import logging
import os
import platform
import time
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from fcnlab.config.overrides import resume_override, shell_join
from fcnlab.errors import UserError
from fcnlab.files.in_place import open_own
from fcnlab.files.locks import FolderLock, try_lock
from fcnlab.files.reading import display_path, read_json, texts
from fcnlab.files.writing import timestamp
from fcnlab.library_internals.hydra import value_of, value_text
from fcnlab.runs.settings import in_few_digits

log = logging.getLogger("fcnlab")
NAME = "sweep.json"
JOBS_LOCK = ".jobs.lock"
Status = Literal["waiting", "running", "finished", "interrupted", "failed"]


@dataclass
class Job:
    """One job of a sweep.

    ``folder`` is relative to the sweep's; ``name`` says what differs from the other jobs; ``miou`` is its score.
    ``interrupted``: a signal stopped it. ``settings`` is a hash of what it was composed of; None in older records.
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
    settings: str | None = None


@dataclass
class Manifest:
    """The record of a sweep in ``folder``: written anew, aside, each time that something has changed.

    ``overrides`` are the words that were typed, ``params`` those of ``hydra.sweeper.params`` that they left an effect;
    None where the record is older than that. ``launched_by`` are the words for Hydra, such as those that chose the
    launcher, and options such as --config-dir, which a record only shows.
    """

    folder: Path
    verb: str
    overrides: list[str]
    status: str = "running"
    started: str = field(default_factory=lambda: timestamp())
    ended: str | None = None
    jobs: dict[int, Job] = field(default_factory=dict)
    params: list[str] | None = None
    launched_by: list[str] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        """All that the jobs were made of, as it could have been typed."""
        return [*(self.params or []), *self.overrides]

    @property
    def command(self) -> str:
        return shell_join(["fcnlab", self.verb, "-m", *self.launched_by, *self.words])

    @property
    def _config_dir(self) -> list[str]:
        return self.launched_by[:2] if self.launched_by[:1] == ["--config-dir"] else []

    @property
    def resume_command(self) -> str:
        """What to type: the settings, too, where some of them never come from a record."""
        from fcnlab.config.locations import CONF
        from fcnlab.config.trust import UntrustedError, check_overrides

        again = []
        try:
            check_overrides(self.words, [CONF, *map(Path, self._config_dir[1:])])
        except UntrustedError:
            again = self.words
        return shell_join(["fcnlab", self.verb, "-m", *self.launched_by, resume_override(self.folder), *again])

    def others(self, what: str) -> UserError:
        """The refusal to go on with other settings than the sweep began with."""
        return UserError(
            f"sweep.resume={display_path(self.folder)}: that sweep has other settings{what}\n"
            f"Give the same, or none at all: {self.resume_command}"
        )

    def write(self) -> None:
        from fcnlab.files.writing import as_json, atomic_write  # numpy comes with it

        facts = {"command": self.command, "process": {"host": platform.node(), "pid": os.getpid()}}
        facts |= {"config_dir": next(iter(self._config_dir[1:]), None)}
        facts |= {name: getattr(self, name) for name in ("verb", "params", "overrides", "status", "started", "ended")}
        facts["jobs"] = [asdict(job) for _, job in sorted(self.jobs.items())]
        with atomic_write(self.folder / NAME) as part:
            part.write_text(as_json(facts), encoding="utf-8")

    def go_on(self) -> None:
        """Be the record of a sweep that runs, as of the next time that it is written."""
        self.status, self.ended = "running", None

    def end(self, status: str) -> None:
        self.status, self.ended = status, timestamp()
        self.write()

    def plan(self, wanted: Job) -> Job:
        """The record of a job: the one that is there, or the one that is wanted.

        Raises
        ------
        UserError
            A job of this number is there, and has other settings; another job has its folder.
        """
        job = self.jobs.setdefault(wanted.number, wanted)
        job.name = wanted.name  # of these overrides, whatever the record says
        for other in self.jobs.values():
            if other is not job and other.folder == job.folder:
                raise UserError(
                    f"jobs {other.number} and {job.number} would both work in {display_path(self.folder / job.folder)}: let"
                    " hydra.sweep.subdir tell them apart, as ${hydra.job.num} does"
                )
        if list(map(_value_of, job.overrides)) != list(map(_value_of, wanted.overrides)):
            raise UserError(
                f"sweep.resume={display_path(self.folder)}: job {job.number} was another one"
                f"{describe_difference(job.overrides, wanted.overrides)}"
            )
        return job


def _value_of(word: str) -> str:
    """A word as Hydra's own sweeper would write it, which older records have."""
    try:
        parsed = OverridesParser.create().parse_override(word)
        value: Any = in_few_digits(value_of(parsed))
        return f"{parsed.get_key_element()}={value_text(value)}"
    except (HydraException, AssertionError):
        return word


def open_manifest(
    folder: Path, verb: str, overrides: Sequence[str], resume: bool, launched_by: Sequence[str] = ()
) -> Manifest:
    """A new sweep's record, or the one in ``folder`` where it is to go on.

    Raises
    ------
    UserError
        A sweep is there, and was not asked to go on; none is; its settings are others.
    """
    if not resume:
        if (folder / NAME).exists():
            raise UserError(
                f"{display_path(folder)} holds a sweep already: go on with it by {shell_join([resume_override(folder)])}, or leave"
                " hydra.sweep.dir to a new folder"
            )
        return Manifest(folder, verb, list(overrides), launched_by=list(launched_by))
    kept = read_manifest(folder)
    kept.launched_by = list(launched_by)
    typed_here = list(overrides) if list(overrides) != kept.words else kept.overrides
    if (kept.verb, kept.overrides) != (verb, typed_here):
        raise kept.others(describe_difference([kept.verb, *kept.overrides], [verb, *typed_here]))
    kept.go_on()
    return kept


def read_manifest(folder: Path) -> Manifest:
    """The record in ``folder``; a UserError where there is none, or what is there is none."""
    try:
        facts = read_json(folder, NAME)
        if facts is None:
            raise ValueError(f"there is no {NAME}")
        jobs = {job["number"]: Job(**job) for job in facts["jobs"]}
        if any(not (folder / job.folder).resolve().is_relative_to(folder.resolve()) for job in jobs.values()):
            raise ValueError("a job's folder is outside of it")
        kept = {name: facts[name] for name in ("verb", "overrides", "status", "started", "ended")}
        kept["params"] = texts(facts.get("params"), "params")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"sweep.resume={display_path(folder)}: no record of a sweep there ({error}). Give a folder with {NAME}."
        ) from error
    return Manifest(folder, **kept, jobs=jobs)


def describe_difference(there: Sequence[str], here: Sequence[str]) -> str:
    """What two lists of words do not share, a line each."""
    lines = [f"\n  only there: {word}" for word in there if word not in here]
    lines += [f"\n  only here:  {word}" for word in here if word not in there]
    return ":" + "".join(lines) if lines else ": the same words in another order, which numbers the jobs otherwise"


class JobsLock:
    """Held by what this process starts in a folder: the jobs of a sweep, the stages of a training.

    ``inherited`` is the file that they keep open and thereby locked. The system lifts the lock with the last process
    that holds it, however that ended: the jobs of a sweep that was killed are still saving themselves, and nobody may
    start them again before they have.
    """

    def __init__(self, folder: Path):
        self.folder, path = folder, folder / JOBS_LOCK
        self._is_new = not path.exists()
        self.inherited = open_own(path, os.O_RDWR)
        self.release = weakref.finalize(self, os.close, self.inherited)

    def abandon(self) -> None:
        """Leave the folder as it was: nothing was started there."""
        if self._is_new and self.release.alive:
            (self.folder / JOBS_LOCK).unlink(missing_ok=True)
        self.release()

    def try_acquire(self) -> bool:
        """Whether none that an earlier process started is alive; from then on, this one's hold the lock."""
        return try_lock(self.inherited, self.folder)

    def wait(self) -> None:
        if not self.try_acquire():
            log.info(
                "What an earlier process started in %s is still saving itself: waiting for it",
                display_path(self.folder),
            )
            while not self.try_acquire():
                time.sleep(0.2)


class SweepLock:
    """One process works on a sweep, and starts its jobs: ``own`` keeps others off, ``jobs`` is held by the jobs."""

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
        """Leave the folder as it was: a refused command never worked here."""
        self.jobs.abandon()
        self.own.abandon()
