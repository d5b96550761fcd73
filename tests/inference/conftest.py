"""A model whose scores are known."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fcnlab.models import FCN, FeatureMap
from fcnlab.models.backbone import Level
from fcnlab.models.geometry import IMAGE


class Pixels(nn.Module):
    """A backbone of one level with a cell per pixel, whose features are a function of the image."""

    pretrained, channels_last_on_cpu = False, False

    def __init__(self, features: Callable[[Tensor], Tensor], channels: int, min_size: int):
        super().__init__()
        self.features, self.min_size = features, min_size
        self.levels = {1: Level(channels, IMAGE)}

    def forward(self, image: Tensor) -> dict[int, FeatureMap]:
        return {1: FeatureMap(self.features(image), *IMAGE)}


@pytest.fixture(scope="session")
def model_from_scores():
    """Build a model from a function that returns the scores of a batch, its number of classes and its minimum size."""

    def make(scores: Callable[[Tensor], Tensor], num_classes: int, min_size: int = 1) -> FCN:
        model = FCN(Pixels(scores, num_classes, min_size), num_classes, levels=(1,)).requires_grad_(False)
        model.heads["1"].weight.copy_(torch.eye(num_classes)[:, :, None, None])
        return model

    return make
