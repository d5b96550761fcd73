"""How many cores there are to work on."""

import os


def visible_cores() -> int:
    """Those that this process may use: fewer than the machine's in a container or a job that is bound to some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
