"""Tiny, and the input normalisation that all backbones share."""

import pytest
import torch
from safetensors.torch import save_file

from fcnlab.models import CaffeNet, GoogLeNet, Tiny
from fcnlab.models.backbone import InputConvention, imagenet_convention
from fcnlab.models.weights import WeightsError


@pytest.mark.parametrize("width", [1, 16])
def test_declared_levels_equal_the_computed_features(width):
    net = Tiny(width=width).eval()
    channels = {8: 4 * width, 16: 6 * width, 32: 8 * width}
    features = net(torch.rand(2, 3, 64, 97))
    assert {level: x.data.shape for level, x in features.items()} == {
        8: (2, channels[8], 8, 13), 16: (2, channels[16], 4, 7), 32: (2, channels[32], 2, 4)
    }  # fmt: skip
    assert {level: offered.channels for level, offered in net.levels.items()} == channels
    assert {level: x.grid for level, x in features.items()} == {k: v.grid for k, v in net.levels.items()}


def test_weights_are_loaded_from_a_file(tmp_path):
    old = Tiny(width=1)
    save_file(old.state_dict(), tmp_path / "tiny.safetensors")
    new = Tiny(width=1, weights=str(tmp_path / "tiny.safetensors"))
    image = torch.rand(1, 3, 40, 40)
    assert new.pretrained and not old.pretrained
    assert torch.equal(new.eval()(image)[32].data, old.eval()(image)[32].data)


@pytest.mark.parametrize("backbone", [CaffeNet, GoogLeNet, Tiny])
def test_unavailable_imagenet_weights_are_an_error(backbone):
    with torch.device("meta"), pytest.raises(WeightsError, match=f"{backbone.__name__} has no ImageNet weights"):
        backbone(weights="imagenet")


@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        (imagenet_convention(), [(1.0 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]),
        (GoogLeNet, [51.0 - 104, 127.5 - 117, 255.0 - 123]),  # BGR in 0..255
        (InputConvention(mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0), scale=10.0), [9.0, 1.5, -0.25]),
        (InputConvention(mean=(1.0, 2.0, 3.0), order="bgr"), [0.2 - 1, 0.5 - 2, 1.0 - 3]),
    ],
    ids=["imagenet", "caffe", "scale", "bgr"],
)
def test_input_convention_of_an_orange_pixel(convention, expected):
    convention = GoogLeNet().normalize if convention is GoogLeNet else convention
    orange = torch.tensor([1.0, 0.5, 0.2]).view(1, 3, 1, 1)
    torch.testing.assert_close(convention(orange).flatten(), torch.tensor(expected))
    assert convention.state_dict() == {}  # so that checkpoints do not depend on the convention
