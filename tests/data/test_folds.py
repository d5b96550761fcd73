"""Folds and subsets of lists: who is held out, what stays together, and what is refused."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from fcnlab.data import DataError, DataModule, SegmentationDataset
from fcnlab.data.folds import Folds, hash_of_name
from fcnlab.data.formats.voc import voc_palette
from fcnlab.data.transforms import none
from fcnlab.evaluation.splits import report_splits


class Masks(SegmentationDataset):
    """Masks without files: the class of an image is its number modulo the number of classes, and class 3 is rare."""

    def mask(self, index: int) -> np.ndarray:
        number = int(self.names[index].rpartition("_")[2])
        return np.array([[number % 3, 3 if number % 20 == 0 else 255]], np.uint8)


def listed(names) -> Masks:
    names = tuple(names)
    paths = tuple(Path(f"{name}.png") for name in names)
    return Masks("toys train", names, paths, paths, ("a", "b", "c", "d"), voc_palette(4))


def numbered(count: int, videos: int = 1) -> Masks:
    return listed(f"video{number % videos}_{number:04}" for number in range(count))


def data_of(dataset, **settings) -> DataModule:
    return DataModule(lambda root, split: dataset, "root", "train", "val", 4, lambda size: none(size), **settings)


def test_each_image_is_held_out_once_and_otherwise_trained_on():
    dataset = numbered(200)
    splits = [data_of(dataset, folds=5, fold=fold) for fold in range(5)]
    held_out = [set(data.split("val").names) for data in splits]
    assert sorted(name for names in held_out for name in names) == sorted(dataset.names)
    assert [set(data.split("train").names) for data in splits] == [set(dataset.names) - names for names in held_out]
    assert all(25 <= len(names) <= 55 for names in held_out)  # 40 +- 2.6 standard deviations of a binomial
    assert splits[0].split("test") is splits[0].split("val")
    assert splits[3].split("val").title == "toys train, fold 3 of 5"


def test_the_fold_is_a_hash_of_the_name():
    """The hash is BLAKE2b of the name with the key "folds"; its first bits choose the fold."""
    dataset, more = numbered(50), numbered(90)
    by_hand = []
    for name in dataset.names:
        digest = hashlib.blake2b(name.encode(), digest_size=8, key=b"folds").hexdigest()
        by_hand.append(int(5 * int(digest, 16) / 16**16))
    folds = Folds(5, 0)
    assert folds.assign(dataset).tolist() == by_hand
    assert folds.assign(more).tolist()[:50] == by_hand  # new images move no other one
    assert hash_of_name("a", "folds") != hash_of_name("a", "fraction")


def test_a_group_is_the_shortest_text_that_fits():
    """A longer one would be a group for each image, and put those of one patient into several folds."""
    dataset = listed(f"patient{number % 9}_slice_{number:03}_a" for number in range(90))
    assert set(Folds(2, 0, "{group}_*").groups(dataset)) == {f"patient{number}" for number in range(9)}


def test_groups_are_reported(caplog):
    data = data_of(numbered(40, videos=8), folds=2, fold=0, fold_group="{group}_*")
    with caplog.at_level("INFO", logger="fcnlab"):
        report_splits(data, "train", "val")
    assert "toys train: 8 groups of data.fold_group={group}_*, such as 'video0'" in caplog.text


@pytest.mark.parametrize("stratify", [False, True], ids=["by hash", "stratified"])
def test_images_of_one_group_stay_together(stratify):
    dataset = numbered(300, videos=30)
    assigned = Folds(3, 0, "{group}_*", stratify).assign(dataset)
    by_video = {name.partition("_")[0]: set() for name in dataset.names}
    for name, fold in zip(dataset.names, assigned, strict=True):
        by_video[name.partition("_")[0]].add(int(fold))
    assert all(len(folds) == 1 for folds in by_video.values())
    assert set.union(*by_video.values()) == {0, 1, 2}


def test_stratified_folds_have_equally_many_images_of_each_class():
    dataset = numbered(100)
    assigned = Folds(5, 0, stratify=True).assign(dataset)
    assert np.bincount(assigned).tolist() == [20] * 5
    for label in range(4):
        present = np.array([label in dataset.mask(index) for index in range(100)])
        counts = np.bincount(assigned[present], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert len(set(Folds(5, 0).assign(dataset)[np.arange(0, 100, 20)])) < 5  # by hash, some fold lacks the rare class


def test_a_smaller_fraction_is_part_of_a_larger_one():
    dataset = numbered(200, videos=40)
    names = {
        (fraction, group): set(data_of(dataset, fraction=fraction, fold_group=group).split("train").names)
        for fraction in (0.001, 0.1, 0.2, 1.0)
        for group in (None, "{group}_*")
    }
    assert [len(names[fraction, None]) for fraction in (0.001, 0.1, 0.2, 1.0)] == [1, 20, 40, 200]
    assert [len(names[fraction, "{group}_*"]) for fraction in (0.001, 0.1, 0.2, 1.0)] == [5, 20, 40, 200]
    for group in (None, "{group}_*"):
        assert names[0.001, group] < names[0.1, group] < names[0.2, group] < names[1.0, group]
    data = data_of(dataset, fraction=0.1)
    assert data.split("val") is dataset and data.whole("train") is dataset  # the validation list stays whole


def test_a_fraction_of_the_training_part_is_taken_after_the_folds():
    dataset = numbered(200)
    data = data_of(dataset, folds=4, fold=1, fraction=0.5)
    training = set(data_of(dataset, folds=4, fold=1).split("train").names)
    names = set(data.split("train").names)
    assert names < training and len(names) == round(len(training) / 2)
    assert set(data.split("val").names) == set(dataset.names) - training
    assert data.split("train").title == "toys train, without fold 1 of 4, fraction 0.5"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fold": 2}, r"data\.fold=2 needs the number of folds: add data\.folds=5"),
        ({"folds": 3}, r"data\.folds=3 needs the fold to hold out: set data\.fold to 0 to 2, .* -m data\.fold=0,1,2"),
        ({"folds": 5, "fold": 5}, r"data\.fold=5 must be 0 to 4, because data\.folds=5"),
        ({"folds": 1, "fold": 0}, r"data\.folds=1 must be at least 2"),
        ({"folds": 50, "fold": 0}, r"data\.folds=50 needs 50 images or more, but toys train has 40"),
        ({"folds": 39, "fold": 0}, r"fold \d+ of data\.folds=39 contains none of the 40 images .*data\.stratify=true"),
        ({"folds": 3, "fold": 0, "fold_group": "{group}_*"}, r"needs 3 groups of data\.fold_group=\{group\}_\* or"),
        ({"folds": 2, "fold": 0, "fold_group": "{group}-*"}, r"does not match the image video0_0000 of toys train"),
        ({"folds": 2, "fold": 0, "fold_group": "^(.*)_"}, r"must contain \{group\} once"),
        ({"fraction": 0.0}, r"data\.fraction=0\.0 must be above 0"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_impossible_folds_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        data_of(numbered(40, videos=2), **settings).split("train")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data.folds=5", "data.fold=5"), "data.fold=5 must be 0 to 4, because data.folds=5"),
        (("data.fold=1",), "data.fold=1 needs the number of folds"),
        (("data.folds=five", "data.fold=1"), "data.folds must be a whole number of at least 2 or null, got 'five'"),
    ],
)
def test_contradictions_are_found_before_any_job_of_a_sweep(composed, words, message):
    from fcnlab.config.validation import ConfigError, validate_config

    with pytest.raises(ConfigError) as error:
        validate_config(composed("data=shapes", *words))
    assert message in str(error.value)
