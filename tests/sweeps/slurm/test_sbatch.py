"""Test the parameters, tasks and exit codes of Slurm jobs, without Slurm."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from fcnlab.errors import UserError
from fcnlab.sweeps import slurm
from fcnlab.sweeps.slurm import (
    SlurmJob,
    SlurmQueue,
    Task,
    count_tasks,
    require_submitit,
    sbatch_parameters,
    submitted_from,
    task_environment,
)

SETTINGS = {
    "submitit_folder": "s/.submitit", "name": "fcnlab", "partition": "gpu", "account": None, "nodes": 1,
    "gpus_per_node": "auto", "cpus_per_task": 8, "mem_gb": None, "timeout_min": 60, "signal_delay_s": 120,
    "max_num_timeout": 20, "array_parallelism": 4, "setup": None, "additional_parameters": {"mail-type": "END"},
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The script that submitit makes for a job."""
    import submitit

    (tmp_path / "srun").touch(mode=0o755)  # submitit looks for it
    monkeypatch.setenv("PATH", str(tmp_path))

    def script(trainer: dict, **settings) -> str:
        executor = submitit.AutoExecutor(tmp_path, cluster="slurm")
        trainer = {"devices": 1, "accelerator": "auto", "num_nodes": 1} | trainer
        executor.update_parameters(**sbatch_parameters(SETTINGS | settings, trainer, "job 3"))
        return executor._executor._make_submission_file_text("run", "unique")

    return script


def test_a_slurm_job_has_a_task_for_each_rank(asked):
    script = asked({"devices": "4", "accelerator": "gpu"})
    for line in ("--ntasks-per-node=4", "--gpus-per-node=4", "--cpus-per-task=8", "--partition=gpu", "--time=60",
                 "--requeue", "--mail-type=END", "--signal=USR2@120", "--job-name=fcnlab"):  # fmt: skip
        assert f"#SBATCH {line}\n" in script
    assert "--kill-on-bad-exit=1 run" in script and "--account" not in script
    assert "gpus" not in asked({"accelerator": "cpu"}) and "gpus" not in asked({}, gpus_per_node=0)
    assert "#SBATCH --gpus-per-node=2\n" in asked({}, gpus_per_node=2)


def test_a_refused_submission_is_an_os_error(monkeypatch, tmp_path):
    """The launcher lets an OSError end the sweep with how to go on; submitit's own error ended in a traceback."""
    for name in ("srun", "sbatch"):
        (tmp_path / name).write_text(
            "#!/bin/sh\necho 'sbatch: error: Unable to contact slurm controller' >&2\nexit 1\n"
        )
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    launcher = slurm.SlurmLauncher(**SETTINGS | {"submitit_folder": str(tmp_path / "submitted")})
    launcher.verb, launcher.manifest, launcher.resumes = "train", SimpleNamespace(folder=tmp_path), False
    launcher.parameters = {
        3: sbatch_parameters(SETTINGS, {"devices": 1, "accelerator": "auto", "num_nodes": 1}, "job 3")
    }
    monkeypatch.setattr(launcher, "_run_overrides", lambda *_, **__: [])
    monkeypatch.setattr(slurm, "config_dir", lambda hydra: None)
    job = SimpleNamespace(number=3, folder="3", overrides=[])
    with pytest.raises(OSError, match=r"Slurm did not accept job 3: .*Unable to contact slurm controller"):
        launcher._start(job, None, {3: SimpleNamespace(hydra=None)})


@pytest.mark.parametrize("devices", ["auto", -1, 0, [0, 1]])
def test_slurm_needs_the_number_of_devices(devices):
    with pytest.raises(UserError, match=r"job 3: trainer.devices=.* must be the number of devices"):
        count_tasks({"devices": devices}, "job 3")


def test_differing_numbers_of_nodes_are_refused(asked):
    with pytest.raises(UserError, match=r"job 3: trainer.num_nodes=2 differs from hydra.launcher.nodes=1"):
        asked({"num_nodes": 2})


def test_missing_slurm_or_submitit_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch or srun was not found"):
        require_submitit()
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'fcnlab\[slurm\]'"):
        require_submitit()


