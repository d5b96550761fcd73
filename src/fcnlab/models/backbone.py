"""What every backbone offers, and the few lines that they share.

A backbone is an ``nn.Module`` that takes RGB images in 0..1, float, (batch, 3, rows, cols), turns them into the input
that its weights were trained on (so the data never knows which weights are loaded) and returns ``{level: FeatureMap}``.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fcnlab.models.geometry import IMAGE, FeatureMap, Grid

Padding = Literal["same", "paper"]
PAPER_PADDING = 100  # pixels around the image in conv1 (shelhamer/fcn.berkeleyvision.org, */net.py)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB in 0..1, torchvision's
VOC_MEAN_BGR = (104.00699, 116.66877, 122.67892)  # voc_layers.py there


class Level(NamedTuple):
    """The properties of a level's feature map; levels 8, 16 and 32 are named by their undilated stride.

    ``grid`` has the true stride: in a ResNet dilated to output stride 8, it is 8 for all three.

    ``scale`` is the factor by which an FCN multiplies the features before it scores them: 1, as in the released
    networks, or about the inverse of their root mean square, so that the heads of all levels learn at the same rate.
    """

    channels: int
    grid: Grid
    scale: float = 1.0


@runtime_checkable  # by make test-slow, which checks annotations
class Backbone(Protocol):
    """The contract of a backbone."""

    levels: dict[int, Level]
    min_size: int  # pixels: the shorter side of the smallest image that passes through
    pretrained: bool  # whether its layers start from a weights file
    channels_last_on_cpu: bool  # whether it trains faster in that memory format there (docs/explanation/performance.md)

    def __call__(self, image: Float[Tensor, "batch 3 rows cols"]) -> dict[int, FeatureMap]: ...


class Chain(nn.Module):
    """A backbone whose parts follow one another: ``to8``, ``to16`` and ``to32`` end where levels 8, 16 and 32 do.

    Where their children are named as the layers of a library are, :meth:`placed` finds room for that library's weights.
    """

    min_size = 1
    pretrained = False
    channels_last_on_cpu = False  # until it is measured

    def __init__(
        self,
        normalize: nn.Module,
        to8: nn.Sequential,
        to16: nn.Sequential,
        to32: nn.Sequential,
        channels: tuple[int, int, int],
    ):
        super().__init__()
        self.normalize = normalize
        self.to8, self.to16, self.to32 = to8, to16, to32
        self.levels = {
            level: Level(width, IMAGE.through(self.chain(level)))
            for level, width in zip((8, 16, 32), channels, strict=True)
        }

    def forward(self, image: Tensor) -> dict[int, FeatureMap]:
        x8 = self.to8(self.normalize(image))
        x16 = self.to16(x8)
        x32 = self.to32(x16)
        return {level: FeatureMap(x, *self.levels[level].grid) for level, x in {8: x8, 16: x16, 32: x32}.items()}

    def chain(self, level: int) -> list[nn.Module]:
        """The layers between the image and a level; where some stand side by side, those that see the most."""
        parts = {8: [self.to8], 16: [self.to8, self.to16], 32: [self.to8, self.to16, self.to32]}[level]
        return [layer for part in parts for layer in self.path(part)]

    def path(self, part: nn.Module) -> list[nn.Module]:
        """Return the layers of a part in order; backbones with branches override this method to choose a branch."""
        children = list(part.children())
        return [layer for child in children for layer in self.path(child)] if children else [part]

    def placed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors named by layer (``conv1.weight``), under the part that holds their layer (``to8.conv1.weight``)."""
        parts = {"to8": self.to8, "to16": self.to16, "to32": self.to32}
        place = {name: f"{part}.{name}" for part, layers in parts.items() for name, _ in layers.named_children()}
        renamed = {}
        for key, value in state.items():
            layer, dot, rest = key.partition(".")
            renamed[place.get(layer, layer) + dot + rest] = value
        return renamed


class Dropout(nn.Dropout):
    """Element-wise, as Caffe's. torch's own draws in the order in which numbers lie in memory; here the same ones are
    dropped in every memory format, so that runs of one seed can be compared.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p in (0, 1):
            return super().forward(x)
        kept = torch.empty(x.shape, dtype=x.dtype, device=x.device).bernoulli_(1 - self.p).div_(1 - self.p)
        return x * torch.empty_like(x).copy_(kept)


def backbone_name(backbone: Backbone) -> str:
    """Return the name for readers: of the net, where one class builds many, or else of the class."""
    return str(getattr(backbone, "name", type(backbone).__name__))


def named_chain(**layers: nn.Module) -> nn.Sequential:
    """Layers in a row, under names of their own instead of numbers."""
    return nn.Sequential(OrderedDict(layers))


class InputConvention(nn.Module):
    """Convert RGB in 0..1 to the input that the weights expect: ``(pixel * scale - mean) / std``, in RGB or BGR."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float] = (1.0, 1.0, 1.0),
        scale: float = 1.0,
        order: Literal["rgb", "bgr"] = "rgb",
    ):
        super().__init__()
        self.scale, self.order = scale, order
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        if self.order == "bgr":
            image = image.flip(1)
        return (image * self.scale - self.mean) / self.std


def imagenet_convention() -> InputConvention:
    """The one of torchvision's weights."""
    return InputConvention(IMAGENET_MEAN, IMAGENET_STD)


def caffe_convention() -> InputConvention:
    """The one of the papers' released weights for PASCAL VOC."""
    return InputConvention(mean=VOC_MEAN_BGR, scale=255.0, order="bgr")


def image_padding(padding: Padding, same: int) -> int:
    """Return the padding of a model's first convolution; ``same`` is the padding that keeps the size of the image."""
    choices = {"same": same, "paper": PAPER_PADDING}
    if padding not in choices:
        raise ValueError(f"padding={padding!r}: choose 'same' or 'paper'")
    return choices[padding]


def initialize(net: nn.Module) -> None:
    """He's initialisation for convolutions followed by ReLUs, for training from scratch."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
