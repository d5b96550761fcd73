"""Measured grids, compared with those computed from layers, and with the pixels that random nets depend on."""

import pytest
import torch
from torch import nn

from fcnlab.models import VGG16, AlexNet, CaffeNet, GoogLeNet, GoogLeNetBN, ResNet, Tiny, receptive_field
from fcnlab.models.geometry import Grid
from fcnlab.models.measured_grids import Frame, GridError, measure_grids

CHAINS = [
    pytest.param(lambda: Tiny(), id="tiny"),
    pytest.param(lambda: VGG16(padding="same"), id="vgg16", marks=pytest.mark.slow),
    pytest.param(lambda: VGG16(padding="paper"), id="vgg16-paper", marks=pytest.mark.slow),
    pytest.param(lambda: AlexNet(), id="alexnet"),
    pytest.param(lambda: CaffeNet(padding="paper"), id="caffenet-paper", marks=pytest.mark.slow),
    pytest.param(lambda: ResNet(50), id="resnet50"),
    pytest.param(lambda: ResNet(50, output_stride=8), id="resnet50-dilated", marks=pytest.mark.slow),
    pytest.param(lambda: GoogLeNet(), id="googlenet", marks=pytest.mark.slow),
    pytest.param(lambda: GoogLeNetBN(), id="googlenet_bn"),
]


class Features(nn.Module):
    """A backbone as measure_grids takes it: features instead of feature maps."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, image: torch.Tensor) -> dict[int, torch.Tensor]:
        return {level: features.data for level, features in self.backbone(image).items()}


class Net(nn.Module):
    """One level behind some layers."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, image: torch.Tensor) -> dict[int, torch.Tensor]:
        return {0: self.layers(image)}


@pytest.mark.parametrize("build", CHAINS)
def test_grids_and_receptive_fields_equal_those_computed_from_the_layers(build):
    with torch.device("meta"):
        backbone = build()
    measured = measure_grids(Features(backbone))
    before = measured.frame.before
    for level, found in measured.levels.items():
        assert found.grid.stride == backbone.levels[level].grid.stride
        assert found.grid.origin + before == backbone.levels[level].grid.origin
        assert found.receptive_field == receptive_field(backbone.chain(level))
    assert not measured.sees_whole_image


def test_measuring_draws_no_random_numbers_and_changes_no_weight():
    net = Net(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        measure_grids(net)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(value.grad is None and value.requires_grad for value in net.parameters())


def test_dead_rectifiers_and_zero_weights_hide_no_pixel():
    convolution = nn.Conv2d(3, 4, 7, 2, 3)
    nn.init.zeros_(convolution.weight)
    nn.init.constant_(convolution.bias, -1.0)
    found = measure_grids(Net(convolution, nn.ReLU(), nn.MaxPool2d(3, 2, 1))).levels[0]
    assert (found.grid, found.receptive_field) == (Grid(4, 0.0), 11)


class PatchEmbedding(nn.Module):
    """Refuses images that are no whole number of patches, as some transformers do."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.convolution = size, nn.Conv2d(3, 4, size, size)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        assert all(side % self.size == 0 for side in image.shape[2:])
        return self.convolution(image)


class SamePadding(nn.Module):
    """TensorFlow's: as much as the size of the image needs, the odd pixel at the end."""

    def __init__(self, stride: int):
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, stride)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        sides = []
        for side in reversed(image.shape[2:]):
            (stride, _) = self.convolution.stride
            total = max((-(-side // stride) - 1) * stride + 3 - side, 0)
            sides += [total // 2, total - total // 2]
        return self.convolution(nn.functional.pad(image, sides))


@pytest.mark.parametrize(
    ("layers", "frame", "origin"),
    [
        ([nn.Conv2d(3, 4, 3, 4, 1)], Frame(0, 0, 4, None), 0.0),
        ([nn.Conv2d(3, 4, 4, 4)], Frame(0, 0, 4, 0), 1.5),  # the pixels behind the last patch are dropped
        ([PatchEmbedding(4)], Frame(0, 0, 4, 0), 1.5),
        ([SamePadding(2), SamePadding(2)], Frame(0, 0, 4, 1), 0.0),
        # 9 pixels without padding: cell 0 lies at 4, so 3 cells more are needed before and as many pixels behind
        ([nn.Conv2d(3, 4, 9, 1)], Frame(4, 4, 1, 0), 0.0),
    ],
    ids=["padded", "patches", "strict-patches", "tensorflow", "unpadded"],
)
def test_images_are_padded_to_where_grids_are_fixed_and_cover_them(layers, frame, origin):
    measured = measure_grids(Net(*layers))
    assert measured.frame == frame
    assert measured.levels[0].grid.origin == origin


@pytest.mark.parametrize(
    ("layers", "frame", "origin"),
    [
        ([nn.Conv2d(3, 4, 7, 7)], Frame(0, 0, 7, 0), 3.0),
        ([nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 3)], Frame(0, 0, 6, 0), 2.0),
    ],
    ids=["patches-of-7", "stride-6"],
)
def test_a_stride_that_is_no_power_of_two_covers_every_size(layers, frame, origin):
    net = Net(*layers)
    measured = measure_grids(net)
    assert measured.frame == frame
    assert measured.levels[0].grid.origin == origin
    for length in range(measured.min_size, 60):
        before, after = measured.frame.padding(length)
        total = before + length + after
        assert total % frame.step == 0 and 0 <= after < frame.step
        assert net(torch.zeros(1, 3, total, total))[0].shape[2] * frame.step >= length


def test_the_length_of_a_padded_image():
    assert Frame(0, 0, 32, None).padding(77) == (0, 0)
    assert Frame(0, 0, 32, 1).padding(64) == (0, 1)
    assert Frame(0, 0, 32, 1).padding(66) == (0, 31)
    assert Frame(32, 11, 32, 16).padding(50) == (32, 11 + 19)


class Attention(nn.Module):
    def __init__(self, fused: bool):
        super().__init__()
        self.fused = fused
        self.layer = nn.Linear(4, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.layer(x.flatten(2).mT).chunk(3, dim=-1)
        if self.fused:
            mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        else:
            mixed = (query @ key.mT).softmax(-1) @ value
        return x + mixed.mT.reshape(x.shape)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.layer(x.mean((2, 3), keepdim=True)).sigmoid()


@pytest.mark.parametrize("looks", [Attention(True), Attention(False), Gate()], ids=["fused", "attention", "gate"])
def test_what_looks_at_the_whole_image_has_no_position(looks):
    measured = measure_grids(Net(nn.Conv2d(3, 4, 3, 4, 1), looks, nn.Conv2d(4, 4, 3, 1, 1)))
    assert measured.sees_whole_image
    assert (measured.levels[0].grid, measured.levels[0].receptive_field) == (Grid(4, 0.0), 11)


def test_a_net_without_positions_is_refused():
    class Mixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x.cumsum(2).flip(2).cumsum(2)

    with pytest.raises(GridError, match="cannot be measured"):
        measure_grids(Net(nn.Conv2d(3, 4, 3, 4, 1), Mixed()))


def test_irregular_cells_are_refused():
    with pytest.raises(GridError, match="irregular"):
        measure_grids(Net(nn.Conv2d(3, 4, 3, 4, 1), nn.Upsample(scale_factor=2)))


def test_axes_that_differ_are_refused():
    with pytest.raises(GridError, match="rows and in columns"):
        measure_grids(Net(nn.Conv2d(3, 4, (3, 5), 2, 1)))
