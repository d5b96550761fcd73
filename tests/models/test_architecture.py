"""Networks of other libraries give the scores that they give by themselves, or are refused with a reason."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.segmentation import FCN_ResNet50_Weights, FCN_ResNet101_Weights, fcn_resnet50, fcn_resnet101
from torchvision.transforms.functional import normalize
from torchvision.transforms.functional import resize as torchvision_resize

from fcnlab.data.formats.voc import CLASSES
from fcnlab.errors import UserError
from fcnlab.inference import Resized
from fcnlab.models import Architecture, CoarseScores, Network
from fcnlab.training.optimizers import freeze, parameter_groups

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Toy(nn.Module):
    """An encoder and a head, of images whose sides a stride divides."""

    def __init__(self, classes: int = 3, stride: int = 4, up: int = 4, fetched: str | None = None):
        super().__init__()
        if fetched == "offline":
            raise OSError("no route to the host of the weights")
        first = nn.Conv2d(3, 4, 3, padding=1)
        self.encoder = nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Conv2d(4, classes, 1)
        self.stride, self.up = stride, up
        if fetched is not None:
            assert first.bias is not None
            nn.init.constant_(first.bias, float(fetched))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % self.stride or x.shape[3] % self.stride:
            raise RuntimeError(f"sides must be multiples of {self.stride}")
        coarse = F.avg_pool2d(self.encoder(x), self.stride)
        return F.interpolate(self.head(coarse), scale_factor=self.up)


class InDict(Toy):
    """Scores as torchvision's networks return them, with an auxiliary classifier."""

    def __init__(self, classes: int = 3):
        super().__init__(classes, stride=1, up=1)
        self.aux = nn.Conv2d(3, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": super().forward(x), "aux": self.aux(x)}


class Reading(Toy):
    """A network that reads numbers, which the device meta does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean().item()


class Pair(Toy):
    """A network with two results."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x


def wrapped(network: Callable[..., nn.Module] = Toy, **settings) -> Architecture:
    return Architecture(network, **{"num_classes": 3, "size_multiple": 4, **settings}).eval()


def images(rows: int, cols: int) -> Tensor:
    return torch.rand(2, 3, rows, cols, generator=torch.Generator().manual_seed(rows))


def test_scores_are_those_of_the_network_on_a_padded_image():
    net, image = wrapped(), images(18, 27)
    padded = torch.zeros(2, 3, 20, 28)
    padded[:, :, :18, :27] = normalize(image, MEAN, STD)
    assert torch.equal(net(image), net.network(padded)[:, :, :18, :27])
    assert torch.equal(net.coarse(image).full(), net(image)) and isinstance(net.coarse(image), CoarseScores)


def test_mean_and_std_are_settings():
    net, image = wrapped(mean=[0.5, 0.5, 0.5], std=[0.5, 0.25, 1.0]), images(8, 8)
    assert torch.equal(net(image), net.network((image - 0.5) / torch.tensor([0.5, 0.25, 1.0]).view(3, 1, 1)))


def test_scores_in_a_dict_and_an_auxiliary_classifier_that_is_not_trained():
    net, image = wrapped(InDict, size_multiple=1), images(9, 10)
    assert torch.equal(net(image), net.network(normalize(image, MEAN, STD))["out"])
    freeze(net, 1.0)
    frozen = {name for name, value in net.named_parameters() if not value.requires_grad}
    assert frozen == {"network.aux.weight", "network.aux.bias"}


def test_a_network_that_cannot_run_on_the_meta_device():
    net = wrapped(Reading)
    freeze(net, 1.0)
    assert all(value.requires_grad for value in net.parameters())


@pytest.mark.parametrize(("weights", "pretrained"), [("none", False), ("imagenet", True)])
def test_the_learning_rate_of_a_backbone_with_named_weights(weights: str, pretrained: bool):
    net = wrapped(backbone="encoder", named_weights={"imagenet": {"fetched": "0.25"}}, weights=weights)
    assert net.pretrained is pretrained
    bias = net.network.get_parameter("encoder.0.bias")
    assert torch.equal(bias, torch.full_like(bias, 0.25)) is pretrained
    groups = parameter_groups(net, 0.1, 5e-4, bias_lr_scale=2.0, pretrained_lr_scale=0.1)
    rates = {group["name"]: pytest.approx(group["lr"]) for group in groups}
    scale = 0.1 if pretrained else 1.0
    assert rates == {
        "backbone/weight": 0.1 * scale,
        "backbone/bias": 0.2 * scale,
        "backbone/norm": 0.1 * scale,
        "heads/weight": 0.1,
        "heads/bias": 0.2,
    }
    freeze(net, 0.0)
    assert {value.requires_grad for value in net.network.get_submodule("encoder").parameters()} == {not pretrained}


def test_weights_from_a_file_of_the_network_and_from_a_checkpoint(tmp_path):
    trained = wrapped()
    torch.save(trained.network.state_dict(), tmp_path / "library.pth")
    checkpoint = {f"net.{key}": value for key, value in trained.state_dict().items()}
    torch.save({"state_dict": checkpoint}, tmp_path / "run.ckpt")
    save_file(trained.state_dict(), tmp_path / "model.safetensors")  # as fcnlab export names them
    image = images(8, 8)
    for name in ("library.pth", "run.ckpt", "model.safetensors"):
        net = wrapped(weights=str(tmp_path / name), backbone="encoder")
        assert torch.equal(net(image), trained(image)) and net.pretrained
    other = wrapped(partial(Toy, classes=5), num_classes=5, weights=str(tmp_path / "run.ckpt"), reset_heads=True,
                    backbone="encoder")  # fmt: skip
    encoder = trained.network.get_submodule("encoder")
    assert torch.equal(encoder(image), other.network.get_submodule("encoder")(image))


def test_weights_of_a_network_with_a_part_called_network(tmp_path):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = Toy()

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x)

    trained, image = wrapped(Outer), images(8, 8)
    save_file(trained.network.state_dict(), tmp_path / "library.safetensors")
    save_file(trained.state_dict(), tmp_path / "export.safetensors")
    for name in ("library.safetensors", "export.safetensors"):
        assert torch.equal(wrapped(Outer, weights=str(tmp_path / name))(image), trained(image))


