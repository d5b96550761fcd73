"""Cache decoded images and masks in a memory-mapped file, so that each file is decoded only once.

The file contains a line of JSON (image sizes, and a hash of the state of the files), then the pixels of each image, RGB
and mask, then a checksum of each image, which detects flipped bits. The values equal those of
:class:`SegmentationDataset`, bit for bit.
"""

import json
import logging
import mmap
import os
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Literal
from weakref import finalize
from zlib import crc32

import cv2
import numpy as np
import PIL
from jaxtyping import UInt8
from numpy import ndarray

from fcnlab.cores import visible_cores
from fcnlab.data.dataset import DataError, SegmentationDataset
from fcnlab.data.locks import exclusive_lock
from fcnlab.errors import WriteError, first_line
from fcnlab.files.reading import open_regular
from fcnlab.files.writing import atomic_write

log = logging.getLogger("fcnlab")

Kind = Literal["none", "ram", "disk"]
CONTAINER = Path("/sys/fs/cgroup")
SUM = 4  # bytes of a checksum
HEAD = 64 << 20  # limit on the first line, bytes; 10,582 images need 120 kB
LAYOUT = 3  # increase it when the layout of the file or the decoding changes


def with_cache(dataset: SegmentationDataset, kind: Kind, folder: Path) -> SegmentationDataset:
    """Return the data set with decoded images cached for all runs (``disk``, in ``folder``) or this process (``ram``).

    A pixel takes 4 bytes, including its mask. Workers share the memory; each process of a run has its own ``ram``.

    Raises
    ------
    DataError
        An image cannot be read, or a file changed during caching.
    WriteError
        There is too little memory or disk space, or the folder cannot be written to.
    """
    if kind == "none":
        return dataset
    return _in_memory(dataset) if kind == "ram" else _on_disk(dataset, folder)


class Store:
    """The pixels in a file of :func:`_write`; arrays are read-only views of the file.

    Workers that are not forked open the file again by its path.

    Raises
    ------
    ValueError
        The file is incomplete, or was made from other files than those of ``state``.
    """

    def __init__(self, path: Path, state: str):
        self.path, self.state = path, state
        with open_regular(path) as file:
            head = file.readline(HEAD)
            header = json.loads(head)
            if header["state"] != state:
                raise ValueError(f"{path} is of other files")
            self.sizes, self.masks = header["sizes"], header["masks"]
            self._starts = _starts(self.sizes, self.masks, len(head))
            if file.seek(0, os.SEEK_END) != self._starts[-1] + SUM * len(self.sizes):
                raise ValueError(f"{path} is incomplete")
            self._unread = set(range(len(self.sizes)))
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __reduce__(self) -> tuple:
        return Store, (self.path, self.state)

    def image(self, index: int) -> UInt8[ndarray, "rows cols 3"]:
        self._check(index)
        rows, cols = self.sizes[index]
        return self._view((rows, cols, 3), self._starts[index])

    def mask(self, index: int) -> UInt8[ndarray, "rows cols"]:
        self._check(index)
        rows, cols = self.sizes[index]
        return self._view((rows, cols), self._starts[index] + 3 * rows * cols)

    def _check(self, index: int) -> None:
        """Check the checksum of an image when a process first reads it.

        Raises
        ------
        DataError
            The checksum is wrong: a bit has flipped.
        """
        if index not in self._unread:
            return
        place = self._starts[-1] + SUM * index
        pixels = self._view((self._starts[index + 1] - self._starts[index],), self._starts[index])
        if _sum(pixels, self.sizes[index]) != self._bytes[place : place + SUM]:
            raise DataError(
                f"data.cache: the checksum of image {index} in {self.path} is wrong, because the file is damaged."
                " Remove the file: the next start creates it again"
            )
        self._unread.discard(index)

    def _view(self, shape: tuple[int, ...], start: int) -> ndarray:
        return np.ndarray(shape, np.uint8, self._bytes, start)


@dataclass(frozen=True, kw_only=True)
class CachedDataset(SegmentationDataset):
    """A data set whose pixels come from a :class:`Store`."""

    store: Store

    def image(self, index: int) -> UInt8[ndarray, "rows cols 3"]:
        return self.store.image(index)

    def mask(self, index: int) -> UInt8[ndarray, "rows cols"]:
        return self.store.mask(index)

    def size(self, index: int) -> tuple[int, int]:
        rows, cols = self.store.sizes[index]
        return rows, cols


def _from(store: Store, dataset: SegmentationDataset) -> CachedDataset:
    return CachedDataset(
        **{field.name: getattr(dataset, field.name) for field in fields(SegmentationDataset)}, store=store
    )


def _on_disk(dataset: SegmentationDataset, folder: Path) -> CachedDataset:
    """Return the data set cached in a file of the folder, which is created if it is missing, incomplete or outdated.

    One process at a time creates it, others wait. A killed process leaves no incomplete file under its name.
    """
    title = re.sub(r"[^\w.-]+", "-", dataset.title)
    path = folder.absolute() / f"{title}-{identity(dataset)}.pixels"
    if store := _opened(path, state_of(dataset)):
        return _from(store, dataset)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(path.with_suffix(".lock"), f"creates {path}"):
            state = state_of(dataset)
            if not (store := _opened(path, state)):
                with atomic_write(path) as part, part.open("wb") as file:
                    _write(file.fileno(), dataset, state, shutil.disk_usage(folder).free, f"data.cache=disk, {path}")
                store = Store(path, state)
    except OSError as error:
        raise WriteError(
            f"data.cache=disk: {path} cannot be written: {first_line(error)}. Free some space, set another"
            " data.cache_dir, or set data.cache=none."
        ) from error
    return _from(store, dataset)


