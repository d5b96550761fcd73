"""Test ``fcnlab eval`` on the checkpoints of small training runs."""

import errno
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from fcnlab.comparison.runs import read_runs
from fcnlab.config.validation import ConfigError
from fcnlab.evaluation.evaluation import save_predictions
from fcnlab.metrics.conventions import all_conventions, as_facts
from fcnlab.models import Tiny
from fcnlab.runs.lineage import TrainingRun
from fcnlab.runs.prediction_archive import EncodedImage
from fcnlab.tasks.evaluate import _original_paths, check_fold
from fcnlab.tracking.downloads import CheckpointFile
from fcnlab.training.checkpoints import TrainedNet


def record(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture
def run(trained_once):
    return trained_once("trainer.max_steps=6", "trainer.val_check_interval=3", "trainer.limit_val_batches=1.0")


def test_evaluation_repeats_the_training_score_exactly(run, fcnlab, tmp_path):
    assert fcnlab("eval", f"checkpoint={run}/checkpoints/best.ckpt", f"hydra.run.dir={tmp_path}/eval") == 0
    actual, reference = record(tmp_path / "eval"), record(run)
    assert [actual[name] for name in ("pixel_acc", "mean_acc", "miou", "fw_iou", "iou")] == [
        reference[name] for name in ("pixel_acc", "mean_acc", "miou", "fw_iou", "iou")
    ]
    with np.load(tmp_path / "eval" / "confusions.npz") as evaluated, np.load(run / "confusions.npz") as trained:
        assert (evaluated["matrices"] == trained["matrices"]).all() and (evaluated["names"] == trained["names"]).all()
    assert len(list((tmp_path / "eval" / "predictions").glob("*.png"))) == 8
    assert (tmp_path / "eval" / "predictions.zip").read_bytes() == (run / "predictions.zip").read_bytes()
    assert "conventions" not in actual


def test_kept_predictions_give_the_recorded_matrices_and_equal_those_of_predict(run, fcnlab, tmp_path, shapes_root):
    shutil.unpack_archive(run / "predictions.zip", tmp_path / "kept")
    with np.load(run / "confusions.npz") as confusions:
        names, matrices = confusions["names"].tolist(), confusions["matrices"]
    kept = {}
    for name, matrix in zip(names, matrices, strict=True):
        folders = ("class_maps", "ground_truth")
        kept[name], target = (np.array(Image.open(tmp_path / f"kept/{folder}/{name}.png")) for folder in folders)
        counted = np.zeros_like(matrix)
        np.add.at(counted, (target[target != 255], kept[name][target != 255]), 1)
        assert (counted == matrix).all()
    image = next(shapes_root.rglob(f"{names[3]}.jpg"))
    words = [f"checkpoint={run}/checkpoints/best.ckpt", f"input={image}", f"output={tmp_path}/out"]
    assert fcnlab("predict", *words) == 0
    assert (np.array(Image.open(tmp_path / f"out/labels/{names[3]}.png")) == kept[names[3]]).all()


def test_no_predictions_are_kept_on_request_and_old_ones_are_removed(run, fcnlab):
    words = [f"checkpoint={run}/checkpoints/best.ckpt", "num_images=0", f"hydra.run.dir={run}/eval"]
    assert fcnlab("eval", *words) == 0 and (run / "eval/predictions.zip").is_file()
    assert fcnlab("eval", *words, "evaluation.keep_predictions=none") == 0
    assert not (run / "eval/predictions.zip").exists() and (run / "eval/metrics.json").is_file()


def test_a_full_disk_costs_only_the_predictions(tmp_path, monkeypatch, caplog):
    def fail(path, images):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fcnlab.evaluation.evaluation.write_archive", fail)
    (tmp_path / "predictions.zip").write_bytes(b"of an earlier evaluation")
    save_predictions(tmp_path / "predictions.zip", {"a": EncodedImage(b"", b"", b"")}, 1)
    assert "No space left on device. The scores are not affected" in caplog.text
    assert not (tmp_path / "predictions.zip").exists()


def test_conventions_are_printed_and_recorded(run, fcnlab, capsys, tmp_path):
    words = [f"checkpoint={run}/checkpoints/best.ckpt", "conventions=true", f"hydra.run.dir={tmp_path}/eval"]
    assert fcnlab("eval", *words) == 0
    scores, message = record(tmp_path / "eval"), capsys.readouterr()
    assert (
        list(scores) == [*record(run), "wandb_run", "trained", "weights", "conventions"]
        and scores["iou"] == record(run)["iou"]
    )
    actual = scores["conventions"]["FCN paper"]
    assert [actual[name] for name in ("miou", "mean_acc", "pixel_acc")] == [
        scores[name] for name in ("miou", "mean_acc", "pixel_acc")
    ]
    with np.load(tmp_path / "eval" / "confusions.npz") as confusions:
        assert scores["conventions"] == as_facts(all_conventions(confusions["matrices"]))
    lines = (message.out + message.err).splitlines()
    for name, convention in scores["conventions"].items():
        assert any(line.startswith(f"  {name} ") and f"{100 * convention['miou']:.2f}" in line for line in lines)


def test_other_data_can_be_evaluated(run, fcnlab, tmp_path, shapes_root):
    data = ["data=shapes", f"data.root={shapes_root}", "data.dataset.num_train=24", "data.dataset.num_val=8"]
    data += ["data.dataset.size=64", "data.val_list=train", "data.num_workers=0"]
    assert fcnlab("eval", f"checkpoint={run}/checkpoints/best.ckpt", *data, f"hydra.run.dir={tmp_path}/eval") == 0
    assert record(tmp_path / "eval")["protocol"] == record(run)["protocol"] | {
        "set": "shapes train",
        "images": 24,
        "of": 24,
    }


@pytest.mark.parametrize("text", [b"a: &x {}\nb: *x", b"\xff", b"[", b"hydra: {runtime: {cwd: " + b"x" * 5000 + b"}}"])
def test_a_damaged_record_gives_no_data_folder(tmp_path, text):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "hydra.yaml").write_bytes(text)
    assert _original_paths(tmp_path, {"root": "shapes"}) == {}


