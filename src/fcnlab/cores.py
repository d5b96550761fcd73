"""Count the CPU cores that this process may use."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def visible_cores() -> int:
    """Return the number of cores that this process may use: a container or a job can limit it below the machine's."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(bound, max(1, math.ceil(min(_quotas(), default=bound))))


def _quotas() -> Iterator[float]:
    """Yield the CPU quota, in cores, of each Linux control group of this process that has one.

    A container's group may have the name that its host uses: then only the root folder exists, which is the group.
    """
    lines = []
    with suppress(OSError):
        lines = MEMBERSHIP.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / "cpu" if controllers else CGROUPS
        own = root / group.lstrip("/")
        for folder in (own, *own.parents):
            with suppress(OSError, ValueError, ZeroDivisionError):
                quota, period = _version1(folder) if controllers else (folder / "cpu.max").read_text().split()
                if quota not in ("max", "-1"):
                    yield int(quota) / int(period)
            if folder == root:
                break


def _version1(folder: Path) -> tuple[str, str]:
    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    return quota, period
