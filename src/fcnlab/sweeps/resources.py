"""Allocate this machine's GPUs, or its cores if it has none, to the jobs of a sweep."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fcnlab.errors import UserError

NVIDIA_SMI_TIMEOUT = 30.0  # seconds; nvidia-smi may have to wake sleeping GPUs up
ALL_DEVICES = (-1, "-1", "auto")  # Lightning's values for "every device"
ROUNDING = 1e-6  # so that three thirds of a GPU make one


@dataclass(frozen=True)
class Requirement:
    """The resources that one job needs: GPUs (0.5: half of one) or, with none, processes on the CPU."""

    gpus: float
    processes: int


class ResourcePool:
    """The machine's free resources: GPUs by name and ``slots``, which limit the number of jobs at a time.

    ``threads`` is the number of cores for each process.
    """

    def __init__(self, gpus: Sequence[str], requirements: Sequence[Requirement], slots: int | None, cores: int):
        gpu_shares = [requirement.gpus for requirement in requirements if requirement.gpus]
        capacity = int(len(gpus) / min(1.0, *gpu_shares) + ROUNDING) if gpu_shares else (slots or slots_for(cores))
        self.slots = slots or capacity
        self.threads = max(1, cores // min(self.slots, capacity))
        self._free_gpus = dict.fromkeys(gpus, 1.0)
        self._free_slots = self.slots

    def take(self, requirement: Requirement) -> "Allocation | None":
        """Allocate resources to a job; return None while too few are free."""
        gpus, slots = self._gpus(requirement.gpus), self._slots(requirement)
        if gpus is None or slots > self._free_slots:
            return None
        fraction = min(1.0, requirement.gpus)
        for gpu in gpus:
            self._free_gpus[gpu] -= fraction
        self._free_slots -= slots
        return Allocation(tuple(gpus), fraction, slots, self.threads, has_gpus=bool(self._free_gpus))

    def release(self, allocation: "Allocation") -> None:
        for gpu in allocation.gpus:
            self._free_gpus[gpu] += allocation.gpu_fraction
        self._free_slots += allocation.slots

    def _gpus(self, requested: float) -> list[str] | None:
        if not requested:
            return []
        fitting = [gpu for gpu, free in self._free_gpus.items() if free + ROUNDING >= min(1.0, requested)]
        fitting.sort(key=lambda gpu: -self._free_gpus[gpu])  # an idle GPU before a shared one
        count = max(1, int(requested))
        return fitting[:count] if len(fitting) >= count else None

    def _slots(self, requirement: Requirement) -> int:
        """Return one slot for a GPU job, else one for each process; a job with more processes than slots gets all."""
        return 1 if requirement.gpus else min(requirement.processes, self.slots)


@dataclass(frozen=True)
class Allocation:
    """The resources of one job; ``has_gpus``: the machine has GPUs, so the job must be kept off those of others."""

    gpus: tuple[str, ...]
    gpu_fraction: float
    slots: int
    threads: int
    has_gpus: bool

    def environment(self) -> dict[str, str]:
        """Return the variables that keep a process to its resources; a number of threads set by the user stays."""
        devices = {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.has_gpus else {}
        return devices | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self.threads))}

    def __str__(self) -> str:
        return f"GPU {', '.join(self.gpus)}" if self.gpus else "CPU"


def slots_for(cores: int) -> int:
    """Return the number of jobs at a time on a CPU: one per core up to 4, from 16 cores on one per 4 cores."""
    return max(1, min(cores, 4), cores // 4)


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Return the GPUs that this process may use, as named in ``CUDA_VISIBLE_DEVICES`` (numbers, GPU-..., MIG-...).

    If that variable is set, it limits them; as in CUDA, entries behind a -1 are ignored.
    """
    devices = environment.get("CUDA_VISIBLE_DEVICES")
    if devices is None:
        return list_gpus()
    names = [name.strip() for name in devices.split(",")]
    stop = next((place for place, name in enumerate(names) if name in ("", "-1", "NoDevFiles")), len(names))
    return list(dict.fromkeys(names[:stop]))


def list_gpus() -> list[str]:
    """Return the GPUs that the driver lists; none if there is no driver."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return gpu_uuids(done.stdout)


def gpu_uuids(listing: str) -> list[str]:
    """Return the UUIDs in the output of ``nvidia-smi -L``; for a GPU with MIG instances, those of the instances."""
    gpus: list[list[str]] = []
    for line in listing.splitlines():
        if uuid := re.search(r"UUID: ((?:GPU|MIG)-[^)\s]+)", line):
            if line.startswith("GPU"):
                gpus.append([uuid[1]])
            elif gpus:
                gpus[-1].append(uuid[1])
    return [name for gpu in gpus for name in gpu[1:] or gpu]


def requirement_of(trainer: Mapping[str, Any], gpus: Sequence[str], gpus_per_job: Any, job: str) -> Requirement:
    """Return the resources that a job needs, from its ``trainer`` settings and ``hydra.launcher.gpus_per_job``.

    Raises
    ------
    UserError
        The job needs more GPUs than there are, names GPUs by index, or would not use all of its GPUs.
    """
    devices, per_job = trainer.get("devices", "auto"), _checked_number("gpus_per_job", gpus_per_job, least=0)
    on_gpu = bool(gpus) and trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda") and per_job != 0
    count = _device_count(devices, len(gpus) if on_gpu else 1, job)
    if not on_gpu:
        return Requirement(0, count)
    requested = per_job or (len(gpus) if devices in ALL_DEVICES else count)
    if requested > len(gpus):
        raise UserError(f"{job} needs {requested:g} GPUs, but only {len(gpus)} are visible: {', '.join(gpus)}")
    if requested > 1 and requested != int(requested):
        raise UserError(
            f"hydra.launcher.gpus_per_job={gpus_per_job} must be a whole number, or at most 1 for a part of one GPU"
        )
    if devices not in ALL_DEVICES and count > max(1, requested):
        raise UserError(
            f"{job}: trainer.devices={devices} exceeds hydra.launcher.gpus_per_job={gpus_per_job}. Leave"
            " hydra.launcher.gpus_per_job out"
        )
    return Requirement(requested, max(1, int(requested)))


def _device_count(devices: Any, available: int, job: str) -> int:
    """Return the number of devices that Lightning's ``trainer.devices`` stands for."""
    if devices in ALL_DEVICES:
        return available
    try:
        return int(devices)
    except (TypeError, ValueError):
        raise UserError(
            f"{job}: trainer.devices={devices} lists devices, but the sweep assigns the devices of its jobs. Give the"
            " number of devices"
        ) from None


def slot_limit(slots: Any) -> int | None:
    """Return ``hydra.launcher.slots`` as a number; None for "auto"."""
    number = _checked_number("slots", slots, least=1)
    if number is not None and number != int(number):
        raise UserError(f"hydra.launcher.slots={slots} must be auto or a whole number of jobs")
    return None if number is None else int(number)


def _checked_number(name: str, value: Any, least: float) -> float | None:
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < least:
        raise UserError(f"hydra.launcher.{name}={value} must be auto or a number of at least {least:g}")
    return float(value)
