"""What ``fcnlab VERB -m`` hands its jobs to: ``hydra/launcher=slots``, or ``basic``, which stays in one process."""

import copy
import hashlib
import json
import logging
import os
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import pairwise, takewhile
from pathlib import Path, PurePath
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, setup_globals
from hydra.errors import CompactHydraException, ConfigCompositionException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from fcnlab.config import ConfigError, NotSetHere, check_needs, check_targets, looked_up, unknown_key
from fcnlab.cores import visible_cores
from fcnlab.errors import CHDIR, UserError, first_line, why_not_used, why_not_written
from fcnlab.launching.board import Board, epitaph, score_of
from fcnlab.launching.manifest import NAME, Job, Lock, Manifest, facts_of, open_manifest, shown
from fcnlab.launching.places import Need, Places, Share, limit, need_of, visible_gpus
from fcnlab.launching.processes import (
    Started,
    as_typed,
    config_dir,
    environment_of_one,
    environment_of_part,
    is_dictionary,
    key_of,
    left_out_of_parts,
    options,
    searchpath,
    setting,
    start,
    typed,
    unquoted,
)
from fcnlab.launching.stages import check_nothing_lost
from fcnlab.launching.sweeping import Sweep
from fcnlab.library_internals.hydra import BasicLauncher
from fcnlab.results.escaping import in_terminal
from fcnlab.results.reading import Unreadable, read_yaml
from fcnlab.results.settings import Change, Settings, differences, is_free, leaves, shown_changes
from fcnlab.signals import Interrupted, StopSignals

log = logging.getLogger("fcnlab")
LOG = "job.log"  # in a job's folder: all that it said
COMPOSED = ".hydra/config.yaml"  # there, too: what it was composed of
RESOLVED = "config.yaml"  # and with what it has looked up
BY_EACH_JOB = {"trainer.precision": ("auto", "fastest")}  # whose record has what it has decided on
OF_THE_SWEEP = re.compile(r"[+~]*hydra[./](launcher|sweeper|sweep|mode|run)\b")  # no words for one of its jobs
OF_ONE_SWEEP = re.compile(  # no words for its repetition: its folder, and what its record holds as words of the jobs
    r"[+~]*hydra(\.(sweep(\.dir)?|run(\.dir)?|mode|searchpath)$|\.sweeper\.params\b)"
)
OF_FOLDERS = re.compile(r"[+~]*hydra\.(sweep\.subdir|job\.)")  # words that jobs' folders are named by
OF_ONE_RUN = re.compile(r"hydra\.(run(\.dir)?|job\.(num|id))")
OF_THE_FOLDER = {"sweep.json", "multirun.yaml", "search.json", "search.db", "wandb"}
TELL_APART = ": let hydra.sweep.subdir tell the jobs apart, as ${hydra.job.num} does"
LONGEST_FILE = 255  # bytes, on most file systems
LONGEST_NAME = 100
SHORTEST_PART = 12  # of a name that has lost its middle
ALONE = {  # trainer settings of which one process is sure; the last of each is told
    "devices": ("1", 1),
    "strategy": (None, "single_device", "auto"),
    "num_nodes": (None, 1),
}


