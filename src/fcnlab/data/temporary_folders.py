"""Temporary folders, locked while in use; leftovers of killed processes are removed by the next process."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

YOUNGEST = 60.0  # seconds: a younger folder may not be locked yet


@contextmanager
def held_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield a new locked folder below ``parent``, which is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    file = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # without locks, no other process can lock it either
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        os.close(file)
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(parent: Path, prefix: str) -> None:
    """Remove this user's unlocked folders with a prefix; folders that cannot be locked or removed stay."""
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError):
            _remove_unless_held(folder)


def _remove_unless_held(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(file)
        if status.st_uid == os.getuid() and time.time() - status.st_mtime > YOUNGEST:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(file)
