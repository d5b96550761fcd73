"""Compare two groups of runs: the difference in mIoU, its interval, and the verdict.

With three seeds or more, the verdict is about retraining and other images at once (:mod:`.two_factor`). Two more
intervals explain it, each for one kind of chance: over images, for these trained models (a paired bootstrap), and over
seeds, on these images (Student's t). With fewer seeds, the verdict is about other images only. All of them use the same
runs and the same images.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy import ndarray

from fcnlab.comparison.classes import ClassDifference, class_differences
from fcnlab.comparison.design import Design, Level, design
from fcnlab.comparison.grouping import Group
from fcnlab.comparison.intervals import (
    FEWEST_IMAGES,
    FEWEST_SEEDS,
    Interval,
    draws,
    equivalent_over_images,
    mean_iou,
    over_images,
    over_seeds,
    resampled_miou,
)
from fcnlab.comparison.multiple import holm, step_down
from fcnlab.comparison.null_draws import p_images_only, p_two_factor
from fcnlab.comparison.runs import Run
from fcnlab.comparison.two_factor import TwoFactor, changes, paired, unpaired

MOST_GROUPS_FOR_ALL_PAIRS = 5  # more groups are compared with a baseline only
MOST_IMAGES = 10  # listed for each pair
# With three seeds, and if they share less than this part of the variance, up to 8 % of equal methods differ
# significantly instead of 5 %: see docs/explanation/comparing-runs.md.
LIBERAL_SHARE = 0.4


@dataclass(frozen=True)
class Pair:
    """The comparison of two groups; positive numbers mean that the first is better.

    All numbers are those of ``compared``: both groups with the seeds that they share, or with all of their seeds
    (:func:`compared_runs`). ``interval`` is that of the verdict: over seeds and images if ``two_factor`` is known, over
    images otherwise; None on fewer than ``FEWEST_IMAGES`` images. ``seed_differences`` are those of shared seeds.
    ``p`` and ``p_equivalent`` are those of the verdict, corrected for the number of pairs by Holm's method, and
    ``p_step_down`` by Westfall and Young's. ``margin`` is the largest difference that does not matter, or None.
    ``apart`` lists the images on which the two groups differ most: name, and mean IoU of the first and of the second.
    """

    first: Group
    second: Group
    compared: tuple[Group, Group]
    images: int
    difference: float
    over_images: Interval | None
    seed_differences: dict[int, float]
    over_seeds: Interval | None
    two_factor: TwoFactor | None
    interval: Interval | None
    p: float | None
    p_step_down: float | None
    p_equivalent: float | None
    margin: float | None
    apart: list[tuple[str, float, float]]
    alpha: float
    comparisons: int

    @property
    def seeds(self) -> tuple[int, int]:
        """Number of runs of each group that are compared."""
        first, second = self.compared
        return len(first.runs), len(second.runs)

    @property
    def significant(self) -> bool:
        return self.p is not None and self.p < self.alpha

    @property
    def equivalent(self) -> bool:
        """Whether the difference is significantly below the margin."""
        return self.p_equivalent is not None and self.p_equivalent < self.alpha

    @property
    def leader(self) -> Group:
        return self.first if self.difference > 0 else self.second

    @property
    def better(self) -> Group | None:
        """The group that is significantly better after retraining and on other images; None if neither is."""
        return self.leader if self.verdict in ("better", "worse") else None

    @property
    def verdict(self) -> str:
        """The result for the first group: better, worse, equivalent or undecided; higher or lower with few seeds; none.

        "higher" and "lower" are about other images for these trained models; they say nothing about retraining.
        """
        if self.interval is None:
            return "none"
        if self.equivalent:
            return "equivalent"
        if not self.significant or not self._is_consistent:
            return "undecided"
        words = ("better", "worse") if self.two_factor else ("higher", "lower")
        return words[self.leader is not self.first]

    @property
    def _is_consistent(self) -> bool:
        """Whether the interval is on the same side of zero as the difference.

        It may not be with few seeds and rare classes: sets without these classes have other differences.
        """
        found = self.interval
        return found is None or not (found.low > 0 > self.difference or found.high < 0 < self.difference)

    @property
    def scope(self) -> str:
        """What the verdict is about."""
        if self.interval is None:
            return f"{self.images} images, at least {FEWEST_IMAGES} are needed"
        return "seeds and images" if self.two_factor else "images only"

    @property
    def of_seeds(self) -> str:
        """How many seeds were compared, and whether that allows a claim about retraining."""
        if self.two_factor:
            first, second = self.seeds
            return f"{first} paired seeds" if self.two_factor.paired else f"{first} and {second} unpaired seeds"
        count = len(self.seed_differences)
        if count >= FEWEST_SEEDS:
            return f"{count} seeds, all with the same difference: retraining not tested"
        fewest = min(self.seeds)
        return f"{'one seed' if fewest == 1 else f'{fewest} seeds'}: retraining not tested"

    @property
    def liberal(self) -> bool:
        """Whether the test calls more equal methods different than it should: one pair with three seeds."""
        found = self.two_factor
        return (
            self.comparisons == 1
            and found is not None
            and found.fewest_seeds == FEWEST_SEEDS
            and found.share_of_images < LIBERAL_SHARE
        )

    @cached_property
    def design(self) -> Design | None:
        """What this number of seeds and images can detect, and what the observed difference would need."""
        return design(self.two_factor, self.images, Level(self.alpha, self.comparisons)) if self.two_factor else None

    @cached_property
    def class_differences(self) -> list[ClassDifference]:
        """The difference in IoU of each class, with intervals that are about the same as the verdict."""
        analysis = None
        if self.two_factor:
            analysis = paired if self.two_factor.paired else unpaired
        found = class_differences(*self.compared, analysis, 1 - self.alpha)
        return found if self.interval else [each._replace(interval=None) for each in found]


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

    def changes(self, runs: Sequence[Run]) -> ndarray:
        """Return how the mean IoU of each run changes in each resample, ``[runs, resamples]``."""
        return np.array([changes(self._miou(run)) for run in runs])

    def null_p(self, pair: Pair) -> ndarray:
        """Return draws of the p value of a pair as it would be without a difference."""
        first, second = pair.compared
        change = self.changes(first.runs).mean(axis=0) - self.changes(second.runs).mean(axis=0)
        if pair.two_factor is None:
            return p_images_only(change)
        scores = [group.values("miou") for group in pair.compared]
        if pair.two_factor.paired:
            samples = [(first.seeds, scores[0] - scores[1])]
        else:
            samples = [(group.seeds, values) for group, values in zip(pair.compared, scores, strict=True)]
        return p_two_factor(pair.two_factor, samples, change)


def compare_pairs(
    group_pairs: Sequence[tuple[Group, Group]], sampling: Sampling, confidence: float, margin: float | None = None
) -> list[Pair]:
    """Compare each pair of groups and correct the p values for the number of pairs.

    ``margin`` is the largest difference that does not matter, in 0..1.
    """
    pairs = [_pair(first, second, sampling, confidence, margin, len(group_pairs)) for first, second in group_pairs]
    tested = {place: pair for place, pair in enumerate(pairs) if pair.interval}
    columns = [sampling.null_p(pair) for pair in tested.values()]
    corrected = {
        "p": holm(_known(pair.p for pair in tested.values())),
        "p_step_down": step_down(
            _known(pair.interval and pair.interval.p for pair in tested.values()),
            np.stack(columns, axis=1) if columns else np.empty((0, 0)),
        ),
    }
    if margin:
        corrected["p_equivalent"] = holm(_known(pair.p_equivalent for pair in tested.values()))
    for rank, (place, pair) in enumerate(tested.items()):
        pairs[place] = replace(pair, **{name: values[rank] for name, values in corrected.items()})
    return pairs


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _pair(
    first: Group, second: Group, sampling: Sampling, confidence: float, margin: float | None, comparisons: int
) -> Pair:
    """Compare two groups; the p values are not corrected yet."""
    compared = compared_runs(first, second)
    difference = compared[0].mean() - compared[1].mean()
    differences = _seed_differences(*compared)
    common = Pair(
        first=first,
        second=second,
        compared=compared,
        images=sampling.images,
        difference=difference,
        over_images=None,
        seed_differences=differences,
        over_seeds=over_seeds(list(differences.values()), confidence),
        two_factor=None,
        interval=None,
        p=None,
        p_step_down=None,
        p_equivalent=None,
        margin=margin,
        apart=_furthest_apart(*compared),
        alpha=1 - confidence,
        comparisons=comparisons,
    )
    return common if sampling.images < FEWEST_IMAGES else _with_intervals(common, sampling, confidence)


def _with_intervals(pair: Pair, sampling: Sampling, confidence: float) -> Pair:
    resampled = sampling.difference(*(group.runs for group in pair.compared))
    images = over_images(pair.difference, resampled, confidence)
    two_factor = _two_factor(*pair.compared, sampling)
    interval, p, p_equivalent = images, images.p, None
    if two_factor:
        interval, p = two_factor.interval(confidence), two_factor.p(pair.comparisons)
    if pair.margin:
        p_equivalent = (
            two_factor.p_equivalent(pair.margin, pair.comparisons)
            if two_factor
            else equivalent_over_images(resampled, pair.margin)
        )
    return replace(pair, over_images=images, two_factor=two_factor, interval=interval, p=p, p_equivalent=p_equivalent)


def compared_runs(first: Group, second: Group) -> tuple[Group, Group]:
    """Return the runs of two groups that are compared.

    Those of the seeds that both have if there are three or more. Otherwise all runs if both groups have three or more,
    for a comparison of unpaired seeds. Otherwise those of the shared seeds again, or all if they share none.
    """
    matched = _match_seeds(first, second)
    enough = min(len(first.runs), len(second.runs)) >= FEWEST_SEEDS
    return (first, second) if enough and len(matched[0].runs) < FEWEST_SEEDS else matched


def _match_seeds(first: Group, second: Group) -> tuple[Group, Group]:
    """Return both groups restricted to their common seeds, or unchanged if they share no seed."""
    shared = (set(first.seeds) & set(second.seeds)) - {None}
    if not shared:
        return first, second
    first_runs, second_runs = (tuple(run for run in group.runs if run.seed in shared) for group in (first, second))
    return replace(first, runs=first_runs), replace(second, runs=second_runs)


def _two_factor(first: Group, second: Group, sampling: Sampling) -> TwoFactor | None:
    """Return the analysis over seeds and images; None for fewer than three seeds.

    Also None if all seeds have the same score or difference: then they are not independent (such as several evaluations
    of one checkpoint).
    """
    if min(len(first.runs), len(second.runs)) < FEWEST_SEEDS:
        return None
    analysis = paired if _is_paired(first, second) else unpaired
    found = analysis(
        first.values("miou"), second.values("miou"), sampling.changes(first.runs), sampling.changes(second.runs)
    )
    return found if any(sample.variance > 0 for sample in found.samples) else None


def _is_paired(first: Group, second: Group) -> bool:
    return first.seeds == second.seeds and None not in first.seeds


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


def image_accuracies(group: Group) -> ndarray:
    """Return the pixel accuracy of each image, averaged over seeds; nan for an image with only ignored pixels."""
    pixels = group.runs[0].areas.target.sum(axis=1)
    right = np.mean([run.areas.intersection.sum(axis=1) for run in group.runs], axis=0)
    return np.divide(right, pixels, out=np.full(len(pixels), np.nan), where=pixels > 0)
