"""Worker processes of a loader: how many this machine bears, and how they hand batches over."""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
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
MOST_AHEAD = 4  # batches that a worker reads ahead
IN_HAND = 2  # batches that the process itself has of its workers: the one that it works at, and the next
# Open files of the process: for each of a batch's tensors; to and from a worker; and of the loader beside those.
TENSORS, PIPES_OF_A_WORKER, PIPES_AND_THEIR_LIKE = 3, 4, 8


class Loader(DataLoader):
    """torch's, with as many workers as it is given: the user, or ``num_workers=auto``, knows the cores."""

    def check_worker_number_rationality(self) -> None:
        """Say nothing: torch warns of more workers than cores, once when it is made and once when it is read."""


def to_shared_memory(batch: Batch) -> Batch:
    """Put a worker's batch into shared memory now: torch does so in a thread, whose errors nobody hears, and then the
    run waits for the batch for ever.

    Raises
    ------
    DataError
        There is no room.
    """
    if get_worker_info() is None:
        return batch
    try:
        return {key: value.share_memory_() for key, value in batch.items()}
    except RuntimeError as error:
        size = sum(value.nbytes for value in batch.values()) / 2**20
        raise DataError(
            f"a worker cannot hand over a batch of {size:.1f} MiB ({first_line(error)}): set num_workers=0"
            f" (data.num_workers=0 in training), or give {SHARED_MEMORY} more memory, such as docker run --shm-size=8g"
        ) from error


def worker_count(wanted: int | Literal["auto"]) -> int:
    """``"auto"``: one process for each core that this one may use, at most 8.

    ``OMP_NUM_THREADS`` says how many those are where several runs share a machine.
    """
    cores = visible_cores()
    share = os.environ.get("OMP_NUM_THREADS", "")
    return min(8, cores, max(1, int(share)) if share.isdigit() else cores) if wanted == "auto" else int(wanted)


class Readers(NamedTuple):
    """The processes that read, and how many batches each reads ahead; None where there are none.

    ``lack`` says of what there is too little, and what to do, where fewer read than were wanted.
    """

    workers: int
    ahead: int | None
    lack: str = ""


def readers(workers: int, wanted: int | Literal["auto"], batch_bytes: int) -> Readers:
    """As many of the workers, and batches ahead (``"auto"``: up to 4), as half of the free shared memory has room for,
    and half of the files that this process may yet open.

    Workers hand batches over in the one (many containers have 64 MB of it) by means of the other. The other halves are
    for another split's.
    """
    if workers == 0:
        return Readers(0, None)
    if why := why_nothing_is_shared():
        return Readers(0, None, f"no memory can be shared with them ({why}). Give this machine {SHARED_MEMORY}")
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
        f"{SHARED_MEMORY} has {free / 2**20:,.0f} MiB free, in which they hand over images. Give it more, such as"
        " docker run --shm-size=8g"
    )


def _too_few_files(free: int) -> str:
    return f"this process may open {free} more files, by which they hand over images. Allow more, by ulimit -n 4096"


def shared_memory() -> int:
    """The bytes that are free in it; where the system has another way to share, no limit."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else sys.maxsize


@cache
def why_nothing_is_shared() -> str | None:
    """Why workers cannot be had, found by what they need: a semaphore, and memory; None where they can."""
    try:
        multiprocessing.Lock()
        torch.empty(1).share_memory_()
    except (OSError, RuntimeError, ImportError) as error:
        return first_line(error)
    return None


def free_descriptors() -> int:
    """How many files this process may yet open; where the system counts none, no limit."""
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        opened = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0  # noqa: PTH208 (names alone)
    except ImportError:  # Windows
        return sys.maxsize
    except OSError:  # none is left to look
        return 0
    return sys.maxsize if most == resource.RLIM_INFINITY else max(0, most - opened)


def prepare_worker(worker: int) -> None:
    """Let the run decide about signals that reach its workers too (Ctrl-C, Slurm), hear of each error, and OpenCV use
    one thread.

    A worker that died by such a signal would take the step in progress with it.
    """
    assert get_worker_info() is not None
    cv2.setNumThreads(0)  # workers are many already
    hand_over_errors(_hand_over_the_error)
    for signum in set(STOPPING) - {signal.SIGTERM}:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_for_the_run_only, daemon=True).start()


def _hand_over_the_error(queue: Any, error: Exception, batch: Any) -> None:
    """Put the error in the place of a batch that could not be sent: Python would print it, and the run wait."""
    if not isinstance(batch, tuple):  # some of it was sent
        os._exit(1)
    try:
        raise DataError(
            f"a worker cannot hand over a batch ({first_line(error)}): allow more open files, by ulimit -n 4096, or set"
            " num_workers=0 (data.num_workers=0 in training)"
        ) from error
    except DataError:
        queue.put((batch[0], error_of_worker()))


def _end_for_the_run_only() -> None:
    """Obey SIGTERM from the process that loads, by which it ends workers, and from no other."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
