"""What ``fcnlab VERB -m`` hands its jobs to: ``hydra/launcher=slots``, or ``basic``, which stays in one process."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, setup_globals
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from fcnlab.config.overrides import (
    command_options,
    config_dir,
    format_override,
    override_key,
    plain_overrides,
    shell_join,
)
from fcnlab.cores import visible_cores
from fcnlab.errors import UserError, first_line, unwritable_reason
from fcnlab.files.reading import display_path, read_json_facts
from fcnlab.library_internals.hydra import BasicLauncher
from fcnlab.signals import Interrupted, StopSignals
from fcnlab.sweeps.job_checks import (
    check_contains_no_run,
    check_single_process,
    compose_jobs,
    hydra_config_restored,
    iter_job_configs,
    launcher_choice,
    report_user_errors,
    without_hydra,
)
from fcnlab.sweeps.job_names import job_names
from fcnlab.sweeps.job_overrides import SWEEP_KEYS, overrides_for_job, user_overrides, warn_about_single_run_overrides
from fcnlab.sweeps.job_queue import JobQueue
from fcnlab.sweeps.manifest import Job, SweepLock, open_manifest
from fcnlab.sweeps.processes import (
    JobHandle,
    describe_removed_environment,
    shared_sweep_environment,
    single_process_environment,
    start_verb,
)
from fcnlab.sweeps.resources import Allocation, Requirement, ResourcePool, requirement_of, slot_limit, visible_gpus
from fcnlab.sweeps.resumed_settings import has_begun, hash_of, settings_of
from fcnlab.sweeps.sweep_table import SweepTable, failure_report, selection_score

log = logging.getLogger("fcnlab")
LOG = "job.log"  # in a job's folder: all that it said


class SlotsLauncher(Launcher):
    """Each job as the single run that it claims to be: in a process and a folder of its own.

    ``remote``: on other machines, whose environment is not known here.

    Parameters
    ----------
    slots
        How many at a time: a number, or "auto".
    gpus_per_job
        A number, a part of one, or "auto": the job's own ``trainer.devices``.
    """

    remote = False
    more_batches = False  # of the sweep, behind the jobs that are launched now

    def __init__(self, slots: Any = "auto", gpus_per_job: Any = "auto"):
        self.slots, self.gpus_per_job = slots, gpus_per_job

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep others off the sweep's folder, and look at what is there before anything else is written."""
        self.context, self.config = hydra_context, config
        self.verb = str(config.hydra.job.config_name)
        with report_user_errors(self.verb):
            if "sweep" not in config:
                raise UserError("hydra/launcher=slots is for train and eval; leave it out")
            warn_about_single_run_overrides(config.hydra)
            folder = sweep_folder(config)
            self.resumes = bool(config.sweep.resume)
            slot_limit(self.slots)
            is_new = not folder.exists()
            self.lock = SweepLock(folder)
            try:
                check_contains_no_run(folder)
                words = user_overrides(plain_overrides(config.hydra.overrides.task))
                self.manifest = open_manifest(folder, self.verb, words, self.resumes, launcher_choice(config.hydra))
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
        with report_user_errors(self.verb), hydra_config_restored():
            configs = compose_jobs(self.context, self.config, job_overrides, initial_job_idx)
            warn_about_wandb_environment(configs)
            places, needs = self._allocate(configs)
            self._wait_for_earlier_jobs()
            jobs = self._plan_jobs(configs)
            with StopSignals() as signals, self._os_errors_reported():  # until here a signal ends it: there is nothing to save
                self._work_off(jobs, configs, places, needs, signals)
            return [self._job_return(job, configs[job.number]) for job in jobs]

    def _allocate(self, configs: Mapping[int, DictConfig]) -> tuple[ResourcePool, dict[int, Requirement]]:
        gpus = visible_gpus(os.environ)
        needs = {
            number: requirement_of(cfg.trainer, gpus, self.gpus_per_job, f"job {number}")
            for number, cfg in iter_job_configs(configs)
        }
        return ResourcePool(gpus, list(needs.values()), slot_limit(self.slots), visible_cores()), needs

    def _wait_for_earlier_jobs(self) -> None:
        self.lock.jobs.wait()

    def _plan_jobs(self, configs: Mapping[int, DictConfig]) -> list[Job]:
        """The record of each job; where a sweep goes on, those are done whose folders say so.

        Raises
        ------
        UserError
            Two jobs would work in one folder; a job of this number had other settings.
        """
        jobs, words = [], {number: plain_overrides(cfg.hydra.overrides.task) for number, cfg in configs.items()}
        taken = {job.name for number, job in self.manifest.jobs.items() if number not in words}
        names = job_names(words, self.manifest.words, taken)
        for number, cfg in configs.items():
            job = self.manifest.plan(Job(number, str(cfg.hydra.sweep.subdir), words[number], names[number]))
            folder = self.manifest.folder / job.folder
            if job.settings is None or not has_begun(folder):
                job.settings = hash_of(settings_of(cfg))
            job.status = "finished" if self.resumes and is_finished(job, folder) else "waiting"
            job.miou = selection_score(folder) if job.status == "finished" else None
            jobs.append(job)
        return jobs

    def _work_off(
        self,
        jobs: Sequence[Job],
        configs: Mapping[int, DictConfig],
        places: ResourcePool,
        needs: dict[int, Requirement],
        signals: StopSignals,
    ) -> None:
        self.manifest.go_on()  # the batch before this one has ended it
        waiting = [job for job in jobs if job.status == "waiting"]
        board = SweepTable(self.manifest, {number: planned_steps(cfg) for number, cfg in iter_job_configs(configs)})
        done = f"{len(jobs) - len(waiting)} of {len(jobs)} jobs are done; " if len(waiting) < len(jobs) else ""
        board.say(
            f"{display_path(self.manifest.folder)}: {done}{len(waiting)} to run, {places.slots} at a time{self._describe_threads(places)}"
        )
        sweep = JobQueue(self.manifest, places, needs, lambda job, share: self._begin(job, share, configs), board)
        try:
            sweep.run(waiting, signals)
        except Interrupted as stop:
            self.manifest.end("interrupted")
            board.close(f"Stopped. To go on: {self.manifest.resume_command}")
            stop.reported = True
            raise
        lost = [job for job in jobs if job.status != "finished"]
        all_done = all(job.status == "finished" for job in self.manifest.jobs.values())  # of earlier batches, too
        self.manifest.end("finished" if all_done else "failed")
        board.close(*(self._describe_failure(job, configs[job.number]) for job in lost), ended=not self.more_batches)

    @contextmanager
    def _os_errors_reported(self) -> Iterator[None]:
        """Let what fails in this process, such as a write to a full disk, stop a sweep as something to mend."""
        try:
            yield
        except OSError as error:
            with suppress(OSError):
                self.manifest.end("interrupted")
            raise UserError(
                f"{display_path(self.manifest.folder)}: {first_line(error)}. The jobs that ran were asked to save themselves,"
                f" and have ended. Mend that, then go on: {self.manifest.resume_command}"
            ) from error

    def _describe_threads(self, places: ResourcePool) -> str:
        return f", {places.threads} threads for each process"

    def _begin(self, job: Job, share: Allocation, configs: Mapping[int, DictConfig]) -> JobHandle:
        cfg, folder = configs[job.number], self.manifest.folder / job.folder
        words = self._words(job, cfg, again=self.resumes)
        folder.mkdir(parents=True, exist_ok=True)
        environment = single_process_environment() | share.environment()
        return start_verb(
            self.verb, words, config_dir(cfg.hydra), environment, folder / LOG, held=[self.lock.jobs.inherited]
        )

    def _words(self, job: Job, cfg: DictConfig, again: bool) -> list[str]:
        """What to type for a job; ``again``: where its folder holds a part of it, as the continuation of that."""
        folder = self.manifest.folder / job.folder
        of_hydra = [word for word in plain_overrides(cfg.hydra.overrides.hydra) if not SWEEP_KEYS.match(word)]
        own = any(override_key(word) == "checkpoint" for word in job.overrides)
        begun = any(folder.glob("**/checkpoints/*.ckpt"))
        goes_on = again and self.verb == "train" and folder.is_dir() and (begun or not own)
        return [
            *of_hydra,
            *job.overrides,
            *(["checkpoint=auto"] if goes_on else []),
            *(["sweep.recorded=true"] if self.config.sweep.get("recorded") else []),
            *overrides_for_job(self.manifest.folder, job.name),
            f"hydra.job.num={job.number}",
            format_override("hydra.run.dir", folder),
        ]

    def _describe_failure(self, job: Job, cfg: DictConfig) -> str:
        words = list(dict.fromkeys([*command_options(cfg.hydra), *self._words(job, cfg, again=True)]))
        return failure_report(job, self.manifest.folder / job.folder / LOG, shell_join(["fcnlab", self.verb, *words]))

    def _job_return(self, job: Job, cfg: DictConfig) -> JobReturn:
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
        returned.return_value = job.miou if done else self._failure_error(job)
        return returned

    def _failure_error(self, job: Job) -> CompactHydraException:
        log = display_path(self.manifest.folder / job.folder / LOG)
        return CompactHydraException(
            f"fcnlab {self.verb}: job {job.number} ({job.name}) {job.status} with exit code {job.exit_code}: see {log}."
            f" To run what is missing: {self.manifest.resume_command}"
        )


