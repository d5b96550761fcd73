"""Confusion matrices, compared with a histogram, torchmetrics, and the result of several processes."""

from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.segmentation import MeanIoU

from fcnlab.metrics.confusion import ImageConfusions, confusion_matrix, dataset_scores, deterministic_bincount

CLASSES = 5


def histogram(prediction, target) -> np.ndarray:
    """Return the confusion matrix, counted pixel by pixel."""
    matrix = np.zeros((CLASSES, CLASSES), np.int64)
    for label, true in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True):
        if true != 255:
            matrix[true, label] += 1
    return matrix


def images(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return predictions and ground truths of different sizes, with ignored pixels."""
    rng = np.random.default_rng(0)
    shapes = [(1, 5 + place, 9 - place % 3) for place in range(count)]
    labels = np.array([*range(CLASSES), 255])
    return [
        (torch.tensor(rng.integers(0, CLASSES, shape)), torch.tensor(rng.choice(labels, shape))) for shape in shapes
    ]


def count(indices, total: int) -> ImageConfusions:
    """Count some images of a set, like one process."""
    metric, pairs = ImageConfusions(total, CLASSES), images(total)
    for index in indices:
        metric.update(*pairs[index], torch.tensor([index]))
    return metric


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64])
def test_confusion_matrix_equals_a_histogram(kind):
    for prediction, target in images(6):
        matrix = confusion_matrix(prediction.to(kind), target.to(kind), CLASSES)
        assert matrix.dtype == torch.int64
        np.testing.assert_array_equal(matrix, histogram(prediction, target))


@pytest.mark.parametrize("kind", [torch.int16, torch.int32])
def test_deterministic_bincount_equals_numpy(kind):
    numbers = np.random.default_rng(0).integers(0, 90, 5000)
    np.testing.assert_array_equal(
        deterministic_bincount(torch.tensor(numbers, dtype=kind), 100), np.bincount(numbers, minlength=100)
    )


@pytest.mark.parametrize("classes", [2, 21, 61, 62, 150, 255, 256])
@pytest.mark.parametrize("ignore_index", [255, 0, 7])
def test_any_number_of_classes_is_counted(classes, ignore_index):
    """This includes more classes than narrow integers allow, and an ignore_index that is a class id."""
    rng = np.random.default_rng(classes)
    target = rng.choice(np.array([*range(classes), ignore_index]), (40, 53)).astype(np.uint8)
    prediction = rng.integers(0, classes, target.shape)
    expected = np.zeros((classes, classes), np.int64)
    np.add.at(expected, (target[target != ignore_index], prediction[target != ignore_index]), 1)
    matrix = confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(target), classes, ignore_index)
    np.testing.assert_array_equal(matrix, expected)


def test_rows_are_the_ground_truth():
    matrix = confusion_matrix(torch.tensor([1, 1, 2]), torch.tensor([0, 1, 255]), 3)
    assert matrix.tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_another_ignore_index():
    matrix = confusion_matrix(torch.tensor([0, 1]), torch.tensor([2, 1]), 2, ignore_index=2)
    assert matrix.tolist() == [[0, 0], [0, 1]]


def test_ignored_pixels_are_not_counted():
    assert confusion_matrix(torch.zeros(9, dtype=torch.int64), torch.full((9,), 255), CLASSES).sum() == 0


def test_miou_equals_torchmetrics_if_all_classes_occur():
    metric = MulticlassJaccardIndex(CLASSES, ignore_index=255)
    for prediction, target in images(6):
        metric.update(prediction, target)
    assert dataset_scores(count(range(6), 6).compute()[1]).miou == pytest.approx(metric.compute().item())


def test_miou_is_not_the_average_over_images():
    """torchmetrics' MeanIoU averages over images: a small image with a rare class weighs as much as a large one."""
    target = [torch.tensor([[0, 0, 0, 1]]), torch.tensor([[1, 1, 1, 1]])]
    prediction = [torch.tensor([[0, 0, 0, 0]]), torch.tensor([[1, 1, 1, 1]])]
    actual, reference = ImageConfusions(2, 2), MeanIoU(2, input_format="index")
    for index, (label, true) in enumerate(zip(prediction, target, strict=True)):
        actual.update(label[None], true[None], torch.tensor([index]))
        reference.update(label[None], true[None])
    assert dataset_scores(actual.compute()[1]).miou == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert reference.compute().item() == pytest.approx((3 / 4 + 0 / 1 + 4 / 4) / 3)


def test_compute_returns_a_matrix_for_each_image():
    pairs, (index, matrices) = images(6), count([4, 1, 3], 6).compute()
    assert index.tolist() == [1, 3, 4]
    for place, matrix in zip(index, matrices, strict=True):
        np.testing.assert_array_equal(matrix, histogram(*pairs[place]))


def test_batch_size_does_not_change_the_counts():
    prediction, target = (torch.randint(CLASSES, (6, 4, 4)) for _ in range(2))
    whole, parts = ImageConfusions(6, CLASSES), ImageConfusions(6, CLASSES)
    whole.update(prediction, target, torch.arange(6))
    for part in (slice(0, 4), slice(4, 6)):
        parts.update(prediction[part], target[part], torch.arange(6)[part])
    assert torch.equal(whole.compute()[1], parts.compute()[1])
    np.testing.assert_array_equal(whole.compute()[1].sum(0), histogram(prediction, target))


@pytest.mark.parametrize("indices", [[[2], [2]], [[2, 2]]])
def test_an_image_counted_twice_is_an_error(indices):
    metric = ImageConfusions(3, CLASSES)
    for index in indices:
        maps = torch.zeros(len(index), 2, 2, dtype=torch.int64)
        metric.update(maps, maps, torch.tensor(index))
    with pytest.raises(RuntimeError, match="image 2 was counted 2 times"):
        metric.compute()


def test_reset_clears_the_counts():
    metric = count([0, 1, 2], 3)
    metric.compute()
    metric.reset()
    for index in (1, 2):
        metric.update(*images(3)[index], torch.tensor([index]))
    assert metric.compute()[0].tolist() == [1, 2]


def test_a_set_of_one_image_is_counted():
    """torchmetrics turns tensors with one element into scalars, and a copy wraps compute again."""
    metric = count([0], 1)
    for tested in (metric, deepcopy(metric)):
        index, matrices = tested.compute()
        assert index.tolist() == [0] and matrices.shape == (1, CLASSES, CLASSES)


def test_scores_of_arrays_and_tensors_are_equal():
    _, matrices = count(range(4), 4).compute()
    assert dataset_scores(matrices)[:4] == dataset_scores(matrices.numpy())[:4]


@pytest.mark.parametrize("total", [7, 8])
def test_merged_states_equal_a_single_process(total):
    merged = count(range(0, total, 2), total)
    merged.merge_state(count(range(1, total, 2), total))
    for part, whole in zip(merged.compute(), count(range(total), total).compute(), strict=True):
        assert torch.equal(part, whole)


def test_an_image_counted_by_two_processes_is_an_error():
    merged = count([0, 1], 3)
    merged.merge_state(count([1, 2], 3))
    with pytest.raises(RuntimeError, match="image 1 was counted 2 times"):
        merged.compute()


def process(rank: int, world_size: int, totals: list[int], folder: str) -> None:
    """Count the images of one rank, compute with the other ranks, and save the result."""
    torch.set_num_threads(1)  # a fork does not copy the threads of OpenMP
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    results = [count(range(rank, total, world_size), total).compute() for total in totals]
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12 and later; no threads run here
def test_two_processes_count_the_same_integers(tmp_path):
    """The processes are forked, since new ones need half a minute to import torch."""
    totals = [7, 8]
    mp.start_processes(process, (2, totals, str(tmp_path)), nprocs=2, start_method="fork")
    for rank in range(2):
        for total, result in zip(totals, torch.load(tmp_path / f"{rank}.pt"), strict=True):
            index, matrices = result
            assert index.tolist() == list(range(total))
            assert torch.equal(matrices, count(range(total), total).compute()[1])
