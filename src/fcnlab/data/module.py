"""The LightningDataModule around a data set: which pictures meet in a batch, and how they come to the device."""

import hashlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache
from os.path import isfile, islink  # False for a name that no file can have, where Path's raise an OSError
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from fcnlab.cores import visible_cores
from fcnlab.data import label_counts
from fcnlab.data.cache import Kind, cached
from fcnlab.data.download import fetching, only_reading
from fcnlab.data.image_files import DataError
from fcnlab.data.pictures import VOID, LabelPixels, Pictures
from fcnlab.data.transforms import FILL, Augment
from fcnlab.errors import first_line
from fcnlab.library_internals.python import hand_over_errors
from fcnlab.library_internals.torch import error_of_worker
from fcnlab.ranges import Count, NumClasses, Pixels, Seed, Whole
from fcnlab.results.reading import Unreadable, open_regular
from fcnlab.results.selection import FINGERPRINT
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


class TrainingSamples(Dataset):
    """Augmented pictures by (epoch, index): the same key and seed give the same sample in any process."""

    def __init__(self, pictures: Pictures, augment: Augment | None, seed: int):
        self.pictures, self.augment, self.seed = pictures, augment, seed

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, index = key
        image, mask = self.pictures.image(index), self.pictures.mask(index)
        if self.augment is not None:
            image, mask = self.augment(image, mask, seed=(self.seed, epoch, index))
        return as_tensors(image, mask, index)


class EvaluationSamples(Dataset):
    """Whole pictures at their own size, by index; without their truth, all of it is void."""

    def __init__(self, pictures: Pictures, truth: bool = True):
        self.pictures, self.truth = pictures, truth

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Batch:
        return as_tensors(self.pictures.image(index), self.pictures.mask(index) if self.truth else None, index)


def as_tensors(image: np.ndarray, mask: np.ndarray | None, index: int) -> Batch:
    """A sample as it travels: uint8, since that is a quarter of what floats would be. No mask: void."""
    pixels = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, [pixels[channel] for channel in range(3)])  # five times as fast as a transposed copy
    mask = np.full(image.shape[:2], VOID, np.uint8) if mask is None else mask
    # A copy of the mask, since a cached one is a view that cannot be written to.
    return {"image": torch.from_numpy(pixels), "mask": torch.tensor(mask), "index": torch.tensor(index)}


def collate(samples: Sequence[Batch]) -> Batch:
    """Stack samples; smaller ones are padded at the bottom right, with a constant colour and void."""
    if len({sample["mask"].shape for sample in samples}) == 1:
        return handed_over({key: torch.stack([sample[key] for sample in samples]) for key in samples[0]})
    rows, cols = (max(sample["mask"].shape[axis] for sample in samples) for axis in (0, 1))
    images = torch.tensor(FILL, dtype=torch.uint8).view(1, 3, 1, 1).repeat(len(samples), 1, rows, cols)
    masks = torch.full((len(samples), rows, cols), VOID, dtype=torch.uint8)
    for place, sample in enumerate(samples):
        height, width = sample["mask"].shape
        images[place, :, :height, :width] = sample["image"]
        masks[place, :height, :width] = sample["mask"]
    return handed_over({"image": images, "mask": masks, "index": torch.stack([sample["index"] for sample in samples])})


def handed_over(batch: Batch) -> Batch:
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


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """Each epoch a new order, cut into global batches; every rank takes its share of each.

    Which pictures meet in a global batch (``batch_size`` on each of ``world_size`` ranks, ``accumulate`` times)
    depends on (seed, epoch, global batch size) alone. The few pictures that do not fill a global batch wait for
    another epoch's order.
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, accumulate: int = 1):
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.epoch = self.skip = 0
        if len(self) == 0:
            ranks = f" on each of {world_size} devices" if world_size > 1 else ""
            times = f", accumulated {accumulate} times," if accumulate > 1 else ""
            raise DataError(
                f"data.batch_size={batch_size}{ranks}{times} is more than the {count} training pictures: lower it"
            )

    @property
    def sampler(self) -> "TrainingBatches":
        """Where Lightning looks for ``set_epoch``: not at a batch sampler itself, whose epochs would all be alike."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch, on resuming too, when the first epoch's batches are on their way."""
        if epoch != self.epoch:
            self.epoch, self.skip = epoch, 0

    def resume(self, epoch: int, done: int) -> None:
        """Go on in an epoch of which ``done`` batches were trained on."""
        self.epoch, self.skip = epoch, done

    def __len__(self) -> int:
        return self.count // (self.batch_size * self.world_size * self.accumulate) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first = self.epoch, self.skip
        order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
        together = self.batch_size * self.world_size
        for batch in range(first, len(self)):
            start = batch * together + self.rank * self.batch_size
            yield [(epoch, int(index)) for index in order[start : start + self.batch_size]]


