"""``fcnlab predict ... submission=FILE``: the archive for VOC's server."""

import tarfile

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from fcnlab.data.formats.shapes import draw
from fcnlab.data.formats.voc import voc_palette
from fcnlab.errors import UserError
from fcnlab.evaluation.submission import check_submission

# From the devkit (VOCinit.m): results/VOC2012/Segmentation/%s_test_cls/%s.png.
FOLDER = "results/VOC2012/Segmentation/comp5_test_cls"


@pytest.fixture
def test_root(tmp_path):
    """VOC's test set as published: images and a list, no masks."""
    folder = tmp_path / "root/VOCdevkit/VOC2012"
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / "ImageSets/Segmentation/test.txt").write_text("2008_000006\n2008_000011\n2008_000012\n")
    (folder / "JPEGImages").mkdir()
    for name in ("2008_000006", "2008_000011", "2008_000012"):
        Image.fromarray(draw(np.random.default_rng(int(name[-2:])), 64)[0]).save(folder / "JPEGImages" / f"{name}.jpg")
    return tmp_path / "root"


def test_the_archive_contains_the_predictions_in_the_server_s_folders(train, fcnlab, test_root, tmp_path):
    checkpoint = f"checkpoint={train('trainer.max_steps=2')}/checkpoints/best.ckpt"
    images = test_root / "VOCdevkit/VOC2012/JPEGImages"
    words = ["data=voc", f"data.root={test_root}", "data.test_list=test", "data.num_workers=0", "competition=comp5"]
    assert fcnlab("predict", checkpoint, *words, f"submission={tmp_path}/new/voc.tar.gz") == 0
    assert fcnlab("predict", checkpoint, f"input={images}", f"output={tmp_path}/out") == 0
    with tarfile.open(tmp_path / "new/voc.tar.gz", "r:gz") as archive:
        assert sorted(archive.getnames()) == sorted(f"{FOLDER}/{path.stem}.png" for path in images.iterdir())
        for path in images.iterdir():
            with Image.open(archive.extractfile(f"{FOLDER}/{path.stem}.png")) as labels:
                assert labels.mode == "P" and labels.getpalette()[: 21 * 3] == voc_palette(21).flatten().tolist()
                np.testing.assert_array_equal(labels, Image.open(tmp_path / f"out/labels/{path.stem}.png"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["voc.tar.gz"]

    (images / "2008_000011.jpg").write_bytes(b"no image")
    assert fcnlab("predict", checkpoint, *words, f"submission={tmp_path}/half/voc.tar.gz") == 1
    assert not (tmp_path / "half").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"submission": "voc.zip"}, r"submission=voc\.zip must end in \.tar\.gz"),
        ({"competition": "comp7"}, r"competition=comp7 is not valid: choose comp5 .* or comp6"),
        ({"data": None}, "add data=voc"),
        ({"data": {"dataset": {}}}, "add data=voc"),
        ({"data": {"dataset": {"year": 2012}, "folds": 2}}, r"data\.folds=2 without data\.test_list predicts a fold"),
        (
            {"data": {"dataset": {"year": 2012}, "test_list": "few.txt"}},
            r"data\.test_list=few\.txt is a list of your own",
        ),
        (
            {"data": {"dataset": {"year": 2012}, "val_list": "few.txt"}},
            r"data\.val_list=few\.txt is a list of your own",
        ),
        ({"input": "x"}, r"input=\.\.\. and output=\.\.\. have no effect"),
    ],
)
def test_invalid_submission_settings_are_explained(changes, message):
    sound = {
        "submission": "voc.tar.gz",
        "competition": "comp6",
        "data": {"dataset": {"year": 2012}},
        "input": None,
        "output": None,
    }
    check_submission(OmegaConf.create(sound))
    check_submission(OmegaConf.create(sound | {"data": {"dataset": {"year": 2012}, "folds": 2, "test_list": "test"}}))
    with pytest.raises(UserError, match=message):
        check_submission(OmegaConf.create(sound | changes))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["input=x"], "set output=VALUE"),
        ([], "set input=VALUE and output=VALUE"),
        (["data=voc", "input=x", "output=y"], "data=... has no effect without submission="),
        (["data.root=x", "input=x", "output=y"], "Add data=OPTION"),
    ],
)
def test_predict_names_missing_settings(words, message, fcnlab, capsys):
    assert fcnlab("predict", "checkpoint=x", *words) == 1
    assert message in capsys.readouterr().err
