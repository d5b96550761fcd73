"""The fusion of levels, compared with reference decoders, the released models' numbers and every image size."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fcnlab.models import FCN, VGG16, AlexNet, CaffeNet, FeatureMap, GoogLeNet, GoogLeNetBN, ResNet, Tiny
from fcnlab.models.backbone import Level
from fcnlab.models.weights import WeightsError

# By name: constructor and smallest image. ResNet-101 and VGG16 with batch normalisation have the kernels, strides and
# padding of backbones in this list.
BACKBONES = {
    "vgg16-same": (functools.partial(VGG16, padding="same"), 1),
    "vgg16-paper": (functools.partial(VGG16, padding="paper"), 1),
    "googlenet-same": (functools.partial(GoogLeNet, padding="same"), 31),
    "googlenet-paper": (functools.partial(GoogLeNet, padding="paper"), 1),
    "googlenet_bn": (GoogLeNetBN, 15),
    "caffenet-same": (functools.partial(CaffeNet, padding="same"), 29),
    "caffenet-paper": (functools.partial(CaffeNet, padding="paper"), 1),
    "alexnet-same": (functools.partial(AlexNet, padding="same"), 29),
    "alexnet-paper": (functools.partial(AlexNet, padding="paper"), 1),
    "resnet50": (ResNet, 1),
    "resnet50-stride16": (functools.partial(ResNet, output_stride=16), 1),
    "resnet50-stride8": (functools.partial(ResNet, output_stride=8), 1),
    "tiny-same": (functools.partial(Tiny, padding="same"), 1),
    "tiny-paper": (functools.partial(Tiny, padding="paper"), 1),
}
STAGED = [(32,), (32, 16), (32, 16, 8)]


def tiny_fcn(levels=(32, 16, 8), classes=3, **settings) -> FCN:
    return FCN(Tiny(width=2), classes, levels, **settings).eval()


def randomize(net: FCN) -> FCN:
    """Make scores differ from zero, so that a comparison is meaningful."""
    for parameter in net.heads.parameters():
        nn.init.normal_(parameter)
    return net


def saved(net: FCN, path) -> str:
    save_file(net.state_dict(), path)
    return str(path)


# --- Output sizes


def without_norms(net: nn.Module) -> nn.Module:
    """Skip normalisations, which change no shape and take most of the time on the device "meta"."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.forward = lambda x: x
    return net


class CachedBackbone(nn.Module):
    """A backbone that processes an image once, although several models share it."""

    def __init__(self, backbone):
        super().__init__()
        self.levels, self.min_size, self.pretrained = backbone.levels, backbone.min_size, backbone.pretrained
        self.channels_last_on_cpu = backbone.channels_last_on_cpu
        self.forward = functools.lru_cache(maxsize=1)(backbone)


# Sizes repeat with a period of 32 pixels.
@pytest.mark.parametrize("more", [63, pytest.param(599, marks=[pytest.mark.slow, pytest.mark.campaign])])
@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_scores_have_the_image_size_for_every_size(backbone, more):
    build, smallest = BACKBONES[backbone]
    with torch.device("meta"):  # shapes only
        shared = CachedBackbone(without_norms(build().eval()))
        nets = [FCN(shared, 2, levels) for levels in STAGED]
        for rows in range(smallest, smallest + more // 2 + 17):  # rows grow and columns shrink, which covers every size
            cols = 2 * smallest + more - rows
            image = torch.empty(1, 3, rows, cols)
            assert {net(image).shape for net in nets} == {(1, 2, rows, cols)}


@pytest.mark.parametrize("levels", [(16,), (8,), (32, 8), (16, 8)])
@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_scores_cover_the_image_for_any_choice_of_levels(backbone, levels):
    with torch.device("meta"):
        net = FCN(BACKBONES[backbone][0](), 5, levels).eval()
        assert net(torch.empty(2, 3, 93, 200)).shape == (2, 5, 93, 200)


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        (GoogLeNet, (30, 500)),
        (GoogLeNet, (500, 30)),
        (GoogLeNetBN, (14, 50)),
        (CaffeNet, (28, 50)),
        (AlexNet, (50, 28)),
    ],
)
def test_a_too_small_image_is_an_error(backbone, size):
    with torch.device("meta"):
        net, image = FCN(backbone(), 21).eval(), torch.empty(1, 3, *size)
    output = f"{size[0]}x{size[1]} pixels is too small for {backbone.__name__}: it needs {min(size) + 1}"
    with pytest.raises(ValueError, match=output):
        net(image)
    with pytest.raises(RuntimeError):  # PyTorch itself fails, too
        net.backbone(image)


