"""Correct p values for the number of comparisons: Holm's method, and Westfall and Young's step-down method.

Both keep the probability of any false rejection below the level, if the p values are exact, also in their far tails.
The step-down method (Resampling-Based Multiple Testing, 1993, algorithm 2.8) takes into account that pairs share
groups, seeds and images, so that it rejects at least about as much.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray


def holm(p: Sequence[float] | ndarray) -> list[float]:
    """Return p values corrected so that the probability of any false rejection is at most ``alpha``.

    Holm (1979): the smallest is multiplied by their number, the next by one less, and the result is made monotonic.
    """
    order = np.argsort(p)
    factors = np.arange(len(p), 0, -1)
    corrected = np.minimum(1, np.maximum.accumulate(np.asarray(p, float)[order] * factors))
    result = np.empty(len(p))
    result[order] = corrected
    return result.tolist()


def step_down(p: Sequence[float] | ndarray, null: Float[ndarray, "resamples comparisons"]) -> list[float]:
    """Return corrected p values: the share of resamples with a p as small, among the comparisons not rejected yet.

    ``null`` has the p values of resamples in which no comparison differs. The observed set counts as one resample.
    """
    order = np.argsort(p, kind="stable")
    smallest = np.minimum.accumulate(null[:, order[::-1]], axis=1)[:, ::-1]  # of this comparison and the later ones
    counts = (smallest <= np.asarray(p, float)[order]).sum(axis=0)
    corrected = np.maximum.accumulate((counts + 1) / (len(null) + 1))
    result = np.empty(len(order))
    result[order] = corrected
    return result.tolist()
