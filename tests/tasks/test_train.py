"""Test whole training runs on small shapes: their files, how they end, how they resume."""

import csv
import json
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from fcnlab.data.formats.voc import CLASSES
from fcnlab.data.samples import TrainingSamples
from fcnlab.tasks.train import layers_affected_by_split_batches


def rows(folder) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def column(folder, name: str) -> dict[int, str]:
    """Return a logged column by step, as text."""
    return {int(row["step"]): row[name] for row in rows(folder) if row.get(name)}


def weights(folder, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_run_writes_the_documented_files(train):
    folder = train()
    record = json.loads((folder / "metrics.json").read_text())
    assert list(record)[:7] == ["split", "pixel_acc", "mean_acc", "miou", "fw_iou", "fine_grained", "iou"]
    assert list(record["iou"]) == list(CLASSES)
    assert {"protocol", "cost", "provenance"} <= set(record)
    assert record["protocol"]["images"] == 8 and record["protocol"]["padded_samples"] == 0
    assert record["cost"]["parameters"] == sum(
        value.numel() for key, value in weights(folder).items() if "running" not in key and "tracked" not in key
    )
    assert record["provenance"]["command"].startswith("fcnlab train")
    assert len(list((folder / "predictions").glob("*.png"))) == 8
    assert (folder / ".hydra" / "config.yaml").is_file() and (folder / "train.log").is_file()
    assert not list(folder.glob("*.part"))


def test_record_contains_the_best_validation(train):
    """The score in the record, computed from confusions.npz, and of the best validation are equal."""
    folder = train("trainer.max_steps=12", "trainer.val_check_interval=3")
    record = json.loads((folder / "metrics.json").read_text())
    with np.load(folder / "confusions.npz") as file:  # does not need pickle
        matrices, names, classes = file["matrices"], file["names"], file["classes"]
    assert matrices.dtype == np.int64 and matrices.shape == (8, 21, 21)
    assert list(classes) == list(CLASSES) and len(set(names)) == 8
    total = matrices.sum(0).astype(float)
    with np.errstate(invalid="ignore"):
        iou = np.diag(total) / (total.sum(0) + total.sum(1) - np.diag(total))
    assert record["miou"] == pytest.approx(np.nanmean(iou), abs=1e-15)
    assert record["miou"] == max(map(float, column(folder, "val/miou").values()))
    assert record["miou"] == float(column(folder, "final/miou")[12])


@pytest.mark.parametrize(
    ("limit", "last"),
    [
        (["trainer.max_steps=7", "trainer.val_check_interval=5"], 7),
        (["trainer.max_steps=-1", "trainer.max_epochs=2", "trainer.val_check_interval=5"], 12),
        (["trainer.max_steps=4", "trainer.val_check_interval=3", "trainer.accumulate_grad_batches=2"], 4),
    ],
)
def test_every_run_ends_with_a_validation_and_both_checkpoints(train, limit, last):
    """Lightning alone would end inside an epoch with neither."""
    folder = train(*limit)
    validated = list(column(folder, "val/miou"))
    assert validated[-1] == last and len(validated) == len(set(validated))
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == last
    assert (folder / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.parametrize(
    ("words", "output"),
    [
        ([], None),
        (
            ["trainer.accumulate_grad_batches=3"],
            "A step takes 12 images in 3 parts (devices: 1, accumulated batches: 3). The loss equals that of one"
            " batch of 12 images. Still computed per part: batch normalisation\n",
        ),
        (
            ["trainer.accumulate_grad_batches=3", "loss=dice"],
            "Warning: A step takes 12 images in 3 parts (devices: 1, accumulated batches: 3). loss=dice is"
            " averaged over the parts, which differs from the loss of one batch of 12 images. Still computed per part",
        ),
    ],
)
def test_split_batches_are_reported(train, words, output):
    text = (train(*words, "trainer.max_steps=1", "trainer.val_check_interval=1") / "train.log").read_text()
    assert output in text if output else "A step takes" not in text


def test_layers_affected_by_split_batches_are_reported():
    """Frozen layers, dropout of 0 and synchronised batch norms are not affected."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout2d(0.0), nn.Dropout(0.5))
    alone, together = (
        Mock(accumulate_grad_batches=1, strategy=Mock(_layer_sync=sync)) for sync in (None, "torch's own")
    )
    accumulated = Mock(accumulate_grad_batches=2, strategy=together.strategy)
    assert (
        layers_affected_by_split_batches(model, alone)
        == layers_affected_by_split_batches(model, accumulated)
        == ["batch normalisation", "dropout"]
    )
    assert (
        layers_affected_by_split_batches(model, together) == ["dropout"]
        and layers_affected_by_split_batches(model[:2].eval(), alone) == []
    )


def test_equal_seeds_give_equal_runs(train):
    first, again, different = (train(f"seed={seed}", folder=f"{seed}-{n}") for n, seed in enumerate((1, 1, 2)))
    assert same(weights(first), weights(again)) and not same(weights(first), weights(different))
    assert column(first, "train/loss") == column(again, "train/loss") != column(different, "train/loss")


def test_each_epoch_of_a_run_draws_every_image_once_in_its_own_order(train, monkeypatch):
    """Tested through Lightning, which has to call the sampler's set_epoch."""
    drawn, load = [], TrainingSamples.__getitem__
    monkeypatch.setattr(TrainingSamples, "__getitem__", lambda self, key: (drawn.append(key), load(self, key))[1])
    train("trainer.max_steps=12")
    first, second = drawn[:24], drawn[24:48]
    assert {epoch for epoch, _ in first} == {0} and {epoch for epoch, _ in second} == {1}
    orders = [[index for _, index in epoch] for epoch in (first, second)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(24)) and orders[0] != orders[1]


def test_missing_checkpoint_names_the_newest_run(train, fcnlab, capsys, tmp_path):
    train(folder="outputs/train/monday")
    assert fcnlab("train", "checkpoint=last", f"hydra.run.dir={tmp_path}/new") == 1
    output = capsys.readouterr().err
    assert "hydra.run.dir=outputs/train/monday" in output and "Traceback" not in output


def test_nan_loss_stops_the_run_and_keeps_the_last_finite_checkpoint(train_code, capsys, tmp_path):
    """Such a learning rate overflows the weights at once."""
    settings = ("optim=sgd", "optim.lr=1e36", "trainer.gradient_clip_val=null", "schedule=constant")
    assert train_code(*settings, "trainer.val_check_interval=1", folder="run") == 1
    output = capsys.readouterr().err
    assert "step" in output and "training stopped" in output and "Traceback" not in output
    for file in (tmp_path / "run" / "checkpoints").glob("*.ckpt"):
        assert all(value.isfinite().all() for value in torch.load(file, weights_only=True)["state_dict"].values())


def test_ema_weights_are_validated_scored_and_saved(train):
    plain, averaged = (
        train(f"callbacks.ema.enabled={enabled}", "callbacks.ema.decay=0.9", folder=str(enabled))
        for enabled in ("false", "true")
    )
    checkpoint = torch.load(averaged / "checkpoints" / "last.ckpt", weights_only=True)
    assert same(checkpoint["current_model_state"], weights(plain))  # training itself is not changed
    assert not same(checkpoint["state_dict"], weights(plain))
    scores, losses = column(averaged, "val/miou"), column(averaged, "val/loss")
    best = max(scores, key=lambda step: float(scores[step]))
    assert column(averaged, "final/loss")[20] == losses[best] != column(plain, "val/loss")[best]


def test_early_stopping_ends_with_a_record(train):
    folder = train(
        "callbacks.early_stopping.enabled=true", "callbacks.early_stopping.patience=1", "optim.lr=1e-12",
        "trainer.val_check_interval=2", "trainer.max_steps=20",
    )  # fmt: skip
    assert max(column(folder, "val/miou")) < 20
    assert (folder / "metrics.json").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ["callbacks.early_stopping.patience=3"],
        ["data.crop_size=64", "augment=none"],
        ["optim.pretrained_lr_scale=0.5"],
        ["model.reset_heads=true"],
        ["data.cache_dir=elsewhere", "data.cache=ram"],
        ["data.prefetch_factor=3"],
    ],
)
@pytest.mark.filterwarnings("default:model.reset_heads")
def test_ineffective_settings_warn(train, words, recwarn):
    folder = train("trainer.max_steps=2", *words)
    warned = [str(warning.message) for warning in recwarn]
    key = words[0].partition("=")[0]
    output = (folder / "train.log").read_text() + "".join(warned)
    assert any(key in line and "has no effect" in line for line in output.splitlines())


