"""Locks on folders, which the system releases when their process ends in any way."""

import contextlib
import errno
import fcntl
import logging
import os
import platform
import time
import weakref
from pathlib import Path
from typing import NamedTuple

from fcnlab.errors import UserError
from fcnlab.files.in_place import open_own
from fcnlab.files.reading import Unreadable, open_regular

log = logging.getLogger("fcnlab")
NAME = ".lock"
NO_LOCKS = {
    errno.ENOLCK,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EINVAL,
    errno.EBADF,
}  # errors of file systems without locks

PROCESSES = Path("/proc")
CLOCK_ERROR = 60.0  # seconds by which the clocks of a file server and of this machine may differ

_held: set[int] = set()  # a forked child, such as a data loader worker, closes these files, because it holds no lock


def _close_in_child() -> None:
    while _held:
        with contextlib.suppress(OSError):
            os.close(_held.pop())


os.register_at_fork(after_in_child=_close_in_child)


class FolderLock:
    """A lock for the only process that works in a folder. Taking it changes no file; :meth:`claim` records the holder.

    Raises
    ------
    UserError
        Another process holds it; its file is a link, or not a regular file.
    """

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self._file, self._is_new = self._taken(folder)
        _held.add(self._file)
        self.release = weakref.finalize(self, _release, self._file)

    def _taken(self, folder: Path) -> tuple[int, bool]:
        while True:
            is_new = not self.path.exists()
            file = open_own(self.path, os.O_RDWR)
            if not try_lock(file, self.path):
                holder = _holder(os.read(file, 300).decode(errors="replace"))
                os.close(file)
                raise UserError(
                    f"{folder}: {holder} is working there, and two processes would mix their results. Wait until it"
                    " ends, stop it, or choose another folder"
                )
            if _is_at(file, self.path):
                return file, is_new
            os.close(file)  # removed meanwhile by a refused command

    def claim(self) -> None:
        """Record this process as the holder, and keep the file from now on."""
        self.record_holder()
        self._is_new = False

    def record_holder(self) -> None:
        """Record this process as the holder, for the messages of others."""
        os.truncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()} on {platform.node()}".encode(), 0)

    def abandon(self) -> None:
        """Release the lock of a refused command, and leave the folder as it was."""
        if self._is_new and self.release.alive:
            self.path.unlink(missing_ok=True)
        self.release()


def _holder(claim: str) -> str:
    """Return the holder of a lock by its claim, which may be that of an earlier process."""
    pid, _, host = claim.partition(" on ")
    ended = host == platform.node() and pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/1").exists()
    return "another process" if not host or ended else f"process {claim}"


class Holder(NamedTuple):
    """The process that last claimed a folder; ``is_alive`` is None where it cannot be known from this machine."""

    process: int
    host: str
    is_alive: bool | None


def read_holder(folder: Path) -> Holder | None:
    """Return the holder of a folder by its claim, without taking the lock; None if no process has claimed it.

    A reader that tried the lock could hold it just when a run starts, and the run would be refused.
    """
    try:
        with open_regular(folder / NAME) as file:
            process, _, host = file.read(300).decode(errors="replace").partition(" on ")
            claimed = os.fstat(file.fileno()).st_mtime
    except (OSError, Unreadable):
        return None
    if not (process.isascii() and process.isdigit() and len(process) < 10 and host):
        return None
    if host != platform.node() or not (PROCESSES / "self").exists():
        return Holder(int(process), host, None)
    began = process_start(int(process))
    # A process that began after the claim is another one with the same number.
    return Holder(int(process), host, began is not None and began <= claimed + CLOCK_ERROR)


def process_start(process: int) -> float | None:
    """Return when a process of this machine began, in seconds since 1970; None if it has ended."""
    try:
        state, *fields = (PROCESSES / str(process) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if state in ("Z", "X"):  # ended, and not yet awaited by its parent
        return None
    ticks = int(fields[18])  # since the machine was started
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def try_lock(file: int, path: Path) -> bool:
    """Try to lock an open file; return whether this process holds the lock. Warn if the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning(
            "Warning: the file system of %s has no locks (%s), so a second process could work in this folder",
            path,
            error.strerror,
        )
    return True


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _release(file: int) -> None:
    _held.discard(file)
    os.close(file)