def equal_sizes(pictures: Pictures, share: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches of pictures of one size each, so that none is padded; each picture of the share is in one batch."""
    alike: dict[tuple[int, int], list[int]] = {}
    for index in share:
        alike.setdefault(pictures.size(index), []).append(index)
    batches = [
        found[first : first + batch_size] for found in alike.values() for first in range(0, len(found), batch_size)
    ]
    return sorted(batches)


class DataModule(L.LightningDataModule):
    """Loaders for a data set's splits; only the splits that are asked for are opened and checked.

    Parameters
    ----------
    pictures
        Opens a split: ``pictures(root, list_name)``.
    num_classes
        What the net is built for; a data set of another number is an error.
    augment
        Makes the training augmentation for a crop size (see :mod:`fcnlab.data.transforms`).
    crop_size
        Rows and columns of a training picture, in pixels.
    batch_size
        Training pictures on each device.
    eval_batch_size
        Pictures of equal size that are evaluated together, each at its own size.
    num_workers
        Processes that read pictures; see :func:`worker_count`.
    prefetch_factor
        Batches that each of them reads ahead; see :func:`readers`.
    cache, cache_dir
        Whether pictures are decoded once, and where they are kept then; see :func:`fcnlab.data.cache.cached`. What
        masks hold is kept in this folder in any case, by :mod:`fcnlab.data.label_counts`.
    download, archive
        Fetch the data set if it is not there, or take it from tars that the user has.
    allow_overlap
        Score on pictures that were trained on, too: to see whether a net can learn them by heart.
    read_only
        Open what is there, and fetch, draw or convert nothing, whatever the other settings say: for data that a foreign
        record names.
    """

    def __init__(
        self,
        pictures: Callable[[str, str], Pictures],
        root: str,
        train_list: str,
        val_list: str,
        num_classes: NumClasses,
        augment: Callable[[int], Augment | None],
        test_list: str | None = None,
        crop_size: Pixels = 512,
        batch_size: Count = 16,
        eval_batch_size: Count = 1,
        num_workers: Whole | Literal["auto"] = "auto",
        prefetch_factor: Count | Literal["auto"] = "auto",
        cache: Kind = "none",
        cache_dir: str = "outputs/cache",
        seed: Seed = 0,
        download: bool = False,
        archive: str | Sequence[str] | None = None,
        allow_overlap: bool = False,
        read_only: bool = False,
    ):
        super().__init__()
        for name, value in (("eval_batch_size", eval_batch_size), ("prefetch_factor", prefetch_factor)):
            if isinstance(value, int) and value < 1:
                raise DataError(f"data.{name}={value}: choose 1 or more")
        self.open = only_reading(pictures) if read_only else fetching(pictures, download, archive)
        self.read_only = read_only
        self.root = root
        self.lists = {"train": train_list, "val": val_list, "test": test_list or val_list}
        self.num_classes = num_classes
        self.augment = augment(crop_size)
        self.crop_size, self.batch_size, self.seed = crop_size, batch_size, seed
        self.eval_batch_size = eval_batch_size
        self.num_workers = worker_count(num_workers)
        self.prefetch_factor: int | Literal["auto"] = prefetch_factor
        self.cache: Kind = cache
        self.cache_dir = Path(cache_dir)
        self.allow_overlap = allow_overlap
        self._opened: dict[str, Pictures] = {}
        self._decoded: dict[str, Pictures] = {}
        self._fingerprints: dict[str, list[str]] = {}
        self._labels: dict[str, label_counts.Labels] = {}
        self._readers: dict[str, Readers] = {}

    def check(self, *splits: str, min_size: int = 1, truth: bool = True) -> None:
        """Open splits and look at every file of theirs, before any long work.

        ``min_size`` is the shorter side, in pixels, of the smallest picture that the net takes. Without ``truth`` masks
        need not be there.

        Raises
        ------
        DataError
            See :meth:`Pictures.check`; the data has another number of classes than the net, or no masks; pictures are
            both trained on and scored.
        """
        if "train" in splits and not self.allow_overlap:
            self._check_overlap(*splits)
        for title in dict.fromkeys(self.lists[name] for name in splits):
            uses = [name for name in splits if self.lists[name] == title]
            pictures = self.split(uses[0])
            if len(pictures.classes) != self.num_classes:
                raise DataError(
                    f"{pictures.title} has {len(pictures.classes)} classes, the net is built for {self.num_classes}:"
                    " set data.num_classes"
                )
            cropped = set(uses) == {"train"} and self.augment is not None
            if cropped and self.crop_size < min_size:
                raise DataError(f"data.crop_size={self.crop_size} is too small for the net: it needs {min_size}")
            images_there = any(map(isfile, pictures.images))  # else their names are wrong, and masks follow them
            if truth and images_there and not any(map(isfile, pictures.masks)):
                raise DataError(
                    f"{pictures.title} has no masks (such as {next(iter(pictures.masks), 'PNGs')}): it can be"
                    " predicted, not trained on or scored. With data=folder, data.pictures.masks says where they are,"
                    " with {split} for the list's name. For VOC's server: fcnlab predict data=voc ..."
                    " submission=FILE.tar.gz"
                )
            least = 1 if cropped else min_size
            if "train" in uses:
                least = max(least, getattr(self.augment, "min_size", 1))
            if truth:
                self._labels[title] = label_counts.check(pictures, least, self.cache_dir)
            else:
                replace(pictures, masks=()).check(least)
            if "train" in uses:
                TrainingBatches(len(pictures), self.batch_size, self.seed)

    def _check_overlap(self, *splits: str) -> None:
        trained = self.split("train")
        lists = {self.lists[name]: name for name in splits if name != "train"}  # each is compared once
        for name in lists.values():
            scored = self.split(name)
            both = twins(scored.images, trained.images)
            if both:
                few = ", ".join(path.stem if path == twin else f"{path} is {twin}" for path, twin in both[:3])
                few += ", …" if len(both) > 3 else ""
                raise DataError(
                    f"{len(both)} of {len(scored)} pictures of {scored.title} are in data.train_list="
                    f"{self.lists['train']}, too ({few}): scores on them would say nothing about new pictures. Choose"
                    f" lists that share none (data.train_list, data.{name}_list), or say data.allow_overlap=true"
                )

    def split(self, name: str) -> Pictures:
        """The pictures of "train", "val" or "test", opened once."""
        title = self.lists[name]
        if title not in self._opened:
            self._opened[title] = self._open(title)
        return self._opened[title]

    def label_pixels(self, name: str) -> LabelPixels:
        """How many pixels each label has in the masks of a split that was checked."""
        return self._labels[self.lists[name]].pixels

    def mask_conflicts(self, name: str) -> tuple[str, ...]:
        """A sentence for each way in which masks of a split that was checked disagree with each other."""
        return self._labels[self.lists[name]].conflicts

    def _open(self, title: str) -> Pictures:
        try:
            return self.open(self.root, title)
        except DataError as error:
            if not self.read_only:
                raise
            raise DataError(
                f"{error}\nThese data are named by a record, and so they are only read. If they lie elsewhere, or are"
                " to be fetched or made, name them: data=NAME data.root=FOLDER"
            ) from error

    def decoded(self, name: str) -> Pictures:
        """The same pictures as the loaders read them: from the cache, which the first who asks makes."""
        title = self.lists[name]
        if title not in self._decoded:
            self._decoded[title] = cached(self.split(name), self.cache, self.cache_dir)
        return self._decoded[title]

    def fingerprints(self, name: str) -> list[str]:
        """What tells each picture of a split from any other, wherever it lies: the beginning of a hash of its file."""
        title = self.lists[name]
        if title not in self._fingerprints:
            paths = self.split(name).images
            digests = file_digests(list(dict.fromkeys(paths)))
            self._fingerprints[title] = [digests.get(path, bytes(FINGERPRINT)).hex()[:FINGERPRINT] for path in paths]
        return self._fingerprints[title]

    def training_pixels(self) -> int:
        """How many pixels a training picture has; where none is cropped, those of the first."""
        if self.augment is not None:
            return self.crop_size**2
        return self.split("train").mask(0).size

    def train_dataloader(self) -> DataLoader:
        pictures = self.decoded("train")
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        batches = TrainingBatches(len(pictures), self.batch_size, self.seed, *self._place(), accumulate)
        batches.resume(*self._position(len(batches)))
        return Loader(
            TrainingSamples(pictures, self.augment, self.seed),
            batch_sampler=batches,
            collate_fn=collate,
            **self._loading("train"),
        )

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader("val", EvaluationSamples(self.decoded("val")), self.eval_batch_size)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader("test", EvaluationSamples(self.decoded("test")), self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader:
        # From the files: each is read once, and a cache holds masks, of which there may be none.
        return self._evaluation_loader("test", EvaluationSamples(self.split("test"), truth=False), 1)

    def _evaluation_loader(self, name: str, samples: EvaluationSamples, batch_size: int) -> DataLoader:
        rank, world_size = self._place()
        share = range(rank, len(samples), world_size)  # unlike DistributedSampler's, it counts nobody twice
        # Predicting, Lightning puts a sampler of its own behind batches of one, and warns of any other.
        batches = (
            {"sampler": share}
            if batch_size == 1
            else {"batch_sampler": equal_sizes(samples.pictures, share, batch_size)}
        )
        return Loader(samples, collate_fn=collate, **batches, **self._loading(name))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Pixels only: which pictures they are is asked on the host, where it costs no wait."""
        pixels = {key: value for key, value in batch.items() if key != "index"}
        if device.type == "cuda":
            return batch | beside_the_work(pixels, device)
        return batch | super().transfer_batch_to_device(pixels, device, dataloader_idx)

    def _place(self) -> tuple[int, int]:
        """This process's rank, and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _position(self, batches: int) -> tuple[int, int]:
        """The epoch to go on in, and how many of its batches are done; (0, 0) in a run that was not resumed."""
        if self.trainer is None:
            return 0, 0
        loop = self.trainer.fit_loop
        epochs: Any = loop.epoch_progress.current  # Lightning's annotations are too narrow
        batches_done: Any = loop.epoch_loop.batch_progress.current
        done = batches_done.processed
        if epochs.started <= epochs.processed:  # the checkpoint is of an epoch's end
            return epochs.processed, 0
        return (epochs.processed, done) if done < batches else (epochs.processed + 1, 0)

    def readers(self, name: str, processes: int = 1) -> "Readers":
        """Who reads the batches of a split, beside ``processes`` of this run on this machine; decided once."""
        if name not in self._readers:
            size = self._batch_bytes(name) if self.num_workers else 1
            self._readers[name] = readers(self.num_workers, self.prefetch_factor, size * processes)
        return self._readers[name]

    def _batch_bytes(self, name: str) -> int:
        """Of the largest batch of a split on its way: bytes, three channels and the mask."""
        if name == "train" and self.augment is not None:
            return 4 * self.batch_size * self.crop_size**2
        pictures = self.split(name)
        rows, cols = map(max, zip(*map(pictures.size, range(len(pictures))), strict=True))
        return 4 * (self.batch_size if name == "train" else self.eval_batch_size) * rows * cols

    def _loading(self, name: str) -> dict:
        """What all loaders share."""
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        workers, ahead, _ = self.readers(name)
        return {
            "num_workers": workers,
            "prefetch_factor": ahead,
            "persistent_workers": workers > 0,
            "pin_memory": on_gpu,
            "worker_init_fn": prepare_worker,
            # The loader draws a base seed from its generator; with one of its own, the global stream stays the run's.
            "generator": torch.Generator().manual_seed(self.seed),
        }


def beside_the_work(batch: Batch, device: torch.device) -> Batch:
    """Copies on a GPU, made while it still works at what it was given before.

    Lightning copies pinned memory without waiting, too, but on the stream of the work, where it begins when that is
    done. Here it has a stream of its own, which the work to come waits for; ``record_stream`` keeps its memory from the
    next copy until that work is done.
    """
    work, copying = torch.cuda.current_stream(device), _copying_stream(device)
    with torch.cuda.stream(copying):
        copies = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
    work.wait_stream(copying)
    for copy in copies.values():
        copy.record_stream(work)
    return copies


@cache
def _copying_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each GPU, as long as the process lives."""
    return torch.cuda.Stream(device)


def twins(paths: Sequence[Path], others: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Each path that is one of the others, with that one: the same file behind links, or a copy of it.

    Only files whose size in bytes occurs on both sides are read; empty ones are left to be told as broken.
    """
    by_place = dict(zip(real_paths(others), others, strict=True))
    sizes, other_sizes = file_sizes(paths), file_sizes(others)
    common = set(sizes.values()) & set(other_sizes.values()) - {0}
    digests, other_digests = (
        file_digests([path for path, size in found.items() if size in common]) for found in (sizes, other_sizes)
    )
    by_bytes = {digest: path for path, digest in other_digests.items()}
    found = (
        (path, by_place.get(real) or by_bytes.get(digests.get(path, b"")))
        for path, real in zip(paths, real_paths(paths), strict=True)
    )
    return [(path, twin) for path, twin in found if twin is not None]


def file_sizes(paths: Sequence[Path]) -> dict[Path, int]:
    """In bytes, of those that are files."""
    return {path: path.stat().st_size for path in filter(isfile, paths)}


def file_digests(paths: Sequence[Path]) -> dict[Path, bytes]:
    """A hash of each file's bytes, of those that can be read."""

    def digest(path: Path) -> bytes | None:
        with suppress(OSError, Unreadable), open_regular(path) as file:
            return hashlib.file_digest(file, hashlib.blake2b).digest()

    with ThreadPoolExecutor(visible_cores()) as pool:
        found = zip(paths, pool.map(digest, paths), strict=True)
        return {path: one for path, one in found if one is not None}


def real_paths(paths: Sequence[Path]) -> list[Path]:
    """Where files really lie, behind links; each folder is asked once."""
    folders = {folder: folder.resolve() for folder in {path.parent for path in paths}}
    return [path.resolve() if islink(path) else folders[path.parent] / path.name for path in paths]  # noqa: PTH114


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
