"""Samples of a split as tensors, and batches of them."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from fcnlab.data.dataset import IGNORE_INDEX, SegmentationDataset
from fcnlab.data.loader_workers import Batch, to_shared_memory
from fcnlab.data.transforms import FILL, Augment


class TrainingSamples(Dataset):
    """Augmented images by (epoch, index); the same key and seed return the same sample in any process."""

    def __init__(self, dataset: SegmentationDataset, augment: Augment | None, seed: int):
        self.dataset, self.augment, self.seed = dataset, augment, seed

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, index = key
        image, mask = self.dataset.image(index), self.dataset.mask(index)
        if self.augment is not None:
            image, mask = self.augment(image, mask, seed=(self.seed, epoch, index))
        return as_tensors(image, mask, index)


class EvaluationSamples(Dataset):
    """Whole images at their own size, by index; without ``target``, all pixels have the ignore index."""

    def __init__(self, dataset: SegmentationDataset, target: bool = True):
        self.dataset, self.target = dataset, target

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Batch:
        return as_tensors(self.dataset.image(index), self.dataset.mask(index) if self.target else None, index)


def as_tensors(image: np.ndarray, mask: np.ndarray | None, index: int) -> Batch:
    """Return a sample as uint8 tensors, a quarter of the size of floats; without a mask, all pixels are ignored."""
    pixels = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, [pixels[channel] for channel in range(3)])  # five times as fast as a transposed copy
    mask = np.full(image.shape[:2], IGNORE_INDEX, np.uint8) if mask is None else mask
    # Copy the mask, because a cached mask is a read-only view.
    return {"image": torch.from_numpy(pixels), "mask": torch.tensor(mask), "index": torch.tensor(index)}


def collate(samples: Sequence[Batch]) -> Batch:
    """Stack samples; smaller ones are padded at the bottom right with a constant colour and the ignore index."""
    if len({sample["mask"].shape for sample in samples}) == 1:
        return to_shared_memory({key: torch.stack([sample[key] for sample in samples]) for key in samples[0]})
    rows, cols = (max(sample["mask"].shape[axis] for sample in samples) for axis in (0, 1))
    images = torch.tensor(FILL, dtype=torch.uint8).view(1, 3, 1, 1).repeat(len(samples), 1, rows, cols)
    masks = torch.full((len(samples), rows, cols), IGNORE_INDEX, dtype=torch.uint8)
    for place, sample in enumerate(samples):
        height, width = sample["mask"].shape
        images[place, :, :height, :width] = sample["image"]
        masks[place, :height, :width] = sample["mask"]
    return to_shared_memory(
        {"image": images, "mask": masks, "index": torch.stack([sample["index"] for sample in samples])}
    )
