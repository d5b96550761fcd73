"""Counting pixels on the device: an integer confusion matrix for each image; scores are in fcnlab.metrics.scores."""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int64, Integer
from torch import Tensor

from fcnlab.library_internals.torchmetrics import UnsqueezedMetric
from fcnlab.metrics.scores import IGNORE_INDEX, Scores, scores

TABLES = 8


def confusion_matrix(
    prediction: Integer[Tensor, "*pixels"],
    target: Integer[Tensor, "*pixels"],
    num_classes: int,
    ignore_index: int = IGNORE_INDEX,
) -> Int64[Tensor, "truth prediction"]:
    """Pixels by (truth, prediction); where the truth is void, a pixel counts nowhere.

    An unweighted bincount is exact, deterministic on every device, and takes no more memory than the image. What is
    no class gets a row of its own, which is cut off: faster than to leave those pixels out. Neighbours are counted in
    different tables, since a processor waits where it adds to the same number twice in a row. A label that is neither
    a class nor void would be lost: :class:`fcnlab.data.dataset.SegmentationDataset` lets none through.
    """
    table = (num_classes + 1) * num_classes
    kind = torch.int16 if TABLES * table <= torch.iinfo(torch.int16).max else torch.int32
    cells = prediction.to(kind, copy=True)
    cells.add_(target.clamp(max=min(num_classes, 255)), alpha=num_classes)
    cells += _tables(cells.shape[-1], table, kind, cells.device)
    count = (
        torch.bincount if cells.is_cpu or cells.is_mps else deterministic_bincount
    )  # bincount waits to know the largest number
    counts = count(cells.flatten(), minlength=TABLES * table).view(TABLES, num_classes + 1, num_classes)
    matrix = counts[:, :num_classes].sum(0)
    if ignore_index < num_classes:
        matrix[ignore_index] = 0
    return matrix


def deterministic_bincount(numbers: Integer[Tensor, " pixel"], minlength: int) -> Int64[Tensor, " number"]:
    """A bincount of numbers below ``minlength``; additions of integers give the same in any order."""
    counts = torch.zeros(minlength, dtype=torch.int64, device=numbers.device)
    one = torch.ones((), dtype=torch.int64, device=numbers.device)
    return counts.scatter_add_(0, numbers.long(), one.expand(len(numbers)))


@lru_cache(maxsize=64)
def _tables(cols: int, table: int, kind: torch.dtype, device: torch.device) -> Integer[Tensor, " cols"]:
    """Where the table of each pixel of a row begins."""
    return (torch.arange(cols, device=device) % TABLES * table).to(kind)


class ImageConfusions(UnsqueezedMetric):
    """A confusion matrix for each image of a set, by its index, from which everything else follows.

    Every rank fills the rows of its own images, so that summing over ranks neither pads nor repeats; an image
    that was counted twice is an error, not a slightly wrong score.
    """

    full_state_update = False
    higher_is_better = True
    matrices: Tensor
    seen: Tensor

    def __init__(self, num_images: int, num_classes: int, ignore_index: int = IGNORE_INDEX):
        super().__init__()
        self.num_classes, self.ignore_index = num_classes, ignore_index
        shape = (num_images, num_classes, num_classes)
        self.add_state("matrices", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("seen", torch.zeros(num_images, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        prediction: Integer[Tensor, "batch rows cols"],
        target: Integer[Tensor, "batch rows cols"],
        index: Integer[Tensor, " batch"],
    ) -> None:
        """Count a batch; ``index`` says which image of the set each one is."""
        for image, labels, targets in zip(index.tolist(), prediction, target, strict=True):
            self.matrices[image].add_(confusion_matrix(labels, targets, self.num_classes, self.ignore_index))
            self.seen[image].add_(1)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Indices of the images counted, (n,), and their matrices, (n, truth, prediction).

        Raises
        ------
        RuntimeError
            An image was counted more than once.
        """
        if bool((self.seen > 1).any()):
            twice = self.seen.argmax().item()
            raise RuntimeError(f"image {twice} was counted {self.seen.max().item()} times: scores would be wrong")
        index = self.seen.nonzero().flatten()
        return index, self.matrices[index]

    def unsqueezed(self, result: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Also of a single image, and of a single class."""
        index, matrices = result
        return index.view(-1), matrices.view(-1, self.num_classes, self.num_classes)


def dataset_scores(matrices: Int64[Tensor, "image truth prediction"] | np.ndarray) -> Scores:
    """The scores of a whole set: of the sum of its matrices, not the mean of its images' scores."""
    total = matrices.sum(0)
    return scores(total.cpu().numpy() if isinstance(total, Tensor) else total)