def test_cache_does_not_change_the_run(train, tmp_path):
    """Weights, curves and scores are those of a run that decodes every image again."""
    plain = train()
    cached = train("data.cache=disk", f"data.cache_dir={tmp_path}/cache", folder="cached")
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 2
    assert same(weights(cached), weights(plain))
    for name in ("train/loss", "val/loss", "val/miou"):
        assert column(cached, name) == column(plain, name)
    with np.load(plain / "confusions.npz") as without_cache, np.load(cached / "confusions.npz") as with_cache:
        np.testing.assert_array_equal(without_cache["matrices"], with_cache["matrices"])


def mark_most_as_slow(options: list[str], *quick: str) -> list:
    """Return all options as parameters: a few for the fast tests, the others marked as slow."""
    return [option if option in quick else pytest.param(option, marks=pytest.mark.slow) for option in options]


LOSSES = ["cross_entropy", "cross_entropy_sum", "ohem", "focal", "dice", "lovasz", "weighted"]


@pytest.mark.parametrize("loss", mark_most_as_slow(LOSSES, "lovasz", "weighted"))
def test_every_loss_trains(train, loss):
    more = [f"loss.class_weights={[1.0] * 21}"] if loss == "weighted" else []
    folder = train(f"loss={loss}", *more, "trainer.max_steps=2", "optim.lr=1e-6")
    assert column(folder, "val/loss")