def test_lists_that_are_text_files_are_those_of_the_run(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "hydra.yaml").write_text(f"hydra: {{runtime: {{cwd: '{tmp_path}'}}}}")
    (tmp_path / "few.txt").touch()
    data = {"root": "missing", "train_list": "few.txt", "val_list": "train", "test_list": "missing.txt"}
    assert _original_paths(tmp_path, data) == {"train_list": f"{tmp_path}/few.txt"}


def test_the_record_is_complete_without_hydra_output_subdir(run, fcnlab, tmp_path):
    assert fcnlab("eval", f"checkpoint={run}/checkpoints/best.ckpt", "hydra.output_subdir=null", "hydra.run.dir=o") == 0
    (run_read,), left_out = read_runs([tmp_path / "o"])
    assert not left_out and run_read.settings["scoring.checkpoint"] == "best.ckpt"


def test_bf16_is_reported(run, fcnlab, tmp_path):
    precise = ["trainer.precision=bf16-mixed", f"hydra.run.dir={tmp_path}/eval"]
    assert fcnlab("eval", f"checkpoint={run}/checkpoints/best.ckpt", *precise) == 0
    assert record(tmp_path / "eval")["protocol"]["precision"] == "bf16-mixed"


def test_a_model_with_weights_is_evaluated_without_a_checkpoint(run, fcnlab, tmp_path, shapes_root):
    words = ["model=fcn8s", "model.backbone.width=4", f"model.weights={run}/checkpoints/best.ckpt", "data=shapes"]
    words += [f"data.root={shapes_root}", "data.dataset.num_train=24", "data.dataset.num_val=8"]
    words += ["data.dataset.size=64", "data.num_workers=0", f"hydra.run.dir={tmp_path}/eval"]
    assert fcnlab("eval", *words) == 0
    assert record(tmp_path / "eval")["miou"] == record(run)["miou"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to evaluate"),
        (["checkpoint=missing.ckpt"], "checkpoint=missing.ckpt is not a file"),
        (["checkpoint={run}/metrics.json"], "is damaged or holds more than tensors"),
        (["checkpoint={run}/checkpoints/best.ckpt", "model=fcn8s"], "model=... has no effect"),
        (["checkpoint={run}/checkpoints/best.ckpt", "data.val_list=train"], "dd data="),
        (
            ["checkpoint={run}/checkpoints/best.ckpt", "data=camvid", "data.root={camvid}"],
            "the checkpoint has 21 classes",
        ),
    ],
)
def test_user_errors_are_reported(words, message, run, fcnlab, capsys, tmp_path):
    for folder in ("val", "valannot"):
        (tmp_path / "CamVid" / folder).mkdir(parents=True)
    write_camvid_image(tmp_path / "CamVid")
    filled = [word.format(run=run, camvid=tmp_path) for word in words]
    assert fcnlab("eval", *filled) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def write_camvid_image(folder) -> None:
    from PIL import Image

    Image.new("RGB", (64, 48)).save(folder / "val" / "one.png")
    Image.new("L", (64, 48)).save(folder / "valannot" / "one.png")


