"""Variances of several quantities from few values each, estimated together: the moderated variances of Smyth.

Each variance is a draw from a common prior, a scaled inverse chi-square distribution, whose scale and degrees of
freedom are estimated from all sample variances (Smyth, Statistical Applications in Genetics and Molecular Biology 3(1),
2004, section 6.2). The moderated variance is the mean of the sample variance and of the prior's,
weighted by degrees of freedom, and has the degrees of freedom of both. If variances differ widely, the prior has few
degrees of freedom, and the sample variances hardly change.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import digamma, polygamma

FEWEST = 3  # variances from which a prior is estimated


class Moderated(NamedTuple):
    """Moderated variances and their degrees of freedom."""

    variances: Float[ndarray, " quantities"]
    freedom: float


def moderated(variances: Float[ndarray, " quantities"], freedom: int) -> Moderated:
    """Return moderated variances of sample variances with ``freedom`` degrees of freedom each.

    A variance of 0 stays 0, because its values are not independent. The degrees of freedom are at most those of all
    sample variances together.
    """
    known = variances > 0
    count = int(known.sum())
    if count < FEWEST:
        return Moderated(variances, float(freedom))
    # The logarithm of a sample variance has the mean log(scale) + bias(freedom) - bias(prior), and a known variance.
    logarithms = np.log(variances[known]) - _bias(freedom)
    spread = float(logarithms.var(ddof=1) - polygamma(1, freedom / 2))
    most = count * freedom
    prior = min(2 * _inverse_trigamma(spread), 1e9) if spread > 0 else 1e9
    scale = np.exp(logarithms.mean() + _bias(prior))
    together = (prior * scale + freedom * variances) / (prior + freedom)
    return Moderated(np.where(known, together, 0.0), min(prior + freedom, most))


def _bias(freedom: float) -> float:
    """Return the mean of the logarithm of a chi-square variable divided by its degrees of freedom."""
    return float(digamma(freedom / 2) - np.log(freedom / 2))


def _inverse_trigamma(value: float) -> float:
    """Return where the trigamma function has a value above 0, by bisection of a logarithm."""
    low, high = -30.0, 30.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if polygamma(1, np.exp(middle)) > value else (low, middle)
    return float(np.exp(low))
