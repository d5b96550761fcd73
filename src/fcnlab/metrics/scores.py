"""The four scores of the FCN papers, from one integer confusion matrix over the whole set.

With n_ij pixels of class i called j and t_i = sum_j n_ij (CVPR 2015, section 5):

- ``pixel_acc``  sum_i n_ii / sum_i t_i
- ``mean_acc``   mean over classes of n_ii / t_i
- ``miou``       mean over classes of n_ii / (t_i + sum_j n_ji - n_ii)
- ``fw_iou``     that ratio, weighted by t_i

Void pixels are in no sum. A class that is neither in the truth nor in the prediction has no IoU and is left out of the
mean; one that is predicted but absent from the truth has IoU 0 and no accuracy. This is not what
``torchmetrics.segmentation.MeanIoU`` computes: that averages over single images and their classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from numpy import ndarray

IGNORE_INDEX = 255  # the label that is neither trained on nor scored, whatever a data set calls it on disk
SCORES = ("pixel_acc", "mean_acc", "miou", "fw_iou")


class Scores(NamedTuple):
    """Ratios in 0..1; nan where nothing defines one."""

    pixel_acc: float
    mean_acc: float
    miou: float
    fw_iou: float
    iou: Float[ndarray, " classes"]

    def flat(self, classes: Sequence[str]) -> dict[str, float]:
        """By the names that logs and records use: the four, and ``iou/<class>``."""
        per_class = {f"iou/{name}": float(value) for name, value in zip(classes, self.iou, strict=True)}
        return {name: getattr(self, name) for name in SCORES} | per_class


def scores(matrix: Integer[ndarray, "truth prediction"]) -> Scores:
    """The scores of a confusion matrix of pixel counts."""
    intersection, target, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    return scores_of_areas(intersection, target, target + predicted - intersection)


def scores_of_areas(
    intersection: Integer[ndarray, " classes"],
    target: Integer[ndarray, " classes"],
    union: Integer[ndarray, " classes"],
) -> Scores:
    """The same scores from the pixels of each class: rightly labelled, in the truth, in truth or prediction."""
    iou = _ratio(intersection, union)
    return Scores(
        pixel_acc=float(_ratio(intersection.sum(), target.sum())),
        mean_acc=_mean(_ratio(intersection, target)),
        miou=_mean(iou),
        fw_iou=float(_ratio(np.nansum(target * iou), target.sum())),
        iou=iou,
    )


def _ratio(part, whole):
    """part / whole, nan where the whole is nothing."""
    whole = np.asarray(whole)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean(values: Float[ndarray, " classes"]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
