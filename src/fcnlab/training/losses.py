"""Losses on the scores of every pixel: ``loss(scores, target)``; ignored pixels are left out of every sum and mean.

A step may consist of several parts: accumulated batches, and devices. A loss that is a sum over pixels divided by a
count (:func:`is_sum_over_pixels`) then equals the loss of all images in one batch: sums and counts are added, and
divided once. Any other loss is averaged over the parts, which gives another value than one batch.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Integer, Num
from torch import Tensor, nn

from fcnlab.config.ranges import Count, Fraction, Meaning, NonNegative
from fcnlab.metrics.scores import IGNORE_INDEX
from fcnlab.models import CoarseScores

ScoreMap = Float[Tensor, "batch classes rows cols"]
LabelMap = Int64[Tensor, "batch rows cols"]
Scalar = Float[Tensor, ""]
Weights = Annotated[Sequence[NonNegative], Meaning("weights of at least 0, one for each class, not all 0", any)]
PixelCount = Num[Tensor, ""] | int
MIN_COUNT = 1e-6  # a divisor is at least this: the loss of a batch with ignored pixels alone is 0, not nan


class PixelLoss(nn.Module):
    """A sum over pixels, divided by a count that does not depend on the scores.

    It can therefore be computed from coarse scores, a block of rows at a time, with the same gradient (the target may
    then have any integer type), and it is exact in a step of several parts (see above).
    """

    def forward(self, scores: ScoreMap | CoarseScores, target: Integer[Tensor, "batch rows cols"]) -> Scalar:
        return mean_from(self.whole_total(scores, target), self.count(target))

    def whole_total(self, scores: ScoreMap | CoarseScores, target: Integer[Tensor, "batch rows cols"]) -> Scalar:
        """Return the sum over all pixels."""
        by_rows = isinstance(scores, CoarseScores)
        return scores.sum_over_rows(self.total, target) if by_rows else self.total(scores, target)

    def total(self, scores: ScoreMap, target: LabelMap) -> Scalar:
        """Return the sum over the pixels of some rows."""
        raise NotImplementedError

    def count(self, target: Integer[Tensor, "batch rows cols"]) -> PixelCount:
        """Return the divisor of the sum over all pixels; 0 where all pixels are ignored."""
        raise NotImplementedError


class CrossEntropy(PixelLoss):
    """The mean cross-entropy over all pixels of the batch that are not ignored; 0 if there are none.

    ``class_weights`` weight each pixel by its ground-truth class; the mean is a weighted mean.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: Weights | None = None):
        super().__init__()
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def total(self, scores: ScoreMap, target: LabelMap) -> Scalar:
        if self.class_weights is not None and len(self.class_weights) != scores.shape[1]:
            raise ValueError(f"loss.class_weights has {len(self.class_weights)} values for {scores.shape[1]} classes")
        return _sum_over_pixels(scores, target, self.class_weights)

    def count(self, target: Integer[Tensor, "batch rows cols"]) -> Num[Tensor, ""]:
        return _weight(target, self.class_weights)


class CrossEntropySum(PixelLoss):
    """The sum over the pixels of an image, averaged over images: the papers' "heavy" recipe, with an lr near 1e-10."""

    def total(self, scores: ScoreMap, target: LabelMap) -> Scalar:
        return _sum_over_pixels(scores, target)

    def count(self, target: Integer[Tensor, "batch rows cols"]) -> int:
        return len(target)


def _sum_over_pixels(scores: ScoreMap, target: LabelMap, class_weights: Tensor | None = None) -> Scalar:
    """Return the summed cross-entropy; summed here, since torch's own sum is not deterministic on a GPU."""
    return F.cross_entropy(scores, target, weight=class_weights, ignore_index=IGNORE_INDEX, reduction="none").sum()


class SelectedPixels(nn.Module):
    """Another loss, computed on a selection of the pixels in training and on all pixels in evaluation."""

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, scores: ScoreMap | CoarseScores, target: Integer[Tensor, "batch rows cols"]) -> Scalar:
        return self.loss(*self.pick(scores, target))

    def pick(self, scores, target):
        """Return the scores and the target of the selected pixels; a random selection is drawn anew at each call."""
        raise NotImplementedError


