"""Test runs of several processes, started like a user starts them."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent


def fcnlab(folder, *words: str) -> None:
    command = [sys.executable, "-m", "fcnlab", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=500)


def record(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("ranks", "images"),
    [(2, 7), (3, 8), *(pytest.param(*case, marks=pytest.mark.campaign) for case in ((2, 8), (3, 7), (3, 9)))],
)
def test_ranks_evaluate_each_image_once(tmp_path, small, ranks, images):
    """The record of several ranks equals the one of a single process that evaluates their checkpoint."""
    words = [*small, f"data.dataset.num_val={images}", "trainer.accelerator=cpu", "logger=wandb"]
    words += ["trainer=ddp", f"trainer.devices={ranks}", "trainer.max_steps=3", "trainer.val_check_interval=2"]
    fcnlab(tmp_path, "train", *words, "hydra.run.dir=run")
    checkpoint = "checkpoint=run/checkpoints/best.ckpt"
    fcnlab(tmp_path, "eval", checkpoint, "trainer.accelerator=cpu", "hydra.run.dir=alone")
    together, alone = tmp_path / "run", tmp_path / "alone"
    assert record(together)["protocol"]["images"] == images
    with np.load(together / "confusions.npz") as several_ranks, np.load(alone / "confusions.npz") as single_rank:
        assert (several_ranks["names"] == single_rank["names"]).all() and (
            several_ranks["matrices"] == single_rank["matrices"]
        ).all()
    assert record(together)["iou"] == record(alone)["iou"]
    assert (together / "predictions.zip").read_bytes() == (alone / "predictions.zip").read_bytes()
    assert len(list((together / "wandb").glob("offline-run-*"))) == 1
    assert not list(tmp_path.glob("outputs/train"))  # other ranks create no folders


def test_two_ranks_train_like_one_process_on_the_same_batches(tmp_path, small):
    """2 x 2 images give the gradients of 1 x 4, in a network without batch statistics: weights agree up to rounding."""
    words = [word for word in small if "backbone" not in word]
    words += ["trainer.accelerator=cpu", "trainer.max_steps=4", "logger=csv", "loss=cross_entropy_sum"]
    words += ["optim=sgd", "optim.lr=0.01"]
    words += ["model/backbone=googlenet", "model.backbone.weights=none", "model.backbone.dropout=0.0"]
    single_process = ["trainer=auto", "hydra.run.dir=one", "data.batch_size=4", "trainer.log_every_n_steps=1"]
    two = ["trainer=ddp", "trainer.devices=2", "hydra.run.dir=two", "data.batch_size=2"]
    fcnlab(tmp_path, "train", *words, *single_process)
    fcnlab(tmp_path, "train", *words, *two, "trainer.log_every_n_steps=1")
    weights = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("one", "two")
    ]
    for key, weight in weights[0].items():
        apart, size = (weights[1][key] - weight).abs().max(), weight.abs().max()
        assert apart <= 1e-3 * size and size > 0, key  # the heads started at zero: all of their values were learned


@pytest.fixture(scope="module")
def data_with_ignored_pixels(tmp_path_factory) -> Path:
    """Write 24 images of 64 x 64 of three classes with more and more ignored pixels; every sixth is fully ignored."""
    root, rng = tmp_path_factory.mktemp("unequal"), np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 2)):
        for place in range(count):
            image, mask = rng.integers(0, 256, (64, 64, 3), np.uint8), rng.integers(0, 3, (64, 64), np.uint8)
            mask[: 64 * (place % 6) // 5 if split == "train" else 0] = 255
            for folder, pixels in (("images", image), ("masks", mask)):
                path = root / folder / split / f"{place}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return root


PARTS = {
    "2 ranks": ("trainer=ddp", "trainer.devices=2", "data.batch_size=2"),
    "2 ranks, 2 batches": (
        "trainer=ddp",
        "trainer.devices=2",
        "data.batch_size=1",
        "trainer.accumulate_grad_batches=2",
    ),
    "4 batches": ("trainer=auto", "data.batch_size=1", "trainer.accumulate_grad_batches=4"),
}


@pytest.mark.parametrize(
    "loss",
    [
        ("cross_entropy",),
        pytest.param(("weighted", "loss.class_weights=[0.2,1,5]"), marks=pytest.mark.campaign),
        pytest.param(("focal",), marks=pytest.mark.campaign),
    ],
    ids=str,
)
def test_accumulated_batches_equal_one_large_batch(tmp_path, data_with_ignored_pixels, loss):
    """Tested with unequal ignored pixels and clipped gradients, on the heads, which started at zero, and on the log."""
    words = [
        "train",
        "data=folder",
        f"data.root={data_with_ignored_pixels}",
        "data.dataset.classes=[soil,leaf,stem]",
        f"loss={loss[0]}",
    ]
    words += [
        *loss[1:],
        "data.crop_size=64",
        "data.num_workers=0",
        "trainer.accelerator=cpu",
        "logger=csv",
        "optim=sgd",
    ]
    words += ["optim.lr=0.002", "model/backbone=googlenet", "model.backbone.weights=none", "model.backbone.dropout=0.0"]
    length = ["trainer.max_steps=8", "trainer.val_check_interval=8", "trainer.log_every_n_steps=1"]
    results = {}
    for name, parts in {"at once": ("trainer=auto", "data.batch_size=4"), **PARTS}.items():
        folder = tmp_path / name.replace(",", "")
        fcnlab(tmp_path, *words, *parts, *length, f"hydra.run.dir={folder}")
        heads = [value.flatten() for key, value in last(folder)["state_dict"].items() if ".heads." in key]
        results[name] = torch.cat(heads), [float(row["train/loss"]) for row in curves(folder) if "train/loss" in row]
    expected_heads, losses = results.pop("at once")
    assert len(losses) == 8 and expected_heads.norm() > 0
    for name, (heads, logged) in results.items():
        assert logged == pytest.approx(losses, rel=1e-5), name
        assert (heads - expected_heads).norm() < 1e-5 * expected_heads.norm(), name


def test_two_ranks_train_a_network_without_coarse_heads(tmp_path, small):
    """DDP waits for the gradient of every parameter that requires one; most of this backbone gets none."""
    words = [*small, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_steps=3"]
    fcnlab(tmp_path, "train", *words, "trainer.val_check_interval=3", "model.levels=[8]", "hydra.run.dir=run")
    assert record(tmp_path / "run")["protocol"]["images"] == 8


def test_two_ranks_cause_no_deprecation_warning(tmp_path, small):
    """torch deprecates broadcast_buffers, but older versions that fcnlab supports do not have its successor."""
    words = [*small, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_steps=2", "logger=csv"]
    command = [sys.executable, "-m", "fcnlab", "train", *words, "trainer.val_check_interval=2", "hydra.run.dir=run"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    completed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert completed.returncode == 0, completed.stderr
    output = completed.stdout + completed.stderr + (tmp_path / "run" / "train.log").read_text()
    assert "deprecat" not in output and "broadcast_buffers" not in output


@pytest.mark.parametrize("accumulate", [1, 3])
def test_ranks_make_two_collective_calls_per_step(tmp_path, small, accumulate):
    """This network's gradients are one bucket: one all-reduce of them, one of the loss's total and count, and
    none in a batch that only accumulates.

    Once, after the first step, DDP reorders its buckets, with two broadcasts.
    """
    words = [*small, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "data.batch_size=2", "logger=csv"]
    words += [f"trainer.accumulate_grad_batches={accumulate}", "trainer.max_steps=5", "trainer.val_check_interval=5"]
    file = tmp_path / "calls.json"
    counter = ["+callbacks.count._target_=counter.CountCollectives", f"+callbacks.count.file={file}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "fcnlab", "train", *words, *counter]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)
    calls = json.loads(file.read_text())
    assert len(calls) == 5 * accumulate - 1  # all but the first batch
    for batch, names in enumerate(calls, start=2):
        assert names.pop("c10d::broadcast_", 0) == (2 if batch == accumulate + 1 else 0)
        assert names == ({"c10d::allreduce_": 2} if batch % accumulate == 0 else {})


# A network without batch statistics: parts of a batch give the same gradients as the batch.
PLAIN = ("trainer.accelerator=cpu", "logger=csv", "loss=cross_entropy_sum", "optim=sgd", "optim.lr=0.001",
         "model/backbone=googlenet", "model.backbone.weights=none", "model.backbone.dropout=0.0",
         "trainer.log_every_n_steps=1", "trainer.val_check_interval=4", "trainer.max_steps=12")  # fmt: skip


def stop_at(batch: int, folder, *words: str) -> None:
    """Start a run that gets a SIGTERM in its n-th batch, and check how it ends."""
    stopper = ("+callbacks.stop._target_=stopper.StopAt", f"+callbacks.stop.batch={batch}")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "fcnlab", *words, *stopper, f"hydra.run.dir={folder}"]
    assert subprocess.run(command, cwd=folder.parent, env=environment, timeout=300).returncode == 128 + signal.SIGTERM
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"


def last(folder) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def curves(folder) -> list[dict[str, str]]:
    """Return the logged values as text; a class that is first scored after the stop may be in another column."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


