"""Positions of cells, compared with the released models' crops, brute force and ``F.interpolate``."""

from bisect import bisect_left
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fcnlab.models import (
    VGG16,
    AlexNet,
    CaffeNet,
    FeatureMap,
    GoogLeNet,
    GoogLeNetBN,
    Grid,
    ResNet,
    Tiny,
    Upsample,
    overlap,
    receptive_field,
)
from fcnlab.models.geometry import IMAGE, add
from fcnlab.models.upsampling import bilinear_kernel

# Origins of the levels 8, 16 and 32, by hand: a kernel k, padding p at stride a adds a * ((k - 1) / 2 - p).
# None: a backbone without a choice of padding.
ORIGINS = {
    (VGG16, "paper"): (-95.5, -91.5, 12.5),
    (VGG16, "same"): (3.5, 7.5, 15.5),
    (GoogLeNet, "paper"): (-91.0, -83.0, -67.0),
    (GoogLeNet, "same"): (6.0, 14.0, 30.0),
    (GoogLeNetBN, None): (6.0, 14.0, 22.0),
    (CaffeNet, "paper"): (-91.0, -83.0, 13.0),
    (CaffeNet, "same"): (4.0, 12.0, 12.0),
    (AlexNet, "paper"): (-91.0, -83.0, 13.0),
    (AlexNet, "same"): (4.0, 12.0, 12.0),
    (ResNet, None): (0.0, 0.0, 0.0),
    (Tiny, "paper"): (-95.5, -91.5, -83.5),
    (Tiny, "same"): (3.5, 7.5, 15.5),
}
BACKBONES = [pytest.param(*key, id=f"{key[0].__name__}-{key[1]}") for key in ORIGINS]


def build(net, padding, **settings) -> nn.Module:
    return net(**settings) if padding is None else net(padding=padding, **settings)


def grids(net, padding, *levels):
    """Return the grids computed by hand, from coarse to fine, ending with the image's."""
    by_level = dict(zip((8, 16, 32), ORIGINS[net, padding], strict=True))
    return [Grid(level, by_level[level]) for level in levels] + [IMAGE]


def ramp(grid: Grid, size: int) -> FeatureMap:
    """Return a map whose first channel contains each row's pixel position, and the second each column's."""
    line = grid.origin + grid.stride * torch.arange(size).float()
    return FeatureMap(torch.stack(torch.meshgrid(line, line, indexing="ij"))[None], *grid)


def random_map(grid: Grid, *shape: int) -> FeatureMap:
    return FeatureMap(torch.randn(1, *shape), *grid)


# --- Grids


@pytest.mark.parametrize(("net", "padding"), BACKBONES)
def test_grids_of_levels_equal_those_computed_by_hand(net, padding):
    with torch.device("meta"):
        levels = build(net, padding).levels
    assert [levels[level].grid for level in (32, 16, 8)] == grids(net, padding, 32, 16, 8)[:-1]


def narrow(net: nn.Module) -> nn.Module:
    """Reduce all layers to one channel: receptive fields do not depend on the width."""
    net.normalize = nn.Identity()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight, layer.bias, layer.groups = nn.Parameter(torch.ones(1, 1, *layer.kernel_size)), None, 1
            layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].sum(1, keepdim=True),))
        elif isinstance(layer, nn.BatchNorm2d):
            layer.forward = lambda x: x
    return net


def seen_columns(cell, size: int) -> tuple[int, int]:
    """Return the first and the last image column that affect a cell, found by NaNs in the image."""

    def reached(columns: slice) -> bool:
        image = torch.zeros(1, 3, 32, size)
        image[..., columns] = torch.nan
        return bool(cell(image).isnan().any())

    first = bisect_left(range(size), True, key=lambda column: reached(slice(column + 1)))
    last = bisect_left(range(size), True, key=lambda column: not reached(slice(column + 1, None)))
    return first, last


