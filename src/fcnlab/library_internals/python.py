"""Python's standard library: its pickle reader written in Python, queues between processes, headers of tar files.

Tested with Python 3.11.
"""

import pickle
import re
import tarfile
from collections.abc import Callable
from multiprocessing.queues import Queue
from typing import Any

# Python's pickle reader that is written in Python. The public one, in C, allocates as much memory as one number in the
# file requests (the index of a value in its memo), and its opcodes cannot be replaced individually.
PythonUnpickler = pickle._Unpickler


def hand_over_errors(handle: Callable[[Any, Exception, Any], None]) -> None:
    """Call ``handle(queue, error, object)`` in this process if a queue cannot send an object to other processes.

    By default, Python prints the error and continues, while the reader waits. This method is documented for subclasses
    only, and a DataLoader creates its queues itself.
    """
    Queue._on_queue_feeder_error = handle  # pyright: ignore[reportAttributeAccessIssue]  as a method


PAX_RECORD = re.compile(rb"([1-9]\d{0,9}) ")  # the start of a pax record: its length in bytes
MANY_DIGITS = re.compile(rb"\d{100}")


class StrictTarInfo(tarfile.TarInfo):
    """A tar header that raises a ``tarfile.ReadError`` for contents that Python would read without a limit.

    One form of sparse file contains its own map, of any length, which is read together with the header. Pax records
    (``length name=value``) may overlap, so that 60 kB become a gigabyte of names, and the time to search them grows
    with the square of the number of consecutive digits (both in 3.11.7).
    """

    def refuse_sparse(self) -> None:
        raise tarfile.ReadError(f"{self.name!r} is a sparse file, which no data set contains")

    def _proc_gnusparse_10(self, *_: object) -> None:
        self.refuse_sparse()

    def _proc_pax(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        file: Any = tar.fileobj
        content = file.read(self._block(self.size))  # pyright: ignore[reportAttributeAccessIssue]
        _check_pax_records(content[: self.size])
        tar.fileobj = _ReadBefore(tar, file, content)  # pyright: ignore[reportAttributeAccessIssue]
        return super()._proc_pax(tar)  # pyright: ignore[reportAttributeAccessIssue]


class _ReadBefore:
    """Replace the file of a tar until the content that was already read has been returned again."""

    def __init__(self, tar: tarfile.TarFile, file: Any, content: bytes):
        self.tar, self.file, self.content = tar, file, content

    def read(self, _: int) -> bytes:
        self.tar.fileobj = self.file
        return self.content


def _check_pax_records(content: bytes) -> None:
    place = 0
    while place < len(content):
        found = PAX_RECORD.match(content, place)
        end = place + int(found[1]) if found else 0
        record = content[found.end() : end] if found else b""
        if end > len(content) or record[-1:] != b"\n" or record.find(b"=") < 1:
            raise tarfile.ReadError("a header has invalid pax records")
        place = end
    if MANY_DIGITS.search(content):
        raise tarfile.ReadError("a header has more than 100 digits in a row")
