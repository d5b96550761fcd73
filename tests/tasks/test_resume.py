"""An interrupted and resumed run ends with the weights and the exact metrics.csv of an uninterrupted one."""

import copy
import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch

from fcnlab.data.samples import EvaluationSamples, TrainingSamples
from fcnlab.errors import WriteError
from fcnlab.training.callbacks import AtomicCheckpointIO
from fcnlab.training.callbacks.metrics_file import MetricsCsv
from fcnlab.training.callbacks.resume import check_optimizer_state
from fcnlab.training.segmenter import Segmenter

# 24 images in batches of 4: an epoch has 6 batches.
LENGTH = ("trainer.max_steps=9", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1")


def curves(folder: Path) -> list[dict[str, str]]:
    """Return the logged values as text: a resumed run may have its columns in another order."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the EMA weights and the weights that training continues with."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    plain = checkpoint.get("current_model_state", {})
    return checkpoint["state_dict"] | {f"current.{key}": value for key, value in plain.items()}


def assert_same_end(expected: Path, actual: Path) -> None:
    first, second = weights(expected), weights(actual)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert curves(expected) == curves(actual)
    scores = [json.loads((folder / "metrics.json").read_text()) for folder in (expected, actual)]
    assert scores[0]["miou"] == scores[1]["miou"] and scores[0]["iou"] == scores[1]["iou"]


def send(signum: int):
    return lambda: os.kill(os.getpid(), signum)


def status(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text())["status"]


# (workers, accumulated batches, batch of the stop) of a run of nine steps. The campaigns have the other combinations:
# how workers hand out images does not depend on the batch at which the run stopped.
STOPS = {
    "fast": [(0, 1, 3)],
    "slow": [(0, 1, 4), (0, 1, 6), (0, 3, 3), (0, 3, 7), (0, 3, 12), (2, 1, 3), (2, 1, 7), (2, 3, 4), (2, 3, 6)],
    "campaign": [(0, 1, 7), (0, 3, 4), (0, 3, 6), (2, 1, 4), (2, 1, 6), (2, 3, 3), (2, 3, 7), (2, 3, 12)],
}


@pytest.mark.parametrize(
    ("workers", "accumulate", "batch"),
    [
        *STOPS["fast"],
        *(pytest.param(*stop, marks=pytest.mark.slow) for stop in STOPS["slow"]),
        *(pytest.param(*stop, marks=[pytest.mark.slow, pytest.mark.campaign]) for stop in STOPS["campaign"]),
    ],
)
def test_a_run_stopped_at_any_batch_resumes_to_the_same_end(
    trained_once, train, train_code, at_call, tmp_path, workers, accumulate, batch
):
    settings = (*LENGTH, f"data.num_workers={workers}", f"trainer.accumulate_grad_batches={accumulate}")
    uninterrupted = trained_once(*settings, folder="straight")
    at_call(Segmenter, "training_step", batch, send(signal.SIGTERM))
    assert train_code(*settings, folder="stopped") == 128 + signal.SIGTERM
    stopped = tmp_path / "stopped"
    assert status(stopped) == "interrupted" and not (stopped / "metrics.json").exists()
    assert train("checkpoint=auto", *settings, folder="stopped") == stopped
    assert status(stopped) == "finished"
    assert_same_end(uninterrupted, stopped)


@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
@pytest.mark.parametrize("image", [3, 10, 2 + 8 * 4 + 3], ids=["first", "first's last image", "the run's last"])
def test_an_interrupted_validation_is_repeated(trained_once, train, train_code, at_call, signum, image):
    """Validations use eight images after steps 2, 4, 6, 8 and 9; Lightning's sanity check uses two before the first."""
    uninterrupted = trained_once(*LENGTH, folder="straight")
    at_call(Segmenter, "validation_step", image, send(signum))
    assert train_code(*LENGTH, folder="stopped") == 128 + signum
    assert_same_end(uninterrupted, train("checkpoint=auto", *LENGTH, folder="stopped"))


def test_every_random_stream_resumes(whole_probe, train, train_code, at_call, monkeypatch):
    """The loss draws from Python's and NumPy's global generators, as a user's loss might; dropout uses torch's."""
    import random

    import numpy as np

    step = Segmenter._step

    def noisy(self, batch, stage):
        result = step(self, batch, stage)
        if stage == "train":
            result["loss"] = result["loss"] * (1 + random.random() + np.random.rand() + torch.rand(()))
        return result

    monkeypatch.setattr(Segmenter, "_step", noisy)
    uninterrupted = train(*LENGTH, folder="straight")
    at_call(Segmenter, "training_step", 5, send(signal.SIGTERM))
    assert train_code(*LENGTH, folder="stopped") == 128 + signal.SIGTERM
    assert_same_end(uninterrupted, train("checkpoint=auto", *LENGTH, folder="stopped"))


def test_a_run_stopped_repeatedly_resumes_to_the_same_end(trained_once, train, train_code, at_call, tmp_path):
    uninterrupted = trained_once(*LENGTH, folder="straight")
    for _ in range(4):
        at_call(Segmenter, "training_step", 2, send(signal.SIGTERM))
        assert train_code("checkpoint=auto", *LENGTH, folder="stopped") == 128 + signal.SIGTERM
    assert_same_end(uninterrupted, train("checkpoint=auto", *LENGTH, folder="stopped"))
    assert json.loads((tmp_path / "stopped" / "run.json").read_text())["starts"] == 5


def test_a_run_stopped_while_scoring_the_best_weights_resumes(trained_once, train, train_code, at_call, tmp_path):
    uninterrupted = trained_once(*LENGTH, folder="straight")
    at_call(Segmenter, "test_step", 3, send(signal.SIGTERM))
    assert train_code(*LENGTH, folder="stopped") == 128 + signal.SIGTERM
    assert_same_end(uninterrupted, train("checkpoint=auto", *LENGTH, folder="stopped"))


def test_early_stopping_state_is_restored(trained_once, train, train_code, at_call, tmp_path):
    settings = (
        *LENGTH, "callbacks.early_stopping.enabled=true", "callbacks.early_stopping.patience=2", "optim.lr=1e-12",
    )  # fmt: skip
    uninterrupted = trained_once(*settings, folder="straight")
    assert max(int(row["step"]) for row in curves(uninterrupted)) < 9
    at_call(Segmenter, "training_step", 3, send(signal.SIGTERM))
    assert train_code(*settings, folder="stopped") == 128 + signal.SIGTERM
    at_call(Segmenter, "test_step", 1, send(signal.SIGTERM))
    assert train_code("checkpoint=auto", *settings, folder="stopped") == 128 + signal.SIGTERM
    assert_same_end(uninterrupted, train("checkpoint=auto", *settings, folder="stopped"))


def test_an_unreadable_image_loses_no_step(trained_once, train, train_code, at_call, tmp_path, capsys):
    def unreadable():
        raise OSError("the data folder is gone")

    uninterrupted = trained_once(*LENGTH, "data.num_workers=0", folder="straight")
    at_call(EvaluationSamples, "__getitem__", 2 + 8 + 3, unreadable)  # inside the second validation
    assert train_code(*LENGTH, "data.num_workers=0", folder="stopped") == 1
    assert status(tmp_path / "stopped") == "failed"
    checkpoint = torch.load(tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert_same_end(uninterrupted, train("checkpoint=auto", *LENGTH, folder="stopped"))


@pytest.mark.slow
def test_a_worker_killed_while_a_row_is_logged_loses_no_row(
    trained_once, train, train_code, at_call, monkeypatch, tmp_path
):
    """torch's handler of SIGCHLD raises at any time: here after a step, before its row is logged.

    All children are killed, because an earlier test of this process may have left one.
    """
    loader = torch.utils.data.dataloader._MultiProcessingDataLoaderIter
    monkeypatch.setattr(loader._try_get_data, "__defaults__", (0.2,))  # seconds between checks of the workers

    def kill_the_workers():
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        time.sleep(0.2)  # the signal arrives

    settings = (*LENGTH, "data.num_workers=1")
    uninterrupted = trained_once(*settings, folder="straight")
    monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_SIGCHLD_handler_set", False)  # as in a new process
    at_call(MetricsCsv, "log_metrics", 4, kill_the_workers)  # of step 3; before it, a validation
    assert train_code(*settings, folder="stopped") == 1
    assert status(tmp_path / "stopped") == "failed"
    assert_same_end(uninterrupted, train("checkpoint=auto", *settings, folder="stopped"))


def test_checkpoints_are_saved_every_n_minutes(train_code, at_call, tmp_path):
    """Simulates a kill by an error inside a step, after which nothing is saved."""

    def broken():
        raise MemoryError

    at_call(Segmenter, "training_step", 6, broken)
    no_validation = ("trainer.max_steps=9", "trainer.val_check_interval=9")
    assert train_code(*no_validation, "checkpointing.every_n_minutes=0") == 1
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 5


def test_a_full_disk_keeps_the_older_checkpoint_and_is_reported(
    trained_once, train, train_code, at_call, monkeypatch, tmp_path, capsys
):
    uninterrupted = trained_once(*LENGTH, folder="straight")
    fsync = os.fsync

    def full(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink().name.endswith(".ckpt.part"):
            raise OSError(28, "No space left on device")
        fsync(handle)

    at_call(Segmenter, "training_step", 4, lambda: monkeypatch.setattr(os, "fsync", full))
    assert train_code(*LENGTH, folder="stopped") == 1
    output = capsys.readouterr().err
    assert "No space left on device" in output and "Traceback" not in output
    monkeypatch.setattr(os, "fsync", fsync)
    checkpoints = tmp_path / "stopped" / "checkpoints"
    assert not list(checkpoints.glob("*.part"))
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 2
    assert_same_end(uninterrupted, train("checkpoint=auto", *LENGTH, folder="stopped"))


@pytest.mark.slow
def test_the_w_and_b_run_is_resumed(train, train_code, at_call, tmp_path):
    settings = (*LENGTH, "logger=wandb", "logger.wandb.mode=offline")
    at_call(Segmenter, "training_step", 5, send(signal.SIGTERM))
    assert train_code(*settings) == 128 + signal.SIGTERM
    run_id = json.loads((tmp_path / "run" / "run.json").read_text())["wandb"]
    train("checkpoint=auto", *settings)
    parts = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(parts) == 2 and {part.name.rsplit("-", 1)[1] for part in parts} == {run_id}


def test_accumulation_to_the_same_batch_size_resumes_without_warning(train, train_code, at_call, tmp_path):
    """A step uses 4 images at once or 2 and 2: the run resumes with the same images, without a warning."""
    at_call(Segmenter, "training_step", 3, send(signal.SIGTERM))
    assert train_code(*LENGTH) == 128 + signal.SIGTERM
    more = ("data.batch_size=2", "trainer.accumulate_grad_batches=2", "trainer.max_steps=4")
    folder = train("checkpoint=last", *LENGTH, *more)
    assert "images now, but took" not in (folder / "train.log").read_text()
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert progress["current"]["completed"] == progress["total"]["completed"] == 8  # batches of two


@pytest.mark.slow
def test_a_run_limited_by_epochs_resumes(trained_once, train, train_code, at_call):
    settings = (*LENGTH, "trainer.max_steps=-1", "trainer.max_epochs=2")
    uninterrupted = trained_once(*settings, folder="straight")
    at_call(Segmenter, "training_step", 8, send(signal.SIGTERM))
    assert train_code(*settings, folder="stopped") == 128 + signal.SIGTERM
    assert_same_end(uninterrupted, train("checkpoint=auto", *settings, folder="stopped"))


def test_a_run_stopped_before_its_first_resumed_step_resumes(whole_probe, train, train_code, at_call, monkeypatch):
    """The earlier checkpoint is unchanged: it must not get the random state of the new process."""
    step = Segmenter._step

    def noisy(self, batch, stage):
        result = step(self, batch, stage)
        return result | ({"loss": result["loss"] * torch.rand(())} if stage == "train" else {})

    def unreadable():
        raise OSError("not now")

    monkeypatch.setattr(Segmenter, "_step", noisy)
    settings = (*LENGTH, "trainer.log_every_n_steps=4")
    uninterrupted = train(*settings, folder="straight")
    at_call(Segmenter, "training_step", 6, send(signal.SIGTERM))
    assert train_code(*settings, folder="stopped") == 128 + signal.SIGTERM
    at_call(TrainingSamples, "__getitem__", 1, unreadable)
    assert train_code("checkpoint=auto", *settings, folder="stopped") == 1
    at_call(TrainingSamples, "__getitem__", 10**9, unreadable)
    assert_same_end(uninterrupted, train("checkpoint=auto", *settings, folder="stopped"))


def test_the_best_few_are_kept_beside_best_and_last(train):
    folder = train(*LENGTH, "checkpointing.keep_top=2", "optim.lr=0.05")
    scores = {int(row["step"]): float(row["val/miou"]) for row in curves(folder) if "val/miou" in row}
    kept = {path.stem for path in (folder / "checkpoints").iterdir()} - {"best", "last"}
    kept_scores = sorted((scores[int(name.partition("step=")[2])] for name in kept), reverse=True)
    assert kept_scores == sorted(scores.values(), reverse=True)[:2]
    assert all(name.startswith(f"miou={scores[int(name.partition('step=')[2])]:.4f}-") for name in kept)


@pytest.mark.slow
@pytest.mark.parametrize("failing", [2, 3], ids=["the best few", "last"])
@pytest.mark.parametrize("keep", [1, 2])
def test_a_disk_full_after_saving_best_keeps_the_best_few(trained_once, train, train_code, at_call, keep, failing):
    """The disk is full in the first validation, so the run resumes from best.ckpt, which is written first."""
    settings = (*LENGTH, "trainer.max_steps=4", f"checkpointing.keep_top={keep}", "optim.lr=0.05")
    uninterrupted = trained_once(*settings, folder="straight")

    def full():
        raise WriteError("no space left on the device")

    at_call(AtomicCheckpointIO, "save_checkpoint", failing, full)
    assert train_code(*settings, folder="stopped") == 1
    at_call(AtomicCheckpointIO, "save_checkpoint", 10**9, full)
    resumed = train("checkpoint=auto", *settings, folder="stopped")
    assert_same_end(uninterrupted, resumed)
    assert best_few(resumed) == best_few(uninterrupted) and len(best_few(uninterrupted)) == keep


def best_few(folder: Path) -> dict[str, float]:
    """Return the scores in the last checkpoint, and check that they are those of the files in its folder."""
    callbacks = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    state = next(state for key, state in callbacks.items() if key.startswith("TopCheckpoints"))
    scores = {Path(path).name: float(score) for path, score in state["best_k_models"].items()}
    assert scores.keys() == {path.name for path in (folder / "checkpoints").glob("miou=*")}
    for name in scores:
        checkpoint = torch.load(folder / "checkpoints" / name, weights_only=True)
        assert checkpoint["fcnlab"]["selection"]["val_miou"] == scores[name]
        assert f"step={checkpoint['global_step']}." in name
    return scores


@pytest.mark.parametrize("off", ["best", "ema"])
def test_runs_without_best_checkpoint_or_ema_weights_resume(trained_once, train, train_code, at_call, off):
    settings = (*LENGTH, f"callbacks.{off}.enabled=false", f"checkpointing.score={'last' if off == 'best' else 'best'}")
    uninterrupted = trained_once(*settings, folder="straight")
    at_call(Segmenter, "test_step", 3, send(signal.SIGTERM))
    assert train_code(*settings, folder="stopped") == 128 + signal.SIGTERM
    assert_same_end(uninterrupted, train("checkpoint=auto", *settings, folder="stopped"))


def test_a_moved_folder_keeps_its_best_checkpoint(trained_once, train, train_code, at_call, tmp_path):
    settings = (*LENGTH, "optim.lr=0.5")  # so that the best step is an early one
    uninterrupted = trained_once(*settings, folder="straight")
    at_call(Segmenter, "training_step", 8, send(signal.SIGTERM))
    assert train_code(*settings, folder="stopped") == 128 + signal.SIGTERM
    (tmp_path / "stopped").rename(tmp_path / "moved")
    assert_same_end(uninterrupted, train("checkpoint=auto", *settings, folder="moved"))


@pytest.mark.slow
def test_resuming_from_the_best_discards_later_steps(trained_once, train, train_code, at_call, tmp_path):
    settings = (*LENGTH, "optim.lr=0.5")
    uninterrupted = trained_once(*settings, folder="straight")
    at_call(Segmenter, "training_step", 8, send(signal.SIGTERM))
    assert train_code(*settings, folder="stopped") == 128 + signal.SIGTERM

    def broken():
        raise MemoryError

    at_call(Segmenter, "training_step", 1, broken)
    assert train_code("checkpoint=best", *settings, folder="stopped") == 1  # before it saved anything
    at_call(Segmenter, "training_step", 10**9, broken)
    assert_same_end(uninterrupted, train("checkpoint=auto", *settings, folder="stopped"))


@pytest.mark.slow
def test_a_signal_to_the_process_group_keeps_the_workers_alive(tmp_path, small):
    """`timeout`, `scancel` and Ctrl-C send it like this; the step outlasts workers that would handle the signal."""
    words = ["train", *small, "trainer=smoke", "trainer.accelerator=cpu", "logger=csv", "data.num_workers=2"]
    words += ["trainer.max_steps=500", "trainer.val_check_interval=500", "trainer.log_every_n_steps=1"]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "fcnlab", *words, "hydra.run.dir=run"],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip
    while not (tmp_path / "run/metrics.csv").is_file() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert status(tmp_path / "run") == "interrupted"
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == max(int(row["step"]) for row in curves(tmp_path / "run"))


@pytest.mark.parametrize(
    "setting",
    ["trainer.val_check_interval=0.5", "+trainer.check_val_every_n_epoch=1", "trainer.limit_val_batches=0"],
)
def test_validation_settings_unsuitable_for_checkpoints_are_refused(train_code, capsys, setting):
    assert train_code(setting) == 1
    output = capsys.readouterr().err
    assert f"{setting.lstrip('+').partition('=')[0]} must be" in output and "Traceback" not in output


def test_another_batch_size_resumes_in_the_same_epoch(train, train_code, at_call, tmp_path):
    """After three batches of four, the run continues with the epoch's next images and reports the difference."""
    at_call(Segmenter, "training_step", 3, send(signal.SIGTERM))
    assert train_code(*LENGTH) == 128 + signal.SIGTERM
    folder = train("checkpoint=last", *LENGTH, "data.batch_size=2", "trainer.max_steps=4")
    assert "a step takes 2 images now, but took 4" in (folder / "train.log").read_text()
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    assert progress["completed"] == 7  # six batches of two were done, and one more step


def test_a_sigterm_handled_by_lightning_gives_the_exit_code_of_sigterm(train_code, at_call, monkeypatch, tmp_path):
    """Python drops our exception inside a fork handler; Lightning's own exception then exits with code 0."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from fcnlab.signals import StopSignals

    def swallowed(self, signum, frame):
        self.asked = signum

    def lightnings():
        os.kill(os.getpid(), signal.SIGTERM)
        raise SIGTERMException

    monkeypatch.setattr(StopSignals, "_receive", swallowed)
    at_call(Segmenter, "training_step", 3, lightnings)
    assert train_code(*LENGTH) == 128 + signal.SIGTERM
    assert status(tmp_path / "run") == "interrupted"


@pytest.mark.parametrize("saving", [False, True], ids=["Lightning's clearing up", "saving"])
def test_an_error_after_a_signal_counts_only_while_the_run_saves_itself(
    train_code, at_call, monkeypatch, tmp_path, saving
):
    """A signal while workers start leaves Lightning's loops incomplete: "Please call `iter(combined_loader)` first"."""

    def broken(*args, **kwargs):
        raise RuntimeError("not now")

    if saving:
        monkeypatch.setattr(L.Trainer, "save_checkpoint", broken)
        at_call(Segmenter, "training_step", 1, send(signal.SIGTERM))
    else:
        monkeypatch.setattr(L.Trainer, "_teardown", broken)
        at_call(Segmenter, "configure_optimizers", 1, send(signal.SIGTERM))
    code = train_code(*LENGTH)
    assert (code, status(tmp_path / "run")) == ((1, "failed") if saving else (128 + signal.SIGTERM, "interrupted"))


def put(*place_and_value):
    """Return a function that changes one value of a checkpoint."""
    *place, last, value = place_and_value

    def change(checkpoint) -> None:
        for key in place:
            checkpoint = checkpoint[key]
        checkpoint[last] = value

    return change


MOMENTS = ("optimizer_states", 0, "state", 0)
BATCHES = ("loops", "fit_loop", "epoch_loop.batch_progress")
ODD = {
    "exp_avg of parameter 0 has the wrong shape": put(*MOMENTS, "exp_avg", torch.zeros(3)),
    "exp_avg_sq of parameter 0 has the wrong shape": put(*MOMENTS, "exp_avg_sq", torch.zeros(())),
    "without their numbers: optimizer_states": put(*MOMENTS, "exp_avg", torch.zeros(1).expand(4, 3, 3, 3)),
    "parameter 0 is incomplete": lambda found: found["optimizer_states"][0]["state"][0].pop("exp_avg"),
    "optimizer_states is not a list": put("optimizer_states", []),
    "lr_schedulers is not a list": put("lr_schedulers", [1]),
    "a value for step, which is a method": put("lr_schedulers", 0, "step", 5),
    "loops entry is not a dict": lambda found: found.pop("loops"),
    "loops contain a count that is negative": put("loops", "fit_loop", "epoch_progress", "total", "ready", -1),
    "callbacks entry is not a dict": put("callbacks", [1]),
    "resume.rows is not an integer": put("resume", "rows", "x"),
    "random states are not a list": put("resume", "random", None),
    "random states cannot be restored": put("resume", "random", 0, "torch", torch.zeros(3)),
    "its global_step is 3, but the step of its loops is 2": put("global_step", 3),
    "its global_step is 2, but the step of its lr_schedulers is 9": put("lr_schedulers", 0, "last_epoch", 9),
    "its global_step is 2, but the step of its selection is 1": put("fcnlab", "selection", "step", 1),
    "its epoch is 1, but that of its loops is 0": put("epoch", 1),
    "its global_step is 2, but it contains facts of step 7": put("resume", "validated", 7),
    "its global_step is 2, but it contains facts of step 5": put("fcnlab", "segments", 0, "from_step", 5),
    "its batch counts (2 in this epoch, 1073741824 in total": put(*BATCHES, "total", "completed", 2**30),
    "its batch counts (1000 in this epoch": put(*BATCHES, "current", "completed", 1000),
    "its early stopping reason is invalid": put("callbacks", "StopReason", "reason", {"step": 2, "monitor": "x"}),
    "its early stopping state is invalid": put("callbacks", "EarlyStopping{}", {"wait_count": "x"}),
    "cannot be resumed: its loops are not those of a training run": lambda found: found["loops"].pop("fit_loop"),
}


@pytest.mark.slow
def test_invalid_resume_state_is_refused(train, train_code, capsys):
    settings = ("trainer.max_steps=2", "optim=adamw", "trainer.val_check_interval=2")
    path = train(*settings) / "checkpoints" / "last.ckpt"
    sound = torch.load(path, weights_only=True)
    for message, change in ODD.items():
        changed = copy.deepcopy(sound)
        change(changed)
        torch.save(changed, path)
        capsys.readouterr()
        assert train_code("checkpoint=last", "trainer.max_steps=3", *settings[1:]) == 1
        output = capsys.readouterr().err
        assert message in output and "Traceback" not in output, (message, output)


def test_optimizer_moments_of_wrong_shapes_are_refused():
    """torch's fused kernels would write out of bounds."""
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    check_optimizer_state(optimizer, optimizer.state_dict())
    for value in (torch.zeros(3), torch.zeros(()), torch.zeros(3, 2), 5):
        state = copy.deepcopy(optimizer.state_dict())
        state["state"][0]["exp_avg"] = value
        with pytest.raises(ValueError, match="exp_avg of parameter 0 has the wrong shape"):
            check_optimizer_state(optimizer, state)


@pytest.mark.slow
def test_a_best_checkpoint_of_discarded_steps_is_set_aside(train, tmp_path, capsys):
    """A run is killed between the writes of best.ckpt and last.ckpt, and resumed with other settings."""
    settings = ("trainer.max_steps=4", "trainer.val_check_interval=2")
    folder = train(*settings) / "checkpoints"
    ahead = torch.load(folder / "best.ckpt", weights_only=True) | {"global_step": 4}
    train("trainer.max_steps=2", settings[1], folder="earlier")
    earlier = tmp_path / "earlier/checkpoints/last.ckpt"
    ahead["fcnlab"]["trained"]["run"] = torch.load(earlier, weights_only=True)["fcnlab"]["trained"]["run"]
    torch.save(ahead, folder / "best.ckpt")
    earlier.replace(folder / "last.ckpt")
    torch.save(ahead, folder / "miou=0.9-step=4.ckpt")
    train("checkpoint=last", *settings, "optim.lr=1e-5")
    assert "best.ckpt is of step 4, but the run resumes from step 2 with other settings" in capsys.readouterr().out
    assert (folder / "best.ckpt.damaged").is_file() and (folder / "miou=0.9-step=4.ckpt.damaged").is_file()
    assert (folder / "best.ckpt").is_file()
