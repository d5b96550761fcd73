"""Decoded images and masks in a memory-mapped file, so that no epoch decodes a file again.

The file is a line of JSON (the images' sizes, and a hash that changes when one of their files does), then the pixels:
of each image RGB, then its mask; then a checksum of each, by which a flipped bit is noticed. The values are those of
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
HEAD = 64 << 20  # bytes of the first line; those of 10,582 images have 120 kB
LAYOUT = 3  # raise it when the file's layout, or what images are decoded to, changes


def with_cache(dataset: SegmentationDataset, kind: Kind, folder: Path) -> SegmentationDataset:
    """The same images, decoded once: for all runs (``disk``, in ``folder``) or for this process (``ram``).

    A pixel takes 4 bytes, its mask included. Workers share the memory of either; of several processes of a run, each
    has a ``ram`` of its own.

    Raises
    ------
    DataError
        An image cannot be read, or a file changed meanwhile.
    NotWritten
        The pixels do not fit into the memory or onto the disk, or the folder cannot be written to.
    """
    if kind == "none":
        return dataset
    return _in_memory(dataset) if kind == "ram" else _on_disk(dataset, folder)


class Store:
    """The pixels in a file that :func:`_write` made; arrays are views of it, and cannot be written to.

    Workers that are not forked open it again by its path.

    Raises
    ------
    ValueError
        The file is not whole, or was made from other files than ``state`` says.
    """

    def __init__(self, path: Path, state: str):
        self.path, self.state = path, state
        with open_regular(path) as file:
            head = file.readline(HEAD)
            made = json.loads(head)
            if made["state"] != state:
                raise ValueError(f"{path} is of other files")
            self.sizes, self.masks = made["sizes"], made["masks"]
            self._starts = _starts(self.sizes, self.masks, len(head))
            if file.seek(0, os.SEEK_END) != self._starts[-1] + SUM * len(self.sizes):
                raise ValueError(f"{path} is not whole")
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
        """Compare an image with its checksum when a process first reads it.

        Raises
        ------
        DataError
            They do not fit: a bit has flipped.
        """
        if index not in self._unread:
            return
        place = self._starts[-1] + SUM * index
        pixels = self._view((self._starts[index + 1] - self._starts[index],), self._starts[index])
        if _sum(pixels, self.sizes[index]) != self._bytes[place : place + SUM]:
            raise DataError(
                f"data.cache: image {index} in {self.path} does not fit its checksum: the file is damaged. Remove it:"
                " the next start makes it anew"
            )
        self._unread.discard(index)

    def _view(self, shape: tuple[int, ...], start: int) -> ndarray:
        return np.ndarray(shape, np.uint8, self._bytes, start)


@dataclass(frozen=True, kw_only=True)
class CachedDataset(SegmentationDataset):
    """A split whose pixels come from a :class:`Store`."""

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
    """From the folder's file, which is made first if it is not there, not whole or out of date.

    One process at a time makes it, the others wait; a kill leaves no file that is taken for it.
    """
    title = re.sub(r"[^\w.-]+", "-", dataset.title)
    path = folder.absolute() / f"{title}-{identity(dataset)}.pixels"
    if store := _opened(path, state_of(dataset)):
        return _from(store, dataset)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(path.with_suffix(".lock"), f"makes {path}"):
            state = state_of(dataset)
            if not (store := _opened(path, state)):
                with atomic_write(path) as part, part.open("wb") as file:
                    _write(file.fileno(), dataset, state, shutil.disk_usage(folder).free, f"data.cache=disk, {path}")
                store = Store(path, state)
    except OSError as error:
        raise WriteError(
            f"data.cache=disk: {path} could not be written: {first_line(error)}. Make room, name another"
            " data.cache_dir, or set data.cache=none."
        ) from error
    return _from(store, dataset)


def _in_memory(dataset: SegmentationDataset) -> CachedDataset:
    """In an anonymous file of the memory, which goes when the images do or the process ends, however it ends."""
    if not hasattr(os, "memfd_create"):
        raise DataError("data.cache=ram needs Linux: set data.cache=disk, which the system keeps in memory as it can")
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
    """None where there is no such file, or not a whole one of this state."""
    try:
        return Store(path, state)
    except (OSError, ValueError, LookupError, TypeError):  # of whatever else lies there
        return None


def identity(dataset: SegmentationDataset) -> str:
    """Tells a split from others: by its type, its files' names, its classes, and all else that says how it is read."""
    kind = type(dataset)
    settings = {field.name: getattr(dataset, field.name) for field in fields(dataset) if field.compare}
    for name in ("images", "masks"):
        settings[name] = [str(path.absolute()) for path in settings[name]]
    plain = {name: value.tolist() if isinstance(value, ndarray) else value for name, value in settings.items()}
    return blake2b(repr((kind.__module__, kind.__qualname__, plain)).encode(), digest_size=6).hexdigest()


