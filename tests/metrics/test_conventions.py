"""Five conventions of mean IoU, compared with sums by hand, loops over pixels, and torchmetrics."""

import json
import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.segmentation import mean_iou
from torchmetrics.segmentation import MeanIoU

from fcnlab.metrics.conventions import all_conventions, as_facts, conventions_table
from fcnlab.metrics.scores import IGNORE_INDEX, scores

CLASSES = 6
NAMES = ["FCN paper", "mmsegmentation", "detectron2", "torchmetrics MeanIoU", "average of batches of 2"]

# Rows are ground truth, columns predictions. Class 2 is only predicted, class 3 does not occur.
THREE = np.array(
    [
        [[4, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[2, 1, 0, 0], [2, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    ]
)
FCN = ((6 / 11 + 4 / 8 + 0) / 3, (6 / 8 + 4 / 7) / 2, 10 / 15)
BY_HAND = {
    "FCN paper": FCN,
    "mmsegmentation": FCN,
    "detectron2": ((6 / 11 + 4 / 8) / 2, *FCN[1:]),
    "torchmetrics MeanIoU": ((4 / 5 + 0 + 2 / 5 + 3 / 6 + 0 + 1 / 2) / 6, None, None),
    "average of batches of 2": (
        ((6 / 10 + 3 / 6 + 0) / 3 + (0 + 1 / 2) / 2) / 2,
        ((6 / 8 + 3 / 5) / 2 + 1 / 2) / 2,
        (9 / 13 + 1 / 2) / 2,
    ),
}

# One image of 2^24 correct pixels of class 0; then 1,000 images of one pixel of class 0, predicted as 1.
MANY = np.zeros((1001, 4, 4), np.int64)
MANY[0, 0, 0], MANY[1:, 0, 1] = 2**24, 1


def by_name(matrices, batch_size=2) -> dict:
    return {convention.name: convention for convention in all_conventions(matrices, batch_size)}


def label_images(seed: int, ignore_index: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return ground truth and prediction of seven small images of few classes; class 4 is only predicted."""
    rng, images = np.random.default_rng(seed), []
    for _ in range(7):
        size, few = rng.integers(3, 9, 2), rng.choice(CLASSES, 3, replace=False)
        target = rng.choice(few[few != 4], size)
        prediction = np.where(rng.random(size) < 0.6, target, rng.choice([*few, 4], size))
        images.append((np.where(rng.random(size) < 0.2 * ignore_index, IGNORE_INDEX, target), prediction))
    return images


def counted(images) -> np.ndarray:
    matrices = np.zeros((len(images), CLASSES, CLASSES), np.int64)
    for matrix, (targets, labels) in zip(matrices, images, strict=True):
        for target, label in zip(targets.flat, labels.flat, strict=True):
            if target != IGNORE_INDEX:
                matrix[target, label] += 1
    return matrices


def pixel_loop(images, only_true: bool = False) -> float:
    """Return the mean IoU, computed from sets of pixels."""
    true, predicted = {}, {}
    for number, (targets, labels) in enumerate(images):
        for place, target in np.ndenumerate(targets):
            if target != IGNORE_INDEX:
                true.setdefault(int(target), set()).add((number, place))
                predicted.setdefault(int(labels[place]), set()).add((number, place))
    classes = set(true) if only_true else set(true) | set(predicted)
    pairs = [(true.get(label, set()), predicted.get(label, set())) for label in classes]
    return sum(len(first & second) / len(first | second) for first, second in pairs) / len(pairs)


@pytest.mark.parametrize("name", NAMES)
def test_conventions_equal_sums_by_hand(name):
    convention = by_name(THREE)[name]
    rel = 1e-6 if name == "mmsegmentation" else 1e-12
    for value, expected in zip(convention[1:4], BY_HAND[name], strict=True):
        assert value == (None if expected is None else pytest.approx(expected, rel=rel))


@pytest.mark.parametrize("seed", range(4))
def test_conventions_equal_loops_over_pixels(seed):
    images = label_images(seed, ignore_index=True)
    conventions = by_name(counted(images))
    assert conventions["FCN paper"].miou == pytest.approx(pixel_loop(images), rel=1e-12)
    assert conventions["mmsegmentation"].miou == pytest.approx(pixel_loop(images), rel=1e-6)
    assert conventions["detectron2"].miou == pytest.approx(pixel_loop(images, only_true=True), rel=1e-12)
    batches = [pixel_loop(images[start : start + 2]) for start in (0, 2, 4, 6)]
    assert conventions["average of batches of 2"].miou == pytest.approx(sum(batches) / 4, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_torchmetrics_convention_equals_torchmetrics(seed):
    """Images are added one by one, since their sizes differ: torchmetrics averages over images, not batches."""
    images = label_images(seed, ignore_index=False)
    metric, own_means = MeanIoU(CLASSES, input_format="index"), []
    for target, prediction in images:
        maps = torch.from_numpy(prediction)[None], torch.from_numpy(target)[None]
        metric.update(*maps)
        own_means.append(mean_iou(*maps, CLASSES, input_format="index").item())
    miou = by_name(counted(images))["torchmetrics MeanIoU"].miou
    assert miou == pytest.approx(metric.compute().item(), rel=1e-5)
    assert abs(miou - np.mean(own_means)) > 1e-4, "these images do not tell pairs from the mean of images"


def test_torchmetrics_refuses_ignored_pixels():
    """If torchmetrics accepts ignored labels one day, its convention has to be revised."""
    labels = torch.zeros(1, 2, 2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="num_classes"):
        MeanIoU(CLASSES, input_format="index").update(labels, torch.full_like(labels, IGNORE_INDEX))


def test_single_precision_loses_small_images():
    conventions = by_name(MANY)
    exact = 2**24 / (2**24 + 1000)
    assert conventions["FCN paper"][1:4] == pytest.approx((exact / 2, exact, exact), rel=1e-12)
    assert conventions["mmsegmentation"][1:4] == (0.5, 1, 1)


def test_all_five_conventions_differ():
    mious = [convention.miou for convention in all_conventions(np.concatenate([MANY, THREE]), batch_size=2)]
    gaps = [abs(first - second) for place, first in enumerate(mious) for second in mious[:place]]
    assert len(gaps) == 10 and min(gaps) > 1e-5


def test_all_five_conventions_agree_on_one_image_of_all_classes():
    matrix = np.random.default_rng(0).integers(1, 99, (CLASSES, CLASSES))
    expected = scores(matrix)
    for convention in all_conventions(matrix[None]):
        assert convention.miou == pytest.approx(expected.miou, rel=1e-6)
        if convention.mean_acc is not None:
            assert convention[2:4] == pytest.approx((expected.mean_acc, expected.pixel_acc), rel=1e-6)


def test_the_first_convention_equals_the_recorded_scores_exactly():
    matrices = np.random.default_rng(1).integers(0, 2**20, (9, CLASSES, CLASSES))
    expected = scores(matrices.sum(axis=0))
    assert all_conventions(matrices)[0][1:4] == (expected.miou, expected.mean_acc, expected.pixel_acc)


def test_the_batch_convention_names_its_batch_size():
    ones, twos = by_name(THREE, 1), by_name(THREE, 2)
    assert ones["average of batches of 1"].miou == pytest.approx(((4 / 5) / 2 + (2 / 5 + 3 / 6) / 2 + (1 / 2) / 2) / 3)
    assert "batches of 2 images" in twos["average of batches of 2"].differs


def test_a_batch_of_ignored_pixels_is_skipped():
    expected = by_name(THREE[:2])["average of batches of 2"]
    assert by_name(np.concatenate([THREE[:2], 0 * THREE[:2]]))["average of batches of 2"] == expected


def test_scores_without_pixels_are_null_in_the_record():
    conventions = all_conventions(0 * THREE)
    assert all(math.isnan(convention.miou) for convention in conventions)
    text = json.dumps(as_facts(conventions), allow_nan=False)
    assert all(convention["miou"] is None for convention in json.loads(text).values())


def test_facts_and_table():
    conventions = all_conventions(THREE, batch_size=2)
    facts, lines = as_facts(conventions), conventions_table(conventions).splitlines()
    assert list(facts) == NAMES
    assert all(list(fact) == ["miou", "mean_acc", "pixel_acc", "differs", "source"] for fact in facts.values())
    assert facts["torchmetrics MeanIoU"]["mean_acc"] is None
    assert lines[1].split() == ["miou", "mean_acc", "pixel_acc"] and len({len(line) for line in lines[1:7]}) == 1
    assert lines[4].split() == ["detectron2", "52.27", "66.07", "66.67"]
    assert lines[5].split() == ["torchmetrics", "MeanIoU", "36.67", "-", "-"]
    for convention in conventions:
        assert f"  {convention.name}: {convention.differs}" in lines and f"    [{convention.source}]" in lines
