"""Standard streams to which writing never fails, so that output never ends a command's work.

A terminal or pipe may be closed, a disk full, and an encoding may lack a character.
"""

import errno
import io
import os
import select
from contextlib import suppress
from typing import TextIO

READER_GONE = (errno.EIO, errno.EPIPE)  # a closed terminal or pipe
LOSSLESS_HANDLERS = ("replace", "backslashreplace", "xmlcharrefreplace", "namereplace")


class Terminal(io.FileIO):
    """A file to which writing never fails: data that cannot be written are dropped.

    ``lost`` is the first error that dropped data, unless the reader has closed the file.
    """

    lost: OSError | None = None

    def write(self, data) -> int:
        try:
            while (written := super().write(data)) is None:  # non-blocking, and full
                select.select([], [self], [])
            return written
        except OSError as error:
            if error.errno not in READER_GONE:
                self.lost = self.lost or error
            return len(memoryview(data).cast("B"))


def open_standard_files() -> None:
    """Open closed standard streams, as of a daemon, to /dev/null.

    Otherwise the next opened file would get the number of one, and printed text would be written into it.
    """
    for number in (0, 1, 2):  # open() takes the lowest free number
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)


def keep_writable(stream: TextIO | None, number: int) -> TextIO:
    """Return a standard stream (None: closed) as one whose writes never fail; a stream without a file stays as it is.

    Characters that its encoding lacks are escaped: ``\\u2713`` for a check mark on an ASCII terminal.
    """
    if stream is None:
        return _text(number, "utf-8", "backslashreplace", line_buffering=False)
    try:
        file = stream.fileno()
    except OSError:  # in memory, as in tests
        return stream
    if not isinstance(stream, io.TextIOWrapper):  # of a notebook
        return stream
    with suppress(OSError):
        stream.flush()
    errors = stream.errors if stream.errors in LOSSLESS_HANDLERS else "backslashreplace"
    return _text(file, stream.encoding, errors, line_buffering=stream.line_buffering or stream.write_through)


def _text(file: int, encoding: str, errors: str, *, line_buffering: bool) -> TextIO:
    raw = io.BufferedWriter(Terminal(file, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding, errors, line_buffering=line_buffering)


def print_failure(stream: TextIO) -> str | None:
    """Return why printed text was lost; None if nothing was lost or the reader is gone."""
    stream.flush()
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.lost.strerror if isinstance(raw, Terminal) and raw.lost else None