@pytest.mark.parametrize("level", [8, 16, 32])
@pytest.mark.parametrize(
    ("net", "padding", "cells", "settings"),
    [
        (VGG16, "paper", 16, {}),
        (VGG16, "same", 16, {}),
        (GoogLeNet, "same", 32, {}),
        (GoogLeNetBN, None, 32, {}),
        (CaffeNet, "paper", 16, {}),
        (AlexNet, "same", 16, {}),
        (ResNet, None, 32, {}),
        (ResNet, None, 32, {"output_stride": 8}),
        (Tiny, "same", 16, {}),
    ],
)
@torch.no_grad()
def test_the_receptive_field_of_a_cell_is_centred(net, padding, cells, settings, level):
    with torch.device("meta"):  # VGG16's half gigabyte is not needed
        backbone = build(net, padding, **settings).eval()
    narrow(backbone)
    size = cells * level
    grid = backbone.levels[level].grid
    assert grid.origin == grids(net, padding, level)[0].origin
    index = round((size / 2 - grid.origin) / grid.stride)
    first, last = seen_columns(lambda image: backbone(image)[level].data[..., index], size)
    assert 0 < first < last < size - 1, "the image is too small: its border hides a part of what the cell sees"
    assert (first + last) / 2 == grid.origin + grid.stride * index
    assert last - first + 1 == receptive_field(backbone.chain(level))


# CVPR 2015, table 1, except GoogLeNet, whose 907 pixels include the average pool. The others are computed by hand.
@pytest.mark.parametrize(
    ("net", "settings", "field"),
    [
        (CaffeNet, {}, 355),
        (VGG16, {}, 404),
        (GoogLeNet, {}, 715),
        (AlexNet, {}, 355),
        (VGG16, {"batch_norm": True}, 404),
        (GoogLeNetBN, {}, 379),
        (ResNet, {"depth": 50}, 11 + 3 * 8 + (8 + 3 * 16) + (16 + 5 * 32) + (32 + 2 * 64)),
        (ResNet, {"depth": 101}, 11 + 3 * 8 + (8 + 3 * 16) + (16 + 22 * 32) + (32 + 2 * 64)),
    ],
)
def test_receptive_fields_and_strides_equal_the_papers(net, settings, field):
    with torch.device("meta"):
        backbone = net(**settings)
    assert receptive_field(backbone.chain(32)) == field
    assert max(offered.grid.stride for offered in backbone.levels.values()) == 32


