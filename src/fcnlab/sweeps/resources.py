"""How many jobs fit on this machine, and which part of it each gets: GPUs, or cores where there are none."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fcnlab.errors import UserError

SERVER_TIMEOUT = 30.0  # seconds for nvidia-smi, which wakes sleeping GPUs up
ALL = (-1, "-1", "auto")  # what Lightning takes for every device
ROUNDING = 1e-6  # three thirds of a GPU are one


@dataclass(frozen=True)
class Requirement:
    """What one job takes: so many GPUs (0.5: half of one), or, without any, so many processes on the CPU."""

    gpus: float
    processes: int


class ResourcePool:
    """The machine's places: GPUs by name, or ``slots`` on the cores; ``slots`` limits the jobs at a time in any case.

    ``threads`` is each process's share of the cores.
    """

    def __init__(self, gpus: Sequence[str], needs: Sequence[Requirement], slots: int | None, cores: int):
        on_gpu = [need.gpus for need in needs if need.gpus]
        room = int(len(gpus) / min(1.0, *on_gpu) + ROUNDING) if on_gpu else (slots or slots_for(cores))
        self.slots = slots or room
        self.threads = max(1, cores // min(self.slots, room))
        self._free_gpus = dict.fromkeys(gpus, 1.0)
        self._free_slots = self.slots

    def take(self, need: Requirement) -> "Allocation | None":
        """A part of the machine for a job; None while there is no room."""
        gpus, slots = self._gpus(need.gpus), self._slots(need)
        if gpus is None or slots > self._free_slots:
            return None
        for gpu in gpus:
            self._free_gpus[gpu] -= min(1.0, need.gpus)
        self._free_slots -= slots
        return Allocation(tuple(gpus), min(1.0, need.gpus), slots, self.threads, hides=bool(self._free_gpus))

    def give_back(self, share: "Allocation") -> None:
        for gpu in share.gpus:
            self._free_gpus[gpu] += share.of_each
        self._free_slots += share.slots

    def _gpus(self, wanted: float) -> list[str] | None:
        if not wanted:
            return []
        roomy = [gpu for gpu, room in self._free_gpus.items() if room + ROUNDING >= min(1.0, wanted)]
        roomy.sort(key=lambda gpu: -self._free_gpus[gpu])  # an idle GPU before a shared one
        count = max(1, int(wanted))
        return roomy[:count] if len(roomy) >= count else None

    def _slots(self, need: Requirement) -> int:
        """Processes on a CPU are as heavy as so many jobs; what wants more than there is gets all."""
        return 1 if need.gpus else min(need.processes, self.slots)


@dataclass(frozen=True)
class Allocation:
    """A job's part of the machine; ``hides``: there are GPUs beyond it."""

    gpus: tuple[str, ...]
    of_each: float
    slots: int
    threads: int
    hides: bool

    def environment(self) -> dict[str, str]:
        """What makes a process keep to it; threads that the user has fixed stay as they are."""
        own = {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.hides else {}
        return own | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self.threads))}

    def __str__(self) -> str:
        return f"GPU {', '.join(self.gpus)}" if self.gpus else "CPU"


def slots_for(cores: int) -> int:
    """Jobs at a time on cores alone: one on each of the first four, beyond that four cores for each."""
    return max(1, min(cores, 4), cores // 4)


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that this process may use, by the names that ``CUDA_VISIBLE_DEVICES`` takes (numbers, GPU-..., MIG-...).

    That variable is obeyed where it is set; as CUDA does, what stands behind a -1 is left out.
    """
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return listed_gpus()
    names = [name.strip() for name in given.split(",")]
    stop = next((place for place, name in enumerate(names) if name in ("", "-1", "NoDevFiles")), len(names))
    return list(dict.fromkeys(names[:stop]))


def listed_gpus() -> list[str]:
    """What the driver lists; none where there is no driver."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=SERVER_TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return names_in(done.stdout)


def names_in(listing: str) -> list[str]:
    """The UUIDs in ``nvidia-smi -L``; of a GPU that is cut into MIG instances, theirs."""
    found: list[list[str]] = []
    for line in listing.splitlines():
        if uuid := re.search(r"UUID: ((?:GPU|MIG)-[^)\s]+)", line):
            if line.startswith("GPU"):
                found.append([uuid[1]])
            elif found:
                found[-1].append(uuid[1])
    return [name for gpu in found for name in gpu[1:] or gpu]


def requirement_of(trainer: Mapping[str, Any], gpus: Sequence[str], gpus_per_job: Any, job: str) -> Requirement:
    """What a job takes, from its ``trainer`` settings and ``hydra.launcher.gpus_per_job``.

    Raises
    ------
    UserError
        It wants more GPUs than there are, names GPUs that are another job's, or would not use what it is given.
    """
    devices, per_job = trainer.get("devices", "auto"), _number("gpus_per_job", gpus_per_job, least=0)
    on_gpu = bool(gpus) and trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda") and per_job != 0
    count = _devices(devices, len(gpus) if on_gpu else 1, job)
    if not on_gpu:
        return Requirement(0, count)
    wanted = per_job or (len(gpus) if devices in ALL else count)
    if wanted > len(gpus):
        raise UserError(f"{job} wants {wanted:g} GPUs, and there are {len(gpus)}: {', '.join(gpus)}")
    if wanted > 1 and wanted != int(wanted):
        raise UserError(f"hydra.launcher.gpus_per_job={gpus_per_job}: give a whole number, or a part of one GPU")
    if devices not in ALL and count > max(1, wanted):
        raise UserError(
            f"{job}: trainer.devices={devices} is more than hydra.launcher.gpus_per_job={gpus_per_job}: leave that out"
        )
    return Requirement(wanted, max(1, int(wanted)))


def _devices(devices: Any, every: int, job: str) -> int:
    """How many devices Lightning's ``trainer.devices`` means."""
    if devices in ALL:
        return every
    try:
        return int(devices)
    except (TypeError, ValueError):
        raise UserError(
            f"{job}: trainer.devices={devices} names devices, and a job of a sweep sees its own only: give their number"
        ) from None


def slot_limit(slots: Any) -> int | None:
    """``hydra.launcher.slots`` as a number; None: whatever fits."""
    number = _number("slots", slots, least=1)
    if number is not None and number != int(number):
        raise UserError(f"hydra.launcher.slots={slots}: give a whole number of jobs, or auto")
    return None if number is None else int(number)


def _number(name: str, value: Any, least: float) -> float | None:
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < least:
        raise UserError(f"hydra.launcher.{name}={value}: give auto, or a number of at least {least:g}")
    return float(value)
