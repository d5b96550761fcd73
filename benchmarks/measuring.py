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
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import torch

PACKAGES = ("fcnlab", "torch", "numpy", "opencv-python-headless", "pillow", "albumentations", "torchmetrics")
Times = dict[str, np.ndarray]
Found = Mapping[str, Mapping[str, float]]


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


def in_turns(
    variants: Mapping[str, Callable[[int], object]], rounds: int, now: Callable[[], float] = time.process_time
) -> Times:
    """CPU seconds of each variant in each round, which gets its number; one round before goes uncounted."""
    order, times = np.random.default_rng(0), {name: np.zeros(rounds) for name in variants}
    for number in range(-1, rounds):
        for name in order.permutation(list(variants)):
            started = now()
            variants[name](max(number, 0))
            if number >= 0:
                times[name][number] = now() - started
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


def report(
    title: str,
    found: Found,
    json_path: Path | None,
    against: str = "times as fast",
    not_measured: Sequence[str] = (),
) -> None:
    """Print a table with a row for each variant; write it to the file that was asked for.

    A row's ``ratio`` says how many times as fast, or as little, it is (``against``). What else it holds are columns.
    ``not_measured`` are sentences on what this machine lacks.
    """
    facts = environment()
    print(f"{title}\n  {', '.join(f'{key} {value}' for key, value in facts.items())}\n")
    columns = list(dict.fromkeys(key for row in found.values() for key in row if not key.startswith("ratio")))
    table = [["", against, "(quartiles)", *(column.replace("_", " ") for column in columns)]]
    for name, row in found.items():
        table.append([name, f"{row['ratio']:.2f}", spread(row), *(_number(row.get(column)) for column in columns)])
    if found:
        print(_in_columns(table))
    for sentence in not_measured:
        print(f"  Not measured: {sentence}")
    if json_path is not None:
        record = {"title": title, "against": against, "environment": facts, "found": found}
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(record | {"not_measured": list(not_measured)}, indent=2) + "\n")


def spread(row: Mapping[str, float]) -> str:
    """The quartiles of a row; nothing for what was counted."""
    return f"({row['ratio_q25']:.2f} to {row['ratio_q75']:.2f})" if "ratio_q25" in row else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value >= 100 else f"{value:.3g}"


def _in_columns(table: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  " + "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in table
    )


def environment() -> dict[str, str]:
    """What the numbers hang on."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {"processor": _processor(), "python": platform.python_version()} | versions


def _processor() -> str:
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
