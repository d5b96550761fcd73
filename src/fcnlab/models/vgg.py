"""VGG16 with its classifier's hidden layers as convolutions (CVPR 2015, sections 3.1 and 4.1)."""

from collections.abc import Mapping

from torch import Tensor, nn

from fcnlab.models.backbone import Level, Padding, image_padding, imagenet_convention, initialize
from fcnlab.models.geometry import IMAGE, FeatureMap
from fcnlab.models.weights import fc_to_conv, load_backbone

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """Levels 8 (pool3), 16 (pool4) and 32 (fc7).

    ``padding="paper"`` pads conv1_1 by 100 and leaves fc6 unpadded, as the released nets do; ``"same"`` pads each
    convolution by half its kernel, which saves 40 % of the work at the same output size.
    ``weights`` is ``"none"``, ``"imagenet"`` (torchvision's) or the path of a file with torchvision's layer names.
    """

    min_size = 1

    def __init__(self, padding: Padding = "same", dropout: float = 0.5, weights: str = "none"):
        super().__init__()
        self.normalize = imagenet_convention()
        self.features = nn.Sequential(*_trunk(first_padding=image_padding(padding, same=1)))
        self.fc6 = nn.Conv2d(512, 4096, 7, padding=3 if padding == "same" else 0)
        self.fc7 = nn.Conv2d(4096, 4096, 1)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)  # element-wise, as Caffe's
        self._ends = {8: _end_of(stage=3), 16: _end_of(stage=4), 32: _end_of(stage=5)}
        self.levels = {
            8: Level(256, IMAGE.through(self.features[: self._ends[8]])),
            16: Level(512, IMAGE.through(self.features[: self._ends[16]])),
            32: Level(4096, IMAGE.through([*self.features, self.fc6, self.fc7])),
        }
        initialize(self)
        self.pretrained = load_backbone(self, weights, from_torchvision, imagenet="VGG16_Weights.IMAGENET1K_V1")

    def forward(self, image: Tensor) -> dict[int, FeatureMap]:
        x8 = self.features[: self._ends[8]](self.normalize(image))
        x16 = self.features[self._ends[8] : self._ends[16]](x8)
        x32 = self.features[self._ends[16] :](x16)
        for layer in (self.fc6, self.fc7):
            x32 = self.dropout(self.relu(layer(x32)))
        return {level: FeatureMap(x, *self.levels[level].grid) for level, x in {8: x8, 16: x16, 32: x32}.items()}


def _trunk(first_padding: int) -> list[nn.Module]:
    """conv1_1 to pool5 with torchvision's indices; pools round up as Caffe's do."""
    layers: list[nn.Module] = []
    channels, padding = 3, first_padding
    for stage in STAGES:
        for width in stage:
            layers += [nn.Conv2d(channels, width, 3, padding=padding), nn.ReLU(inplace=True)]
            channels, padding = width, 1
        layers.append(nn.MaxPool2d(2, stride=2, ceil_mode=True))
    return layers


def _end_of(stage: int) -> int:
    """The index behind a stage's pool."""
    return sum(2 * len(widths) + 1 for widths in STAGES[:stage])


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's VGG16: fc6 and fc7 become convolutions, the ImageNet classifier is left out."""
    hidden = {"classifier.0.": ("fc6.", 7), "classifier.3.": ("fc7.", 1)}
    converted = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    for old, (new, kernel) in hidden.items():
        layer = {new + key.removeprefix(old): value for key, value in state.items() if key.startswith(old)}
        converted |= fc_to_conv(layer, kernel)
    return converted
