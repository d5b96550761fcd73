"""Who works in a folder: a lock that the system lifts when its process ends, however that was."""

import contextlib
import errno
import fcntl
import logging
import os
import platform
import weakref
from pathlib import Path

from fcnlab.errors import UserError
from fcnlab.files.in_place import open_own

log = logging.getLogger("fcnlab")
NAME = ".lock"
NO_LOCKS = {
    errno.ENOLCK,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EINVAL,
    errno.EBADF,
}  # a file system says by one of them

_held: set[int] = set()  # files that a forked child closes: a worker of the data loader is no holder


def _close_in_child() -> None:
    while _held:
        with contextlib.suppress(OSError):
            os.close(_held.pop())


os.register_at_fork(after_in_child=_close_in_child)


class FolderLock:
    """One process works in a folder. To take the lock changes no file that is there; :meth:`claim` names the holder.

    Raises
    ------
    UserError
        Another process holds it; its file is a link, or no file.
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
                    f"{folder}: {holder} is working there, and two would mix their results: wait until it has ended,"
                    " stop it, or name another folder"
                )
            if _is_at(file, self.path):
                return file, is_new
            os.close(file)  # a refused command has removed it meanwhile

    def claim(self) -> None:
        """Tell others who works here."""
        os.truncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()} on {platform.node()}".encode(), 0)
        self._is_new = False

    def abandon(self) -> None:
        """Leave the folder as it was: a refused command never worked here."""
        if self._is_new and self.release.alive:
            self.path.unlink(missing_ok=True)
        self.release()


def _holder(claim: str) -> str:
    """Who holds a lock, by what is in its file; that may be the claim of an earlier process, which has ended."""
    pid, _, host = claim.partition(" on ")
    ended = host == platform.node() and pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/1").exists()
    return "another process" if not host or ended else f"process {claim}"


def try_lock(file: int, path: Path) -> bool:
    """Whether this process holds the lock of an open file now; with a warning where ``path`` knows no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning(
            "Warning: the file system of %s has no locks (%s): nothing keeps a second process out of this folder",
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
