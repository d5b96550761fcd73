"""``hydra/launcher=submitit_slurm``: run each job of a sweep as a Slurm job, with one task per rank.

Slurm stops a job when it is pre-empted (SIGTERM; Slurm requeues the job) and at its time limit (SIGUSR2, which submitit
requests some time before the limit; the job then requeues itself). In both cases the run saves a checkpoint between two
steps, and resumes from it with checkpoint=auto in the same folder when the job starts again.
"""

import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fcnlab.config.overrides import config_dir, format_override
from fcnlab.errors import UserError, first_line
from fcnlab.files.reading import read_json_facts
from fcnlab.signals import STOPPING
from fcnlab.sweeps.job_checks import iter_job_configs, report_user_errors
from fcnlab.sweeps.launchers import LOG, SlotsLauncher, job_resume_overrides
from fcnlab.sweeps.manifest import Job
from fcnlab.sweeps.processes import shell_exit_code, single_process_environment, start_verb
from fcnlab.sweeps.resources import Allocation, Requirement, ResourcePool

POLL_INTERVAL = 5.0  # seconds between two calls of squeue, for all jobs together
RESULT_TIMEOUT = 30.0  # seconds until a result of an ended job is visible on a shared file system
NOT_FOR_SBATCH = ("submitit_folder", "gpus_per_node", "array_parallelism", "max_num_timeout")
SUBMITIT_COMMON = ("timeout_min", "cpus_per_task", "mem_gb", "nodes", "name")  # submitit's parameters for any cluster


class SlurmLauncher(SlotsLauncher):
    """Run each job as a Slurm job; record, sweep table and resuming are those of :class:`SlotsLauncher`.

    Parameters
    ----------
    settings
        submitit's parameters, as in conf/hydra/launcher/submitit_slurm.yaml.
    """

    remote = True

    def __init__(self, **settings: Any):
        super().__init__()
        self.settings = {
            name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for name, value in settings.items()
        }

    def setup(self, **arguments: Any) -> None:
        with report_user_errors(str(arguments["config"].hydra.job.config_name)):
            require_submitit()
        super().setup(**arguments)

    def _resources(self, configs: Mapping[int, DictConfig]) -> tuple[ResourcePool, dict[int, Requirement]]:
        """Return a pool that limits only the number of jobs, since Slurm allocates the resources."""
        self.parameters = {
            number: sbatch_parameters(self.settings, cfg.trainer, f"job {number}")
            for number, cfg in iter_job_configs(configs)
        }
        limit = self.settings["array_parallelism"]
        if type(limit) is not int or limit < 1:
            raise UserError(f"hydra.launcher.array_parallelism={limit} must be a whole number of jobs, at least 1")
        return SlurmPool(min(limit, len(configs))), {number: Requirement(0, 1) for number in configs}

    def _describe_threads(self, pool: ResourcePool) -> str:
        return " in Slurm's queue"

    def _wait_for_earlier_jobs(self) -> None:
        """Cancel the Slurm jobs of a killed sweep and wait for their end; they save a checkpoint and are rerun."""
        super()._wait_for_earlier_jobs()
        queue = SlurmQueue()
        folder = self._submitit_folder
        earlier = [path.name.partition("_")[0] for path in folder.glob("*_submission.sh")]
        earlier = [number for number in earlier if queue.contains(number) and submitted_from(folder, number)]
        for number in earlier:
            if queue.contains(number):
                subprocess.run(["scancel", number], check=False)
        while any(queue.contains(number) for number in earlier):
            time.sleep(POLL_INTERVAL)

    @property
    def _submitit_folder(self) -> Path:
        return Path(str(self.settings["submitit_folder"])).absolute()

    def _start(self, job: Job, allocation: Allocation, configs: Mapping[int, DictConfig]) -> "SlurmJob":
        import submitit
        from submitit.core.utils import FailedJobError

        cfg, folder = configs[job.number], self.manifest.folder / job.folder
        overrides = self._run_overrides(job, cfg, resume=self.resumes)
        task = Task(self.verb, overrides, config_dir(cfg.hydra), folder)
        folder.mkdir(parents=True, exist_ok=True)
        executor = submitit.AutoExecutor(
            self._submitit_folder,
            cluster="slurm",
            slurm_max_num_timeout=self.settings["max_num_timeout"],
            slurm_python=f"{shlex.quote(sys.executable)} -P",  # no module of the folder from which it is submitted
        )
        executor.update_parameters(**self.parameters[job.number])
        try:
            return SlurmJob(executor.submit(task))
        except FailedJobError as error:
            raise OSError(f"Slurm did not accept job {job.number}: {first_line(error)}") from error


