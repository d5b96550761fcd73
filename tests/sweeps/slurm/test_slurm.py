"""A sweep on a real Slurm of one node on loopback, whose jobs are stopped and go on."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fcnlab.training.checkpoints import read_checkpoint

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
INSTALL = ["apt-get", "install", "-y", "--no-install-recommends", "slurm-wlm", "munge"]
CONFIG = Path("/etc/slurm/slurm.conf")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Started here, and ended; skipped where that cannot be, or where the machine has a Slurm of its own."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("to start a Slurm takes root")
    if CONFIG.exists() and "ClusterName=local\n" not in CONFIG.read_text():
        pytest.skip(f"this machine has a Slurm of its own: {CONFIG}")
    if shutil.which("slurmctld") is None and not installed():
        pytest.skip(f"Slurm cannot be installed: {' '.join(INSTALL)}")
    folder = tmp_path_factory.mktemp("slurm")
    with (folder / "up.txt").open("w") as message:  # no pipe, which the daemons would keep open
        up = subprocess.run([HERE / "slurm_up.sh", folder], stdout=message, stderr=message, timeout=90).returncode
    try:
        assert up == 0, (folder / "up.txt").read_text()
        yield folder
    finally:
        subprocess.run([HERE / "slurm_down.sh", folder], timeout=30)


def installed() -> bool:
    """Whether Debian's packages could be installed; their lists may be old, or missing."""
    if shutil.which("apt-get") is None:
        return False
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        return any(
            subprocess.run(command, env=environment, capture_output=True, timeout=180).returncode == 0
            and shutil.which("slurmctld") is not None
            for command in (INSTALL, ["sh", "-c", f"apt-get update && {' '.join(INSTALL)}"])
        )
    except subprocess.TimeoutExpired:
        return False


def start(folder: Path, *words: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(p for p in paths() if p)}
    with (folder / "output.txt").open("ab") as message:
        command = [sys.executable, "-m", "fcnlab", "train", "-m", *words]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=message, stderr=message)


def paths() -> list[str]:
    """With the callbacks that take notes and raise."""
    return [str(HERE.parent), os.environ.get("PYTHONPATH", "")]


def wait_for(happened, process: subprocess.Popen, what: str) -> None:
    deadline = time.monotonic() + 240
    while not happened():
        message = (process.args, what)
        assert process.poll() is None and time.monotonic() < deadline, message
        time.sleep(0.1)


def record(folder: Path, name: str = "run.json") -> dict:
    return json.loads((folder / name).read_text())


def queue() -> dict[str, str]:
    """The state of each of Slurm's jobs."""
    message = subprocess.run(["squeue", "-h", "-o", "%A %T"], capture_output=True, text=True, check=True).stdout
    return dict(line.split() for line in message.splitlines())


def job_of(number: int, sweep: Path) -> str:
    """Slurm's number of a job of the sweep, which are submitted in order."""
    return sorted((path.name.partition("_")[0] for path in (sweep / ".submitit").glob("*_submission.sh")), key=int)[
        number
    ]


def curves(folder: Path) -> list[dict[str, str]]:
    """metrics.csv, whose columns stand in the order in which they came."""
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_jobs_that_slurm_stops_end_as_those_that_it_left_alone(slurm, tmp_path, small, shapes_root):
    """Job 0 is pre-empted (SIGTERM, and queued again by Slurm), job 1 reaches its time (SIGUSR2)."""
    words = (*small, f"data.root={shapes_root}", "trainer=smoke", "trainer.accelerator=cpu", "logger=csv", "seed=1,2",
             "trainer.max_steps=60", "trainer.val_check_interval=60", "checkpointing.every_n_minutes=0")  # fmt: skip
    assert start(tmp_path, *words, "hydra/launcher=basic", "hydra.sweep.dir=straight").wait(200) == 0
    sweep = tmp_path / "sweep"
    process = start(tmp_path, *words, "hydra/launcher=submitit_slurm", "hydra.sweep.dir=sweep")
    stops = [["scontrol", "requeue"], ["scancel", "--signal=USR2"]]
    stopped: dict[str, str] = {}
    for number, stop in enumerate(stops):
        last = sweep / str(number) / "checkpoints" / "last.ckpt"
        wait_for(last.is_file, process, f"job {number} trains")
        job = job_of(number, sweep)
        subprocess.run([*stop, job], check=True)
        stopped[job] = " ".join(stop)
    for job in stopped:  # Slurm lets a job that it has queued again wait for two minutes
        wait_for(lambda job=job: queue().get(job) == "PENDING", process, f"job {job} is queued again: {queue()}")
        subprocess.run(["scontrol", "update", f"jobid={job}", "StartTime=now"], check=True)
    assert process.wait(200) == 0, (tmp_path / "output.txt").read_text()

    for number in range(2):
        ran, straight = sweep / str(number), tmp_path / "straight" / str(number)
        assert record(ran)["starts"] == 2 and record(ran)["status"] == "finished"
        weights, undisturbed = (
            read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"] for folder in (ran, straight)
        )
        assert weights.keys() == undisturbed.keys()
        assert all(bool((weights[name] == undisturbed[name]).all()) for name in weights)
        assert curves(ran) == curves(straight)  # each step once
        assert record(ran, "metrics.json")["miou"] == record(straight, "metrics.json")["miou"]
    assert [job["exit_code"] for job in record(sweep, "sweep.json")["jobs"]] == [0, 0]


def test_each_rank_is_a_task_and_an_error_in_one_ends_the_job(slurm, tmp_path, small, shapes_root):
    """Jobs of two processes and of one, all well or with an error in rank 0 or in rank 1, which the latter do not have.

    24 images, 4 at a time on each device: an epoch is 3 steps of two devices, or 6 of one.
    """
    words = (*small, f"data.root={shapes_root}", "trainer=smoke", "trainer.accelerator=cpu", "logger=csv",
             "trainer.max_steps=6", "trainer.val_check_interval=6", "trainer.devices=2,1", "hydra.sweep.dir=sweep",
             "+callbacks.note._target_=raiser.NoteImages", "+callbacks.bad._target_=raiser.RaiseIn",
             "+callbacks.bad.rank=-1,0,1", "hydra/launcher=submitit_slurm")  # fmt: skip
    process, sweep = start(tmp_path, *words), tmp_path / "sweep"
    assert process.wait(280) == 1, (tmp_path / "output.txt").read_text()
    message, jobs = (tmp_path / "output.txt").read_text(), record(sweep, "sweep.json")["jobs"]
    assert [job["status"] for job in jobs] == [
        "finished", "failed", "failed", "finished", "failed", "finished"
    ], message  # fmt: skip
    for number, devices in ((0, 2), (3, 1), (5, 1)):
        seen = [
            line.split() for path in (sweep / str(number)).glob("seen-*.txt") for line in path.read_text().splitlines()
        ]
        assert {int(rank) for _, rank, _ in seen} == set(range(devices))
        each = [(epoch, index) for epoch in range(devices) for index in range(24)]
        assert sorted((int(epoch), int(index)) for epoch, _, index in seen) == each
        assert record(sweep / str(number), "metrics.json")["protocol"]["images"] == 8
    assert {path.name for path in sweep.iterdir() if path.is_dir()} == {".submitit", *"012345"}
    assert message.count("To rerun this job: fcnlab train") == 3
    assert all(f"Job {number} (trainer.devices={devices}" in message for number, devices in ((1, 2), (2, 2), (4, 1)))
