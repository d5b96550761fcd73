"""Python's own library: its pickle reader that is written in Python, queues between processes, sparse tar files.

Seen to work with Python 3.11.
"""

import pickle
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


class NoSparseFiles(tarfile.TarInfo):
    """A header of a tar that refuses sparse files, by a ``tarfile.ReadError``.

    A file of this form holds its own map, of any length, which Python reads as soon as it meets the header.
    """

    def refuse_sparse(self) -> None:
        raise tarfile.ReadError(f"{self.name!r} is a sparse file, which no data set holds")

    def _proc_gnusparse_10(self, *_: object) -> None:
        self.refuse_sparse()
