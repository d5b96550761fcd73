"""Temporary folders that a killed process leaves behind, and the next one removes: held by a lock while in use."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

YOUNGEST = 60.0  # seconds: a folder that has only just been made may not be held yet


@contextmanager
def held_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder below ``parent``, held until it is left and then removed."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    file = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # without locks it is held all the same: nobody else gets one either
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        os.close(file)
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(parent: Path, prefix: str) -> None:
    """Remove this user's folders of that prefix which nobody holds; what cannot be locked or removed stays."""
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError):
            _remove_unless_held(folder)


def _remove_unless_held(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(file)
        if found.st_uid == os.getuid() and time.time() - found.st_mtime > YOUNGEST:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(file)
