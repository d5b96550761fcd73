"""Test the data sources that users type: from local archives to a score."""

import json
import shutil
import tarfile
from itertools import count

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fcnlab.data.formats.shapes import draw

WORDS = ("trainer=smoke", "trainer.accelerator=cpu", "trainer.max_steps=2", "logger=csv", "data.num_workers=0")
WORDS += ("model.backbone.width=4", "data.crop_size=64", "data.batch_size=2")
LISTS = {
    "train": ["a", "b"],
    "val": ["c"],
    "trainval": ["a", "b", "c"],
    "trainaug": ["a", "b", "d", "e"],
    "seg11valid": ["c"],
}


@pytest.fixture
def archives(tmp_path):
    """Write tars in the layouts of VOC and SBD."""
    voc, dataset = tmp_path / "made/VOCdevkit/VOC2012", tmp_path / "made/benchmark_RELEASE/dataset"
    for folder in (voc / "JPEGImages", voc / "SegmentationClass", voc / "ImageSets/Segmentation", dataset / "cls"):
        folder.mkdir(parents=True)
    for seed, name in zip(count(), "abcde"):
        image, mask = draw(np.random.default_rng(seed), 64)
        Image.fromarray(image).save(voc / "JPEGImages" / f"{name}.jpg")
        if name in LISTS["trainval"]:
            Image.fromarray(mask).save(voc / "SegmentationClass" / f"{name}.png")
        if name != "c":
            savemat(dataset / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": np.where(mask == 255, 0, mask)}})
    for name, names in LISTS.items():
        (voc / "ImageSets/Segmentation" / f"{name}.txt").write_text("\n".join(names))
    (dataset / "train.txt").write_text("a\nd\n")
    for name, folder in (("voc.tar", "VOCdevkit"), ("sbd.tgz", "benchmark_RELEASE")):
        with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as tar:
            tar.add(tmp_path / "made" / folder, folder)
    shutil.rmtree(tmp_path / "made")
    return tmp_path / "voc.tar", tmp_path / "sbd.tgz"


@pytest.mark.parametrize("data", ["voc_aug", pytest.param("voc_paper", marks=pytest.mark.slow)])
def test_archives_give_a_score(data, archives, fcnlab, tmp_path):
    voc, sbd = archives
    words = (f"data={data}", f"data.root={tmp_path}/root", "augment=standard", *WORDS, f"hydra.run.dir={tmp_path}/run")
    assert fcnlab("train", *words, f"data.archive=[{sbd},{voc}]") == 0
    record = json.loads((tmp_path / "run/metrics.json").read_text())
    assert record["protocol"]["set"] == f"VOC2012 {'val' if data == 'voc_aug' else 'seg11valid'}"
    folder = tmp_path / "root/VOCdevkit/VOC2012"
    assert len(list((folder / "SegmentationClassAug").iterdir())) == 4
    assert fcnlab("eval", f"checkpoint={tmp_path}/run/checkpoints/best.ckpt") == 0


def test_images_used_for_training_and_scoring_are_refused(archives, fcnlab, tmp_path, capsys):
    words = (
        "data=voc",
        f"data.root={tmp_path}/root",
        f"data.archive={archives[0]}",
        "data.train_list=trainval",
        *WORDS,
    )
    assert fcnlab("train", *words) == 1
    assert "1 of 1 images of VOC2012 val are also in data.train_list=trainval (c)" in capsys.readouterr().err


def test_downloading_a_data_set_without_archives_is_refused(fcnlab, capsys):
    assert fcnlab("train", "data=shapes", "+data.download=true", *WORDS) == 1
    assert "open_shapes has no archives. Leave them out." in capsys.readouterr().err
