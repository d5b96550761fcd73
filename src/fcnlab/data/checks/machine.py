"""Check the machine for training: versions, devices, memory and disk."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch

from fcnlab.cores import visible_cores
from fcnlab.data.checks.report import Finding, Verdict
from fcnlab.data.loader_workers import SHARED_MEMORY, Readers, readers, shared_memory
from fcnlab.runs.provenance import versions

ABOUT = "this machine"
ROOM = 10 * 2**30  # bytes: best.ckpt and last.ckpt of a VGG16 with its optimizer, and a temporary copy


def inspect_machine(
    folder: Path, batch_bytes: int, workers: int, prefetch_factor: int | Literal["auto"]
) -> Iterator[Finding]:
    """Yield the findings on versions, devices, memory and disk; ``folder`` is where runs are written."""
    packages = versions()
    python = packages.pop("python")
    shown = ", ".join([f"Python {python}", *(f"{name} {version}" for name, version in packages.items())])
    yield Finding(ABOUT, "versions", Verdict.OK, shown)
    yield Finding(ABOUT, "processor", Verdict.OK, f"{visible_cores()} cores, {workers} workers to load images")
    yield gpu_finding([torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())])
    yield disk_finding(folder, shutil.disk_usage(folder).free)
    allocation = readers(workers, prefetch_factor, batch_bytes)
    if allocation.lack or SHARED_MEMORY.is_dir():
        yield readers_finding(shared_memory(), allocation, workers)


def gpu_finding(devices: list) -> Finding:
    """Return the finding on GPUs; ``devices`` are torch's device properties."""
    if not devices:
        return Finding(ABOUT, "GPU", Verdict.WARNING, f"no GPU available to torch {torch.__version__}")
    names = ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in devices)
    return Finding(ABOUT, "GPU", Verdict.OK, names)


def disk_finding(folder: Path, free: int) -> Finding:
    """Return the finding on the disk with ``free`` bytes where runs are written."""
    text = f"{free / 2**30:.1f} GiB free at {folder}"
    if free < ROOM:
        return Finding(
            ABOUT, "disk", Verdict.WARNING, f"{text}: the checkpoints of a VGG16 need up to {ROOM / 2**30:.0f} GiB"
        )
    return Finding(ABOUT, "disk", Verdict.OK, text)


def readers_finding(free: int, allocation: Readers, requested: int) -> Finding:
    """Return the finding on workers; ``free`` bytes of shared memory are available for their batches."""
    if allocation.lack:
        text = f"only {allocation.workers} of {requested} workers can be used, because {allocation.lack}"
        return Finding(ABOUT, "shared memory", Verdict.WARNING, text)
    text = f"{free / 2**20:,.0f} MiB free, enough for the batches of {requested} workers"
    return Finding(ABOUT, "shared memory", Verdict.OK, text)
