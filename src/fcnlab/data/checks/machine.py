"""What this machine brings to a training."""

import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch

from fcnlab.cores import visible_cores
from fcnlab.data.checks.report import Finding, Verdict
from fcnlab.data.loader_workers import SHARED_MEMORY, Readers, readers, shared_memory
from fcnlab.runs.provenance import PACKAGES

ABOUT = "this machine"
ROOM = 10 * 2**30  # bytes: best.ckpt and last.ckpt of a VGG16 with its optimiser, one of them twice while it is written


def inspect_machine(
    folder: Path, batch_bytes: int, workers: int, prefetch_factor: int | Literal["auto"]
) -> Iterator[Finding]:
    """The findings about versions, devices, memory and disk; ``folder`` is where runs are written."""
    yield Finding(ABOUT, "versions", Verdict.OK, ", ".join(f"{name} {version}" for name, version in versions()))
    yield Finding(ABOUT, "processor", Verdict.OK, f"{visible_cores()} cores, {workers} workers to load images")
    yield gpu_finding([torch.cuda.get_device_properties(place) for place in range(torch.cuda.device_count())])
    yield disk_finding(folder, shutil.disk_usage(folder).free)
    found = readers(workers, prefetch_factor, batch_bytes)
    if found.lack or SHARED_MEMORY.is_dir():
        yield readers_finding(shared_memory(), found, workers)


def versions() -> list[tuple[str, str]]:
    """Of Python and of the packages that results hang on."""
    return [("Python", platform.python_version()), *((name, metadata.version(name)) for name in PACKAGES)]


def gpu_finding(devices: list) -> Finding:
    """``devices`` as torch describes them."""
    if not devices:
        return Finding(ABOUT, "GPU", Verdict.WARNING, f"none that torch {torch.__version__} can use")
    names = ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in devices)
    return Finding(ABOUT, "GPU", Verdict.OK, names)


def disk_finding(folder: Path, free: int) -> Finding:
    """``free`` bytes where runs are written."""
    text = f"{free / 2**30:.1f} GiB free at {folder}"
    if free < ROOM:
        return Finding(ABOUT, "disk", Verdict.WARNING, f"{text}: a VGG16's checkpoints take up to {ROOM / 2**30:.0f}")
    return Finding(ABOUT, "disk", Verdict.OK, text)


def readers_finding(free: int, found: Readers, wanted: int) -> Finding:
    """Whether all the workers that are wanted can read; ``free`` bytes are there for their batches."""
    if found.lack:
        text = f"{found.workers} of {wanted} workers will read, since {found.lack}"
        return Finding(ABOUT, "shared memory", Verdict.WARNING, text)
    text = f"{free / 2**20:,.0f} MiB free, room for the batches of {wanted} workers"
    return Finding(ABOUT, "shared memory", Verdict.OK, text)
