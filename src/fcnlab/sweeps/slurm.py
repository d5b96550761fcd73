"""``hydra/launcher=submitit_slurm``: each job of a sweep is one of Slurm's, with a task for each rank.

Slurm stops jobs as it likes: for others (SIGTERM, and it queues them again by itself) and at their time limit (SIGUSR2,
submitit's choice, some time before; who gets it asks to be queued again). Either way the run saves itself between two
steps, and goes on from there when its turn comes: in the same folder, by checkpoint=auto.
"""

import os
import pickle
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fcnlab.config.overrides import config_dir, format_override, override_key
from fcnlab.errors import UserError, first_line
from fcnlab.files.reading import read_json_facts
from fcnlab.signals import STOPPING
from fcnlab.sweeps.job_checks import iter_job_configs, report_user_errors
from fcnlab.sweeps.launchers import LOG, SlotsLauncher
from fcnlab.sweeps.manifest import Job
from fcnlab.sweeps.processes import shell_exit_code, single_process_environment, start_verb
from fcnlab.sweeps.resources import Allocation, Requirement, ResourcePool

POLL_INTERVAL = 5.0  # seconds between two questions to Slurm, whatever the number of jobs
RESULT_TIMEOUT = 30.0  # seconds after a job has ended, which a shared file system may take
NOT_FOR_SBATCH = ("submitit_folder", "gpus_per_node", "array_parallelism", "max_num_timeout")  # settings that are not sbatch's
SUBMITIT_COMMON = ("timeout_min", "cpus_per_task", "mem_gb", "nodes", "name")  # those that submitit has for all clusters


class SlurmLauncher(SlotsLauncher):
    """Each job as one of Slurm's; the sweep's record, its table and how it goes on are those of :class:`Slots`.

    Parameters
    ----------
    settings
        submitit's, as in conf/hydra/launcher/submitit_slurm.yaml.
    """

    remote = True

    def __init__(self, **settings: Any):
        super().__init__()
        self.settings = {
            name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for name, value in settings.items()
        }

    def setup(self, **given: Any) -> None:
        with report_user_errors(str(given["config"].hydra.job.config_name)):
            require_submitit()
        super().setup(**given)

    def _allocate(self, configs: Mapping[int, DictConfig]) -> tuple[ResourcePool, dict[int, Requirement]]:
        """Slurm gives a job its place; here only their number is limited."""
        self.asked = {
            number: sbatch(self.settings, cfg.trainer, f"job {number}") for number, cfg in iter_job_configs(configs)
        }
        at_a_time = self.settings["array_parallelism"]
        if type(at_a_time) is not int or at_a_time < 1:
            raise UserError(f"hydra.launcher.array_parallelism={at_a_time}: give a whole number of jobs, at least 1")
        return SlurmPool(min(at_a_time, len(configs))), {number: Requirement(0, 1) for number in configs}

    def _describe_threads(self, places: ResourcePool) -> str:
        return " in Slurm's queue"

    def _wait_for_earlier_jobs(self) -> None:
        """Those of a process that was killed have gone on; they save themselves, and are begun again as ours."""
        super()._wait_for_earlier_jobs()
        queue = SlurmQueue()
        earlier = [path.name.partition("_")[0] for path in self._submitted.glob("*_submission.sh")]
        earlier = [number for number in earlier if queue.holds(number) and submitted_from(self._submitted, number)]
        for number in earlier:
            if queue.holds(number):
                subprocess.run(["scancel", number], check=False)
        while any(queue.holds(number) for number in earlier):
            time.sleep(POLL_INTERVAL)

    @property
    def _submitted(self) -> Path:
        return Path(str(self.settings["submitit_folder"])).absolute()

    def _begin(self, job: Job, share: Allocation, configs: Mapping[int, DictConfig]) -> "SlurmJob":
        import submitit
        from submitit.core.utils import FailedJobError

        cfg, folder = configs[job.number], self.manifest.folder / job.folder
        task = Task(
            self.verb,
            self._words(job, cfg, again=self.resumes),
            config_dir(cfg.hydra),
            folder,
            begins_elsewhere=any(override_key(word) == "checkpoint" for word in job.overrides),
        )
        folder.mkdir(parents=True, exist_ok=True)
        executor = submitit.AutoExecutor(
            self._submitted, cluster="slurm", slurm_max_num_timeout=self.settings["max_num_timeout"]
        )
        executor.update_parameters(**self.asked[job.number])
        try:
            return SlurmJob(executor.submit(task))
        except FailedJobError as error:
            raise OSError(f"Slurm has not taken job {job.number}: {first_line(error)}") from error


