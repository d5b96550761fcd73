"""Write run folders like those of training runs, without training."""

import csv
import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy import ndarray

from fcnlab.comparison.runs import read_run
from fcnlab.runs.lineage import TrainingRun, as_facts
from fcnlab.runs.prediction_archive import encode, write_archive
from fcnlab.runs.score_record import write_record

CLASSES = ("background", "cat", "dog", "cow")
PROTOCOL = {
    "set": "toys val",
    "images": 36,
    "of": 36,
    "resolution": "native",
    "ignored_pixels": "are not counted",
    "absent_classes": "left out",
    "inference": "whole",
    "postprocess": "none",
    "precision": "32-true",
    "padded_samples": 0,
}
PALETTE = np.array([(0, 0, 0), (128, 0, 0), (0, 100, 200), (90, 90, 0)], np.uint8)


def toy_matrices(quality: float, images: int = 36, seed: int = 0, classes: int = len(CLASSES)) -> ndarray:
    """Confusions of a model that is right on about ``quality`` of the pixels; the ground truth is always the same."""
    sizes = np.random.default_rng(7).integers(1, 500, (images, classes))
    rng = np.random.default_rng(seed)
    matrices = np.zeros((images, classes, classes), np.int64)
    for image, row in enumerate(sizes):
        for label, size in enumerate(row):
            right = rng.binomial(size, quality)
            wrong = rng.multinomial(size - right, np.full(classes - 1, 1 / (classes - 1)))
            matrices[image, label] = np.insert(wrong, label, right)
    return matrices


def composed(model: str, settings: dict) -> dict:
    """Return a config as Hydra writes it: the seed of the data is that of the run."""
    tree = {
        "model": {
            "_target_": "fcnlab.models.FCN",
            "levels": {"fcn32s": [32], "fcn16s": [32, 16]}.get(model, [32, 16, 8]),
        },
        "optim": {"_target_": "fcnlab.training.optimizers.adamw", "lr": 0.002},
        "data": {"_target_": "fcnlab.data.DataModule", "root": "data", "seed": "${seed}", "augment": "${augment}"},
        "augment": {"scale": [0.5, 2.0]},
        "logger": {},
        "checkpoint": None,
        "stages": [],
        "seed": 1,
    }
    for path, value in settings.items():
        *parents, last = path.split(".")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return tree


def dump(tree: dict) -> str:
    """Dump YAML without aliases, as OmegaConf does."""
    return yaml.safe_dump(json.loads(json.dumps(tree)))


def resolved(tree: dict) -> dict:
    data = tree["data"] | {"augment": tree["augment"]}
    return tree | {"data": data | ({"seed": tree["seed"]} if data["seed"] == "${seed}" else {})}


SELECTION = {"checkpoint": "best", "monitor": "val/miou", "mode": "max", "set": "toys val", "list": "val", "step": 40}
SELECTION |= {"among": 8, "val_miou": 0.5, "same_images": True, "shared_images": 36, "stopped_early": False}


