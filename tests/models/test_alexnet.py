"""Both AlexNets: CaffeNet against a reference from its prototxt, AlexNet against torchvision's."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.functional import normalize

from fcnlab.models import AlexNet, CaffeNet
from fcnlab.models.alexnet import from_caffe, from_torchvision
from fcnlab.models.weights import WeightsError

# bvlc_reference_caffenet/deploy.prototxt; with two groups a kernel sees half of the channels
CAFFE_SHAPES = {
    "conv1": (96, 3, 11, 11), "conv2": (256, 48, 5, 5), "conv3": (384, 256, 3, 3), "conv4": (384, 192, 3, 3),
    "conv5": (256, 192, 3, 3), "fc6": (4096, 9216), "fc7": (4096, 4096), "fc8": (1000, 4096),
}  # fmt: skip


def caffe_features(state: dict[str, Tensor], image: Tensor, conv1_padding: int, fc6_padding: int) -> dict[int, Tensor]:
    """Compute voc-fcn-alexnet's prototxt line by line, for RGB in 0..1; fc6 and fc7 are linear layers per window."""

    def conv(x, layer, stride=1, padding=0):
        return F.relu(F.conv2d(x, state[f"{layer}.weight"], state[f"{layer}.bias"], stride, padding))

    def conv_in_two_groups(x, layer, padding):
        halves = zip(x.chunk(2, 1), state[f"{layer}.weight"].chunk(2), state[f"{layer}.bias"].chunk(2), strict=True)
        return torch.cat([F.relu(F.conv2d(half, weight, bias, 1, padding)) for half, weight, bias in halves], dim=1)

    def pool(x):
        return F.max_pool2d(x, 3, stride=2, ceil_mode=True)

    def norm(x):  # x / (1 + 1e-4 / 5 * sum of the squares of 5 neighbouring channels) ** 0.75
        squares = F.pad(x.square(), (0, 0, 0, 0, 2, 2)).unfold(1, 5, 1).sum(-1)
        return x / (1 + 1e-4 / 5 * squares) ** 0.75

    red, green, blue = image.mul(255).unbind(1)
    x = torch.stack([blue - 104.00699, green - 116.66877, red - 122.67892], dim=1)
    norm1 = norm(pool(conv(x, "conv1", stride=4, padding=conv1_padding)))
    norm2 = norm(pool(conv_in_two_groups(norm1, "conv2", padding=2)))
    conv4 = conv_in_two_groups(conv(norm2, "conv3", padding=1), "conv4", padding=1)
    pool5 = F.pad(pool(conv_in_two_groups(conv4, "conv5", padding=1)), 4 * [fc6_padding])
    windows = pool5.unfold(2, 6, 1).unfold(3, 6, 1).permute(0, 2, 3, 1, 4, 5).flatten(3)
    fc6 = F.relu(F.linear(windows, state["fc6.weight"], state["fc6.bias"]))
    fc7 = F.relu(F.linear(fc6, state["fc7.weight"], state["fc7.bias"]))
    return {8: norm1, 16: norm2, 32: fc7.permute(0, 3, 1, 2)}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"{layer}.weight": torch.randn(shape, generator=generator) * (2 / torch.Size(shape[1:]).numel()) ** 0.5
        for layer, shape in CAFFE_SHAPES.items()
    }
    biases = {f"{layer}.bias": torch.randn(shape[0], generator=generator) for layer, shape in CAFFE_SHAPES.items()}
    return weights | biases


@pytest.fixture
def parts():
    """Return the shapes of a backbone's tensors by name."""

    def shapes(net: torch.nn.Module | dict[str, Tensor]) -> dict[str, torch.Size]:
        tensors = net if isinstance(net, dict) else net.state_dict()
        return {key: value.shape for key, value in tensors.items()}

    return shapes


# 57 M with score layer: 56,954,261 in the released model; torchvision's 61,100,840 without its classifier of 4,097,000
@pytest.mark.parametrize(("net", "count"), [(CaffeNet, 56_954_261 - 21 * 4097), (AlexNet, 61_100_840 - 4_097_000)])
def test_parameter_counts(net, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in net().parameters()) == count


