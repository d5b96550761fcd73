"""A small network that learns the generated shapes on a laptop's CPU in minutes: the default, for trials and tests."""

from torch import nn

from fcnlab.config.ranges import Count
from fcnlab.models.backbone import Chain, Padding, image_padding, imagenet_convention, initialize
from fcnlab.models.weights import load_backbone


class Tiny(Chain):
    """Levels 8, 16 and 32, each behind its pool as in VGG, with batch normalisation; there are no weights to load."""

    channels_last_on_cpu = True

    def __init__(self, padding: Padding = "same", width: Count = 16, weights: str = "none"):
        first = image_padding(padding, same=1)
        super().__init__(
            imagenet_convention(),
            nn.Sequential(*_block(3, width, padding=first), *_block(width, 2 * width), *_block(2 * width, 4 * width)),
            nn.Sequential(*_block(4 * width, 6 * width)),
            nn.Sequential(*_block(6 * width, 8 * width), *_conv(8 * width, 8 * width)),
            channels=(4 * width, 6 * width, 8 * width),
        )
        initialize(self)
        self.pretrained = load_backbone(self, weights)


def _conv(channels: int, out: int, padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, padding=padding, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]


def _block(channels: int, out: int, padding: int = 1) -> list[nn.Module]:
    return [*_conv(channels, out, padding), nn.MaxPool2d(2, stride=2, ceil_mode=True)]