def hostile(run, tmp_path, change) -> str:
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "hostile.ckpt")
    return f"checkpoint={tmp_path}/hostile.ckpt"


def test_code_named_by_a_checkpoint_does_not_run(run, fcnlab, capsys, tmp_path):
    target = {"_target_": "pathlib.Path.write_text", "self": str(tmp_path / "owned"), "data": "x"}
    word = hostile(run, tmp_path, lambda checkpoint: checkpoint["fcnlab"]["model"].update(backbone=target))
    assert fcnlab("eval", word) == 1
    assert "pathlib.Path.write_text" in capsys.readouterr().err
    assert not (tmp_path / "owned").exists()


def test_code_named_by_a_run_folder_does_not_run(run, fcnlab, capsys, tmp_path):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("fcnlab.data.open_shapes", "os.system"))
    assert fcnlab("eval", f"checkpoint={run}/checkpoints/best.ckpt") == 1
    assert "os.system" in capsys.readouterr().err


def test_weights_that_do_not_fit_their_config_are_named(run, fcnlab, capsys, tmp_path):
    word = hostile(run, tmp_path, lambda checkpoint: checkpoint["state_dict"].pop("net.heads.8.weight"))
    assert fcnlab("eval", word) == 1
    assert "1 missing: heads.8.weight" in capsys.readouterr().err


def test_a_truncated_checkpoint_is_refused(run, fcnlab, capsys, tmp_path):
    content = (run / "checkpoints" / "best.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(content[: len(content) // 2])
    assert fcnlab("eval", f"checkpoint={tmp_path}/half.ckpt") == 1
    assert "half.ckpt" in capsys.readouterr().err


def test_a_checkpoint_needs_neither_its_run_nor_its_weights_file(run, fcnlab, tmp_path, shapes_root):
    shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "alone.ckpt")
    expected = record(run)["miou"]
    shutil.rmtree(run)
    data = ["data=shapes", f"data.root={shapes_root}", "data.dataset.num_train=24", "data.dataset.num_val=8"]
    data += ["data.dataset.size=64", "data.num_workers=0", f"hydra.run.dir={tmp_path}/eval"]
    assert fcnlab("eval", f"checkpoint={tmp_path}/alone.ckpt", *data) == 0
    assert record(tmp_path / "eval")["miou"] == expected


def test_the_inference_method_is_scored_and_recorded(run, fcnlab, tmp_path, shapes_root):
    """Compares inference=flip with the predictions of a loop in this test over the same images."""
    from fcnlab.data import open_shapes
    from fcnlab.training.checkpoints import read_checkpoint, rebuild_model

    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    for name, value in checkpoint["state_dict"].items():
        if "heads" in name:  # such a short run predicts background everywhere
            value.normal_(generator=torch.Generator().manual_seed(0))
    path = run / "checkpoints" / "lively.ckpt"
    torch.save(checkpoint, path)
    assert fcnlab("eval", f"checkpoint={path}", "inference=flip", f"hydra.run.dir={tmp_path}/eval") == 0
    scores = record(tmp_path / "eval")
    assert scores["protocol"]["inference"] == "Flip()" and record(run)["protocol"]["inference"] == "whole"
    model = rebuild_model(read_checkpoint(path), "", []).eval()
    dataset = open_shapes(str(shapes_root), "val", num_train=24, num_val=8, size=64, drawing_seed=0)
    with np.load(tmp_path / "eval" / "confusions.npz") as confusions, torch.inference_mode():
        for index, name in enumerate(confusions["names"]):
            place = dataset.names.index(name)
            image = torch.from_numpy(dataset.image(place)).permute(2, 0, 1)[None] / 255
            both = model(image).softmax(1) + model(image.flip(3)).softmax(1).flip(3)
            target, prediction = dataset.mask(place), both.argmax(1)[0].numpy()
            known = target != 255
            counts = np.bincount(21 * target[known].astype(int) + prediction[known], minlength=441).reshape(21, 21)
            assert (confusions["matrices"][index] == counts).all()
            assert (counts.sum(0) > 0).sum() > 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["inference=shift_and_stitch", "inference.factor=3"],
            "inference.factor=3 must divide the model's finest stride, 8",
        ),
        (["inference=sliding", "inference.step=600"], "inference.step=600 must be from 1 to inference.window=512"),
        (["inference=multiscale", "+inference.scale=[1]"], "Did you mean inference.scales?"),
    ],
)
def test_invalid_inference_settings_are_refused(run, fcnlab, capsys, words, message):
    assert fcnlab("eval", f"checkpoint={run}/checkpoints/best.ckpt", *words) == 1
    output = capsys.readouterr().err
    assert message in output and "Traceback" not in output


