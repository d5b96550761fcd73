"""Compare two groups of runs class by class: the differences in IoU, with intervals that hold for all classes at once.

With enough seeds, the intervals are about retraining and other images, from the variances of the two-factor analysis
(:mod:`.two_factor`) of each class; with fewer seeds they are about other images, for these trained models.

Three seeds show little about the variance of one class over seeds, and t intervals with two degrees of freedom would be
too wide to help. So the variances of all classes are estimated together (:mod:`.moderated_variances`).

Bonferroni's correction makes the intervals simultaneous: with 95 % confidence, all intervals of a pair contain their
differences. It needs the far tails of t distributions, where the degrees of freedom of a sum of two variances are too
rough for three seeds. So each kind of chance has an interval of its own, and the two are combined by the root of the
sum of their squared half-widths (Howe, Journal of the American Statistical Association 69, 1974), which is at most too
wide. docs/explanation/comparing-runs.md has the measured coverage.
"""

from collections.abc import Callable, Sequence
from math import hypot
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from numpy import ndarray
from scipy.special import stdtrit

from fcnlab.comparison.grouping import Group
from fcnlab.comparison.intervals import FEW_CLASS_IMAGES, Bounds
from fcnlab.comparison.moderated_variances import moderated
from fcnlab.comparison.two_factor import TwoFactor

Analysis = Callable[[ndarray, ndarray, ndarray, ndarray], TwoFactor]  # two_factor.paired or two_factor.unpaired


class ClassDifference(NamedTuple):
    """The IoU of a class in two groups: means over the compared seeds, in 0..1; nan if a run has no IoU of the class.

    ``images`` and ``pixels`` count the ground truth, and ``found`` the images in which any compared run has a true
    positive pixel of the class. ``interval`` is that of the difference, simultaneous over all classes. It is None if
    the class is found in fewer than ``FEW_CLASS_IMAGES`` images, or if neither group finds it with all seeds: a
    variance of IoU that is mostly 0 says little about other images and seeds.
    """

    name: str
    images: int
    pixels: int
    found: int
    first: float
    second: float
    interval: Bounds | None

    @property
    def difference(self) -> float:
        return self.first - self.second


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
    runs = [*first.runs, *second.runs]
    found = np.logical_or.reduce([run.areas.intersection > 0 for run in runs]).sum(axis=0)
    scores = _class_scores(first), _class_scores(second)
    means = [group_scores.iou.mean(axis=0).tolist() for group_scores in scores]
    intervals = class_intervals(*scores, found, analysis, confidence)
    counts = (count.tolist() for count in (images, pixels, found))
    columns = zip(first.runs[0].classes, *counts, *means, intervals, strict=True)
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
    found: Int64[ndarray, " classes"],
    analysis: Analysis | None,
    confidence: float,
) -> list[Bounds | None]:
    """Return simultaneous intervals; ``found`` is the number of images in which any run finds the class."""
    with_all_seeds = (first.iou > 0).all(axis=0) | (second.iou > 0).all(axis=0)
    tested = (found >= FEW_CLASS_IMAGES) & with_all_seeds
    tail = 1 - (1 - confidence) / (2 * max(int(tested.sum()), 1))
    parts = [ClassScores(scores.iou[:, tested], scores.changes[:, :, tested]) for scores in (first, second)]
    differences = parts[0].iou.mean(axis=0) - parts[1].iou.mean(axis=0)
    reaches = _half_widths(parts[0], parts[1], found[tested], analysis, tail)
    known = iter(zip(differences.tolist(), reaches, strict=True))
    return [_bounds(*next(known)) if is_tested else None for is_tested in tested.tolist()]


def _bounds(difference: float, reach: float) -> Bounds | None:
    """Return an interval of differences of IoU; None without variance."""
    return Bounds(max(difference - reach, -1.0), min(difference + reach, 1.0)) if reach else None


def _half_widths(
    first: ClassScores, second: ClassScores, found: Int64[ndarray, " classes"], analysis: Analysis | None, tail: float
) -> list[float]:
    """Return the half-width of the interval of each class; 0 if its IoU has no variance."""
    changes = (first.changes.mean(axis=0) - second.changes.mean(axis=0)).T
    freedoms = [_freedom_over_images(change, count) for change, count in zip(changes, found.tolist(), strict=True)]
    if analysis is None:
        variances = np.square(changes).sum(axis=1).tolist()
        return [_t_half_width(*values, tail) for values in zip(variances, freedoms, strict=True)]
    by_class = [
        analysis(first.iou[:, place], second.iou[:, place], first.changes[:, :, place], second.changes[:, :, place])
        for place in range(len(changes))
    ]
    return [
        hypot(over_seeds, _t_half_width(each.shared, freedom, tail)) if over_seeds else 0.0
        for each, over_seeds, freedom in zip(by_class, _half_widths_over_seeds(by_class, tail), freedoms, strict=True)
    ]


def _half_widths_over_seeds(by_class: Sequence[TwoFactor], tail: float) -> list[float]:
    """Return the half-widths of intervals on these images, with the variances of all classes estimated together.

    Seeds that are unpaired have two variances, whose sum has Satterthwaite's degrees of freedom.
    """
    if not by_class:
        return []
    of_means, parts = np.zeros(len(by_class)), np.zeros(len(by_class))
    for samples in zip(*(each.samples for each in by_class), strict=True):
        seeds = samples[0].seeds
        estimate = moderated(np.array([sample.variance for sample in samples]), seeds - 1)
        of_means += estimate.variances / seeds
        parts += np.square(estimate.variances / seeds) / estimate.freedom
    return [
        _t_half_width(variance, variance**2 / part, tail) if part else 0.0
        for variance, part in zip(of_means.tolist(), parts.tolist(), strict=True)
    ]


def _freedom_over_images(change: Float[ndarray, " images"], images: int) -> float:
    """Return the degrees of freedom of the variance over images, from the kurtosis of the changes.

    The variance of a variance of n values is about sigma^4 (kurtosis - 1) / n (Box and Andersen, Journal of the Royal
    Statistical Society B 17(1), 1955). A few large objects, or few images with the class, therefore give few degrees of
    freedom; there is at most one for each of these images but one. ``images`` are those in which the class is found.
    """
    squares = np.square(change)
    spread = float(squares @ squares - squares.sum() ** 2 / len(squares))
    return min(2 * float(squares.sum()) ** 2 / spread, images - 1) if spread > 0 else images - 1


def _t_half_width(variance: float, freedom: float, tail: float) -> float:
    return float(stdtrit(freedom, tail)) * variance**0.5
