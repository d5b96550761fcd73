"""Several looks at a picture, averaged."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fcnlab.errors import UserError
from fcnlab.models import FCN
from fcnlab.ranges import Factor, Meaning, Pixels

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

Image = Float[Tensor, "batch 3 rows cols"]
ScoreMap = Float[Tensor, "batch classes rows cols"]


@runtime_checkable  # by make test-slow, which checks annotations
class Refinement(Protocol):
    """The contract of a refinement; how it prints is what the record of a score says of it."""

    def __call__(self, net: FCN, image: Image) -> ScoreMap: ...


def smallest_image(refine: Refinement, net: FCN) -> int:
    """The shorter side, in pixels, of the smallest image that a refinement of a net takes.

    It is the refinement's own ``min_size(net)`` where it has one, and the backbone's where not.

    Raises
    ------
    UserError
        The refinement's settings do not fit the net, or a package that it needs is missing.
    """
    own = getattr(refine, "min_size", None)
    return own(net) if own else net.backbone.min_size


class Plain:
    """The net's own scores."""

    def __call__(self, net: FCN, image: Image) -> ScoreMap:
        return net(image)

    def __repr__(self) -> str:
        return "none"


@dataclass(frozen=True)
class Flip:
    """The mean of the probabilities of a picture and of its mirror image."""

    def __call__(self, net: FCN, image: Image) -> ScoreMap:
        return both_ways(net, image)


@dataclass(frozen=True)
class MultiScale:
    """The mean of the probabilities at several scales of a picture, brought back to its size.

    ``flip``: at each scale of its mirror image too. The scales that are usual, also elsewhere, are 0.5 to 1.75.
    """

    scales: Annotated[Sequence[Factor], Meaning("one or more factors from 1/16 to 16", bool)] = (
        0.5,
        0.75,
        1.0,
        1.25,
        1.5,
        1.75,
    )
    flip: bool = True

    def __post_init__(self):
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"refine.scales={list(self.scales)}: give some factors above 0")

    def min_size(self, net: FCN) -> int:
        least = min(self.scales)
        side = max(1, math.ceil((net.backbone.min_size - 0.5) / least))
        return side if round(side * least) >= net.backbone.min_size else side + 1  # halves round to even numbers

    def __call__(self, net: FCN, image: Image) -> ScoreMap:
        look = both_ways if self.flip else probabilities
        found = [_at_scale(look, net, image, scale) for scale in self.scales]
        return torch.stack(found).mean(0)


@dataclass(frozen=True)
class Sliding:
    """The mean of the scores of overlapping square windows, for pictures that are large or unlike the training crops.

    Windows of ``window`` pixels to a side lie at most ``step`` pixels apart; the last one of a row ends at the
    picture's border. A picture smaller than a window is one.
    """

    window: Pixels = 512
    step: Pixels = 341

    def __post_init__(self):
        if not 1 <= self.step <= self.window:
            raise ValueError(
                f"refine.step={self.step}: from 1 pixel to refine.window={self.window}, or pixels are left"
            )

    def min_size(self, net: FCN) -> int:
        if self.window < net.backbone.min_size:
            raise UserError(
                f"refine.window={self.window} is smaller than the net takes: give {net.backbone.min_size} or more"
            )
        return net.backbone.min_size

    def __call__(self, net: FCN, image: Image) -> ScoreMap:
        rows, cols = image.shape[2:]
        total = count = None
        for top in self._starts(rows):
            for left in self._starts(cols):
                place = (..., slice(top, top + self.window), slice(left, left + self.window))
                scores = net(image[place])
                if total is None or count is None:
                    total = scores.new_zeros(*scores.shape[:2], rows, cols)
                    count = scores.new_zeros(rows, cols)
                total[place] += scores
                count[place] += 1
        assert total is not None and count is not None
        return total / count

    def _starts(self, length: int) -> list[int]:
        last = max(0, length - self.window)
        return [*range(0, last, self.step), last]


def probabilities(net: FCN, image: Image) -> ScoreMap:
    return net(image).float().softmax(1)


def both_ways(net: FCN, image: Image) -> ScoreMap:
    return (probabilities(net, image) + probabilities(net, image.flip(3)).flip(3)) / 2


def _at_scale(look: Callable[[FCN, Image], ScoreMap], net: FCN, image: Image, scale: float) -> ScoreMap:
    rows, cols = image.shape[2:]
    size = round(rows * scale), round(cols * scale)
    if min(size) < net.backbone.min_size:
        raise UserError(
            f"refine.scales: at {scale:g}, a picture of {rows}x{cols} is smaller than the net takes"
            f" ({net.backbone.min_size} pixels): leave the small scales out"
        )
    scaled = F.interpolate(image, size, mode="bilinear", antialias=True)
    return F.interpolate(look(net, scaled), (rows, cols), mode="bilinear")
