"""Run the commands of the README on real images next to a developer's checkout; skipped if these are absent."""

import json

import pytest

FEW = ("trainer=smoke", "trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.limit_val_batches=2", "logger=csv")
FEW += ("trainer.limit_test_batches=4", "data.batch_size=2", "data.crop_size=128", "data.num_workers=0")


@pytest.mark.parametrize("model", [pytest.param("fcn32s", marks=pytest.mark.slow), "fcn8s"])
def test_voc_with_googlenet_from_imagenet(model, fcnlab, shared, tmp_path):
    weights = shared / "weights" / "bvlc_googlenet.safetensors"
    backbone = ("model/backbone=googlenet", f"model.backbone.weights={weights}")
    run = tmp_path / "run"
    data = ("data=voc", f"data.root={shared / 'data'}")
    assert fcnlab("train", *data, f"model={model}", *backbone, *FEW, f"hydra.run.dir={run}") == 0
    record = json.loads((run / "metrics.json").read_text())
    assert record["protocol"]["set"] == "VOC2012 val" and record["protocol"]["images"] == 4
    image = shared / "data/VOCdevkit/VOC2012/JPEGImages/2007_000464.jpg"
    output = ("predict", f"checkpoint={run}/checkpoints/best.ckpt", f"input={image}", f"output={tmp_path}/out")
    assert fcnlab(*output) == 0
    assert (tmp_path / "out/overlays/2007_000464.png").is_file()


def test_camvid(fcnlab, shared, tmp_path):
    assert fcnlab("train", "data=camvid", f"data.root={shared / 'data'}", *FEW, f"hydra.run.dir={tmp_path}/run") == 0
    record = json.loads((tmp_path / "run/metrics.json").read_text())
    assert list(record["iou"])[:3] == ["sky", "building", "pole"] and len(record["iou"]) == 11


def test_a_wrong_data_folder_is_reported_with_the_probable_one(fcnlab, shared, capsys):
    assert fcnlab("train", "data=voc", f"data.root={shared}/data/VOCdevkit", *FEW) == 1
    assert f"Did you mean data.root={shared}/data?" in capsys.readouterr().err
