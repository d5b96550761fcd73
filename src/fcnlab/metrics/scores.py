"""Compute the four scores of the FCN papers from one confusion matrix of the whole set.

With n_ij pixels of class i called j and t_i = sum_j n_ij (CVPR 2015, section 5):

- ``pixel_acc``  sum_i n_ii / sum_i t_i
- ``mean_acc``   mean over classes of n_ii / t_i
- ``miou``       mean over classes of n_ii / (t_i + sum_j n_ji - n_ii)
- ``fw_iou``     that ratio, weighted by t_i

Ignored pixels are in no sum. A class that is neither in the ground truth nor in the prediction has no IoU and is
excluded from the mean; a class that is predicted but absent from the ground truth has IoU 0 and no accuracy. This
differs from ``torchmetrics.segmentation.MeanIoU``, which averages over single images and their classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from numpy import ndarray

IGNORE_INDEX = 255  # label of pixels that are neither trained on nor scored
SCORES = ("pixel_acc", "mean_acc", "miou", "fw_iou")


class Scores(NamedTuple):
    """Scores in 0..1; nan where a score is undefined."""

    pixel_acc: float
    mean_acc: float
    miou: float
    fw_iou: float
    iou: Float[ndarray, " classes"]

    def flat(self, classes: Sequence[str]) -> dict[str, float]:
        """Return the scores by the names in logs and records: the four, and ``iou/<class>``."""
        per_class = {f"iou/{name}": float(value) for name, value in zip(classes, self.iou, strict=True)}
        return {name: getattr(self, name) for name in SCORES} | per_class


def scores(matrix: Integer[ndarray, "target prediction"]) -> Scores:
    """Return the scores of a confusion matrix of pixel counts."""
    intersection, target, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    return scores_of_areas(intersection, target, target + predicted - intersection)


def scores_of_areas(
    intersection: Integer[ndarray, " classes"],
    target: Integer[ndarray, " classes"],
    union: Integer[ndarray, " classes"],
) -> Scores:
    """Return the scores from the pixels of each class: correct, in the ground truth, in ground truth or prediction."""
    iou = _ratio(intersection, union)
    return Scores(
        pixel_acc=float(_ratio(intersection.sum(), target.sum())),
        mean_acc=_mean(_ratio(intersection, target)),
        miou=_mean(iou),
        fw_iou=float(_ratio(np.nansum(target * iou), target.sum())),
        iou=iou,
    )


def _ratio(part, whole):
    """Return part / whole; nan where the whole is 0."""
    whole = np.asarray(whole)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean(values: Float[ndarray, " classes"]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
