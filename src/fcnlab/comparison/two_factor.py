"""Would a difference in mean IoU hold after retraining and on other images? One interval for both kinds of chance.

Seeds take the place of readers and images that of cases in a multi-reader multi-case study: the analysis of Obuchowski
and Rockette (Communications in Statistics 24(2), 1995), with the degrees of freedom of Hillis (Statistics in Medicine
26(3), 2007) and his extension to readers that are nested in methods (Statistics in Medicine 33(2), 2014).

Each seed gives a score that varies for two reasons: training, and the images of the set. The variance of the scores
over seeds contains the former, and of the latter the part that differs between seeds. The part that all seeds share, as
a set with easy images helps all of them, is seen only within the runs: it is the covariance of two seeds over images,
estimated by leaving out one image at a time (the jackknife). The variance of the mean over J seeds is therefore
s^2 / J + c, with the variance s^2 of the scores over seeds, and the covariance c.

With paired seeds, the scores are the differences d_j of runs of equal seed. In the terms of Obuchowski and Rockette,
s^2 = 2 MS(TR) and c = 2 (Cov2 - Cov3). With unpaired seeds each method contributes its own s^2 / J, and c is
Cov2 of the first + Cov2 of the second - 2 Cov3.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from numpy import ndarray
from scipy.special import stdtr, stdtrit

from fcnlab.comparison.intervals import Interval, mean_iou


class SeedSample(NamedTuple):
    """The scores of several seeds, or their differences: number, variance, and the part of it that is due to images.

    ``from_images`` decreases with the number of images, as the covariance does; the remaining part does not.
    """

    seeds: int
    variance: float
    from_images: float

    @property
    def from_training(self) -> float:
        return max(self.variance - self.from_images, 0.0)


class TwoFactor(NamedTuple):
    """A difference of two methods, and its variance over seeds and images.

    ``samples`` has the differences of paired seeds, or the scores of each method. ``shared`` is the variance over
    images that all seeds share, at least 0.
    """

    difference: float
    samples: tuple[SeedSample, ...]
    shared: float

    @property
    def paired(self) -> bool:
        return len(self.samples) == 1

    @property
    def fewest_seeds(self) -> int:
        return min(sample.seeds for sample in self.samples)

    @property
    def variance(self) -> float:
        """Variance of the difference."""
        return sum(sample.variance / sample.seeds for sample in self.samples) + self.shared

    @property
    def freedom(self) -> float:
        """Degrees of freedom (Hillis, 2007, equation 15; Satterthwaite's for unpaired seeds)."""
        return degrees_of_freedom(self.variance, self.samples)

    @property
    def share_of_images(self) -> float:
        """Share of the variance that all seeds have in common, in 0..1."""
        return self.shared / self.variance

    def interval(self, confidence: float) -> Interval:
        """Return the t interval of the difference, with the p value of no difference."""
        error = np.sqrt(self.variance)
        reach = float(stdtrit(self.freedom, (1 + confidence) / 2) * error)
        p = float(2 * stdtr(self.freedom, -abs(self.difference) / error))
        return Interval(self.difference, self.difference - reach, self.difference + reach, p)

    def p_equivalent(self, margin: float) -> float:
        """Return the p value of two one-sided tests that the difference is beyond +-margin (Schuirmann, 1987)."""
        return float(stdtr(self.freedom, (abs(self.difference) - margin) / np.sqrt(self.variance)))


def degrees_of_freedom(variance: float, samples: Sequence[SeedSample]) -> float:
    return variance**2 / sum((sample.variance / sample.seeds) ** 2 / (sample.seeds - 1) for sample in samples)


def leave_one_out(
    intersection: Int64[ndarray, "images classes"], union: Int64[ndarray, "images classes"]
) -> Float[ndarray, " images"]:
    """Return how the mean IoU of the set changes if an image is left out, such that products sum to covariances.

    The covariance over images of two scores is the product of their vectors (Efron, The Jackknife, 1982, section 3). A
    class that only one image has is excluded from the mean of the set without it, as in any set without this class.
    """
    images = len(intersection)
    left = mean_iou(intersection.sum(axis=0) - intersection, union.sum(axis=0) - union)
    left = np.where(np.isnan(left), np.nanmean(left) if images > 1 else 0.0, left)  # only ignored pixels remain
    return as_changes(left)


def as_changes(left: Float[ndarray, "*shape"]) -> Float[ndarray, "*shape"]:
    """Return the changes that give the jackknife's covariances from scores without each image, the first axis."""
    images = len(left)
    return np.sqrt((images - 1) / images) * (left - left.mean(axis=0))


def paired(
    first: Sequence[float] | ndarray,
    second: Sequence[float] | ndarray,
    first_changes: Float[ndarray, "seeds images"],
    second_changes: Float[ndarray, "seeds images"],
) -> TwoFactor:
    """Compare methods that were trained with the same seeds.

    ``first`` and ``second`` are scores by seed; the changes are those of :func:`leave_one_out`.
    """
    differences = np.asarray(first, float) - np.asarray(second, float)
    changes = first_changes - second_changes
    shared = covariance(changes)
    return TwoFactor(float(differences.mean()), (_sample(differences, changes, shared),), max(shared, 0.0))


def unpaired(
    first: Sequence[float] | ndarray,
    second: Sequence[float] | ndarray,
    first_changes: Float[ndarray, "seeds images"],
    second_changes: Float[ndarray, "other_seeds images"],
) -> TwoFactor:
    """Compare methods that were trained with different seeds, also with different numbers of them."""
    within = [covariance(changes) for changes in (first_changes, second_changes)]
    between = float(first_changes.mean(axis=0) @ second_changes.mean(axis=0))
    samples = [
        _sample(np.asarray(values, float), changes, shared)
        for values, changes, shared in zip((first, second), (first_changes, second_changes), within, strict=True)
    ]
    difference = float(np.mean(first) - np.mean(second))
    return TwoFactor(difference, tuple(samples), max(sum(within) - 2 * between, 0.0))


def _sample(values: ndarray, changes: ndarray, shared: float) -> SeedSample:
    own = float(np.square(changes).sum() / len(changes))  # mean variance over images of a single seed
    return SeedSample(len(values), float(values.var(ddof=1)), max(own - shared, 0.0))


def covariance(changes: Float[ndarray, "seeds images"]) -> float:
    """Return the covariance over images of two different seeds, averaged over all pairs of seeds."""
    seeds = len(changes)
    of_sum = float(np.square(changes.sum(axis=0)).sum())
    return (of_sum - float(np.square(changes).sum())) / (seeds * (seeds - 1))