class Slots(Launcher):
    """Each job as the single run that it claims to be: in a process and a folder of its own.

    ``elsewhere``: on other machines, whose environment is not known here.

    Parameters
    ----------
    slots
        How many at a time: a number, or "auto".
    gpus_per_job
        A number, a part of one, or "auto": the job's own ``trainer.devices``.
    """

    elsewhere = False
    more_to_come = False  # of the sweep, behind the jobs that are launched now

    def __init__(self, slots: Any = "auto", gpus_per_job: Any = "auto"):
        self.slots, self.gpus_per_job = slots, gpus_per_job

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep others off the sweep's folder, and look at what is there before anything else is written."""
        self.context, self.config = hydra_context, config
        self.verb = str(config.hydra.job.config_name)
        with told_plainly(self.verb):
            if "sweep" not in config:
                raise UserError("hydra/launcher=slots is for train and eval; leave it out")
            warn_of_words_of_one_run(config.hydra)
            folder = folder_of(config)
            self.resumes = bool(config.sweep.resume)
            limit(self.slots)
            is_new = not folder.exists()
            self.lock = Lock(folder)
            try:
                check_holds_no_run(folder)
                words = of_the_user(as_typed(config.hydra.overrides.task))
                self.manifest = open_manifest(folder, self.verb, words, self.resumes, launched_by(config.hydra))
            except UserError:
                self.lock.abandon()
                with suppress(OSError):
                    if is_new:
                        folder.rmdir()
                raise
            self.lock.own.claim()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        with told_plainly(self.verb), hydra_config_restored():
            configs = composed(self.context, self.config, job_overrides, initial_job_idx)
            warn_of_wandb(configs)
            places, needs = self._deal_out(configs)
            self._wait_for_earlier_jobs()
            jobs = self._planned(configs)
            with StopSignals() as signals, self._faults_told():  # until here a signal ends it: there is nothing to save
                self._work_off(jobs, configs, places, needs, signals)
            return [self._returned(job, configs[job.number]) for job in jobs]

    def _deal_out(self, configs: Mapping[int, DictConfig]) -> tuple[Places, dict[int, Need]]:
        gpus = visible_gpus(os.environ)
        needs = {
            number: need_of(cfg.trainer, gpus, self.gpus_per_job, f"job {number}") for number, cfg in in_turn(configs)
        }
        return Places(gpus, list(needs.values()), limit(self.slots), visible_cores()), needs

    def _wait_for_earlier_jobs(self) -> None:
        self.lock.jobs.wait()

    def _planned(self, configs: Mapping[int, DictConfig]) -> list[Job]:
        """The record of each job; where a sweep goes on, those are done whose folders say so.

        Raises
        ------
        UserError
            Two jobs would work in one folder; a job of this number had other settings.
        """
        jobs, words = [], {number: as_typed(cfg.hydra.overrides.task) for number, cfg in configs.items()}
        taken = {job.name for number, job in self.manifest.jobs.items() if number not in words}
        names = names_of(words, self.manifest.words, taken)
        for number, cfg in configs.items():
            job = self.manifest.plan(Job(number, str(cfg.hydra.sweep.subdir), words[number], names[number]))
            folder = self.manifest.folder / job.folder
            if job.settings is None or not has_begun(folder):
                job.settings = hash_of(settings_of(cfg))
            job.status = "finished" if self.resumes and is_done(job, folder) else "waiting"
            job.miou = score_of(folder) if job.status == "finished" else None
            jobs.append(job)
        return jobs

    def _work_off(
        self,
        jobs: Sequence[Job],
        configs: Mapping[int, DictConfig],
        places: Places,
        needs: dict[int, Need],
        signals: StopSignals,
    ) -> None:
        self.manifest.go_on()  # the batch before this one has ended it
        waiting = [job for job in jobs if job.status == "waiting"]
        board = Board(self.manifest, {number: steps_of(cfg) for number, cfg in in_turn(configs)})
        done = f"{len(jobs) - len(waiting)} of {len(jobs)} jobs are done; " if len(waiting) < len(jobs) else ""
        board.say(
            f"{shown(self.manifest.folder)}: {done}{len(waiting)} to run, {places.slots} at a time{self._room(places)}"
        )
        sweep = Sweep(self.manifest, places, needs, lambda job, share: self._begin(job, share, configs), board)
        try:
            sweep.run(waiting, signals)
        except Interrupted as stop:
            self.manifest.end("interrupted")
            board.close(f"Stopped. To go on: {self.manifest.how_to_go_on}")
            stop.reported = True
            raise
        lost = [job for job in jobs if job.status != "finished"]
        all_done = all(job.status == "finished" for job in self.manifest.jobs.values())  # of earlier batches, too
        self.manifest.end("finished" if all_done else "failed")
        board.close(*(self._epitaph(job, configs[job.number]) for job in lost), ended=not self.more_to_come)

    @contextmanager
    def _faults_told(self) -> Iterator[None]:
        """Let what fails in this process, such as a write to a full disk, stop a sweep as something to mend."""
        try:
            yield
        except OSError as error:
            with suppress(OSError):
                self.manifest.end("interrupted")
            raise UserError(
                f"{shown(self.manifest.folder)}: {first_line(error)}. The jobs that ran were asked to save themselves,"
                f" and have ended. Mend that, then go on: {self.manifest.how_to_go_on}"
            ) from error

    def _room(self, places: Places) -> str:
        return f", {places.threads} threads for each process"

    def _begin(self, job: Job, share: Share, configs: Mapping[int, DictConfig]) -> Started:
        cfg, folder = configs[job.number], self.manifest.folder / job.folder
        words = self._words(job, cfg, again=self.resumes)
        folder.mkdir(parents=True, exist_ok=True)
        environment = environment_of_one() | share.environment()
        return start(
            self.verb, words, config_dir(cfg.hydra), environment, folder / LOG, held=[self.lock.jobs.inherited]
        )

    def _words(self, job: Job, cfg: DictConfig, again: bool) -> list[str]:
        """What to type for a job; ``again``: where its folder holds a part of it, as the continuation of that."""
        folder = self.manifest.folder / job.folder
        of_hydra = [word for word in as_typed(cfg.hydra.overrides.hydra) if not OF_THE_SWEEP.match(word)]
        own = any(key_of(word) == "checkpoint" for word in job.overrides)
        begun = any(folder.glob("**/checkpoints/*.ckpt"))
        goes_on = again and self.verb == "train" and folder.is_dir() and (begun or not own)
        return [
            *of_hydra,
            *job.overrides,
            *(["checkpoint=auto"] if goes_on else []),
            *(["sweep.recorded=true"] if self.config.sweep.get("recorded") else []),
            *words_for_job(self.manifest.folder, job.name),
            f"hydra.job.num={job.number}",
            setting("hydra.run.dir", folder),
        ]

    def _epitaph(self, job: Job, cfg: DictConfig) -> str:
        words = list(dict.fromkeys([*options(cfg.hydra), *self._words(job, cfg, again=True)]))
        return epitaph(job, self.manifest.folder / job.folder / LOG, typed(["fcnlab", self.verb, *words]))

    def _returned(self, job: Job, cfg: DictConfig) -> JobReturn:
        """What a sweeper learns of a job: its mean IoU, or why there is none."""
        done = job.status == "finished"
        returned = JobReturn(
            overrides=job.overrides,
            cfg=without_hydra(cfg),
            hydra_cfg=OmegaConf.masked_copy(cfg, ["hydra"]),
            working_dir=str(Path.cwd()),
            task_name=JobRuntime.instance().get("name"),
            status=JobStatus.COMPLETED if done else JobStatus.FAILED,
        )
        returned.return_value = job.miou if done else self._failure(job)
        return returned

    def _failure(self, job: Job) -> CompactHydraException:
        log = shown(self.manifest.folder / job.folder / LOG)
        return CompactHydraException(
            f"fcnlab {self.verb}: job {job.number} ({job.name}) {job.status} with exit code {job.exit_code}: see {log}."
            f" To run what is missing: {self.manifest.how_to_go_on}"
        )


