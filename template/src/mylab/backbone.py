"""A backbone of strided convolutions."""

from fcnlab.config.ranges import Count
from fcnlab.models.backbone import Chain, imagenet_convention, initialize
from torch import nn


class Strided(Chain):
    """Strided convolutions with batch normalisation; a Chain computes the positions of its features from its layers.

    ``width`` is the number of channels of the first layer.
    """

    def __init__(self, width: Count = 16):
        super().__init__(
            imagenet_convention(),  # from RGB in 0..1: subtracts ImageNet's mean
            nn.Sequential(*_half(3, width), *_half(width, 2 * width), *_half(2 * width, 4 * width)),
            nn.Sequential(*_half(4 * width, 6 * width)),
            nn.Sequential(*_half(6 * width, 8 * width)),
            channels=(4 * width, 6 * width, 8 * width),
        )
        initialize(self)


def _half(channels: int, out: int) -> list[nn.Module]:
    """Return layers that halve the number of rows and columns."""
    return [nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
