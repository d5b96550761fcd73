"""The LightningDataModule around a data set: which pictures meet in a batch, and how they come to the device."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import cv2
import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from fcnlab.data.pictures import VOID, DataError, Pictures
from fcnlab.data.transforms import FILL, Augmentation

Batch = dict[str, Tensor]


class TrainingSamples(Dataset):
    """Augmented pictures by (epoch, index): the same key and seed give the same sample in any process."""

    def __init__(self, pictures: Pictures, augment: Augmentation | None, seed: int):
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
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    mask = np.full(image.shape[:2], VOID, np.uint8) if mask is None else mask
    return {"image": pixels, "mask": torch.from_numpy(mask), "index": torch.tensor(index)}


def collate(samples: Sequence[Batch]) -> Batch:
    """Stack samples; smaller ones are padded at the bottom right, with a constant colour and void."""
    rows, cols = (max(sample["mask"].shape[axis] for sample in samples) for axis in (0, 1))
    images = torch.tensor(FILL, dtype=torch.uint8).view(1, 3, 1, 1).repeat(len(samples), 1, rows, cols)
    masks = torch.full((len(samples), rows, cols), VOID, dtype=torch.uint8)
    for place, sample in enumerate(samples):
        height, width = sample["mask"].shape
        images[place, :, :height, :width] = sample["image"]
        masks[place, :height, :width] = sample["mask"]
    return {"image": images, "mask": masks, "index": torch.stack([sample["index"] for sample in samples])}


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
        Training pictures on each device; evaluation takes pictures one by one, each at its own size.
    num_workers
        Processes that read pictures; see :func:`worker_count`.
    """

    def __init__(
        self,
        pictures: Callable[[str, str], Pictures],
        root: str,
        train_list: str,
        val_list: str,
        num_classes: int,
        augment: Callable[[int], Augmentation | None],
        test_list: str | None = None,
        crop_size: int = 512,
        batch_size: int = 16,
        num_workers: int | Literal["auto"] = "auto",
        seed: int = 0,
    ):
        super().__init__()
        self.open = pictures
        self.root = root
        self.lists = {"train": train_list, "val": val_list, "test": test_list or val_list}
        self.num_classes = num_classes
        self.augment = augment(crop_size)
        self.crop_size, self.batch_size, self.seed = crop_size, batch_size, seed
        self.num_workers = worker_count(num_workers)
        self._opened: dict[str, Pictures] = {}

    def check(self, *splits: str, min_size: int = 1) -> None:
        """Open splits and look at every file of theirs, before any long work.

        ``min_size`` is the shorter side, in pixels, of the smallest picture that the net takes.

        Raises
        ------
        DataError
            See :meth:`Pictures.check`; or the data has another number of classes than the net.
        """
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
            pictures.check(min_size=1 if cropped else min_size)
            if "train" in uses:
                TrainingBatches(len(pictures), self.batch_size, self.seed)

    def split(self, name: str) -> Pictures:
        """The pictures of "train", "val" or "test", opened once."""
        title = self.lists[name]
        if title not in self._opened:
            self._opened[title] = self.open(self.root, title)
        return self._opened[title]

    def training_pixels(self) -> int:
        """How many pixels a training picture has; where none is cropped, those of the first."""
        if self.augment is not None:
            return self.crop_size**2
        return self.split("train").mask(0).size

    def train_dataloader(self) -> DataLoader:
        pictures = self.split("train")
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        batches = TrainingBatches(len(pictures), self.batch_size, self.seed, *self._place(), accumulate)
        batches.resume(*self._position(len(batches)))
        return DataLoader(
            TrainingSamples(pictures, self.augment, self.seed),
            batch_sampler=batches,
            collate_fn=collate,
            **self._loading(),
        )

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader(EvaluationSamples(self.split("val")))

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader(EvaluationSamples(self.split("test")))

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation_loader(EvaluationSamples(self.split("test"), truth=False))

    def _evaluation_loader(self, samples: EvaluationSamples) -> DataLoader:
        rank, world_size = self._place()
        share = range(rank, len(samples), world_size)  # unlike DistributedSampler's, it counts nobody twice
        return DataLoader(samples, sampler=share, batch_size=1, collate_fn=collate, **self._loading())

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

    def _loading(self) -> dict:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "worker_init_fn": _prepare_worker,
            # The loader draws a base seed from its generator; with one of its own, the global stream stays the run's.
            "generator": torch.Generator().manual_seed(self.seed),
        }


def worker_count(wanted: int | Literal["auto"]) -> int:
    """``"auto"``: one process for each core that this one may use, at most 8.

    ``OMP_NUM_THREADS`` says how many those are where several runs share a machine.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get("OMP_NUM_THREADS", "")
    return min(8, cores, max(1, int(share)) if share.isdigit() else cores) if wanted == "auto" else int(wanted)


def _prepare_worker(worker: int) -> None:
    """Let the run decide about signals that reach its workers too (Ctrl-C, Slurm), and OpenCV use one thread.

    A worker that died by such a signal would take the step in progress with it.
    """
    assert get_worker_info() is not None
    cv2.setNumThreads(0)  # workers are many already
    for signum in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_for_the_run_only, daemon=True).start()


def _end_for_the_run_only() -> None:
    """Obey SIGTERM from the process that loads, by which it ends workers, and from no other."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