OPTIONS = [
    "optim=sgd", "optim=sgd_heavy", "schedule=constant", "schedule=cosine", "augment=none", "augment=strong",
    "model=fcn16s", "model=fcn8s_atonce", "model.upsampling=learned", "model.backbone.padding=paper", "speed=off",
    "logger=tensorboard", "logger=none", "trainer.precision=bf16-mixed", "+trainer.deterministic=true",
]  # fmt: skip
QUICK = ("schedule=cosine", "augment=none", "model.upsampling=learned", "speed=off")


@pytest.mark.parametrize("option", mark_most_as_slow(OPTIONS, *QUICK, "trainer.precision=bf16-mixed"))
def test_every_option_trains(train, option):
    option = option.replace("+trainer.deterministic", "trainer.deterministic")
    folder = train(option, "trainer.max_steps=2")
    assert (folder / "metrics.json").is_file()


def test_stage_starts_from_the_previous_one(train):
    """FCN-16s has FCN-32s's layers and one more head; at a learning rate of 0 the loaded weights do not change."""
    coarse = train("model=fcn32s")
    fine = train("model=fcn16s", f"model.weights={coarse}/checkpoints/last.ckpt", "optim.lr=0.0", folder="fine")
    before, after = weights(coarse), weights(fine)
    trunk = [key for key in before if "running" not in key and "tracked" not in key]
    assert all(torch.equal(before[key], after[key]) for key in trunk)
    assert set(after) - set(before) == {"net.heads.16.weight", "net.heads.16.bias"}


def test_frozen_backbone_does_not_change(train):
    """Nor do the running statistics of its batch norms, while the heads learn."""
    first = train("trainer.max_steps=4", folder="first")
    settings = ("optim.pretrained_lr_scale=0", f"model.weights={first / 'checkpoints' / 'last.ckpt'}")
    folder = train(*settings, "trainer.max_steps=12", "trainer.val_check_interval=6", "callbacks.ema.enabled=false")
    before, after = weights(first), weights(folder)
    backbone = {key for key in before if key.startswith("net.backbone.")}
    assert any("running_mean" in key for key in backbone)
    assert all(torch.equal(before[key], after[key]) for key in backbone)
    assert not torch.equal(before["net.heads.32.weight"], after["net.heads.32.weight"])


UNCLIPPED = ("trainer.gradient_clip_val=null",)


@pytest.mark.parametrize(
    ("settings", "code", "output"),
    [
        (("optim=sgd", *UNCLIPPED), 1, "optim.lr=0.001 is a learning rate for mean losses"),
        (("optim=sgd",), 0, None),  # clipped gradients are small whatever the loss
        (("optim=sgd_heavy",), 0, "trainer.gradient_clip_val=1 clips the gradients"),
        (("optim=sgd_heavy", "loss=cross_entropy"), 0, "too small unless the model starts from a trained FCN"),
        (("optim=sgd_heavy", "optim.lr=1e-14", *UNCLIPPED), 0, "with a loss summed over 4096 pixels"),
        (("optim=sgd_heavy", "optim.lr=1e-8", *UNCLIPPED), 0, None),
        (("optim=adamw", *UNCLIPPED), 0, None),
    ],
)
def test_learning_rate_of_another_recipe_is_reported(train_code, capsys, tmp_path, settings, code, output):
    """4096 pixels in a crop: 1e-8 * 4096 / 0.01 = 4e-3, near the recipes' 1e-3 and 2e-3; 0.001 * 4096 / 0.1 = 41."""
    settings = ("loss=cross_entropy_sum", *settings)
    assert train_code(*settings, "trainer.max_steps=1", "trainer.val_check_interval=1") == code
    messages = capsys.readouterr().err + (tmp_path / "run" / "train.log").read_text()
    assert (
        (output in messages) if output else ("Warning: optim.lr" not in messages and "Warning: trainer" not in messages)
    )


def test_the_profiler_report_is_shown(train):
    log = (train("+trainer.profiler=simple", "trainer.max_steps=1") / "train.log").read_text()
    assert "Profiler Report" in log and "run_training_batch" in log


@pytest.mark.parametrize("words", [["logger=null"], ["callbacks.ema=null", "callbacks.top=null"]])
def test_null_disables_a_component(train, words):
    """Hydra ended with a traceback if a group was null."""
    assert (train(*words, "trainer.max_steps=1") / "metrics.json").is_file()


def test_a_run_without_callbacks_scores_its_last_weights(train):
    folder = train("callbacks=null", "checkpointing.score=last", "trainer.max_steps=1")
    assert not list(folder.glob("checkpoints/*")) and (folder / "metrics.json").is_file()


def test_minimum_lengths_do_not_prevent_the_final_validation(train):
    """If max_steps ends before min_epochs, Lightning alone ends without one."""
    folder = train("trainer.max_steps=3", "trainer.val_check_interval=2", "+trainer.min_epochs=99")
    assert list(column(folder, "val/miou")) == [2, 3]


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["trainer.max_steps=2", "trainer.max_epochs=9"], "trainer.max_epochs=9 has no effect: trainer.max_steps=2"),
        (["trainer.max_steps=99", "trainer.max_epochs=1"], "trainer.max_steps=99 has no effect: trainer.max_epochs=1"),
    ],
)
def test_longer_of_two_limits_warns(train, words, output):
    assert output in (train(*words) / "train.log").read_text()
