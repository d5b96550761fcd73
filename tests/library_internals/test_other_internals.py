"""Test the functions for Python's library, torchmetrics and W&B; tests/test_lazy_imports.py tests the imports."""

import io
import pickle
import tarfile
from multiprocessing import get_context
from multiprocessing.queues import Queue

import pytest
import torch

from fcnlab.library_internals.python import PythonUnpickler, StrictTarInfo, hand_over_errors
from fcnlab.library_internals.torchmetrics import UnsqueezedMetric
from fcnlab.library_internals.wandb import has_other_runs, helper_process, was_sent_in_time
from fcnlab.tracking.connection import wandb_logger


def test_the_python_unpickler_accepts_overridden_opcodes():
    class Counting(PythonUnpickler):
        dispatch = PythonUnpickler.dispatch | {pickle.NONE[0]: lambda self: self.stack.append("none")}

    assert Counting(io.BytesIO(pickle.dumps([1, None]))).load() == [1, "none"]
    assert PythonUnpickler(io.BytesIO(pickle.dumps({"a": (1, 2.0)}))).load() == {"a": (1, 2.0)}


def test_errors_of_a_queue_are_handed_over(monkeypatch):
    monkeypatch.setattr(Queue, "_on_queue_feeder_error", Queue._on_queue_feeder_error)
    hand_over_errors(lambda queue, error, sent: queue.put((type(error).__name__, sent(2))))
    queue = get_context().Queue()
    queue.put(lambda number: number + 1)  # a local function cannot be pickled
    assert queue.get(timeout=10)[1] == 3
    queue.close()
    queue.join_thread()


def test_a_sparse_file_of_a_tar_is_refused_before_its_map_is_read():
    header = tarfile.TarInfo("big.png")
    header.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "big.png"}
    data = io.BytesIO(header.tobuf(tarfile.PAX_FORMAT) + b"9" * 512 + bytes(1024))
    with pytest.raises(tarfile.ReadError, match="sparse"), tarfile.open(fileobj=data, tarinfo=StrictTarInfo) as tar:
        tar.getmembers()


def test_tar_headers_are_read_like_by_tarfile():
    header = tarfile.TarInfo("x" * 300)
    header.pax_headers = {"comment": "1" * 99 + "=\n", "mtime": "1.25"}
    data = header.tobuf(tarfile.PAX_FORMAT) + tarfile.TarInfo("second").tobuf() + bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(data), tarinfo=StrictTarInfo) as strict:
        members = strict.getmembers()
    with tarfile.open(fileobj=io.BytesIO(data)) as plain:
        expected = plain.getmembers()
    assert [(member.name, member.mtime, member.pax_headers, member.offset) for member in members] == [
        (member.name, member.mtime, member.pax_headers, member.offset) for member in expected
    ]
    assert members[0].pax_headers["comment"] == "1" * 99 + "=\n" and len(members) == 2


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


def test_w_and_bs_process_and_its_runs_are_found(tmp_path):
    """A run of W&B, offline: its process is the one that W&B has started, and it knows when its end took too long."""
    others = has_other_runs()
    run = wandb_logger(tmp_path, {}, mode="offline").experiment
    process = helper_process()
    assert process is not None and process.poll() is None and "wandb-core" in str(process.args)
    assert has_other_runs()
    run.finish()
    assert was_sent_in_time(run) and has_other_runs() == others
