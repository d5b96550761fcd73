"""The launchers of ``fcnlab VERB -m``: ``slots`` runs each job in its own process, ``basic`` all jobs in this one."""

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
    quote_value,
    shell_join,
)
from fcnlab.cores import visible_cores
from fcnlab.errors import UserError, first_line, unwritable_reason
from fcnlab.files.locks import NAME as LOCK
from fcnlab.files.locks import FolderLock
from fcnlab.files.reading import display_path
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
from fcnlab.sweeps.job_overrides import (
    SWEEP_KEYS,
    overrides_for_job,
    resuming_option,
    user_overrides,
    warn_about_single_run_overrides,
)
from fcnlab.sweeps.job_queue import JobQueue
from fcnlab.sweeps.manifest import JOBS_LOCK, Job, SweepLock, open_manifest
from fcnlab.sweeps.processes import (
    JobHandle,
    describe_removed_environment,
    shared_sweep_environment,
    single_process_environment,
    start_verb,
)
from fcnlab.sweeps.refusals import FolderBefore, folder_restored_on_refusal
from fcnlab.sweeps.resources import Allocation, Requirement, ResourcePool, requirement_of, slot_limit, visible_gpus
from fcnlab.sweeps.resumed_settings import has_begun, hash_of, is_finished, settings_of
from fcnlab.sweeps.sweep_table import SweepTable, failure_report, selection_score

log = logging.getLogger("fcnlab")
LOG = "job.log"  # in a job's folder: its output
LEFT_BY_REFUSED = {"multirun.yaml", LOCK, JOBS_LOCK}  # by sweeps of earlier versions, or killed ones


