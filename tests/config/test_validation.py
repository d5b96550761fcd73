"""Test that every shipped config composes and is valid, and that all mistakes are reported at once."""

import os
import re
import shlex
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import OmegaConf
from torch import nn

from fcnlab.config import validation
from fcnlab.config.locations import CONF
from fcnlab.config.validation import ConfigError, check_requirements, validate_config
from fcnlab.models import FCN
from fcnlab.models.googlenet import GoogLeNet
from fcnlab.models.tiny import Tiny

PRIMARY = ("train", "eval", "predict", "doctor")
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml") if path.parent != CONF)
EXPERIMENTS = [path for path in FILES if path.parts[0] == "experiment"]
OPTIONS = [path for path in FILES if path not in EXPERIMENTS]
REQUIRED_OVERRIDES = {
    "model/backbone=caffenet": ["model.backbone.weights=none"],
    "model/backbone=googlenet": ["model.backbone.weights=none"],
    "model/backbone=timm": ["model.backbone.name=convnext_tiny"],
    "model/backbone=torchvision": ["model.backbone.name=resnet18"],
    "data=folder": ["data.dataset.classes=[ground,cat]"],
    "loss=weighted": [f"loss.class_weights={[1.0] * 21}"],
}


def test_configs_are_found():
    assert len(OPTIONS) > 30  # an empty glob would pass every test below


@pytest.mark.parametrize("path", OPTIONS, ids=str)
def test_every_option_composes_and_binds(path: Path, composed):
    option = f"{path.parent}={path.stem}"
    verb = "eval" if path.parts[0] in ("inference", "postprocess") else "train"
    validate_config(composed(option, *REQUIRED_OVERRIDES.get(option, []), name=verb))


@pytest.mark.parametrize(
    ("target", "switch", "wrong"),
    [
        ("lightning.pytorch.callbacks.LearningRateMonitor", "log_momentum", "no"),
        ("lightning.pytorch.callbacks.ModelCheckpoint", "verbose", "false"),
        ("lightning.pytorch.callbacks.ModelCheckpoint", "enabled", "no"),
        ("lightning.pytorch.callbacks.EarlyStopping", "strict", "no"),
        ("lightning.pytorch.loggers.TensorBoardLogger", "log_graph", "False"),
        ("torch.optim.SGD", "nesterov", "no"),
    ],
)
def test_a_string_is_not_a_boolean(target: str, switch: str, wrong):
    """Any string would count as true."""
    for value, fits in ((wrong, False), (True, True), (False, True)):
        node = {"_target_": target, "_partial_": True, switch: value}
        accepted = [
            line
            for line in validation._component_errors("callbacks.x", node)
            if line.startswith(f"callbacks.x.{switch} must be true or false")
        ]
        assert bool(accepted) is not fits


class OwnCheckpoint(ModelCheckpoint):
    """A user's checkpoint callback with Lightning's arguments."""


@pytest.mark.parametrize("kind", [ModelCheckpoint, OwnCheckpoint])
@pytest.mark.parametrize("insert", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "best",
        "a/best",
        "{step}",
        "{epoch:03d}-{step:d}",
        "miou={val/miou:.4f}-{step:.0f}",
        "{val/loss:9.9f}",
        ".{step}.",
    ],
)
def test_a_checkpoint_name_may_contain_metrics(kind: type, insert: bool, name: str, tmp_path):
    """Lightning formats the name, also with the longest values."""
    node = {"_target_": f"{kind.__module__}.{kind.__qualname__}", "filename": name, "auto_insert_metric_name": insert}
    assert not validation._component_errors("callbacks.best", node)
    for value in (3.4e38, float("-inf"), float("nan"), 0.5):
        values = {key: torch.tensor(value) for key in ("val/miou", "val/loss")}
        values |= {key: torch.tensor(2**63 - 1) for key in ("step", "epoch")}
        path = Path(kind(tmp_path, name, auto_insert_metric_name=insert).format_checkpoint_name(values))
        assert tmp_path in Path(os.path.normpath(path)).parents and len(path.name) < 255


