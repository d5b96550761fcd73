"""Samplers that choose the images of each batch."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from fcnlab.data.dataset import SegmentationDataset
from fcnlab.data.image_files import DataError


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """A batch sampler with a new order in each epoch, split into global batches, of which every rank takes its share.

    The images of a global batch (``batch_size`` on each of ``world_size`` ranks, ``accumulate`` times) depend only on
    seed, epoch and global batch size. The last images of an epoch, too few for a global batch, are dropped.
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, accumulate: int = 1):
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world_size, self.accumulate = rank, world_size, accumulate
        self.epoch = self.skip = 0
        if len(self) == 0:
            ranks = f" on each of {world_size} devices" if world_size > 1 else ""
            times = f", accumulated {accumulate} times," if accumulate > 1 else ""
            raise DataError(
                f"data.batch_size={batch_size}{ranks}{times} is larger than the {count} training images: lower it"
            )

    @property
    def sampler(self) -> "TrainingBatches":
        """Return self: Lightning calls ``set_epoch`` of this attribute, not of the batch sampler itself."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each epoch, and on a resume only after the first batches."""
        if epoch != self.epoch:
            self.epoch, self.skip = epoch, 0

    def resume(self, epoch: int, done: int) -> None:
        """Resume in an epoch with ``done`` finished batches."""
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


def batches_of_equal_size(dataset: SegmentationDataset, share: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return batches of images of equal size, so that none is padded; each image of the share is in one batch."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for index in share:
        by_size.setdefault(dataset.size(index), []).append(index)
    batches = [
        indices[first : first + batch_size]
        for indices in by_size.values()
        for first in range(0, len(indices), batch_size)
    ]
    return sorted(batches)