class SlotsLauncher(Launcher):
    """Run each job as a single run, in its own process and folder.

    ``remote``: the jobs run on other machines, whose environment variables are not known here.

    Parameters
    ----------
    slots
        Number of jobs at a time, or "auto".
    gpus_per_job
        Number of GPUs, a fraction of one, or "auto": the job's own ``trainer.devices``.
    """

    remote = False
    more_batches = False  # whether the sweeper launches more jobs after the current batch

    def __init__(self, slots: Any = "auto", gpus_per_job: Any = "auto"):
        self.slots, self.gpus_per_job = slots, gpus_per_job

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Lock the sweep's folder and check its content before anything else is written."""
        self.context, self.config = hydra_context, config
        self.verb = str(config.hydra.job.config_name)
        with report_user_errors(self.verb):
            if "sweep" not in config:
                raise UserError("hydra/launcher=slots is only for train and eval. Leave it out")
            warn_about_single_run_overrides(config.hydra)
            folder = sweep_folder(config)
            option = resuming_option(config)
            self.resumes = option is not None
            slot_limit(self.slots)
            self.before, self.started = FolderBefore(folder), False
            self.lock = SweepLock(folder)
            self.before.list_files()
            with folder_restored_on_refusal(self):
                check_contains_no_run(folder)
                overrides = user_overrides(plain_overrides(config.hydra.overrides.task))
                self.manifest = open_manifest(folder, self.verb, overrides, option, launcher_choice(config.hydra))
            self.lock.own.record_holder()

    def restore_folder(self) -> None:
        """Remove what this command has created, if it has started no job."""
        if not self.started:
            self.before.remove_files()
            self.lock.abandon()
            self.before.remove_folders()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        with report_user_errors(self.verb), hydra_config_restored():
            configs = compose_jobs(self.context, self.config, job_overrides, initial_job_idx)
            warn_about_wandb_environment(configs)
            pool, requirements = self._resources(configs)
            self._wait_for_earlier_jobs()
            jobs = self._plan_jobs(configs)
            # Before this line a signal simply ends the process: there is nothing to save.
            with StopSignals() as signals, self._os_errors_reported():
                self.started = True
                self._run_jobs(jobs, configs, pool, requirements, signals)
            return [self._job_return(job, configs[job.number]) for job in jobs]

    def _resources(self, configs: Mapping[int, DictConfig]) -> tuple[ResourcePool, dict[int, Requirement]]:
        gpus = visible_gpus(os.environ)
        requirements = {
            number: requirement_of(cfg.trainer, gpus, self.gpus_per_job, f"job {number}")
            for number, cfg in iter_job_configs(configs)
        }
        pool = ResourcePool(gpus, list(requirements.values()), slot_limit(self.slots), visible_cores())
        return pool, requirements

    def _wait_for_earlier_jobs(self) -> None:
        self.lock.jobs.wait()

    def _plan_jobs(self, configs: Mapping[int, DictConfig]) -> list[Job]:
        """Record each job; in a resumed sweep, mark those as finished whose folders hold a finished run.

        Raises
        ------
        UserError
            Two jobs would use one folder; the recorded job of this number has other settings.
        """
        jobs, overrides = [], {number: plain_overrides(cfg.hydra.overrides.task) for number, cfg in configs.items()}
        taken = {job.name for number, job in self.manifest.jobs.items() if number not in overrides}
        names = job_names(overrides, self.manifest.all_overrides, taken)
        for number, cfg in configs.items():
            settings = hash_of(settings_of(cfg))
            planned = Job(number, str(cfg.hydra.sweep.subdir), overrides[number], names[number], settings=settings)
            job = self.manifest.plan(planned)
            folder = self.manifest.folder / job.folder
            if not has_begun(folder):
                job.settings = settings
            job.status = "finished" if self.resumes and is_finished(job, folder) else "waiting"
            job.miou = selection_score(folder) if job.status == "finished" else None
            jobs.append(job)
        return jobs

    def _run_jobs(
        self,
        jobs: Sequence[Job],
        configs: Mapping[int, DictConfig],
        pool: ResourcePool,
        requirements: dict[int, Requirement],
        signals: StopSignals,
    ) -> None:
        self.manifest.mark_running()  # the previous batch has set another status
        waiting = [job for job in jobs if job.status == "waiting"]
        table = SweepTable(self.manifest, {number: planned_steps(cfg) for number, cfg in iter_job_configs(configs)})
        done = f"{len(jobs) - len(waiting)} of {len(jobs)} jobs are finished, " if len(waiting) < len(jobs) else ""
        table.log(
            f"{display_path(self.manifest.folder)}: {done}{len(waiting)} to run, {pool.slots} at a time"
            f"{self._describe_threads(pool)}"
        )
        queue = JobQueue(
            self.manifest, pool, requirements, lambda job, allocation: self._start(job, allocation, configs), table
        )
        try:
            queue.run(waiting, signals)
        except Interrupted as stop:
            self.manifest.end("interrupted")
            table.close(f"Stopped. To resume: {self.manifest.resume_command}")
            stop.reported = True
            raise
        unfinished = [job for job in jobs if job.status != "finished"]
        all_done = all(job.status == "finished" for job in self.manifest.jobs.values())  # of earlier batches, too
        self.manifest.end("finished" if all_done else "failed")
        reports = [self._describe_failure(job, configs[job.number]) for job in unfinished]
        table.close(*reports, ended=not self.more_batches)

    @contextmanager
    def _os_errors_reported(self) -> Iterator[None]:
        """Turn an OSError of this process, such as a write to a full disk, into a UserError that says how to resume."""
        try:
            yield
        except OSError as error:
            with suppress(OSError):
                self.manifest.end("interrupted")
            raise UserError(
                f"{display_path(self.manifest.folder)}: {first_line(error)}. The running jobs were asked to save a"
                f" checkpoint, and have ended. Fix the cause, then resume: {self.manifest.resume_command}"
            ) from error

    def _describe_threads(self, pool: ResourcePool) -> str:
        if typed := os.environ.get("OMP_NUM_THREADS"):  # which the jobs keep
            return f", OMP_NUM_THREADS={typed}"
        return f", {pool.threads} thread{'s' if pool.threads > 1 else ''} per process"

    def _start(self, job: Job, allocation: Allocation, configs: Mapping[int, DictConfig]) -> JobHandle:
        cfg, folder = configs[job.number], self.manifest.folder / job.folder
        overrides = self._run_overrides(job, cfg, resume=self.resumes)
        folder.mkdir(parents=True, exist_ok=True)
        environment = single_process_environment() | allocation.environment()
        return start_verb(
            self.verb, overrides, config_dir(cfg.hydra), environment, folder / LOG, held=[self.lock.jobs.inherited]
        )

    def _run_overrides(self, job: Job, cfg: DictConfig, resume: bool) -> list[str]:
        """Return the overrides of a job's process; with ``resume`` it continues from the checkpoints in its folder."""
        folder = self.manifest.folder / job.folder
        hydra_overrides = [word for word in plain_overrides(cfg.hydra.overrides.hydra) if not SWEEP_KEYS.match(word)]
        return [
            *hydra_overrides,
            *job.overrides,
            *(job_resume_overrides(self.verb, job.overrides, folder) if resume else []),
            *(["sweep.recorded=true"] if self.config.sweep.get("recorded") else []),
            *overrides_for_job(self.manifest.folder, job.name),
            f"hydra.job.num={job.number}",
            format_override("hydra.run.dir", folder),
        ]

    def _describe_failure(self, job: Job, cfg: DictConfig) -> str:
        words = list(dict.fromkeys([*command_options(cfg.hydra), *self._run_overrides(job, cfg, resume=True)]))
        return failure_report(job, self.manifest.folder / job.folder / LOG, shell_join(["fcnlab", self.verb, *words]))

    def _job_return(self, job: Job, cfg: DictConfig) -> JobReturn:
        """Return a job's mean IoU, or the error of a failed job, as Hydra's sweepers expect it."""
        done = job.status == "finished"
        result = JobReturn(
            overrides=job.overrides,
            cfg=without_hydra(cfg),
            hydra_cfg=OmegaConf.masked_copy(cfg, ["hydra"]),
            working_dir=str(Path.cwd()),
            task_name=JobRuntime.instance().get("name"),
            status=JobStatus.COMPLETED if done else JobStatus.FAILED,
        )
        result.return_value = job.miou if done else self._failure_error(job)
        return result

    def _failure_error(self, job: Job) -> CompactHydraException:
        log = display_path(self.manifest.folder / job.folder / LOG)
        return CompactHydraException(
            f"fcnlab {self.verb}: job {job.number} ({job.name}) {job.status} with exit code {job.exit_code}: see {log}."
            f" To rerun missing jobs: {self.manifest.resume_command}"
        )