@pytest.mark.parametrize("kind", [ModelCheckpoint, OwnCheckpoint])
@pytest.mark.parametrize(
    "name",
    [
        "{step:c}{step:c}/x",
        "{step:900000000d}",
        "{val/miou:.900000000f}",
        "{step:0>900000000}",
        "{step:{step}}",
        "{step.__class__}",
        "{step[0]}",
        "{step!r}",
        "{val/miou:%}",
        "{/tmp/x}",
        "{../x}",
        "{a/../x}",
        "{a/b/c}/../../../x",  # as one folder, or three
        "{}",
        "{{step}}",
        "{step",
        "step}",
        "/tmp/x",
        "~/x",
        "../x",
        "a/../x",
        "a\nb",
        "a\0b",
        "a" * 101,
        "{step}" * 5,
        5,
    ],
)
def test_a_checkpoint_name_that_is_a_path_is_refused(kind: type, name):
    node = {"_target_": f"{kind.__module__}.{kind.__qualname__}", "filename": name}
    (mistake,) = validation._component_errors("callbacks.best", node)
    assert mistake.startswith("callbacks.best.filename must be ") and "{step}, {epoch:03d}" in mistake


def test_devices_share_only_gradients(composed):
    strategy = instantiate(composed("trainer=ddp").trainer.strategy, _convert_="all")
    assert isinstance(strategy, DDPStrategy)
    assert strategy._ddp_kwargs == {"gradient_as_bucket_view": True, "broadcast_buffers": False}
    typed = composed("trainer=ddp", "trainer.strategy=ddp_find_unused_parameters_true")
    assert typed.trainer.strategy == "ddp_find_unused_parameters_true"  # Lightning's names may be typed, too


def test_batch_norms_are_synchronised():
    """trainer.sync_batchnorm=true does not change a model without batch norms."""
    for backbone, norms in ((Tiny(width=4), True), (GoogLeNet(weights="none"), False)):
        model = FCN(backbone, 3, (32, 16, 8))
        before = [type(module) for module in model.modules()]
        after = [type(module) for module in TorchSyncBatchNorm().apply(model).modules()]
        assert (after != before) is norms and (nn.SyncBatchNorm in after) is norms


@pytest.mark.parametrize("path", EXPERIMENTS, ids=str)
def test_every_experiment_composes_and_binds(path: Path, composed):
    command = re.match(r"# @package _global_\n# fcnlab (train|eval) experiment=(\S+) (.*)\n", (CONF / path).read_text())
    assert command, "it opens with the command that runs it"
    verb, option, words = command.groups()
    assert option == str(path.relative_to("experiment").with_suffix(""))
    cfg = composed(f"experiment={option}", *words.split(), name=verb)
    check_requirements(cfg, words.split())
    for stage in cfg.get("stages") or []:
        validate_config(composed(f"experiment={stage}", *words.split(), "model.weights=net.ckpt"))
    if not cfg.get("stages"):
        validate_config(cfg)


@pytest.mark.parametrize(
    "name", ["fcn32s", "fcn16s", "fcn8s", "fcn8s_atonce", "cvpr_fcn32s", "cvpr_fcn16s", "cvpr_fcn8s"]
)
def test_a_recipe_without_its_initial_weights_is_refused(name: str, composed):
    """If an experiment has "???", composing keeps the default, "none": the model would start from random weights."""
    key = "model.weights" if name in ("fcn16s", "fcn8s", "cvpr_fcn16s", "cvpr_fcn8s") else "model.backbone.weights"
    cfg = composed(f"experiment=paper/{name}")
    with pytest.raises(ConfigError, match=rf"requires settings that were not given:\n  {key}=VALUE: PATH of "):
        check_requirements(cfg, ["data.root=data"])
    check_requirements(cfg, [f"{key}=none"])  # set explicitly


@pytest.mark.parametrize("path", EXPERIMENTS, ids=str)
def test_experiments_contain_no_question_marks(path: Path):
    assert "???" not in (CONF / path).read_text()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=str)