def write_run(
    folder: Path,
    matrices: ndarray | None = None,
    model: str = "fcn8s",
    seed: int = 1,
    settings: dict | None = None,
    options: dict | None = None,
    names: list[str] | None = None,
    classes: tuple[str, ...] = CLASSES,
    protocol: dict | None = None,
    status: str = "finished",
    verb: str = "train",
    typed: list[str] | None = None,
    source: str | None = None,
    earlier: list[dict] | None = None,
    torch: str = "2.9.0",
    **facts,
) -> Path:
    """Write the files of ``fcnlab train``, with its own writer where that needs no torch."""
    matrices = toy_matrices(0.7, seed=seed) if matrices is None else matrices
    names = names or [f"image_{place:03}" for place in range(len(matrices))]
    tree = composed(model, {"seed": seed, **(settings or {})})
    choices = {
        "model": model,
        "optim": "adamw",
        "data": "toys",
        "experiment": None,
        "logger": "csv",
        "hydra/launcher": "x",
    }
    typed = [f"{key}={value}" for key, value in (settings or {}).items()] if typed is None else typed
    hydra = {
        "job": {"config_name": verb, "name": verb},
        "overrides": {"task": [f"model={model}", f"seed={seed}", *typed]},
        "runtime": {"choices": choices | (options or {}), "cwd": str(folder.parent), "output_dir": str(folder)},
    }
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(dump(tree))
    (folder / ".hydra" / "hydra.yaml").write_text(dump({"hydra": hydra}))
    if verb == "train":
        (folder / "config.yaml").write_text(dump(resolved(tree)))
        times = {"started": "2026-11-24T10:00:00+00:00", "ended": f"2026-11-24T10:{10 + seed}:00+00:00"}
        began = {"source": {"fcnlab": source}} if source else {}
        began |= {"earlier": earlier or []}
        (folder / "run.json").write_text(json.dumps({"status": status, "starts": 1, "reason": "why", **times, **began}))
    if status == "finished":
        cost = {"parameters": 1_000_000 * len(tree["model"]["levels"]), "gmacs_per_image": 2.5, "gmacs_at": [9, 9]}
        cost |= {"images_per_second": 10.0, "peak_memory_mib": 100}
        provenance = {"commit": "8c0ffee" * 5, "versions": {"torch": torch}, "device": "cpu: x86_64"}
        provenance |= {"source": {"fcnlab": source}} if source else {}
        count = {"images": len(matrices), "of": len(matrices)}
        protocol = PROTOCOL | count | (protocol or {})
        selection = SELECTION if verb == "train" else None
        parts = {"protocol": protocol, "cost": cost, "provenance": provenance, "selection": selection}
        write_record(folder, "val", names, classes, matrices, **parts)
        if facts:  # also damaged ones, which the writer does not support
            path = folder / "metrics.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    with (folder / "metrics.csv").open("w", newline="") as file:
        rows = [
            ["step", "epoch", "train/loss", "val/miou"],
            [10, 0, 2.0, ""],
            [20, 0, 1.0, 0.2],
            [40, 1, 0.5, 0.3 + seed / 100],
        ]
        csv.writer(file).writerows(rows)
    return folder


def write_run_with_predictions(folder: Path, quality: float, names: list[str] | None = None, **kwargs) -> Path:
    """Write a run whose predictions are right on about ``quality`` of the pixels, with its predictions.zip."""
    names = names or [f"image_{place:03}" for place in range(36)]
    truth, rng, size = np.random.default_rng(7), np.random.default_rng(kwargs.get("seed", 1)), len(CLASSES)
    matrices, images = np.zeros((len(names), size, size), np.int64), {}
    for matrix, name in zip(matrices, names, strict=True):
        target = truth.integers(0, size, (12, 16), dtype=np.uint8)
        right = rng.random(target.shape) < quality
        prediction = np.where(right, target, rng.integers(0, size, target.shape)).astype(np.uint8)
        target[0] = 255
        np.add.at(matrix, (target[1:], prediction[1:]), 1)
        images[name] = encode(np.full((3, 12, 16), 90, np.uint8), target, prediction, PALETTE)
    write_run(folder, matrices, names=names, **kwargs)
    write_archive(folder / "predictions.zip", images)
    return folder


def trained(folder: Path) -> dict:
    """Return what the checkpoints of a run contain about it, for the metrics.json of an evaluation."""
    run = read_run(folder)
    training = TrainingRun(
        seed=run.seed,
        options={group: option for group, option in run.options.items() if group not in ("inference", "postprocess")},
        settings={path: value for path, value in run.settings.items() if not path.startswith("scoring.")},
        environment=run.environment,
        root=str(folder.parent / run.settings["data.root"]),
    )
    return as_facts(training, status="finished", step=40)


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """Write a run's folder below ``runs/``, without fsync."""
    monkeypatch.setattr("fcnlab.files.writing._sync", lambda path: None)

    def make(name: str, *args, **kwargs) -> Path:
        return write_run(tmp_path / "runs" / name, *args, **kwargs)

    return make


@cache
def _swept(folder: Path) -> Path:
    """Write runs of three models by three seeds with clearly different scores."""
    for place, (model, quality) in enumerate({"fcn32s": 0.5, "fcn16s": 0.7, "fcn8s": 0.9}.items()):
        for seed in (1, 2, 3):
            matrices = toy_matrices(quality + seed / 100, seed=seed)
            write_run(folder / str(3 * place + seed - 1), matrices, model=model, seed=seed, typed=[])
    return folder


@pytest.fixture
def sweep(make_run, tmp_path, tmp_path_factory):
    """Write three models by three seeds in ``runs/``; return the folder."""
    original = _swept(tmp_path_factory.getbasetemp() / "swept")
    shutil.copytree(original, tmp_path / "runs", dirs_exist_ok=True)
    return tmp_path / "runs"
