"""Resuming with other settings: taken from the next step on, refused, or reported; and the record says which."""

import csv
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml

from fcnlab.errors import UserError
from fcnlab.training.resume_point import ResumePoint
from fcnlab.training.segmenter import Segmenter
from fcnlab.training.segments import as_recorded, changes, segments_of, settings_of

FIRST = {"from_step": 0, "started": "2026-11-24T10:00:00+00:00", "changed": {}}
LENGTH = ("trainer.max_steps=9", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1")
SIX = (
    *LENGTH,
    "trainer.max_steps=6",
    "callbacks.ema.enabled=false",
    "optim=sgd",
    "callbacks.sample_images.enabled=false",
)


def curves(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def facts(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def last(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture
def stopped(train_code, at_call, tmp_path, tmp_path_factory):
    """A run of six steps that was stopped after the third; trained once for all tests."""
    made = tmp_path_factory.getbasetemp() / "stopped-run"
    if not made.is_dir():
        at_call(Segmenter, "training_step", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train_code(*SIX, folder="made") == 128 + signal.SIGTERM
        (tmp_path / "made").rename(made)
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def test_resume_uses_new_lr_weight_decay_and_schedule(stopped, train, monkeypatch):
    """poly by hand, without warm-up: lr * (1 - step / length)^power, for the biases of sgd twice that."""
    words = ("optim.lr=0.02", "optim.weight_decay=0.3", "trainer.max_steps=10", "schedule.warmup=0", "schedule.power=2")
    train("checkpoint=last", *SIX, *words, "trainer.val_check_interval=10")
    rates = {int(row["step"]): float(row["train/lr"]) for row in curves(stopped) if "train/lr" in row}
    for step in range(4, 11):  # the row of a step bears the count behind it
        assert rates[step] == pytest.approx(0.02 * (1 - (step - 1) / 10) ** 2)
    groups = {group["name"]: group for group in last(stopped)["optimizer_states"][0]["param_groups"]}
    assert {group["initial_lr"] for group in groups.values()} == {0.02, 0.04}
    assert groups["heads/bias"]["initial_lr"] == 0.04 and groups["heads/bias"]["weight_decay"] == 0
    assert groups["heads/weight"]["weight_decay"] == 0.3
    assert last(stopped)["lr_schedulers"][0]["base_lrs"] == [group["initial_lr"] for group in groups.values()]

    first, second = facts(stopped)["segments"]
    assert (first["from_step"], first["changed"]) == (0, {})
    assert second["from_step"] == 3 and second["changed"]["optim.lr"] == [0.001, 0.02]
    assert set(second["changed"]) == {word.partition("=")[0] for word in words} | {"trainer.val_check_interval"}
    assert yaml.safe_load((stopped / "config.yaml").read_text())["optim"]["lr"] == 0.02
    assert "Resuming at step 3 with other settings: optim.lr=0.02 (was 0.001)" in (stopped / "train.log").read_text()


def test_resume_with_equal_settings_keeps_one_segment(stopped, train):
    train("checkpoint=auto", *SIX)
    (only,) = facts(stopped)["segments"]
    assert only["from_step"] == 0 and facts(stopped)["starts"] == 2


def test_refused_resume_changes_no_file(stopped, train_code, capsys):
    """Another seed, with checkpoint=best, which would put best.ckpt in the place of last.ckpt."""
    names = (
        "checkpoints/last.ckpt",
        "config.yaml",
        "run.json",
        "metrics.csv",
        ".hydra/config.yaml",
        ".hydra/hydra.yaml",
    )
    before = [(stopped / name).read_bytes() for name in names]
    assert train_code("checkpoint=best", *SIX, "seed=2") == 1
    message = capsys.readouterr().err
    assert "cannot resume with seed=2 (was 1)" in message and "model.weights=" in message and "Traceback" not in message
    assert [(stopped / name).read_bytes() for name in names] == before


def test_resume_on_other_images_is_refused(stopped, train_code, capsys):
    """As where a folder has got more files: here the checkpoint's word for their names is another."""
    checkpoint = last(stopped)
    checkpoint["fcnlab"]["images"]["train"] = {"count": 23, "names": "0" * 64}
    torch.save(checkpoint, stopped / "checkpoints" / "last.ckpt")
    assert train_code("checkpoint=last", *SIX) == 1
    assert "has 24 images for train and had 23" in capsys.readouterr().err


def test_checkpoint_of_another_folder_keeps_its_segments(stopped, train):
    path = f"checkpoint={stopped}/checkpoints/last.ckpt"
    other = train(path, *SIX, "optim.lr=0.01", folder="other")
    assert [(each["from_step"], each["changed"]) for each in facts(other)["segments"]] == [
        (0, {}), (3, {"optim.lr": [0.001, 0.01]}),
    ]  # fmt: skip
    assert "belongs to another run: this run selects its best checkpoint" in (other / "train.log").read_text()
    assert last(other)["fcnlab"]["segments"] == facts(other)["segments"]


TWO = (*LENGTH, "trainer.max_steps=2")


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Return the modification time and the content of each file of a folder."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_finished_run_keeps_its_record(train_code, trained_once, tmp_path, capsys):
    """Also in a folder that was moved."""
    trained_once(*TWO).rename(tmp_path / "moved")
    before = files(tmp_path / "moved")
    assert train_code("checkpoint=auto", *TWO, "sweep.name=x", folder="moved") == 0
    output = capsys.readouterr().out
    assert "moved is finished, so nothing is changed there. Its scores are in moved/metrics.json" in output
    assert "Nothing is left to train. The run is at step 2, its last step (trainer.max_steps=2)" in output
    assert files(tmp_path / "moved") == before
    assert train_code("checkpoint=last", *LENGTH, "trainer.max_steps=1", folder="moved") == 1
    assert "trainer.max_steps=1: checkpoint=" in capsys.readouterr().err


def test_finished_run_without_its_record_is_scored_again(train, trained_once, capsys):
    folder = trained_once(*TWO)
    score = json.loads((folder / "metrics.json").read_text())["miou"]
    (folder / "metrics.json").unlink()
    train("checkpoint=auto", *TWO)
    output = capsys.readouterr().out
    assert "run is finished, but its record cannot be used (no metrics.json" in output
    assert "Nothing is left to train. The run is at step 2" in output
    assert json.loads((folder / "metrics.json").read_text())["miou"] == score and facts(folder)["starts"] == 2


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "confusions.npz").write_bytes(b"PK"), []),
        (lambda run: (run / "checkpoints" / "best.ckpt").unlink(), []),
        (lambda run: None, ["checkpointing.score=last"]),
        (lambda run: None, ["data.num_workers=1"]),
    ],
)
def test_finished_run_continues_if_something_is_missing_or_requested(
    train_code, trained_once, capsys, monkeypatch, spoil, words
):
    def continued(cfg, context):
        raise UserError("the run continues")

    monkeypatch.setattr("fcnlab.tasks.train.warn_about_ineffective_settings", continued)
    spoil(trained_once(*TWO))
    assert train_code("checkpoint=auto", *TWO, *words) == 1 and "the run continues" in capsys.readouterr().err


EARLY = (*LENGTH, "callbacks.early_stopping.enabled=true", "callbacks.early_stopping.patience=1", "optim.lr=1e-12")


@pytest.mark.parametrize(
    ("more", "ends"),
    [
        (["callbacks.early_stopping.patience=9"], 9),
        (["callbacks.early_stopping.enabled=false"], 9),
        (["callbacks.early_stopping.patience=2"], 6),
        ([], 4),
    ],
)
def test_run_that_stopped_early_resumes_with_other_limits(train, trained_once, capsys, more, ends):
    """At a rate of nothing the first validation, at step 2, is the best; each later one costs patience."""
    folder = trained_once(*EARLY)
    reason = facts(folder)["stopped_early"]
    assert (reason["step"], reason["best_step"], reason["patience"]) == (4, 2, 1) and reason["monitor"] == "val/miou"
    best = next(float(row["val/miou"]) for row in curves(folder) if "val/miou" in row)
    assert reason["best"] == pytest.approx(best)
    message = f"The run stopped early at step 4: the best value of val/miou is {best:.4f}, at step 2"
    assert message in (folder / "train.log").read_text()
    train("checkpoint=last", *EARLY, *more)
    assert last(folder)["global_step"] == ends
    assert facts(folder)["status"] == "finished" and bool(facts(folder)["stopped_early"]) == (ends < 9)
    assert ("Nothing is left to train. The run stopped early" in capsys.readouterr().out) == (ends == 4)


# What is decided without a training: every setting of the tree.


KEPT: dict[tuple[str, ...], dict] = {}  # composed once for all


@pytest.fixture
def decide(composed, monkeypatch):
    """The last segment of a run of some words that resumes with others; a UserError where it is refused."""

    def decided(now: list[str], then: list[str] | None = None, **kept) -> dict:
        cfg = composed(*now)
        words = tuple(then or ())
        if words not in KEPT:
            KEPT[words] = settings_of(composed(*words))
        start = ResumePoint("RUN/checkpoints/last.ckpt", 0, 3, 0, KEPT[words], **{"segments": [FIRST]} | kept)
        return segments_of(cfg, start, now)[-1]["changed"]

    return decided


REFUSED = (
    "seed=2", "data.seed=2", "data.train_list=val", "data.val_list=train", "data.num_classes=3", "model=fcn16s",
    "data=voc",
    "data.dataset.drawing_seed=1", "model.upsampling=learned", "model/backbone=vgg16", "model.backbone.padding=paper",
    "model.backbone.width=8", "optim=sgd", "loss=focal", "loss=cross_entropy_sum", "callbacks.ema.enabled=false",
    "~callbacks.ema", "callbacks.best.enabled=false", "callbacks.best.monitor=val/loss", "optim.pretrained_lr_scale=0",
    "+trainer.limit_train_batches=2", "model.weights=x.ckpt", "model.backbone.weights=x.pth", "+nobody.knows=1",
)  # fmt: skip


@pytest.mark.parametrize("word", REFUSED)
def test_fixed_settings_are_refused(decide, word):
    with pytest.raises(UserError, match="cannot resume with") as refused:
        decide([word])
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 700


def test_removed_setting_is_refused(decide):
    with pytest.raises(UserError, match=re.escape("trainer.limit_train_batches=null (was 2)")):
        decide([], ["+trainer.limit_train_batches=2"])


@pytest.mark.parametrize(
    "word",
    [
        "optim.lr=0.5", "optim.weight_decay=0", "optim.betas=[0.5,0.9]", "schedule=cosine", "schedule.warmup=0",
        "trainer.max_steps=5", "trainer.gradient_clip_val=null", "augment=none", "data.crop_size=64",
        "data.batch_size=2",
        "speed=off", "callbacks.early_stopping.patience=9", "callbacks.ema.decay=0.9", "data.root=/elsewhere",
    ],
)  # fmt: skip
def test_changeable_settings_are_recorded(decide, word):
    assert word.partition("=")[0] in {path.partition("._")[0].partition(".bf16")[0] for path in decide([word])}


@pytest.mark.parametrize(
    "word",
    [
        "logger=csv",
        "checkpoint=auto",
        "data.num_workers=3",
        "checkpointing.every_n_minutes=1",
        "data.cache=ram",
        "seed=1",
    ],
)
def test_irrelevant_settings_are_no_change(decide, word):
    assert decide([word]) == {}


def test_linked_value_is_listed_once(composed):
    found = changes(settings_of(composed()), composed("seed=2", "augment.colour=false"))
    assert set(found) == {"seed", "augment.colour"}


def test_own_optimiser_keeps_its_saved_settings(decide):
    own = "optim._target_=torch.optim.RAdam"
    with pytest.raises(UserError, match=r"optim\.lr=0\.5"):
        decide([own, "optim.lr=0.5"], [own])


def test_initial_weights_have_no_effect_on_resume(decide, caplog):
    then = "model.weights=/old/run/1-fcn32s/checkpoints/best.ckpt"
    assert decide(["model.weights=/new/run/1-fcn32s/checkpoints/best.ckpt"], [then]) == {}  # the whole was moved
    assert decide(["model.weights=/new/other.ckpt"], [then]) == {}  # the old one is gone, so that another was needed
    assert "model.weights=/new/other.ckpt has no effect" in caplog.text


def test_other_initial_weights_are_refused_if_the_first_exist(decide, tmp_path):
    """They were recorded, though the run never saw them."""
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    for path in (first, second):
        path.touch()
    with pytest.raises(UserError, match=r"model\.weights=.*other initial weights have no effect"):
        decide([f"model.weights={second}"], [f"model.weights={first}"])
    (tmp_path / "link.ckpt").symlink_to(first)
    assert decide([f"model.weights={tmp_path}/link.ckpt"], [f"model.weights={first}"]) == {}


def test_record_keeps_the_initial_weights(composed):
    then, today = composed("model.weights=/old/a.ckpt"), composed("model.weights=/new/b.ckpt", "optim.lr=0.5")
    start = ResumePoint("run/checkpoints/last.ckpt", steps=1, settings=settings_of(then))
    kept = as_recorded(today, start)
    assert (kept.model.weights, kept.optim.lr, today.model.weights) == ("/old/a.ckpt", 0.5, "/new/b.ckpt")
    assert as_recorded(today, ResumePoint()) is today


def test_a_setting_that_fcnlab_did_not_have_is_recorded(decide, composed):
    settings = settings_of(composed())
    del settings["schedule.power"], settings["loss._target_"]
    cfg = composed()
    found = changes(settings, cfg)
    assert set(found) == {"schedule.power", "loss._target_"} and found["schedule.power"].old is None


@pytest.mark.parametrize("part", ["settings", "segments", "images"])
def test_no_run_resumes_from_a_checkpoint_without_its_settings(stopped, train_code, part, capsys):
    checkpoint = last(stopped)
    del checkpoint["fcnlab"][part]
    torch.save(checkpoint, stopped / "checkpoints" / "last.ckpt")
    assert train_code("checkpoint=last", *SIX) == 1
    assert f"last.ckpt cannot be resumed: its record has no {part}" in capsys.readouterr().err
