"""Draw p values of pairs as they would be if no pair of groups differed, jointly, for the step-down correction.

Pairs that share groups, seeds or images have similar p values. The draws keep this: all pairs use the same resamples of
the images, and pairs that share a seed use the same random numbers for it. The scores of seeds are drawn from normal
distributions with their observed covariances between groups (a parametric bootstrap).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import ndtr, stdtr

from fcnlab.comparison.two_factor import TwoFactor, degrees_of_freedom

UNKNOWN_SEED = 2**63  # of weights from other software


def p_images_only(change: Float[ndarray, " resamples"]) -> Float[ndarray, " resamples"]:
    """Return draws of the p value of a difference over images, from its changes in the resamples."""
    return 2 * ndtr(-np.abs(_standardised(change)))


def p_two_factor(
    found: TwoFactor,
    samples: Sequence[tuple[Sequence[int | None], ndarray]],
    change: Float[ndarray, " resamples"],
) -> Float[ndarray, " resamples"]:
    """Return draws of the p value of a difference over seeds and images.

    ``samples`` has the seeds and the differences of paired seeds, or the seeds and the scores of each group. ``change``
    has the changes of the mean difference in the resamples.
    """
    drawn = [_over_seeds(seeds, values, len(change)) for seeds, values in samples]
    signs = (1, -1)[: len(drawn)]
    difference = np.sqrt(found.shared) * _standardised(change)
    difference = difference + sum(sign * sample.mean(axis=0) for sign, sample in zip(signs, drawn, strict=True))
    parts = [(sample.var(axis=0, ddof=1) / len(sample), len(sample)) for sample in drawn]
    variance = sum(part for part, _ in parts) + found.shared
    freedom = degrees_of_freedom(variance, parts)
    return 2 * stdtr(freedom, -np.abs(difference) / np.sqrt(variance))


def _standardised(change: Float[ndarray, " resamples"]) -> Float[ndarray, " resamples"]:
    """Return the changes with standard deviation 1."""
    size = float(np.linalg.norm(change))
    return change * (np.sqrt(len(change) - 1) / size) if size else np.zeros_like(change)


def _over_seeds(seeds: Sequence[int | None], values: ndarray, count: int) -> Float[ndarray, "seeds draws"]:
    """Return draws of as many scores as there are, with the variance of the given ones and mean 0."""
    deviations = (values - values.mean()) / np.sqrt(len(values) - 1)
    return sum(
        (
            deviation * _random_numbers(seed, len(values), count)
            for seed, deviation in zip(seeds, deviations, strict=True)
        ),
        start=np.zeros((len(values), count)),
    )


def _random_numbers(seed: int | None, rows: int, count: int) -> Float[ndarray, "rows draws"]:
    """Return the random numbers of a seed, of which all groups that have it use the same."""
    return np.random.default_rng([1, UNKNOWN_SEED if seed is None else seed % UNKNOWN_SEED]).standard_normal(
        (rows, count)
    )
