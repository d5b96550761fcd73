"""Backbones made of other people's nets, whose grids are measured."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcnlab.errors import UserError, first_line
from fcnlab.models.backbone import InputConvention, Level
from fcnlab.models.geometry import FeatureMap
from fcnlab.models.measured_grids import GridError, MeasuredGrids, measure_grids


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


def grids_of(name: str, build: Callable[[], nn.Module]) -> MeasuredGrids:
    """Measure the net that ``build`` returns, an extractor as :func:`measure_grids` takes it, without its numbers.

    Raises
    ------
    GridError
        Its features lie on no regular grid, or it takes images of one size only.
    UserError
        It cannot be built, or computes no feature maps.
    """
    try:
        with torch.device("meta"):
            net = build()
        return measure_grids(net)
    except GridError as error:
        raise GridError(
            f"model.backbone.name={name} cannot be used: {error}\nChoose another net, or write a backbone class that"
            " declares the grids of its levels (docs/how-to/backbones.md)."
        ) from error
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise UserError(
            f"model.backbone.name={name} cannot be used: it computes no feature maps: {first_line(error)}"
        ) from error