def _in_memory(dataset: SegmentationDataset) -> CachedDataset:
    """Return the data set cached in an anonymous memory file, which is freed with the data set or the process."""
    if not hasattr(os, "memfd_create"):
        raise DataError(
            "data.cache=ram requires Linux: set data.cache=disk, which the system keeps in memory if possible"
        )
    handle = os.memfd_create("fcnlab")
    try:
        state = state_of(dataset)
        _write(handle, dataset, state, _free_memory(), "data.cache=ram")
        store = Store(Path(f"/proc/{os.getpid()}/fd/{handle}"), state)
    except BaseException as error:
        os.close(handle)
        if isinstance(error, OSError):
            raise WriteError(f"data.cache=ram: {first_line(error)}. Set data.cache=disk or none.") from error
        raise
    finalize(store, os.close, handle)
    return _from(store, dataset)


def _opened(path: Path, state: str) -> Store | None:
    """Return the store in a file; None if the file is missing, incomplete or outdated."""
    try:
        return Store(path, state)
    except (OSError, ValueError, LookupError, TypeError):  # for any other content of the file
        return None


def identity(dataset: SegmentationDataset) -> str:
    """Return a hash that identifies a split: its type, file names, classes and all other settings for reading."""
    kind = type(dataset)
    settings = {field.name: getattr(dataset, field.name) for field in fields(dataset) if field.compare}
    for name in ("images", "masks"):
        settings[name] = [str(path.absolute()) for path in settings[name]]
    plain = {name: value.tolist() if isinstance(value, ndarray) else value for name, value in settings.items()}
    return blake2b(repr((kind.__module__, kind.__qualname__, plain)).encode(), digest_size=6).hexdigest()


def state_of(dataset: SegmentationDataset) -> str:
    """Return a hash of the state of all files and of the libraries that read them.

    The ctime of a file changes with every modification, also if a copy keeps size and mtime.
    """
    digest = blake2b(f"{LAYOUT} {cv2.__version__} {PIL.__version__}".encode(), digest_size=16)
    for path in (*dataset.images, *dataset.masks):
        try:
            status = path.stat()
        except OSError:
            raise DataError(f"{path} is missing") from None
        digest.update(f" {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}".encode())
    return digest.hexdigest()


def _write(handle: int, dataset: SegmentationDataset, state: str, free: int, where: str) -> None:
    """Decode all images into an empty file of at most ``free`` bytes."""
    every = range(len(dataset))
    with ThreadPoolExecutor(visible_cores()) as pool:
        sizes = list(pool.map(dataset.size, every))
        head = json.dumps({"state": state, "masks": bool(dataset.masks), "sizes": sizes}).encode() + b"\n"
        starts = _starts(sizes, bool(dataset.masks), len(head))
        _check_room(starts[-1] + SUM * len(sizes), free, dataset.title, where)
        log.info("Decoding %d images of %s once, to %.2f GB: %s", len(sizes), dataset.title, starts[-1] / 1e9, where)
        _put(handle, head, 0)
        put = partial(_put_image, handle, dataset, starts[-1])
        list(pool.map(put, every, sizes, starts))  # raises the errors of the threads
    if state_of(dataset) != state:
        raise DataError(f"files of {dataset.title} changed while they were cached: start again when they are complete")


def _starts(sizes: Sequence[Sequence[int]], masks: bool, first: int) -> list[int]:
    """Return the offset of each image's pixels in bytes, and the end of the last."""
    lengths = [rows * cols * (4 if masks else 3) for rows, cols in sizes]
    return list(accumulate(lengths, initial=first))


def _check_room(needed: int, free: int, title: str, where: str) -> None:
    if needed > free:
        raise WriteError(
            f"{where} needs {needed / 1e9:.2f} GB for {title}, but only {free / 1e9:.2f} GB are free: free some space,"
            " or set data.cache=none"
        )


def _put_image(
    handle: int, dataset: SegmentationDataset, sums: int, index: int, size: tuple[int, int], start: int
) -> None:
    """Write the pixels of an image at ``start``, and its checksum to those that start at ``sums``."""
    checksum = 0
    for part in (dataset.image(index), dataset.mask(index)) if dataset.masks else (dataset.image(index),):
        if part.shape[:2] != size:
            rows, cols = part.shape[:2]
            raise DataError(f"{dataset.images[index]} has {size[0]}x{size[1]} pixels, but its mask {rows}x{cols}")
        data = part.tobytes()
        checksum = crc32(data, checksum)
        _put(handle, data, start)
        start += part.size
    _put(handle, _with_size(checksum, size), sums + SUM * index)


def _sum(pixels: ndarray, size: Sequence[int]) -> bytes:
    return _with_size(crc32(pixels.data), size)


def _with_size(checksum: int, size: Sequence[int]) -> bytes:
    """Return the checksum of pixels and size."""
    return crc32(repr(tuple(size)).encode(), checksum).to_bytes(SUM, "big")


def _put(handle: int, data: bytes, start: int) -> None:
    remaining = memoryview(data)
    while remaining:
        done = os.pwrite(handle, remaining, start)
        remaining, start = remaining[done:], start + done


def _free_memory() -> int:
    """Return the available memory of the system and the container, in bytes.

    The memory use of a container includes cached files, which the system can release.
    """
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(facts["MemAvailable"].split()[0]) * 1024
    with suppress(OSError, ValueError):  # no container, or no limit: "max"
        limit, used = (int((CONTAINER / f"memory.{name}").read_text()) for name in ("max", "current"))
        counts = dict(line.split() for line in (CONTAINER / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(counts["inactive_file"]) + int(counts["active_file"]))
    return free
