"""Test-time augmentation and tiling: forward passes over parts or versions of an image, averaged."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fcnlab.config.ranges import Factor, Meaning, Pixels
from fcnlab.errors import UserError
from fcnlab.models import FCN

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

Image = Float[Tensor, "batch 3 rows cols"]
ScoreMap = Float[Tensor, "batch classes rows cols"]


class InferenceMethod:
    """The base of inference methods; how it prints is what the record of a score says of it."""

    def __call__(self, net: FCN, image: Image) -> ScoreMap:
        """Scores of every pixel, of which the highest is the prediction."""
        raise NotImplementedError

    def probabilities(self, net: FCN, image: Image) -> ScoreMap:
        """Class probabilities of every pixel, in single precision."""
        return self(net, image).float().softmax(1)

    def minimum_image_size(self, net: FCN) -> int:
        """The shorter side, in pixels, of the smallest image that it takes with this net.

        Raises
        ------
        UserError
            Its settings do not fit the net.
        """
        return net.backbone.min_size


class WholeImage(InferenceMethod):
    """One forward pass over the whole image."""

    def __call__(self, net: FCN, image: Image) -> ScoreMap:
        return net(image)

    def __repr__(self) -> str:
        return "whole"


class _Averaged(InferenceMethod):
    """An inference method whose scores are averaged probabilities."""

    def __call__(self, net: FCN, image: Image) -> ScoreMap:
        return self.probabilities(net, image)


@dataclass(frozen=True)
class Flip(_Averaged):
    """The mean of the probabilities of an image and of its mirror image."""

    def probabilities(self, net: FCN, image: Image) -> ScoreMap:
        return _of_both_sides(net, image)


@dataclass(frozen=True)
class MultiScale(_Averaged):
    """The mean of the probabilities at several scales of an image, brought back to its size.

    ``flip``: at each scale of its mirror image too. The scales that are usual, also elsewhere, are 0.5 to 1.75.
    """

    scales: Annotated[Sequence[Factor], Meaning("one or more factors from 1/16 to 16", bool)] = SCALES
    flip: bool = True

    def __post_init__(self):
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"inference.scales={list(self.scales)}: give some factors above 0")

    def minimum_image_size(self, net: FCN) -> int:
        least = min(self.scales)
        side = max(1, math.ceil((net.backbone.min_size - 0.5) / least))
        return side if round(side * least) >= net.backbone.min_size else side + 1  # halves round to even numbers

    def probabilities(self, net: FCN, image: Image) -> ScoreMap:
        of_image = _of_both_sides if self.flip else _of_image
        return torch.stack([_at_scale(of_image, net, image, scale) for scale in self.scales]).mean(0)


@dataclass(frozen=True)
class SlidingWindow(InferenceMethod):
    """The mean of the scores of overlapping square windows, for images that are large or unlike the training crops.

    Windows of ``window`` pixels to a side lie at most ``step`` pixels apart; the last one of a row ends at the
    image's border. An image smaller than a window is one window.
    """

    window: Pixels = 512
    step: Pixels = 341

    def __post_init__(self):
        if not 1 <= self.step <= self.window:
            raise ValueError(
                f"inference.step={self.step}: from 1 pixel to inference.window={self.window}, or pixels are left"
            )

    def minimum_image_size(self, net: FCN) -> int:
        if self.window < net.backbone.min_size:
            raise UserError(
                f"inference.window={self.window} is smaller than the net takes: give {net.backbone.min_size} or more"
            )
        return net.backbone.min_size

    def __call__(self, net: FCN, image: Image) -> ScoreMap:
        rows, cols = image.shape[2:]
        total = count = None
        for top in self._starts(rows):
            for left in self._starts(cols):
                tile = (..., slice(top, top + self.window), slice(left, left + self.window))
                scores = net(image[tile])
                if total is None or count is None:
                    total = scores.new_zeros(*scores.shape[:2], rows, cols)
                    count = scores.new_zeros(rows, cols)
                total[tile] += scores
                count[tile] += 1
        assert total is not None and count is not None
        return total / count

    def _starts(self, length: int) -> list[int]:
        last = max(0, length - self.window)
        return [*range(0, last, self.step), last]


def _of_image(net: FCN, image: Image) -> ScoreMap:
    return net(image).float().softmax(1)


def _of_both_sides(net: FCN, image: Image) -> ScoreMap:
    return (_of_image(net, image) + _of_image(net, image.flip(3)).flip(3)) / 2


def _at_scale(of_image: Callable[[FCN, Image], ScoreMap], net: FCN, image: Image, scale: float) -> ScoreMap:
    rows, cols = image.shape[2:]
    size = round(rows * scale), round(cols * scale)
    if min(size) < net.backbone.min_size:
        raise UserError(
            f"inference.scales: at {scale:g}, an image of {rows}x{cols} is smaller than the net takes"
            f" ({net.backbone.min_size} pixels): leave the small scales out"
        )
    scaled = F.interpolate(image, size, mode="bilinear", antialias=True)
    return F.interpolate(of_image(net, scaled), (rows, cols), mode="bilinear")
