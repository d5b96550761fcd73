"""What every backbone offers, and the few lines that they share.

A backbone is an ``nn.Module`` that takes RGB pictures in 0..1, float, (batch, 3, rows, cols), turns them into the input
that its weights were trained on (so the data never knows which weights are loaded) and returns ``{level: FeatureMap}``.
"""

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fcnlab.models.geometry import FeatureMap, Grid

Padding = Literal["same", "paper"]
PAPER_PADDING = 100  # pixels around the picture in conv1 (shelhamer/fcn.berkeleyvision.org, */net.py)


class Level(NamedTuple):
    """What a level's feature map will be like; levels 8, 16 and 32 are named by their undilated stride.

    ``scale`` is what an FCN multiplies its features by before it scores them: 1, as in the released nets, or near one
    over their root mean square, so that the heads of all levels learn at one rate.
    """

    channels: int
    grid: Grid
    scale: float = 1.0


@runtime_checkable  # by the tests that check annotations
class Backbone(Protocol):
    """The contract of a backbone."""

    levels: dict[int, Level]
    min_size: int  # pixels: the shorter side of the smallest picture that passes through
    pretrained: bool  # whether its layers start from a weights file

    def __call__(self, image: Float[Tensor, "batch 3 rows cols"]) -> dict[int, FeatureMap]: ...


class InputConvention(nn.Module):
    """RGB in 0..1 to the input that a net's weights expect: ``(pixel * scale - mean) / std``, RGB or BGR."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: tuple[float, float, float],
        std: tuple[float, float, float] = (1.0, 1.0, 1.0),
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
    return InputConvention(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def image_padding(padding: Padding, same: int) -> int:
    """The padding of a net's first convolution; ``same`` is the one that keeps the picture's size."""
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
