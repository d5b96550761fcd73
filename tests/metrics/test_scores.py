"""The four scores, compared with sums by hand."""

import numpy as np
import pytest

from fcnlab.metrics.scores import SCORES, scores

NAN = float("nan")

# Rows: ground truth, columns: predictions. Then pixel accuracy, mean accuracy, mean IoU, frequency-weighted IoU;
# IoU per class.
BY_HAND = {
    "two classes": (
        [[3, 1], [2, 4]],
        (7 / 10, (3 / 4 + 4 / 6) / 2, (3 / 6 + 4 / 7) / 2, (4 * 3 / 6 + 6 * 4 / 7) / 10),
        (3 / 6, 4 / 7),
    ),
    "an absent class has no IoU and is left out": (
        [[3, 0, 1], [0, 0, 0], [2, 0, 4]],
        (7 / 10, (3 / 4 + 4 / 6) / 2, (3 / 6 + 4 / 7) / 2, (4 * 3 / 6 + 6 * 4 / 7) / 10),
        (3 / 6, NAN, 4 / 7),
    ),
    "a predicted but absent class has IoU 0, no accuracy": ([[3, 1], [0, 0]], (3 / 4, 3 / 4, 3 / 8, 3 / 4), (3 / 4, 0)),
    "a class that is never predicted": ([[4, 0], [1, 0]], (4 / 5, 1 / 2, 4 / 10, 4 * 4 / 5 / 5), (4 / 5, 0)),
    "perfect": ([[5, 0], [0, 9]], (1, 1, 1, 1), (1, 1)),
    "all wrong": ([[0, 5], [9, 0]], (0, 0, 0, 0), (0, 0)),
    "no pixels": ([[0, 0], [0, 0]], (NAN, NAN, NAN, NAN), (NAN, NAN)),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_scores_equal_sums_by_hand(case):
    matrix, four, iou = BY_HAND[case]
    computed = scores(np.array(matrix))
    np.testing.assert_allclose(computed[:4], four, rtol=1e-12)
    np.testing.assert_allclose(computed.iou, iou, rtol=1e-12)


def test_counts_beyond_32_bits_are_exact():
    """The number of pixels of a large set, times the classes, exceeds 2^31."""
    computed = scores(np.array([[2**40, 1], [0, 2**40]]))
    assert 0 < 1 - computed.pixel_acc < 1e-12


def test_order_of_the_classes_does_not_matter():
    matrix, order = np.random.default_rng(0).integers(0, 99, (5, 5)), [3, 1, 4, 0, 2]
    original, permuted = scores(matrix), scores(matrix[np.ix_(order, order)])
    np.testing.assert_allclose(permuted[:4], original[:4])
    np.testing.assert_allclose(permuted.iou, original.iou[order])


def test_names_in_logs():
    flat = scores(np.array([[3, 1], [2, 4]])).flat(("ground", "cat"))
    assert list(flat) == [*SCORES, "iou/ground", "iou/cat"] and flat["iou/ground"] == 0.5
    assert all(type(value) is float for value in flat.values())
    with pytest.raises(ValueError):
        scores(np.eye(2, dtype=int)).flat(("ground",))
