"""Inference methods: whole images, test-time augmentation and sliding windows."""

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
from fcnlab.models import Network

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

Image = Float[Tensor, "batch 3 rows cols"]
ScoreMap = Float[Tensor, "batch classes rows cols"]


class InferenceMethod:
    """Base class of inference methods; their ``repr`` is recorded in the evaluation protocol."""

    def __call__(self, net: Network, image: Image) -> ScoreMap:
        """Return class scores of every pixel; their argmax is the prediction."""
        raise NotImplementedError

    def probabilities(self, net: Network, image: Image) -> ScoreMap:
        """Return class probabilities of every pixel, in single precision."""
        return self(net, image).float().softmax(1)

    def minimum_image_size(self, net: Network) -> int:
        """Return the minimum size of the shorter image side in pixels.

        Raises
        ------
        UserError
            The settings do not fit the model.
        """
        return net.min_size


class WholeImage(InferenceMethod):
    """One forward pass over the whole image."""

    def __call__(self, net: Network, image: Image) -> ScoreMap:
        return net(image)

    def __repr__(self) -> str:
        return "whole"


class _Averaged(InferenceMethod):
    """Base class of inference methods whose scores are averaged probabilities."""

    def __call__(self, net: Network, image: Image) -> ScoreMap:
        return self.probabilities(net, image)


@dataclass(frozen=True)
class Flip(_Averaged):
    """Average the probabilities of an image and of its mirror image."""

    def probabilities(self, net: Network, image: Image) -> ScoreMap:
        return _flip_averaged(net, image)


@dataclass(frozen=True)
class MultiScale(_Averaged):
    """Average the probabilities at several scales of an image, resized to its size.

    ``flip`` adds the mirror image at each scale. The default scales, 0.5 to 1.75, are the usual ones.
    """

    scales: Annotated[Sequence[Factor], Meaning("one or more factors from 1/16 to 16", bool)] = SCALES
    flip: bool = True

    def __post_init__(self):
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"inference.scales={list(self.scales)} must contain factors above 0")

    def minimum_image_size(self, net: Network) -> int:
        least = min(self.scales)
        side = max(1, math.ceil((net.min_size - 0.5) / least))
        # Python rounds halves to even numbers.
        return side if round(side * least) >= net.min_size else side + 1

    def probabilities(self, net: Network, image: Image) -> ScoreMap:
        of_image = _flip_averaged if self.flip else _probabilities
        return torch.stack([_at_scale(of_image, net, image, scale) for scale in self.scales]).mean(0)


@dataclass(frozen=True)
class SlidingWindow(InferenceMethod):
    """Average the scores of overlapping square windows, for images that are much larger than the training crops.

    Windows of ``window`` x ``window`` pixels are at most ``step`` pixels apart; the last window of a row ends at the
    image border. An image smaller than a window is one window.
    """

    window: Pixels = 512
    step: Pixels = 341

    def __post_init__(self):
        if not 1 <= self.step <= self.window:
            raise ValueError(
                f"inference.step={self.step} must be from 1 to inference.window={self.window} to cover all pixels"
            )

    def minimum_image_size(self, net: Network) -> int:
        if self.window < net.min_size:
            raise UserError(f"inference.window={self.window} is too small for the model: set at least {net.min_size}")
        return net.min_size

    def __call__(self, net: Network, image: Image) -> ScoreMap:
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


@dataclass(frozen=True)
class Resized(InferenceMethod):
    """Score an image that is resized to a given shorter side, and resize the scores to the size of the image.

    Both are bilinear, and the image is antialiased, as in torchvision's preset for segmentation; there, however, the
    ground truth is resized as well, so that scores count pixels of the resized image.
    """

    shorter_side: Pixels = 520

    def minimum_image_size(self, net: Network) -> int:
        if self.shorter_side < net.min_size:
            raise UserError(
                f"inference.shorter_side={self.shorter_side} is too small for the model: set at least {net.min_size}"
            )
        return 1

    def __call__(self, net: Network, image: Image) -> ScoreMap:
        rows, cols = image.shape[2:]
        # torchvision rounds the longer side down.
        size = [int(self.shorter_side * side / min(rows, cols)) for side in (rows, cols)]
        scores = net(F.interpolate(image, size, mode="bilinear", antialias=True))
        return F.interpolate(scores.float(), (rows, cols), mode="bilinear")


def _probabilities(net: Network, image: Image) -> ScoreMap:
    return net(image).float().softmax(1)


def _flip_averaged(net: Network, image: Image) -> ScoreMap:
    return (_probabilities(net, image) + _probabilities(net, image.flip(3)).flip(3)) / 2


def _at_scale(of_image: Callable[[Network, Image], ScoreMap], net: Network, image: Image, scale: float) -> ScoreMap:
    rows, cols = image.shape[2:]
    size = round(rows * scale), round(cols * scale)
    if min(size) < net.min_size:
        raise UserError(
            f"inference.scales: at scale {scale:g}, an image of {rows}x{cols} pixels is smaller than the model's"
            f" minimum of {net.min_size}: remove the small scales"
        )
    scaled = F.interpolate(image, size, mode="bilinear", antialias=True)
    return F.interpolate(of_image(net, scaled), (rows, cols), mode="bilinear")
