"""Measure what outages of W&B cost a training run: a table of seconds that it waits.

    python tests/tracking/outages.py                       all cases, some ten minutes
    python tests/tracking/outages.py --cases middle/401    some of them

Each case is a small training run, which logs to a server on 127.0.0.1. A run waits while its main thread neither
computes nor is ready to (by Linux' accounting, so that other programs on the machine do not count); what a run with
logger=csv waits is subtracted. The server fails from the start on, once
metrics.csv has a row (middle), or once the scores are written (end). All runs are forks of this process, which has
imported torch and W&B, so imports take no time. A case is right if the run ends with exit code 0 and the scores and
curves of logger=csv, W&B's process ends with it, and ``wandb sync`` uploads as many rows of metrics as without an
outage. The disk of "full disk" is mounted, which needs root.
"""

import argparse
import atexit
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NETRC": "/nonexistent"}
os.environ |= {"WANDB_ERROR_REPORTING": "false"}  # as fcnlab does before it imports W&B

import torch
import wandb.sdk.launch.inputs.internal  # noqa: F401  which wandb.init imports
from wandb.sdk.data_types._private import MEDIA_TMP

sys.path.insert(0, str(Path(__file__).parents[1]))

import fcnlab.tasks.train  # noqa: F401  before forking
from fcnlab.cli import main
from wandb_server import FAULTS, LoopbackServer, loopback_server

torch.set_num_threads(1)

LONGEST = 180  # seconds of a run
SETTINGS = (
    "trainer=smoke", "trainer.accelerator=cpu", "trainer.max_steps=20", "trainer.val_check_interval=10",
    "trainer.log_every_n_steps=1", "callbacks.progress.enabled=false", "callbacks.sample_images.count=3",
    "data.dataset.num_train=8", "data.dataset.num_val=4", "data.dataset.size=64", "data.crop_size=64",
    "data.batch_size=2", "data.num_workers=0", "model.backbone.width=4",
)  # fmt: skip
CASES = (
    "offline", *(f"{point}/{fault}" for point in ("start", "middle", "end") for fault in FAULTS), "full disk",
)  # fmt: skip
CHECKS = ("exit code 0", "same results", "no process left", "wandb sync uploads all rows")


@dataclass
class Ended:
    """How a run ended: how many seconds it took and waited, its exit code, and whether a process of W&B was left."""

    seconds: float
    waited: float
    code: int
    left: bool


def train(folder: Path, root: Path, environment: dict[str, str], *settings: str) -> Ended:
    """Run ``fcnlab train`` in a fork of this process, which has imported everything, and wait for its end."""
    words = ["fcnlab", "train", *SETTINGS, f"data.root={root}", f"hydra.run.dir={folder}", *settings]
    began = time.monotonic()
    pid = os.fork()
    if not pid:
        run(words, root, environment, folder)
    code = None
    while code is None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
        elif time.monotonic() - began > LONGEST:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    seconds = time.monotonic() - began
    time.sleep(0.5)
    busy = float(busy_file(folder).read_text()) if code == 0 else 0.0
    return Ended(seconds, seconds - busy, code, has_helper(pid))


def busy_file(folder: Path) -> Path:
    """Return the file with the seconds in which a run's main thread has computed, or was ready to."""
    return folder.with_suffix(".busy")


def busy_seconds() -> float:
    """Return the seconds in which this process's main thread has computed, or was ready to."""
    computed, ready, _ = Path(f"/proc/self/task/{os.getpid()}/schedstat").read_text().split()
    return (int(computed) + int(ready)) / 1e9


def run(words: list[str], root: Path, environment: dict[str, str], folder: Path) -> NoReturn:
    """Run a command line in this fork, with what Python does at the end of a process."""
    code = 1
    try:
        with folder.with_suffix(".log").open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(root)
        for name in [name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_ERROR_REPORTING"]:
            del os.environ[name]
        os.environ.update(environment)
        Path(MEDIA_TMP.name).mkdir(exist_ok=True)  # an earlier fork has removed it at its end
        sys.argv = words
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        busy_file(folder).write_text(str(busy_seconds()))
        os._exit(code)


def has_helper(pid: int) -> bool:
    """Return whether a wandb-core of a process runs."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if words[0].endswith(b"wandb-core") and str(pid).encode() in words:
                return True
    return False


def is_broken(point: str, folder: Path) -> Callable[[], bool]:
    """Return a function that says whether the server is broken by now, by the files of the run."""
    file = {"middle": folder / "metrics.csv", "end": folder / "metrics.json"}.get(point)
    return lambda: file is None or (file.is_file() and file.stat().st_size > 0)


@contextmanager
def server_of(case: str, folder: Path) -> Iterator[LoopbackServer]:
    point, _, fault = case.partition("/")
    with loopback_server(fault=fault or None, is_broken=is_broken(point, folder)) as server:
        yield server


def synced_rows(folder: Path) -> int | None:
    """Return how many rows of metrics ``wandb sync`` uploads from a run's folder; None for an error."""
    path = (folder / "wandb/latest-run").resolve()  # there is another one if the server did not start a run
    with loopback_server() as server:
        program = [sys.executable, "-m", "wandb", "sync", "--include-online", str(path)]
        done = subprocess.run(program, env=os.environ | server.environment, capture_output=True, timeout=LONGEST)
        return len(server.history()) if done.returncode == 0 else None


def results(folder: Path) -> tuple[object, ...]:
    """Return the scores and curves in a run's folder, without times."""
    record = json.loads((folder / "metrics.json").read_text())
    with (folder / "metrics.csv").open() as file:
        curves = [tuple(row[name] for name in ("step", "train/loss", "val/miou")) for row in csv.DictReader(file)]
    return record["miou"], record["iou"], curves


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a disk that is full once W&B has written a little."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def measure(case: str, work: Path) -> tuple[Ended, Path]:
    folder = work / case.replace("/", "-").replace(" ", "-")
    if case == "csv":
        return train(folder, work, {}, "logger=csv"), folder
    if case == "offline":
        return train(folder, work, {"WANDB_MODE": "offline"}, "logger=default"), folder
    with server_of(case, folder) as server:
        variables = server.environment
        if case.startswith("start"):
            del variables["WANDB_MODE"]  # whether the server responds is found out
        if case == "full disk":
            with small_disk(folder / "wandb"):
                return train(folder, work, variables, "logger=default"), folder
        return train(folder, work, variables, "logger=default"), folder


def measure_all() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=CASES, help=f"of: {', '.join(CASES)}")
    parser.add_argument("--work", type=Path, help="an empty folder for the runs, which stay there")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (words.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        train(work / "warm", work, {}, "logger=csv")  # draws the shapes
        plain, reference = measure("csv", work)
        print(f"logger=csv: {plain.seconds:.1f} s, of which it waits {plain.waited:.1f} s\n")
        print(f"| outage | seconds of waiting | {' | '.join(CHECKS)} |")
        print("|---|---:|---|---|---|---|")
        expected, right = None, True
        for case in ("no outage", *words.cases):
            ended, folder = measure(case, work)
            rows = None if case == "full disk" else synced_rows(folder)
            expected = expected or rows
            checks = (ended.code == 0, results(folder) == results(reference), not ended.left, rows == expected)
            right = right and all(checks[: 3 if case == "full disk" else 4])
            shown = " | ".join("yes" if check else "no" for check in checks)
            print(f"| {case} | {ended.waited - plain.waited:.1f} | {shown} |", flush=True)
    return int(not right)


if __name__ == "__main__":
    sys.exit(measure_all())
