"""The panels show the kept predictions of the compared runs, and only those."""

import base64
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from fcnlab.comparison.comparison import compare
from fcnlab.comparison.image_panels import AGREEMENT, agreement, image_panels
from fcnlab.comparison.pairs import image_scores
from fcnlab.comparison.runs import read_runs
from run_folders import CLASSES, PALETTE, write_run_with_predictions


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setattr("fcnlab.files.writing._sync", lambda path: None)
    return lambda name, *args, **kwargs: write_run_with_predictions(tmp_path / "runs" / name, *args, **kwargs)


@pytest.fixture
def shown(tmp_path):
    def make():
        comparison = compare(read_runs([tmp_path / "runs"])[0], resamples=100)
        return image_panels(comparison), comparison

    return make


def decoded(panel) -> np.ndarray:
    data = base64.b64decode(panel.data.partition("base64,")[2])
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def test_kinds_of_agreement():
    target, first, second = (
        np.array([row], np.uint8) for row in ([255, 1, 1, 1, 1, 1], [0, 1, 1, 2, 2, 2], [0, 1, 2, 1, 2, 3])
    )
    titles = [AGREEMENT[kind].title for kind in agreement(target, first, second)[0]]
    assert titles == [
        "ignored",
        "both right",
        "only A right",
        "only B right",
        "both wrong, same class",
        "both wrong, different classes",
    ]


def test_a_pair_shows_the_images_that_differ_most_in_both_directions(write, shown):
    write("a", 0.6)
    write("b", 0.55, model="fcn32s", seed=2)
    result, comparison = shown()
    pair = comparison.pairs[0]
    difference = image_scores(pair.first) - image_scores(pair.second)
    order = [comparison.groups[0].runs[0].names[place] for place in np.argsort(-difference)]
    assert [row.name for row in result.pairs[0].rows] == [*order[:3], *reversed(order[-3:])]
    assert not result.notes


def test_panels_have_the_colours_of_the_archive(write, shown):
    folders = {"fcn8s": write("a", 0.9), "fcn32s": write("b", 0.3, model="fcn32s")}
    row = shown()[0].pairs[0].rows[0]
    for title, model, member in (
        ("A", "fcn8s", "class_maps"),
        ("B", "fcn32s", "class_maps"),
        ("ground truth", "fcn8s", "ground_truth"),
    ):
        drawn = next(decoded(panel) for panel in row.panels if panel.title == title)
        shutil.unpack_archive(folders[model] / "predictions.zip", folders[model] / "unpacked")
        labels = np.array(Image.open(folders[model] / "unpacked" / member / f"{row.name}.png"))
        np.testing.assert_array_equal(drawn[labels != 255], PALETTE[labels[labels != 255]])
    assert [name for name, _ in row.legend] == [*CLASSES, "ignored"] and dict(row.legend)["cat"] == "#800000"


def test_a_group_shows_its_best_and_worst_images(write, shown):
    write("a", 0.6)
    result, comparison = shown()
    scores = image_scores(comparison.groups[0])
    order = [comparison.groups[0].runs[0].names[place] for place in np.argsort(scores)]
    titles = [row.name for row in result.groups[0].rows]
    assert titles == [f"best: {order[-1]}", f"best: {order[-2]}", f"worst: {order[0]}", f"worst: {order[1]}"]


def test_predictions_of_another_evaluation_are_not_shown(write, shown, tmp_path):
    folders = [write("a", 0.9), write("b", 0.3, model="fcn32s")]
    other = write_run_with_predictions(tmp_path / "other", 0.5)
    shutil.copy(other / "predictions.zip", folders[1])
    result, _ = shown()
    assert not result.pairs and [series.title for series in result.groups] == ["model=fcn8s"]
    assert "they are of another evaluation" in result.notes[0] and str(folders[1]) in result.notes[0]
    assert result.notes[1].startswith("No run of model=fcn32s has usable predictions")


def test_runs_without_predictions_are_explained(write, shown):
    (write("a", 0.9) / "predictions.zip").unlink()
    result, _ = shown()
    assert not result.pairs and not result.groups and "fcnlab eval checkpoint=PATH" in result.notes[0]
    assert "compare the folder of that evaluation alone" in result.notes[0]


def write_fold(write, number: int):
    names = [f"image_{place:03}" for place in range(18 * number, 18 * number + 18)]
    settings = {"data.folds": 2, "data.fold": number, "data.train_list": "train"}
    return write(
        f"fold{number}", 0.6, names, settings=settings, protocol={"folds": 2, "fold": number, "images": 18, "of": 36}
    )


def test_panels_of_a_cross_validation_come_from_the_archives_of_its_folds(write, shown):
    for number in (0, 1):
        write_fold(write, number)
    result, comparison = shown()
    run = comparison.groups[0].runs[0]
    scores = image_scores(comparison.groups[0])
    assert len(run.folds) == 2 and len(scores) == 36 and not result.notes
    rows = [row.name.rpartition(" ")[2] for row in result.groups[0].rows]
    order = [run.names[place] for place in np.argsort(scores)]
    assert rows == [order[-1], order[-2], order[0], order[1]]
    assert {name < "image_018" for name in rows} == {True, False}  # images of both folds


def test_a_fold_with_an_unusable_archive_shows_no_panels(write, shown, tmp_path):
    folders = [write_fold(write, number) for number in (0, 1)]
    other = write_run_with_predictions(tmp_path / "other", 0.5)
    shutil.copy(other / "predictions.zip", folders[1])
    result, _ = shown()
    assert not result.groups and "they are of another evaluation" in result.notes[0]