# --- Values


class FixedMaps(nn.Module):
    """A backbone that returns fixed feature maps."""

    min_size, pretrained, channels_last_on_cpu = 1, False, False

    def __init__(self, maps: dict[int, FeatureMap]):
        super().__init__()
        self.maps = maps
        self.levels = {level: Level(features.data.shape[1], features.grid) for level, features in maps.items()}

    def forward(self, image):
        return self.maps


# Origin and size of the maps of an image of 500 pixels, and the pixel on which cell 8 is centred, by hand.
VGG_PAPER = {32: (12.5, 16), 16: (-91.5, 44), 8: (-95.5, 88)}
GOOGLENET_SAME = {32: (30.0, 15), 16: (14.0, 31), 8: (6.0, 62)}


@pytest.mark.parametrize("levels", STAGED)
@pytest.mark.parametrize(("maps", "centre"), [(VGG_PAPER, 268.5), (GOOGLENET_SAME, 286)], ids=["vgg", "googlenet"])
@torch.no_grad()
def test_an_impulse_is_upsampled_around_the_centre_of_its_cell(maps, centre, levels):
    features = {level: FeatureMap(torch.zeros(1, 2, n, n), level, origin) for level, (origin, n) in maps.items()}
    features[32].data[:, 0, 8, 8] = 1
    net = FCN(FixedMaps(features), 2, levels)
    net.heads["32"].weight.copy_(torch.eye(2)[:, :, None, None])
    scores = net(torch.zeros(1, 3, 500, 500))[0]
    assert scores[0].sum() == 32**2 and not scores[1].any()
    for axis in (0, 1):
        profile = scores[0].sum(axis) / scores[0].sum()
        assert (profile * torch.arange(500)).sum().item() == pytest.approx(centre, abs=1e-3)


@torch.no_grad()
def test_levels_of_equal_stride_are_summed_and_upsampled_once():
    features = {level: FeatureMap(torch.randn(1, 4, 7, 9), 8, 0.0) for level in (32, 16, 8)}
    net = randomize(FCN(FixedMaps(features), 3))
    scores = [head(features[int(level)].data) for level, head in net.heads.items()]
    expected = F.interpolate(sum(scores), size=(49, 65), mode="bilinear", align_corners=True)  # cell i on pixel 8 i
    torch.testing.assert_close(net(torch.zeros(1, 3, 49, 65)), expected)


def test_scores_start_at_zero():
    assert not tiny_fcn()(torch.rand(2, 3, 40, 50)).any()


def bilinear(x: torch.Tensor, factor: int, crop: int, rows: int, cols: int) -> torch.Tensor:
    """Upsample x2, x8, x16 or x32 as in the released models, and crop."""
    line = 1 - (torch.arange(2 * factor) - factor + 0.5).abs() / factor
    kernel = torch.outer(line, line).expand(x.shape[1], 1, -1, -1)
    x = F.conv_transpose2d(x, kernel, stride=factor, groups=x.shape[1])
    return x[:, :, crop : crop + rows, crop : crop + cols]


@pytest.mark.parametrize(
    ("levels", "steps"),
    [
        # (factor, crop, rows, cols) of each step for an image of 90 x 123 pixels: ceil(n / 16), ceil(n / 8), n
        ((32,), [(32, 16, 90, 123)]),
        ((32, 16), [(2, 1, 6, 8), (16, 8, 90, 123)]),
        ((32, 16, 8), [(2, 1, 6, 8), (2, 1, 12, 16), (8, 4, 90, 123)]),
    ],
)
@torch.no_grad()
def test_with_zero_skips_scores_are_upsampled_scores_of_level_32(levels, steps):
    net = tiny_fcn(levels)
    nn.init.normal_(net.heads["32"].weight)
    image = torch.rand(2, 3, 90, 123)
    expected = net.heads["32"](net.backbone(image)[32].data)
    assert expected.shape[2:] == (3, 4)
    for step in steps:
        expected = bilinear(expected, *step)
    torch.testing.assert_close(net(image), expected)


