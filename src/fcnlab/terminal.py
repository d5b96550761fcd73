"""Standard streams that outlive whoever reads them: what a command writes there never ends its work.

Terminals and pipes are closed, disks that a stream is sent to are full, and an encoding may lack a character.
"""

import errno
import io
import os
import select
from contextlib import suppress
from typing import TextIO

READER_GONE = (errno.EIO, errno.EPIPE)  # a closed terminal, a closed pipe: no loss to anybody
LOSSLESS_HANDLERS = ("replace", "backslashreplace", "xmlcharrefreplace", "namereplace")


class Terminal(io.FileIO):
    """A file to which writing never fails: what cannot be written is dropped.

    ``lost`` is the first error that dropped something, unless nobody reads the file any more.
    """

    lost: OSError | None = None

    def write(self, data) -> int:
        try:
            while (written := super().write(data)) is None:  # it does not block, and is full
                select.select([], [self], [])
            return written
        except OSError as error:
            if error.errno not in READER_GONE:
                self.lost = self.lost or error
            return len(memoryview(data).cast("B"))


def open_standard_files() -> None:
    """Open what is closed of standard input, output and errors, as for a daemon, to nowhere.

    Else the next file of ours would have the number of one, and what is printed would be written into it.
    """
    for number in (0, 1, 2):  # a file that is opened has the lowest free number
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)


def keep_writable(stream: TextIO | None, number: int) -> TextIO:
    """A standard stream, None if it was closed, as one that outlives its reader; what is no file stays as it is.

    What its encoding lacks is shown as an escape: ``\\u2713`` of a check mark on an ASCII terminal.
    """
    if stream is None:
        return _text(number, "utf-8", "backslashreplace", line_buffering=False)
    try:
        file = stream.fileno()
    except OSError:  # in memory: a test's
        return stream
    if not isinstance(stream, io.TextIOWrapper):  # a notebook's
        return stream
    with suppress(OSError):
        stream.flush()
    errors = stream.errors if stream.errors in LOSSLESS_HANDLERS else "backslashreplace"
    return _text(file, stream.encoding, errors, line_buffering=stream.line_buffering or stream.write_through)


def _text(file: int, encoding: str, errors: str, *, line_buffering: bool) -> TextIO:
    raw = io.BufferedWriter(Terminal(file, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding, errors, line_buffering=line_buffering)


def print_failure(stream: TextIO) -> str | None:
    """Why not all that was printed could be written; None where it was, or where nobody reads it any more."""
    stream.flush()
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.lost.strerror if isinstance(raw, Terminal) and raw.lost else None
