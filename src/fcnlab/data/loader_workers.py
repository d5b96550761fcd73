"""Worker processes of a loader: their number on this machine, and how they transfer batches."""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from fcnlab.cores import visible_cores
from fcnlab.data.image_files import DataError
from fcnlab.errors import first_line
from fcnlab.library_internals.python import hand_over_errors
from fcnlab.library_internals.torch import error_of_worker
from fcnlab.signals import STOPPING

Batch = dict[str, Tensor]
SHARED_MEMORY = Path("/dev/shm")
MOST_AHEAD = 4  # limit on batches that a worker prefetches
IN_HAND = 2  # batches in the main process: the current and the next one
# Open files of the process: per batch (one per tensor), per worker, and for the loader itself.
TENSORS, PIPES_OF_A_WORKER, PIPES_AND_THEIR_LIKE = 3, 4, 8


class Loader(DataLoader):
    """torch's DataLoader without the warning about more workers than cores, which the user chose.

    ``waited`` is the number of seconds that this process has waited for batches.
    """

    waited = 0.0

    def __iter__(self) -> Iterator[Any]:
        return self._timed(super().__iter__())

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        begun = time.perf_counter()
        for batch in batches:
            self.waited += time.perf_counter() - begun
            yield batch
            begun = time.perf_counter()

    def check_worker_number_rationality(self) -> None:
        """Suppress torch's warning about more workers than cores."""


def to_shared_memory(batch: Batch) -> Batch:
    """Move a worker's batch to shared memory; torch does so in a thread, whose errors are lost, so that the run hangs.

    Raises
    ------
    DataError
        There is too little shared memory.
    """
    if get_worker_info() is None:
        return batch
    try:
        return {key: value.share_memory_() for key, value in batch.items()}
    except RuntimeError as error:
        size = sum(value.nbytes for value in batch.values()) / 2**20
        raise DataError(
            f"a worker cannot transfer a batch of {size:.1f} MiB ({first_line(error)}): set num_workers=0"
            f" (data.num_workers=0 in training), or increase {SHARED_MEMORY}, such as by docker run --shm-size=8g"
        ) from error


def worker_count(requested: int | Literal["auto"]) -> int:
    """Return the number of workers; ``"auto"`` is one per available core, at most 8.

    If set, ``OMP_NUM_THREADS`` limits the cores, because several runs may share a machine.
    """
    cores = visible_cores()
    share = os.environ.get("OMP_NUM_THREADS", "")
    return min(8, cores, max(1, int(share)) if share.isdigit() else cores) if requested == "auto" else int(requested)


class Readers(NamedTuple):
    """The number of workers, and of batches that each prefetches (None without workers).

    ``lack`` explains why there are fewer workers than requested, and what to do.
    """

    workers: int
    ahead: int | None
    lack: str = ""


def readers(workers: int, wanted: int | Literal["auto"], batch_bytes: int) -> Readers:
    """Return the workers and prefetched batches (``"auto"``: up to 4) that fit into half of the free resources.

    The resources are shared memory (only 64 MB in many containers) and open files, by which workers transfer batches.
    The other half is left for another split.
    """
    if workers == 0:
        return Readers(0, None)
    if why := why_workers_are_unavailable():
        return Readers(
            0, None, f"memory cannot be shared with workers ({why}). Provide {SHARED_MEMORY} on this machine"
        )
    least = 1 if wanted == "auto" else wanted
    memory, files = shared_memory(), free_descriptors()
    room = max(0, memory // 2 // batch_bytes - IN_HAND)
    room_in_files = max(0, files // 2 - PIPES_AND_THEIR_LIKE - TENSORS * IN_HAND)
    by_memory, by_files = room // least, room_in_files // (PIPES_OF_A_WORKER + TENSORS * least)
    lack = ""
    if min(by_memory, by_files) < workers:
        lack = _too_little_memory(memory) if by_memory <= by_files else _too_few_files(files)
    workers = min(workers, by_memory, by_files)
    if workers == 0:
        return Readers(0, None, lack)
    most = min(MOST_AHEAD, room // workers, (room_in_files // workers - PIPES_OF_A_WORKER) // TENSORS)
    return Readers(workers, most if wanted == "auto" else wanted, lack)


def _too_little_memory(free: int) -> str:
    return (
        f"{SHARED_MEMORY}, by which workers transfer images, has only {free / 2**20:,.0f} MiB free. Increase it, such"
        " as by docker run --shm-size=8g"
    )


def _too_few_files(free: int) -> str:
    return f"this process may open only {free} more files, which workers need. Raise the limit: ulimit -n 4096"


def shared_memory() -> int:
    """Return the free bytes of shared memory; no limit if the system shares memory in another way."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else sys.maxsize


@cache
def why_workers_are_unavailable() -> str | None:
    """Return why workers cannot be used, by trying a semaphore and shared memory; None if they can."""
    try:
        multiprocessing.Lock()
        torch.empty(1).share_memory_()
    except (OSError, RuntimeError, ImportError) as error:
        return first_line(error)
    return None


def free_descriptors() -> int:
    """Return how many files this process may still open; no limit if the system has none."""
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        opened = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0  # noqa: PTH208 (names alone)
    except ImportError:  # Windows
        return sys.maxsize
    except OSError:  # no file descriptor is left for listing
        return 0
    return sys.maxsize if most == resource.RLIM_INFINITY else max(0, most - opened)


def prepare_worker(worker: int) -> None:
    """Set up a worker: ignore signals that the run handles (Ctrl-C, Slurm), report errors, use one OpenCV thread.

    A worker that died by such a signal would abort the current step.
    """
    assert get_worker_info() is not None
    cv2.setNumThreads(0)  # there are several workers already
    hand_over_errors(_send_error)
    for signum in set(STOPPING) - {signal.SIGTERM}:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_on_signal_of_run, daemon=True).start()


def _send_error(queue: Any, error: Exception, batch: Any) -> None:
    """Send the error instead of a batch that cannot be sent; otherwise Python prints it and the run hangs."""
    if not isinstance(batch, tuple):  # a part was sent
        os._exit(1)
    try:
        raise DataError(
            f"a worker cannot transfer a batch ({first_line(error)}): raise the limit on open files (ulimit -n 4096),"
            " or set num_workers=0 (data.num_workers=0 in training)"
        ) from error
    except DataError:
        queue.put((batch[0], error_of_worker()))


def _exit_on_signal_of_run() -> None:
    """Exit on a SIGTERM of the main process, which ends workers by it, and ignore others."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
