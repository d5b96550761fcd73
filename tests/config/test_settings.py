"""Test that every number of every option is validated; accepted extreme values are listed with the reason."""

import math
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fcnlab.config.locations import CONF
from fcnlab.config.validation import ConfigError, validate_config
from fcnlab.hydra_registration import register_schemas

GROUPS = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml") if path.parent != CONF)
OPTIONS = [path for path in GROUPS if path.parts[0] not in ("experiment", "hydra")]  # launchers check their own
REQUIRED_OVERRIDES = {
    "model/backbone=caffenet": ["model.backbone.weights=none"],
    "model/backbone=googlenet": ["model.backbone.weights=none"],
    "model/backbone=timm": ["model.backbone.name=convnext_tiny"],
    "model/backbone=torchvision": ["model.backbone.name=resnet18"],
    "data=folder": ["data.dataset.classes=[ground,cat]"],
    "loss=weighted": [f"loss.class_weights={[1.0] * 21}"],
}
ROOTS = {
    "train": [],
    "eval": [],
    "predict": ["checkpoint=x"],
    "doctor": [],
    "compare": ["runs=[a]"],
    "watch": [],
    "figure": ["runs=[a]"],
    "export": ["checkpoint=x", "format=onnx"],
    "card": ["checkpoint=x"],
    "bench": [],
    "wandb": ["action=push", "runs=[a]"],
}
ODD = {"-1": -1, "0": 0, "nan": math.nan, "inf": math.inf, "huge": 10**30}
ACCEPTED = {  # these odd values are accepted; all others are refused
    "0": {
        "warmup": "no warm-up",
        "power": "a constant rate",
        "lr": "nothing learns: to try a run's other parts",
        "weight_decay": "none",
        "bias_lr_scale": "biases rest",
        "pretrained_lr_scale": "the backbone rests",
        "momentum": "none",
        "betas": "none",
        "gamma": "plain cross-entropy",
        "class_weights": "a class that does not count; not all",
        "dropout": "none",
        "mean": "images as they are",
        "num_workers": "images are read in the process itself",
        "seed": "as good as any",
        "drawing_seed": "as good as any",
        "split_seed": "as good as any",
        "ignore_index": "an id like others",
        "every_n_minutes": "at every step",
        "keep_top": "none beside best and last",
        "levels": "the net says which it has, when it is built",
        "count": "none are drawn",
        "decay": "no average",
        "refresh_rate": "Lightning's for no bar",
        "rotate": "none",
        "smooth": "without this kernel",
        "appearance": "without this kernel",
        "num_images": "none are drawn",
        "samples": "none are drawn",
        "worst": "none are drawn",
        "table_images": "none are drawn",
        "alike_bits": "equal hashes alone",
        "port": "any free one",
    },
    "-1": {
        "mean": "of any network",
        "devices": "Lightning's for all",
        "levels": "as for 0",
        "max_epochs": "no limit: max_steps is one",
        "refresh_rate": "Lightning's for no bar",
    },
    "huge": {
        "best": "sweep.confirm refuses more than there are",
        "lr": "the run stops at the first loss that is no number",
        "mean": "as lr",
        "std": "as lr",
        "weight_decay": "as lr",
        "bias_lr_scale": "as lr",
        "pretrained_lr_scale": "as lr",
        "power": "the rate falls at once",
        "gamma": "hardly any pixel counts",
        "class_weights": "a mean is divided by them",
        "skip_scales": "as lr",
        "cell": "more than a crop: the loss says so before the first step, or one draw for the whole crop",
        "batch_size": "more than there are images: the data say so",
        "eval_batch_size": "at most all of a size",
        "num_workers": "as many as the machine bears",
        "prefetch_factor": "as many as memory holds",
        "width": "as much as memory holds",
        "num_train": "as many as the disk holds",
        "num_val": "as many as the disk holds",
        "every_n_minutes": "at validations alone",
        "keep_top": "all",
        "refresh_rate": "a bar that is drawn at the end",
        "patience": "it never stops",
        "max_steps": "as long as you like",
        "max_epochs": "as long as you like",
        "val_check_interval": "at the end alone",
        "accumulate_grad_batches": "as long as you like",
        "gradient_clip_val": "never clipped",
        "log_every_n_steps": "never",
        "limit_val_batches": "all",
        "limit_test_batches": "all",
        "devices": "Lightning says how many there are, before the first step",
        "num_nodes": "as devices",
        "radius": "OpenCV says so",
        "eps": "an average",
        "count": "a pixel each",
        "compactness": "squares",
        "iterations": "as long as you like",
        "smooth": "a weight",
        "smooth_sigma": "flat",
        "appearance": "a weight",
        "sigma": "flat",
        "colour_sigma": "flat",
        "factor": "it must divide the net's stride, which the net says",
        "levels": "as for 0",
        "threads": "the machine has fewer, which bench says",
        "worst": "all images",
    },
}


