"""Estimate the score of the best of many groups without the bias of its selection.

The highest of many observed scores is too high: it belongs to a group that is good, or lucky, or both. Here the best
group is selected on one part of the data and scored on the other part, which took no part in the selection (Varma and
Simon, "Bias in error estimation when using cross-validation for model selection", BMC Bioinformatics 7:91, 2006). The
first part is a random half of the images and all seeds of each group but one. The second part is the other half and the
seed that was left out. The mean over many splits is not too high. It is slightly too low, since a part of the data
selects less well than all of them.

Shrinking the best score towards the mean of all groups (empirical Bayes; Efron, "Tweedie's formula and selection bias",
Journal of the American Statistical Association 106, 2011) is not used: it assumes that the true scores are normally
distributed. If some settings of a sweep do not train at all, their low scores hide the bias.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from fcnlab.comparison.intervals import mean_iou, resampled_miou
from fcnlab.metrics.conventions import ClassAreas

SPLITS = 100  # each is used twice, since each half selects once


class BestOfMany(NamedTuple):
    """Mean IoU of the best group, 0 to 1: as observed, and estimated on data that did not select it."""

    observed: float
    held_out: float


def best_of_many(groups: Sequence[Sequence[ClassAreas]], splits: int = SPLITS, seed: int = 0) -> BestOfMany:
    """Return the observed and the held-out score of the best group.

    ``groups`` are the areas (image, class) of each run of each group, all on the same images. A group with one run is
    selected and scored with this run, so that the luck of its seed stays in the estimate.

    The level of mean IoU depends on the number of images. So only the advantage of the selected group over the mean of
    all groups is computed on a half, and added to the mean of all groups on all images.
    """
    rng = np.random.default_rng(seed)
    images = len(groups[0][0].intersection)
    half = rng.permuted(np.tile(np.arange(images) % 2, (splits, 1)), axis=1).astype(np.float32)
    scores = [_selecting_and_held_out(runs, np.concatenate([half, 1 - half]), rng) for runs in groups]
    selecting, held_out = np.array(scores).transpose(1, 0, 2)  # of each group and split
    advantage = held_out[selecting.argmax(axis=0), np.arange(2 * splits)] - held_out.mean(axis=0)
    means = [np.mean([_miou(areas) for areas in runs]) for runs in groups]
    return BestOfMany(float(np.max(means)), float(np.mean(means) + np.nanmean(advantage)))


def _selecting_and_held_out(runs: Sequence[ClassAreas], halves: ndarray, rng: np.random.Generator) -> list[ndarray]:
    """Return the score of a group in the selection, and its held-out score, for each half.

    The second part of ``halves`` are the complements of the first part.
    """
    scores = np.array([resampled_miou(halves, areas.intersection, areas.union) for areas in runs])
    splits, left_out = np.arange(len(halves)), rng.integers(len(runs), size=len(halves))
    of_left_out = scores[left_out, splits]
    selecting = (scores.sum(axis=0) - of_left_out) / (len(runs) - 1) if len(runs) > 1 else of_left_out
    return [selecting, np.roll(scores, len(halves) // 2, axis=1)[left_out, splits]]


def _miou(areas: ClassAreas) -> float:
    return float(mean_iou(areas.intersection.sum(axis=0), areas.union.sum(axis=0)))
