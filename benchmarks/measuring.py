"""Measure ratios side by side: in one process, in alternation, by CPU time.

Other work on the machine slows down whatever runs at the moment, so times are never compared across minutes: each round
runs every variant once, in random order (the previous variant affects the caches), and ratios are taken per round.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads would spin, and be counted; read when torch loads
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import torch

from fcnlab.terminal import keep_writable

PACKAGES = (
    *("fcnlab", "torch", "torchvision", "numpy", "opencv-python-headless", "pillow", "albumentations", "torchmetrics"),
    *("torchfcn", "segmentation-models-pytorch"),  # rivals, where they are installed
)
DEVICES = ("auto", "cpu", "cuda")
Times = dict[str, np.ndarray]
Found = Mapping[str, Mapping[str, float]]


def options(about: str | None, **defaults: int | str) -> argparse.Namespace:
    """Parse the command line: an option for each default, and those that ``fcnlab bench`` passes to every benchmark.

    From here on, the script continues even if its output is closed.
    """
    sys.stdout, sys.stderr = keep_writable(sys.stdout, 1), keep_writable(sys.stderr, 2)
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"default: {value}")
    parser.add_argument("--threads", type=int, default=1, help="number of cores; default: 1")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="device of the parts that can run on a GPU")
    parser.add_argument("--json", type=Path, default=None, help="write the results to this file")
    return parser.parse_args()


def on_cores(number: int = 1) -> None:
    """Restrict this process to this number of cores, and every library to as many threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:number])
    torch.set_num_threads(number)
    cv2.setNumThreads(0)


def chosen_device(name: str) -> torch.device:
    """Return the device: with ``auto``, the GPU if there is one."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise SystemExit("device=cuda: torch finds no GPU; choose auto or cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def clock(device: torch.device) -> Callable[[], float]:
    """Return a clock: CPU time in seconds, or on a GPU the wall time after synchronisation."""
    if device.type == "cpu":
        return time.process_time

    def finished() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return finished


def in_turns(
    variants: Mapping[str, Callable[[int], object]], rounds: int, now: Callable[[], float] = time.process_time
) -> Times:
    """Return the seconds of each variant in each round, after one round of warm-up; variants get the round's number."""
    order, times = np.random.default_rng(0), {name: np.zeros(rounds) for name in variants}
    for number in range(-1, rounds):
        for name in order.permutation(list(variants)):
            started = now()
            variants[name](max(number, 0))
            if number >= 0:
                times[name][number] = now() - started
    return times


def summary(times: Times, reference: str, items: int) -> dict[str, dict[str, float]]:
    """Return the speed of each variant relative to the reference (median over rounds, quartiles), and its pace.

    ``items`` is the number of items per round.
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


def peak_mib(work: Callable[[], object]) -> float:
    """Return the increase of this process's memory during ``work``, at its peak, in MiB; use a fresh process.

    In another process, freed memory would be reused without being counted: see :func:`in_child`.
    """
    before = _held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak: proc(5)
    work()
    return _held("VmHWM") - before


def _held(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def in_child(script: str, variant: str, threads: int = 1) -> float:
    """Return the last number that a script prints for ``--variant``, in a process that returns freed memory."""
    words = [sys.executable, script, "--variant", variant, "--threads", str(threads)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # bytes; otherwise it grows: mallopt(3)
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def report(
    title: str,
    found: Found,
    json_path: Path | None,
    against: str = "times as fast",
    not_measured: Sequence[str] = (),
) -> None:
    """Print a table with a row for each variant, and write it to ``json_path``.

    A row's ``ratio`` has the meaning ``against``, such as "times as fast"; its other values are columns.
    ``not_measured`` are messages on missing packages or devices.
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
    """Return the quartiles of a row; an empty text where the ratio was counted, not timed."""
    return f"({row['ratio_q25']:.2f} to {row['ratio_q75']:.2f})" if "ratio_q25" in row else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value >= 100 else f"{value:.3g}"


def _in_columns(table: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  " + "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in table
    )


def environment() -> dict[str, str]:
    """Return the machine and the versions on which the results depend."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    machine = {"processor": _processor(), "threads": str(torch.get_num_threads())} | gpu
    return machine | {"python": platform.python_version()} | dict(_versions())


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            yield name, metadata.version(name)


def _processor() -> str:
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
