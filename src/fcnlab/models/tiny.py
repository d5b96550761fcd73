"""A small net that learns the generated shapes on a laptop's CPU in minutes: the default, for first looks and tests."""

from torch import Tensor, nn

from fcnlab.models.backbone import Level, Padding, image_padding, imagenet_convention, initialize
from fcnlab.models.geometry import IMAGE, FeatureMap
from fcnlab.models.weights import load_backbone


class Tiny(nn.Module):
    """Levels 8, 16 and 32, each behind its pool as in VGG, with batch normalisation; there are no weights to load."""

    min_size = 1

    def __init__(self, padding: Padding = "same", width: int = 16, weights: str = "none"):
        super().__init__()
        self.normalize = imagenet_convention()
        first = image_padding(padding, same=1)
        self.to8 = nn.Sequential(
            *_block(3, width, padding=first), *_block(width, 2 * width), *_block(2 * width, 4 * width)
        )
        self.to16 = nn.Sequential(*_block(4 * width, 6 * width))
        self.to32 = nn.Sequential(*_block(6 * width, 8 * width), *_conv(8 * width, 8 * width))
        grid8 = IMAGE.through(self.to8)
        grid16 = grid8.through(self.to16)
        grid32 = grid16.through(self.to32)
        self.levels = {8: Level(4 * width, grid8), 16: Level(6 * width, grid16), 32: Level(8 * width, grid32)}
        initialize(self)
        self.pretrained = load_backbone(self, weights)

    def forward(self, image: Tensor) -> dict[int, FeatureMap]:
        x8 = self.to8(self.normalize(image))
        x16 = self.to16(x8)
        x32 = self.to32(x16)
        return {level: FeatureMap(x, *self.levels[level].grid) for level, x in {8: x8, 16: x16, 32: x32}.items()}


def _conv(channels: int, out: int, padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, padding=padding, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]


def _block(channels: int, out: int, padding: int = 1) -> list[nn.Module]:
    return [*_conv(channels, out, padding), nn.MaxPool2d(2, stride=2, ceil_mode=True)]