def test_every_experiment_states_its_cost_and_expected_score(path: Path):
    text = (CONF / path).read_text()
    assert all(f"# {part}: " in text or f" {part}: " in text for part in ("Cost", "Expected", "Source"))


# voc-*/solver.prototxt and train.prototxt of shelhamer/fcn.berkeleyvision.org @1305c73; CVPR 2015, section 4.3.
RECIPES = {
    "fcn32s": ("fcn32s", "CrossEntropySum", 1e-10, 0.99, 1, 100_000),
    "fcn16s": ("fcn16s", "CrossEntropySum", 1e-12, 0.99, 1, 100_000),
    "fcn8s": ("fcn8s", "CrossEntropySum", 1e-14, 0.99, 1, 100_000),
    "fcn8s_atonce": ("fcn8s_atonce", "CrossEntropySum", 1e-10, 0.99, 1, 300_000),
    "fcn_alexnet": ("fcn32s", "CrossEntropy", 1e-4, 0.9, 20, 100_000),
    "fcn_googlenet": ("fcn32s", "CrossEntropy", 5e-5, 0.9, 20, 9_730),
    "cvpr_fcn32s": ("fcn32s", "CrossEntropy", 1e-4, 0.9, 20, 9_730),
    "cvpr_fcn16s": ("fcn16s", "CrossEntropy", 1e-6, 0.9, 20, 9_730),
    "cvpr_fcn8s": ("fcn8s", "CrossEntropy", 1e-8, 0.9, 20, 9_730),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_the_settings_of_the_papers(name: str, composed):
    model, loss, lr, momentum, images, steps = RECIPES[name]
    cfg = composed(f"experiment=paper/{name}")
    levels = {"fcn32s": [32], "fcn16s": [32, 16]}.get(model, [32, 16, 8])
    scales = {16: 0.01, 8: 0.0001} if model == "fcn8s_atonce" else None
    assert cfg.model.levels == levels and cfg.model.get("skip_scales") == scales
    assert cfg.loss._target_ == f"fcnlab.training.losses.{loss}"
    assert (cfg.optim.lr, cfg.optim.momentum, cfg.optim.weight_decay) == (lr, momentum, 5e-4)
    assert cfg.optim.bias_lr_scale == 2.0 and cfg.optim.pretrained_lr_scale == 1.0
    assert cfg.data.batch_size * cfg.trainer.accumulate_grad_batches == images
    assert (cfg.trainer.max_steps, cfg.trainer.precision) == (steps, "32-true")
    assert cfg.trainer.gradient_clip_val is None and not cfg.callbacks.ema.enabled
    assert cfg.schedule._target_ == "fcnlab.training.optimizers.constant"
    assert (cfg.data.train_list, cfg.data.val_list) == ("sbd_train", "seg11valid")


@pytest.mark.parametrize("path", [*FILES, *map(Path, (f"{name}.yaml" for name in PRIMARY))], ids=str)
def test_every_file_starts_with_its_purpose(path: Path):
    assert (CONF / path).read_text().startswith("# ")


@pytest.mark.parametrize("name", ["fcn32s", "fcn16s", "fcn8s", "fcn8s_atonce"])
@pytest.mark.parametrize("backbone", ["tiny", "googlenet", "googlenet_bn", "resnet50"])
def test_a_model_config_builds_the_network(name: str, backbone: str, composed):
    cfg = composed(f"model={name}", f"model/backbone={backbone}", "model.backbone.weights=none")
    model = instantiate(cfg.model, _convert_="all")
    assert model.levels == {"fcn32s": (32,), "fcn16s": (32, 16)}.get(name, (32, 16, 8))
    assert model.skip_scales == ({16: 0.01, 8: 0.0001} if name == "fcn8s_atonce" else {})
    assert model.num_classes == 21


def test_all_mistakes_are_reported_at_once_with_the_nearest_name(composed):
    cfg = composed("+model.upsamplng=fixed", "+data.batchsize=4", "optim.lr=fast", "+trainer.max_stepz=3")
    with pytest.raises(ConfigError) as error:
        validate_config(cfg)
    output = str(error.value)
    assert "Unknown key model.upsamplng of fcnlab.models.FCN. Did you mean model.upsampling?" in output
    assert "Did you mean data.batch_size?" in output and "Did you mean trainer.max_steps?" in output
    assert "optim.lr must be a number of at least 0, got 'fast'." in output


def test_a_missing_value_is_named(composed):
    with pytest.raises(ConfigError, match=r"model\.backbone\.weights is not set"):
        validate_config(composed("model/backbone=googlenet"))


def test_a_value_outside_the_choices_is_refused(composed):
    with pytest.raises(ConfigError, match=r"upsampling must be 'fixed' or 'learned' or 'learned_all', got 'bicubic'\."):
        validate_config(composed("model.upsampling=bicubic"))


def test_a_target_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match=r"loss\._target_=fcnlab\.training\.losses\.Nothing cannot be imported"):
        validate_config(OmegaConf.create({"loss": {"_target_": "fcnlab.training.losses.Nothing"}}))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("..losses.Focal", "is not a dotted name"),
        (None, "None is not a dotted name"),
        ("math.pi", "it is a float, not a class or function"),
        ("fcnlab.models.fcn", "it is a module, not a class or function"),
    ],
)
def test_a_target_that_cannot_be_called_is_named(target, message):
    with pytest.raises(ConfigError, match=f"loss\\._target_=.* cannot be imported: .*{message}"):
        validate_config(OmegaConf.create({"loss": {"_target_": target}}))


