"""Intervals of scores over images, compared with scipy's bootstrap of the scores themselves."""

import numpy as np
from scipy.stats import bootstrap

from fcnlab.comparison.runs import read_run
from fcnlab.metrics.scores import SCORES, scores
from fcnlab.publication.score_intervals import score_intervals
from run_folders import toy_matrices


def test_the_intervals_are_those_of_a_bootstrap_of_each_score(make_run):
    matrices = toy_matrices(0.6, images=12)
    matrices[:, 3, :], matrices[:, :, 3] = 0, 0  # a class that never occurs
    run = read_run(make_run("a", matrices))
    found = score_intervals(run, 4000, 0.9)

    def values(places):
        computed = scores(matrices[places.astype(int)].sum(axis=0))
        return np.array([*(getattr(computed, name) for name in SCORES), *computed.iou[:3]])

    expected = bootstrap(
        (np.arange(12),), values, vectorized=False, n_resamples=4000, confidence_level=0.9, method="percentile", rng=1
    ).confidence_interval
    ours = np.array([*(found.scores[name] for name in SCORES), *found.iou[:3]])
    width = (expected.high - expected.low)[:, None]
    assert (np.abs(ours - np.stack([expected.low, expected.high], axis=1)) < 0.1 * width).all()
    assert found.iou[3] is None
