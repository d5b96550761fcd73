"""Locks for files that several processes would create."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fcnlab.files.in_place import check_own

log = logging.getLogger("fcnlab")


@contextmanager
def exclusive_lock(lock: Path, doing: str) -> Iterator[None]:
    """Hold a lock, which is released when the process ends; ``doing`` describes the work of the holder.

    Raises
    ------
    OSError
        The lock file cannot be written.
    WriteError
        The lock file is a symbolic or hard link.
    """
    check_own(lock)
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        log.info("Waiting for another process that %s", doing)
        held.acquire()
    try:
        yield
    finally:
        held.release()
