"""Confidence intervals of a difference in mean IoU: over images by a paired bootstrap, over seeds by Student's t.

The bootstrap resamples the images of the set with replacement and computes the mean IoU of both models on the same
resample (Efron and Tibshirani, 1993). A resample is a vector of counts, so that its areas are the product of the counts
with the areas of the images, which is all that mean IoU needs.

The interval is the percentile interval. tests/comparison/test_intervals.py compares its coverage with the nominal one;
on the sets drawn there the BCa interval (Efron, 1987) covers less, because its acceleration is estimated from the few
large images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64, Real
from numpy import ndarray
from scipy.special import stdtr, stdtrit

CHUNK = 1000  # resamples drawn at a time: 12 MB for 1,449 images
FEWEST_SEEDS = 3  # with two, the interval would be 25 standard errors wide
FEWEST_IMAGES = 30  # with fewer, intervals over images are unreliable: see docs/explanation/comparing-runs.md
FEW_CLASS_IMAGES = 10  # with fewer images of a class, intervals are unreliable


class Bounds(NamedTuple):
    """The ends of an interval."""

    low: float
    high: float


class Interval(NamedTuple):
    """A difference, its confidence interval, and its p value."""

    value: float
    low: float
    high: float
    p: float


def draws(images: int, resamples: int, seed: int = 0) -> Float[ndarray, "resamples images"]:
    """Return how often each image is in each resample, from a multinomial distribution.

    Single precision keeps areas to 1e-7, far below the sampling error, and takes half the time.
    """
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, images), np.float32)
    for start in range(0, resamples, CHUNK):
        rows = counts[start : start + CHUNK]
        drawn = rng.integers(images, size=rows.shape) + images * np.arange(len(rows))[:, None]
        rows[:] = np.bincount(drawn.ravel(), minlength=rows.size).reshape(rows.shape)
    return counts


def mean_iou(intersection: ndarray, union: ndarray) -> ndarray:
    """Return the mean IoU over the last axis, the classes; classes with an empty union are excluded, nan if all are."""
    seen = union > 0
    ratio = np.divide(intersection, union, out=np.zeros(np.shape(intersection)), where=seen)
    count = seen.sum(axis=-1)
    return np.divide(ratio.sum(axis=-1), count, out=np.full(np.shape(count), np.nan), where=count > 0)


def resampled_miou(
    counts: Float[ndarray, "resamples images"],
    intersection: Real[ndarray, "images classes"],
    union: Real[ndarray, "images classes"],
) -> Float[ndarray, " resamples"]:
    """Return the mean IoU of the set in each resample."""
    classes = intersection.shape[1]
    sums = counts @ np.concatenate([intersection, union], axis=1).astype(counts.dtype)
    return mean_iou(sums[:, :classes], sums[:, classes:])


def percentile_bounds(resampled: Float[ndarray, " resamples"], confidence: float) -> Bounds:
    """Return the percentile interval of a quantity that is nan in a resample with only ignored pixels."""
    low, high = np.nanquantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Bounds(float(low), float(high))


def over_images(value: float, resampled: Float[ndarray, " resamples"], confidence: float = 0.95) -> Interval:
    """Return the percentile interval and the p value of a difference, from the differences in the resamples.

    p is twice the share of resamples on the other side of zero, with the set itself counted as one of them (Davison and
    Hinkley, 1997, section 4.2.1), so that p is never 0.
    """
    low, high = percentile_bounds(resampled, confidence)
    resampled = resampled[~np.isnan(resampled)]
    beyond = min(_count(resampled, below=True), _count(resampled, below=False))
    return Interval(value, low, high, min(1.0, 2 * (beyond + 1) / (len(resampled) + 1)))


def are_rare(images: Int64[ndarray, " classes"]) -> Bool[ndarray, " classes"]:
    """Return which classes are rare: they are in an image, but in fewer than ``FEW_CLASS_IMAGES``."""
    return (images > 0) & (images < FEW_CLASS_IMAGES)


def equivalent_over_images(resampled: Float[ndarray, " resamples"], margin: float) -> float:
    """Return the p value of two one-sided tests that a difference is beyond +-margin, from its resamples."""
    resampled = resampled[~np.isnan(resampled)]
    beyond = max(np.sum(resampled >= margin), np.sum(resampled <= -margin))
    return float((beyond + 1) / (len(resampled) + 1))


def resamples_needed(comparisons: int, alpha: float) -> int:
    """Return the number of resamples for which the smallest p, after Holm's correction, is below ``alpha``."""
    return int(2 * comparisons / alpha) + 1


def _count(resampled: Float[ndarray, " resamples"], below: bool) -> float:
    """Count resamples on one side of zero; those at zero count half, so that equal models have p = 1."""
    return np.sum(resampled < 0 if below else resampled > 0) + np.sum(resampled == 0) / 2


def are_equal(values: Float[ndarray, " seeds"]) -> bool:
    """Return whether scores or differences of seeds are equal up to rounding."""
    return bool(np.ptp(values) < 1e-12)


def over_seeds(differences: Sequence[float] | ndarray, confidence: float = 0.95) -> Interval | None:
    """Return the t interval of the mean of paired differences, one for each seed.

    None for fewer than three seeds: with one degree of freedom (two seeds) the interval is 12.7 standard errors to each
    side, and a bootstrap over so few values would be far too narrow. Also None if all differences are equal: then the
    seeds are not independent (such as several evaluations of one checkpoint).
    """
    values = np.asarray(differences, float)
    if len(values) < FEWEST_SEEDS or are_equal(values):
        return None
    freedom, mean = len(values) - 1, float(values.mean())
    error = float(values.std(ddof=1)) / np.sqrt(len(values))
    reach = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    return Interval(mean, float(mean - reach), float(mean + reach), float(2 * stdtr(freedom, -abs(mean) / error)))