def test_receptive_field_with_googlenets_average_pool():
    with torch.device("meta"):
        assert receptive_field([*GoogLeNet().chain(32), nn.Conv2d(1, 1, 7)]) == 907  # CVPR 2015, table 1


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(3, 1, 3)],
        [nn.Conv2d(3, 1, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(1, 1, 5, padding=2)],
        [nn.Conv2d(3, 1, 7, stride=2, padding=3), nn.MaxPool2d(3, stride=2), nn.LocalResponseNorm(5)],
        [nn.Conv2d(3, 1, 4, padding=9), nn.Dropout(), nn.Conv2d(1, 1, 3, stride=3, dilation=2, padding=1)],
        [nn.Conv2d(3, 1, 3, dilation=4), nn.BatchNorm2d(1), nn.MaxPool2d(2, stride=1), nn.Conv2d(1, 1, 2, stride=2)],
    ],
    ids=["valid", "vgg", "googlenet", "even kernels", "dilated"],
)
@torch.no_grad()
def test_grid_through_layers_equals_brute_force(layers):
    net = nn.Sequential(*layers).eval()
    cells = net(torch.zeros(1, 3, 32, 100)).shape[3]
    grid = IMAGE.through(layers)
    for index in (cells // 2, cells // 2 + 1):
        first, last = seen_columns(lambda image, index=index: net(image)[..., index], size=100)
        assert (first + last) / 2 == grid.origin + grid.stride * index
        assert last - first + 1 == receptive_field(layers)


def test_caffenet_needs_63_taps_and_a_crop_of_18():
    pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    grid = IMAGE.through(
        [
            nn.Conv2d(3, 96, 11, stride=4, padding=100), pool,
            nn.Conv2d(96, 256, 5, padding=2, groups=2), pool,
            nn.Conv2d(256, 384, 3, padding=1), nn.Conv2d(384, 384, 3, padding=1), nn.Conv2d(384, 256, 3, padding=1),
            pool, nn.Conv2d(256, 8, 6), nn.Conv2d(8, 8, 1),
        ]
    )  # fmt: skip
    assert grid == Grid(32, 13.0)
    assert Upsample(1, grid, IMAGE).taps == 63
    assert crops([grid, IMAGE]) == [18]


# --- Crops


def first_row(features: FeatureMap) -> int:
    return int(features.data[0, 0, 0, 0])


def crops(chain: list[Grid]) -> list[int]:
    """Return the rows that each fusion crops at the top, from coarse to fine; one of the two maps loses none."""

    def row_numbers(grid: Grid, rows: int) -> FeatureMap:
        return FeatureMap(torch.arange(rows).float().view(1, 1, -1, 1).expand(-1, -1, -1, rows), *grid)

    fused, offsets = row_numbers(chain[0], 16), []
    for source, target in pairwise(chain):
        upsampled = Upsample(1, source, target)(fused)
        fused, skip = overlap(row_numbers(upsampled.grid, upsampled.data.shape[2]), row_numbers(target, 999))
        assert min(first_row(fused), first_row(skip)) == 0
        offsets.append(max(first_row(fused), first_row(skip)))
    return offsets


@pytest.mark.parametrize(
    ("net", "padding", "levels", "offsets"),
    [
        # the released models' prototxts (fcn.berkeleyvision.org, */net.py)
        (VGG16, "paper", (32,), [19]),
        (VGG16, "paper", (32, 16), [5, 27]),
        (VGG16, "paper", (32, 16, 8), [5, 9, 31]),
        (VGG16, "same", (32,), [16]),
        (VGG16, "same", (32, 16), [1, 8]),
        (VGG16, "same", (32, 16, 8), [1, 1, 4]),
        (GoogLeNet, "same", (32,), [1]),
        (GoogLeNet, "same", (32, 16, 8), [0, 0, 1]),
        (GoogLeNet, "paper", (32,), [98]),
        (CaffeNet, "paper", (32,), [18]),  # voc-fcn-alexnet/net.py; the others have no released model
        (CaffeNet, "paper", (32, 16, 8), [5, 10, 18]),
        (CaffeNet, "same", (32,), [19]),
        (AlexNet, "same", (32, 16, 8), [1, 0, 3]),
        (GoogLeNetBN, None, (32, 16, 8), [1, 0, 1]),
        (ResNet, None, (32,), [31]),
        (ResNet, None, (32, 16, 8), [1, 1, 7]),
    ],
)
def test_crop_offsets(net, padding, levels, offsets):
    assert crops(grids(net, padding, *levels)) == offsets


@pytest.mark.parametrize(("net", "taps"), [(VGG16, 64), (GoogLeNet, 63), (CaffeNet, 63), (AlexNet, 63)])
@pytest.mark.parametrize("padding", ["same", "paper"])
def test_kernel_size_of_the_last_upsampling(net, padding, taps):
    source, target = grids(net, padding, 32)
    upsample = Upsample(1, source, target, learned=True)
    assert upsample.taps == taps and upsample.kernel.shape == (1, 1, taps, taps)


@pytest.mark.parametrize(("origin_a", "origin_b"), [(0.0, 0.0), (0.0, 12.0), (12.0, -4.0), (-91.5, 12.5)])
@pytest.mark.parametrize(("size_a", "size_b"), [(40, 40), (40, 33), (30, 50)])
def test_overlapping_cells_have_the_same_positions(origin_a, origin_b, size_a, size_b):
    a, b = ramp(Grid(4, origin_a), size_a), ramp(Grid(4, origin_b), size_b)
    window_a, window_b = overlap(a, b)
    assert torch.equal(window_a.data, window_b.data)
    shared = set(a.data[0, 0, :, 0].tolist()) & set(b.data[0, 0, :, 0].tolist())
    assert window_a.data[0, 0, :, 0].tolist() == window_a.data[0, 1, 0, :].tolist() == sorted(shared)
    assert window_a.grid == window_b.grid == Grid(4, min(shared))
    assert torch.equal(add(a, b).data, 2 * window_a.data)


@pytest.mark.parametrize(
    ("grid", "message"), [(Grid(4, 1.0), "a crop can only shift by whole cells"), (Grid(8, 0.0), "stride 4 and 8")]
)
def test_maps_with_different_grids_are_an_error(grid, message):
    with pytest.raises(ValueError, match=message):
        overlap(ramp(Grid(4, 0.0), 5), ramp(grid, 5))


# --- Upsampling


@pytest.mark.parametrize(
    ("taps", "line"), [(3, [0.5, 1, 0.5]), (4, [0.25, 0.75, 0.75, 0.25])], ids=["odd taps", "even taps"]
)
def test_kernel_of_factor_2(taps, line):
    assert torch.equal(bilinear_kernel(2, taps), torch.tensor([[a * b for b in line] for a in line]))


@pytest.mark.parametrize("factor", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("odd", [0, 1])
def test_kernel_sums_to_the_square_of_the_factor(factor, odd):
    assert bilinear_kernel(factor, 2 * factor - odd).sum().item() == factor**2


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("factor", [2, 8, 32])
def test_upsampling_with_even_taps_interpolates_between_pixels(factor, learned):
    # align_corners=False centres cell i on pixel factor * i + (factor - 1) / 2
    coarse = random_map(Grid(factor, (factor - 1) / 2), 3, 6, 5)
    image = FeatureMap(torch.empty(1, 3, 6 * factor, 5 * factor), *IMAGE)
    actual, _ = overlap(Upsample(3, coarse.grid, IMAGE, learned)(coarse), image)
    expected = F.interpolate(coarse.data, scale_factor=factor, mode="bilinear", align_corners=False)
    assert actual.data.shape == expected.shape and actual.grid == IMAGE
    inner = slice(
        factor // 2, -(factor // 2)
    )  # at the border, a transposed convolution fades and F.interpolate repeats the edge
    torch.testing.assert_close(actual.data[..., inner, inner], expected[..., inner, inner])
    assert (actual.data[..., 0, 0].abs() < expected[..., 0, 0].abs()).all()


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("factor", [2, 8, 32])
def test_upsampling_with_odd_taps_keeps_the_values_of_cells(factor, learned):
    coarse = random_map(Grid(factor, 0.0), 3, 6, 5)
    size = (5 * factor + 1, 4 * factor + 1)  # align_corners=True centres cell i on pixel factor * i
    actual, _ = overlap(Upsample(3, coarse.grid, IMAGE, learned)(coarse), FeatureMap(torch.empty(1, 3, *size), *IMAGE))
    torch.testing.assert_close(actual.data, F.interpolate(coarse.data, size=size, mode="bilinear", align_corners=True))


def test_learned_upsampling_is_dense_and_starts_bilinear():
    source, target = Grid(32, 15.5), Grid(16, 7.5)
    fixed, learned = Upsample(3, source, target), Upsample(3, source, target, learned=True)
    assert [(name, tuple(p.shape)) for name, p in learned.named_parameters()] == [("kernel", (3, 3, 4, 4))]
    coarse = random_map(source, 3, 4, 5)
    torch.testing.assert_close(learned(coarse).data, fixed(coarse).data)
    learned(coarse).data.square().sum().backward()
    assert (learned.kernel.grad != 0).all()  # every class depends on every class
    assert list(fixed.parameters()) == [] and fixed.state_dict() == {}


@pytest.mark.parametrize("learned", [False, True])
def test_between_equal_strides_nothing_is_upsampled_or_learned(learned):
    upsample, features = Upsample(3, Grid(8, 0.0), Grid(8, 16.0), learned), random_map(Grid(8, 0.0), 3, 4, 5)
    assert torch.equal(upsample(features).data, features.data) and upsample(features).grid == features.grid
    assert list(upsample.parameters()) == [] and not upsample.learned


def test_equal_strides_half_a_cell_apart_are_interpolated():
    coarse = random_map(Grid(8, 0.0), 1, 4, 5)
    between, _ = overlap(Upsample(1, Grid(8, 0.0), Grid(8, 4.0))(coarse), random_map(Grid(8, 4.0), 1, 3, 4))
    assert between.grid == Grid(8, 4.0)
    torch.testing.assert_close(between.data, F.avg_pool2d(coarse.data, 2, stride=1))


def test_upsampling_keeps_the_precision_of_its_input():
    source = Grid(2, 0.5)
    half = FeatureMap(torch.ones(1, 2, 3, 3, dtype=torch.bfloat16), *source)
    assert Upsample(2, source, IMAGE)(half).data.dtype == torch.bfloat16


def test_upsampling_to_a_stride_that_is_not_a_divisor_is_an_error():
    with pytest.raises(ValueError, match="stride 32 is no multiple of 12"):
        Upsample(2, Grid(32, 0.0), Grid(12, 0.0))
