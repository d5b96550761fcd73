"""Compare two groups of runs class by class: the differences in IoU, with intervals that hold for all classes at once.

With enough seeds, the intervals are about retraining and other images, from the variances of the two-factor analysis
(:mod:`.two_factor`) of each class; with fewer seeds they are about other images, for these trained models.

Bonferroni's correction makes the intervals simultaneous: with 95 % confidence, all intervals of a pair contain their
differences. It needs the far tails of t distributions, where the degrees of freedom of a sum of two variances are too
rough for three seeds. So each kind of chance has an interval of its own, and the two are combined by the root of the
sum of their squared half-widths (Howe, Journal of the American Statistical Association 69, 1974), which is at most too
wide. docs/explanation/comparing-runs.md has the measured coverage.
"""

from collections.abc import Callable
from math import hypot
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from numpy import ndarray
from scipy.special import stdtrit

from fcnlab.comparison.grouping import Group
from fcnlab.comparison.two_factor import TwoFactor

FEWEST_CLASS_IMAGES = 2  # a single image shows no variance over images
FEW_CLASS_IMAGES = 10  # below this, an interval is flagged
Analysis = Callable[[ndarray, ndarray, ndarray, ndarray], TwoFactor]  # two_factor.paired or two_factor.unpaired


class Bounds(NamedTuple):
    """The ends of an interval."""

    low: float
    high: float


class ClassDifference(NamedTuple):
    """The IoU of a class in two groups: means over the compared seeds, in 0..1; nan if a run has no IoU of the class.

    ``images`` and ``pixels`` count the ground truth. ``interval`` is that of the difference, simultaneous over all
    classes. It is None if fewer than two images have the class, or if neither group finds it with all seeds: a variance
    of IoU that is mostly 0 says little about other seeds.
    """

    name: str
    images: int
    pixels: int
    first: float
    second: float
    interval: Bounds | None

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
    """Return how the IoU of each class changes if an image is left out, such that products sum to covariances.

    It is 0 on a set without the class. The covariance over images of two scores is the product of their vectors (Efron,
    The Jackknife, 1982, section 3).
    """
    left = union.sum(axis=0) - union
    iou = np.divide(intersection.sum(axis=0) - intersection, left, out=np.zeros(union.shape), where=left > 0)
    return np.sqrt((len(iou) - 1) / len(iou)) * (iou - iou.mean(axis=0))


def class_intervals(
    first: ClassScores,
    second: ClassScores,
    images: Int64[ndarray, " classes"],
    analysis: Analysis | None,
    confidence: float,
) -> list[Bounds | None]:
    """Return simultaneous intervals; ``images`` is the number of images whose ground truth has the class."""
    tested = images >= FEWEST_CLASS_IMAGES
    tail = 1 - (1 - confidence) / (2 * max(int(tested.sum()), 1))
    intervals: list[Bounds | None] = []
    for place, count in enumerate(images.tolist()):
        values = first.iou[:, place], second.iou[:, place]
        changes = first.changes[:, :, place], second.changes[:, :, place]
        found = any((iou > 0).all() for iou in values)
        reach = _half_width(values, changes, count, analysis, tail) if tested[place] and found else 0.0
        difference = float(values[0].mean() - values[1].mean())
        intervals.append(Bounds(max(difference - reach, -1.0), min(difference + reach, 1.0)) if reach else None)
    return intervals


def _half_width(
    values: tuple[ndarray, ndarray],
    changes: tuple[ndarray, ndarray],
    images: int,
    analysis: Analysis | None,
    tail: float,
) -> float:
    """Return the half-width of the interval of a class; 0 if its IoU has no variance."""
    change = changes[0].mean(axis=0) - changes[1].mean(axis=0)
    freedom = _freedom_over_images(change, images)
    if analysis is None:
        return _t_half_width(float(change @ change), freedom, tail)
    found = analysis(*values, *changes)
    of_seeds = found._replace(shared=0.0)
    if not of_seeds.variance:
        return 0.0
    over_seeds = _t_half_width(of_seeds.variance, of_seeds.freedom, tail)
    return hypot(over_seeds, _t_half_width(found.shared, freedom, tail))


def _freedom_over_images(change: Float[ndarray, " images"], images: int) -> float:
    """Return the degrees of freedom of the variance over images, from the kurtosis of the changes.

    The variance of a variance of n values is about sigma^4 (kurtosis - 1) / n (Box and Andersen, Journal of the Royal
    Statistical Society B 17(1), 1955). A few large objects, or few images with the class, therefore give few degrees of
    freedom; there is at most one for each of these images but one.
    """
    squares = np.square(change)
    spread = float(squares @ squares - squares.sum() ** 2 / len(squares))
    return min(2 * float(squares.sum()) ** 2 / spread, images - 1) if spread > 0 else images - 1


def _t_half_width(variance: float, freedom: float, tail: float) -> float:
    return float(stdtrit(freedom, tail)) * variance**0.5