def state_of(dataset: SegmentationDataset) -> str:
    """Changes when one of the files does, or what reads them.

    A file's ctime moves with every change of it, also where a copy brings the size and mtime of the old one along.
    """
    digest = blake2b(f"{LAYOUT} {cv2.__version__} {PIL.__version__}".encode(), digest_size=16)
    for path in (*dataset.images, *dataset.masks):
        try:
            found = path.stat()
        except OSError:
            raise DataError(f"{path} is missing") from None
        digest.update(f" {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}".encode())
    return digest.hexdigest()


def _write(handle: int, dataset: SegmentationDataset, state: str, free: int, where: str) -> None:
    """Decode everything into an empty file; ``free`` is how many bytes it may have."""
    every = range(len(dataset))
    with ThreadPoolExecutor(visible_cores()) as pool:
        sizes = list(pool.map(dataset.size, every))
        head = json.dumps({"state": state, "masks": bool(dataset.masks), "sizes": sizes}).encode() + b"\n"
        starts = _starts(sizes, bool(dataset.masks), len(head))
        _check_room(starts[-1] + SUM * len(sizes), free, dataset.title, where)
        log.info("Decoding %d images of %s once, to %.2f GB: %s", len(sizes), dataset.title, starts[-1] / 1e9, where)
        _put(handle, head, 0)
        put = partial(_put_image, handle, dataset, starts[-1])
        list(pool.map(put, every, sizes, starts))  # raises what one of them raised
    if state_of(dataset) != state:
        raise DataError(f"files of {dataset.title} changed while they were cached: start again when they are complete")


def _starts(sizes: Sequence[Sequence[int]], masks: bool, first: int) -> list[int]:
    """Where each image's pixels begin, in bytes, and where the last one's end."""
    lengths = [rows * cols * (4 if masks else 3) for rows, cols in sizes]
    return list(accumulate(lengths, initial=first))


def _check_room(needed: int, free: int, title: str, where: str) -> None:
    if needed > free:
        raise WriteError(
            f"{where} needs {needed / 1e9:.2f} GB for {title}, and {free / 1e9:.2f} are free: make room, or set"
            " data.cache=none"
        )


def _put_image(
    handle: int, dataset: SegmentationDataset, sums: int, index: int, size: tuple[int, int], start: int
) -> None:
    """Its pixels at ``start``, and their checksum among those that begin at ``sums``."""
    checksum = 0
    for part in (dataset.image(index), dataset.mask(index)) if dataset.masks else (dataset.image(index),):
        if part.shape[:2] != size:
            rows, cols = part.shape[:2]
            raise DataError(f"{dataset.images[index]} has {size[0]}x{size[1]} pixels, its mask {rows}x{cols}")
        data = part.tobytes()
        checksum = crc32(data, checksum)
        _put(handle, data, start)
        start += part.size
    _put(handle, _with_size(checksum, size), sums + SUM * index)


def _sum(pixels: ndarray, size: Sequence[int]) -> bytes:
    return _with_size(crc32(pixels.data), size)


def _with_size(checksum: int, size: Sequence[int]) -> bytes:
    """The checksum of pixels and of the size that they are taken for."""
    return crc32(repr(tuple(size)).encode(), checksum).to_bytes(SUM, "big")


def _put(handle: int, data: bytes, start: int) -> None:
    rest = memoryview(data)
    while rest:
        done = os.pwrite(handle, rest, start)
        rest, start = rest[done:], start + done


def _free_memory() -> int:
    """Bytes that the system, and the container that this process runs in, can still give.

    A container's use counts the files that the system keeps in memory, too, which give way to what is asked for.
    """
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(facts["MemAvailable"].split()[0]) * 1024
    with suppress(OSError, ValueError):  # no container, or no limit: "max"
        limit, used = (int((CONTAINER / f"memory.{name}").read_text()) for name in ("max", "current"))
        counts = dict(line.split() for line in (CONTAINER / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(counts["inactive_file"]) + int(counts["active_file"]))
    return free
