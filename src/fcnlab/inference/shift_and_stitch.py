"""Shift-and-stitch: dense scores from a coarse net, from shifted images (CVPR 2015, section 3.2)."""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fcnlab.config.ranges import Meaning
from fcnlab.errors import UserError
from fcnlab.inference.augmentation import Image, InferenceMethod, ScoreMap
from fcnlab.models import FCN, FeatureMap, Upsample, overlap
from fcnlab.models.geometry import IMAGE

BORDER = (124 / 255, 116 / 255, 104 / 255)  # RGB: what images are padded with in training, near ImageNet's mean


@dataclass(frozen=True)
class ShiftAndStitch(InferenceMethod):
    """Interlace the coarse scores of ``factor**2`` shifted images, so that they lie ``factor`` times as dense.

    With ``factor`` as large as the stride of the net's finest level every pixel has a score of its own, and nothing but
    half a pixel is interpolated. Then it equals the net with all strides 1 and later filters spread ("a trous"), but
    for cells that see the image's border. The rest is upsampled as the net does.
    """

    factor: Annotated[int, Meaning("a whole number of at least 2", lambda value: value >= 2)] = 2

    def __post_init__(self):
        if self.factor < 2:
            raise ValueError(f"inference.factor={self.factor}: at least 2")

    def minimum_image_size(self, net: FCN) -> int:
        if any(parameter.numel() for parameter in net.upsample[-1].parameters()):
            raise UserError(
                "inference=shift_and_stitch puts a smaller step in the place of the last upsampling, which this net has"
                " learned (model.upsampling=learned_all): take another inference method"
            )
        _finest_stride(net, self.factor)
        return net.backbone.min_size

    def __call__(self, net: FCN, image: Image) -> ScoreMap:
        self.minimum_image_size(net)
        dense = stitch(net, image, self.factor)
        upsample = Upsample(net.num_classes, dense.grid, IMAGE).to(image.device)
        return overlap(upsample(dense), FeatureMap(image, *IMAGE))[0].data


def stitch(net: FCN, image: Image, factor: int) -> FeatureMap:
    """The net's fused scores, at a ``factor``-th of their stride.

    Raises
    ------
    UserError
        The factor does not divide the stride.
    """
    coarsest, stride = net.backbone.levels[net.levels[0]].grid.stride, _finest_stride(net, factor)
    step = stride // factor
    rows = []
    for down in range(0, stride, step):
        row = [net.fused(_shifted(image, down, right, coarsest)) for right in range(0, stride, step)]
        rows.append(row)
    first = rows[0][0]
    data = _interlaced([[cell.data for cell in row] for row in rows])
    return FeatureMap(data, step, first.origin - coarsest)


def _finest_stride(net: FCN, factor: int) -> int:
    """The stride of the net's finest level; a UserError where the factor does not divide it."""
    stride = net.backbone.levels[net.levels[-1]].grid.stride
    if stride % factor:
        raise UserError(f"inference.factor={factor} does not divide the net's finest stride, {stride}")
    return stride


def _shifted(
    image: Image, down: int, right: int, coarsest: int
) -> Float[Tensor, "batch 3 rows+{coarsest} cols+{coarsest}"]:
    """The image with a border of the net's coarsest stride in all, of which ``coarsest - down`` pixels lie above it.

    Without a shift it lies where it was to all levels, so that the net's own cells are among those that are stitched.
    """
    padding = (coarsest - right, right, coarsest - down, down)
    border = image.new_tensor(BORDER).view(1, 3, 1, 1)
    return F.pad(image - border, padding) + border


def _interlaced(maps: list[list[Tensor]]) -> Tensor:
    """Maps of equal size, dealt out: cell (i, j) of map (y, x) becomes cell (factor i + y, factor j + x)."""
    factor = len(maps)
    batch, channels, rows, cols = maps[0][0].shape
    together = torch.stack([torch.stack(row, -1) for row in maps], 3)  # batch, channel, row, y, col, x
    return together.reshape(batch, channels, rows * factor, cols * factor)
