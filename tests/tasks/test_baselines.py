"""Networks of other libraries are trained, resumed, repeated, scored and compared as FCNs are."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fcnlab as package
from fcnlab.training.checkpoints import read_nets

OWN = """# mylab.py
from torch import nn


class Net(nn.Module):
    def __init__(self, classes, width=4, fetched=False):
        super().__init__()
        if fetched:
            raise OSError("no route")
        self.encoder = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, image):
        return self.head(self.encoder(image))
"""
OWN_YAML = """
_target_: fcnlab.models.Architecture
network: {_target_: mylab.Net, _partial_: true, classes: "${data.num_classes}"}
num_classes: ${data.num_classes}
size_multiple: 8
backbone: encoder
named_weights: {theirs: {fetched: true}}
weights: none
reset_heads: false
title: my net
"""
SMALL_MODELS = {  # of the models of conf/, with small parts
    "unet": """
defaults: [smp_unet, _self_]
network: {encoder_name: tu-test_resnet, decoder_channels: [16, 8, 8, 4, 4]}
""",
    "deeplab": """
defaults: [torchvision_deeplabv3, _self_]
network: {_target_: torchvision.models.segmentation.deeplabv3_mobilenet_v3_large}
title: DeepLabv3 with MobileNetV3
""",
    "convnext": """
