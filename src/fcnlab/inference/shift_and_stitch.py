"""Shift-and-stitch: dense scores from a coarse network, computed on shifted images (CVPR 2015, section 3.2)."""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fcnlab.config.ranges import Meaning
from fcnlab.errors import UserError
from fcnlab.inference.augmentation import Image, InferenceMethod, ScoreMap
from fcnlab.models import FCN, FeatureMap, Network, Upsample, overlap
from fcnlab.models.geometry import IMAGE

BORDER = (124 / 255, 116 / 255, 104 / 255)  # RGB, the padding value of training, close to the ImageNet mean


@dataclass(frozen=True)
class ShiftAndStitch(InferenceMethod):
    """Interlace the coarse scores of ``factor**2`` shifted images to scores that are ``factor`` times as dense.

    With ``factor`` equal to the stride of the finest level, every pixel has its own score, and only a shift of half a
    pixel is interpolated. This equals the network with all strides 1 and dilated filters ("a trous"), except near the
    image border. With a smaller factor, the model's upsampling does the rest.
    """

    factor: Annotated[int, Meaning("a whole number of at least 2", lambda value: value >= 2)] = 2

    def __post_init__(self):
        if self.factor < 2:
            raise ValueError(f"inference.factor={self.factor} must be at least 2")

    def minimum_image_size(self, net: Network) -> int:
        net = _as_fcn(net)
        if any(parameter.numel() for parameter in net.upsample[-1].parameters()):
            raise UserError(
                "inference=shift_and_stitch replaces the last upsampling, which is learned in this model"
                " (model.upsampling=learned_all): choose another inference method"
            )
        _finest_stride(net, self.factor)
        return net.min_size

    def __call__(self, net: Network, image: Image) -> ScoreMap:
        self.minimum_image_size(net)
        dense = stitch(_as_fcn(net), image, self.factor)
        upsample = Upsample(net.num_classes, dense.grid, IMAGE).to(image.device)
        return overlap(upsample(dense), FeatureMap(image, *IMAGE))[0].data


def _as_fcn(net: Network) -> FCN:
    """Return the network if it is an FCN, whose levels have strides; raise a UserError otherwise."""
    if not isinstance(net, FCN):
        raise UserError(
            "inference=shift_and_stitch is for FCNs only, since it shifts images by the strides of their levels. The"
            f" model is {net.title}: choose another inference method, such as inference=flip"
        )
    return net


def stitch(net: FCN, image: Image, factor: int) -> FeatureMap:
    """Return the fused scores of the model at their stride divided by ``factor``.

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
    """Return the stride of the model's finest level, and check that the factor divides it."""
    stride = net.backbone.levels[net.levels[-1]].grid.stride
    if stride % factor:
        raise UserError(f"inference.factor={factor} must divide the model's finest stride, {stride}")
    return stride


def _shifted(
    image: Image, down: int, right: int, coarsest: int
) -> Float[Tensor, "batch 3 rows+{coarsest} cols+{coarsest}"]:
    """Return the image padded by the coarsest stride in total, ``coarsest - down`` pixels of it above the image.

    Without a shift, all levels stay aligned, so that the model's own cells are among the stitched ones.
    """
    padding = (coarsest - right, right, coarsest - down, down)
    border = image.new_tensor(BORDER).view(1, 3, 1, 1)
    return F.pad(image - border, padding) + border


def _interlaced(maps: list[list[Tensor]]) -> Tensor:
    """Interlace maps of equal size: cell (i, j) of map (y, x) becomes cell (factor i + y, factor j + x)."""
    factor = len(maps)
    batch, channels, rows, cols = maps[0][0].shape
    together = torch.stack([torch.stack(row, -1) for row in maps], 3)  # batch, channel, row, y, col, x
    return together.reshape(batch, channels, rows * factor, cols * factor)
