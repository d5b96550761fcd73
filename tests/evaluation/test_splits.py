"""What each command logs about its splits before it starts, and which data it refuses to train on."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcnlab.data import DataError, DataModule, SegmentationDataset, open_folder
from fcnlab.data.transforms import standard
from fcnlab.evaluation.splits import check_splits

SIZE = 40
SETTINGS = ("model.backbone.width=4", "data.crop_size=32", "data.batch_size=2", "data.num_workers=0", "trainer=smoke")
QUICK = (*SETTINGS, "trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.val_check_interval=2", "logger=none")


def draw(root: Path, values=(0, 255), suffixes=(".jpg",), count: int = 6) -> None:
    """Write images for train and val, and grey masks of some values."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for place in range(count):
            suffix = suffixes[place % len(suffixes)]
            image, mask = root / f"images/{split}/{place}{suffix}", root / f"masks/{split}/{place}.png"
            for path in (image, mask):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(image)
            Image.fromarray(rng.choice(np.array(values, np.uint8), (SIZE, SIZE))).save(mask)


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "leaves"


@pytest.fixture
def run(fcnlab, root, tmp_path, capsys):
    """Run a command on the folder; return its exit code and output."""

    def running(verb: str, *words: str, folder: str = "run") -> tuple[int, str]:
        data = ("data=folder", f"data.root={root}", f"hydra.run.dir={tmp_path / folder}")
        code = fcnlab(verb, *data, *words)
        output = capsys.readouterr()
        return code, output.out + output.err

    return running


@pytest.fixture
def check(root, tmp_path, caplog):
    """Check splits of the folder; return the logged lines, in which warnings are marked."""

    def checking(
        *splits: str, classes=("background", "object"), images="images/{split}/{name}.*", **changes
    ) -> list[str]:
        opened = partial(open_folder, images=images, masks="masks/{split}/{name}.png", classes=classes, **changes)
        settings = {
            "num_classes": len(classes),
            "batch_size": 2,
            "num_workers": 0,
            "cache_dir": str(tmp_path / "cache"),
        }
        caplog.clear()
        with caplog.at_level("INFO"):
            check_splits(
                DataModule(opened, str(root), "train", "val", augment=standard, **settings), *splits, min_size=1
            )
        return caplog.messages

    return checking


CLASSES = "data.dataset.classes=[background,object]"
IDS = "data.dataset.ids={0: background, 255: object}"


def test_training_refuses_masks_of_0_and_255(run, root, tmp_path):
    """Regression: with the object ignored, the mean IoU was 100 %."""
    draw(root)
    code, output = run("train", *QUICK, CLASSES)
    assert code == 1 and "Traceback" not in output and not (tmp_path / "run/checkpoints").exists()
    assert "leaves train: all masks together contain at most one class: background 50." in output
    assert "data.dataset.ids={0: background, 255: object}" in output


def test_training_accepts_masks_of_0_and_255_with_ids(run, root, tmp_path):
    draw(root)
    code, output = run("train", *QUICK, CLASSES, IDS)
    assert code == 0 and "leaves train: 6 images, 6 masks" in output and "leaves val: 6 images, 6 masks" in output
    target = np.array([np.array(Image.open(path)) for path in sorted((root / "masks/val").iterdir())])
    matrices = np.load(tmp_path / "run/confusions.npz")["matrices"]
    assert matrices.sum(axis=(0, 2)).tolist() == [(target == 0).sum(), (target == 255).sum()]


def test_an_evaluation_warns_about_masks_of_0_and_255(run, root):
    draw(root)
    words = ("model=fcn32s", "model.backbone.width=4", "data.num_workers=0", "trainer.accelerator=cpu", "logger=none")
    code, output = run("eval", *words, CLASSES)
    assert code == 0 and "leaves val: 6 images, 6 masks" in output
    assert "Warning: leaves val: all masks together contain at most one class" in output


