"""One process at a time where several would make the same files."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fcnlab.files.in_place import check_own

log = logging.getLogger("fcnlab")


@contextmanager
def exclusive_lock(lock: Path, doing: str) -> Iterator[None]:
    """Hold a lock, which ends with the process that holds it; ``doing`` is what another one is waited for.

    Raises
    ------
    OSError
        The lock's file cannot be written.
    NotWritten
        It is a link, or another file as well.
    """
    check_own(lock)
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        log.info("Another process %s: waiting for it", doing)
        held.acquire()
    try:
        yield
    finally:
        held.release()