# --- CaffeNet


def test_all_caffe_tensors_are_used(state, parts):
    with torch.device("meta"):
        net = CaffeNet()
    assert parts(net.placed(from_caffe(state))) == parts(net)
    assert len(state) == 16 and len(net.state_dict()) == 14  # the classifier's two are left out


def test_layers_that_are_convolutions_already_are_kept(state):
    once = from_caffe(state)
    assert once["fc6.weight"].shape == (4096, 256, 6, 6) and once["fc7.weight"].shape == (4096, 4096, 1, 1)
    assert all(torch.equal(value, once[key]) for key, value in from_caffe(once).items())


@pytest.mark.parametrize(("padding", "conv1_padding", "fc6_padding"), [("same", 5, 3), ("paper", 100, 0)])
@torch.no_grad()
def test_features_equal_the_prototxt(state, tmp_path, padding, conv1_padding, fc6_padding):
    save_file(state, tmp_path / "caffenet.safetensors")
    net = CaffeNet(padding=padding, weights=str(tmp_path / "caffenet.safetensors")).eval()
    image = torch.rand(1, 3, 47, 82)
    features = {level: x.data for level, x in net(image).items()}
    assert net.pretrained and features[32].std() > 0.1
    expected = caffe_features(state, image, conv1_padding, fc6_padding)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-3)  # sums of 9216 values of some tens


# n = 500: 173, 86, 43, 21, 16 (conv1, pool1, pool2, pool5, fc6), by hand
@pytest.mark.parametrize(("size", "expected"), [(500, (86, 43, 16)), (1, (24, 12, 1))])
@pytest.mark.parametrize("net", [CaffeNet, AlexNet])
@torch.no_grad()
def test_feature_map_sizes_with_the_papers_padding(net, size, expected):
    with torch.device("meta"):
        features = net(padding="paper").eval()(torch.empty(1, 3, size, size))
    assert tuple(features[level].data.shape[2] for level in (8, 16, 32)) == expected


def test_weights_of_another_model_are_refused(tmp_path):
    save_file({"conv1.weight": torch.zeros(64, 3, 11, 11)}, tmp_path / "other.safetensors")
    with (
        torch.device("meta"),
        pytest.raises(WeightsError, match=r"of another shape: to8\.conv1\.weight \(64, 3, 11, 11\)"),
    ):
        CaffeNet(weights=str(tmp_path / "other.safetensors"))


# --- AlexNet


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    torch.manual_seed(0)
    return torchvision.models.alexnet().eval()


@pytest.fixture
def net(reference, tmp_path):
    def build(padding) -> AlexNet:
        torch.save(reference.state_dict(), tmp_path / "alexnet.pth")
        return AlexNet(padding=padding, weights=str(tmp_path / "alexnet.pth")).eval()

    return build


def test_all_torchvision_tensors_are_used(reference, parts):
    with torch.device("meta"):
        own = AlexNet()
    assert parts(own.placed(from_torchvision(reference.state_dict()))) == parts(own)


# torchvision pads by 2, fcnlab by 5 or 100; at these sizes its pools, which round down, use all pixels
@pytest.mark.parametrize(("padding", "size", "more", "cell"), [("same", 217, 3, 3), ("paper", 27, 98, 0)])
@torch.no_grad()
def test_features_equal_torchvision(reference, net, padding, size, more, cell):
    image = torch.rand(1, 3, size, size)
    scaled = F.pad(normalize(image, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]), 4 * [more])
    pool5 = reference.features(scaled)
    assert pool5.shape == (1, 256, 6, 6)  # the input of its classifier, and of one cell of fc6
    features = net(padding)(image)
    expected = {8: reference.features[:3](scaled), 16: reference.features[:6](scaled)}
    expected[32] = reference.classifier[:6](pool5.flatten(1))[..., None, None]
    assert expected[32].std() > 1e-3
    actual = {level: x.data for level, x in features.items()}
    actual[32] = actual[32][..., cell : cell + 1, cell : cell + 1]
    torch.testing.assert_close(actual, expected)
