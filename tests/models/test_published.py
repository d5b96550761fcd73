"""pytorch-fcn's weights, without its files: random tensors with its names and shapes, scored like its code.

Names, shapes and counts come from its model definitions (wkentaro/pytorch-fcn at 4b98850, torchfcn/models/*.py).
"""

import json
import math
import pickle
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn

from fcnlab.files.reading import md5
from fcnlab.metrics.scores import Scores
from fcnlab.models import FCN, VGG16, Tiny, published, weights
from fcnlab.models.weights import WeightsError, read_labelled, read_tensors
from fcnlab.tasks.evaluate import compare_with_published

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
TRUNK = ("1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "4_1", "4_2", "4_3", "5_1", "5_2", "5_3")
SHAPES = {
    **{f"conv{name}": (o, i, 3, 3) for name, o, i in zip(TRUNK, WIDTHS, (3, *WIDTHS), strict=False)},
    "fc6": (4096, 512, 7, 7),
    "fc7": (4096, 4096, 1, 1),
    "score_fr": (21, 4096, 1, 1),
}
POOL4, POOL3 = {"score_pool4": (21, 512, 1, 1)}, {"score_pool3": (21, 256, 1, 1)}
DECONVOLUTIONS = {"upscore": 32, "upscore2": 2, "upscore16": 16, "upscore_pool4": 2, "upscore8": 8}
MODELS = {
    "FCN32s": (SHAPES, ("upscore",)),
    "FCN16s": (SHAPES | POOL4, ("upscore2", "upscore16")),
    "FCN8s": (SHAPES | POOL4 | POOL3, ("upscore2", "upscore_pool4", "upscore8")),
}
MODELS["FCN8sAtOnce"] = MODELS["FCN8s"]
SETTINGS = {
    "FCN32s": {"levels": (32,)},
    "FCN16s": {"levels": (32, 16)},
    "FCN8s": {"levels": (32, 16, 8)},
    "FCN8sAtOnce": {"levels": (32, 16, 8), "skip_scales": {16: 0.01, 8: 0.0001}},
}


def filler(factor: int, classes: int = 21) -> Tensor:
    """Return the kernel of pytorch-fcn's get_upsampling_weight, computed in numpy like there."""
    og = np.ogrid[: 2 * factor, : 2 * factor]
    centre = factor - 0.5
    line = (1 - abs(og[0] - centre) / factor) * (1 - abs(og[1] - centre) / factor)
    kernel = np.zeros((classes, classes, 2 * factor, 2 * factor))
    kernel[range(classes), range(classes)] = line
    return torch.from_numpy(kernel).float()


def state_of(kind: str, make=torch.empty) -> dict[str, Tensor]:
    """Return the state dict of a model, with deconvolutions as released."""
    shapes, steps = MODELS[kind]
    state = {}
    for layer, shape in shapes.items():
        state |= {f"{layer}.weight": make(shape), f"{layer}.bias": make(shape[:1])}
    return state | {f"{name}.weight": filler(DECONVOLUTIONS[name]) for name in steps}


def on_meta(shape) -> Tensor:
    return torch.empty(shape, device="meta")


def build_on_meta(kind: str, num_classes: int = 21, backbone=None, **settings) -> FCN:
    """Build a model without values, to compare with a state dict."""
    with torch.device("meta"):
        chosen = backbone or VGG16(padding="paper", convention="caffe")
        return FCN(chosen, num_classes, **(SETTINGS[kind] | settings))


@pytest.fixture
def load(monkeypatch):
    """Load a state dict into a model, as if it came from a file."""

    def start(net: FCN, state, md5: str = "", label: str | None = None, reset_heads: bool = False) -> FCN:
        monkeypatch.setattr("fcnlab.models.fcn.read_labelled", lambda path: (state, label))
        monkeypatch.setattr(published, "md5", lambda path: md5)
        net._start_from("net.pth", reset_heads)
        return net

    def assign(net, state, source):
        weights.check_fit(net, state, source)
        net.load_state_dict(dict(state), assign=True)

    monkeypatch.setattr("fcnlab.models.fcn.load_strictly", assign)
    return start


# --- pytorch-fcn's forward pass, in plain torch


@torch.no_grad()
def maps(state, image: Tensor) -> dict[str, Tensor]:
    """Return pool3, pool4 and fc7 of an image in RGB, 0..1."""
    mean = torch.tensor([104.00698793, 116.66876762, 122.67891434])[:, None, None]  # datasets/voc.py
    x, features = image[:, [2, 1, 0]] * 255 - mean, {}
    for stage in "12345":
        for name in (name for name in TRUNK if name.startswith(stage)):
            padding = 100 if name == "1_1" else 1
            x = F.relu(F.conv2d(x, state[f"conv{name}.weight"], state[f"conv{name}.bias"], padding=padding))
        features[f"pool{stage}"] = x = F.max_pool2d(x, 2, 2, ceil_mode=True)
    x = F.relu(F.conv2d(x, state["fc6.weight"], state["fc6.bias"]))
    return features | {"fc7": F.relu(F.conv2d(x, state["fc7.weight"], state["fc7.bias"]))}


@torch.no_grad()
def scores_of(kind: str, state, features: dict[str, Tensor], rows: int, cols: int) -> Tensor:
    """Return the scores of one of the four models for these feature maps."""

    def score(layer: str, x: Tensor) -> Tensor:
        return F.conv2d(x, state[f"{layer}.weight"], state[f"{layer}.bias"])

    def up(name: str, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, state[f"{name}.weight"], stride=DECONVOLUTIONS[name])

    def crop(x: Tensor, first: int, h: int, w: int) -> Tensor:
        return x[:, :, first : first + h, first : first + w]

    factor4, factor3 = (0.01, 0.0001) if kind == "FCN8sAtOnce" else (1, 1)
    x = score("score_fr", features["fc7"])
    if kind == "FCN32s":
        return crop(up("upscore", x), 19, rows, cols)
    x = up("upscore2", x)
    x = x + crop(score("score_pool4", features["pool4"] * factor4), 5, *x.shape[2:])
    if kind == "FCN16s":
        return crop(up("upscore16", x), 27, rows, cols)
    x = up("upscore_pool4", x)
    x = x + crop(score("score_pool3", features["pool3"] * factor3), 9, *x.shape[2:])
    return crop(up("upscore8", x), 31, rows, cols)


def he(shape) -> Tensor:
    """Return weights that preserve the scale of activations, and biases with an effect."""
    if len(shape) == 1:
        return torch.randn(shape)
    return torch.randn(shape).mul_(math.sqrt(2 / math.prod(shape[1:])))


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    """All layers of the four models (538 MB), with heads that give the scores of all levels the same scale."""
    torch.manual_seed(1)
    state = state_of("FCN8s", he)
    for layer in ("score_fr", "score_pool4", "score_pool3"):
        state[f"{layer}.weight"] /= 100
    return state | {f"{name}.weight": filler(factor) for name, factor in DECONVOLUTIONS.items()}


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(1, 3, 37, 51, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def features(trained, image) -> dict[str, Tensor]:
    return maps(trained, image)


def part(kind: str, state) -> dict[str, Tensor]:
    return {key: state[key] for key in state_of(kind, on_meta)}


def build_uninitialized(kind: str, monkeypatch, **settings) -> FCN:
    """Build a model with uninitialized convolutions, which are loaded from a file later."""
    monkeypatch.setattr("fcnlab.models.vgg.initialize", lambda net: None)
    with monkeypatch.context() as patched:
        patched.setattr(nn.Conv2d, "reset_parameters", lambda layer: None)
        return FCN(VGG16(padding="paper", convention="caffe"), 21, **(SETTINGS[kind] | settings)).eval()


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_scores_equal_those_of_pytorch_fcn(kind, load, trained, features, image, monkeypatch):
    expected = scores_of(kind, trained, features, 37, 51)
    assert expected.std() > 0.5
    net = load(build_uninitialized(kind, monkeypatch), part(kind, trained), label=kind)
    torch.testing.assert_close(net(image), expected, rtol=1e-5, atol=1e-5)
    assert net.pretrained


@torch.no_grad()
def test_at_once_and_staged_models_give_different_scores(trained, features):
    staged, at_once = (scores_of(kind, trained, features, 37, 51) for kind in ("FCN8s", "FCN8sAtOnce"))
    assert (staged - at_once).abs().max() > 1


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_kernels_that_are_not_bilinear_are_kept_as_learned(kind, load, trained, features, image, monkeypatch):
    changed = {name: torch.rand_like(trained[f"{name}.weight"]) / 10 for name in DECONVOLUTIONS}
    state = trained | {f"{name}.weight": kernel for name, kernel in changed.items()}
    net = load(build_uninitialized(kind, monkeypatch, upsampling="learned_all"), part(kind, state), label=kind)
    expected = scores_of(kind, state, features, 37, 51)
    torch.testing.assert_close(net(image), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    for step, name in zip(net.upsample, MODELS[kind][1], strict=True):
        assert torch.equal(step.kernel, changed[name]) and step.kernel.requires_grad


@pytest.fixture(scope="module")
def checkpoint(trained, tmp_path_factory):
    """A checkpoint file in the format of pytorch-fcn's trainer."""
    file = tmp_path_factory.mktemp("pytorch-fcn") / "model_best.pth.tar"
    held = {"epoch": 1, "iteration": 2, "arch": "FCN8sAtOnce", "best_mean_iu": np.float64(0.6)}
    held |= {"optim_state_dict": {"state": {}}, "model_state_dict": part("FCN8s", trained)}
    torch.save(held, file)
    yield file
    file.unlink()


@torch.no_grad()
def test_a_training_checkpoint_is_loaded(trained, features, image, checkpoint, monkeypatch):
    with pytest.raises(WeightsError, match=r"is pytorch-fcn's FCN8sAtOnce.*choose model=fcn8s_atonce$"):
        build_on_meta("FCN8s", weights=str(checkpoint))
    net = build_uninitialized("FCN8sAtOnce", monkeypatch, weights=str(checkpoint))
    expected = scores_of("FCN8sAtOnce", trained, features, 37, 51)
    torch.testing.assert_close(net(image), expected, rtol=1e-5, atol=1e-5)


def test_published_scores_are_reported_next_to_measured_ones(checkpoint, fcnlab, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("fcnlab.models.vgg.initialize", lambda net: None)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / "VOCdevkit/VOC2012" / folder).mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "VOCdevkit/VOC2012/JPEGImages/one.jpg")
    Image.new("L", (40, 30)).save(tmp_path / "VOCdevkit/VOC2012/SegmentationClass/one.png")
    (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/seg11valid.txt").write_text("one\n")
    words = ["experiment=paper/verify_fcn8s_atonce", f"model.weights={checkpoint}", f"data.root={tmp_path}"]
    words += ["trainer.accelerator=cpu", "data.num_workers=0", f"hydra.run.dir={tmp_path}/eval"]
    assert fcnlab("eval", *words) == 0
    record, output = json.loads((tmp_path / "eval/metrics.json").read_text()), capsys.readouterr()
    assert record["published"] == {"pixel_acc": 91.13, "mean_acc": 78.5, "miou": 65.4, "fw_iou": 84.44}
    assert f"miou       {100 * record['miou']:8.2f}      65.40" in output.out + output.err


# --- Names and shapes


@pytest.mark.parametrize(
    ("kind", "tensors", "values"),
    [("FCN32s", 33, 136_152_917), ("FCN16s", 36, 134_815_994), ("FCN8s", 39, 134_489_759)],
)
def test_all_tensors_are_used(kind, tensors, values, load):
    state = state_of(kind, on_meta)
    assert len(state) == tensors and sum(value.numel() for value in state.values()) == values
    net = load(build_on_meta(kind), state)
    renamed = published.from_pytorch_fcn(state)
    assert renamed.keys() == net.state_dict().keys()
    assert sorted(id(value) for value in renamed.values()) == sorted(
        id(value) for key, value in state.items() if not key.startswith("upscore")
    )


def test_convolutions_are_renamed_to_those_of_torchvision():
    with torch.device("meta"):
        layers = torchvision.models.vgg16().features.named_children()
    indices = [index for index, layer in layers if isinstance(layer, nn.Conv2d)]
    named = [*(f"backbone.features.{index}" for index in indices), "backbone.fc6", "backbone.fc7", "heads.32"]
    state = {f"{layer}.bias": torch.tensor(float(n)) for n, layer in enumerate([*SHAPES, "score_pool4", "score_pool3"])}
    renamed = published.from_pytorch_fcn(state)
    assert renamed == {f"{name}.bias": float(n) for n, name in enumerate([*named, "heads.16", "heads.8"])}


def test_heads_have_the_channels_of_their_level(load):
    net = load(build_on_meta("FCN8s"), state_of("FCN8s", on_meta))
    assert [tuple(net.heads[level].weight.shape[:2]) for level in ("32", "16", "8")] == [
        (21, 4096),
        (21, 512),
        (21, 256),
    ]


# --- Files of both uploads


def python2(state: dict[str, Tensor], file) -> None:
    """Write a file like torch 0.1 under Python 2: tensors without hooks, byte names, no archive."""

    class Pickler(pickle.Pickler):
        def reducer_override(self, held):
            if isinstance(held, Tensor):
                return torch._utils._rebuild_tensor, (held._typed_storage(), 0, tuple(held.shape), held.stride())
            return NotImplemented

    module = SimpleNamespace(__name__="pickle", Pickler=Pickler, dump=pickle.dump)
    torch.save(state, file, pickle_module=module, _use_new_zipfile_serialization=False)
    data = file.read_bytes()
    for name in state:
        text, words = struct.pack("<cI", b"X", len(name)), struct.pack("<cB", b"U", len(name))
        data = data.replace(text + name.encode(), words + name.encode())
    file.write_bytes(data)


def test_files_of_2017_are_read(tmp_path):
    state = {"score_fr.weight": torch.rand(2, 3, 1, 1), "score_fr.bias": torch.rand(2)}
    python2(state, tmp_path / "old.pth")
    data = (tmp_path / "old.pth").read_bytes()
    assert b"_rebuild_tensor\n" in data and b"U\x0dscore_fr.bias" in data
    read = read_tensors(tmp_path / "old.pth")
    assert list(read) == list(state) and all(torch.equal(value, state[key]) for key, value in read.items())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("number", [np.float64(0.6), np.float32(0.6), np.int64(3)])
def test_numpy_scalars_are_skipped(tmp_path, number, zipped):
    """Trainer.validate saves the best mean IU as a numpy scalar; no numpy function is called."""
    held = {"arch": "FCN32s", "best_mean_iu": number, "model_state_dict": {"a": torch.ones(2)}}
    torch.save(held, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "net.pth", weights_only=True)
    tensors, label = read_labelled(tmp_path / "net.pth")
    assert label == "FCN32s" and list(tensors) == ["a"]


def test_a_label_that_is_not_a_string_is_ignored(tmp_path):
    torch.save({"arch": [1], "state_dict": {"a": torch.ones(2)}}, tmp_path / "net.pth")
    assert read_labelled(tmp_path / "net.pth")[1] is None


def test_md5_of_a_known_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert md5(tmp_path / "a") == "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321


BOTH_UPLOADS = {
    "FCN32s": ("d3eb467a80e7da0468a20dfcbc13e6c8", "8acf386d722dc3484625964cbe2aba49"),
    "FCN16s": ("a2d4035f669f09483b39c9a14a0d6670", "991ea45d30d632a01e5ec48002cac617"),
    "FCN8s": ("de93e540ec79512f8770033849c8ae89", "dbd9bbb3829a3184913bccc74373afbb"),
    "FCN8sAtOnce": ("bfed4437e941fef58932891217fe6464",),
}


@pytest.mark.parametrize("net", MODELS)
@pytest.mark.parametrize("file", MODELS)
def test_a_known_file_fits_its_own_or_a_finer_variant(file, net, load):
    fits = file == net or (file, net) in {("FCN32s", "FCN16s"), ("FCN32s", "FCN8s"), ("FCN16s", "FCN8s")}
    fits |= (file, net) == ("FCN32s", "FCN8sAtOnce")
    shown = [{"md5": md5} for md5 in BOTH_UPLOADS[file]] + [{"label": file}]
    for known in shown:
        if fits:
            assert load(build_on_meta(net), state_of(file, on_meta), **known).pretrained
        else:
            with pytest.raises(
                WeightsError, match=rf"net\.pth is pytorch-fcn's {file}.*: choose model={OPTION[file]}$"
            ):
                load(build_on_meta(net), state_of(file, on_meta), **known)


OPTION = {"FCN32s": "fcn32s", "FCN16s": "fcn16s", "FCN8s": "fcn8s", "FCN8sAtOnce": "fcn8s_atonce"}


@pytest.mark.parametrize("label", [None, "Mine", "FCN16s"])
def test_unlabelled_files_are_loaded_into_the_chosen_variant(load, label):
    for kind in ("FCN8s", "FCN8sAtOnce"):
        assert load(build_on_meta(kind), state_of("FCN8s", on_meta), label=label).pretrained
    with pytest.raises(WeightsError, match=r"skip_scales=.*: choose model=fcn8s or model=fcn8s_atonce$"):
        load(build_on_meta("FCN8s", skip_scales={16: 0.5}), state_of("FCN8s", on_meta), label=label)


def test_a_finer_model_starts_with_empty_heads(load):
    net = load(build_on_meta("FCN16s"), state_of("FCN32s", on_meta))
    assert net.heads["16"].weight.is_meta and net.levels == (32, 16)
    keys = published.as_ours(
        state_of("FCN32s", on_meta), None, "net.pth", backbone=net.backbone, scales={32: 1.0, 16: 1.0},
        steps=list(net.upsample),
    )  # fmt: skip
    assert not any(key.startswith(("heads.16", "upsample")) for key in keys)


# --- Kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_bilinear_kernels_are_recognised_in_every_dtype(factor, dtype):
    kernel = filler(factor).to(dtype)
    assert published.is_bilinear(kernel, factor) and not published.is_bilinear(kernel, 2 * factor)


CHANGES = {
    "one weight, by a factor of 1 + 3e-5": lambda kernel: kernel[4, 4, 1, 1].mul_(1 + 3e-5),
    "between classes": lambda kernel: kernel[0, 1, 0, 0].add_(1e-6),
    "half": lambda kernel: kernel.mul_(0.5),
    "one class is missing": lambda kernel: kernel[7, 7].zero_(),
    "not a number": lambda kernel: kernel[7, 7, 0, 0].fill_(torch.nan),
}


@pytest.mark.parametrize("change", CHANGES)
def test_kernels_that_are_not_bilinear_are_refused(change, load):
    for kind, (_, names) in MODELS.items():
        for name in names:
            state = state_of(kind, on_meta)
            CHANGES[change](state[f"{name}.weight"])
            assert not published.is_bilinear(state[f"{name}.weight"], DECONVOLUTIONS[name])
            last = "_all" if name == names[-1] else ""
            output = rf"net\.pth: {name} is not a bilinear kernel .* set model\.upsampling=learned{last} to keep it"
            with pytest.raises(WeightsError, match=output):
                load(build_on_meta(kind), state, label=kind)


def test_rounding_errors_in_bilinear_kernels_are_accepted(load):
    state = state_of("FCN8s", on_meta)
    for name in MODELS["FCN8s"][1]:
        state[f"{name}.weight"] *= 1 + 1e-6
    assert not [key for key in load(build_on_meta("FCN8s"), state).state_dict() if key.startswith("upsample")]


@pytest.mark.parametrize("shape", [(), (21,), (21, 21, 4), (21, 20, 4, 4), (21, 1, 4, 4), (21, 21, 3, 3)])
def test_kernels_of_another_shape_are_not_bilinear(shape):
    assert not published.is_bilinear(torch.zeros(shape), 2)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_kernels_of_another_dtype_are_not_bilinear(dtype):
    assert not published.is_bilinear(filler(2).to(dtype), 2)


def test_learned_upsampling_keeps_kernels_except_the_last(load):
    state = state_of("FCN8s", on_meta)
    state["upscore2.weight"] += 0.1
    net = load(build_on_meta("FCN8s", upsampling="learned"), state)
    assert torch.equal(net.upsample[0].kernel, state["upscore2.weight"])
    assert torch.equal(net.upsample[1].kernel, filler(2)) and not net.upsample[2].learned
    state["upscore8.weight"] += 0.1
    with pytest.raises(
        WeightsError, match=r"upscore8 is not a bilinear .*: set model\.upsampling=learned_all to keep it"
    ):
        load(build_on_meta("FCN8s", upsampling="learned"), state)


def test_a_learned_last_kernel_is_refused_by_a_finer_model(load):
    state = state_of("FCN32s", on_meta)
    state["upscore.weight"] += 0.1
    with pytest.raises(
        WeightsError, match=r"upscore is not a bilinear .* more levels has no place for it: choose model=fcn32s"
    ):
        load(build_on_meta("FCN16s", upsampling="learned_all"), state)


# --- Models that do not fit


def test_another_input_convention_is_refused(load):
    with torch.device("meta"):
        backbone = VGG16(padding="paper")
    with pytest.raises(WeightsError, match=r"takes BGR in 0\.\.255 .* or choose model/backbone=vgg16_caffe"):
        load(build_on_meta("FCN8s", backbone=backbone), state_of("FCN8s", on_meta))


def test_another_padding_warns(load):
    with torch.device("meta"):
        backbone = VGG16(convention="caffe")
    with pytest.warns(UserWarning, match=r"trained with model\.backbone\.padding=paper\. With padding=same, cells lie"):
        load(build_on_meta("FCN8s", backbone=backbone), state_of("FCN8s", on_meta))


@pytest.mark.parametrize(
    ("backbone", "output"),
    [(lambda: Tiny(), "Tiny: choose"), (lambda: VGG16(batch_norm=True), "VGG16, batch-normalised: choose")],
)
def test_other_backbones_are_refused(load, backbone, output):
    with torch.device("meta"):
        backbone = backbone()
    with pytest.raises(WeightsError, match=f"the model's backbone is {output} model/backbone=vgg16_caffe"):
        load(build_on_meta("FCN8s", backbone=backbone), state_of("FCN8s", on_meta))


def test_another_number_of_classes_requires_reset_heads(load):
    state = state_of("FCN8s", on_meta)
    with pytest.raises(WeightsError, match=r"scores 21 classes, the data has 12: set model\.reset_heads=true"):
        load(build_on_meta("FCN8s", num_classes=12), state)
    state["upscore2.weight"] += 1  # has no effect: only the backbone is loaded
    for kind in MODELS:
        net = load(build_on_meta(kind, num_classes=12), state, reset_heads=True)
        assert net.backbone.fc6.weight.shape == (4096, 512, 7, 7) and net.heads["32"].weight.shape[0] == 12


@pytest.mark.parametrize("key", ["conv1_1.weight", "fc7.bias", "score_pool3.weight", "upscore2.weight"])
def test_an_incomplete_state_dict_is_refused(load, key):
    state = state_of("FCN8s", on_meta)
    del state[key]
    with pytest.raises(
        WeightsError, match=rf"is not pytorch-fcn's FCN8s on VGG16: of its 39 tensors it lacks 1: {key}\."
    ):
        load(build_on_meta("FCN8s"), state)


@pytest.mark.parametrize("last", [[], ["upscore8", "upscore16"]])
def test_a_state_dict_without_exactly_one_last_kernel_is_refused(load, last):
    state = {key: value for key, value in state_of("FCN8s", on_meta).items() if not key.startswith("upscore8")}
    state |= {f"{name}.weight": filler(DECONVOLUTIONS[name]) for name in last}
    with pytest.raises(
        WeightsError, match=rf"has {len(last)} of the layers upscore8, upscore16, upscore; a .* has exactly one"
    ):
        load(build_on_meta("FCN8s"), state)


def test_layers_of_another_shape_are_refused(load):
    state = state_of("FCN8s", on_meta) | {"fc6.weight": on_meta((4096, 25088))}
    with pytest.raises(
        WeightsError, match=r"of another shape: backbone\.fc6\.weight \(4096, 25088\), not \(4096, 512, 7, 7\)"
    ):
        load(build_on_meta("FCN8s"), state)


def test_the_alexnet_of_the_paper_is_refused(load):
    layers = {"conv1": (96, 3, 11, 11), "conv2": (256, 48, 5, 5), "conv3": (384, 256, 3, 3), "conv4": (384, 192, 3, 3)}
    layers |= {
        "conv5": (256, 192, 3, 3),
        "fc6": (4096, 256, 6, 6),
        "fc7": (4096, 4096, 1, 1),
        "score_fr": (21, 4096, 1, 1),
    }
    state = {f"{name}.weight": on_meta(shape) for name, shape in layers.items()}
    state |= {f"{name}.bias": on_meta(shape[:1]) for name, shape in layers.items()}
    state["upscore.weight"] = on_meta((21, 21, 63, 63))
    with pytest.raises(
        WeightsError, match=r"it lacks 26: conv1_1\.weight.* and has 10 unexpected: conv1\.weight, .*another arch"
    ):
        load(build_on_meta("FCN32s"), state)


class Touch:
    """An object whose unpickling calls a function."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_file_runs_nothing(tmp_path, zipped):
    state = {key: torch.zeros(1) for key in state_of("FCN8s", on_meta)} | {"best_mean_iu": Touch(tmp_path / "ran")}
    torch.save(state, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="could run code"):
        build_on_meta("FCN8s", weights=str(tmp_path / "net.pth"))
    assert not (tmp_path / "ran").exists()


class InvalidDtype:
    """An object whose unpickling calls a numpy function that fails."""

    def __reduce__(self):
        return np.dtype, ("no type",)


def test_no_numpy_function_is_called(tmp_path):
    torch.save({"a": torch.ones(2), "best_mean_iu": InvalidDtype()}, tmp_path / "net.pth")
    with pytest.raises(TypeError), torch.serialization.safe_globals([np.dtype]):
        torch.load(tmp_path / "net.pth", weights_only=True)
    assert list(read_tensors(tmp_path / "net.pth")) == ["a"]


# --- VGG16, the fifth file


def vgg16_state() -> dict[str, Tensor]:
    with torch.device("meta"):
        return torchvision.models.vgg16().state_dict()


def test_vgg16_from_caffe_starts_an_fcn_with_empty_heads(load):
    state = vgg16_state()
    assert len(state) == 32 and sum(value.numel() for value in state.values()) == 138_357_544
    net = load(build_on_meta("FCN32s"), state, md5="aa75b158f4181e7f6230029eb96c1b13")
    assert net.backbone.features[28].weight.data_ptr() == state["features.28.weight"].data_ptr()
    assert net.backbone.fc6.weight.shape == (4096, 512, 7, 7) and net.pretrained


def test_vgg16_from_caffe_requires_the_caffe_convention(load, tmp_path, monkeypatch):
    with torch.device("meta"):
        backbone = VGG16()
    with pytest.raises(WeightsError, match=r"model\.weights=net\.pth is Caffe's VGG16, which takes BGR"):
        load(build_on_meta("FCN32s", backbone=backbone), vgg16_state(), md5="aa75b158f4181e7f6230029eb96c1b13")
    load(build_on_meta("FCN32s", backbone=backbone), vgg16_state(), md5="that of torchvision's")
    (tmp_path / "net.pth").touch()
    monkeypatch.setattr("fcnlab.models.vgg.md5", lambda path: "aa75b158f4181e7f6230029eb96c1b13")
    with torch.device("meta"), pytest.raises(WeightsError, match=r"is Caffe's VGG16, .* model/backbone=vgg16_caffe"):
        VGG16(weights=str(tmp_path / "net.pth"))


def test_imagenet_weights_require_the_torchvision_convention():
    message = r"imagenet fetches torchvision's .*convention=torchvision"
    with torch.device("meta"), pytest.raises(WeightsError, match=message):
        VGG16(weights="imagenet", convention="caffe")


@pytest.mark.unchecked
def test_unknown_convention_is_an_error():
    with torch.device("meta"), pytest.raises(ValueError, match="convention='rgb': choose 'torchvision' or 'caffe'"):
        VGG16(convention="rgb")


# --- fcnlab eval experiment=paper/verify_...


def test_differences_are_measured_minus_published():
    measured = Scores(pixel_acc=0.9, mean_acc=0.7, miou=0.65, fw_iou=0.8, iou=np.zeros(21))
    lines = compare_with_published(measured, {"pixel_acc": 91.23, "miou": 65.51}).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["pixel_acc", "90.00", "91.23", "-1.23"],
        ["miou", "65.00", "65.51", "-0.51"],
    ]


def test_names_of_published_scores_are_checked(fcnlab, capsys, tmp_path):
    words = ["experiment=paper/verify_fcn8s", "model.weights=net.pth", f"data.root={tmp_path}", "+published.iou=1"]
    assert fcnlab("eval", *words) == 1
    assert (
        "published contains unknown scores iou: choose from pixel_acc, mean_acc, miou, fw_iou"
        in capsys.readouterr().err
    )
