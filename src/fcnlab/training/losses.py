"""Losses on scores of every pixel: ``loss(scores, truth)`` with void left out of every sum and mean.

A step may come in parts: batches that are accumulated, and devices. A loss that is a sum over pixels divided by a count
(:func:`adds_up`) is then that of all its images at once: sums and counts are added up, and divided once. Of any other
the mean over the parts is taken, which is another loss.
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
LEAST = 1e-6  # of a count that is divided by: a batch of nothing but void costs 0 and not nan


class PixelLoss(nn.Module):
    """A sum over pixels, divided by a count that does not depend on the scores.

    So it can be taken straight from coarse scores, a block of rows at a time, with the same gradient; the truth
    may then be of any integer type. And a step that comes in parts (see above) is exact.
    """

    def forward(self, scores: ScoreMap | CoarseScores, target: Integer[Tensor, "batch rows cols"]) -> Scalar:
        return mean_from(self.whole_total(scores, target), self.count(target))

    def whole_total(self, scores: ScoreMap | CoarseScores, target: Integer[Tensor, "batch rows cols"]) -> Scalar:
        """The sum over all pixels."""
        by_rows = isinstance(scores, CoarseScores)
        return scores.sum_over_rows(self.total, target) if by_rows else self.total(scores, target)

    def total(self, scores: ScoreMap, target: LabelMap) -> Scalar:
        """The sum over the pixels of some rows."""
        raise NotImplementedError

    def count(self, target: Integer[Tensor, "batch rows cols"]) -> PixelCount:
        """What the sum over all pixels is divided by; 0 where nothing counts."""
        raise NotImplementedError


class CrossEntropy(PixelLoss):
    """The mean over all pixels of the batch that are not void; 0 where there are none.

    ``class_weights`` weigh each pixel by its true class, and the mean with it.
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
    """The sum over a image's pixels, averaged over images: the papers' "heavy" recipe, with rates near 1e-10."""

    def total(self, scores: ScoreMap, target: LabelMap) -> Scalar:
        return _sum_over_pixels(scores, target)

    def count(self, target: Integer[Tensor, "batch rows cols"]) -> int:
        return len(target)


def _sum_over_pixels(scores: ScoreMap, target: LabelMap, class_weights: Tensor | None = None) -> Scalar:
    """Summed here, since torch's own sum over pixels refuses trainer.deterministic=true on a GPU."""
    return F.cross_entropy(scores, target, weight=class_weights, ignore_index=IGNORE_INDEX, reduction="none").sum()


class SelectedPixels(nn.Module):
    """Another loss, in training of some of the pixels; in evaluation all count."""

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, scores: ScoreMap | CoarseScores, target: Integer[Tensor, "batch rows cols"]) -> Scalar:
        return self.loss(*self.pick(scores, target))

    def pick(self, scores, target):
        """Scores and truth that the loss is taken of. What is drawn is drawn anew at each call."""
        raise NotImplementedError


