"""Would a difference in mean IoU hold after retraining and on other images? One interval for both kinds of chance.

Seeds take the place of readers and images that of cases in a multi-reader multi-case study: the analysis of Obuchowski
and Rockette (Communications in Statistics 24(2), 1995), with the degrees of freedom of Hillis (Statistics in Medicine
26(3), 2007) and his extension to readers that are nested in methods (Statistics in Medicine 33(2), 2014).

Each seed gives a score that varies for two reasons: training, and the images of the set. The variance of the scores
over seeds contains the former, and of the latter the part that differs between seeds. The part that all seeds share, as
a set with easy images helps all of them, is seen only within the runs: it is the covariance of two seeds over images,
estimated by a bootstrap whose resamples all runs share. The variance of the mean over J seeds is therefore s^2 / J + c,
with the variance s^2 of the scores over seeds, and the covariance c.

The jackknife, which leaves out one image at a time, is not used. A class that few images have disappears from some
sets, and the mean IoU of a set is then that of fewer classes. To see this for a class of two images, both must be left
out. tests/comparison/test_simulation.py shows on real images what the jackknife misses.

With paired seeds, the scores are the differences d_j of runs of equal seed. In the terms of Obuchowski and Rockette,
s^2 = 2 MS(TR) and c = 2 (Cov2 - Cov3). With unpaired seeds each method contributes its own s^2 / J, and c is
Cov2 of the first + Cov2 of the second - 2 Cov3.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import ndtri, stdtr, stdtrit

from fcnlab.comparison.intervals import Interval, are_equal

Variance = TypeVar("Variance", float, ndarray)


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
        return degrees_of_freedom(self.variance, self._parts)

    @property
    def share_of_images(self) -> float:
        """Share of the variance that all seeds have in common, in 0..1."""
        return self.shared / self.variance

    @property
    def _parts(self) -> list[tuple[float, int]]:
        """The variance over seeds of each mean, and the number of its seeds."""
        return [(sample.variance / sample.seeds, sample.seeds) for sample in self.samples]

    def interval(self, confidence: float) -> Interval:
        """Return the t interval of the difference, with the p value of no difference."""
        reach = self.half_width((1 - confidence) / 2)
        return Interval(self.difference, self.difference - reach, self.difference + reach, self.p())

    def p(self, comparisons: int = 1) -> float:
        """Return the p value of no difference; that of one of many comparisons may be corrected for their number."""
        return 2 * self._tail(abs(self.difference), comparisons)

    def p_equivalent(self, margin: float, comparisons: int = 1) -> float:
        """Return the p value of two one-sided tests that the difference is beyond +-margin (Schuirmann, 1987)."""
        inside = margin - abs(self.difference)
        return self._tail(inside, comparisons) if inside > 0 else 1 - self._tail(-inside, comparisons)

    def half_width(self, tail: float, comparisons: int = 1) -> float:
        """Return the half-width of an interval that misses with the probability ``tail``, below 0.5, on each side.

        A correction for many comparisons needs far tails, where Hillis' degrees of freedom are too many for few seeds:
        with three paired seeds that vary most, equal methods have p < 0.0005 in 1 % of cases. So each kind of chance
        then has an interval of its own, and the two are combined by the root of the sum of their squared half-widths
        (Howe, Journal of the American Statistical Association 69, 1974), which is exact for one kind and too wide for
        two.
        """
        if comparisons == 1:
            return float(-stdtrit(self.freedom, tail) * np.sqrt(self.variance))
        squares = [variance * stdtrit(seeds - 1, tail) ** 2 for variance, seeds in self._parts]
        return float(np.sqrt(sum(squares) + self.shared * ndtri(tail) ** 2))

    def _tail(self, distance: float, comparisons: int) -> float:
        """Return the tail whose half-width is a distance."""
        if comparisons == 1:
            return float(stdtr(self.freedom, -distance / np.sqrt(self.variance)))
        low, high = np.log(1e-300), np.log(0.5)
        for _ in range(60):
            middle = (low + high) / 2
            too_wide = self.half_width(float(np.exp(middle)), comparisons) > distance
            low, high = (middle, high) if too_wide else (low, middle)
        return float(np.exp(high))


def degrees_of_freedom(variance: Variance, parts: Sequence[tuple[Variance, int]]) -> Variance:
    """Return Satterthwaite's degrees of freedom of a variance, parts of which are estimated from some seeds each."""
    return variance**2 / sum(part**2 / (seeds - 1) for part, seeds in parts)


def changes(resampled: Float[ndarray, " resamples"]) -> Float[ndarray, " resamples"]:
    """Return the changes of a score in the resamples, such that the product of two vectors is their covariance."""
    known = ~np.isnan(resampled)  # a resample with only ignored pixels has no score
    deviations = np.where(known, resampled - resampled[known].mean(), 0.0)
    return deviations / np.sqrt(known.sum() - 1)


def paired(
    first: Sequence[float] | ndarray,
    second: Sequence[float] | ndarray,
    first_changes: Float[ndarray, "seeds resamples"],
    second_changes: Float[ndarray, "seeds resamples"],
) -> TwoFactor:
    """Compare methods that were trained with the same seeds.

    ``first`` and ``second`` are scores by seed; the changes are those of :func:`changes`.
    """
    differences = np.asarray(first, float) - np.asarray(second, float)
    of_pairs = first_changes - second_changes
    shared = covariance(of_pairs)
    return TwoFactor(float(differences.mean()), (_sample(differences, of_pairs, shared),), max(shared, 0.0))


def unpaired(
    first: Sequence[float] | ndarray,
    second: Sequence[float] | ndarray,
    first_changes: Float[ndarray, "seeds resamples"],
    second_changes: Float[ndarray, "other_seeds resamples"],
) -> TwoFactor:
    """Compare methods that were trained with different seeds, also with different numbers of them."""
    within = [covariance(of_method) for of_method in (first_changes, second_changes)]
    between = float(first_changes.mean(axis=0) @ second_changes.mean(axis=0))
    samples = [
        _sample(np.asarray(values, float), of_method, shared)
        for values, of_method, shared in zip((first, second), (first_changes, second_changes), within, strict=True)
    ]
    difference = float(np.mean(first) - np.mean(second))
    return TwoFactor(difference, tuple(samples), max(sum(within) - 2 * between, 0.0))


def _sample(values: ndarray, of_seeds: ndarray, shared: float) -> SeedSample:
    own = float(np.square(of_seeds).sum() / len(of_seeds))  # mean variance over images of a single seed
    variance = 0.0 if are_equal(values) else float(values.var(ddof=1))
    return SeedSample(len(values), variance, max(own - shared, 0.0))


def covariance(of_seeds: Float[ndarray, "seeds resamples"]) -> float:
    """Return the covariance over images of two different seeds, averaged over all pairs of seeds."""
    seeds = len(of_seeds)
    of_sum = float(np.square(of_seeds.sum(axis=0)).sum())
    return (of_sum - float(np.square(of_seeds).sum())) / (seeds * (seeds - 1))
