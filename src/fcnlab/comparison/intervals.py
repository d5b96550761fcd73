"""How sure a difference of two mean IoUs is: over images by a paired bootstrap, over seeds by Student's t.

The bootstrap draws the set's images anew, as many as it has, with repetition, and computes the whole set's mean IoU
of both nets from the same draw (Efron and Tibshirani, 1993). Drawing images is counting how often each one came, so
that a draw's areas are a product of counts with the images' areas, which are all that mean IoU needs of a matrix.

The interval is the percentile one. tests/results/test_intervals.py holds it against its nominal coverage; on the sets
drawn there the BCa interval (Efron, 1987) covers less, since its acceleration is estimated from the few large images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from numpy import ndarray
from scipy.special import stdtr, stdtrit

CHUNK = 1000  # resamples that are drawn at a time: 12 MB for 1,449 images
FEWEST_SEEDS = 3  # of two the interval would be 25 spreads wide and say nothing
FEWEST_IMAGES = 30  # with fewer, equal nets have p < 0.05 too often: docs/comparing-runs.md has the shares


class Interval(NamedTuple):
    """A difference, the interval that covers it, and the probability of one as large where there is none."""

    value: float
    low: float
    high: float
    p: float


def draws(images: int, resamples: int, seed: int = 0) -> Float[ndarray, "resamples images"]:
    """How often each image is in each resample: the multinomial distribution, by counting indices.

    In single precision, which holds areas to 1e-7, far below what drawing leaves uncertain, at half the time.
    """
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, images), np.float32)
    for start in range(0, resamples, CHUNK):
        rows = counts[start : start + CHUNK]
        drawn = rng.integers(images, size=rows.shape) + images * np.arange(len(rows))[:, None]
        rows[:] = np.bincount(drawn.ravel(), minlength=rows.size).reshape(rows.shape)
    return counts


def mean_iou(intersection: ndarray, union: ndarray) -> ndarray:
    """Over the last axis, the classes; one without a union is left out; nan where none has one."""
    seen = union > 0
    ratio = np.divide(intersection, union, out=np.zeros(np.shape(intersection)), where=seen)
    count = seen.sum(axis=-1)
    return np.divide(ratio.sum(axis=-1), count, out=np.full(np.shape(count), np.nan), where=count > 0)


def resampled_miou(
    counts: Float[ndarray, "resamples images"],
    intersection: Int64[ndarray, "images classes"],
    union: Int64[ndarray, "images classes"],
) -> Float[ndarray, " resamples"]:
    """The set's mean IoU in each resample."""
    classes = intersection.shape[1]
    sums = counts @ np.concatenate([intersection, union], axis=1).astype(counts.dtype)
    return mean_iou(sums[:, :classes], sums[:, classes:])


def over_images(value: float, resampled: Float[ndarray, " resamples"], confidence: float = 0.95) -> Interval:
    """The percentile interval of a difference, and its p, from the differences in the resamples.

    p is twice the share of resamples on the other side of zero, of which the set itself counts as one (Davison and
    Hinkley, 1997, section 4.2.1): no number of resamples can show a p below one of them, so none is claimed.
    """
    resampled = resampled[~np.isnan(resampled)]  # a draw of images that are all void
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    beyond = min(_count(resampled, below=True), _count(resampled, below=False))
    return Interval(value, float(low), float(high), min(1.0, 2 * (beyond + 1) / (len(resampled) + 1)))


def resamples_needed(comparisons: int, alpha: float) -> int:
    """With so many resamples, the smallest p is below ``alpha`` after Holm's correction for the comparisons."""
    return int(2 * comparisons / alpha) + 1


def _count(resampled: Float[ndarray, " resamples"], below: bool) -> float:
    """Resamples at one side of zero; those at zero count half, so that equal nets have p = 1."""
    return np.sum(resampled < 0 if below else resampled > 0) + np.sum(resampled == 0) / 2


def over_seeds(differences: Sequence[float] | ndarray, confidence: float = 0.95) -> Interval | None:
    """The t interval of the mean of paired differences, one for each seed.

    None for fewer than three seeds: with one degree of freedom (two seeds) the interval is 12.7 standard errors to each
    side, and a bootstrap over so few would be far too narrow instead. None, too, for differences that are all the same:
    then the seed changed nothing (such as several evaluations of one file of weights), and they count once.
    """
    values = np.asarray(differences, float)
    if len(values) < FEWEST_SEEDS or np.ptp(values) == 0:
        return None
    freedom, mean = len(values) - 1, float(values.mean())
    error = float(values.std(ddof=1)) / np.sqrt(len(values))
    reach = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    return Interval(mean, float(mean - reach), float(mean + reach), float(2 * stdtr(freedom, -abs(mean) / error)))


def holm(p: Sequence[float]) -> list[float]:
    """p values so corrected that one of the true null hypotheses is rejected in ``alpha`` of the cases at most.

    Holm (1979): the smallest is multiplied by their number, the next by one less, and none is below the one before.
    """
    order = np.argsort(p)
    factors = np.arange(len(p), 0, -1)
    corrected = np.minimum(1, np.maximum.accumulate(np.asarray(p, float)[order] * factors))
    result = np.empty(len(p))
    result[order] = corrected
    return result.tolist()