@torch.no_grad()
def test_skips_are_added_to_the_upsampled_scores():
    net, image = randomize(tiny_fcn()), torch.rand(2, 3, 90, 123)
    scores = {level: net.heads[str(level)](x.data) for level, x in net.backbone(image).items()}
    expected = bilinear(bilinear(scores[32], 2, 1, 6, 8) + scores[16], 2, 1, 12, 16) + scores[8]
    torch.testing.assert_close(net(image), bilinear(expected, 8, 4, 90, 123))


@torch.no_grad()
def test_skip_scales_equal_scaled_weights():
    # scaled features and scaled weights give the same scores; biases are not scaled
    scales = {16: 0.01, 8: 0.0001}
    scaled, folded, image = tiny_fcn(skip_scales=scales), randomize(tiny_fcn()), torch.rand(1, 3, 64, 64)
    scaled.load_state_dict(folded.state_dict())
    assert not torch.allclose(scaled(image), folded(image))
    for level, scale in scales.items():
        folded.heads[str(level)].weight.mul_(scale)
    torch.testing.assert_close(scaled(image), folded(image))


@torch.no_grad()
def test_learned_upsampling_keeps_the_last_step_fixed():
    fixed, learned = randomize(tiny_fcn()), tiny_fcn(upsampling="learned")
    assert [name for name, _ in fixed.named_parameters() if "upsample" in name] == []
    kernels = {name: tuple(p.shape) for name, p in learned.named_parameters() if "upsample" in name}
    assert kernels == {"upsample.0.kernel": (3, 3, 4, 4), "upsample.1.kernel": (3, 3, 4, 4)}
    learned.load_state_dict(fixed.state_dict(), strict=False)
    image = torch.rand(1, 3, 70, 60)
    torch.testing.assert_close(learned(image), fixed(image))


# --- Settings


@pytest.mark.parametrize("levels", [(), (16, 32), (32, 32), (64,), (32, 16, 4)])
def test_unavailable_levels_are_an_error(levels):
    with pytest.raises(ValueError, match=r"choose some of \[32, 16, 8\], which Tiny offers, from coarse to fine"):
        tiny_fcn(levels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 1}, "num_classes=1: at least 2"),
        pytest.param(
            {"upsampling": "nearest"}, "choose 'fixed', 'learned' or 'learned_all'", marks=pytest.mark.unchecked
        ),
    ],
)
def test_settings_out_of_range_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_fcn(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": (32,), "upsampling": "learned"}, "learned has no effect with a single level"),
        ({"reset_heads": True}, "reset_heads=true has no effect without model.weights"),
    ],
)
def test_settings_without_effect_warn(settings, message):
    with pytest.warns(UserWarning, match=message):
        tiny_fcn(**settings)


def test_learned_upsampling_between_levels_of_equal_stride_warns():
    features = {level: FeatureMap(torch.zeros(1, 2, 4, 4), 8, 0.0) for level in (32, 16)}
    with pytest.warns(UserWarning, match="learned has no effect with levels of one stride"):
        net = FCN(FixedMaps(features), 2, (32, 16), upsampling="learned")
    assert {name for name, _ in net.named_parameters() if "upsample" in name} == set()


@pytest.mark.unchecked
@pytest.mark.parametrize("backbone", [VGG16, GoogLeNet, CaffeNet, AlexNet, Tiny])
def test_unknown_padding_is_an_error(backbone):
    with torch.device("meta"), pytest.raises(ValueError, match="padding='valid': choose 'same' or 'paper'"):
        backbone(padding="valid")


# --- Starting from a checkpoint


@pytest.mark.parametrize("upsampling", ["fixed", "learned"])
def test_fcn16s_starts_from_fcn32s(tmp_path, upsampling):
    coarse = randomize(tiny_fcn((32,)))
    fine = tiny_fcn((32, 16), upsampling=upsampling, weights=saved(coarse, tmp_path / "32s.safetensors"))
    assert fine.pretrained and not coarse.pretrained
    state = fine.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in coarse.state_dict().items())
    assert not state["heads.16.weight"].any() and not state["heads.16.bias"].any()
    steps = [(2, 1, 6, 8), (16, 8, 90, 123)]
    with torch.no_grad():
        image = torch.rand(1, 3, 90, 123)
        scores = coarse.heads["32"](coarse.backbone(image)[32].data)
        torch.testing.assert_close(fine(image), bilinear(bilinear(scores, *steps[0]), *steps[1]))


