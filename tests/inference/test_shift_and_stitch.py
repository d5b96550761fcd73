"""Shift-and-stitch, compared with the model with strides replaced by dilation (CVPR 2015, section 3.2)."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fcnlab.errors import UserError
from fcnlab.inference import ShiftAndStitch
from fcnlab.inference.shift_and_stitch import stitch
from fcnlab.models import FCN, GoogLeNet, Tiny, receptive_field


def dense(model: FCN, level: int, image: torch.Tensor) -> torch.Tensor:
    """Return the level's scores at every pixel by the "a trous" algorithm for a chain of layers."""
    x, dilation = model.backbone.normalize(image), 1
    for layer in model.backbone.chain(level):
        if isinstance(layer, nn.Conv2d):
            padding = layer.padding[0] * dilation
            x = F.conv2d(x, layer.weight, layer.bias, 1, padding, layer.dilation[0] * dilation, layer.groups)
            dilation *= layer.stride[0]
        elif isinstance(layer, nn.MaxPool2d):
            x = F.pad(x, [0, (layer.kernel_size - 1) * dilation] * 2, value=-torch.inf)
            x = F.max_pool2d(x, layer.kernel_size, 1, dilation=dilation)
            dilation *= layer.stride
        else:
            x = layer(x)
    return model.heads[str(level)](x)


def with_random_heads(model: FCN) -> FCN:
    torch.manual_seed(0)
    for head in model.heads.values():
        nn.init.normal_(head.weight)
    return model.eval()


@torch.inference_mode()
@pytest.mark.parametrize("level", [8, 16, pytest.param(32, marks=pytest.mark.slow)])
def test_stitched_scores_equal_those_of_the_dilated_model(level):
    """Only cells away from the border are compared; the factor is the stride, so every pixel has a cell."""
    model = with_random_heads(FCN(Tiny(width=4), 3, levels=(level,))).double()
    origin = model.backbone.levels[level].grid.origin
    margin = math.ceil(
        receptive_field(model.backbone.chain(level)) / 2 + origin
    )  # a dense cell p is centred on p + origin
    side = 2 * margin + 30
    image = torch.rand(1, 3, side, side + 9, dtype=torch.float64)
    stitched, expected = stitch(model, image, level), dense(model, level, image)
    assert stitched.stride == 1
    first = round(origin - stitched.origin)
    same = stitched.data[..., first : first + side, first : first + side + 9]
    inner = (..., slice(margin, side - margin), slice(margin, side + 9 - margin))
    assert expected[inner].numel() == 3 * 30 * 39 and expected[inner].std() > 0.1
    torch.testing.assert_close(same[inner], expected[inner], atol=1e-10, rtol=1e-10)


@torch.inference_mode()
@pytest.mark.parametrize(
    "build",
    [
        lambda: FCN(Tiny(width=4), 3),
        pytest.param(lambda: FCN(GoogLeNet(), 3, levels=(32, 16)), marks=pytest.mark.slow),
    ],
    ids=["tiny", "googlenet"],
)
def test_stitched_cells_contain_the_cells_of_the_model(build):
    """With skips, branches and normalisation: away from the border every second cell equals the model's."""
    model = with_random_heads(build())
    side = 320 if model.levels[-1] == 8 else 864
    image = torch.rand(1, 3, side, side)
    plain, stitched = model.fused(image), stitch(model, image, 2)
    shift = (plain.origin - stitched.origin) / stitched.stride
    assert shift.is_integer() and stitched.stride == plain.stride // 2
    cells = stitched.data[..., int(shift) :: 2, int(shift) :: 2]
    middle = slice(plain.data.shape[2] // 2 - 1, plain.data.shape[2] // 2 + 1)
    torch.testing.assert_close(cells[..., middle, middle], plain.data[..., middle, middle], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("size", [(64, 64), (37, 90), (1, 1)])
def test_scores_cover_the_image(factor, size):
    model = with_random_heads(FCN(Tiny(width=4), 3))
    assert ShiftAndStitch(factor)(model, torch.rand(2, 3, *size)).shape == (2, 3, *size)


def test_invalid_factors_are_errors():
    with pytest.raises(ValueError, match=r"inference\.factor=3 must divide the model's finest stride, 8"):
        ShiftAndStitch(3)(FCN(Tiny(width=4), 3), torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"inference\.factor=1 must be at least 2"):
        ShiftAndStitch(1)


def test_a_learned_last_upsampling_is_refused():
    with pytest.raises(UserError, match="learned_all"):
        ShiftAndStitch(2)(FCN(Tiny(width=2), 3, upsampling="learned_all").eval(), torch.rand(1, 3, 64, 64))