@pytest.mark.parametrize("target", ["builtins.dict", "random.random", "numpy.add"])
def test_targets_without_a_signature_are_left_to_hydra(target):
    validate_config(OmegaConf.create({"loss": {"_target_": target}}))


def test_keys_that_are_not_strings_are_unknown():
    with pytest.raises(ConfigError, match=r"Unknown key loss\.5 of fcnlab\.models\.Tiny\. Available: padding"):
        validate_config(OmegaConf.create({"loss": {"_target_": "fcnlab.models.Tiny", 5: 3}}))


@pytest.mark.parametrize("key", ["_partial_", "_recursive_", "_convert_", "_args_"])
def test_hydra_keys_are_checked(key):
    with pytest.raises(ConfigError, match=f"loss\\.{key} must be .*, got 'x'"):
        validate_config(OmegaConf.create({"loss": {"_target_": "fcnlab.models.Tiny", key: "x"}}))


def test_a_missing_required_argument_is_named():
    with pytest.raises(ConfigError, match=r"model\.num_classes is not set, and fcnlab\.models\.fcn\.FCN requires it"):
        validate_config(
            OmegaConf.create(
                {"model": {"_target_": "fcnlab.models.FCN", "backbone": {"_target_": "fcnlab.models.Tiny"}}}
            )
        )


@pytest.mark.parametrize("text", ["${oc.env:RATE}", "${oc.env:RATE,fast}"])
def test_a_number_from_the_environment_gets_a_hint(composed, monkeypatch, text: str):
    monkeypatch.setenv("RATE", "0.05")
    with pytest.raises(ConfigError) as error:
        validate_config(composed("trainer=smoke", f"optim.lr='{text}'"))
    output, typed = str(error.value).split(" Type ")
    assert output.endswith("optim.lr must be a number of at least 0, got '0.05'. A value of the environment is a text.")
    (word,) = shlex.split(typed)
    validate_config(composed("trainer=smoke", word))


@pytest.mark.parametrize(("text", "value"), [("${oc.env:RATE}", "fast"), ("${oc.env:RATE}", "a,b"), ("0.1 s", "0.05")])
def test_a_text_that_is_not_a_number_gets_no_hint(composed, monkeypatch, text: str, value: str):
    monkeypatch.setenv("RATE", value)
    with pytest.raises(ConfigError, match=r"optim\.lr must be a number of at least 0, got '[^']*'\.$"):
        validate_config(composed("trainer=smoke", f"optim.lr='{text}'"))