class SlurmPool(ResourcePool):
    """So many jobs at a time, and Slurm says where."""

    def __init__(self, slots: int):
        super().__init__([], [], slots, cores=1)

    def take(self, need: Requirement) -> Allocation | None:
        share = super().take(need)
        return None if share is None else SlurmAllocation(**vars(share))


class SlurmAllocation(Allocation):
    def __str__(self) -> str:
        return "Slurm, when its turn comes"


def require_submitit() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise UserError(f"hydra/launcher=submitit_slurm needs it ({error}): pip install 'fcnlab[slurm]'") from error
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError("hydra/launcher=submitit_slurm: no sbatch and srun here: type this on a node of the cluster")


def count_tasks(trainer: Mapping[str, Any], job: str) -> int:
    """A task for each rank, of which Lightning has one for each device.

    Raises
    ------
    UserError
        Their number is not known before the job runs.
    """
    try:
        count = int(trainer["devices"])
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise UserError(
            f"{job}: trainer.devices={trainer['devices']}: Slurm wants to know how many: give their number on each node"
        )
    return count


def sbatch(settings: Mapping[str, Any], trainer: Mapping[str, Any], job: str) -> dict[str, Any]:
    """What submitit is to ask Slurm for.

    Raises
    ------
    UserError
        The trainer's nodes are not Slurm's.
    """
    tasks, gpus = count_tasks(trainer, job), settings["gpus_per_node"]
    nodes = trainer.get("num_nodes", 1)
    if nodes != settings["nodes"]:
        raise UserError(f"{job}: trainer.num_nodes={nodes}, and hydra.launcher.nodes={settings['nodes']}: give one")
    if gpus == "auto":
        gpus = tasks if trainer.get("accelerator") in ("gpu", "cuda") else None
    given = {name: value for name, value in settings.items() if name not in NOT_FOR_SBATCH and value is not None}
    asked = {name if name in SUBMITIT_COMMON else f"slurm_{name}": value for name, value in given.items()}
    further = {"requeue": True} | (settings["additional_parameters"] or {})
    # A rank that waits for one that has failed is ended with it.
    return asked | {
        "tasks_per_node": tasks,
        **({"gpus_per_node": gpus} if gpus else {}),
        "slurm_additional_parameters": further,
        "slurm_srun_args": ["--kill-on-bad-exit=1"],
    }


