"""Compare two groups of runs class by class: the differences in IoU, with intervals that hold for all classes at once.

With enough seeds, each interval is about retraining and other images (:mod:`.two_factor`), as that of the mean IoU;
with fewer seeds it is about other images for these trained models. Both are t intervals. The variance over images of a
class that few images have is known roughly, so it has one degree of freedom fewer than these images; the degrees of
freedom of the sum are those of Satterthwaite (Biometrics Bulletin 2(6), 1946).

Bonferroni's correction makes the intervals simultaneous: with 95 % confidence, all intervals of a pair contain their
differences. The distribution of the largest statistic (max-t) could narrow them only through the correlations between
classes, which few seeds do not determine: docs/explanation/comparing-runs.md compares the two.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from numpy import ndarray
from scipy.special import stdtr, stdtrit

from fcnlab.comparison.grouping import Group
from fcnlab.comparison.intervals import Interval
from fcnlab.comparison.two_factor import TwoFactor, as_changes

FEWEST_CLASS_IMAGES = 2  # a single image shows no variance over images
FEW_CLASS_IMAGES = 10  # below this, an interval is flagged
Analysis = Callable[[ndarray, ndarray, ndarray, ndarray], TwoFactor]  # two_factor.paired or two_factor.unpaired


class ClassDifference(NamedTuple):
    """The IoU of a class in two groups: means over the compared seeds, in 0..1; nan if a run has no IoU of the class.

    ``images`` and ``pixels`` count the ground truth. ``interval`` is that of the difference, simultaneous over all
    classes, with a p value corrected for their number. It is None if fewer than two images have the class, or if its
    IoU has no variance, as that of a class that no run finds.
    """

    name: str
    images: int
    pixels: int
    first: float
    second: float
    interval: Interval | None

    @property
    def difference(self) -> float:
        return self.first - self.second

    @property
    def few_images(self) -> bool:
        """Whether there is an interval, but on fewer than 10 images."""
        return self.interval is not None and self.images < FEW_CLASS_IMAGES


class ClassScores(NamedTuple):
    """The IoU of each class in several runs, and how it changes if an image is left out."""

    iou: Float[ndarray, "runs classes"]
    changes: Float[ndarray, "runs images classes"]


def class_differences(
    first: Group, second: Group, analysis: Analysis | None, confidence: float
) -> list[ClassDifference]:
    """Return the difference of each class; ``analysis`` is that over seeds and images, or None for images only."""
    target = first.runs[0].areas.target
    images, pixels = (target > 0).sum(axis=0), target.sum(axis=0)
    scores = _class_scores(first), _class_scores(second)
    means = [group_scores.iou.mean(axis=0).tolist() for group_scores in scores]
    intervals = class_intervals(*scores, images, analysis, confidence)
    columns = zip(first.runs[0].classes, images.tolist(), pixels.tolist(), *means, intervals, strict=True)
    return [ClassDifference(*values) for values in columns]


def _class_scores(group: Group) -> ClassScores:
    changes = [leave_one_out_by_class(run.areas.intersection, run.areas.union) for run in group.runs]
    return ClassScores(np.array([run.scores.iou for run in group.runs]), np.array(changes))


def leave_one_out_by_class(
    intersection: Int64[ndarray, "images classes"], union: Int64[ndarray, "images classes"]
) -> Float[ndarray, "images classes"]:
    """Return how the IoU of each class changes if an image is left out; it is 0 on a set without the class."""
    left = union.sum(axis=0) - union
    iou = np.divide(intersection.sum(axis=0) - intersection, left, out=np.zeros(union.shape), where=left > 0)
    return as_changes(iou)


def class_intervals(
    first: ClassScores,
    second: ClassScores,
    images: Int64[ndarray, " classes"],
    analysis: Analysis | None,
    confidence: float,
) -> list[Interval | None]:
    """Return simultaneous intervals; ``images`` is the number of images whose ground truth has the class."""
    tested = np.flatnonzero(images >= FEWEST_CLASS_IMAGES)
    intervals: list[Interval | None] = [None] * len(images)
    for place in tested:
        values = [scores.iou[:, place] for scores in (first, second)]
        changes = [scores.changes[:, :, place] for scores in (first, second)]
        estimate = (
            _over_seeds_and_images(analysis(*values, *changes), images[place])
            if analysis
            else _over_images(values, changes, images[place])
        )
        intervals[place] = _interval(estimate, confidence, len(tested)) if estimate else None
    return intervals


class _Estimate(NamedTuple):
    """A difference, its variance, and the degrees of freedom of the variance."""

    difference: float
    variance: float
    freedom: float


def _over_seeds_and_images(found: TwoFactor, images: int) -> _Estimate | None:
    """Return the estimate of a two-factor analysis, in which the variance over images is known roughly, too."""
    if not any(sample.variance for sample in found.samples):
        return None
    freedom = 1 / (1 / found.freedom + found.share_of_images**2 / (images - 1))
    return _Estimate(found.difference, found.variance, freedom)


def _over_images(values: Sequence[ndarray], changes: Sequence[ndarray], images: int) -> _Estimate | None:
    change = changes[0].mean(axis=0) - changes[1].mean(axis=0)
    variance = float(change @ change)
    return _Estimate(float(values[0].mean() - values[1].mean()), variance, images - 1) if variance else None


def _interval(estimate: _Estimate, confidence: float, comparisons: int) -> Interval:
    """Return the interval of one of several classes, within the range of differences, with Bonferroni's correction."""
    difference, error = estimate.difference, estimate.variance**0.5
    reach = float(stdtrit(estimate.freedom, 1 - (1 - confidence) / (2 * comparisons))) * error
    p = float(2 * comparisons * stdtr(estimate.freedom, -abs(difference) / error))
    return Interval(difference, max(difference - reach, -1.0), min(difference + reach, 1.0), min(p, 1.0))