class InProcessLauncher(BasicLauncher):
    """Hydra's own launcher, for small nets on one device: one job after the other, in this process."""

    remote = False

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Look at what is in the folder before Hydra writes there."""
        with report_user_errors(str(config.hydra.job.config_name)):
            warn_about_single_run_overrides(config.hydra)
            folder = sweep_folder(config)
            self.names: set[str] = set()  # of the jobs of earlier batches
            check_contains_no_run(folder)
            if folder.is_dir() and any(entry.name != "multirun.yaml" for entry in folder.iterdir()):
                raise UserError(
                    f"{display_path(folder)} holds a sweep already, or something else: leave hydra.sweep.dir to a new folder"
                )
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        assert self.hydra_context is not None and self.config is not None
        words, ours = [list(words) for words in job_overrides], "sweep" in self.config
        with report_user_errors(str(self.config.hydra.job.config_name)), hydra_config_restored():
            if ours and self.config.sweep.resume:
                raise UserError(
                    "sweep.resume goes on with sweeps of hydra/launcher=slots: leave hydra/launcher=basic out"
                )
            configs = compose_jobs(self.hydra_context, self.config, words, initial_job_idx)
            check_single_process(configs)
            warn_about_wandb_environment(configs)
        if ours:
            folder = Path(self.config.hydra.sweep.dir).absolute()
            numbered = dict(enumerate(words, start=initial_job_idx))
            names = job_names(numbered, plain_overrides(self.config.hydra.overrides.task), self.names)
            self.names.update(names.values())
            words = [[*job, *overrides_for_job(folder, names[number])] for number, job in numbered.items()]
        with shared_run_environment():
            return super().launch(words, initial_job_idx)


def sweep_folder(config: DictConfig) -> Path:
    """The folder of a sweep; a UserError where no file can be made in it."""
    folder = Path(config.hydra.sweep.dir).absolute()
    if reason := unwritable_reason(folder):
        raise UserError(f"{format_override('hydra.sweep.dir', display_path(folder))}: {reason}. Name another folder")
    return folder


def is_finished(job: Job, folder: Path) -> bool:
    """Whether a run has come to its end; of a verb that leaves no run.json the sweep's record says so."""
    said = read_json_facts(folder, "run.json").get("status")
    return said == "finished" or (said is None and job.status == "finished" and (folder / "metrics.json").is_file())


def planned_steps(cfg: DictConfig) -> int | None:
    """How long a job is; unknown where it has stages."""
    steps = cfg.trainer.get("max_steps")
    return steps if isinstance(steps, int) and not cfg.get("stages") else None


def warn_about_wandb_environment(configs: Mapping[int, DictConfig]) -> None:
    """Name what the environment says of one W&B run, where any job has one."""
    ignored = describe_removed_environment()
    if ignored and any("wandb" in (cfg.get("logger") or {}) for cfg in configs.values()):
        log.warning("Warning: %s", ignored)


@contextmanager
def shared_run_environment() -> Iterator[None]:
    """While entered, this process has the environment of a part, which its jobs share."""
    before = dict(os.environ)
    for name in before.keys() - shared_sweep_environment().keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in before.items() if name not in os.environ})
