"""Test on which images a run selects its checkpoint, and what it scores, records, logs and returns to a sweeper."""

import csv
import json
import shutil

import pytest
import torch

from fcnlab.data.formats.shapes import open_shapes
from fcnlab.sweeps.sweep_table import selection_score

# Four validations, of which the second is the best.
FOUR = ("trainer.max_steps=4", "trainer.val_check_interval=1", "optim.lr=0.1", "schedule=constant", "seed=3")
FOUR += ("callbacks.ema.enabled=false", "callbacks.sample_images.enabled=false")
MIXED = ("data.test_list=mixed", "data.allow_overlap=true")


def record(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def column(folder, name: str) -> dict[int, float]:
    """Return a column of metrics.csv by step."""
    with (folder / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Train a run once, and return its folder."""
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def run(train, kept, tmp_path):
    """Return a copy of a run whose best validation is neither the first nor the last."""
    folder = tmp_path / "run"
    if kept.is_dir():
        shutil.copytree(kept, folder)
    else:
        shutil.copytree(train(*FOUR), kept)
    validated = column(folder, "val/miou")
    assert max(validated, key=validated.__getitem__) in (2, 3)
    return folder


@pytest.fixture
def mixed(shapes_root):
    """Write a list of three validation images and two training images."""
    images = {name: open_shapes(str(shapes_root), name, 24, 8, 64) for name in ("train", "val")}
    names = [*images["val"].names[2:5], *images["train"].names[:2]]
    (lists,) = shapes_root.glob("train24-val8-size64-*/VOCdevkit/VOC2012/ImageSets/Segmentation")
    path = lists / "mixed.txt"
    path.write_text("".join(f"{name}\n" for name in names))
    yield names
    path.unlink()


def test_the_best_checkpoint_is_scored_as_selected_on_its_own_images(run):
    validated, scores = column(run, "val/miou"), record(run)
    best = max(validated, key=validated.__getitem__)
    assert scores["selection"] == {
        "checkpoint": "best",
        "monitor": "val/miou",
        "mode": "max",
        "set": "shapes val",
        "list": "val",
        "among": 4,
        "step": best,
        "val_miou": validated[best],
        "same_images": True,
        "shared_images": 8,
        "stopped_early": False,
    }
    assert scores["miou"] == validated[best] == selection_score(run)
    assert list(column(run, "final/miou").values()) == [validated[best]] and not column(run, "test/miou")
    assert (
        "The weights were selected on this set, among 4 validations. Scores on images that a checkpoint was selected on"
        " are optimistic." in (run / "train.log").read_text()
    )


def test_the_last_weights_are_scored_as_not_selected(train):
    """This also holds if no best checkpoint is kept."""
    folder = train(*FOUR, "checkpointing.score=last", "callbacks.best.enabled=false")
    validated, scores = column(folder, "val/miou"), record(folder)
    selection = scores["selection"]
    assert scores["miou"] == selection["val_miou"] == validated[4] < max(validated.values())
    assert [selection[key] for key in ("checkpoint", "monitor", "mode", "step", "among")] == ["last", None, None, 4, 4]
    text = (folder / "train.log").read_text()
    assert "The weights were those of the last step: no checkpoint was selected." in text and "optimistic" not in text


def test_a_score_on_other_images_is_a_test_score_and_selects_nothing(train, mixed):
    folder = train(*FOUR, *MIXED)
    validated, scores = column(folder, "val/miou"), record(folder)
    selection = scores["selection"]
    assert selection["shared_images"] == sum(name.startswith("val_") for name in mixed) == 3
    assert (scores["split"], scores["protocol"]["images"], selection["same_images"]) == ("mixed", 5, False)
    assert list(column(folder, "test/miou").values()) == [scores["miou"]] and not column(folder, "final/miou")
    assert selection_score(folder) == selection["val_miou"] == max(validated.values()) != scores["miou"]
    message = (
        "selected on shapes val, among 4 validations; shapes val contains 3 of the scored images. Scores on images"
    )
    assert (
        f"mIoU {100 * scores['miou']:.2f} % on shapes mixed. The weights were {message}"
        in (folder / "train.log").read_text()
    )


def test_a_subset_of_the_validation_images_is_not_a_test_set(train, shapes_root):
    open_shapes(str(shapes_root), "val", 24, 8, 64)
    (lists,) = shapes_root.glob("train24-val8-size64-*/VOCdevkit/VOC2012/ImageSets/Segmentation")
    (lists / "half.txt").write_text("".join((lists / "val.txt").read_text().splitlines(keepends=True)[:4]))
    folder = train("data.test_list=half", "trainer.max_steps=2", "trainer.val_check_interval=1")
    assert column(folder, "final/miou") and not column(folder, "test/miou")
    selection = record(folder)["selection"]
    assert selection["same_images"] and selection["shared_images"] == 4


def test_a_search_maximises_the_validation_score(fcnlab, small, shapes_root, mixed, tmp_path):
    """Two trials are scored on another list, but the value of each is its validation score."""
    pytest.importorskip("optuna")
    fixed = (*small, f"data.root={shapes_root}", "trainer=smoke", "trainer.accelerator=cpu", "logger=csv", *MIXED)
    search = (
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=2",
        "hydra/launcher=basic",
        "optim.lr=interval(0.01,0.03)",
    )
    length = ("trainer.max_steps=1", "trainer.val_check_interval=1", "callbacks.sample_images.enabled=false")
    assert fcnlab("train", "-m", *fixed, *length, *search, f"hydra.sweep.dir={tmp_path}/search") == 0
    values = [trial["value"] for trial in json.loads((tmp_path / "search" / "search.json").read_text())["trials"]]
    folders = [tmp_path / "search" / job for job in "01"]
    assert values == [max(column(folder, "val/miou").values()) for folder in folders]
    assert values != [record(folder)["miou"] for folder in folders]


@pytest.mark.parametrize("gone", [False, True])
def test_an_evaluation_counts_the_known_validations(run, fcnlab, tmp_path, shapes_root, gone):
    """The run's record has all four; the checkpoint has only those up to its step, and there may have been more."""
    validated, best = column(run, "val/miou"), record(run)["selection"]["step"]
    path, data = run / "checkpoints" / "best.ckpt", ["num_train=24", "num_val=8", "size=64"]
    if gone:
        path = shutil.copy(path, tmp_path / "alone.ckpt")
        shutil.rmtree(run)
    words = [f"data.root={shapes_root}", *(f"data.dataset.{word}" for word in data), "data.num_workers=0"]
    assert fcnlab("eval", f"checkpoint={path}", "data=shapes", *words, f"hydra.run.dir={tmp_path}/eval") == 0
    scores = record(tmp_path / "eval")
    selection = scores["selection"]
    known = sum(step <= best for step in validated)
    assert (selection["among"], selection["at_least"]) == ((known, True) if gone else (4, False))
    assert (
        selection["same_images"]
        and "val_miou" not in selection
        and selection_score(tmp_path / "eval") == scores["miou"]
    )
    among = f"among at least {known} validations" if gone else "among 4 validations"
    assert f"selected on this set, {among}." in (tmp_path / "eval" / "eval.log").read_text()


def test_the_selection_of_an_older_checkpoint_is_unknown(run, fcnlab, tmp_path):
    path = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["fcnlab"]["selection"]
    torch.save(checkpoint, path)
    assert fcnlab("eval", f"checkpoint={path}", f"hydra.run.dir={tmp_path}/eval") == 0
    assert record(tmp_path / "eval")["selection"] is None
    assert "The weights were selected in an unknown way" in (tmp_path / "eval" / "eval.log").read_text()
