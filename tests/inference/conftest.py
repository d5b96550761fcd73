"""A net whose scores are known."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fcnlab.models import FCN, FeatureMap
from fcnlab.models.backbone import Level
from fcnlab.models.geometry import IMAGE


class Pixels(nn.Module):
    """A backbone of one level, with a cell on each pixel, whose features are a function of the image."""

    pretrained, channels_last_on_cpu = False, False

    def __init__(self, features: Callable[[Tensor], Tensor], channels: int, min_size: int):
        super().__init__()
        self.features, self.min_size = features, min_size
        self.levels = {1: Level(channels, IMAGE)}

    def forward(self, image: Tensor) -> dict[int, FeatureMap]:
        return {1: FeatureMap(self.features(image), *IMAGE)}


@pytest.fixture(scope="session")
def net_that_scores():
    """Make a net of a function of a batch, its scores; of how many classes, and from which size on."""

    def make(scores: Callable[[Tensor], Tensor], num_classes: int, min_size: int = 1) -> FCN:
        net = FCN(Pixels(scores, num_classes, min_size), num_classes, levels=(1,)).requires_grad_(False)
        net.heads["1"].weight.copy_(torch.eye(num_classes)[:, :, None, None])
        return net

    return make