# 24 images, 2 x 2 at a time: an epoch has 6 batches.
TWO = ("train", "trainer.accelerator=cpu", "logger=csv", "trainer=ddp", "trainer.devices=2", "data.batch_size=2",
       "trainer.max_steps=8", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1")  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, small):
    """Return a function that trains two uninterrupted ranks with a number of accumulated batches."""
    runs = {}

    def run(accumulate: int) -> Path:
        if accumulate not in runs:
            folder = tmp_path_factory.mktemp("straight")
            words = (*TWO, *small, "data.batch_size=2", f"trainer.accumulate_grad_batches={accumulate}")
            fcnlab(folder, *words, "hydra.run.dir=run")
            runs[accumulate] = folder / "run"
        return runs[accumulate]

    return run


@pytest.mark.parametrize(
    ("workers", "accumulate", "batch"),  # batch 3 is inside an epoch, 6 at its end
    [  # each pair of values once; the campaigns have the other combinations
        *((0, 1, 3), (0, 3, 6), (2, 1, 6), (2, 3, 3)),
        *(pytest.param(*case, marks=pytest.mark.campaign) for case in ((0, 1, 6), (0, 3, 3), (2, 1, 3), (2, 3, 6))),
    ],
)
def test_two_stopped_ranks_resume_as_if_never_stopped(tmp_path, small, uninterrupted, workers, accumulate, batch):
    words = (*TWO, *small, "data.batch_size=2", f"data.num_workers={workers}")
    words += (f"trainer.accumulate_grad_batches={accumulate}",)
    stop_at(batch, tmp_path / "run", *words)
    assert last(tmp_path / "run")["global_step"] == batch // accumulate
    fcnlab(tmp_path, *words, "hydra.run.dir=run", "checkpoint=last")
    expected, actual = (last(folder)["state_dict"] for folder in (uninterrupted(accumulate), tmp_path / "run"))
    assert all(torch.equal(expected[key], actual[key]) for key in expected)
    assert curves(uninterrupted(accumulate)) == curves(tmp_path / "run")


def test_one_process_resumes_a_run_of_two_ranks_at_the_next_batch(tmp_path, small):
    words = ["train", *(word for word in small if "backbone" not in word), *PLAIN]
    two = ["trainer=ddp", "trainer.devices=2", "data.batch_size=2"]
    single_process = ["trainer=auto", "data.batch_size=4"]
    fcnlab(tmp_path, *words, *single_process, "hydra.run.dir=straight")
    stop_at(5, tmp_path / "stopped", *words, *two)
    assert last(tmp_path / "stopped")["global_step"] == 5
    fcnlab(tmp_path, *words, *single_process, "hydra.run.dir=stopped", "checkpoint=last")
    assert "1 processes resume a checkpoint of 2" in (tmp_path / "stopped" / "train.log").read_text()
    losses = []
    for name in ("straight", "stopped"):
        with (tmp_path / name / "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["train/loss"]]
        losses.append({int(row["step"]): float(row["train/loss"]) for row in rows})
    assert list(losses[0]) == list(losses[1]) == list(range(1, 13))
    assert list(losses[1].values()) == pytest.approx(list(losses[0].values()), rel=1e-3)
