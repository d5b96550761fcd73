"""Count pixels on the device: an integer confusion matrix for each image; see fcnlab.metrics.scores for scores."""

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
) -> Int64[Tensor, "target prediction"]:
    """Return the pixel counts by (target, prediction); pixels with target ``ignore_index`` are not counted.

    An unweighted bincount is exact, deterministic on every device, and needs no more memory than the image. Ignored
    pixels get a row of their own, which is cut off: this is faster than removing those pixels. Neighbouring pixels are
    counted in different tables, because adding to the same number twice in a row stalls the processor. Other invalid
    labels would be lost; :class:`fcnlab.data.dataset.SegmentationDataset` rejects them.
    """
    table = (num_classes + 1) * num_classes
    kind = torch.int16 if TABLES * table <= torch.iinfo(torch.int16).max else torch.int32
    cells = prediction.to(kind, copy=True)
    cells.add_(target.clamp(max=min(num_classes, 255)), alpha=num_classes)
    cells += _tables(cells.shape[-1], table, kind, cells.device)
    # On a GPU, torch.bincount waits to know the largest number.
    count = torch.bincount if cells.is_cpu or cells.is_mps else deterministic_bincount
    counts = count(cells.flatten(), minlength=TABLES * table).view(TABLES, num_classes + 1, num_classes)
    matrix = counts[:, :num_classes].sum(0)
    if ignore_index < num_classes:
        matrix[ignore_index] = 0
    return matrix


def deterministic_bincount(numbers: Integer[Tensor, " pixel"], minlength: int) -> Int64[Tensor, " number"]:
    """Return a bincount of numbers below ``minlength``; integer additions do not depend on their order."""
    counts = torch.zeros(minlength, dtype=torch.int64, device=numbers.device)
    one = torch.ones((), dtype=torch.int64, device=numbers.device)
    return counts.scatter_add_(0, numbers.long(), one.expand(len(numbers)))


@lru_cache(maxsize=64)
def _tables(cols: int, table: int, kind: torch.dtype, device: torch.device) -> Integer[Tensor, " cols"]:
    """Return the offset of the table for each pixel of a row."""
    return (torch.arange(cols, device=device) % TABLES * table).to(kind)


class ImageConfusions(UnsqueezedMetric):
    """A torchmetrics metric with a confusion matrix for each image of a set, by its index.

    Every rank fills the rows of its own images, so that the sum over ranks contains no padded or repeated images; an
    image that was counted twice raises an error instead of changing the scores slightly.
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
        """Count a batch; ``index`` contains the index of each image in the set."""
        for image, labels, targets in zip(index.tolist(), prediction, target, strict=True):
            self.matrices[image].add_(confusion_matrix(labels, targets, self.num_classes, self.ignore_index))
            self.seen[image].add_(1)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the indices of the counted images, (n,), and their matrices, (n, target, prediction).

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
        """Restore the shapes that torchmetrics squeezes for a single image or a single class."""
        index, matrices = result
        return index.view(-1), matrices.view(-1, self.num_classes, self.num_classes)


def dataset_scores(matrices: Int64[Tensor, "image target prediction"] | np.ndarray) -> Scores:
    """Return the scores of the sum of all matrices, not the mean of the scores of single images."""
    total = matrices.sum(0)
    return scores(total.cpu().numpy() if isinstance(total, Tensor) else total)
