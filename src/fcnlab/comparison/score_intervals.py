"""Intervals of the scores of one model over images: what other images of this kind would give.

A resample without a class excludes it from the means over classes. If that is likely, the means of resamples are not
those of the set: with 20 classes in two images each, the interval would begin near the score itself. So means over rare
classes have no interval. Neither has the IoU of a class that is found in few images, as in :mod:`.classes`.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from fcnlab.comparison.intervals import (
    FEW_CLASS_IMAGES,
    Bounds,
    are_rare,
    mean_iou,
    percentile_bounds,
    resampled_miou,
)
from fcnlab.metrics.conventions import ClassAreas
from fcnlab.metrics.scores import SCORES

Draws = Float[ndarray, "resamples images"]  # of intervals.draws


class ScoreIntervals(NamedTuple):
    """Intervals of the four scores by name, and of the IoU of each class; None where there is no reliable one."""

    scores: dict[str, Bounds | None]
    iou: list[Bounds | None]


def score_intervals(areas: ClassAreas, counts: Draws, confidence: float) -> ScoreIntervals:
    """Return percentile intervals from a bootstrap; ``areas`` has a row for each image, ``counts`` the resamples."""
    intersection, target, union = (counts @ part.astype(counts.dtype) for part in areas)
    iou = _ratio(intersection, union)
    pixels = target.sum(axis=1)
    resampled = {
        "pixel_acc": _ratio(intersection.sum(axis=1), pixels),
        "mean_acc": None if _has_rare(areas.target) else mean_iou(intersection, target),
        "miou": None if _has_rare(areas.union) else mean_iou(intersection, union),
        "fw_iou": _ratio(np.nansum(target * iou, axis=1), pixels),
    }
    found = (areas.intersection > 0).sum(axis=0)
    return ScoreIntervals(
        {name: _bounds(resampled[name], confidence) for name in SCORES},
        [
            _bounds(each, confidence) if count >= FEW_CLASS_IMAGES else None
            for count, each in zip(found, iou.T, strict=True)
        ],
    )


def miou_interval(areas: ClassAreas, counts: Draws, confidence: float) -> Bounds | None:
    """Return the interval of the mean IoU alone, as :func:`score_intervals` does."""
    if _has_rare(areas.union):
        return None
    return percentile_bounds(resampled_miou(counts, areas.intersection, areas.union), confidence)


def _has_rare(part: ndarray) -> bool:
    return bool(are_rare((part > 0).sum(axis=0)).any())


def _ratio(part: ndarray, whole: ndarray) -> ndarray:
    """Return part / whole; nan where the whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _bounds(resampled: Float[ndarray, " resamples"] | None, confidence: float) -> Bounds | None:
    return None if resampled is None else percentile_bounds(resampled, confidence)
