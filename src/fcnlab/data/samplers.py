"""Which images make up a batch."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from fcnlab.data.dataset import SegmentationDataset
from fcnlab.data.image_files import DataError


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """Each epoch a new order, cut into global batches; every rank takes its share of each.

    Which images meet in a global batch (``batch_size`` on each of ``world_size`` ranks, ``accumulate`` times)
    depends on (seed, epoch, global batch size) alone. The few images that do not fill a global batch wait for
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
                f"data.batch_size={batch_size}{ranks}{times} is more than the {count} training images: lower it"
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


def batches_of_equal_size(dataset: SegmentationDataset, share: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches of images of one size each, so that none is padded; each image of the share is in one batch."""
    alike: dict[tuple[int, int], list[int]] = {}
    for index in share:
        alike.setdefault(dataset.size(index), []).append(index)
    batches = [
        found[first : first + batch_size] for found in alike.values() for first in range(0, len(found), batch_size)
    ]
    return sorted(batches)
