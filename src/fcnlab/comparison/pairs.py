"""Two groups of runs: how far they are apart, and how sure that is.

Two questions that need two answers: would the difference hold on other images (a paired bootstrap over images, of
these trained nets), and would it hold for other seeds (a t interval over seeds)? Both answers, and the difference, are
of the same runs on the same images.
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

MOST_IMAGES = 10  # that are named for a pair


@dataclass(frozen=True)
class Pair:
    """One group against another: positive numbers say that the first is better.

    ``difference`` is that of the runs of the seeds that both groups have, by seed in ``seed_differences``; of all runs
    where they share no seed. ``over_images`` is None on fewer than ``FEWEST_IMAGES`` images. ``p_images`` and
    ``p_seeds`` are corrected for the number of pairs; ``apart`` are the images on which the two differ most: name,
    mean IoU of the first and of the other on it.
    """

    one: Group
    other: Group
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
        """None where the seeds are too few to judge."""
        return None if self.p_seeds is None else self.p_seeds < self.alpha

    @property
    def leader(self) -> Group:
        return self.one if self.difference > 0 else self.other

    @property
    def better(self) -> Group | None:
        """The one that is better on other images and, as far as that can be judged, for other seeds."""
        return self.leader if self.sure_of_images and self.sure_of_seeds is not False else None

    @property
    def significant_over(self) -> str | None:
        """What the difference is significant over; None where over nothing."""
        if self.sure_of_images and self.sure_of_seeds:
            return "images and seeds"
        if self.sure_of_images:
            return f"images only ({'seeds unknown' if self.sure_of_seeds is None else 'not over seeds'})"
        return "seeds only (not over images)" if self.sure_of_seeds else None

    @property
    def verdict(self) -> str:
        """Of the first against the other."""
        if self.over_images is None:
            return f"no verdict: {self.images} images, {FEWEST_IMAGES} are needed"
        if not self.significant_over:
            return "no significant difference"
        return f"{'better' if self.leader is self.one else 'worse'}, significant over {self.significant_over}"

    @property
    def of_seeds(self) -> str:
        """What there is of seeds; what follows from them is the verdict's."""
        count = len(self.seed_differences)
        if count == 0:
            return "no seed in common: no claim about retraining"
        if count == 1:
            return "one seed in common: no claim about retraining"
        if count < FEWEST_SEEDS:
            return "two seeds in common: shown, too few to judge"
        return f"{count} seeds in common" + (
            "" if self.over_seeds else ", which changed nothing: no claim about retraining"
        )


class Sampling:
    """The resamples that all runs share, so that their differences are paired."""

    def __init__(self, images: int, resamples: int):
        self.images, self.resamples = images, resamples
        self._mious: dict[Path, ndarray] = {}

    @cached_property
    def _counts(self) -> ndarray:
        return draws(self.images, self.resamples)

    def difference(self, ours: Sequence[Run], theirs: Sequence[Run]) -> ndarray:
        """Of the mean IoU of some runs to that of others, in each resample."""
        return self._mean(ours) - self._mean(theirs)

    def _mean(self, runs: Sequence[Run]) -> ndarray:
        return np.mean([self._miou(run) for run in runs], axis=0)

    def _miou(self, run: Run) -> ndarray:
        if run.folder not in self._mious:
            self._mious[run.folder] = resampled_miou(self._counts, run.areas.intersection, run.areas.union)
        return self._mious[run.folder]


def compare_pairs(against: Sequence[tuple[Group, Group]], sampling: Sampling, confidence: float) -> list[Pair]:
    """The pairs, with their p values corrected for all of them."""
    pairs = [_pair(one, other, sampling, confidence) for one, other in against]
    for found, corrected in (("over_images", "p_images"), ("over_seeds", "p_seeds")):
        places = [place for place, pair in enumerate(pairs) if getattr(pair, found)]
        values = holm([getattr(pairs[place], found).p for place in places])
        for place, p in zip(places, values, strict=True):
            pairs[place] = replace(pairs[place], **{corrected: p})
    return pairs


def _pair(one: Group, other: Group, sampling: Sampling, confidence: float) -> Pair:
    ours, theirs = match_seeds(one, other)
    value, enough = ours.mean() - theirs.mean(), sampling.images >= FEWEST_IMAGES
    differences = _seed_differences(ours, theirs)
    return Pair(
        one=one,
        other=other,
        images=sampling.images,
        difference=value,
        over_images=over_images(value, sampling.difference(ours.runs, theirs.runs), confidence) if enough else None,
        seed_differences=differences,
        over_seeds=over_seeds(list(differences.values()), confidence),
        p_images=None,
        p_seeds=None,
        apart=_furthest_apart(ours, theirs),
        alpha=1 - confidence,
    )


def match_seeds(one: Group, other: Group) -> tuple[Group, Group]:
    """Both with the runs of the seeds that they share; with all of their runs where they share none."""
    shared = (set(one.seeds) & set(other.seeds)) - {None}
    if not shared:
        return one, other
    ours, theirs = (tuple(run for run in found.runs if run.seed in shared) for found in (one, other))
    return Group(one.parts, ours), Group(other.parts, theirs)


def _seed_differences(ours: Group, theirs: Group) -> dict[int, float]:
    """By seed; empty where the two share none."""
    by_seed = {run.seed: run.scores.miou for run in theirs.runs if run.seed is not None}
    return {run.seed: run.scores.miou - by_seed[run.seed] for run in ours.runs if run.seed in by_seed}


def _furthest_apart(ours: Group, theirs: Group) -> list[tuple[str, float, float]]:
    names, (first, second) = ours.runs[0].names, (image_scores(found) for found in (ours, theirs))
    apart = np.nan_to_num(np.abs(first - second))  # an image that is all void has no score
    order = np.argsort(-apart, kind="stable")[:MOST_IMAGES]
    return [(names[place], float(first[place]), float(second[place])) for place in order if apart[place]]


def image_scores(found: Group) -> ndarray:
    """The mean IoU of each image by itself, over the group's seeds; nan where a image is all void."""
    return np.mean([mean_iou(run.areas.intersection, run.areas.union) for run in found.runs], axis=0)
