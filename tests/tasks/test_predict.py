"""Test ``fcnlab predict`` on files, folders and globs."""

import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from fcnlab.data.formats.shapes import draw
from fcnlab.data.formats.voc import voc_palette
from fcnlab.errors import UserError
from fcnlab.evaluation.submission import check_submission
from fcnlab.runs.output_folder import PredictionFolder
from fcnlab.runs.run_folder import check_report_folder
from fcnlab.tasks.predict import find_input_images, output_names, warn_about_subfolders
from fcnlab.training.segmenter import Segmenter


@pytest.fixture
def checkpoint(train) -> str:
    return f"checkpoint={train('trainer.max_steps=2')}/checkpoints/best.ckpt"


@pytest.fixture
def photos(tmp_path):
    """Write three images of three sizes, one of them in another folder with the same name."""
    for number, name in enumerate(("a.jpg", "b.png", "more/a.jpg")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image, _ = draw(np.random.default_rng(number), 64)
        Image.fromarray(image).save(path)
    return tmp_path / "photos"


def written(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_gives_palette_masks_and_overlays_of_image_size(checkpoint, photos, fcnlab, tmp_path):
    assert fcnlab("predict", checkpoint, f"input={photos}", f"output={tmp_path}/out") == 0
    assert written(tmp_path / "out/labels") == written(tmp_path / "out/overlays") == ["a.png", "b.png"]
    for photo in photos.glob("*.*"):
        overlay = tmp_path / f"out/overlays/{photo.stem}.png"
        with Image.open(photo) as original, Image.open(overlay) as tinted:
            with Image.open(tmp_path / f"out/labels/{photo.stem}.png") as labels:
                assert labels.mode == "P" and labels.size == original.size
                assert labels.getpalette()[: 21 * 3] == voc_palette(21).flatten().tolist()
                assert np.array(labels).max() <= 20
            assert tinted.width == original.width


def test_a_glob_reaches_into_folders_and_keeps_equal_names_apart(checkpoint, photos, fcnlab, tmp_path):
    assert fcnlab("predict", checkpoint, f"input='{photos}/**/*.jpg'", f"output={tmp_path}/out") == 0
    written_names = sorted(
        str(path.relative_to(tmp_path / "out/labels")) for path in (tmp_path / "out/labels").rglob("*.png")
    )
    assert written_names == ["a.png", "more/a.png"]


def test_each_image_has_its_own_output_name():
    names = output_names([Path("p/a.jpg"), Path("p/a.png"), Path("p/b.jpg"), Path("p/q/a.jpg")])
    assert names == ["a.jpg.png", "a.png.png", "b.png", "q/a.png"]
    assert output_names([Path("p/a.jpg")]) == ["a.png"]


def test_one_file(checkpoint, photos, fcnlab, tmp_path):
    assert fcnlab("predict", checkpoint, f"input={photos}/b.png", f"output={tmp_path}/out") == 0
    assert written(tmp_path / "out/labels") == ["b.png"]


def test_unreadable_images_are_skipped_and_named_at_the_end(checkpoint, photos, fcnlab, tmp_path, capsys):
    (photos / "aa.jpg").write_bytes(b"no image")
    content = (photos / "a.jpg").read_bytes()
    (photos / "half.jpg").write_bytes(content[: len(content) // 2])
    assert fcnlab("predict", checkpoint, f"input={photos}", f"output={tmp_path}/out") == 1
    error = capsys.readouterr().err
    assert "2 of 4 images were skipped" in error and "aa.jpg" in error and "half.jpg" in error
    assert "Traceback" not in error
    assert written(tmp_path / "out/labels") == ["a.png", "b.png"]


def test_half_written_files_of_a_killed_prediction_are_removed(checkpoint, photos, fcnlab, tmp_path):
    """Also in subfolders; files of a prediction that is still running are kept."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    places = [tmp_path / "out" / kind for kind in ("labels/more", "overlays")]
    for place in places:
        place.mkdir(parents=True)
        for process in (ended.pid, os.getppid()):
            (place / f".{process}@{platform.node()}.part.png").write_bytes(b"half")
    assert fcnlab("predict", checkpoint, f"input={photos}", f"output={tmp_path}/out") == 0
    left = [path.name for path in (tmp_path / "out").rglob(".*")]
    assert left == [f".{os.getppid()}@{platform.node()}.part.png"] * 2


def test_nothing_to_predict_is_an_error(checkpoint, fcnlab, capsys, tmp_path):
    assert fcnlab("predict", checkpoint, f"input={tmp_path}/nothing", f"output={tmp_path}/out") == 1
    assert "matches no images" in capsys.readouterr().err


def test_predictions_are_postprocessed(checkpoint, photos, fcnlab, tmp_path):
    for postprocess in ("none", "guided"):
        words = [f"postprocess={postprocess}", f"output={tmp_path}/{postprocess}"]
        assert fcnlab("predict", checkpoint, f"input={photos}/a.jpg", *words) == 0
    labels = [np.array(Image.open(tmp_path / postprocess / "labels" / "a.png")) for postprocess in ("none", "guided")]
    assert labels[0].shape == labels[1].shape


def test_output_names_are_unique_whatever_the_images_are_called():
    files = ["a.jpg", "a.png", "a.jpg.png", "a.jpg.bmp", "b.jpg", "b.png/c.jpg", "a.jpg.png.png"]
    names = output_names([Path("p") / file for file in files])
    assert len(set(names)) == len(files) and "b.jpg.png" in names
    folders = {str(parent) for name in names for parent in Path(name).parents}
    assert not folders & set(names)


def test_ground_truth_is_never_replaced(checkpoint, photos, fcnlab, tmp_path, capsys):
    """This is checked before the checkpoint is read: there is none."""
    data = tmp_path / "ds"
    photos.rename(data.parent / "ds-photos")
    (data / "labels").mkdir(parents=True)
    (tmp_path / "ds-photos").rename(data / "photos")
    (data / "labels" / "a.png").write_bytes(b"ground truth")
    for more in ([], ["overwrite=true"]):
        assert fcnlab("predict", "checkpoint=none", f"input={data}/photos", f"output={data}", *more) == 1
        assert "perhaps their masks: choose another folder" in capsys.readouterr().err
    assert (data / "labels" / "a.png").read_bytes() == b"ground truth" and written(data) == ["labels", "photos"]


def test_only_earlier_predictions_are_replaced(checkpoint, photos, fcnlab, tmp_path, capsys):
    words = ("predict", checkpoint, f"input={photos}/a.jpg", f"output={tmp_path}/out")
    assert fcnlab(*words) == fcnlab(*words) == 0
    labels = tmp_path / "out" / "labels" / "a.png"
    labels.write_bytes(b"mended by hand")
    assert fcnlab(*words) == 1 and "add overwrite=true" in capsys.readouterr().err
    assert labels.read_bytes() == b"mended by hand"
    assert fcnlab(*words, "overwrite=true") == 0 and labels.read_bytes() != b"mended by hand"


def test_overwriting_never_replaces_ground_truth(photos, fcnlab, tmp_path, capsys):
    """The masks have the images' names; in one case a link leads to images outside of the data set's folder."""
    labels = tmp_path / "ds" / "labels"
    labels.mkdir(parents=True)
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(labels / "a.png")
    target = (labels / "a.png").read_bytes()
    (tmp_path / "ds" / "photos").symlink_to(photos)
    for images in (photos, tmp_path / "ds" / "photos"):
        words = ("predict", "checkpoint=none", f"input={images}", f"output={tmp_path}/ds", "overwrite=true")
        assert fcnlab(*words) == 1
        assert "overwrite=true does not replace it, because it may be ground truth" in capsys.readouterr().err
    assert (labels / "a.png").read_bytes() == target and written(labels) == ["a.png"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_images_and_link_targets_are_never_replaced(tmp_path, overwrite):
    (tmp_path / "out" / "labels").mkdir(parents=True)
    image = tmp_path / "out" / "labels" / "a.png"
    image.write_bytes(b"image")
    with pytest.raises(UserError, match="is one of the input images"):
        PredictionFolder(tmp_path / "out").check(["a.png"], [image], overwrite)
    (tmp_path / "masks").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "labels").symlink_to("../masks")
    with pytest.raises(UserError, match="leads to another folder by a link"):
        PredictionFolder(tmp_path / "other").check(["a.png"], [image], overwrite)


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_linked_prediction_list_is_refused(tmp_path, link):
    (tmp_path / "mine").write_text("all my work")
    (tmp_path / "out").mkdir()
    link(tmp_path / "out" / "predictions.jsonl", tmp_path / "mine")
    with pytest.raises(UserError, match=r"output=.*predictions\.jsonl is a (hard )?link"):
        PredictionFolder(tmp_path / "out").check(["a.png"], [], overwrite=False)
    assert (tmp_path / "mine").read_text() == "all my work"


def test_a_file_larger_than_any_prediction_is_not_replaced(tmp_path):
    """A foreign list may name a sparse file of a terabyte."""
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "a.png").touch()
    os.truncate(labels / "a.png", 1 << 40)
    (tmp_path / "predictions.jsonl").write_text('["labels/a.png", "' + "0" * 32 + '"]\n')
    with pytest.raises(UserError, match="an earlier prediction that was changed since"):
        PredictionFolder(tmp_path).check(["a.png"], [], overwrite=False)


def test_a_report_replaces_only_earlier_reports(tmp_path):
    names = ("doctor.json", "doctor.md", "samples.png")
    check_report_folder(tmp_path, names)
    (tmp_path / "samples.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"contains samples\.png but no doctor\.json"):
        check_report_folder(tmp_path, names)
    (tmp_path / "doctor.json").write_text("{}")
    check_report_folder(tmp_path, names)


def test_a_submission_overwrites_neither_files_unasked_nor_data(tmp_path):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(b"mine")
    settings = {"submission": str(path), "competition": "comp6", "input": None, "output": None}
    data = {"dataset": {"year": 2012}, "archive": None}
    for overwrite, archive, message in ((False, None, "overwrite=true"), (True, str(path), "overwrite data.archive")):
        cfg = OmegaConf.create(settings | {"overwrite": overwrite, "data": data | {"archive": archive}})
        with pytest.raises(UserError, match=message):
            check_submission(cfg)
    check_submission(OmegaConf.create(settings | {"overwrite": True, "data": data}))


def test_images_too_small_for_a_scale_are_skipped(checkpoint, photos, fcnlab, tmp_path, capsys):
    Image.new("RGB", (40, 1)).save(photos / "thin.png")  # at scale 0.25 it has no rows
    words = ("inference=multiscale", "inference.scales=[0.25,1]", "num_workers=0")
    assert fcnlab("predict", checkpoint, f"input={photos}", f"output={tmp_path}/out", *words) == 1
    error = capsys.readouterr().err
    assert "1 of 3 images were skipped" in error
    assert "thin.png has 1x40 pixels, but at least 3 are required on each side" in error
    assert written(tmp_path / "out/labels") == ["a.png", "b.png"]


def test_an_image_too_large_for_memory_is_skipped(checkpoint, photos, fcnlab, tmp_path, capsys, monkeypatch):
    Image.new("RGB", (70, 70)).save(photos / "large.png")
    predict_step = Segmenter.predict_step

    def limited(self, batch):
        if batch["image"].shape[2] == 70:
            torch.empty(1 << 60)  # torch's own error
        return predict_step(self, batch)

    monkeypatch.setattr(Segmenter, "predict_step", limited)
    assert fcnlab("predict", checkpoint, f"input={photos}", f"output={tmp_path}/out", "num_workers=0") == 1
    error = capsys.readouterr().err
    assert "large.png has 70x70 pixels, too many for the memory" in error and "inference=sliding" in error
    assert written(tmp_path / "out/labels") == ["a.png", "b.png"]


def test_ignored_images_in_subfolders_are_reported(photos, tmp_path, caplog):
    (photos / "out" / "overlays").mkdir(parents=True)
    (photos / "out" / "overlays" / "a.png").write_bytes(b"an earlier prediction")
    with caplog.at_level("WARNING", logger="fcnlab"):
        warn_about_subfolders(photos, photos / "out")
    assert "1 images in subfolders are skipped" in caplog.text
    assert f'"{photos}/**/*.jpg"' in caplog.text and len(find_input_images(f"{photos}/**/*.jpg")) == 2
    caplog.clear()
    warn_about_subfolders(photos / "more", tmp_path)
    warn_about_subfolders(photos / "a.jpg", tmp_path)
    assert not caplog.text