def test_learned_kernels_are_loaded(tmp_path):
    coarse = tiny_fcn((32, 16), upsampling="learned")
    nn.init.normal_(coarse.upsample[0].kernel)
    fine = tiny_fcn(upsampling="learned", weights=saved(coarse, tmp_path / "16s.safetensors"))
    assert torch.equal(fine.upsample[0].kernel, coarse.upsample[0].kernel)
    diagonal = torch.outer(*2 * [torch.tensor([0.25, 0.75, 0.75, 0.25])])
    assert torch.equal(fine.upsample[1].kernel, torch.eye(3)[:, :, None, None] * diagonal)


def test_a_training_checkpoint_is_loaded(tmp_path):
    net = randomize(tiny_fcn())
    torch.save({"epoch": 3, "state_dict": {f"net.{key}": value for key, value in net.state_dict().items()}},
               tmp_path / "last.ckpt")  # fmt: skip
    loaded = tiny_fcn(weights=str(tmp_path / "last.ckpt")).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in net.state_dict().items())


def test_another_number_of_classes_requires_reset_heads(tmp_path):
    old = randomize(tiny_fcn(classes=3))
    path = saved(old, tmp_path / "old.safetensors")
    with pytest.raises(WeightsError, match=r"scores 3 classes, the data has 5: set model\.reset_heads=true"):
        tiny_fcn(classes=5, weights=path)
    new = tiny_fcn(classes=5, weights=path, reset_heads=True)
    kept = old.backbone.state_dict()
    assert new.pretrained and all(torch.equal(value, kept[key]) for key, value in new.backbone.state_dict().items())
    assert not new(torch.rand(1, 3, 32, 32)).any()


@pytest.mark.parametrize(
    ("old", "message"),
    [
        (lambda: tiny_fcn(), r"not in the model: heads\.16"),
        (lambda: FCN(Tiny(width=3), 3, (32,)), r"of another shape: backbone\.to8\.0\.weight"),
    ],
    ids=["more levels", "another width"],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, old, message):
    with pytest.raises(WeightsError, match=message):
        tiny_fcn((32,), weights=saved(old(), tmp_path / "old.safetensors"))


def test_a_head_that_is_a_scalar_is_refused(tmp_path):
    torch.save({"heads.32.weight": torch.tensor(1.0)}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"of another shape: heads\.32\.weight \(\)"):
        tiny_fcn(weights=str(tmp_path / "net.pth"))


# --- The released models' numbers


@pytest.mark.parametrize(
    ("backbone", "levels", "count"),
    [
        (VGG16, (32,), 134_346_581),
        (VGG16, (32, 16), 134_357_354),
        (VGG16, (32, 16, 8), 134_362_751),
        (GoogLeNet, (32,), 5_995_077),
        (CaffeNet, (32,), 56_954_261),
    ],
)
def test_parameter_counts_equal_the_published_numbers(backbone, levels, count):
    with torch.device("meta"):
        net = FCN(backbone(), 21, levels)
    assert sum(p.numel() for p in net.parameters()) == count == sum(v.numel() for v in net.state_dict().values())
    papers = {VGG16: 134, GoogLeNet: 6, CaffeNet: 57}  # CVPR 2015, table 1, in millions
    assert round(count / 1e6) == papers[backbone]


@pytest.mark.parametrize(
    ("backbone", "padding", "levels", "size", "giga"),
    [
        (VGG16, "same", (32, 16, 8), (375, 500), 81.2),
        (VGG16, "paper", (32, 16, 8), (375, 500), 146.8),
        # 21.4 in the released model; fcnlab's x32 works per class, which saves about 63 * 63 * 21 * 21 * 16 * 16
        (CaffeNet, "paper", (32,), (500, 500), 21.4 - 0.45),
    ],
)
@torch.no_grad()
def test_multiply_adds_equal_the_published_numbers(backbone, padding, levels, size, giga):
    with torch.device("meta"):
        net, image = FCN(backbone(padding=padding), 21, levels).eval(), torch.empty(1, 3, *size)
    with FlopCounterMode(display=False) as counter:
        net(image)
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga, rel=0.01)


