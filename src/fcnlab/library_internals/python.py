"""Python's own library: its pickle reader that is written in Python, queues between processes, headers of tar files.

Seen to work with Python 3.11.
"""

import pickle
import re
import tarfile
from collections.abc import Callable
from multiprocessing.queues import Queue
from typing import Any

# Python's reader of pickles that is written in Python. The public one, in C, takes as much memory as a file asks for
# by one number (the place of a value in its memo), and its opcodes cannot be replaced one by one.
PythonUnpickler = pickle._Unpickler


def hand_over_errors(handle: Callable[[Any, Exception, Any], None]) -> None:
    """In this process, call ``handle(queue, error, object)`` where a queue cannot send an object to other processes.

    Python prints the error and goes on, while the reader waits; it names this method for subclasses alone, and a
    DataLoader makes its queues itself.
    """
    Queue._on_queue_feeder_error = handle  # pyright: ignore[reportAttributeAccessIssue]  as a method


FACT = re.compile(rb"([1-9]\d{0,9}) ")  # how a fact of pax begins: with its length in bytes
MANY_DIGITS = re.compile(rb"\d{100}")


class StrictTarInfo(tarfile.TarInfo):
    """A header of a tar that refuses, by a ``tarfile.ReadError``, what Python reads without an end.

    A sparse file of one form holds its own map, of any length, which is read as soon as the header is met. Facts of
    pax (``length name=value``) may lie inside of each other, which makes of 60 kB a gigabyte of names, and are searched
    in a time that grows with the square of digits in a row (both in 3.11.7).
    """

    def refuse_sparse(self) -> None:
        raise tarfile.ReadError(f"{self.name!r} is a sparse file, which no data set holds")

    def _proc_gnusparse_10(self, *_: object) -> None:
        self.refuse_sparse()

    def _proc_pax(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        file: Any = tar.fileobj
        content = file.read(self._block(self.size))  # pyright: ignore[reportAttributeAccessIssue]
        _check_facts(content[: self.size])
        tar.fileobj = _ReadBefore(tar, file, content)  # pyright: ignore[reportAttributeAccessIssue]
        return super()._proc_pax(tar)  # pyright: ignore[reportAttributeAccessIssue]


class _ReadBefore:
    """Stands for the file of a tar until what was read of it already is read once more."""

    def __init__(self, tar: tarfile.TarFile, file: Any, content: bytes):
        self.tar, self.file, self.content = tar, file, content

    def read(self, _: int) -> bytes:
        self.tar.fileobj = self.file
        return self.content


def _check_facts(content: bytes) -> None:
    place = 0
    while place < len(content):
        found = FACT.match(content, place)
        end = place + int(found[1]) if found else 0
        fact = content[found.end() : end] if found else b""
        if end > len(content) or fact[-1:] != b"\n" or fact.find(b"=") < 1:
            raise tarfile.ReadError("a header has facts that are none")
        place = end
    if MANY_DIGITS.search(content):
        raise tarfile.ReadError("a header has more than 100 digits in a row")