class InProcess(BasicLauncher):
    """Hydra's own launcher, for small nets on one device: one job after the other, in this process."""

    elsewhere = False

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Look at what is in the folder before Hydra writes there."""
        with told_plainly(str(config.hydra.job.config_name)):
            warn_of_words_of_one_run(config.hydra)
            folder = folder_of(config)
            self.names: set[str] = set()  # of the jobs of earlier batches
            check_holds_no_run(folder)
            if folder.is_dir() and any(entry.name != "multirun.yaml" for entry in folder.iterdir()):
                raise UserError(
                    f"{shown(folder)} holds a sweep already, or something else: leave hydra.sweep.dir to a new folder"
                )
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        assert self.hydra_context is not None and self.config is not None
        words, ours = [list(words) for words in job_overrides], "sweep" in self.config
        with told_plainly(str(self.config.hydra.job.config_name)), hydra_config_restored():
            if ours and self.config.sweep.resume:
                raise UserError(
                    "sweep.resume goes on with sweeps of hydra/launcher=slots: leave hydra/launcher=basic out"
                )
            configs = composed(self.hydra_context, self.config, words, initial_job_idx)
            refuse_several_processes(configs)
            warn_of_wandb(configs)
        if ours:
            folder = Path(self.config.hydra.sweep.dir).absolute()
            numbered = dict(enumerate(words, start=initial_job_idx))
            names = names_of(numbered, as_typed(self.config.hydra.overrides.task), self.names)
            self.names.update(names.values())
            words = [[*job, *words_for_job(folder, names[number])] for number, job in numbered.items()]
        with only_parts_environment():
            return super().launch(words, initial_job_idx)


def folder_of(config: DictConfig) -> Path:
    """The folder of a sweep; a UserError where no file can be made in it."""
    folder = Path(config.hydra.sweep.dir).absolute()
    if reason := why_not_written(folder):
        raise UserError(f"{setting('hydra.sweep.dir', shown(folder))}: {reason}. Name another folder")
    return folder


def warn_of_words_of_one_run(hydra: DictConfig) -> None:
    words = [word for word in as_typed(hydra.overrides.hydra) if OF_ONE_RUN.fullmatch(key_of(word))]
    if words:
        log.warning(
            "Warning: %s: no effect on a sweep, which hydra.sweep.dir=FOLDER names, and whose jobs are numbered",
            ", ".join(words),
        )


def check_holds_no_run(folder: Path) -> None:
    """Refuse to put the jobs of a sweep among the files of a run."""
    found = [name for name in ("run.json", ".hydra", "checkpoints") if os.path.lexists(folder / name)]
    if found:
        raise UserError(f"{shown(folder)} holds {found[0]} of a run: leave hydra.sweep.dir to a new folder")


def refuse_several_processes(configs: Mapping[int, DictConfig]) -> None:
    """Raise a UserError where a job would start processes: Lightning does that with the words of the whole sweep."""
    for number, cfg in in_turn(configs):
        for key, alone in ALONE.items():  # doctor and compare have no trainer
            if "trainer" in cfg and (value := cfg.trainer.get(key)) not in alone:
                raise UserError(
                    f"job {number} has trainer.{key}={value}, and hydra/launcher=basic runs all jobs in one process."
                    " Others that a job started would each run the whole sweep, and the next job would find the"
                    " process group of the last and train on a part of the data without a word. Leave"
                    f" hydra/launcher=basic out, or set trainer.{key}={alone[-1]}"
                )


def composed(
    context: HydraContext, config: DictConfig, jobs: Sequence[Sequence[str]], first: int
) -> dict[int, DictConfig]:
    """The configuration of each job by its number, as it would have it in a run of its own.

    Raises
    ------
    UserError
        Jobs set what is not there; of each such setting the nearest that is, and which jobs they are.
    """
    configs, wrong = {}, Mistakes()
    for number, words in enumerate(jobs, start=first):
        with wrong.of_job(number):
            configs[number] = cfg = _compose(context, config, of_the_user(words))
            cfg.hydra.job.id = cfg.hydra.job.num = number
            HydraConfig.instance().set_config(cfg)
            with read_write(cfg.hydra), open_dict(cfg.hydra):
                cfg.hydra.sweep.subdir = str(cfg.hydra.sweep.subdir)  # by this job's number, whoever asks later
                cfg.hydra.runtime.output_dir = str(Path(config.hydra.sweep.dir).absolute() / cfg.hydra.sweep.subdir)
    wrong.tell()
    check_folders({number: cfg.hydra.sweep.subdir for number, cfg in configs.items()})
    return configs


def check_folders(subdirs: Mapping[int, str]) -> None:
    """Raise a UserError unless each job has a folder of its own inside the sweep's, where nothing else is put."""
    for number, subdir in subdirs.items():
        parts = PurePath(subdir).parts
        if not parts or ".." in parts or PurePath(subdir).is_absolute():
            raise UserError(f"job {number}: hydra.sweep.subdir={subdir} is no folder inside the sweep's{TELL_APART}")
        if parts[0] in OF_THE_FOLDER or parts[0].startswith("."):
            raise UserError(f"job {number}: hydra.sweep.subdir={subdir} is where a sweep keeps its own{TELL_APART}")
        if max(len(os.fsencode(part)) for part in parts) > LONGEST_FILE:
            raise UserError(f"job {number}: hydra.sweep.subdir={subdir} has a part of more than 255 bytes{TELL_APART}")
    in_order = sorted((PurePath(subdir).parts, number) for number, subdir in subdirs.items())
    for (outer, first), (inner, second) in pairwise(in_order):  # what is in a folder comes right behind it
        if inner[: len(outer)] == outer:
            both = sorted((first, second))
            raise UserError(
                f"jobs {both[0]} and {both[1]} would both work in {PurePath(*outer)} of the sweep's folder{TELL_APART}"
            )


