"""Draw p values of pairs as they would be if no pair of groups differed, jointly, for the step-down correction.

Pairs that share groups, seeds or images have similar p values. The draws keep this: all pairs use the same random
weights of images, and pairs that share a seed use the same random numbers for it. The scores of seeds are drawn with
their observed covariances between groups (a parametric bootstrap), and the changes over images with theirs (a
multiplier bootstrap of the leave-one-out changes).
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import ndtr, stdtr

from fcnlab.comparison.two_factor import TwoFactor

DRAWS = 2_000
UNKNOWN_SEED = 2**63  # of weights from other software


class NullDraws:
    """Random numbers for the images of a set and for seeds, shared by all pairs."""

    def __init__(self, images: int, count: int = DRAWS):
        self.images, self.count = images, count

    @cached_property
    def _weights(self) -> Float[ndarray, "draws images"]:
        return np.random.default_rng(0).standard_normal((self.count, self.images))

    def over_images(self, change: Float[ndarray, " images"]) -> Float[ndarray, " draws"]:
        """Return draws of a difference from its leave-one-out changes, with mean 0 and standard deviation 1."""
        size = float(np.linalg.norm(change))
        return self._weights @ (change / size) if size else np.zeros(self.count)

    def over_seeds(self, seeds: Sequence[int | None], values: ndarray) -> Float[ndarray, "seeds draws"]:
        """Return draws of as many scores as there are, with the variance of the given ones and mean 0."""
        deviations = (values - values.mean()) / np.sqrt(len(values) - 1)
        return sum(
            (deviation * self._of_seed(seed, len(values)) for seed, deviation in zip(seeds, deviations, strict=True)),
            start=np.zeros((len(values), self.count)),
        )

    def _of_seed(self, seed: int | None, rows: int) -> Float[ndarray, "rows draws"]:
        """Return the random numbers of a seed; those of fewer rows are the first ones of more."""
        return np.random.default_rng([1, UNKNOWN_SEED if seed is None else seed]).standard_normal((rows, self.count))

    def p_images_only(self, change: Float[ndarray, " images"]) -> Float[ndarray, " draws"]:
        """Return draws of the p value of a difference over images."""
        return 2 * ndtr(-np.abs(self.over_images(change)))

    def p_two_factor(
        self,
        found: TwoFactor,
        samples: Sequence[tuple[Sequence[int | None], ndarray]],
        change: Float[ndarray, " images"],
    ) -> Float[ndarray, " draws"]:
        """Return draws of the p value over seeds and images.

        ``samples`` has the seeds and the differences of paired seeds, or the seeds and the scores of each group.
        """
        drawn = [self.over_seeds(seeds, values) for seeds, values in samples]
        signs = (1, -1)[: len(drawn)]
        difference = np.sqrt(found.shared) * self.over_images(change)
        difference = difference + sum(sign * sample.mean(axis=0) for sign, sample in zip(signs, drawn, strict=True))
        parts = [sample.var(axis=0, ddof=1) / len(sample) for sample in drawn]
        variance = sum(parts) + found.shared
        freedom = variance**2 / sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, drawn, strict=True))
        return 2 * stdtr(freedom, -np.abs(difference) / np.sqrt(variance))
