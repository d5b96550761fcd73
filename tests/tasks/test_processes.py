"""Runs of several processes, as a user starts them."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.slow


def fcnlab(folder, *words: str) -> None:
    command = [sys.executable, "-m", "fcnlab", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=500)


def record(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize(("ranks", "pictures"), [(2, 7), (2, 8), (3, 7), (3, 8), (3, 9)])
def test_ranks_evaluate_each_picture_once(tmp_path, small, ranks, pictures):
    """The record of several ranks is the one that a single process makes of their checkpoint."""
    words = [*small, f"data.pictures.num_val={pictures}", "trainer.accelerator=cpu", "logger=wandb"]
    words += ["trainer=ddp", f"trainer.devices={ranks}", "trainer.max_steps=3", "trainer.val_check_interval=2"]
    fcnlab(tmp_path, "train", *words, "hydra.run.dir=run")
    checkpoint = "checkpoint=run/checkpoints/best.ckpt"
    fcnlab(tmp_path, "eval", checkpoint, "trainer.accelerator=cpu", "hydra.run.dir=alone")
    together, alone = tmp_path / "run", tmp_path / "alone"
    assert record(together)["protocol"]["pictures"] == pictures
    with np.load(together / "confusions.npz") as one, np.load(alone / "confusions.npz") as other:
        assert (one["names"] == other["names"]).all() and (one["matrices"] == other["matrices"]).all()
    assert record(together)["iou"] == record(alone)["iou"]
    assert len(list((together / "wandb").glob("offline-run-*"))) == 1
    assert not list(tmp_path.glob("outputs/train"))  # no stray folder of another rank


def test_two_ranks_train_on_the_batches_of_one(tmp_path, small):
    """2 x 2 pictures meet as 1 x 4 do, in a net without batch statistics: the weights agree but for rounding."""
    words = [word for word in small if "backbone" not in word]
    words += ["trainer.accelerator=cpu", "trainer.max_steps=4", "logger=csv", "loss=cross_entropy_sum"]
    words += ["optim=sgd", "optim.lr=0.01"]
    words += ["model/backbone=googlenet", "model.backbone.weights=none", "model.backbone.dropout=0.0"]
    one = ["trainer=auto", "hydra.run.dir=one", "data.batch_size=4", "trainer.log_every_n_steps=1"]
    two = ["trainer=ddp", "trainer.devices=2", "hydra.run.dir=two", "data.batch_size=2"]
    fcnlab(tmp_path, "train", *words, *one)
    fcnlab(tmp_path, "train", *words, *two, "trainer.log_every_n_steps=1")
    weights = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("one", "two")
    ]
    for key, one in weights[0].items():
        apart, size = (weights[1][key] - one).abs().max(), one.abs().max()
        assert apart <= 1e-3 * size and size > 0, key  # the heads started at zero: all that they hold was learned


# A net without batch statistics: shares of a batch make the same gradients as the batch.
PLAIN = ("trainer.accelerator=cpu", "logger=csv", "loss=cross_entropy_sum", "optim=sgd", "optim.lr=0.001",
         "model/backbone=googlenet", "model.backbone.weights=none", "model.backbone.dropout=0.0",
         "trainer.log_every_n_steps=1", "trainer.val_check_interval=4", "trainer.max_steps=12")  # fmt: skip


def stop_after(rows: int, folder, *words: str, signum: int = signal.SIGTERM) -> int:
    """Start a run, send a signal to its first process once so many rows are logged; give the exit code."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fcnlab", *words], cwd=folder.parent, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    curve, deadline = folder / "metrics.csv", time.monotonic() + 300
    while not (curve.is_file() and len(curve.read_text().splitlines()) > rows) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signum)
    return process.wait(timeout=120)


def last(folder) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(("workers", "accumulate", "rows"), [(0, 1, 3), (2, 1, 7), (0, 3, 2), (2, 3, 5)])
def test_two_ranks_go_on_as_if_they_had_never_stopped(tmp_path, small, workers, accumulate, rows):
    words = ["train", *small, "trainer.accelerator=cpu", "logger=csv", "trainer=ddp", "trainer.devices=2"]
    words += ["data.batch_size=2", f"data.num_workers={workers}", f"trainer.accumulate_grad_batches={accumulate}"]
    words += ["trainer.max_steps=12", "trainer.val_check_interval=4", "trainer.log_every_n_steps=1"]
    fcnlab(tmp_path, *words, "hydra.run.dir=straight")
    assert stop_after(rows, tmp_path / "stopped", *words, "hydra.run.dir=stopped") == 128 + signal.SIGTERM
    assert json.loads((tmp_path / "stopped" / "run.json").read_text())["status"] == "interrupted"
    assert rows <= last(tmp_path / "stopped")["global_step"] < 12
    fcnlab(tmp_path, *words, "hydra.run.dir=stopped", "checkpoint=last")
    one, other = (last(tmp_path / name)["state_dict"] for name in ("straight", "stopped"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    one, other = ((tmp_path / name / "metrics.csv").read_text() for name in ("straight", "stopped"))
    assert one == other


def test_two_ranks_stop_and_one_goes_on_with_the_next_batch(tmp_path, small):
    words = ["train", *(word for word in small if "backbone" not in word), *PLAIN]
    two = ["trainer=ddp", "trainer.devices=2", "data.batch_size=2"]
    one = ["trainer=auto", "data.batch_size=4"]
    fcnlab(tmp_path, *words, *one, "hydra.run.dir=straight")
    assert stop_after(5, tmp_path / "stopped", *words, *two, "hydra.run.dir=stopped") == 128 + signal.SIGTERM
    fcnlab(tmp_path, *words, *one, "hydra.run.dir=stopped", "checkpoint=last")
    assert "1 processes go on with a checkpoint of 2" in (tmp_path / "stopped" / "train.log").read_text()
    losses = []
    for name in ("straight", "stopped"):
        with (tmp_path / name / "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["train/loss"]]
        losses.append({int(row["step"]): float(row["train/loss"]) for row in rows})
    assert list(losses[0]) == list(losses[1]) == list(range(1, 13))
    # Rank 0 logs the sum over its own half of a batch; from where one process goes on, the sums are comparable.
    assert {step: losses[1][step] for step in range(9, 13)} == pytest.approx(
        {step: losses[0][step] for step in range(9, 13)}, rel=1e-3
    )
