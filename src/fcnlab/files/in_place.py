"""Files that are written in place: no link, no device, and no second name of another file."""

import errno
import os
import stat
from pathlib import Path

from fcnlab.errors import WriteError


def open_own(path: Path, flags: int) -> int:
    """The number of a file that is written in place, made where it is not there.

    Raises
    ------
    NotWritten
        It is a link, whose target would be written to, or no file; or a file elsewhere is the same one (a hard link).
    """
    try:
        file = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise _is_no_file(path) from error
    try:
        _check(path, os.fstat(file))
    except WriteError:
        os.close(file)
        raise
    return file


def check_own(path: Path) -> None:
    """Before any work: raise what :func:`open_own` would raise of a file that may not be there yet."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    _check(path, found)


def _check(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _is_no_file(path)
    if found.st_nlink > 1:  # 0: somebody has removed it meanwhile
        raise WriteError(
            f"{path} is a hard link: it is one file with another, which would change, too, so that it is not written"
            f" to. Work in a copy of {path.parent} (cp -r), or put a copy of the file in its place"
        )


def _is_no_file(path: Path) -> WriteError:
    return WriteError(f"{path} is a link, or no file: it is not written to. Remove it, if it is yours")
