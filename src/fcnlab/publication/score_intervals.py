"""Intervals of the scores of one model over images: what other images of this kind would give."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from fcnlab.comparison.intervals import draws, mean_iou, over_images
from fcnlab.comparison.runs import Run
from fcnlab.metrics.scores import SCORES


class Bounds(NamedTuple):
    """The ends of a confidence interval of a score in 0..1."""

    low: float
    high: float


class ScoreIntervals(NamedTuple):
    """Intervals of the four scores by name, and of the IoU of each class; None where a score is undefined."""

    scores: dict[str, Bounds]
    iou: list[Bounds | None]


def score_intervals(run: Run, resamples: int, confidence: float) -> ScoreIntervals:
    """Return percentile intervals from a bootstrap over the images of a run; the weights are those of the run."""
    counts = draws(len(run.names), resamples)
    intersection, target, union = (counts @ areas.astype(counts.dtype) for areas in run.areas)
    iou = _ratio(intersection, union)
    pixels = target.sum(axis=1)
    resampled = {
        "pixel_acc": _ratio(intersection.sum(axis=1), pixels),
        "mean_acc": mean_iou(intersection, target),
        "miou": mean_iou(intersection, union),
        "fw_iou": _ratio(np.nansum(target * iou, axis=1), pixels),
    }
    return ScoreIntervals(
        {name: _bounds(resampled[name], confidence) for name in SCORES},
        [
            None if np.isnan(value) else _bounds(each, confidence)
            for value, each in zip(run.scores.iou, iou.T, strict=True)
        ],
    )


def _ratio(part: ndarray, whole: ndarray) -> ndarray:
    """Return part / whole; nan where the whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _bounds(resampled: Float[ndarray, " resamples"], confidence: float) -> Bounds:
    interval = over_images(0.0, resampled, confidence)
    return Bounds(interval.low, interval.high)
