"""Runs of several processes, as a user starts them."""

import json
import os
import subprocess
import sys

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


@pytest.mark.parametrize("pictures", [7, 8])
def test_two_ranks_evaluate_each_picture_once(tmp_path, small, pictures):
    """The record of two ranks is the one that a single process makes of their checkpoint."""
    words = [*small, f"data.pictures.num_val={pictures}", "trainer.accelerator=cpu", "logger=wandb"]
    words += ["trainer=ddp", "trainer.devices=2", "trainer.max_steps=3", "trainer.val_check_interval=2"]
    fcnlab(tmp_path, "train", *words, "hydra.run.dir=run")
    checkpoint = "checkpoint=run/checkpoints/best.ckpt"
    fcnlab(tmp_path, "eval", checkpoint, "trainer.accelerator=cpu", "hydra.run.dir=alone")
    together, alone = tmp_path / "run", tmp_path / "alone"
    assert record(together)["protocol"]["pictures"] == pictures
    with np.load(together / "confusions.npz") as one, np.load(alone / "confusions.npz") as other:
        assert (one["names"] == other["names"]).all() and (one["matrices"] == other["matrices"]).all()
    assert record(together)["iou"] == record(alone)["iou"]
    assert len(list((together / "wandb").glob("offline-run-*"))) == 1
    assert not list(tmp_path.glob("outputs/train"))  # no stray folder of the second rank


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
