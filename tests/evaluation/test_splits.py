"""What every verb says of the splits before it works, and what it refuses to train on."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcnlab.data import DataError, DataModule, SegmentationDataset, open_folder
from fcnlab.data.transforms import standard
from fcnlab.evaluation.splits import check_splits

SIZE = 40
NET = ("model.backbone.width=4", "data.crop_size=32", "data.batch_size=2", "data.num_workers=0", "trainer=smoke")
QUICK = (*NET, "trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.val_check_interval=2", "logger=none")


def draw(root: Path, values=(0, 255), suffixes=(".jpg",), count: int = 6) -> None:
    """Images for train and val, and grey masks of some values."""
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
    """Run a verb on the folder; give the exit code and all that it said."""

    def running(verb: str, *words: str, folder: str = "run") -> tuple[int, str]:
        data = ("data=folder", f"data.root={root}", f"hydra.run.dir={tmp_path / folder}")
        code = fcnlab(verb, *data, *words)
        output = capsys.readouterr()
        return code, output.out + output.err

    return running


@pytest.fixture
def check(root, tmp_path, caplog):
    """Check splits of the folder, anew; give what was said, a line each, warnings marked as such."""

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


def test_masks_of_0_and_255_are_not_trained_on(run, root, tmp_path):
    """A void object gave a mean IoU of 100 % before."""
    draw(root)
    code, output = run("train", *QUICK, CLASSES)
    assert code == 1 and "Traceback" not in output and not (tmp_path / "run/checkpoints").exists()
    assert "leaves train: all masks together contain at most one class: background 50." in output
    assert "data.dataset.ids={0: background, 255: object}" in output


def test_masks_of_0_and_255_are_trained_on_when_said_what_they_are(run, root, tmp_path):
    draw(root)
    code, output = run("train", *QUICK, CLASSES, IDS)
    assert code == 0 and "leaves train: 6 images, 6 masks" in output and "leaves val: 6 images, 6 masks" in output
    target = np.array([np.array(Image.open(path)) for path in sorted((root / "masks/val").iterdir())])
    matrices = np.load(tmp_path / "run/confusions.npz")["matrices"]
    assert matrices.sum(axis=(0, 2)).tolist() == [(target == 0).sum(), (target == 255).sum()]


def test_an_evaluation_warns_of_them(run, root):
    draw(root)
    words = ("model=fcn32s", "model.backbone.width=4", "data.num_workers=0", "trainer.accelerator=cpu", "logger=none")
    code, output = run("eval", *words, CLASSES)
    assert code == 0 and "leaves val: 6 images, 6 masks" in output
    assert "Warning: leaves val: all masks together contain at most one class" in output


def test_doctor_says_it_too(run, root):
    draw(root)
    code, output = run("doctor", CLASSES, "data.crop_size=32", "data.batch_size=2")
    assert code == 1 and "✗ classes" in output and "these errors would cause wrong scores" in output
    assert "leaves train: 6 images, 6 masks" in output and "binary masks of 0 and 255" in " ".join(output.split())


def test_one_class_in_val_alone_stops_a_training_and_warns_an_evaluation(check, root):
    draw(root, (0, 1))
    for path in (root / "masks/val").iterdir():
        Image.new("L", (SIZE, SIZE), 1).save(path)
    with pytest.raises(DataError, match=r"leaves val: all masks together contain at most one class: object 100\.0 %"):
        check("train", "val", "test")
    *_, last = check("test")
    assert last.startswith("Warning: leaves val: all masks together contain at most one class")


def test_a_sweeps_second_job_reads_no_mask_to_check_them(check, root, monkeypatch):
    draw(root, (0, 1))
    reads, read = [], SegmentationDataset.mask
    monkeypatch.setattr(SegmentationDataset, "mask", lambda self, index: reads.append(index) or read(self, index))
    for _ in range(3):
        check("train", "val", "test")
        assert len(reads) == 12


def test_counts_come_before_what_is_wrong_once_for_each_list(check, root, caplog):
    draw(root, (0, 1))
    assert check("train", "val", "test") == ["leaves train: 6 images, 6 masks", "leaves val: 6 images, 6 masks"]
    (root / "masks/val/3.png").rename(root / "masks/val/3.PNG")
    with pytest.raises(DataError, match=r"masks/val/3\.png is missing; its folder contains 3\.PNG"):
        check("train", "val", "test")
    assert caplog.messages == ["leaves train: 6 images, 6 masks", "leaves val: 6 images, 5 masks"]


def test_what_was_left_out_for_its_suffix_or_case_is_told(check, root):
    draw(root, (0, 1), (".jpg", ".JPG", ".png"))
    output = check("train", images="images/{split}/{name}.jpg")
    assert output[0] == "leaves train: 2 images, 2 masks"
    assert output[1].startswith("Warning: 4 images of leaves train were skipped") and "1.JPG, 2.png, 4.JPG" in output[1]
    assert check("train") == ["leaves train: 6 images, 6 masks"]


def test_doctor_tells_what_was_left_out(run, root):
    draw(root, suffixes=(".jpg", ".JPG", ".png"))
    words = (CLASSES, IDS, "data.dataset.images='images/{split}/{name}.jpg'", "data.crop_size=32", "data.batch_size=2")
    code, output = run("doctor", *words)
    assert code == 0 and "✓ classes" in output and "! skipped" in output and "4 images with similar names" in output
    assert "train: leaves train, 2 images, 2 masks" in output


def test_classes_that_no_training_mask_has_are_one_warning(check, root):
    draw(root, (0, 2))
    *_, last = check("train", "val", "test", classes=("ground", "leaf", "stem", "bark"))
    assert last == "Warning: no mask of leaves train contains leaf, bark: the model cannot learn these classes"
    assert len(check("test", classes=("ground", "leaf", "stem", "bark"))) == 1


def mixed(root: Path) -> None:
    """Masks of 0 and 1, and in each split one of 0 and 255."""
    draw(root, (0, 1))
    for split in ("train", "val"):
        path = root / f"masks/{split}/0.png"
        Image.fromarray(np.where(np.array(Image.open(path)), np.uint8(255), np.uint8(0))).save(path)


def test_masks_of_two_kinds_are_warned_of_by_train_and_doctor(check, run, root):
    mixed(root)
    output = [line for line in check("train", "val") if line.startswith("Warning")]
    assert len(output) == 2 and all("masks contain only the ids 0 and 255" in line for line in output)
    code, table = run("doctor", CLASSES, *NET[1:4])
    assert code == 0 and "1 contradictions between masks" in table and "0.png (background" in table