class InProcessLauncher(BasicLauncher):
    """Run one job after the other in this process, as Hydra's own launcher does: for small models on one device."""

    remote = False

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check the sweep's folder before Hydra writes there."""
        with report_user_errors(str(config.hydra.job.config_name)):
            warn_about_single_run_overrides(config.hydra)
            folder = sweep_folder(config)
            if option := resuming_option(config):
                raise UserError(
                    f"{option} works only with hydra/launcher=slots or submitit_slurm. Leave hydra/launcher=basic out"
                )
            self.names: set[str] = set()  # of the jobs of earlier batches
            self.before, self.started = FolderBefore(folder), False
            check_contains_no_run(folder)
            if folder.is_dir() and any(entry.name not in LEFT_BY_REFUSED for entry in folder.iterdir()):
                raise UserError(f"hydra.sweep.dir={display_path(folder)}: the folder is not empty. Choose a new folder")
            if (folder / LOCK).exists():
                FolderLock(folder).release()  # refuses a folder in which another sweep is just starting
            self.before.list_files()
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def restore_folder(self) -> None:
        """Remove what this command has created, if it has started no job."""
        if not self.started:
            self.before.remove_files()
            self.before.remove_folders()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        assert self.hydra_context is not None and self.config is not None
        jobs, has_sweep_settings = [list(overrides) for overrides in job_overrides], "sweep" in self.config
        with report_user_errors(str(self.config.hydra.job.config_name)), hydra_config_restored():
            configs = compose_jobs(self.hydra_context, self.config, jobs, initial_job_idx)
            check_single_process(configs)
            warn_about_wandb_environment(configs)
        if has_sweep_settings:
            folder = Path(self.config.hydra.sweep.dir).absolute()
            numbered = dict(enumerate(jobs, start=initial_job_idx))
            names = job_names(numbered, plain_overrides(self.config.hydra.overrides.task), self.names)
            self.names.update(names.values())
            jobs = [
                [*job, *overrides_for_job(folder, names[number]), keep_folder_name(configs[number])]
                for number, job in numbered.items()
            ]
        self.started = True
        with shared_run_environment():
            return super().launch(jobs, initial_job_idx)


def job_resume_overrides(verb: str, overrides: Sequence[str], folder: Path) -> list[str]:
    """Return the override with which a started job resumes from the checkpoints in its folder, if it can.

    A job whose overrides name a checkpoint starts from that one until it has one of its own.
    """
    names_checkpoint = any(override_key(word) == "checkpoint" for word in overrides)
    has_checkpoint = any(folder.glob("**/checkpoints/*.ckpt"))
    resumes = verb == "train" and folder.is_dir() and (has_checkpoint or not names_checkpoint)
    return ["checkpoint=auto"] if resumes else []


def sweep_folder(config: DictConfig) -> Path:
    """Return the sweep's folder; raise a UserError if it is not writable."""
    folder = Path(config.hydra.sweep.dir).absolute()
    if reason := unwritable_reason(folder):
        raise UserError(f"{format_override('hydra.sweep.dir', display_path(folder))}: {reason}. Name another folder")
    return folder


def keep_folder_name(cfg: DictConfig) -> str:
    """Return the override that keeps the settings of :func:`overrides_for_job` out of ``hydra.job.override_dirname``.

    Else a job whose folder has that name would not run in the folder that was checked.
    """
    key = "hydra.job.config.override_dirname.exclude_keys"
    excluded = [*OmegaConf.select(cfg, key), "sweep.folder", "sweep.name"]
    return f"{key}=[{','.join(map(quote_value, excluded))}]"


def planned_steps(cfg: DictConfig) -> int | None:
    """Return a job's number of training steps; None if it has stages."""
    steps = cfg.trainer.get("max_steps")
    return steps if isinstance(steps, int) and not cfg.get("stages") else None


def warn_about_wandb_environment(configs: Mapping[int, DictConfig]) -> None:
    """Warn about environment variables that name a single W&B run, if any job logs to W&B."""
    ignored = describe_removed_environment()
    if ignored and any("wandb" in (cfg.get("logger") or {}) for cfg in configs.values()):
        log.warning("Warning: %s", ignored)


@contextmanager
def shared_run_environment() -> Iterator[None]:
    """Remove the variables that name a single W&B run from this process's environment while entered."""
    before = dict(os.environ)
    for name in before.keys() - shared_sweep_environment().keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in before.items() if name not in os.environ})