@pytest.mark.parametrize(
    ("network", "settings", "reason"),
    [
        (partial(Toy, classes=4), {}, "Toy returns scores of 4 classes, but the data have 3: set its own argument"),
        (partial(Toy, up=2), {}, "Toy returns scores of 34x50 for images of 68x100 pixels. Scores must have the size"),
        (Pair, {}, "Pair returns a tuple. It must return scores"),
        (Toy, {"size_multiple": 1}, r"Toy cannot process an image of 65x97 pixels \(RuntimeError: sides must be mul"),
        (partial(Toy, **{"levels": 3}), {}, r"Toy cannot be built with these arguments \(TypeError: .*'levels'"),
        (dict, {}, "dict returns a dict, not a torch.nn.Module"),
        (Toy(), {}, "is a Toy that is already built: add _partial_: true"),
        (Toy, {"backbone": "stem"}, "model.backbone=stem is no submodule of Toy: choose encoder, head or null"),
        (Toy, {"weights": "imagenet"}, "model.weights=imagenet is no file .* these are none$"),
        (Toy, {"reset_heads": True}, "model.weights=none names no file"),
        (Toy, {"reset_heads": True, "weights": "a file"}, "loads only the backbone, and the network names none"),
        (Toy, {"named_weights": {"none": {}}}, "must not name weights 'none'"),
        (
            Toy,
            {"weights": "theirs", "named_weights": {"theirs": {"fetched": "offline"}}},
            r"model.weights=theirs could not be fetched by Toy \(OSError: no route to the host of the weights\).\nOffl",
        ),
        (
            Toy,
            {"weights": "theirs", "named_weights": {"theirs": {"num_classes": 21}}},
            r"^model.weights=theirs is not for this Toy \(TypeError: .*num_classes'\)$",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(network, settings, reason: str):
    with pytest.raises(UserError, match=reason):
        wrapped(network, **settings)


def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save(wrapped(partial(Toy, classes=5), num_classes=5).network.state_dict(), tmp_path / "five.pth")
    with pytest.raises(UserError, match=r"five.pth do not fit: 2 of another shape: network.head.weight \(5, 4, 1, 1\)"):
        wrapped(weights=str(tmp_path / "five.pth"))


def published_by_torchvision(build, weights, path: Path) -> None:
    """Compare our model of a torchvision file, and our preprocessing, with torchvision's own."""
    module = build(weights=None, weights_backbone=None, num_classes=21, aux_loss=True).eval()
    for layer in module.modules():  # the statistics of a trained network
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.uniform_(-0.1, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    torch.save(module.state_dict(), path)
    assert sum(value.numel() for value in module.parameters()) == weights.meta["num_params"]
    settings = {"weights_backbone": None, "num_classes": 21, "aux_loss": True}
    net = Architecture(partial(build, **settings), 21, weights=str(path), backbone="backbone").eval()
    image = images(33, 49)[:1]
    with torch.inference_mode():
        assert torch.equal(net(image), module(normalize(image, MEAN, STD))["out"])
        preset = weights.transforms(resize_size=40)  # the published one has 520
        scores = F.interpolate(module(preset(image))["out"], (33, 49), mode="bilinear", align_corners=False)
        assert torch.equal(Resized(40)(net, image), scores)


@pytest.mark.slow
def test_torchvisions_fcn_resnet50_is_its_own(tmp_path):
    published_by_torchvision(fcn_resnet50, FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1, tmp_path / "fcn.pth")


@pytest.mark.slow
def test_torchvisions_fcn_resnet101_is_its_own(tmp_path):
    published_by_torchvision(fcn_resnet101, FCN_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1, tmp_path / "fcn.pth")


def test_torchvisions_classes_are_those_of_voc():
    """So that its labels are ours."""
    background, *theirs = FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]
    assert background == "__background__" and tuple(theirs) == tuple(CLASSES[1:])


@pytest.mark.parametrize("size", [(50, 70), (70, 50), (333, 500), (48, 48)])
def test_resized_images_have_torchvisions_size(size):
    sizes = []

    class Sized(Network):
        num_classes = 2

        def forward(self, image):
            sizes.append(tuple(image.shape[2:]))
            return image[:, :2]

    image = images(*size)
    assert Resized(48)(Sized(), image).shape == (2, 2, *size)
    assert sizes == [tuple(torchvision_resize(image, [48], antialias=True).shape[2:])]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Unet", "DeepLabV3Plus", "FPN"])
def test_a_network_of_smp_gives_its_own_scores(name: str):
    """The network by itself, on an image that is normalised and padded by hand."""
    smp = pytest.importorskip("segmentation_models_pytorch", reason="pip install 'fcnlab[baselines]'")
    build = partial(getattr(smp, name), encoder_name="resnet18", encoder_weights=None, classes=3)
    net, module = wrapped(build, size_multiple=32), build().eval()
    module.load_state_dict(net.network.state_dict())
    image = images(65, 77)
    padded = torch.zeros(2, 3, 96, 96)
    padded[:, :, :65, :77] = normalize(image, MEAN, STD)
    with torch.inference_mode():
        assert torch.equal(net(image), module(padded)[:, :, :65, :77])
