"""The LightningDataModule: opens, checks and caches splits, builds loaders, and copies batches to the device."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from os.path import isfile  # False for a name that no file can have, where Path's raise an OSError
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from fcnlab.config.ranges import Count, FoldCount, Fraction, NumClasses, Pixels, Seed, Whole
from fcnlab.data import label_counts
from fcnlab.data.cache import Kind, with_cache
from fcnlab.data.dataset import LabelPixels, SegmentationDataset
from fcnlab.data.download import downloads_enabled, read_only_data
from fcnlab.data.duplicates import file_digests, find_duplicates
from fcnlab.data.folds import Folds, part
from fcnlab.data.image_files import DataError
from fcnlab.data.loader_workers import Batch, Loader, Readers, prepare_worker, readers, worker_count
from fcnlab.data.samplers import TrainingBatches, batches_of_equal_size
from fcnlab.data.samples import EvaluationSamples, TrainingSamples, collate
from fcnlab.data.transforms import Augment
from fcnlab.runs.selection import FINGERPRINT


class DataModule(L.LightningDataModule):
    """Loaders for the splits of a data set; only requested splits are opened and checked.

    Parameters
    ----------
    dataset
        Opens a split: ``dataset(root, list_name)``.
    num_classes
        Number of classes of the model; a data set with another number is an error.
    augment
        Builds the training augmentation for a crop size (see :mod:`fcnlab.data.transforms`).
    crop_size
        Rows and columns of a training image, in pixels.
    batch_size
        Training images on each device.
    eval_batch_size
        Images of equal size in an evaluation batch, each at its own size.
    num_workers
        Processes that read images; see :func:`worker_count`.
    prefetch_factor
        Batches that each of them reads ahead; see :func:`readers`.
    cache, cache_dir
        Whether images are decoded once, and where they are kept then; see :func:`fcnlab.data.cache.with_cache`. What
        masks hold is kept in this folder in any case, by :mod:`fcnlab.data.label_counts`.
    download, archive
        Download the data set if it is missing, or unpack it from the user's tar files.
    folds, fold
        Divide the training list into ``folds`` parts. The part ``fold``, from 0, is held out: it takes the place of the
        validation list, and of the test list if there is none. The other parts are trained on.
    fold_group
        A pattern of names with ``{group}`` and ``*``: images of one group stay together in folds and fractions.
    stratify
        Distribute the images of each class evenly over the folds, which reads all masks.
    fraction
        The share of the training images that is used; a smaller share is a part of a larger one.
    allow_overlap
        Allow to evaluate on training images, to test whether a model can memorise them.
    read_only
        Only read existing data, and never download, draw or convert, whatever the other settings say: for data that an
        untrusted record names.
    """

    def __init__(
        self,
        dataset: Callable[[str, str], SegmentationDataset],
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
        folds: FoldCount | None = None,
        fold: Whole | None = None,
        fold_group: str | None = None,
        stratify: bool = False,
        fraction: Fraction | None = None,
    ):
        super().__init__()
        for name, value in (("eval_batch_size", eval_batch_size), ("prefetch_factor", prefetch_factor)):
            if isinstance(value, int) and value < 1:
                raise DataError(f"data.{name}={value} must be at least 1")
        self.open = read_only_data(dataset) if read_only else downloads_enabled(dataset, download, archive)
        self.read_only = read_only
        self.root = root
        self.folds = Folds(folds, fold, fold_group, stratify, fraction)
        # The training list itself, and the names of its parts, which stand for lists.
        self._divided = train_list
        self._trained = f"{train_list}, {self.folds.trained}" if self.folds.trained else train_list
        self._held_out = f"{train_list}, {self.folds.held_out}" if folds else None
        validated = self._held_out or val_list
        self.lists = {"train": self._trained, "val": validated, "test": test_list or validated}
        self.num_classes = num_classes
        self.augment = augment(crop_size)
        self.crop_size, self.batch_size, self.seed = crop_size, batch_size, seed
        self.eval_batch_size = eval_batch_size
        self.num_workers = worker_count(num_workers)
        self.prefetch_factor: int | Literal["auto"] = prefetch_factor
        self.cache: Kind = cache
        self.cache_dir = Path(cache_dir)
        self.allow_overlap = allow_overlap
        self._opened: dict[str, SegmentationDataset] = {}
        self._decoded: dict[str, SegmentationDataset] = {}
        self._fingerprints: dict[str, list[str]] = {}
        self._labels: dict[str, label_counts.LabelCounts] = {}
        self._readers: dict[str, Readers] = {}

    @staticmethod
    def conflicts(settings: Mapping[str, Any]) -> Iterator[str]:
        """Yield what is wrong with settings together, without their prefix ``data.``."""
        get = settings.get
        try:
            Folds(get("folds"), get("fold"), get("fold_group"), get("stratify", False), get("fraction"))
        except DataError as error:
            yield str(error).removeprefix("data.")
        except (TypeError, AttributeError):  # a value of another type, which its annotation refuses
            return

    def check(self, *splits: str, min_size: int = 1, target: bool = True) -> None:
        """Open splits and check all of their files, before any long work.

        ``min_size`` is the minimum of the shorter image side in pixels. Without ``target``, masks may be missing.

        Raises
        ------
        DataError
            See :meth:`SegmentationDataset.check`; also if the number of classes differs from the model's, if there are
            no masks, or if training images are evaluated.
        """
        if "train" in splits and not self.allow_overlap:
            self._check_overlap(*splits)
        for title in dict.fromkeys(self.lists[name] for name in splits):
            uses = [name for name in splits if self.lists[name] == title]
            dataset = self.split(uses[0])
            if len(dataset.classes) != self.num_classes:
                raise DataError(
                    f"{dataset.title} has {len(dataset.classes)} classes, but the model has {self.num_classes}:"
                    " set data.num_classes"
                )
            cropped = set(uses) == {"train"} and self.augment is not None
            if cropped and self.crop_size < min_size:
                raise DataError(f"data.crop_size={self.crop_size} is too small for the model: set at least {min_size}")
            images_there = any(map(isfile, dataset.images))  # otherwise the names are wrong, also those of masks
            if target and images_there and not any(map(isfile, dataset.masks)):
                raise DataError(
                    f"{dataset.title} has no masks (such as {next(iter(dataset.masks), 'PNGs')}), so it can only be"
                    " predicted, not trained on or evaluated. With data=folder, set data.dataset.masks to their"
                    " location, with {split} for the name of the list. For VOC's server: fcnlab predict data=voc ..."
                    " submission=FILE.tar.gz"
                )
            least = 1 if cropped else min_size
            if "train" in uses:
                least = max(least, getattr(self.augment, "min_size", 1))
            if target:
                self._labels[title] = label_counts.check(dataset, least, self.cache_dir)
            else:
                replace(dataset, masks=()).check(least)
            if "train" in uses:
                TrainingBatches(len(dataset), self.batch_size, self.seed)

    def _check_overlap(self, *splits: str) -> None:
        trained = self.split("train")
        lists = {self.lists[name]: name for name in splits if name != "train"}  # compare each list once
        for name in lists.values():
            scored = self.split(name)
            duplicates = find_duplicates(scored.images, trained.images)
            if duplicates:
                examples = ", ".join(
                    path.stem if path == twin else f"{path} is {twin}" for path, twin in duplicates[:3]
                )
                examples += ", …" if len(duplicates) > 3 else ""
                advice = f"Choose lists without common images (data.train_list, data.{name}_list)"
                if self.is_held_out(name):
                    advice = "Remove the copies, or name their files so that data.fold_group keeps them in one fold"
                raise DataError(
                    f"{len(duplicates)} of {len(scored)} images of {scored.title} are also in data.train_list="
                    f"{self.lists['train']} ({examples}): fcnlab refuses to evaluate on training images. {advice}, or"
                    " set data.allow_overlap=true"
                )

    def split(self, name: str) -> SegmentationDataset:
        """Return the data set of "train", "val" or "test", which is opened once."""
        title = self.lists[name]
        if title not in self._opened and self._is_part(title):
            self._open_parts()
        return self._opened_list(title)

    def whole(self, name: str) -> SegmentationDataset:
        """Return the whole list that a split is a part of; without folds and fractions, the split itself."""
        return self._opened_list(self._divided) if self._is_part(self.lists[name]) else self.split(name)

    def is_held_out(self, name: str) -> bool:
        """Return whether a split is the held-out fold."""
        return self.lists[name] == self._held_out

    def _is_part(self, title: str) -> bool:
        return title in (self._trained, self._held_out) and title != self._divided

    def _opened_list(self, title: str) -> SegmentationDataset:
        if title not in self._opened:
            self._opened[title] = self._open(title)
        return self._opened[title]

    def _open_parts(self) -> None:
        """Divide the training list."""
        whole = self._opened_list(self._divided)
        trained = range(len(whole))
        if self._held_out:
            held_out = self.folds.assign(whole) == self.folds.fold
            self._opened[self._held_out] = part(whole, np.flatnonzero(held_out).tolist(), self.folds.held_out)
            trained = np.flatnonzero(~held_out).tolist()
        self._opened[self._trained] = part(whole, self.folds.subset(whole, trained), self.folds.trained)

    def label_pixels(self, name: str) -> LabelPixels:
        """Return the pixels of each label in the masks of a checked split."""
        return self._labels[self.lists[name]].pixels

    def mask_conflicts(self, name: str) -> tuple[str, ...]:
        """Return a message for each contradiction between masks of a checked split."""
        return self._labels[self.lists[name]].conflicts

    def _open(self, title: str) -> SegmentationDataset:
        try:
            return self.open(self.root, title)
        except DataError as error:
            if not self.read_only:
                raise
            raise DataError(
                f"{error}\nfcnlab only reads data that a record names. If they are elsewhere, or must be downloaded or"
                " created, set data=NAME data.root=FOLDER"
            ) from error

    def decoded(self, name: str) -> SegmentationDataset:
        """Return the data set that the loaders read, from the cache, which the first call creates."""
        title = self.lists[name]
        if title not in self._decoded:
            self._decoded[title] = with_cache(self.split(name), self.cache, self.cache_dir)
        return self._decoded[title]

    def fingerprints(self, name: str) -> list[str]:
        """Return a fingerprint of each image of a split, independent of its path: the start of a hash of its file."""
        title = self.lists[name]
        if title not in self._fingerprints:
            paths = self.split(name).images
            digests = file_digests(list(dict.fromkeys(paths)))
            self._fingerprints[title] = [digests.get(path, bytes(FINGERPRINT)).hex()[:FINGERPRINT] for path in paths]
        return self._fingerprints[title]

    def content_digest(self, name: str) -> str:
        """Return a hash of a split: of the names, files and masks of its images, in any order, and of its classes."""
        dataset = self.split(name)
        masks = file_digests(list(dict.fromkeys(dataset.masks)))
        rows = zip(dataset.names, self.fingerprints(name), dataset.masks, strict=True)
        lines = sorted([image, file, masks.get(mask, b"").hex()] for image, file, mask in rows)
        return hashlib.sha256(json.dumps([list(dataset.classes), lines]).encode()).hexdigest()

    def training_pixels(self) -> int:
        """Return the number of pixels of a training image; without crops, of the first image."""
        if self.augment is not None:
            return self.crop_size**2
        return self.split("train").mask(0).size

    def train_dataloader(self) -> DataLoader:
        dataset = self.decoded("train")
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        batches = TrainingBatches(len(dataset), self.batch_size, self.seed, *self._place(), accumulate)
        batches.resume(*self._position(len(batches)))
        return Loader(
            TrainingSamples(dataset, self.augment, self.seed),
            batch_sampler=batches,
            collate_fn=collate,
            **self._loading("train"),
        )

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader("val", EvaluationSamples(self.decoded("val")), self.eval_batch_size)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader("test", EvaluationSamples(self.decoded("test")), self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader:
        # Directly from the files: each is read once, and the cache requires masks, which may be missing.
        return self._evaluation_loader("test", EvaluationSamples(self.split("test"), target=False), 1)

    def _evaluation_loader(self, name: str, samples: EvaluationSamples, batch_size: int) -> DataLoader:
        rank, world_size = self._place()
        share = range(rank, len(samples), world_size)  # unlike DistributedSampler, without repeated images
        # In prediction, Lightning replaces the sampler of batches of one image, and warns about any other.
        batches = (
            {"sampler": share}
            if batch_size == 1
            else {"batch_sampler": batches_of_equal_size(samples.dataset, share, batch_size)}
        )
        return Loader(samples, collate_fn=collate, **batches, **self._loading(name))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copy only pixels; the indices are used on the host, where they need no synchronisation."""
        pixels = {key: value for key, value in batch.items() if key != "index"}
        if device.type == "cuda":
            return batch | copy_async(pixels, device)
        return batch | super().transfer_batch_to_device(pixels, device, dataloader_idx)

    def _place(self) -> tuple[int, int]:
        """Return the rank of this process, and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _position(self, batches: int) -> tuple[int, int]:
        """Return the epoch to resume and the number of its finished batches; (0, 0) in a new run."""
        if self.trainer is None:
            return 0, 0
        loop = self.trainer.fit_loop
        epochs: Any = loop.epoch_progress.current  # Lightning's annotations are too narrow
        batches_done: Any = loop.epoch_loop.batch_progress.current
        done = batches_done.processed
        if epochs.started <= epochs.processed:  # the checkpoint is of an epoch's end
            return epochs.processed, 0
        return (epochs.processed, done) if done < batches else (epochs.processed + 1, 0)

    def readers(self, name: str, processes: int = 1) -> Readers:
        """Return the workers of a split, given ``processes`` of this run on this machine; decided once."""
        if name not in self._readers:
            size = self._batch_bytes(name) if self.num_workers else 1
            self._readers[name] = readers(self.num_workers, self.prefetch_factor, size * processes)
        return self._readers[name]

    def _batch_bytes(self, name: str) -> int:
        """Return the bytes of the largest batch of a split: three channels and the mask."""
        if name == "train" and self.augment is not None:
            return 4 * self.batch_size * self.crop_size**2
        dataset = self.split(name)
        rows, cols = map(max, zip(*map(dataset.size, range(len(dataset))), strict=True))
        return 4 * (self.batch_size if name == "train" else self.eval_batch_size) * rows * cols

    def _loading(self, name: str) -> dict:
        """Return the arguments that all loaders share."""
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        workers, ahead, _ = self.readers(name)
        return {
            "num_workers": workers,
            "prefetch_factor": ahead,
            "persistent_workers": workers > 0,
            "pin_memory": on_gpu,
            "worker_init_fn": prepare_worker,
            # The loader draws a base seed from its generator; its own generator leaves the global one unchanged.
            "generator": torch.Generator().manual_seed(self.seed),
        }


def copy_async(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to a GPU while the GPU still computes the previous one.

    Lightning also copies pinned memory asynchronously, but on the compute stream, so that the copy starts only after
    the computation. Here the copy has its own stream, for which later computation waits; ``record_stream`` keeps its
    memory from reuse until then.
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
    """Return the copy stream of a GPU, created once per process."""
    return torch.cuda.Stream(device)