class SlurmPool(ResourcePool):
    """A limit on the number of jobs in Slurm's queue."""

    def __init__(self, slots: int):
        super().__init__([], [], slots, cores=1)

    def take(self, requirement: Requirement) -> Allocation | None:
        allocation = super().take(requirement)
        return None if allocation is None else SlurmAllocation(**vars(allocation))


class SlurmAllocation(Allocation):
    def __str__(self) -> str:
        return "Slurm (submitted)"


def require_submitit() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"hydra/launcher=submitit_slurm needs submitit ({error}): pip install 'fcnlab[slurm]'"
        ) from error
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError(
            "hydra/launcher=submitit_slurm: sbatch or srun was not found. Run this command on a node of the cluster"
        )


def count_tasks(trainer: Mapping[str, Any], job: str) -> int:
    """Return the number of Slurm tasks on each node: one per device.

    Raises
    ------
    UserError
        ``trainer.devices`` is not a number.
    """
    try:
        count = int(trainer["devices"])
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise UserError(
            f"{job}: trainer.devices={trainer['devices']} must be the number of devices on each node, since Slurm"
            " allocates them before the job runs"
        )
    return count


def sbatch_parameters(settings: Mapping[str, Any], trainer: Mapping[str, Any], job: str) -> dict[str, Any]:
    """Return the parameters of a job for submitit.

    Raises
    ------
    UserError
        The trainer and the launcher have different numbers of nodes.
    """
    tasks, gpus = count_tasks(trainer, job), settings["gpus_per_node"]
    nodes = trainer.get("num_nodes", 1)
    if nodes != settings["nodes"]:
        raise UserError(
            f"{job}: trainer.num_nodes={nodes} differs from hydra.launcher.nodes={settings['nodes']}. Set both to the"
            " same number"
        )
    if gpus == "auto":
        gpus = tasks if trainer.get("accelerator") in ("gpu", "cuda") else None
    used = {name: value for name, value in settings.items() if name not in NOT_FOR_SBATCH and value is not None}
    parameters = {name if name in SUBMITIT_COMMON else f"slurm_{name}": value for name, value in used.items()}
    return parameters | {
        "tasks_per_node": tasks,
        **({"gpus_per_node": gpus} if gpus else {}),
        "slurm_additional_parameters": {"requeue": True} | (settings["additional_parameters"] or {}),
        "slurm_srun_args": ["--kill-on-bad-exit=1"],  # else ranks would wait for one that has failed
    }


@dataclass
class Task:
    """What submitit runs as each task of a job: the run, in a process of its own."""

    verb: str
    overrides: Sequence[str]
    config_dir: str | None
    folder: Path
    received: list[int] = field(default_factory=list)  # signals

    def __call__(self) -> int:
        """Run the job and return its exit code; exit the process if Slurm stops the job."""
        restarted = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        if restarted and read_json_facts(self.folder, "run.json").get("status") == "finished":
            return 0  # the run finished just before Slurm stopped the job
        requeue = signal.getsignal(signal.SIGUSR2)
        # Slurm's signals reach the run's process, too: SIGUSR2 would end it, so the run inherits it blocked.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        overrides = self._run_overrides(restarted)
        process = start_verb(self.verb, overrides, self.config_dir, task_environment(), self.folder / LOG)

        def forward(signum: int, frame: Any) -> None:
            self.received.append(signum)
            process.send_signal(signal.SIGTERM)

        for signum in (*STOPPING, signal.SIGUSR2):
            signal.signal(signum, forward)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        code = shell_exit_code(process.wait())
        if code - 128 in STOPPING:
            self._stop(code, requeue)
        if rank() and code:
            os._exit(code)  # srun ends the other ranks
        return code

    def _run_overrides(self, restarted: bool) -> list[str]:
        return [
            *self.overrides,
            *(job_resume_overrides(self.verb, self.overrides, self.folder) if restarted else []),
            *(
                [format_override("hydra.job.name", f"{self.verb}_rank_{rank()}"), "hydra.output_subdir=null"]
                if rank()
                else []
            ),
        ]

    def _stop(self, code: int, requeue: Any) -> None:
        """End the task after the run has saved a checkpoint; at the time limit, rank 0 requeues the job.

        After a SIGTERM Slurm requeues the job itself.
        """
        if rank():
            os._exit(0)  # with another code srun would kill rank 0, which may still be saving
        if signal.SIGUSR2 in self.received and signal.SIGTERM not in self.received:
            requeue(signal.SIGUSR2, None)  # submitit's handler: counts, requeues and exits
        os._exit(code)  # returning would write a result, and the sweep would take the job for ended

    def checkpoint(self) -> Any:
        """Return what submitit runs when the requeued job starts."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Task(self.verb, self.overrides, self.config_dir, self.folder))


def rank() -> int:
    return int(os.environ.get("SLURM_PROCID", "0"))


def task_environment() -> dict[str, str]:
    """Return the environment of a task: only Slurm's variables describe ranks; one thread per core of the task."""
    slurm_variables = {name: value for name, value in os.environ.items() if name.startswith("SLURM_")}
    threads = os.environ.get("OMP_NUM_THREADS") or slurm_variables.get("SLURM_CPUS_PER_TASK")
    return single_process_environment() | slurm_variables | ({"OMP_NUM_THREADS": threads} if threads else {})


