"""Moderated variances: the prior that made them is found again, and each variance is nearer to its truth."""

import numpy as np
import pytest

from fcnlab.comparison.moderated_variances import moderated


@pytest.mark.parametrize("prior", [3.0, 20.0])
def test_the_prior_of_many_variances_is_found(prior):
    rng, freedom, scale = np.random.default_rng(0), 4, 0.04
    true = scale * prior / rng.chisquare(prior, 20_000)
    samples = true * rng.chisquare(freedom, len(true)) / freedom
    found = moderated(samples, freedom)
    assert found.freedom == pytest.approx(prior + freedom, rel=0.15)
    weights = np.linalg.lstsq(np.stack([samples, np.ones(len(true))], axis=1), found.variances, rcond=None)[0]
    assert weights[0] == pytest.approx(freedom / (prior + freedom), rel=0.15)
    assert weights[1] == pytest.approx(scale * prior / (prior + freedom), rel=0.05)
    errors = [np.square(np.log(variances / true)).mean() for variances in (found.variances, samples)]
    assert errors[0] < errors[1] / 2


def test_equal_variances_are_pooled():
    """With no more spread than chance, all have the geometric mean without its bias; degrees of freedom add up."""
    found = moderated(np.array([1.0, 1.1, 0.9, 1.0]), 4)
    assert found.freedom == 16 and np.ptp(found.variances) < 1e-6
    rng = np.random.default_rng(1)
    pooled = [moderated(rng.chisquare(4, 12) / 4, 4).variances.mean() for _ in range(2000)]
    assert np.mean(pooled) == pytest.approx(1, abs=0.05)


def test_a_variance_of_zero_and_few_variances_stay():
    found = moderated(np.array([1.0, 0.0, 0.5, 2.0]), 2)
    assert found.variances[1] == 0 and found.freedom <= 6
    few = moderated(np.array([1.0, 0.0, 0.5]), 2)
    assert few.variances.tolist() == [1.0, 0.0, 0.5] and few.freedom == 2