@pytest.fixture(scope="module")
def composed():
    """Compose a config like the command line does, with the schema of its root."""
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *words, name="train": without_folders(compose(name, overrides=list(words)))


def without_folders(cfg: DictConfig) -> DictConfig:
    """Remove ``${hydra:...}``, which exists only inside a run; the root keeps its schema."""
    places = ("best.dirpath", "top.dirpath", "last.dirpath", "sample_images.folder")
    for place in [f"callbacks.{place}" for place in places] + ["logger.tensorboard.save_dir"]:
        parent, _, key = place.rpartition(".")
        node = OmegaConf.select(cfg, parent)
        if node is not None and OmegaConf.is_interpolation(node, key):
            OmegaConf.update(cfg, place, "/nowhere")
    return cfg


def numbers(node, path: str = ""):
    """Yield the paths of numbers, also of those set by an interpolation."""
    if isinstance(node, dict):
        for key, child in node.items():
            yield from numbers(child, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for place, child in enumerate(node[:1]):
            yield from numbers(child, f"{path}[{place}]")
    elif isinstance(node, (int, float)) and not isinstance(node, bool):
        yield path


def put(cfg: DictConfig, place: str, value) -> None:
    """Set a value like OmegaConf.update, which treats a numeric key as text."""
    parent, _, key = place.rpartition(".")
    if key.isdigit():
        OmegaConf.select(cfg, parent)[int(key)] = value
    else:
        OmegaConf.update(cfg, place, value)


def is_accepted(cfg: DictConfig, place: str, value) -> bool:
    before = OmegaConf.select(cfg, place) if not place[-1].isdigit() else None
    try:
        put(cfg, place, value)
        validate_config(cfg)
        return True
    except (ConfigError, OmegaConfBaseException):
        return False
    finally:
        put(cfg, place, before if before is not None else 0.5)


def unlisted_accepted_values(cfg: DictConfig, places) -> list[str]:
    """Return accepted values that the table does not list."""
    validate_config(cfg)
    unlisted = []
    for place in places:
        name = [part for part in place.partition("[")[0].split(".") if not part.isdigit()][-1]
        for odd, value in ODD.items():
            if name not in ACCEPTED.get(odd, {}) and is_accepted(cfg, place, value):
                unlisted.append(f"{place}={odd}")
    return unlisted


@pytest.mark.parametrize("path", OPTIONS, ids=str)
def test_each_number_of_an_option_is_validated(path: Path, composed):
    option = f"{path.parent}={path.stem}"
    cfg = composed(
        option,
        *REQUIRED_OVERRIDES.get(option, []),
        name="eval" if path.parts[0] in ("inference", "postprocess") else "train",
    )
    tree = OmegaConf.to_container(OmegaConf.select(cfg, ".".join(path.parent.parts)), resolve=False)
    assert not unlisted_accepted_values(cfg, numbers(tree, ".".join(path.parent.parts)))


@pytest.mark.parametrize("verb", ROOTS)
def test_each_number_of_a_verb_is_validated(verb: str, composed):
    cfg = composed(*ROOTS[verb], name=verb)
    groups = {path.parts[0] for path in GROUPS}
    tree = {key: value for key, value in OmegaConf.to_container(cfg, resolve=False).items() if key not in groups}
    assert not unlisted_accepted_values(cfg, numbers(tree))
