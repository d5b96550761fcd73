"""Cross-validation, subsets and ensembles on the command line, with small training runs."""

import csv
import json

import numpy as np
import pytest
import torch

import fcnlab as library

pytestmark = pytest.mark.slow
LENGTH = ("trainer.max_steps=2", "trainer.val_check_interval=2")


def record(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture
def fold(trained_once):
    """Return the run of a fold, trained once for all tests."""
    return lambda number: trained_once("data.folds=2", f"data.fold={number}", *LENGTH, folder=f"fold{number}")


def test_a_fold_is_trained_and_evaluated_on_its_own_held_out_images(fold, fcnlab, tmp_path):
    run = fold(0)
    protocol = record(run)["protocol"]
    assert (protocol["set"], protocol["of"]) == ("shapes train, cross-validation", 24)
    assert (protocol["folds"], protocol["fold"]) == (2, 0)
    assert fcnlab("eval", f"checkpoint={run}/checkpoints/best.ckpt", f"hydra.run.dir={tmp_path}/eval") == 0
    assert record(tmp_path / "eval")["protocol"] == protocol
    assert record(tmp_path / "eval")["iou"] == record(run)["iou"]
    with np.load(run / "confusions.npz") as confusions:
        assert len(confusions["names"]) == protocol["images"] < 24


def test_folds_are_compared_as_one_run(fold, fcnlab, tmp_path):
    folders = [fold(0), fold(1)]
    matrices = np.concatenate([np.load(folder / "confusions.npz")["matrices"] for folder in folders])
    assert len(matrices) == 24
    assert fcnlab("compare", f"runs=[{folders[0]},{folders[1]}]", "hydra.run.dir=page") == 0
    total = matrices.sum(axis=0)
    known = (total.sum(axis=0) + total.sum(axis=1)) > 0
    iou = np.diag(total)[known] / (total.sum(axis=0) + total.sum(axis=1) - np.diag(total))[known]
    with (tmp_path / "page" / "groups.csv").open() as file:
        (group,) = csv.DictReader(file)
    assert group["seeds"] == "1" and float(group["miou"]) == pytest.approx(iou.mean())


def test_an_ensemble_of_copies_scores_like_one_network(fold, fcnlab, tmp_path):
    run = fold(0)
    first = run / "checkpoints" / "best.ckpt"
    second = first.with_name("copy.ckpt")
    second.write_bytes(first.read_bytes())
    assert fcnlab("eval", f"checkpoint=[{first},{second}]", f"hydra.run.dir={tmp_path}/eval") == 0
    scores = record(tmp_path / "eval")
    assert scores["iou"] == record(run)["iou"]
    assert scores["cost"]["parameters"] == 2 * record(run)["cost"]["parameters"]
    assert [each["trained"]["seed"] for each in scores["ensemble"]] == [1, 1] and scores["trained"] is None


def test_load_averages_the_probabilities_of_several_checkpoints(fold, tmp_path):
    checkpoints = [fold(number) / "checkpoints" / "best.ckpt" for number in (0, 1)]
    image = np.random.default_rng(0).integers(256, size=(48, 52, 3), dtype=np.uint8)
    each = [library.load(path, "cpu").probabilities(image) for path in checkpoints]
    ensemble = library.load(checkpoints, "cpu")
    np.testing.assert_allclose(ensemble.probabilities(image), np.mean(each, axis=0), atol=1e-6)
    assert np.array_equal(ensemble.predict(image), np.mean(each, axis=0, dtype=np.float32).argmax(0))
    assert len(ensemble.nets) == 2 and repr(ensemble).count("FCN-8s") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["checkpoint=[{0},{1}]"], "each has trained on the images that the other held out"),
        (["checkpoint=[{0},{0}]"], "twice, so it would count twice in the average"),
        (["checkpoint=[]"], "checkpoint must be the path of a checkpoint, or a list of paths"),
        (["checkpoint={0}", "{data}", "data.folds=2", "data.fold=1"], "so it has trained on images of fold 1 of 2"),
        (["checkpoint=[{0},{changed}]"], "the networks of an ensemble must have the same classes"),
    ],
)
def test_ensembles_and_folds_that_cannot_be_scored_are_refused(
    words, message, fold, fcnlab, capsys, small, shapes_root
):
    first, second = (fold(number) / "checkpoints" / "best.ckpt" for number in (0, 1))
    changed = torch.load(second, weights_only=True)
    changed["fcnlab"]["classes"][1:3] = changed["fcnlab"]["classes"][2:0:-1]
    torch.save(changed, second.with_name("changed.ckpt"))
    same = " ".join(["data=shapes", f"data.root={shapes_root}", *(word for word in small if word.startswith("data."))])
    filled = " ".join(words).format(first, second, data=same, changed=second.with_name("changed.ckpt"))
    assert fcnlab("eval", *filled.split()) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
