"""Differences in fine-grained mIoU of two groups, with intervals over images by a paired bootstrap (:mod:`.intervals`).

The intervals are about other images, for these trained models. See :mod:`fcnlab.metrics.fine_grained` for the scores.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from fcnlab.comparison.grouping import Group
from fcnlab.comparison.intervals import FEWEST_IMAGES, Interval, draws, over_images
from fcnlab.comparison.pairs import Pair
from fcnlab.comparison.runs import Run
from fcnlab.metrics.conventions import ClassAreas
from fcnlab.metrics.fine_grained import FineGrainedScores

RESAMPLES = 2000  # 50 ms for each run of 1,449 images and 21 classes


def fine_grained_differences(pairs: Sequence[Pair], confidence: float) -> list[dict[str, Interval]]:
    """Return the interval of each score of each pair, on the runs that are compared; none on few images."""
    if not pairs or pairs[0].images < FEWEST_IMAGES:
        return [{} for _ in pairs]
    counts = draws(pairs[0].images, RESAMPLES)
    known: dict[Path, ndarray] = {}

    def resampled(run: Run) -> ndarray:
        if run.folder not in known:
            known[run.folder] = resampled_scores(counts, run.areas)
        return known[run.folder]

    def mean(group: Group) -> ndarray:
        return np.mean([resampled(run) for run in group.runs], axis=0)

    found = []
    for pair in pairs:
        first, second = pair.compared
        columns = (mean(first) - mean(second)).T
        differences = [first.mean(score) - second.mean(score) for score in FineGrainedScores._fields]
        known_scores = zip(FineGrainedScores._fields, differences, columns, strict=True)
        found.append({score: over_images(value, column, confidence) for score, value, column in known_scores})
    return found


def resampled_scores(counts: Float[ndarray, "resamples images"], areas: ClassAreas) -> Float[ndarray, "resamples 4"]:
    """Return the fine-grained scores of each resample, in the order of ``FineGrainedScores``."""
    known = areas.target > 0
    counts, known = counts[:, known.any(axis=1)], known[known.any(axis=1)]
    union, intersection = (part[(areas.target > 0).any(axis=1)] for part in (areas.union, areas.intersection))
    iou = np.divide(intersection, union, out=np.zeros(union.shape), where=known)
    of_images = iou.sum(axis=1) / known.sum(axis=1)
    images = counts @ known.astype(counts.dtype)  # of each class in each resample
    of_classes = _ratio(counts @ iou.astype(counts.dtype), images)
    worst_of_classes = np.stack(
        [lowest_tenth(iou[having, place], counts[:, having]) for place, having in enumerate(known.T)], axis=1
    )
    columns = [
        _ratio(counts @ of_images.astype(counts.dtype), counts.sum(axis=1)),
        np.nanmean(np.where(images > 0, of_classes, np.nan), axis=1),
        lowest_tenth(of_images, counts),
        np.nanmean(worst_of_classes, axis=1),
    ]
    return np.stack(columns, axis=1).astype(np.float64)


def lowest_tenth(values: Float[ndarray, " images"], counts: Float[ndarray, "resamples images"]) -> ndarray:
    """Return the mean of the lowest tenth of the drawn values, of one at least; nan for a resample without a value."""
    total = counts.sum(axis=1)
    size = np.maximum(total // 10, 1)
    order = np.argsort(values)
    enough = int(0.1 * len(values) + 6 * np.sqrt(0.1 * len(values)) + 6)  # values: more are hardly ever needed
    for most in (enough, len(values)):
        drawn = counts[:, order[:most]]
        before = np.cumsum(drawn, axis=1) - drawn
        taken = np.clip(size[:, None] - before, 0, drawn)
        if (taken.sum(axis=1) >= np.minimum(size, total)).all():
            break
    return np.where(total > 0, taken @ values[order[:most]] / size, np.nan)


def _ratio(sums: ndarray, counts: ndarray) -> ndarray:
    return np.divide(sums, counts, out=np.zeros(np.shape(sums)), where=counts > 0)
