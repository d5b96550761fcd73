"""VGG16, plain or batch-normalised, with its hidden layers as convolutions (CVPR 2015, sections 3.1 and 4.1)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from fcnlab.config.ranges import BelowOne
from fcnlab.files.reading import md5
from fcnlab.models.backbone import (
    Dropout,
    Level,
    Padding,
    caffe_convention,
    image_padding,
    imagenet_convention,
    initialize,
)
from fcnlab.models.geometry import IMAGE, FeatureMap
from fcnlab.models.weights import WeightsError, fc_to_conv, load_backbone, with_batch_counters, without_layers

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
VGG16_FROM_CAFFE = "aa75b158f4181e7f6230029eb96c1b13"  # md5 of pytorch-fcn's file: torchvision's names, Caffe's input
CONVENTIONS = {"torchvision": imagenet_convention, "caffe": caffe_convention}


class VGG16(nn.Module):
    """Levels 8 (pool3), 16 (pool4) and 32 (fc7).

    ``padding="paper"`` pads conv1_1 by 100 and leaves fc6 unpadded, as the released networks do; ``"same"`` pads each
    convolution by half its kernel, which saves 40 % of the work at the same output size.
    ``weights`` is ``"none"``, ``"imagenet"`` (torchvision's) or the path of a file with torchvision's layer names.
    ``batch_norm`` adds batch normalisation after each convolution of the trunk, as torchvision's ``vgg16_bn`` does; the
    papers' network has none.
    ``convention`` is the input that the weights were trained on: torchvision's (RGB, mean and deviation), or Caffe's
    (BGR in 0..255, minus a mean), which the papers' released networks and ``vgg16_from_caffe.pth`` need.
    """

    min_size = 1
    channels_last_on_cpu = False

    def __init__(
        self,
        padding: Padding = "same",
        dropout: BelowOne = 0.5,
        weights: str = "none",
        batch_norm: bool = False,
        convention: Literal["torchvision", "caffe"] = "torchvision",
    ):
        super().__init__()
        _check_convention(convention, weights)
        self.padding, self.batch_norm, self.convention = padding, batch_norm, convention
        self.normalize = CONVENTIONS[convention]()
        self.features = nn.Sequential(*_trunk(image_padding(padding, same=1), batch_norm))
        self.fc6 = nn.Conv2d(512, 4096, 7, padding=3 if padding == "same" else 0)
        self.fc7 = nn.Conv2d(4096, 4096, 1)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = Dropout(dropout)
        _, _, *ends = (index + 1 for index, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d))
        self._ends: dict[int, int] = dict(zip((8, 16, 32), ends, strict=True))
        self.levels = {
            level: Level(channels, IMAGE.through(self.chain(level)))
            for level, channels in {8: 256, 16: 512, 32: 4096}.items()
        }
        initialize(self)
        imagenet = "VGG16_BN_Weights.IMAGENET1K_V1" if batch_norm else "VGG16_Weights.IMAGENET1K_V1"
        self.pretrained = load_backbone(self, weights, from_torchvision, imagenet)

    def forward(self, image: Tensor) -> dict[int, FeatureMap]:
        x8 = self.features[: self._ends[8]](self.normalize(image))
        x16 = self.features[self._ends[8] : self._ends[16]](x8)
        x32 = self.features[self._ends[16] :](x16)
        for layer in (self.fc6, self.fc7):
            x32 = self.dropout(self.relu(layer(x32)))
        return {level: FeatureMap(x, *self.levels[level].grid) for level, x in {8: x8, 16: x16, 32: x32}.items()}

    def chain(self, level: int) -> list[nn.Module]:
        """The layers between the image and a level."""
        hidden = [self.fc6, self.fc7] if level == 32 else []
        return [*self.features[: self._ends[level]], *hidden]


def _check_convention(convention: str, weights: str) -> None:
    if convention not in CONVENTIONS:
        raise ValueError(f"convention={convention!r}: choose 'torchvision' or 'caffe'")
    if weights == "imagenet" and convention == "caffe":
        raise WeightsError(
            "model.backbone.weights=imagenet fetches torchvision's weights, which need"
            " model.backbone.convention=torchvision. For Caffe's, give the path of vgg16_from_caffe.pth."
        )
    if convention == "torchvision" and Path(weights).is_file() and md5(weights) == VGG16_FROM_CAFFE:
        raise WeightsError(
            f"model.backbone.weights={weights} is Caffe's VGG16, which takes BGR in 0..255 less a mean: set"
            " model.backbone.convention=caffe, or choose model/backbone=vgg16_caffe"
        )


def _trunk(first_padding: int, batch_norm: bool) -> list[nn.Module]:
    """conv1_1 to pool5 with torchvision's indices; pools round up as Caffe's do."""
    layers: list[nn.Module] = []
    channels, padding = 3, first_padding
    for stage in STAGES:
        for width in stage:
            layers.append(nn.Conv2d(channels, width, 3, padding=padding))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU(inplace=True))
            channels, padding = width, 1
        layers.append(nn.MaxPool2d(2, stride=2, ceil_mode=True))
    return layers


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's VGG16: fc6 and fc7 become convolutions, the ImageNet classifier is left out."""
    hidden = {"classifier.0.": ("fc6.", 7), "classifier.3.": ("fc7.", 1)}
    converted = with_batch_counters(without_layers(state, "classifier"))
    for old, (new, kernel) in hidden.items():
        layer = {new + key.removeprefix(old): value for key, value in state.items() if key.startswith(old)}
        converted |= fc_to_conv(layer, kernel)
    return converted