def test_an_inference_method_and_a_postprocessing_step_are_both_recorded(run, fcnlab, tmp_path):
    words = ["inference=flip", "postprocess=guided", "postprocess.radius=2", "speed.row_blocks=true"]
    assert fcnlab("eval", f"checkpoint={run}/checkpoints/best.ckpt", *words, f"hydra.run.dir={tmp_path}/eval") == 0
    protocol = record(tmp_path / "eval")["protocol"]
    assert (protocol["inference"], protocol["postprocess"]) == ("Flip()", "GuidedFilter(radius=2, eps=0.001)")
    assert record(run)["protocol"]["postprocess"] == "none"


@pytest.mark.parametrize(
    ("word", "base"),
    [
        ("inference._target_=fcnlab.inference.GuidedFilter", "fcnlab.inference.InferenceMethod"),
        ("postprocess._target_=fcnlab.inference.Flip", "fcnlab.inference.Postprocess"),
    ],
)
def test_an_inference_target_in_the_postprocess_group_is_refused(run, fcnlab, capsys, word, base):
    assert fcnlab("eval", f"checkpoint={run}/checkpoints/best.ckpt", word) == 1
    error = capsys.readouterr().err
    assert f"{word} is not a subclass of {base}" in error and "Traceback" not in error


def test_a_missing_postprocessing_package_is_reported_before_any_work(run, fcnlab, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    monkeypatch.setattr("fcnlab.tasks.evaluate.open_data", None)
    assert fcnlab("eval", f"checkpoint={run}/checkpoints/best.ckpt", "postprocess=superpixels") == 1
    assert "pip install 'fcnlab[superpixels]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["inference=shift_and_stitch", "inference.factor=3"],
            "inference.factor=3 must divide the model's finest stride",
        ),
        (["inference=multiscale", "inference.scales=[0.5]"], "8 of 8 images cannot be used"),
    ],
)
def test_unsupported_inference_is_refused_before_any_work(run, fcnlab, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.setattr("fcnlab.tasks.evaluate.open_loggers", None)
    monkeypatch.setattr(Tiny, "min_size", 40)
    command = [f"checkpoint={run}/checkpoints/best.ckpt", *words, f"hydra.run.dir={tmp_path}/eval"]
    assert fcnlab("eval", *command) == 1
    assert message in capsys.readouterr().err


WHOLE = {"data.train_list": "train", "data.dataset._target_": "shapes", "images.train": "24 (aaaaaaaa)"}
FOLD_0 = WHOLE | {"data.folds": 2, "data.fold": 0, "images.folds": "24 (aaaaaaaa)"}


@pytest.mark.parametrize(
    ("recorded", "present", "message"),
    [
        (WHOLE, {}, "has trained on data.train_list=train without data.folds, so also on the images of fold 1 of 2"),
        (FOLD_0, {}, "held out fold 0 of 2, so it has trained on images of fold 1 of 2"),
        (WHOLE, {"root": "/copy"}, "without data.folds"),
        (FOLD_0, {"fold": 0}, None),
        (WHOLE, {"train_list": "other"}, None),
        (WHOLE, {"allow_overlap": True}, None),
        (WHOLE | {"images.train": "9 (bbbbbbbb)"}, {"root": "/other"}, None),
        (FOLD_0 | {"images.folds": "9 (bbbbbbbb)"}, {"root": "/other"}, None),
    ],
)
def test_training_images_are_not_scored_as_a_held_out_fold(recorded, present, message):
    trained = TrainingRun(1, {}, recorded, {}, root="/data")._asdict()
    unused: Any = None
    net = TrainedNet(CheckpointFile(Path("best.ckpt")), unused, {"fcnlab": {"trained": trained}})
    data = {"root": "/data", "train_list": "train", "dataset": {"_target_": "shapes"}, "folds": 2, "fold": 1} | present
    opened: Any = SimpleNamespace(whole=lambda name: range(24))
    present_data: Any = OmegaConf.create(data)
    if message is None:
        check_fold(net, present_data, opened)
    else:
        with pytest.raises(ConfigError, match=message):
            check_fold(net, present_data, opened)