def test_doctor_reports_masks_of_0_and_255(run, root):
    draw(root)
    code, output = run("doctor", CLASSES, "data.crop_size=32", "data.batch_size=2")
    assert code == 1 and "✗ classes" in output and "these errors would cause wrong scores" in output
    assert "leaves train: 6 images, 6 masks" in output and "binary masks of 0 and 255" in " ".join(output.split())


def test_one_class_in_val_is_an_error_for_train_and_a_warning_for_eval(check, root):
    draw(root, (0, 1))
    for path in (root / "masks/val").iterdir():
        Image.new("L", (SIZE, SIZE), 1).save(path)
    with pytest.raises(DataError, match=r"leaves val: all masks together contain at most one class: object 100\.0 %"):
        check("train", "val", "test")
    *_, last = check("test")
    assert last.startswith("Warning: leaves val: all masks together contain at most one class")


def test_repeated_checks_read_no_masks(check, root, monkeypatch):
    draw(root, (0, 1))
    reads, read = [], SegmentationDataset.mask
    monkeypatch.setattr(SegmentationDataset, "mask", lambda self, index: reads.append(index) or read(self, index))
    for _ in range(3):
        check("train", "val", "test")
        assert len(reads) == 12


def test_counts_are_logged_once_per_list_before_errors(check, root, caplog):
    draw(root, (0, 1))
    assert check("train", "val", "test") == ["leaves train: 6 images, 6 masks", "leaves val: 6 images, 6 masks"]
    (root / "masks/val/3.png").rename(root / "masks/val/3.PNG")
    with pytest.raises(DataError, match=r"masks/val/3\.png is missing; its folder contains 3\.PNG"):
        check("train", "val", "test")
    assert caplog.messages == ["leaves train: 6 images, 6 masks", "leaves val: 6 images, 5 masks"]


def test_files_skipped_for_suffix_or_case_are_reported(check, root):
    draw(root, (0, 1), (".jpg", ".JPG", ".png"))
    output = check("train", images="images/{split}/{name}.jpg")
    assert output[0] == "leaves train: 2 images, 2 masks"
    assert output[1].startswith("Warning: 4 images of leaves train were skipped") and "1.JPG, 2.png, 4.JPG" in output[1]
    assert check("train") == ["leaves train: 6 images, 6 masks"]


def test_doctor_reports_skipped_files(run, root):
    draw(root, suffixes=(".jpg", ".JPG", ".png"))
    words = (CLASSES, IDS, "data.dataset.images='images/{split}/{name}.jpg'", "data.crop_size=32", "data.batch_size=2")
    code, output = run("doctor", *words)
    assert code == 0 and "✓ classes" in output and "! skipped" in output and "4 images with similar names" in output
    assert "train: leaves train, 2 images, 2 masks" in output


def test_classes_absent_from_training_masks_are_one_warning(check, root):
    draw(root, (0, 2))
    *_, last = check("train", "val", "test", classes=("ground", "leaf", "stem", "bark"))
    assert last == "Warning: no mask of leaves train contains leaf, bark: the model cannot learn these classes"
    assert len(check("test", classes=("ground", "leaf", "stem", "bark"))) == 1
    *_, last = check("train", classes=("ground", "leaf", "stem"))
    assert last == "Warning: no mask of leaves train contains leaf: the model cannot learn this class"


def mixed(root: Path) -> None:
    """Write masks of 0 and 1, and in each split one mask of 0 and 255."""
    draw(root, (0, 1))
    for split in ("train", "val"):
        path = root / f"masks/{split}/0.png"
        Image.fromarray(np.where(np.array(Image.open(path)), np.uint8(255), np.uint8(0))).save(path)


def test_train_and_doctor_warn_about_two_kinds_of_masks(check, run, root):
    mixed(root)
    output = [line for line in check("train", "val") if line.startswith("Warning")]
    assert len(output) == 2 and all("masks contain only the ids 0 and 255" in line for line in output)
    code, table = run("doctor", CLASSES, *SETTINGS[1:4])
    assert code == 0 and "1 contradictions between masks" in table and "0.png (background" in table
