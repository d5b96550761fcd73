"""fcnlab's own random streams pass the check; each failed_checks use of albumentations is reported."""

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


def failed_checks(data: DataModule) -> set[str]:
    findings = inspect_streams(data, data.split("train"), 0)
    assert {finding.about for finding in findings} == {"augmentation"}
    return {finding.check for finding in findings if finding.verdict != Verdict.OK}


class OwnState:
    """Use one random state that forked workers copy, as albumentations does by default."""

    def __init__(self, crop_size: int):
        self.rng = np.random.default_rng(0)

    def __call__(self, image, mask, seed):
        return image + np.uint8(self.rng.integers(256)), mask


class Seeded(OwnState):
    """Draw from a part of the sample's key only."""

    def __init__(self, *places: int):
        self.places = places

    def __call__(self, image, mask, seed):
        return image + np.uint8(np.random.default_rng([seed[place] for place in self.places]).integers(256)), mask


@pytest.mark.parametrize("augment", [standard, strong, patches, none])
def test_fcnlab_pipelines_pass_the_check(make, augment):
    assert failed_checks(make(augment)) == set()


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        (OwnState, ALL),
        (lambda crop_size: Seeded(0, 2), {"two epochs"}),  # without the epoch
        (lambda crop_size: Seeded(0), {"two workers", "two epochs"}),
        (lambda crop_size: Seeded(0, 1, 2), set()),
    ],
)
def test_a_pipeline_with_wrong_random_draws_is_reported(make, augment, expected):
    assert failed_checks(make(augment)) == expected


def test_a_failing_pipeline_is_an_error_with_its_message(make):
    def fail(image, mask, seed):
        raise ValueError("no such colour")

    (finding,) = inspect_streams(make(lambda crop_size: fail), make(none).split("train"), 0)
    assert finding.verdict == Verdict.ERROR and "no such colour" in finding.found


def test_checks_that_need_workers_are_skipped_without_workers(make, monkeypatch):
    monkeypatch.setattr(loader_workers, "why_workers_are_unavailable", lambda: "No such file or directory")
    data = make(standard)
    findings = {finding.check: finding for finding in inspect_streams(data, data.split("train"), 0)}
    assert findings.keys() == ALL - {"two workers"}
    (skipped,) = (finding for finding in findings.values() if finding.verdict != Verdict.OK)
    assert skipped.check == "0 and 2 workers" and "not compared, because memory cannot be shared" in skipped.found


def test_samples_are_the_first_training_samples(make):
    data = make(standard)
    batch = next(iter(data.train_dataloader()))
    names = [data.split("train").names[index] for index in batch["index"]]
    samples = augmented_samples(data, data.split("train"), range(8), 4)
    assert [name for name, _, _ in samples] == names
    for (_, image, mask), expected, target in zip(samples, batch["image"], batch["mask"], strict=True):
        np.testing.assert_array_equal(image, expected.permute(1, 2, 0))
        np.testing.assert_array_equal(mask, target)


def test_broken_images_are_skipped(make, voc_root):
    (voc_root / "VOCdevkit/VOC2012/JPEGImages/t0.jpg").unlink()
    data = make(standard)
    names = [name for name, _, _ in augmented_samples(data, data.split("train"), range(1, 8), 20)]
    assert sorted(names) == [f"t{place}" for place in range(1, 8)]
