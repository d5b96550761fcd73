"""Runs of several processes, as a user starts them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from conftest import SMALL

pytestmark = pytest.mark.slow


def fcnlab(folder, *words: str) -> None:
    command = [sys.executable, "-m", "fcnlab", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=500)


def record(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("pictures", [7, 8])
def test_two_ranks_evaluate_each_picture_once(tmp_path, pictures):
    """The record of two ranks is the one that a single process makes of their checkpoint."""
    small = [*SMALL, f"data.pictures.num_val={pictures}", "trainer.accelerator=cpu", "logger=wandb"]
    words = ["trainer=ddp", "trainer.devices=2", "trainer.max_steps=3", "trainer.val_check_interval=2"]
    fcnlab(tmp_path, "train", *small, *words, "hydra.run.dir=run")
    checkpoint = "checkpoint=run/checkpoints/best.ckpt"
    fcnlab(tmp_path, "eval", checkpoint, "trainer.accelerator=cpu", "hydra.run.dir=alone")
    together, alone = tmp_path / "run", tmp_path / "alone"
    assert record(together)["protocol"]["pictures"] == pictures
    with np.load(together / "confusions.npz") as one, np.load(alone / "confusions.npz") as other:
        assert (one["names"] == other["names"]).all() and (one["matrices"] == other["matrices"]).all()
    assert record(together)["iou"] == record(alone)["iou"]
    assert len(list((together / "wandb").glob("offline-run-*"))) == 1
    assert not list(tmp_path.glob("outputs/train"))  # no stray folder of the second rank


def test_two_ranks_train_on_the_batches_of_one(tmp_path):
    """Plain SGD without batch statistics' noise: losses agree to rounding when 2 x 2 pictures meet as 1 x 4 do."""
    small = [*SMALL, "trainer.accelerator=cpu", "trainer.max_steps=3", "logger=csv", "trainer.log_every_n_steps=1"]
    small += ["optim=sgd", "trainer.sync_batchnorm=true"]
    fcnlab(tmp_path, "train", *small, "trainer=auto", "hydra.run.dir=one", "data.batch_size=4")
    fcnlab(tmp_path, "train", *small, "trainer=ddp", "trainer.devices=2", "hydra.run.dir=two", "data.batch_size=2")
    one, two = (record(tmp_path / name)["protocol"]["pictures"] for name in ("one", "two"))
    assert one == two == 8
