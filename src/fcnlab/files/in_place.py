"""Opening files that are written in place, which must be no links, devices or hard links."""

import errno
import os
import stat
from pathlib import Path

from fcnlab.errors import WriteError


def open_own(path: Path, flags: int) -> int:
    """Return the descriptor of a file that is written in place; the file is created if it does not exist.

    Raises
    ------
    WriteError
        The path is a symbolic link, no regular file, or a hard link to another file.
    """
    try:
        file = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise _not_regular(path) from error
    try:
        _check(path, os.fstat(file))
    except WriteError:
        os.close(file)
        raise
    return file


def check_own(path: Path) -> None:
    """Raise what :func:`open_own` would raise, without creating the file."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    _check(path, status)


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _not_regular(path)
    if status.st_nlink > 1:  # 0: removed meanwhile
        raise WriteError(
            f"{path} is a hard link: writing to it would change another file, too. Work in a copy of"
            f" {path.parent} (cp -r), or replace the link by a copy of the file"
        )


def _not_regular(path: Path) -> WriteError:
    return WriteError(f"{path} is a link, or not a regular file, and is not written to. Remove it if it is yours")
