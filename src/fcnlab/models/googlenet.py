"""Two GoogLeNets without average pool, classifier and auxiliary heads: the paper's, which is BVLC's, and torchvision's.

In the paper's, the "5x5" branches are 5x5, convolutions have biases, two local response normalisations stand in the
stem, and nothing is batch-normalised.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fcnlab.config.ranges import BelowOne
from fcnlab.models.backbone import (
    Chain,
    Dropout,
    InputConvention,
    Level,
    Padding,
    image_padding,
    initialize,
    named_chain,
)
from fcnlab.models.geometry import IMAGE, FeatureMap
from fcnlab.models.lrn import LocalResponseNorm
from fcnlab.models.weights import load_backbone, with_batch_counters, without_layers

CAFFE_MEAN_BGR = (104.0, 117.0, 123.0)  # BVLC's release; the VGG-based FCNs have decimals

# (in, 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection): Szegedy et al., CVPR 2015, table 1
INCEPTIONS = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


class GoogLeNet(nn.Module):
    """Levels 8 (inception 3b), 16 (4e) and 32 (5b).

    ``padding="paper"`` pads conv1 by 100 like the released FCNs. Nobody released FCN-GoogLeNet, so that is a
    reconstruction; without an unpadded fc6 the net also runs on images of 31 pixels and more with its own padding.
    ``weights`` is ``"none"`` or the path of a file with BVLC's layer names.
    """

    channels_last_on_cpu = True

    def __init__(self, padding: Padding = "same", dropout: BelowOne = 0.4, weights: str = "none"):
        super().__init__()
        self.normalize = InputConvention(mean=CAFFE_MEAN_BGR, scale=255.0, order="bgr")
        self.conv1 = _conv(3, 64, 7, stride=2, padding=image_padding(padding, same=3))
        self.pool1 = nn.Sequential(_pool(), LocalResponseNorm())
        self.conv2 = nn.Sequential(_conv(64, 64, 1), _conv(64, 192, 3, padding=1))
        self.pool2 = nn.Sequential(LocalResponseNorm(), _pool())
        self.stage3 = _stage("3a", "3b")
        self.pool3 = _pool()
        self.stage4 = _stage("4a", "4b", "4c", "4d", "4e")
        self.pool4 = _pool()
        self.stage5 = _stage("5a", "5b")
        self.dropout = Dropout(dropout)
        self.min_size = 31 if padding == "same" else 1
        grid8, grid16, grid32 = (IMAGE.through(self.chain(level)) for level in (8, 16, 32))
        # With BVLC's weights the features have a root mean square of 17, 4.6 and 2.0 (12 images of VOC2012 val).
        # Nobody released FCN-GoogLeNet; without these factors the head of level 8 alone sets the rate all can bear.
        self.levels = {8: Level(480, grid8, 0.06), 16: Level(832, grid16, 0.2), 32: Level(1024, grid32, 0.5)}
        initialize(self)
        self.pretrained = load_backbone(self, weights, from_caffe)

    def forward(self, image: Tensor) -> dict[int, FeatureMap]:
        x8 = self.stage3(self.pool2(self.conv2(self.pool1(self.conv1(self.normalize(image))))))
        x16 = self.stage4(self.pool3(x8))
        x32 = self.dropout(self.stage5(self.pool4(x16)))
        return {level: FeatureMap(x, *self.levels[level].grid) for level, x in {8: x8, 16: x16, 32: x32}.items()}

    def chain(self, level: int) -> list[nn.Module]:
        """The layers between the image and a level; of an inception module, the 5x5 branch, which sees the most."""
        parts = [self.conv1, self.pool1, self.conv2, self.pool2, *(block.five for block in self.stage3)]
        if level >= 16:
            parts += [self.pool3, *(block.five for block in self.stage4)]
        if level == 32:
            parts += [self.pool4, *(block.five for block in self.stage5)]
        return [layer for part in parts for layer in part.modules()]


class GoogLeNetBN(Chain):
    """torchvision's GoogLeNet, which is not the paper's: batch-normalised, without biases and response normalisation,
    3x3 kernels in the "5x5" branches, and a 2x2 last pool. Levels 8 (inception 3b), 16 (4e) and 32 (5b).

    ``weights`` is ``"none"``, ``"imagenet"`` (torchvision's) or the path of a file with torchvision's layer names.
    """

    channels_last_on_cpu = True

    def __init__(self, dropout: BelowOne = 0.2, weights: str = "none"):
        from torchvision import models  # here: other backbones do without

        net = models.GoogLeNet(aux_logits=False, init_weights=False)
        layers = {name: layer for name, layer in net.named_children() if name not in ("avgpool", "dropout", "fc")}
        names = list(layers)
        third, fourth = names.index("maxpool3"), names.index("maxpool4")
        super().__init__(
            InputConvention(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),  # its weights came from TensorFlow
            named_chain(**{name: layers[name] for name in names[:third]}),
            named_chain(**{name: layers[name] for name in names[third:fourth]}),
            named_chain(**{name: layers[name] for name in names[fourth:]}, dropout=Dropout(dropout)),
            channels=(480, 832, 1024),
        )
        self.min_size = 15
        initialize(self)
        self.pretrained = load_backbone(self, weights, self._from_torchvision, "GoogLeNet_Weights.IMAGENET1K_V1")

    def path(self, part: nn.Module) -> list[nn.Module]:
        from torchvision.models.googlenet import Inception as TorchvisionInception

        return super().path(part.branch3 if isinstance(part, TorchvisionInception) else part)

    def _from_torchvision(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.placed(with_batch_counters(without_layers(state, "fc", "aux1", "aux2")))


class Inception(nn.Module):
    """Four branches side by side, their channels concatenated in Caffe's order."""

    def __init__(self, channels: int, one: int, reduce3: int, three: int, reduce5: int, five: int, pool: int):
        super().__init__()
        self.one = _conv(channels, one, 1)
        self.three = nn.Sequential(_conv(channels, reduce3, 1), _conv(reduce3, three, 3, padding=1))
        self.five = nn.Sequential(_conv(channels, reduce5, 1), _conv(reduce5, five, 5, padding=2))
        self.pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), _conv(channels, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], dim=1)


def _conv(channels: int, out: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, kernel, stride, padding), nn.ReLU(inplace=True))


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)  # Caffe's pools round up


def _stage(*names: str) -> nn.Sequential:
    return nn.Sequential(*(Inception(*INCEPTIONS[name]) for name in names))


def from_caffe(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BVLC's layer names to ours; the ImageNet classifier, which an FCN cuts off, is left out."""
    places = {"conv1/7x7_s2": "conv1.0", "conv2/3x3_reduce": "conv2.0.0", "conv2/3x3": "conv2.1.0"}
    branches = {
        "1x1": "one.0", "3x3_reduce": "three.0.0", "3x3": "three.1.0",
        "5x5_reduce": "five.0.0", "5x5": "five.1.0", "pool_proj": "pool.1.0",
    }  # fmt: skip
    for name in INCEPTIONS:
        place = f"stage{name[0]}.{ord(name[1]) - ord('a')}"
        places |= {f"inception_{name}/{caffe}": f"{place}.{ours}" for caffe, ours in branches.items()}
    renamed = {}
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        if layer != "loss3/classifier":
            renamed[f"{places.get(layer, layer)}.{kind}"] = value
    return renamed