@pytest.fixture
def in_slurm(monkeypatch):
    """This process as a task of Slurm's, with remains of another launcher."""
    for name, value in {
        "SLURM_PROCID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "3",
        "LOCAL_RANK": "7",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    kept = {signum: signal.getsignal(signum) for signum in (*slurm.STOPPING, signal.SIGUSR2)}
    yield monkeypatch
    for signum, handler in kept.items():
        signal.signal(signum, handler)


def test_a_task_gets_its_rank_only_from_slurm(in_slurm):
    environment = task_environment()
    assert environment["SLURM_NTASKS"] == "2" and "LOCAL_RANK" not in environment
    assert environment["OMP_NUM_THREADS"] == "3"


def test_a_requeued_task_resumes(in_slurm, tmp_path):
    named = ["seed=1", "checkpoint=a.ckpt"]
    task, with_checkpoint = (Task("train", overrides, None, tmp_path) for overrides in (["seed=1"], named))
    assert task._run_overrides(restarted=False) == ["seed=1"]
    assert task._run_overrides(restarted=True) == ["seed=1", "checkpoint=auto"]
    assert with_checkpoint._run_overrides(restarted=True) == named
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert with_checkpoint._run_overrides(restarted=True) == [*named, "checkpoint=auto"]
    in_slurm.setenv("SLURM_PROCID", "1")  # a rank that writes no record, and no second log
    assert task._run_overrides(False) == ["seed=1", "hydra.job.name='train_rank_1'", "hydra.output_subdir=null"]


def test_a_finished_run_is_not_rerun(in_slurm, tmp_path):
    in_slurm.setenv("SLURM_RESTART_COUNT", "1")
    (tmp_path / "run.json").write_text('{"status": "finished"}')
    in_slurm.setattr(slurm, "start_verb", lambda *_: pytest.fail("started"))
    assert Task("train", [], None, tmp_path)() == 0


class Stopped(Exception):
    """Instead of the end of the process."""


@pytest.mark.parametrize(
    ("sent", "rank", "ended"),
    [
        ([signal.SIGUSR2], "0", ["queued", 143]),  # its time limit: rank 0 asks to be queued again
        ([signal.SIGUSR2], "1", [0]),
        ([signal.SIGTERM], "0", [143]),  # Slurm has queued it again
        ([signal.SIGTERM, signal.SIGUSR2], "0", [143]),
    ],
)
def test_a_stopped_task_lets_the_run_save(in_slurm, tmp_path, sent, rank: str, ended: list):
    """The run is a process that ends with 128 + SIGTERM once it has been asked to, as ours do."""
    run = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); print(flush=True); time.sleep(30)"
    message = []

    def start(*_) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", run], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        process.send_signal(signal.SIGUSR2)  # Slurm's signal reaches it, too, and must not end it
        wait = process.wait

        def wait_while_signals_come() -> int:
            for signum in sent:
                signal.raise_signal(signum)
            return wait()

        process.wait = wait_while_signals_come  # type: ignore[method-assign]
        return process

    def leave(code: int) -> None:
        message.append(code)
        raise Stopped

    signal.signal(signal.SIGUSR2, lambda *_: message.append("queued"))
    in_slurm.setenv("SLURM_PROCID", rank)
    in_slurm.setattr(slurm, "start_verb", start)
    in_slurm.setattr(slurm.os, "_exit", leave)
    with pytest.raises(Stopped):
        Task("train", [], None, tmp_path)()
    assert message == ended


def submitted(tmp_path, queue: SlurmQueue, monkeypatch) -> SlurmJob:
    monkeypatch.setattr(slurm, "QUEUE", queue)
    monkeypatch.setattr(SlurmQueue, "_refresh", lambda self: None)
    return SlurmJob(SimpleNamespace(job_id="7", paths=SimpleNamespace(result_pickle=tmp_path / "result.pkl")))


@pytest.mark.parametrize(("left", "code"), [(("success", 0), 0), (("success", 3), 3), (("error", "trace"), 1)])
def test_the_exit_code_of_a_job_is_in_its_result(tmp_path, monkeypatch, left, code: int):
    import pickle

    job = submitted(tmp_path, SlurmQueue(), monkeypatch)
    assert job.poll() is None
    job.result.write_bytes(pickle.dumps(left))
    assert job.poll() == code


class Act:
    """What runs a command where it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("acted"),)


def test_a_foreign_result_runs_no_code(tmp_path, monkeypatch):
    import pickle

    monkeypatch.chdir(tmp_path)
    job = submitted(tmp_path, SlurmQueue(), monkeypatch)
    job.result.write_bytes(pickle.dumps(("success", Act())))
    with pytest.raises(pickle.UnpicklingError, match="a result contains"):
        job.poll()
    assert not Path("acted").exists()


def test_only_jobs_submitted_from_the_folder_are_cancelled(tmp_path, monkeypatch):
    """A script's name bears its job's number, and anybody can write a file of that name."""
    message = {"7": f"{tmp_path}/submission_file_1.sh", "8": "/another/submission_file_2.sh", "9": ""}
    monkeypatch.setattr(
        slurm.subprocess, "run", lambda command, **_: SimpleNamespace(stdout=f"{message[command[4]]}\n", returncode=0)
    )
    assert [submitted_from(tmp_path, number) for number in message] == [True, False, True]


def test_a_job_that_slurm_no_longer_lists_has_failed(tmp_path, monkeypatch):
    queue = SlurmQueue()
    job = submitted(tmp_path, queue, monkeypatch)
    queue.live, queue.refreshed = {"7"}, time.monotonic() + 1
    assert job.poll() is None and job.is_alive()
    queue.live = set()
    assert job.poll() is None  # its result may be on its way
    monkeypatch.setattr(slurm, "RESULT_TIMEOUT", 0.0)
    assert job.poll() == 1


def test_a_job_that_was_cancelled_was_interrupted(tmp_path, monkeypatch):
    queue, cancelled = SlurmQueue(), []
    job = submitted(tmp_path, queue, monkeypatch)
    monkeypatch.setattr(slurm.subprocess, "run", lambda command, **_: cancelled.append(command))
    job.send_signal(signal.SIGTERM)
    queue.refreshed = time.monotonic() + 1
    assert cancelled == [["scancel", "7"]] and job.poll() == -signal.SIGTERM


def test_jobs_count_as_live_while_slurm_does_not_answer(monkeypatch):
    queue = SlurmQueue()
    queue.live, queue.refreshed = {"7"}, -100.0

    def away(*_, **__):
        raise subprocess.CalledProcessError(1, "squeue")

    monkeypatch.setattr(slurm.subprocess, "run", away)
    assert queue.contains("7")