class SampledPixels(SelectedPixels):
    """Patchwise training as loss sampling: a random selection of cells in each step (CVPR 2015, section 3.4).

    A cell is a square of ``cell`` x ``cell`` pixels, cropped at the image's border. Each cell is kept with probability
    ``keep``, 0 < keep <= 1; the pixels of the others are ignored. To keep the number of cells per step, use
    ``1 / keep`` times as many images. In evaluation all pixels count.
    """

    def __init__(self, loss: nn.Module, keep: Fraction = 0.5, cell: Count = 32):
        super().__init__(loss)
        if not 0 < keep <= 1:
            raise ValueError(f"loss.keep={keep} must be a probability above 0 and at most 1")
        if cell < 1:
            raise ValueError(f"loss.cell={cell} must be at least 1 pixel")
        self.keep, self.cell = keep, cell

    def pick(self, scores, target):
        if not self.training:
            return scores, target
        batch, rows, cols = target.shape
        cells = torch.rand(batch, -(-rows // self.cell), -(-cols // self.cell), device=target.device) < self.keep
        kept = cells.repeat_interleave(self.cell, 1).repeat_interleave(self.cell, 2)[:, :rows, :cols]
        return scores, target.where(kept, IGNORE_INDEX)


class CentrePixels(SelectedPixels):
    """The loss of a patch classifier: only the central square of ``cell`` x ``cell`` pixels of each crop counts.

    With crops as large as the receptive field, this is the patchwise training that preceded FCNs (CVPR 2015,
    section 3.4). In evaluation all pixels count.
    """

    def __init__(self, loss: nn.Module, cell: Count = 1):
        super().__init__(loss)
        if cell < 1:
            raise ValueError(f"loss.cell={cell} must be at least 1 pixel")
        self.cell = cell

    def pick(self, scores, target):
        if not self.training:
            return scores, target
        top, left = ((length - self.cell) // 2 for length in target.shape[1:])
        if min(top, left) < 0:
            raise ValueError(
                f"loss.cell={self.cell} is larger than the crop of {target.shape[1]}x{target.shape[2]} pixels"
            )
        centre = (..., slice(top, top + self.cell), slice(left, left + self.cell))
        return scores[centre], target[centre]


class OHEM(nn.Module):
    """Online hard example mining: the mean over the pixels with the largest loss (Shrivastava et al., CVPR 2016).

    ``fraction`` of the pixels of the batch that are not ignored are kept, 0 < fraction <= 1. In a step of several parts
    these are the hardest pixels of each part, not of the whole step, so the loss differs from that of one batch.
    """

    def __init__(self, fraction: Fraction = 0.25):
        super().__init__()
        if not 0 < fraction <= 1:
            raise ValueError(f"loss.fraction={fraction} must be above 0 and at most 1")
        self.fraction = fraction

    def forward(self, scores: ScoreMap, target: LabelMap) -> Scalar:
        pixels = F.cross_entropy(scores, target, ignore_index=IGNORE_INDEX, reduction="none").flatten()  # 0 if ignored
        limit = max(1, round(self.fraction * len(pixels)))
        # The number of kept pixels stays on the device: reading it would wait for the device.
        kept = (self.fraction * (target != IGNORE_INDEX).sum()).round().clamp(1, limit)
        hardest = pixels.topk(limit).values
        return hardest.where(torch.arange(limit, device=kept.device) < kept, 0).sum() / kept


class Focal(PixelLoss):
    """The mean of cross-entropy times (1 - p)^gamma (Lin et al., ICCV 2017), where p is the target's probability."""

    def __init__(self, gamma: NonNegative = 2.0):
        super().__init__()
        self.gamma = gamma

    def total(self, scores: ScoreMap, target: LabelMap) -> Scalar:
        pixels = F.cross_entropy(scores, target, ignore_index=IGNORE_INDEX, reduction="none")
        modulation = (1 - (-pixels).exp()).clamp(min=1e-6)  # at 0, the gradient of a power below 1 is nan
        return (modulation**self.gamma * pixels * (target != IGNORE_INDEX)).sum()

    def count(self, target: Integer[Tensor, "batch rows cols"]) -> Num[Tensor, ""]:
        return _weight(target)


class Dice(nn.Module):
    """One minus the soft Dice coefficient, averaged over the classes in the batch (Milletari et al., 3DV 2016).

    In a step of several parts the coefficient is computed per part, so the loss differs from that of one batch.
    """

    def forward(self, scores: ScoreMap, target: LabelMap) -> Scalar:
        valid = (target != IGNORE_INDEX)[:, None]
        probability, one_hot = scores.softmax(1) * valid, _one_hot(scores, target)
        overlap = (probability * one_hot).sum((0, 2, 3))
        pixels = one_hot.sum((0, 2, 3))
        size = (probability.sum((0, 2, 3)) + pixels).clamp(min=1)  # a present class has at least 1 pixel
        present = pixels > 0
        return (1 - 2 * overlap / size).where(present, 0).sum() / present.sum().clamp(min=1)


class Lovasz(nn.Module):
    """Lovász-softmax over the classes in the batch (Berman et al., CVPR 2018): a convex extension of the IoU loss.

    Each step waits for the device to report the classes in the batch: sorting the pixels of all classes would take
    longer. In a step of several parts the IoU is computed per part, so the loss differs from that of one batch.
    """

    def forward(self, scores: ScoreMap, target: LabelMap) -> Scalar:
        one_hot = _one_hot(scores, target)
        present = [label for label, exists in enumerate(one_hot.any(-1).any(-1).any(0).tolist()) if exists]
        errors = (one_hot.to(scores.dtype) - scores.softmax(1)).abs() * (target != IGNORE_INDEX)[:, None]
        losses = [_lovasz_hinge(errors[:, label].flatten(), one_hot[:, label].flatten()) for label in present]
        return torch.stack(losses).mean() if losses else scores.sum() * 0.0


def _lovasz_hinge(errors: Float[Tensor, " pixel"], foreground: Bool[Tensor, " pixel"]) -> Scalar:
    """Return the sum of the errors in descending order, weighted by the gradient of the Lovász extension.

    Ignored pixels have an error of 0: they come last, and their weight has no effect.
    """
    errors, order = errors.sort(descending=True)
    foreground = foreground[order].to(errors.dtype)
    union = foreground.sum() + (1 - foreground).cumsum(0)
    jaccard_loss = 1 - (foreground.sum() - foreground.cumsum(0)) / union
    weights = torch.cat([jaccard_loss[:1], jaccard_loss.diff()])
    return (errors * weights).sum()


def _one_hot(scores: ScoreMap, target: LabelMap) -> Bool[Tensor, "batch classes rows cols"]:
    """Return the one-hot target; an ignored pixel has no class."""
    return target[:, None] == torch.arange(scores.shape[1], device=target.device)[:, None, None]


def supports_row_blocks(loss: nn.Module | None) -> bool:
    """Return whether a loss accepts coarse scores: a sum over pixels, or such a sum over sampled pixels."""
    return isinstance(loss, PixelLoss) or (isinstance(loss, SampledPixels) and supports_row_blocks(loss.loss))


def is_sum_over_pixels(loss: nn.Module) -> bool:
    """Return whether a step of several parts has the loss of one batch: sums and counts can be added over parts."""
    return isinstance(loss, PixelLoss) or (isinstance(loss, SelectedPixels) and is_sum_over_pixels(loss.loss))


def sum_and_count(
    loss: nn.Module, scores: ScoreMap | CoarseScores, target: Integer[Tensor, "batch rows cols"]
) -> tuple[Scalar, PixelCount]:
    """Return a loss's sum over pixels and its divisor, for one random selection where it samples pixels.

    For a loss that is no such quotient, return its value and 1, so that the parts of a step are averaged.
    """
    if isinstance(loss, SelectedPixels):
        return sum_and_count(loss.loss, *loss.pick(scores, target))
    if isinstance(loss, PixelLoss):
        return loss.whole_total(scores, target), loss.count(target)
    return loss(scores, target), 1


def mean_from(total: Scalar, count: PixelCount) -> Scalar:
    """Return total / count; 0 where the count is 0."""
    return total / (count if isinstance(count, int) else count.clamp(min=MIN_COUNT))


def _weight(target: Integer[Tensor, "batch rows cols"], class_weights: Tensor | None = None) -> Num[Tensor, ""]:
    """Return the sum of the weights of all pixels that are not ignored."""
    valid = target != IGNORE_INDEX
    if class_weights is None:
        return valid.sum()
    return class_weights[target.where(valid, 0).long()].mul(valid).sum()
