"""Compute mean IoU from the IoU of single images, in which small objects have the same weight as large ones.

Wang et al., Revisiting Evaluation Metrics for Semantic Segmentation, NeurIPS 2023 (Datasets and Benchmarks). With the
intersection, the union and hence the IoU of class c in image i, for each class in the ground truth of the image:

- ``miou_i``    mean over images of the mean IoU of their classes (mIoU^I of the paper)
- ``miou_c``    mean over classes of the mean IoU over the images that have the class (mIoU^C)
- ``miou_i10``  ``miou_i`` of the worst 10 % of the images
- ``miou_c10``  ``miou_c``, where each class has only the worst 10 % of its images

The worst 10 % of n images are n / 10, rounded down, and at least one. An image or a class without ground truth is in no
mean: unlike in :mod:`fcnlab.metrics.scores`, a class that is only predicted has no IoU, although its pixels are missing
in the intersections of other classes. The authors' code treats two classes as foreground and background, and scores
the foreground alone; here all numbers of classes are treated alike.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64, Integer
from numpy import ndarray

from fcnlab.metrics.conventions import class_areas


class FineGrainedScores(NamedTuple):
    """Mean IoU over single images, in 0..1; nan if all pixels are ignored."""

    miou_i: float
    miou_c: float
    miou_i10: float
    miou_c10: float


def fine_grained_miou(matrices: Int64[ndarray, "image target prediction"]) -> FineGrainedScores:
    """Return mIoU per image and per class of images, and those of the worst 10 % of the images.

    ``matrices`` has the pixel counts of each image by (target, prediction). See :mod:`fcnlab.metrics.fine_grained` for
    the formulas (Wang et al., NeurIPS 2023).
    """
    return fine_grained_of_areas(*class_areas(matrices))


def fine_grained_of_areas(
    intersection: Integer[ndarray, "images classes"],
    target: Integer[ndarray, "images classes"],
    union: Integer[ndarray, "images classes"],
) -> FineGrainedScores:
    """Return the scores from the pixels of each class in each image."""
    known = target > 0
    if not known.any():
        return FineGrainedScores(*[float("nan")] * 4)
    iou = np.divide(intersection, union, out=np.full(union.shape, np.nan), where=known)
    iou = iou[known.any(axis=1)][:, known.any(axis=0)]
    of_images = np.nanmean(iou, axis=1)
    return FineGrainedScores(
        miou_i=float(of_images.mean()),
        miou_c=float(np.nanmean(iou, axis=0).mean()),
        miou_i10=float(_worst_tenth(of_images[:, None]).mean()),
        miou_c10=float(_worst_tenth(iou).mean()),
    )


def _worst_tenth(iou: Float[ndarray, "images scores"]) -> Float[ndarray, " scores"]:
    """Return the mean of the lowest tenth of each column, ignoring nan; no column is nan alone."""
    count = np.maximum((~np.isnan(iou)).sum(axis=0) // 10, 1)
    sums = np.nancumsum(np.sort(iou, axis=0), axis=0)  # nan is sorted to the end
    return sums[count - 1, np.arange(len(count))] / count