defaults: [{backbone: timm}, _self_]
_target_: fcnlab.models.FCN
num_classes: ${data.num_classes}
levels: [32]
weights: none
backbone: {name: test_convnext, weights: none}
""",
}
STEPS = ("trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.accelerator=cpu", "logger=csv")


@pytest.fixture
def shapes(small) -> tuple[str, ...]:
    return (*(word for word in small if not word.startswith("model.")), *STEPS)


@pytest.fixture
def own_net(tmp_path, monkeypatch) -> tuple[str, ...]:
    """Write a module and its YAML file; return the words that choose it."""
    (tmp_path / "mylab.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine/model").mkdir(parents=True)
    (tmp_path / "mine/model/own.yaml").write_text(OWN_YAML)
    return ("--config-dir", "mine", "model=own")


def test_a_network_of_the_users_own_is_trained_and_scored(fcnlab, shapes, own_net, capsys):
    """The scores of ``fcnlab.load`` are those of the module by itself, with the weights in the checkpoint."""
    assert fcnlab("train", *own_net, *shapes, "hydra.run.dir=run") == 0
    printed = capsys.readouterr().out
    assert "Model: my net (Net of mylab), 0.00 M parameters" in printed and "best.ckpt trust=[mylab] input=" in printed
    checkpoint = "run/checkpoints/best.ckpt"
    assert fcnlab("eval", f"checkpoint={checkpoint}", "trust=[mylab]", "hydra.run.dir=scored", *STEPS[2:3]) == 0
    trained, scored = (json.loads(Path(run, "metrics.json").read_text()) for run in ("run", "scored"))
    assert trained["miou"] == scored["miou"]
    assert fcnlab("eval", f"checkpoint={checkpoint}", "hydra.run.dir=refused") == 1
    assert "If you trust the package of that class, install it as a plugin" in capsys.readouterr().err
    words = [f"checkpoint={checkpoint}", "trust=[mylab]", "inference=shift_and_stitch", "hydra.run.dir=refused"]
    assert fcnlab("eval", *words) == 1
    assert "shift_and_stitch is for FCNs only" in (error := capsys.readouterr().err) and "model is my net" in error
    assert fcnlab("card", f"checkpoint={checkpoint}", "trust=[mylab]", "output=card.md") == 0
    card = Path("card.md").read_text()
    assert "# my net, trained on shapes" in card and "fully-convolutional" not in card

    import mylab  # pyright: ignore[reportMissingImports]

    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    net = mylab.Net(21).eval()
    net.load_state_dict({key.removeprefix("net.network."): value for key, value in state.items()})
    image = np.random.default_rng(0).integers(0, 256, (20, 27, 3), np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    padded = np.zeros((24, 32, 3), np.float32)
    padded[:20, :27] = (image.astype(np.float32) / 255 - mean) / std
    with torch.inference_mode():
        scores = net(torch.from_numpy(padded).permute(2, 0, 1)[None])[0, :, :20, :27]
    model = package.load(checkpoint, device="cpu", trust=["mylab"])
    assert repr(model) == "<TrainedModel: my net, 21 classes, cpu>"
    np.testing.assert_allclose(model.probabilities(image), scores.softmax(0), atol=1e-6)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["model.weights=theirs"], "model.weights=theirs could not be fetched by Net (OSError: no route).\nOffline?"),
        (["model.size_multiple=0"], "model.size_multiple must be a number of pixels from 1"),
        (["+model.mean=[0,0]"], "model.mean must be three numbers, for red, green and blue, got [0, 0]."),
        (["model.network.classes=3"], "Net returns scores of 3 classes, but the data have 21"),
        (
            ["model/backbone=vgg16"],
            "model/backbone=vgg16 has no effect, since the chosen option of model has no model/b",
        ),
        (["+model.network.widht=3"], "Unknown key model.network.widht of mylab.Net. Did you mean model.network.width?"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_work_is_refused_before_training(fcnlab, shapes, own_net, capsys, words, reason):
    assert fcnlab("train", *own_net, *shapes, *words, "hydra.run.dir=run") == 1
    error = capsys.readouterr().err
    assert reason in error and "Traceback" not in error


def test_a_class_that_is_no_network_is_refused(fcnlab, shapes, own_net, tmp_path, capsys):
    (tmp_path / "mine/model/bare.yaml").write_text("_target_: mylab.Net\nclasses: ${data.num_classes}\n")
    assert fcnlab("train", "--config-dir", "mine", "model=bare", *shapes, "hydra.run.dir=run") == 1
    assert "model._target_=mylab.Net builds a Net, which fcnlab cannot train: set" in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_of_the_users_own_resumes_exactly(fcnlab, shapes, own_net):
    words = [word for word in shapes if not word.startswith("trainer.max_steps")]
    assert fcnlab("train", *own_net, *words, "trainer.max_steps=4", "hydra.run.dir=whole") == 0
    assert fcnlab("train", *own_net, *words, "trainer.max_steps=2", "schedule=constant", "hydra.run.dir=a") == 0
    assert fcnlab("train", *own_net, *words, "trainer.max_steps=4", "schedule=constant", "hydra.run.dir=b") == 0
    resumed = ("checkpoint=last", "trainer.max_steps=4", "schedule=constant", "hydra.run.dir=a")
    assert fcnlab("train", *own_net, *words, *resumed) == 0
    first, second = (torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert fcnlab("train", "--config-dir", "mine", "from_run=whole", "hydra.run.dir=again") == 0
    whole, again = (json.loads(Path(run, "metrics.json").read_text()) for run in ("whole", "again"))
    assert whole["miou"] == again["miou"]


@pytest.mark.slow
def test_three_baselines_are_compared(fcnlab, shapes, tmp_path, capsys):
    """Two seeds of each in one sweep: one protocol, so that all groups are compared, under their own names."""
    pytest.importorskip("segmentation_models_pytorch", reason="pip install 'fcnlab[baselines]'")
    (tmp_path / "mine/model").mkdir(parents=True)
    for name, text in SMALL_MODELS.items():
        (tmp_path / f"mine/model/{name}.yaml").write_text(text)
    words = ["--config-dir", "mine", f"model={','.join(SMALL_MODELS)}", "seed=1,2", "hydra.sweep.dir=sweep"]
    assert fcnlab("train", "-m", *words, *shapes, "hydra/launcher=basic", "speed.row_blocks=true") == 0
    assert "row_blocks=true has no effect with model=unet, which scores the whole image" in capsys.readouterr().out
    report = package.compare("sweep", resamples=200)
    names = ["model=convnext model/backbone=timm", "model=deeplab", "model=unet"]
    assert sorted(group.name for group in report.groups) == names
    assert all(len(group.runs) == 2 for group in report.groups)
    assert fcnlab("compare", "runs=sweep", "resamples=200", "hydra.run.dir=out") == 0
    page, table = (Path("out", f"comparison.{kind}").read_text() for kind in ("html", "md"))
    assert all(name in page and name in table for name in names)
    assert "left-out" not in page.partition("<body")[2]
    runs = sorted(Path("sweep").glob("*/metrics.json"))
    assert len({json.dumps(json.loads(run.read_text())["protocol"]) for run in runs}) == 1 and len(runs) == 6

    checkpoints = [str(run.parent / "checkpoints/best.ckpt") for run in runs]
    titles = {each.net.title for each in read_nets(checkpoints, ())}  # without trust=
    assert titles == {"U-Net with encoder tu-test_resnet", "DeepLabv3 with MobileNetV3", "FCN-32s on test_convnext"}
    Image.fromarray(np.zeros((40, 70, 3), np.uint8)).save("photo.png")
    predicted = package.load(checkpoints, device="cpu").predict("photo.png")
    assert predicted.shape == (40, 70)
