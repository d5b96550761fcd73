"""Fine-grained mIoU, compared with fractions by hand, with loops, and with masks."""

import numpy as np
import pytest

from fcnlab.metrics.fine_grained import fine_grained_miou
from fcnlab.metrics.scores import scores

# Rows: ground truth, columns: predictions. IoU: 3/6 and 4/7; 8/9, and no class 1 in the ground truth, though one pixel
# is predicted as it; 0/2 and 6/8.
THREE = np.array([[[3, 1], [2, 4]], [[8, 1], [0, 0]], [[0, 2], [0, 6]]])


def test_three_images_by_hand():
    first, third = (3 / 6 + 4 / 7) / 2, (0 + 6 / 8) / 2
    computed = fine_grained_miou(THREE)
    assert computed.miou_i == pytest.approx((first + 8 / 9 + third) / 3)
    assert computed.miou_c == pytest.approx(((3 / 6 + 8 / 9 + 0) / 3 + (4 / 7 + 6 / 8) / 2) / 2)
    assert computed.miou_i10 == pytest.approx(third), "at least one image"
    assert computed.miou_c10 == pytest.approx((0 + 4 / 7) / 2), "at least one image of each class"


def by_loops(matrices: np.ndarray) -> list[float]:
    """Return the four scores, by lists of the IoU of each class in each image."""
    of_image: dict[int, list[float]] = {}
    of_class: dict[int, list[float]] = {}
    for image, matrix in enumerate(matrices):
        for label, row in enumerate(matrix):
            if row.sum():
                iou = matrix[label, label] / (row.sum() + matrix[:, label].sum() - matrix[label, label])
                of_image.setdefault(image, []).append(iou)
                of_class.setdefault(label, []).append(iou)
    images = [sum(values) / len(values) for values in of_image.values()]
    classes = list(of_class.values())

    def worst(values: list[float]) -> float:
        return float(np.mean(sorted(values)[: max(1, len(values) // 10)]))

    return [
        np.mean(images),
        np.mean([np.mean(c) for c in classes]),
        worst(images),
        np.mean([worst(c) for c in classes]),
    ]


@pytest.mark.parametrize("images", [1, 9, 10, 57])
def test_equals_loops(images):
    """Some images have only ignored pixels, and class 4 is in no ground truth."""
    rng = np.random.default_rng(images)
    matrices = rng.integers(0, 900, (images, 5, 5)) * (rng.random((images, 5, 1)) < 0.4)
    matrices[:, 4] = 0
    matrices[0, 0, 0] = 7
    np.testing.assert_allclose(fine_grained_miou(matrices), by_loops(matrices), rtol=1e-12)


def test_one_image_with_all_classes_has_its_miou():
    matrix = np.random.default_rng(0).integers(1, 99, (1, 4, 4))
    assert fine_grained_miou(matrix) == pytest.approx([scores(matrix[0]).miou] * 4)


def test_only_ignored_pixels():
    assert np.isnan(fine_grained_miou(np.zeros((3, 2, 2), int))).all()
