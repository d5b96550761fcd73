"""Test that speed=auto and speed=off give the same numbers."""

import csv
import json
from shutil import which

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from fcnlab.models import FCN
from fcnlab.models.backbone import Level
from fcnlab.models.geometry import Grid
from fcnlab.training import hardware, speed
from fcnlab.training.hardware import precision
from fcnlab.training.speed import allow_tf32, evaluation_speed

SGD = ("optim=sgd", "optim.lr=0.05", "callbacks.ema.enabled=false")


def losses(folder) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row[key]) for row in csv.DictReader(file) for key in ("train/loss", "val/loss") if row[key]]


def miou(folder) -> float:
    return json.loads((folder / "metrics.json").read_text())["miou"]


def test_speed_auto_equals_off_up_to_rounding(train):
    """Plain SGD: Adam divides by tiny moments. Batch normalisation and ReLUs let rounding grow from step to step."""
    off, auto = (
        train(*SGD, f"speed={speed}", "trainer.log_every_n_steps=1", folder=speed) for speed in ("off", "auto")
    )
    assert len(losses(off)) == 22 and losses(off)[0] > 1.05 * losses(off)[-2]  # the model learned something
    assert losses(auto)[0] == pytest.approx(losses(off)[0], rel=1e-6)
    assert losses(auto)[:5] == pytest.approx(losses(off)[:5], rel=1e-4)
    assert losses(auto) == pytest.approx(losses(off), rel=1e-2)
    assert miou(auto) == pytest.approx(miou(off), abs=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # warnings of torch's compiler about itself
def test_compiled_training_is_equal_up_to_rounding(train):
    """With EMA weights, which copy the module; the validation images differ in size."""
    words = (
        "optim=sgd",
        "optim.lr=0.05",
        "trainer.log_every_n_steps=1",
        "trainer.max_steps=6",
        "trainer.val_check_interval=3",
    )
    plain = train(*words)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = train(*words, "speed.compile=true", folder="compiled")
    assert losses(compiled)[:4] == pytest.approx(losses(plain)[:4], rel=1e-4)
    assert counters["stats"]["unique_graphs"] == 1  # validations are not compiled


@pytest.mark.parametrize(
    ("backbone", "on_cpu"),
    [("tiny", True), ("googlenet", True), ("resnet50", True), ("vgg16", False), ("caffenet", False)],
)
@pytest.mark.parametrize("gpu", [False, True])
def test_channels_last_depends_on_device_and_backbone(composed, monkeypatch, backbone, on_cpu, gpu):
    """The measurements are in docs/explanation/performance.md."""
    monkeypatch.setattr(speed, "uses_gpu", lambda accelerator: gpu)
    overrides = ["model.backbone.weights=none"]
    for option, expected in (("auto", on_cpu or gpu), ("off", False)):
        cfg = composed(f"model/backbone={backbone}", f"speed={option}", *overrides)
        with torch.device("meta"):
            model = instantiate(cfg.model, _convert_="all")
        assert evaluation_speed(cfg, model) == {"channels_last": expected, "row_blocks": option == "auto"}


def test_a_backbone_without_a_layout_preference_gets_no_channels_last(composed):
    """A user's backbone may declare none; an explicit setting is used nevertheless."""
    backbone = nn.Identity()
    backbone.levels, backbone.min_size, backbone.pretrained = {32: Level(8, Grid(32, 0.0))}, 1, False
    model = FCN(backbone, 3, (32,))
    for option, expected in (("auto", False), ("off", False)):
        assert evaluation_speed(composed(f"speed={option}"), model)["channels_last"] is expected
    assert evaluation_speed(composed("speed.channels_last=true"), model)["channels_last"] is True


@pytest.mark.slow
def test_a_resumed_run_uses_the_new_setting_of_fused(train):
    """The checkpoint does not decide whether the optimizer step is fused."""
    every = "trainer.val_check_interval=2"
    for before, after in (("off", "auto"), ("auto", "off")):
        folder = train(f"speed={before}", "trainer.max_steps=4", every, folder=before)
        train(f"speed={after}", "trainer.max_steps=6", every, "checkpoint=last", folder=before)
        state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]
        assert {group["fused"] for group in state["param_groups"]} == {after == "auto"}


@pytest.mark.parametrize(
    ("words", "gpu", "expected"),
    [
        ((), True, "bf16-mixed"),
        (("speed=off",), True, "32-true"),
        (("speed.bf16=false",), True, "32-true"),
        ((), False, "32-true"),
        (("speed=off", "trainer.precision=bf16-mixed"), False, "bf16-mixed"),
    ],
)
def test_precision_depends_on_the_device(composed, monkeypatch, words, gpu, expected):
    monkeypatch.setattr(hardware, "uses_gpu", lambda accelerator: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert precision(composed(*words)) == expected


def test_tf32_is_set_as_requested():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        for allowed, word in ((True, "high"), (False, "highest")):
            allow_tf32(allowed)
            assert torch.get_float32_matmul_precision() == word and torch.backends.cudnn.allow_tf32 == allowed
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "sgd_heavy", "sgd_cvpr"])
def test_optimisers_are_fused(composed, optimizer):
    for option in ("auto", "off"):
        assert composed(f"optim={optimizer}", f"speed={option}").optim.fused == (option == "auto")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("speed.row_blocks=true", "loss=dice"), "speed.row_blocks=true has no effect with loss=dice"),
        (("speed.bf16=true", "trainer.precision=32-true"), "speed.bf16 has no effect with trainer.precision=32-true"),
    ],
)
def test_settings_without_effect_are_reported(train_code, tmp_path, words, message):
    assert train_code(*words, "trainer.max_steps=1", "trainer.val_check_interval=1") == 0
    assert f"Warning: {message}" in (tmp_path / "run" / "train.log").read_text()


def test_compile_without_a_compiler_is_refused(train_code, monkeypatch, capsys):
    monkeypatch.setattr(speed.shutil, "which", lambda name: None)
    assert train_code("speed.compile=true") == 1
    assert "speed.compile=true needs a C++ compiler" in capsys.readouterr().err


def test_unknown_speed_option_is_refused(train_code, capsys):
    assert train_code("speed.channel_last=true") == 1
    assert "channel_last" in capsys.readouterr().err
