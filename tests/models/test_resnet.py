"""ResNets against torchvision's, plain and dilated."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms.functional import normalize

from fcnlab.models import FCN, Grid, ResNet

DILATION = {32: [False, False, False], 16: [False, False, True], 8: [False, True, True]}


# torchvision's published 25,557,032 and 44,549,160, less classifiers of 1000 * 2049
@pytest.mark.parametrize(("depth", "count"), [(50, 25_557_032 - 2_049_000), (101, 44_549_160 - 2_049_000)])
def test_parameter_counts_equal_torchvision(depth, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in ResNet(depth).parameters()) == count


@pytest.mark.parametrize(("depth", "output_stride"), [(50, 32), (50, 16), (50, 8), (101, 32), (101, 8)])
@torch.no_grad()
def test_features_equal_torchvision(depth, output_stride, as_if_trained, tmp_path):
    model = {50: torchvision.models.resnet50, 101: torchvision.models.resnet101}[depth]
    reference = as_if_trained(model(replace_stride_with_dilation=DILATION[output_stride]))
    save_file(reference.state_dict(), tmp_path / "resnet.safetensors")
    net = ResNet(depth, output_stride, weights=str(tmp_path / "resnet.safetensors")).eval()
    image = torch.rand(1, 3, 65, 87)
    x = normalize(image, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    x8 = nn.Sequential(
        reference.conv1, reference.bn1, reference.relu, reference.maxpool, reference.layer1, reference.layer2
    )(x)
    x16 = reference.layer3(x8)
    expected = {8: x8, 16: x16, 32: reference.layer4(x16)}
    assert net.pretrained and expected[32].std() > 0.1
    torch.testing.assert_close({level: x.data for level, x in net(image).items()}, expected)


@pytest.mark.parametrize(("output_stride", "strides"), [(32, (8, 16, 32)), (16, (8, 16, 16)), (8, (8, 8, 8))])
@torch.no_grad()
def test_dilated_levels_keep_their_names_and_report_their_stride(output_stride, strides):
    with torch.device("meta"):
        net = ResNet(output_stride=output_stride)
        features = net.eval()(torch.empty(1, 3, 97, 64))
    assert {level: offered.grid for level, offered in net.levels.items()} == {
        level: Grid(stride, 0.0) for level, stride in zip((8, 16, 32), strides, strict=True)
    }
    for level, stride in zip((8, 16, 32), strides, strict=True):
        assert features[level].stride == stride
        assert features[level].data.shape[2:] == (-(-97 // stride), 64 // stride)


@pytest.mark.parametrize("shape", [(65, 87), (96, 33)])
@torch.no_grad()
def test_every_fourth_cell_of_a_dilated_resnet_equals_the_plain_one(as_if_trained, shape):
    plain = as_if_trained(ResNet()).double()
    dilated = ResNet(output_stride=8).eval().double()
    dilated.load_state_dict(plain.state_dict())
    image = torch.rand(1, 3, *shape).double()
    fine, coarse = dilated(image)[32].data, plain(image)[32].data
    assert fine.shape[2] > 2 * coarse.shape[2]
    torch.testing.assert_close(fine[:, :, ::4, ::4], coarse)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("settings", "message"),
    [({"depth": 34}, r"depth=34: choose one of \[50, 101\]"), ({"output_stride": 4}, "choose 8, 16 or 32")],
)
def test_settings_out_of_range_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**settings)


@torch.no_grad()
def test_fcn_on_a_dilated_resnet_scores_every_pixel():
    net = FCN(ResNet(output_stride=8), 3).eval()
    for head in net.heads.values():
        nn.init.normal_(head.weight, std=0.01)
    scores = net(torch.rand(1, 3, 41, 50))
    assert scores.shape == (1, 3, 41, 50) and (scores != 0).all()
