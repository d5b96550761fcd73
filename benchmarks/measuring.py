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
    """What the command line says: an option for each default, and those that ``fcnlab bench`` gives to every claim.

    From here on a script that nobody reads any more measures on.
    """
    sys.stdout, sys.stderr = keep_writable(sys.stdout, 1), keep_writable(sys.stderr, 2)
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"default: {value}")
    parser.add_argument("--threads", type=int, default=1, help="cores to work on; default: 1")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="of what can run on a GPU")
    parser.add_argument("--json", type=Path, default=None, help="write what was measured to this file")
    return parser.parse_args()


def on_cores(number: int = 1) -> None:
    """Keep this process on so many cores, and every library on as many threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:number])
    torch.set_num_threads(number)
    cv2.setNumThreads(0)


def chosen_device(asked: str) -> torch.device:
    """The GPU where there is one, unless something else was asked for."""
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise SystemExit("device=cuda: torch sees no GPU here; choose auto or cpu")
    return torch.device("cuda" if there and asked != "cpu" else "cpu")


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds of a core's work; on a GPU, of the time until it has done what it was given."""
    if device.type == "cpu":
        return time.process_time

    def finished() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return finished


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


def peak_mib(work: Callable[[], object]) -> float:
    """MiB that this process held at most during ``work``, over what it held before; right in a fresh process alone.

    What was used and freed before would be used again and not be counted: see :func:`in_child`.
    """
    before = _held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far: proc(5)
    work()
    return _held("VmHWM") - before


def _held(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) / 1024


def in_child(script: str, variant: str, threads: int = 1) -> float:
    """The number that a claim's script prints last for ``--variant``, in a process that gives back what it frees."""
    words = [sys.executable, script, "--variant", variant, "--threads", str(threads)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # bytes; by itself it grows: mallopt(3)
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


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
