"""Backbones made of other people's nets, whose grids are measured."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcnlab.models.backbone import InputConvention, Level
from fcnlab.models.geometry import FeatureMap
from fcnlab.models.measured_grids import MeasuredGrids


class MeasuredBackbone(nn.Module):
    """A net that maps a normalised image to ``{level: features}``, and what was measured of it.

    The image gets zeros around it, after normalisation, where the positions of features depend on its size otherwise.
    """

    pretrained = False
    channels_last_on_cpu = False  # until it is measured

    def __init__(self, normalize: InputConvention, measured: MeasuredGrids):
        super().__init__()
        self.normalize = normalize
        self.measured, self.min_size = measured, measured.min_size
        self.levels = {level: Level(found.channels, found.grid) for level, found in measured.levels.items()}

    def forward(self, image: Tensor) -> dict[int, FeatureMap]:
        rows, cols = (self.measured.frame.padding(side) for side in image.shape[2:])
        image = self.normalize(image)
        # An exported program refuses sizes that need no padding if its example needs some: so it always pads.
        pads = torch.compiler.is_exporting() or any((*rows, *cols))
        features = self.features(F.pad(image, (*cols, *rows)) if pads else image)
        return {level: FeatureMap(values, *self.levels[level].grid) for level, values in features.items()}

    def features(self, image: Tensor) -> Mapping[int, Tensor]:
        """Return the features of each level, channels second."""
        raise NotImplementedError
