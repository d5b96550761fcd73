"""Ratios measured side by side: in one process, in turns, by the CPU time of one core.

Other work on the machine slows whatever runs at the moment, so nothing is compared across minutes: each round runs
every variant once, in an order of its own (what ran before leaves caches cold), and ratios are taken within the round.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads would spin, and be counted; read when torch loads
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import torch

PACKAGES = ("fcnlab", "torch", "numpy", "opencv-python-headless", "pillow", "albumentations", "torchmetrics")
Times = dict[str, np.ndarray]


def options(about: str | None, **defaults: int | str) -> argparse.Namespace:
    """What the command line says: an option for each default, and where the JSON goes."""
    parser = argparse.ArgumentParser(description=about)
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"default: {value}")
    parser.add_argument("--json", type=Path, default=None, help="write what was measured to this file")
    return parser.parse_args()


def on_one_core() -> None:
    """Keep this process on one core, and every library on one thread."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def in_turns(variants: Mapping[str, Callable[[int], object]], rounds: int) -> Times:
    """CPU seconds of each variant in each round, which gets its number; one round before goes uncounted."""
    order, times = np.random.default_rng(0), {name: np.zeros(rounds) for name in variants}
    for number in range(-1, rounds):
        for name in order.permutation(list(variants)):
            started = time.process_time()
            variants[name](max(number, 0))
            if number >= 0:
                times[name][number] = time.process_time() - started
    return times


def summary(times: Times, reference: str, items: int) -> dict[str, dict[str, float]]:
    """Of each variant: how many times as fast as the reference (median over rounds, and quartiles), and its own pace.

    ``items`` is how many each round handles.
    """
    found = {}
    for name, seconds in times.items():
        low, middle, high = np.percentile(times[reference] / seconds, [25, 50, 75])
        found[name] = {
            "ratio": round(float(middle), 3),
            "ratio_q25": round(float(low), 3),
            "ratio_q75": round(float(high), 3),
            "ms": round(1000 * float(np.median(seconds)) / items, 4),
            "per_second": round(items / float(np.median(seconds)), 1),
        }
    return found


def report(title: str, found: Mapping[str, Mapping[str, float]], json_path: Path | None) -> None:
    """Print the table; write it to the file that was asked for."""
    facts = environment()
    print(f"{title}\n  {', '.join(f'{key} {value}' for key, value in facts.items())}")
    width = max(map(len, found))
    print(f"\n  {'':<{width}}  times as fast (quartiles)     ms  per second and core")
    for name, row in found.items():
        spread = f"({row['ratio_q25']:.2f} to {row['ratio_q75']:.2f})"
        print(f"  {name:<{width}}  {row['ratio']:6.2f}  {spread:<16}  {row['ms']:6.3f}  {row['per_second']:19.0f}")
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps({"title": title, "environment": facts, "found": found}, indent=2) + "\n")


def environment() -> dict[str, str]:
    """What the numbers hang on."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {"processor": _processor(), "python": platform.python_version()} | versions


def _processor() -> str:
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