def _compose(context: HydraContext, config: DictConfig, words: Sequence[str]) -> DictConfig:
    try:
        return context.config_loader.load_sweep_config(config, list(words))
    except ConfigCompositionException as error:
        unknown = re.match(r"Could not override '(.+)'\.\nTo append to your config", str(error))
        if unknown is None:
            raise
        key = str(getattr(error.__cause__, "full_key", None) or unknown[1])  # of a dictionary the one inside
        parent = key.rpartition(".")[0]
        sets = [word for word in words if "." in key_of(word) or is_dictionary(word)]  # the others choose options
        inside = [word for word in sets if f"{key_of(word)}.".startswith((f"{parent}.", f"{unknown[1]}."))]
        others = [word for word in words if word not in inside]
        with suppress(ConfigCompositionException):
            there = OmegaConf.select(context.config_loader.load_sweep_config(config, others), parent)
            names = {str(name) for name in there} if isinstance(there, DictConfig) else set()
            raise ConfigError(unknown_key(f"{parent}.", key.removeprefix(f"{parent}."), names, "there")) from error
        raise


class Mistakes:
    """What is wrong with the jobs of a sweep, each mistake once, with the jobs that have it."""

    def __init__(self):
        self.jobs: dict[str, list[int]] = {}

    @contextmanager
    def of_job(self, number: int) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            self.note([str(error)], number)

    def note(self, found: Sequence[str], number: int) -> None:
        if found:
            self.jobs.setdefault("; ".join(found), []).append(number)

    def __str__(self) -> str:
        return "\n".join(f"job {', '.join(map(str, jobs))}: {what}" for what, jobs in self.jobs.items())

    def tell(self) -> None:
        """Raise a UserError unless nothing was wrong."""
        if self.jobs:
            raise UserError(str(self))


