"""Test real sweeps: each job has the right settings and trains on all of its data, also when killed and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
STEPS = ("trainer=smoke", "trainer.accelerator=cpu", "trainer.max_steps=6", "trainer.val_check_interval=6")


def start(folder: Path, *words: str) -> subprocess.Popen:
    """Start ``fcnlab train -m WORDS`` in a folder, with its output in output.txt there."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "fcnlab", "train", "-m", *words]
    with (folder / "output.txt").open("ab") as message:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=message, stderr=message)


def record(folder: Path, name: str = "run.json") -> dict:
    return json.loads((folder / name).read_text())


def seen(folder: Path) -> tuple[Counter, set[int]]:
    """Return how often each (epoch, image) was trained on, and by which ranks."""
    lines = [line.split() for path in folder.glob("seen-*.txt") for line in path.read_text().splitlines()]
    return Counter((int(epoch), int(index)) for epoch, _, index in lines), {int(rank) for _, rank, _ in lines}


@pytest.mark.parametrize(
    ("devices", "ranks"), [("1,2", "-1,0,1"), pytest.param("2,1", "-1", marks=pytest.mark.campaign)], ids=["1,2", "2,1"]
)
def test_each_job_is_a_correct_single_run(tmp_path, small, shapes_root, devices: str, ranks: str):
    """Jobs of one or two processes, without or with an error in rank 0 or 1, in parallel and in sequence.

    24 images, 4 at a time on each device: an epoch is 6 steps of one device, or 3 of two.
    """
    words = (*small, *STEPS, f"data.root={shapes_root}", "logger=csv", f"trainer.devices={devices}", "seed=3")
    words += (f"data.cache_dir={shapes_root}/cache",)  # the classes of the masks are counted there, once for all jobs
    actual = ("+callbacks.note._target_=raiser.NoteImages", "+callbacks.bad._target_=raiser.RaiseIn")
    process = start(tmp_path, *words, *actual, f"+callbacks.bad.rank={ranks}", "hydra.sweep.dir=sweep")
    jobs = [(int(count), int(rank)) for count in devices.split(",") for rank in ranks.split(",")]
    failing = [0 <= rank < count for count, rank in jobs]
    assert process.wait(580) == int(any(failing)), (tmp_path / "output.txt").read_text()

    sweep, message = tmp_path / "sweep", (tmp_path / "output.txt").read_text()
    assert {path.name for path in sweep.iterdir() if path.is_dir()} == {str(number) for number in range(len(jobs))}
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["sweep"]  # no rank creates other folders
    for number, ((count, rank), fails) in enumerate(zip(jobs, failing, strict=True)):
        folder, job = sweep / str(number), record(sweep, "sweep.json")["jobs"][number]
        chosen = {f"trainer.devices={count}", f"+callbacks.bad.rank={rank}", "seed=3", "trainer.max_steps=6"}
        assert chosen <= set(record(folder)["overrides"])
        assert job["status"] == ("failed" if fails else "finished") and (job["exit_code"] == 0) is not fails
        assert (f"Job {number} (trainer.devices={count}" in message) is fails
        images, training_ranks = seen(folder)
        assert training_ranks == set(range(count))
        if not fails:
            assert images == Counter((epoch, index) for epoch in range(count) for index in range(24))
            assert record(folder, "metrics.json")["protocol"]["images"] == 8
    assert message.count("To rerun this job: fcnlab train") == sum(failing)


@pytest.mark.parametrize("devices", ["2", "1,2", "2,1"])
def test_the_basic_launcher_refuses_several_processes_before_any_work(
    fcnlab, small, shapes_root, tmp_path, capsys, devices: str
):
    words = (*small, *STEPS, f"data.root={shapes_root}", "logger=csv", f"trainer.devices={devices}")
    assert fcnlab("train", "-m", *words, "hydra/launcher=basic", "hydra.sweep.dir=sweep") == 1
    assert "does not work with hydra/launcher=basic, which runs all jobs in one process" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


FOUR = ("model=fcn32s,fcn8s", "seed=1,2", "trainer=smoke", "trainer.accelerator=cpu", "logger=wandb",
        "checkpointing.every_n_minutes=0")  # fmt: skip


def wait_for(happened, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def facts(folder: Path) -> list[dict]:
    """Return the scores of four runs, without durations and provenance, except the seed."""
    facts_of_runs = []
    for number in range(4):
        metrics = record(folder / str(number), "metrics.json")
        with np.load(folder / str(number) / "confusions.npz") as kept:
            arrays = {name: kept[name].tolist() for name in kept.files}
        metrics.pop("cost")
        facts_of_runs.append(metrics | {"provenance": metrics["provenance"]["seed"]} | arrays)
    return facts_of_runs


def test_a_killed_and_resumed_sweep_gives_the_same_results(tmp_path, small, shapes_root):
    words = (*small, *FOUR, f"data.root={shapes_root}")
    uninterrupted = start(
        tmp_path, *words, "hydra.sweep.dir=straight", "hydra/launcher=basic"
    )  # imports everything once
    assert uninterrupted.wait(580) == 0
    killed, folder = start(tmp_path, *words, "hydra.sweep.dir=killed"), tmp_path / "killed"
    wait_for(lambda: (folder / "2" / "checkpoints" / "last.ckpt").is_file(), killed)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(20) == -signal.SIGKILL
    assert record(folder, "sweep.json")["status"] == "running"
    resumed = start(tmp_path, "sweep.resume=killed")  # at once: it waits for the jobs, which save their state
    assert resumed.wait(580) == 0, (tmp_path / "output.txt").read_text()

    assert facts(folder) == facts(tmp_path / "straight")
    ran = [record(folder / str(number)) for number in range(4)]
    assert {run["status"] for run in ran} == {"finished"} and ran[2]["starts"] == 2 and ran[0]["starts"] == 1
    assert record(folder, "sweep.json")["status"] == "finished"
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["cache"]  # the counts of the mask classes
    ids = {run["wandb"] for run in ran}
    kept = {path.name.rpartition("-")[2] for path in (folder / "wandb").glob("offline-run-*")}
    assert len(ids) == 4 and ids <= kept  # the run of a killed job is resumed with its id