def submitted_from(folder: Path, number: str) -> bool:
    """Return whether a job's script is in this folder according to Slurm; a file name there may carry any number."""
    done = subprocess.run(["squeue", "--me", "-h", "-j", number, "-o", "%o"], capture_output=True, check=False)
    script = os.fsdecode(done.stdout).strip()  # a path need not be valid UTF-8
    return not script or Path(script).parent.resolve() == folder.resolve()


class SlurmQueue:
    """The user's live jobs in Slurm, refreshed at most every ``POLL_INTERVAL`` seconds."""

    def __init__(self):
        self.live: set[str] = set()
        self.refreshed = -POLL_INTERVAL

    def contains(self, number: str, since: float = 0.0) -> bool:
        """Return whether a job is live; one submitted (``since``) after the last refresh counts as live."""
        if time.monotonic() - self.refreshed >= POLL_INTERVAL:
            self._refresh()
        return number in self.live or since >= self.refreshed

    def _refresh(self) -> None:
        now = time.monotonic()
        try:
            done = subprocess.run(
                ["squeue", "--me", "-h", "-o", "%A"], capture_output=True, text=True, timeout=60, check=True
            )
        except (OSError, subprocess.SubprocessError):
            self.refreshed = max(self.refreshed, now - POLL_INTERVAL / 2)  # Slurm does not answer; its jobs still run
            return
        self.live, self.refreshed = set(done.stdout.split()), now


QUEUE = SlurmQueue()


class PlainUnpickler(pickle.Unpickler):
    """Load a task's result, a string and a number; refuse everything else, since a pickle can run code."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"a result contains {module_name}.{global_name}")


class SlurmJob:
    """A submitted job, with the interface of :class:`~fcnlab.sweeps.processes.JobHandle`."""

    def __init__(self, submitted: Any):
        self.number, self.result = submitted.job_id, submitted.paths.result_pickle
        self.submitted = time.monotonic()
        self.code: int | None = None
        self.missing: float | None = None
        self.sent: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self._code()
        return self.code

    def _code(self) -> int | None:
        """Return the code in the task's result; without a result, after the job's end, the sent signal or 1."""
        if self.result.exists():
            return self._result_code()
        if QUEUE.contains(self.number, self.submitted):
            self.missing = None
            return None
        self.missing = self.missing or time.monotonic()
        if self.sent is not None:
            return -self.sent
        return 1 if time.monotonic() - self.missing > RESULT_TIMEOUT else None

    def _result_code(self) -> int:
        with self.result.open("rb") as file:
            outcome, code = PlainUnpickler(file).load()
        return int(code) if outcome == "success" else 1

    def send_signal(self, sig: int) -> None:
        self.sent = sig
        self._cancel()

    def is_alive(self) -> bool:
        return QUEUE.contains(self.number, self.submitted)

    def kill_all(self) -> None:
        if self.is_alive():
            self._cancel()

    def _cancel(self) -> None:
        """Cancel the job: Slurm sends SIGTERM, and later SIGKILL, to a running job and drops a waiting one."""
        subprocess.run(["scancel", self.number], check=False)