def in_turn(configs: Mapping[int, DictConfig]) -> Iterator[tuple[int, DictConfig]]:
    """Each job's number and configuration, while ``${hydra:...}`` means that job's."""
    for number, cfg in configs.items():
        HydraConfig.instance().set_config(cfg)
        yield number, cfg


def check_jobs(
    context: HydraContext, config: DictConfig, jobs: Sequence[Sequence[str]], first: int, elsewhere: bool
) -> dict[int, DictConfig]:
    """Tell the mistakes in any job before the first begins; give each job's configuration by its number.

    ``elsewhere``: the jobs may have variables in their environment that this process has not.

    Raises
    ------
    UserError
        It names each mistake once, and the jobs that have it.
    """
    wrong = Mistakes()
    with hydra_config_restored():
        configs = composed(context, config, jobs, first)
        for number, cfg in in_turn(configs):
            with wrong.of_job(number), suppress(NotSetHere) if elsewhere else nullcontext():
                _check_of_all(cfg, config)
                _check(without_hydra(cfg), as_typed(cfg.hydra.overrides.task))
    wrong.tell()
    return configs


def settings_of(cfg: DictConfig) -> Settings:
    """What a job is composed of by dotted path, with the interpolations that it looks up itself."""
    return _telling(leaves(OmegaConf.to_container(without_hydra(cfg), resolve=False)), str(cfg.hydra.job.config_name))


