"""A terminal that may be closed while a run goes on."""

import errno
import io
from typing import TextIO


class Terminal(io.FileIO):
    """A terminal that may be closed: what is written then is dropped, and is no error of whoever writes it."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return len(memoryview(data).cast("B"))


def lasting(stream: TextIO) -> TextIO:
    """A standard stream that outlives its terminal; any other stream as it is."""
    if not stream.isatty():
        return stream
    raw = Terminal(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=True)
