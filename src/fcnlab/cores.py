"""How many cores there are to work on."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def visible_cores() -> int:
    """Those that this process may use: fewer than the machine's in a container or a job that is bound to some, or that
    has a quota of their time.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(bound, max(1, math.ceil(min(_quotas(), default=bound))))


def _quotas() -> Iterator[float]:
    """The cores' worth of time that Linux allows to each control group that this process is in, where it limits it.

    A container's own group may be named as its host sees it: then only the root, which is the group itself, is there.
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