def _telling(settings: Settings, verb: str) -> Settings:
    """The settings that no job may change. An evaluation's checkpoint is one; a training that goes on has its own."""
    counts = {"eval": ("checkpoint",)}.get(verb, ())
    return {path: value for path, value in settings.items() if path in counts or not is_free(path)}


def hash_of(settings: Settings) -> str:
    text = json.dumps(settings, sort_keys=True, default=str, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_unchanged(
    context: HydraContext, config: DictConfig, jobs: Mapping[int, Sequence[str]], launcher: Any
) -> None:
    """Refuse to go on with a sweep whose files have changed: the jobs that have begun ran with other settings.

    What only today's fcnlab has as a setting is warned of, as where a single run resumes, and so is what settings look
    up elsewhere: in the environment, which may be each machine's own.

    Raises
    ------
    UserError
        It names the settings, and the jobs that had other ones; or jobs would get folders of another kind.
    """
    manifest: Manifest | None = getattr(launcher, "manifest", None)
    changed, added, outside = Mistakes(), Mistakes(), Mistakes()
    for number in sorted(jobs.keys() & (manifest.jobs if manifest else {})):
        assert manifest
        job = manifest.jobs[number]
        folder = manifest.folder / job.folder
        with hydra_config_restored():
            cfg = composed(context, config, [jobs[number]], number)[number]
            found_now = _telling(looked_up(without_hydra(cfg)), manifest.verb)
        check_same_folder(manifest, job, str(cfg.hydra.sweep.subdir), config)
        if not has_begun(folder):
            continue
        outside.note(shown_changes(changes_outside(folder, found_now, manifest.verb)), number)
        today = settings_of(cfg)
        if job.settings in (None, hash_of(today)):  # None: of an older record
            continue
        if then := settings_there(folder, COMPOSED, manifest.verb):
            found = differences(then, today)
            found = {path: change for path, change in found.items() if change.new not in BY_EACH_JOB.get(path, ())}
            changed.note(shown_changes({path: change for path, change in found.items() if path in then}), number)
            added.note(shown_changes({path: change for path, change in found.items() if path not in then}), number)
        else:
            changed.note([f"{shown(folder / COMPOSED)} no longer says which"], number)
    if added.jobs:
        log.warning("Warning: settings that were not there when these jobs began:\n%s", added)
    if outside.jobs:
        assert manifest
        log.warning(
            "Warning: these jobs have begun with other values of settings that are looked up, as ${oc.env:NAME} is; the"
            " jobs that are left get today's:\n%s\nTo have one value in all jobs, stop and set it back, or start a"
            " new sweep with today's: %s",
            outside,
            manifest.command,
        )
    if changed.jobs:
        assert manifest
        raise UserError(
            f"sweep.resume={shown(manifest.folder)}: files of its configuration, or fcnlab's, have changed, so that the"
            f" jobs that are left would run with other settings than these:\n{changed}\nSet them back to go on, or use"
            f" the fcnlab that ran these jobs, or start a new sweep with them: {manifest.command}"
        )


def check_same_folder(manifest: Manifest, job: Job, subdir: str, config: DictConfig) -> None:
    """Refuse to go on with another ``hydra.sweep.subdir``, in whose folders the jobs that are not planned yet would be.

    One that looks at the clock or into the environment names other folders each time.
    """
    template = str(OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"])  # pyright: ignore
    if PurePath(subdir) == PurePath(job.folder) or re.search(r"\$\{(now|oc\.)", template):
        return
    there, here = (shown(manifest.folder / name) for name in (job.folder, subdir))
    raise UserError(
        f"sweep.resume={shown(manifest.folder)}: job {job.number} is in {there}, and would be in {here} today, as the"
        f" sweep's other jobs. Type again {_naming_folders(manifest.folder)}"
    )


def _naming_folders(folder: Path) -> str:
    """What a sweep had typed for the names of its folders, by its record."""
    with suppress(ValueError):
        words = shlex.split(str(facts_of(folder, NAME).get("command")))
        if of_folders := [word for word in words if OF_FOLDERS.match(word)]:
            return typed(of_folders)
    return f"hydra.sweep.subdir=... as it was: the command in {shown(folder / NAME)} no longer has it"


def has_begun(folder: Path) -> bool:
    return any((folder / name).exists() for name in (COMPOSED, "run.json", "metrics.json"))


def settings_there(folder: Path, name: str, verb: str) -> Settings:
    """The settings in a file of a run's folder; nothing where that cannot be read."""
    try:
        return _telling(leaves(read_yaml(folder, name)), verb)
    except (OSError, Unreadable):
        return {}


def changes_outside(folder: Path, found_now: Settings, verb: str) -> dict[str, Change]:
    """The settings for which a run that has begun found another value than is found now."""
    found_then = settings_there(folder, RESOLVED, verb) if found_now else {}
    both = found_then.keys() & found_now.keys()
    changed = differences(*({path: found[path] for path in sorted(both)} for found in (found_then, found_now)))
    return {path: change for path, change in changed.items() if change.new not in BY_EACH_JOB.get(path, ())}


def _check(task: DictConfig, words: Sequence[str]) -> None:
    if task.get("stages"):  # those are checked by the run that begins them
        check_nothing_lost(task, words, searchpath(HydraConfig.get()))
        return
    if task.get("needs"):
        check_needs(task, words)
    if task.get("data") is not None or task.get("model") is None:  # else fcnlab eval says what is missing
        check_targets(task)


def _check_of_all(cfg: DictConfig, config: DictConfig) -> None:
    """Raise a ConfigError where a job's options set what is one for the whole sweep, and would have no effect there."""
    if cfg.hydra.job.chdir:
        raise ConfigError(CHDIR)
    for key in ("launcher", "sweeper"):
        of_job, of_all = (OmegaConf.to_container(tree.hydra[key], resolve=False) for tree in (cfg, config))
        if of_job != of_all:
            raise ConfigError(
                f"an option of its own sets hydra.{key}, which is one for the whole sweep: leave that to the command"
                f" line, as hydra/{key}=OPTION and hydra.{key}.KEY=VALUE"
            )


def without_hydra(cfg: DictConfig) -> DictConfig:
    """What a verb gets: with its root's schema, which a masked copy would lose."""
    task = copy.deepcopy(cfg)
    with open_dict(task):
        del task["hydra"]
    return task


def launched_by(hydra: DictConfig) -> list[str]:
    """The options of a command, and its words for Hydra: what a sweep needs beside the words of its jobs."""
    of_hydra = [word for word in as_typed(hydra.overrides.hydra) if not OF_ONE_SWEEP.match(word.partition("=")[0])]
    return [*options(hydra), *of_hydra]


def is_done(job: Job, folder: Path) -> bool:
    """Whether a run has come to its end; of a verb that leaves no run.json the sweep's record says so."""
    said = facts_of(folder, "run.json").get("status")
    return said == "finished" or (said is None and job.status == "finished" and (folder / "metrics.json").is_file())


def steps_of(cfg: DictConfig) -> int | None:
    """How long a job is; unknown where it has stages."""
    steps = cfg.trainer.get("max_steps")
    return steps if isinstance(steps, int) and not cfg.get("stages") else None


def of_the_user(words: Sequence[str]) -> list[str]:
    """Overrides without those that make a run a job of a sweep."""
    return [word for word in words if not word.startswith("sweep.")]


def words_for_job(folder: Path, name: str) -> list[str]:
    """What tells a run that it is a job, and of which sweep."""
    return [setting("sweep.folder", folder), setting("sweep.name", name.replace("$", ""))]


def names_of(jobs: Mapping[int, Sequence[str]], typed: Sequence[str], taken: Collection[str] = ()) -> dict[int, str]:
    """Each job's name: its words, but for those that were typed for all of them; short, and no other job's.

    ``taken`` are the names of jobs of other batches.

    The folders that all values of a setting are in are left out, and what is still too long loses its middle.
    """
    parts = {number: differing(words, typed) for number, words in jobs.items()}
    folders = _common_folders([word for words in parts.values() for word in words])
    names = {number: _short([_without_folder(word, folders) for word in words]) for number, words in parts.items()}
    count = Counter([*names.values(), *taken])
    return {number: name if count[name] == 1 else f"{name} #{number}".strip() for number, name in names.items()}


def differing(words: Sequence[str], typed: Sequence[str]) -> list[str]:
    fixed, found = list(typed), []
    for word in of_the_user(words):
        if word in fixed:
            fixed.remove(word)  # once: a value of a list may be the very word before the list
        else:
            found.append(word.lstrip("+"))
    return found


def _common_folders(words: Sequence[str]) -> dict[str, str]:
    """By setting, the folders that all of its values are in, where there are several; options of groups stay whole."""
    values: dict[str, set[str]] = {}
    for word in words:
        if "." in key_of(word) or key_of(word) == "checkpoint":
            values.setdefault(key_of(word), set()).add(unquoted(word.partition("=")[2]))
    return {key: _common_folder(found) for key, found in values.items() if len(found) > 1}


def _common_folder(paths: Iterable[str]) -> str:
    levels = zip(*(path.split("/")[:-1] for path in paths), strict=False)
    return "".join(f"{names[0]}/" for names in takewhile(lambda names: len(set(names)) == 1, levels))


def _without_folder(word: str, folders: Mapping[str, str]) -> str:
    folder, (key, _, value) = folders.get(key_of(word)), word.partition("=")
    return f"{key}={unquoted(value).removeprefix(folder)}" if folder else word


def _short(parts: Sequence[str]) -> str:
    if len(" ".join(parts)) <= LONGEST_NAME:
        return " ".join(parts)
    most = max(LONGEST_NAME // len(parts) - 1, SHORTEST_PART)
    shorter = [part if len(part) <= most else f"{part[: most // 2]}…{part[1 - most // 2 :]}" for part in parts]
    return " ".join(shorter)[:LONGEST_NAME]


def warn_of_wandb(configs: Mapping[int, DictConfig]) -> None:
    """Name what the environment says of one W&B run, where any job has one."""
    ignored = left_out_of_parts()
    if ignored and any("wandb" in (cfg.get("logger") or {}) for cfg in configs.values()):
        log.warning("Warning: %s", ignored)


@contextmanager
def only_parts_environment() -> Iterator[None]:
    """While entered, this process has the environment of a part, which its jobs share."""
    before = dict(os.environ)
    for name in before.keys() - environment_of_part().keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in before.items() if name not in os.environ})


@contextmanager
def told_plainly(verb: str) -> Iterator[None]:
    """Let Hydra show a mistake of the user's, and a place that cannot be written to, without a traceback."""
    try:
        yield
    except UserError as error:
        raise CompactHydraException(in_terminal(f"fcnlab {verb}: {error}")) from error
    except OSError as error:
        if not error.filename:
            raise
        raise CompactHydraException(in_terminal(f"fcnlab {verb}: {why_not_used(error)}")) from error


@contextmanager
def hydra_config_restored() -> Iterator[None]:
    """While entered, ``${hydra:...}`` may be made to mean a job's."""
    before = HydraConfig.instance().cfg
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before
