"""How many seeds and images does a comparison need? The power of the two-factor analysis.

The source is Hillis, Obuchowski and Berbaum: Power Estimation for Multireader ROC Methods, Academic Radiology 18(2),
2011.

The components of a pilot are assumed to be exact: the variance that training causes stays, and the variance that images
cause is inversely proportional to their number. From three seeds, these components are rough.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import nctdtr

from fcnlab.comparison.intervals import FEWEST_SEEDS
from fcnlab.comparison.two_factor import SeedSample, TwoFactor

POWER = 0.8  # probability of finding a difference, as is usual
MOST_SEEDS, MOST_IMAGES = 1_000, 1_000_000  # beyond these, no number is given


class Design(NamedTuple):
    """What a comparison can find with a probability of 80 %: differences in 0..1, numbers of seeds of each method.

    ``seeds`` is the number needed for the observed difference with the same images, ``images`` that with the same
    seeds; None if no number up to 1,000 seeds or a million images suffices.
    """

    detectable: float
    seeds: int | None
    images: int | None


class Level(NamedTuple):
    """The level of significance, and the number of comparisons that it is for (of Holm's method, the first step)."""

    alpha: float
    comparisons: int = 1


def design(pilot: TwoFactor, images: int, level: Level) -> Design:
    """Return what a comparison with the components of a pilot on some images can detect, and what it would need."""
    return Design(
        detectable_difference(pilot, level),
        seeds_needed(pilot, level),
        images_needed(pilot, images, level),
    )


def with_numbers(pilot: TwoFactor, seeds: int | None = None, image_ratio: float = 1.0) -> TwoFactor:
    """Return the expected components with another number of seeds of each method, and some times the images."""
    samples = tuple(
        SeedSample(
            seeds or sample.seeds,
            sample.from_training + min(sample.from_images, sample.variance) / image_ratio,
            sample.from_images / image_ratio,
        )
        for sample in pilot.samples
    )
    return TwoFactor(pilot.difference, samples, pilot.shared / image_ratio)


def power(difference: float, components: TwoFactor, level: Level) -> float:
    """Return the probability that a true difference is significant in its own direction."""
    error = np.sqrt(components.variance)
    critical = components.half_width(level.alpha / (2 * level.comparisons), level.comparisons)
    return 1 - float(nctdtr(components.freedom, abs(difference) / error, critical / error))


def detectable_difference(components: TwoFactor, level: Level) -> float:
    """Return the smallest true difference, in 0..1, that is significant with a probability of 80 %."""
    low, high = 0.0, np.sqrt(components.variance)
    while power(high, components, level) < POWER:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, components, level) < POWER else (low, middle)
    return float(high)


def seeds_needed(pilot: TwoFactor, level: Level) -> int | None:
    """Return the smallest number of seeds of each method for which the observed difference would be found."""
    return _smallest(
        lambda seeds: power(pilot.difference, with_numbers(pilot, seeds=seeds), level), FEWEST_SEEDS, MOST_SEEDS
    )


def images_needed(pilot: TwoFactor, images: int, level: Level) -> int | None:
    """Return the smallest number of images for which the observed difference would be found with the same seeds."""
    return _smallest(
        lambda count: power(pilot.difference, with_numbers(pilot, image_ratio=count / images), level), 1, MOST_IMAGES
    )


def _smallest(power_of: Callable[[int], float], least: int, most: int) -> int | None:
    """Return the smallest number with enough power, by bisection, as more seeds or images never lower it."""
    if power_of(most) < POWER:
        return None
    low, high = least - 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power_of(middle) < POWER else (low, middle)
    return high