@torch.no_grad()
@pytest.mark.unchecked
@pytest.mark.slow  # torch.export
def test_export_for_any_size():
    net, side = randomize(tiny_fcn()), torch.export.Dim.DYNAMIC
    program = torch.export.export(net, (torch.rand(2, 3, 64, 96),), dynamic_shapes=({0: side, 2: side, 3: side},))
    for shape in [(1, 3, 64, 64), (3, 3, 75, 131)]:
        image = torch.rand(shape)
        torch.testing.assert_close(program.module()(image), net(image))


# --- Whole images and patches


def test_an_image_is_equivalent_to_a_batch_of_all_its_patches():
    """CVPR 2015, section 3.4: the gradient of a loss summed over the coarse cells of an image is the sum of the
    gradients of a patch classifier over those cells' receptive fields.

    The patches contain the cell's receptive field and the margin that padding affects, and lie on the model's grid.
    """
    torch.manual_seed(0)
    net = randomize(FCN(Tiny(width=2), 3, levels=(32,)).eval()).double()
    image = torch.rand(1, 3, 320, 352, dtype=torch.float64)
    cells = [(row, col) for row in (4, 5) for col in (4, 5, 6)]
    target = {cell: torch.tensor([sum(cell) % 3]) for cell in cells}

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(net.parameters())))

    scores = net.fused(image).data
    whole = gradients(torch.stack([F.cross_entropy(scores[:, :, r, c], target[r, c]) for r, c in cells]).sum())
    patchwise = [torch.zeros_like(value) for value in whole]
    reach = 3  # cells to each side: 32 * 3 + 16 pixels exceed the field's 79 and its offset of 16
    for row, col in cells:
        patch = image[..., 32 * (row - reach) : 32 * (row + reach + 1), 32 * (col - reach) : 32 * (col + reach + 1)]
        loss = F.cross_entropy(net.fused(patch).data[:, :, reach, reach], target[row, col])
        patchwise = [total + part for total, part in zip(patchwise, gradients(loss), strict=True)]
    assert max(value.abs().max() for value in whole) > 1e-3
    for expected, actual in zip(patchwise, whole, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [functools.partial(Tiny, width=2), GoogLeNetBN, ResNet])
def test_frozen_norm_trains_with_the_statistics_of_the_weights(make):
    torch.manual_seed(0)
    backbone = make()
    for name, value in backbone.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.9, 1.1)
    plain = FCN(backbone, 3).eval()
    nn.init.normal_(plain.heads["8"].weight)
    frozen = FCN(copy.deepcopy(backbone), 3, frozen_norm=True)
    frozen.load_state_dict(plain.state_dict())
    image = torch.rand(2, 3, 65, 72)
    for module in frozen.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0
    torch.testing.assert_close(frozen.train()(image), plain(image), rtol=1e-3, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())


def test_frozen_until_freezes_all_layers_that_lead_to_a_level_and_no_other():
    net = tiny_fcn(frozen_norm=True, frozen_until=16)
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in net.named_parameters() if name.startswith(("backbone.to8", "backbone.to16"))}
    net(torch.rand(1, 3, 40, 40)).sum().backward()
    assert all(parameter.grad is None for name, parameter in net.named_parameters() if name in frozen)


def test_frozen_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"frozen_until=4: choose one of \[8, 16, 32\] or null"):
        tiny_fcn(frozen_until=4)
    with pytest.raises(ValueError, match=r"frozen_until=8 needs frozen_norm=true"):
        tiny_fcn(frozen_until=8)
    backbone = GoogLeNet()
    backbone.tokens = nn.BatchNorm1d(4)
    with pytest.raises(ValueError, match=r"frozen_until=8 needs frozen_norm=true"):
        FCN(backbone, 3, frozen_until=8)
    with pytest.warns(UserWarning, match=r"frozen_norm=true has no effect: GoogLeNet has no batch normalisation"):
        FCN(GoogLeNet(), 3, frozen_norm=True)
