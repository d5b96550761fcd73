"""The start-up time of a training run until its first step, as a multiple of the time of ``import torch``.

python benchmarks/startup.py            about two minutes; more --rounds for a smaller spread

Fresh interpreters in alternation. The result is the CPU time (user and system) of each, with the processes for which it
waits, such as git, from its start until Lightning begins to fit, or until the import is complete. The images are
generated and all files are read once before. W&B's own process is not counted, since nothing waits for it.
"""

import measuring  # first: it sets what the libraries read when they are loaded  # isort: skip

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

TORCH = "import torch"
IMPORTS = (TORCH, "import lightning.pytorch")
UNTRAINED = ("model.backbone.weights=none",)
JOBS = {
    "fcnlab --help": ("--help",),
    "fcnlab train --cfg job": ("train", "--cfg", "job"),
    "fcnlab train logger=csv": ("train", "logger=csv"),
    "fcnlab train": ("train",),
    "… model/backbone=googlenet logger=csv": ("train", "model/backbone=googlenet", *UNTRAINED, "logger=csv"),
    "… model/backbone=resnet50 logger=csv": ("train", "model/backbone=resnet50", *UNTRAINED, "logger=csv"),
}


def start(words: Sequence[str], folder: Path, number: int) -> None:
    """Run Python until it ends."""
    here = str(Path(__file__).parent)
    paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "WANDB_MODE": "offline"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True)
    if done.returncode:
        sys.exit(done.stderr.decode(errors="replace") or done.stdout.decode(errors="replace"))


def words_of(job: Sequence[str], folder: Path) -> list[str]:
    """Return Python's arguments for an fcnlab command; a training run ends when Lightning begins to fit."""
    begins = ["+callbacks.begins._target_=fit_begins.FitBegins", f"data.root={folder}/shapes"]
    return ["-m", "fcnlab", *job, *(begins if job[0] == "train" and "--cfg" not in job else [])]


def measure(rounds: int, folder: Path) -> dict[str, dict[str, float]]:
    interpreters: dict[str, list[str]] = {code: ["-c", f"{code}, os; os._exit(0)"] for code in IMPORTS}
    interpreters |= {name: words_of(job, folder) for name, job in JOBS.items()}
    variants: dict[str, Callable[[int], object]] = {
        name: partial(start, words, folder) for name, words in interpreters.items()
    }
    times = measuring.in_turns(variants, rounds, children)
    return {name: times_torch(times, name) for name in times}


def children() -> float:
    """Return the CPU seconds of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def times_torch(times: measuring.Times, name: str) -> dict[str, float]:
    low, middle, high = np.percentile(times[name] / times[TORCH], [25, 50, 75]).round(3).tolist()
    return {"ratio": middle, "ratio_q25": low, "ratio_q75": high, "seconds": round(float(np.median(times[name])), 3)}


def main() -> None:
    args = measuring.options(__doc__, rounds=3)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        found = measure(args.rounds, Path(folder))
    measuring.report("Start-up", found, args.json, against=f"times {TORCH}")


if __name__ == "__main__":
    main()