@dataclass
class Task:
    """What submitit runs as each task of a job: the run, in a process of its own.

    ``begins_elsewhere``: its words name a checkpoint, which counts until it has one of its own.
    """

    verb: str
    words: Sequence[str]
    config_dir: str | None
    folder: Path
    begins_elsewhere: bool = False
    asked: list[int] = field(default_factory=list)

    def __call__(self) -> int:
        """The run's exit code; it does not return where Slurm stops the job."""
        restarted = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        if restarted and read_json_facts(self.folder, "run.json").get("status") == "finished":
            return 0  # it had ended just when it was stopped
        queue_again = signal.getsignal(signal.SIGUSR2)
        # Slurm's signals reach the run, too; it listens to those that stop, and this one would end it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        process = start_verb(self.verb, self._words(restarted), self.config_dir, task_environment(), self.folder / LOG)

        def pass_on(signum: int, frame: Any) -> None:
            self.asked.append(signum)
            process.send_signal(signal.SIGTERM)

        for signum in (*STOPPING, signal.SIGUSR2):
            signal.signal(signum, pass_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        code = shell_exit_code(process.wait())
        if code - 128 in STOPPING:
            self._stop(code, queue_again)
        if rank() and code:
            os._exit(code)  # srun ends the others
        return code

    def _words(self, restarted: bool) -> list[str]:
        begun = any(self.folder.glob("**/checkpoints/*.ckpt"))
        goes_on = restarted and self.verb == "train" and (begun or not self.begins_elsewhere)
        return [
            *self.words,
            *(["checkpoint=auto"] if goes_on else []),
            *(
                [format_override("hydra.job.name", f"{self.verb}_rank_{rank()}"), "hydra.output_subdir=null"]
                if rank()
                else []
            ),
        ]

    def _stop(self, code: int, queue_again: Any) -> None:
        """All is saved. Slurm queues what got a SIGTERM again by itself; before a time limit rank 0 asks for it."""
        if rank():
            os._exit(0)  # any other code would have srun end rank 0, which may be saving yet
        if signal.SIGUSR2 in self.asked and signal.SIGTERM not in self.asked:
            queue_again(signal.SIGUSR2, None)  # submitit's: counts, asks and exits
        os._exit(code)  # without a result, for which the sweep would take it

    def checkpoint(self) -> Any:
        """What submitit runs when the job's turn comes again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Task(self.verb, self.words, self.config_dir, self.folder, self.begins_elsewhere))


def rank() -> int:
    return int(os.environ.get("SLURM_PROCID", "0"))


def task_environment() -> dict[str, str]:
    """Slurm's own words about ranks, and nobody else's; as many threads as the task has cores."""
    slurms = {name: value for name, value in os.environ.items() if name.startswith("SLURM_")}
    threads = os.environ.get("OMP_NUM_THREADS") or slurms.get("SLURM_CPUS_PER_TASK")
    return single_process_environment() | slurms | ({"OMP_NUM_THREADS": threads} if threads else {})


def submitted_from(folder: Path, number: str) -> bool:
    """Whether Slurm says that a job's script lay in this folder; a file there may bear the number of any job."""
    done = subprocess.run(["squeue", "--me", "-h", "-j", number, "-o", "%o"], capture_output=True, check=False)
    script = os.fsdecode(done.stdout).strip()  # a path may be no text
    return not script or Path(script).parent.resolve() == folder.resolve()


class SlurmQueue:
    """Which of the user's jobs Slurm has not ended yet, asked for at most every few seconds."""

    def __init__(self):
        self.live: set[str] = set()
        self.asked = -POLL_INTERVAL

    def holds(self, number: str, since: float = 0.0) -> bool:
        """As last heard; a job that was submitted after that is taken to be there."""
        if time.monotonic() - self.asked >= POLL_INTERVAL:
            self._ask()
        return number in self.live or since >= self.asked

    def _ask(self) -> None:
        now = time.monotonic()
        try:
            done = subprocess.run(
                ["squeue", "--me", "-h", "-o", "%A"], capture_output=True, text=True, timeout=60, check=True
            )
        except (OSError, subprocess.SubprocessError):
            self.asked = max(self.asked, now - POLL_INTERVAL / 2)  # Slurm is away; its jobs are not
            return
        self.live, self.asked = set(done.stdout.split()), now


QUEUE = SlurmQueue()


class PlainUnpickler(pickle.Unpickler):
    """For what a task left, a word and a number: whoever put another file there is not to run code by it."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"a result names {module_name}.{global_name}")


class SlurmJob:
    """A submitted job, as :class:`~fcnlab.sweeps.job_queue.JobQueue` sees its jobs."""

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
        """What its task has left; without that, once Slurm no longer has it, the signal that was sent, or 1."""
        if self.result.exists():
            return self._left()
        if QUEUE.holds(self.number, self.submitted):
            self.missing = None
            return None
        self.missing = self.missing or time.monotonic()
        if self.sent is not None:
            return -self.sent
        return 1 if time.monotonic() - self.missing > RESULT_TIMEOUT else None

    def _left(self) -> int:
        with self.result.open("rb") as file:
            outcome, code = PlainUnpickler(file).load()
        return int(code) if outcome == "success" else 1

    def send_signal(self, sig: int) -> None:
        self.sent = sig
        self._cancel()

    def is_alive(self) -> bool:
        return QUEUE.holds(self.number, self.submitted)

    def kill_all(self) -> None:
        if self.is_alive():
            self._cancel()

    def _cancel(self) -> None:
        """A running job gets SIGTERM, and a while later SIGKILL; a waiting one is taken off the queue."""
        subprocess.run(["scancel", self.number], check=False)
