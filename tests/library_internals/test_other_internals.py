"""Python's own library, and torchmetrics; its imports are tests of tests/test_startup.py."""

import io
import pickle
import tarfile
from multiprocessing import get_context
from multiprocessing.queues import Queue

import pytest
import torch

from fcnlab.library_internals.python import PythonUnpickler, StrictTarInfo, hand_over_errors
from fcnlab.library_internals.torchmetrics import UnsqueezedMetric


def test_the_reader_of_pickles_in_python_takes_opcodes_of_its_own():
    class Counting(PythonUnpickler):
        dispatch = PythonUnpickler.dispatch | {pickle.NONE[0]: lambda self: self.stack.append("none")}

    assert Counting(io.BytesIO(pickle.dumps([1, None]))).load() == [1, "none"]
    assert PythonUnpickler(io.BytesIO(pickle.dumps({"a": (1, 2.0)}))).load() == {"a": (1, 2.0)}


def test_what_a_queue_cannot_send_is_handed_over(monkeypatch):
    monkeypatch.setattr(Queue, "_on_queue_feeder_error", Queue._on_queue_feeder_error)
    hand_over_errors(lambda queue, error, sent: queue.put((type(error).__name__, sent(2))))
    queue = get_context().Queue()
    queue.put(lambda number: number + 1)  # no pickle of a local function
    assert queue.get(timeout=10)[1] == 3
    queue.close()
    queue.join_thread()


def test_a_sparse_file_of_a_tar_is_refused_before_its_map_is_read():
    header = tarfile.TarInfo("big.png")
    header.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "big.png"}
    data = io.BytesIO(header.tobuf(tarfile.PAX_FORMAT) + b"9" * 512 + bytes(1024))
    with pytest.raises(tarfile.ReadError, match="sparse"), tarfile.open(fileobj=data, tarinfo=StrictTarInfo) as tar:
        tar.getmembers()


def test_the_facts_of_a_tar_are_read_as_python_reads_them():
    header = tarfile.TarInfo("x" * 300)
    header.pax_headers = {"comment": "1" * 99 + "=\n", "mtime": "1.25"}
    data = header.tobuf(tarfile.PAX_FORMAT) + tarfile.TarInfo("second").tobuf() + bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(data), tarinfo=StrictTarInfo) as strict:
        found = strict.getmembers()
    with tarfile.open(fileobj=io.BytesIO(data)) as plain:
        meant = plain.getmembers()
    assert [(one.name, one.mtime, one.pax_headers, one.offset) for one in found] == [
        (one.name, one.mtime, one.pax_headers, one.offset) for one in meant
    ]
    assert found[0].pax_headers["comment"] == "1" * 99 + "=\n" and len(found) == 2


def test_a_metric_keeps_its_dimensions():
    class One(UnsqueezedMetric):
        def update(self) -> None: ...

        def compute(self):
            return torch.tensor([5])

        def unsqueezed(self, result):
            self.given = result.shape
            return result.view(-1)

    metric = One()
    metric.update()
    assert metric.compute().shape == (1,) and metric.given == ()
