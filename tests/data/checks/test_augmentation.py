"""The loaders' own streams pass; each way in which albumentations is used wrongly is found."""

import numpy as np
import pytest

from fcnlab.data import DataModule, loader_workers, open_voc
from fcnlab.data.checks.augmentation import augmented_samples, inspect_streams
from fcnlab.data.checks.report import Verdict
from fcnlab.data.transforms import none, patches, standard, strong

ALL = {"equal seeds", "0 and 2 workers", "two workers", "two epochs"}


@pytest.fixture
def make(voc_root):
    def build(augment) -> DataModule:
        settings = {"root": str(voc_root), "train_list": "train", "val_list": "val", "num_classes": 21}
        return DataModule(open_voc, augment=augment, crop_size=16, batch_size=4, num_workers=0, seed=3, **settings)

    return build


def wrong(data: DataModule) -> set[str]:
    findings = inspect_streams(data, data.split("train"), 0)
    assert {finding.about for finding in findings} == {"augmentation"}
    return {finding.check for finding in findings if finding.verdict != Verdict.OK}


class OwnState:
    """As albumentations by itself: a state that forked workers copy."""

    def __init__(self, crop_size: int):
        self.rng = np.random.default_rng(0)

    def __call__(self, image, mask, seed):
        return image + np.uint8(self.rng.integers(256)), mask


class Seeded(OwnState):
    """From some of the sample's key."""

    def __init__(self, *places: int):
        self.places = places

    def __call__(self, image, mask, seed):
        return image + np.uint8(np.random.default_rng([seed[place] for place in self.places]).integers(256)), mask


@pytest.mark.parametrize("augment", [standard, strong, patches, none])
def test_what_fcnlab_brings_is_sound(make, augment):
    assert wrong(make(augment)) == set()


@pytest.mark.parametrize(
    ("augment", "found"),
    [
        (OwnState, ALL),
        (lambda crop_size: Seeded(0, 2), {"two epochs"}),  # without the epoch
        (lambda crop_size: Seeded(0), {"two workers", "two epochs"}),
        (lambda crop_size: Seeded(0, 1, 2), set()),
    ],
)
def test_a_pipeline_that_draws_wrongly_is_found(make, augment, found):
    assert wrong(make(augment)) == found


def test_a_pipeline_that_fails_is_an_error_with_its_words(make):
    def fail(image, mask, seed):
        raise ValueError("no such colour")

    (finding,) = inspect_streams(make(lambda crop_size: fail), make(none).split("train"), 0)
    assert finding.verdict == Verdict.ERROR and "no such colour" in finding.found


def test_without_workers_what_needs_them_is_left_open(make, monkeypatch):
    monkeypatch.setattr(loader_workers, "why_workers_are_unavailable", lambda: "No such file or directory")
    data = make(standard)
    findings = {finding.check: finding for finding in inspect_streams(data, data.split("train"), 0)}
    assert findings.keys() == ALL - {"two workers"}
    (open_one,) = (finding for finding in findings.values() if finding.verdict != Verdict.OK)
    assert open_one.check == "0 and 2 workers" and "not compared, because memory cannot be shared" in open_one.found


def test_samples_are_those_that_training_begins_with(make):
    data = make(standard)
    batch = next(iter(data.train_dataloader()))
    names = [data.split("train").names[index] for index in batch["index"]]
    samples = augmented_samples(data, data.split("train"), range(8), 4)
    assert [name for name, _, _ in samples] == names
    for (_, image, mask), expected, target in zip(samples, batch["image"], batch["mask"], strict=True):
        np.testing.assert_array_equal(image, expected.permute(1, 2, 0))
        np.testing.assert_array_equal(mask, target)


def test_broken_images_are_no_samples(make, voc_root):
    (voc_root / "VOCdevkit/VOC2012/JPEGImages/t0.jpg").unlink()
    data = make(standard)
    names = [name for name, _, _ in augmented_samples(data, data.split("train"), range(1, 8), 20)]
    assert sorted(names) == [f"t{place}" for place in range(1, 8)]
