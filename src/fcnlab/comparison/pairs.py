"""Compare two groups of runs: the difference in mIoU and its significance.

Two separate questions: would the difference hold on other images (a paired bootstrap over images, with these trained
models), and would it hold for other seeds (a t interval over seeds)? Both answers and the difference use the same runs
and the same images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy import ndarray

from fcnlab.comparison.grouping import Group
from fcnlab.comparison.intervals import (
    FEWEST_IMAGES,
    FEWEST_SEEDS,
    Interval,
    draws,
    holm,
    mean_iou,
    over_images,
    over_seeds,
    resampled_miou,
)
from fcnlab.comparison.runs import Run

MOST_IMAGES = 10  # listed for each pair


@dataclass(frozen=True)
class Pair:
    """The comparison of two groups; positive numbers mean that the first is better.

    ``difference`` is computed on the seeds that both groups have (``seed_differences`` by seed), or on all runs if they
    share no seed. ``over_images`` is None on fewer than ``FEWEST_IMAGES`` images. ``p_images`` and ``p_seeds`` are
    corrected for the number of pairs. ``apart`` lists the images on which the two groups differ most: name, and mean
    IoU of the first and of the second group.
    """

    first: Group
    second: Group
    images: int
    difference: float
    over_images: Interval | None
    seed_differences: dict[int, float]
    over_seeds: Interval | None
    p_images: float | None
    p_seeds: float | None
    apart: list[tuple[str, float, float]]
    alpha: float

    @property
    def sure_of_images(self) -> bool:
        return self.p_images is not None and self.p_images < self.alpha

    @property
    def sure_of_seeds(self) -> bool | None:
        """None if the seeds were not tested: fewer than three in common, or equal differences."""
        return None if self.p_seeds is None else self.p_seeds < self.alpha

    @property
    def leader(self) -> Group:
        return self.first if self.difference > 0 else self.second

    @property
    def better(self) -> Group | None:
        """The group that is significantly better over images and, with enough seeds, over seeds; None if neither is."""
        return self.leader if self.sure_of_images and self.sure_of_seeds is not False else None

    @property
    def significant_over(self) -> str | None:
        """What the difference is significant over (images, seeds, both); None if it is not significant."""
        if self.sure_of_images and self.sure_of_seeds:
            return "images and seeds"
        if self.sure_of_images:
            return f"images only ({'seeds not tested' if self.sure_of_seeds is None else 'not over seeds'})"
        return "seeds only (not over images)" if self.sure_of_seeds else None

    @property
    def verdict(self) -> str:
        """The result for the first group: better, worse, no significant difference, or no verdict."""
        if self.over_images is None:
            return f"no verdict: {self.images} images, at least {FEWEST_IMAGES} are needed"
        if not self.significant_over:
            return "no significant difference"
        return f"{'better' if self.leader is self.first else 'worse'}, significant over {self.significant_over}"

    @property
    def of_seeds(self) -> str:
        """How many seeds the groups share, and whether that allows a claim about retraining."""
        count = len(self.seed_differences)
        if count == 0:
            return "no seed in common: no claim about retraining"
        if count == 1:
            return "only one seed in common: no claim about retraining"
        if count < FEWEST_SEEDS:
            return "two seeds in common: too few to judge"
        return f"{count} seeds in common" + (
            "" if self.over_seeds else ", all with the same difference: no claim about retraining"
        )


class Sampling:
    """Bootstrap resamples of the images, shared by all runs so that their differences are paired."""

    def __init__(self, images: int, resamples: int):
        self.images, self.resamples = images, resamples
        self._mious: dict[Path, ndarray] = {}

    @cached_property
    def _counts(self) -> ndarray:
        return draws(self.images, self.resamples)

    def difference(self, first: Sequence[Run], second: Sequence[Run]) -> ndarray:
        """Return the difference in mean IoU of two sets of runs in each resample."""
        return self._mean(first) - self._mean(second)

    def _mean(self, runs: Sequence[Run]) -> ndarray:
        return np.mean([self._miou(run) for run in runs], axis=0)

    def _miou(self, run: Run) -> ndarray:
        if run.folder not in self._mious:
            self._mious[run.folder] = resampled_miou(self._counts, run.areas.intersection, run.areas.union)
        return self._mious[run.folder]


def compare_pairs(group_pairs: Sequence[tuple[Group, Group]], sampling: Sampling, confidence: float) -> list[Pair]:
    """Compare each pair of groups and correct the p values for the number of pairs."""
    pairs = [_pair(first, second, sampling, confidence) for first, second in group_pairs]
    for interval, corrected in (("over_images", "p_images"), ("over_seeds", "p_seeds")):
        indices = [index for index, pair in enumerate(pairs) if getattr(pair, interval)]
        values = holm([getattr(pairs[index], interval).p for index in indices])
        for index, p in zip(indices, values, strict=True):
            pairs[index] = replace(pairs[index], **{corrected: p})
    return pairs


def _pair(first: Group, second: Group, sampling: Sampling, confidence: float) -> Pair:
    matched_first, matched_second = match_seeds(first, second)
    difference, enough = matched_first.mean() - matched_second.mean(), sampling.images >= FEWEST_IMAGES
    differences = _seed_differences(matched_first, matched_second)
    resampled = sampling.difference(matched_first.runs, matched_second.runs) if enough else None
    return Pair(
        first=first,
        second=second,
        images=sampling.images,
        difference=difference,
        over_images=None if resampled is None else over_images(difference, resampled, confidence),
        seed_differences=differences,
        over_seeds=over_seeds(list(differences.values()), confidence),
        p_images=None,
        p_seeds=None,
        apart=_furthest_apart(matched_first, matched_second),
        alpha=1 - confidence,
    )


def match_seeds(first: Group, second: Group) -> tuple[Group, Group]:
    """Return both groups restricted to their common seeds, or unchanged if they share no seed."""
    shared = (set(first.seeds) & set(second.seeds)) - {None}
    if not shared:
        return first, second
    first_runs, second_runs = (tuple(run for run in group.runs if run.seed in shared) for group in (first, second))
    return replace(first, runs=first_runs), replace(second, runs=second_runs)


def _seed_differences(first: Group, second: Group) -> dict[int, float]:
    """Return the difference in mIoU by seed; empty if the groups share no seed."""
    by_seed = {run.seed: run.scores.miou for run in second.runs if run.seed is not None}
    return {run.seed: run.scores.miou - by_seed[run.seed] for run in first.runs if run.seed in by_seed}


def _furthest_apart(first: Group, second: Group) -> list[tuple[str, float, float]]:
    names, (first_scores, second_scores) = first.runs[0].names, (image_scores(group) for group in (first, second))
    apart = np.nan_to_num(np.abs(first_scores - second_scores))  # an image with only ignored pixels has no score
    order = np.argsort(-apart, kind="stable")[:MOST_IMAGES]
    return [(names[index], float(first_scores[index]), float(second_scores[index])) for index in order if apart[index]]


def image_scores(group: Group) -> ndarray:
    """Return the mean IoU of each image, averaged over seeds; nan for an image with only ignored pixels."""
    return np.mean([mean_iou(run.areas.intersection, run.areas.union) for run in group.runs], axis=0)