class SampledPixels(SelectedPixels):
    """Patchwise training as loss sampling: a part of the cells counts, drawn anew each time (CVPR 2015, section 3.4).

    A cell is a square of ``cell`` pixels, the last ones cut off by the image's border. Each counts with probability
    ``keep``, 0 < keep <= 1, in ``loss``; the others are void. For as many cells in a step as without it, take
    ``1 / keep`` times the images. In evaluation all count.
    """

    def __init__(self, loss: nn.Module, keep: Fraction = 0.5, cell: Count = 32):
        super().__init__(loss)
        if not 0 < keep <= 1:
            raise ValueError(f"loss.keep={keep}: choose a probability above 0, at most 1")
        if cell < 1:
            raise ValueError(f"loss.cell={cell}: at least 1 pixel")
        self.keep, self.cell = keep, cell

    def pick(self, scores, target):
        if not self.training:
            return scores, target
        batch, rows, cols = target.shape
        cells = torch.rand(batch, -(-rows // self.cell), -(-cols // self.cell), device=target.device) < self.keep
        kept = cells.repeat_interleave(self.cell, 1).repeat_interleave(self.cell, 2)[:, :rows, :cols]
        return scores, target.where(kept, IGNORE_INDEX)


class CentrePixels(SelectedPixels):
    """A patch classifier's loss: of each crop only the square of ``cell`` pixels in its middle counts, in ``loss``.

    On crops as large as the net's receptive field, that trains as nets for patches were trained before FCNs (CVPR 2015,
    section 3.4). In evaluation all pixels count.
    """

    def __init__(self, loss: nn.Module, cell: Count = 1):
        super().__init__(loss)
        if cell < 1:
            raise ValueError(f"loss.cell={cell}: at least 1 pixel")
        self.cell = cell

    def pick(self, scores, target):
        if not self.training:
            return scores, target
        top, left = ((length - self.cell) // 2 for length in target.shape[1:])
        if min(top, left) < 0:
            raise ValueError(f"loss.cell={self.cell} is more than a crop of {target.shape[1]}x{target.shape[2]}")
        place = (..., slice(top, top + self.cell), slice(left, left + self.cell))
        return scores[place], target[place]


class OHEM(nn.Module):
    """Online hard example mining: the mean over the pixels with the largest loss (Shrivastava et al., CVPR 2016).

    ``fraction`` of the pixels of the batch that are not void are kept, 0 < fraction <= 1. In a step of several parts
    those are the hardest of each part, not of the whole step: another loss.
    """

    def __init__(self, fraction: Fraction = 0.25):
        super().__init__()
        if not 0 < fraction <= 1:
            raise ValueError(f"loss.fraction={fraction}: choose a share of the pixels above 0, at most 1")
        self.fraction = fraction

    def forward(self, scores: ScoreMap, target: LabelMap) -> Scalar:
        pixels = F.cross_entropy(scores, target, ignore_index=IGNORE_INDEX, reduction="none").flatten()  # 0 where void
        most = max(1, round(self.fraction * len(pixels)))
        kept = (
            (self.fraction * (target != IGNORE_INDEX).sum()).round().clamp(1, most)
        )  # on the device, which nobody waits for
        hardest = pixels.topk(most).values
        return hardest.where(torch.arange(most, device=kept.device) < kept, 0).sum() / kept


class Focal(PixelLoss):
    """Cross-entropy times (1 - p)^gamma, p being the true class's probability (Lin et al., ICCV 2017), as a mean."""

    def __init__(self, gamma: NonNegative = 2.0):
        super().__init__()
        self.gamma = gamma

    def total(self, scores: ScoreMap, target: LabelMap) -> Scalar:
        pixels = F.cross_entropy(scores, target, ignore_index=IGNORE_INDEX, reduction="none")
        doubt = (1 - (-pixels).exp()).clamp(min=1e-6)  # at 0, a power below 1 has no gradient but nan
        return (doubt**self.gamma * pixels * (target != IGNORE_INDEX)).sum()

    def count(self, target: Integer[Tensor, "batch rows cols"]) -> Num[Tensor, ""]:
        return _weight(target)


class Dice(nn.Module):
    """One minus the soft Dice coefficient, as a mean over the classes in the batch (Milletari et al., 3DV 2016).

    In a step of several parts each has a coefficient of its own, and their mean is another loss than that of the whole.
    """

    def forward(self, scores: ScoreMap, target: LabelMap) -> Scalar:
        known = (target != IGNORE_INDEX)[:, None]
        probability, member = scores.softmax(1) * known, _members(scores, target)
        overlap = (probability * member).sum((0, 2, 3))
        pixels = member.sum((0, 2, 3))
        size = (probability.sum((0, 2, 3)) + pixels).clamp(min=1)  # that of a class which is there is not less
        present = pixels > 0
        return (1 - 2 * overlap / size).where(present, 0).sum() / present.sum().clamp(min=1)


class Lovasz(nn.Module):
    """Lovász-softmax over the classes that are in the batch (Berman et al., CVPR 2018): IoU's convex extension.

    Which classes those are is asked of the device at every step: to sort the pixels of all would take longer. In a step
    of several parts each has an IoU of its own, and their mean is another loss than that of the whole.
    """

    def forward(self, scores: ScoreMap, target: LabelMap) -> Scalar:
        member = _members(scores, target)
        present = [label for label, there in enumerate(member.any(-1).any(-1).any(0).tolist()) if there]
        errors = (member.to(scores.dtype) - scores.softmax(1)).abs() * (target != IGNORE_INDEX)[:, None]
        losses = [_lovasz_hinge(errors[:, label].flatten(), member[:, label].flatten()) for label in present]
        return torch.stack(losses).mean() if losses else scores.sum() * 0.0


def _lovasz_hinge(errors: Float[Tensor, " pixel"], member: Bool[Tensor, " pixel"]) -> Scalar:
    """The errors from the largest down, each weighed by how much IoU is lost when it joins the earlier ones.

    Void pixels have no error: they come last, and their weight is of no account.
    """
    errors, order = errors.sort(descending=True)
    member = member[order].to(errors.dtype)
    union = member.sum() + (1 - member).cumsum(0)
    lost = 1 - (member.sum() - member.cumsum(0)) / union
    steps = torch.cat([lost[:1], lost.diff()])
    return (errors * steps).sum()


def _members(scores: ScoreMap, target: LabelMap) -> Bool[Tensor, "batch classes rows cols"]:
    """Which class each pixel is of; of none where it is void."""
    return target[:, None] == torch.arange(scores.shape[1], device=target.device)[:, None, None]


def supports_row_blocks(loss: nn.Module | None) -> bool:
    """Whether a loss takes coarse scores: one that is a sum over pixels, or that picks the pixels of one that is."""
    return isinstance(loss, PixelLoss) or (isinstance(loss, SampledPixels) and supports_row_blocks(loss.loss))


def is_sum_over_pixels(loss: nn.Module) -> bool:
    """Whether a step in several parts has the loss of all its images at once: where sums and counts can be added."""
    return isinstance(loss, PixelLoss) or (isinstance(loss, SelectedPixels) and is_sum_over_pixels(loss.loss))


def sum_and_count(
    loss: nn.Module, scores: ScoreMap | CoarseScores, target: Integer[Tensor, "batch rows cols"]
) -> tuple[Scalar, PixelCount]:
    """What a loss adds up over pixels and what it divides that by, of one draw where it draws pixels at random.

    Of one that is no such quotient: its value, as one of the values that a mean over parts is taken of.
    """
    if isinstance(loss, SelectedPixels):
        return sum_and_count(loss.loss, *loss.pick(scores, target))
    if isinstance(loss, PixelLoss):
        return loss.whole_total(scores, target), loss.count(target)
    return loss(scores, target), 1


def mean_from(total: Scalar, count: PixelCount) -> Scalar:
    """A loss from its two parts; 0 where nothing counts."""
    return total / (count if isinstance(count, int) else count.clamp(min=LEAST))


def _weight(target: Integer[Tensor, "batch rows cols"], class_weights: Tensor | None = None) -> Num[Tensor, ""]:
    """The pixels' weights summed."""
    known = target != IGNORE_INDEX
    if class_weights is None:
        return known.sum()
    return class_weights[target.where(known, 0).long()].mul(known).sum()
