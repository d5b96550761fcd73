"""Two AlexNets with their classifiers' hidden layers as convolutions: the papers', which is Caffe's, and torchvision's.

Kernels and strides agree, so both see 355 pixels. Channels, groups, normalisation, dropout and input do not, and the
weights of one are of no use to the other.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from fcnlab.config.ranges import BelowOne
from fcnlab.models.backbone import (
    Chain,
    Dropout,
    Padding,
    caffe_convention,
    image_padding,
    imagenet_convention,
    initialize,
    named_chain,
)
from fcnlab.models.lrn import LocalResponseNorm
from fcnlab.models.weights import fc_to_conv, load_backbone, without_layers

# Half the kernel, and the least with which the scores of FCN-8s reach the border of every image: with torchvision's
# 2 they miss it at 114 of the sizes 40..339, with Caffe's 0 at all of them.
CONV1_PADDING = 5
SAME_MIN_SIZE = 29  # pixels: with fewer, a pool's window is larger than its input


class CaffeNet(Chain):
    """The papers' AlexNet (voc-fcn-alexnet/net.py): two groups, response normalisation behind the pools.

    Levels 8 (norm1), 16 (norm2) and 32 (fc7); FCN-AlexNet was released with level 32 only.

    ``padding="paper"`` pads conv1 by 100 and leaves fc6 unpadded, as the released net does; ``"same"`` pads each
    convolution by half its kernel. ``weights`` is ``"none"`` or the path of a file with Caffe's layer names.
    """

    def __init__(self, padding: Padding = "same", dropout: BelowOne = 0.5, weights: str = "none"):
        super().__init__(
            caffe_convention(),
            named_chain(
                conv1=nn.Conv2d(3, 96, 11, stride=4, padding=image_padding(padding, same=CONV1_PADDING)),
                relu1=nn.ReLU(inplace=True),
                pool1=_pool(),
                norm1=LocalResponseNorm(),
            ),
            named_chain(
                conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),
                relu2=nn.ReLU(inplace=True),
                pool2=_pool(),
                norm2=LocalResponseNorm(),
            ),
            named_chain(
                conv3=nn.Conv2d(256, 384, 3, padding=1),
                relu3=nn.ReLU(inplace=True),
                conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2),
                relu4=nn.ReLU(inplace=True),
                conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2),
                relu5=nn.ReLU(inplace=True),
                pool5=_pool(),
                fc6=_fc6(padding),
                relu6=nn.ReLU(inplace=True),
                drop6=Dropout(dropout),
                fc7=nn.Conv2d(4096, 4096, 1),
                relu7=nn.ReLU(inplace=True),
                drop7=Dropout(dropout),
            ),
            channels=(96, 256, 4096),
        )
        self.min_size = SAME_MIN_SIZE if padding == "same" else 1
        initialize(self)
        self.pretrained = load_backbone(self, weights, lambda state: self.placed(from_caffe(state)))


class AlexNet(Chain):
    """torchvision's AlexNet, the "one weird trick" one: a single tower, no groups, no response normalisation.

    Levels 8 (pool1), 16 (pool2) and 32 (fc7). ``padding`` is CaffeNet's. ``weights`` is ``"none"``, ``"imagenet"``
    (torchvision's) or the path of a file with torchvision's layer names.
    """

    def __init__(self, padding: Padding = "same", dropout: BelowOne = 0.5, weights: str = "none"):
        super().__init__(
            imagenet_convention(),
            named_chain(
                conv1=nn.Conv2d(3, 64, 11, stride=4, padding=image_padding(padding, same=CONV1_PADDING)),
                relu1=nn.ReLU(inplace=True),
                pool1=_pool(),
            ),
            named_chain(
                conv2=nn.Conv2d(64, 192, 5, padding=2),
                relu2=nn.ReLU(inplace=True),
                pool2=_pool(),
            ),
            named_chain(
                conv3=nn.Conv2d(192, 384, 3, padding=1),
                relu3=nn.ReLU(inplace=True),
                conv4=nn.Conv2d(384, 256, 3, padding=1),
                relu4=nn.ReLU(inplace=True),
                conv5=nn.Conv2d(256, 256, 3, padding=1),
                relu5=nn.ReLU(inplace=True),
                pool5=_pool(),
                drop5=Dropout(dropout),  # torchvision drops before its hidden layers, Caffe behind them
                fc6=_fc6(padding),
                relu6=nn.ReLU(inplace=True),
                drop6=Dropout(dropout),
                fc7=nn.Conv2d(4096, 4096, 1),
                relu7=nn.ReLU(inplace=True),
            ),
            channels=(64, 192, 4096),
        )
        self.min_size = SAME_MIN_SIZE if padding == "same" else 1
        initialize(self)
        self.pretrained = load_backbone(
            self, weights, lambda state: self.placed(from_torchvision(state)), imagenet="AlexNet_Weights.IMAGENET1K_V1"
        )


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)  # Caffe's pools round up


def _fc6(padding: Padding) -> nn.Conv2d:
    return nn.Conv2d(256, 4096, 6, padding=3 if padding == "same" else 0)


def from_caffe(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CaffeNet by Caffe's layer names: fc6 and fc7 become convolutions, the ImageNet classifier is left out."""
    kept = without_layers(state, "fc8")
    for layer, kernel in {"fc6": 6, "fc7": 1}.items():
        kept |= fc_to_conv({key: value for key, value in kept.items() if key.startswith(f"{layer}.")}, kernel)
    return kept


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's AlexNet by Caffe's layer names, without the ImageNet classifier."""
    names = {
        "features.0": "conv1", "features.3": "conv2", "features.6": "conv3", "features.8": "conv4",
        "features.10": "conv5", "classifier.1": "fc6", "classifier.4": "fc7", "classifier.6": "fc8",
    }  # fmt: skip
    renamed = {}
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        renamed[f"{names.get(layer, layer)}.{kind}"] = value
    return from_caffe(renamed)
