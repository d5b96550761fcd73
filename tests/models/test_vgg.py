"""VGG16, with and without batch normalisation, compared with torchvision's and the sizes of the released models."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.transforms.functional import normalize

from fcnlab.models import VGG16
from fcnlab.models.backbone import imagenet_convention, initialize
from fcnlab.models.vgg import from_torchvision

URL = "https://download.pytorch.org/models/vgg16-397923af.pth"


@pytest.fixture
def torchvision_state():
    """torchvision's tensors without values: names and shapes are what a loader can get wrong."""
    with torch.device("meta"):
        return torchvision.models.vgg16().state_dict()


# shelhamer/fcn.berkeleyvision.org's pad of 100 and pools that round up, by hand
@pytest.mark.parametrize(
    ("size", "pool3", "pool4", "fc7"),
    [(1, 25, 13, 1), (224, 53, 27, 8), (375, 72, 36, 12), (500, 88, 44, 16), (512, 89, 45, 17)],
)
@torch.no_grad()
def test_feature_map_sizes_with_the_papers_padding(size, pool3, pool4, fc7):
    with torch.device("meta"):
        features = VGG16(padding="paper").eval()(torch.empty(1, 3, size, 500))
    shapes = {level: tuple(x.data.shape) for level, x in features.items()}
    assert shapes == {8: (1, 256, pool3, 88), 16: (1, 512, pool4, 44), 32: (1, 4096, fc7, 16)}


def test_all_torchvision_tensors_are_used(torchvision_state):
    with torch.device("meta"):
        own = VGG16().state_dict()
    converted = from_torchvision(torchvision_state)
    assert len(torchvision_state) == 32 and len(converted) == 30  # the classifier's last two are left out
    assert {key: value.shape for key, value in converted.items()} == {key: value.shape for key, value in own.items()}


@pytest.mark.parametrize(("batch_norm", "ends"), [(False, (17, 24)), (True, (24, 34))])
@torch.no_grad()
def test_features_equal_torchvision(batch_norm, ends, as_if_trained):
    reference = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm)
    initialize(as_if_trained(reference))
    with torch.device("meta"):
        net = VGG16(batch_norm=batch_norm).eval()
    net.fc6 = net.fc7 = nn.Identity()  # without their half gigabyte, level 32 is pool5
    net.features.load_state_dict(reference.state_dict(), assign=True)
    net.normalize = imagenet_convention()
    image = torch.rand(1, 3, 64, 96)  # torchvision's pools round down, so of even sizes only
    scaled = normalize(image, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    expected = {8: reference[: ends[0]](scaled), 16: reference[: ends[1]](scaled), 32: reference(scaled)}
    assert expected[32].std() > 0.1  # far above the tolerance
    torch.testing.assert_close({level: x.data for level, x in net(image).items()}, expected)


@pytest.mark.parametrize("padding", ["same", "paper"])
def test_imagenet_weights_are_loaded_from_torchvision(download, torchvision_state, padding):
    urls = []
    download(lambda url: urls.append(url) or torchvision_state)
    with torch.device("meta"):
        net = VGG16(padding=padding, weights="imagenet")
    assert net.pretrained and urls == [URL]
