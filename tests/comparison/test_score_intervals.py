"""Intervals of scores over images, compared with scipy's bootstrap of the scores themselves."""

import numpy as np
from scipy.stats import bootstrap

from fcnlab.comparison.intervals import draws
from fcnlab.comparison.score_intervals import miou_interval, score_intervals
from fcnlab.metrics.conventions import class_areas
from fcnlab.metrics.scores import SCORES, scores
from run_folders import toy_matrices


def test_the_intervals_are_those_of_a_bootstrap_of_each_score():
    matrices = toy_matrices(0.6, images=12)
    matrices[:, 3, :], matrices[:, :, 3] = 0, 0  # a class that never occurs
    areas, counts = class_areas(matrices), draws(12, 4000)
    found = score_intervals(areas, counts, 0.9)

    def values(places):
        computed = scores(matrices[places.astype(int)].sum(axis=0))
        return np.array([*(getattr(computed, name) for name in SCORES), *computed.iou[:3]])

    expected = bootstrap(
        (np.arange(12),), values, vectorized=False, n_resamples=4000, confidence_level=0.9, method="percentile", rng=1
    ).confidence_interval
    ours = np.array([*(found.scores[name] for name in SCORES), *found.iou[:3]])
    width = (expected.high - expected.low)[:, None]
    assert (np.abs(ours - np.stack([expected.low, expected.high], axis=1)) < 0.1 * width).all()
    assert found.iou[3] is None and miou_interval(areas, counts, 0.9) == found.scores["miou"]


def test_means_over_rare_classes_have_no_interval():
    """With 20 classes in two images each, nearly all resamples exclude a class and score higher."""
    rng, matrices = np.random.default_rng(0), np.zeros((200, 21, 21), np.int64)
    for image, matrix in enumerate(matrices):
        matrix[0, 0] = 100
        if image < 40:
            label = 1 + image % 20
            matrix[label, label], matrix[label, 0] = 10, 90
    areas, counts = class_areas(matrices), draws(200, 1000)
    drawn = [scores(matrices[places].sum(axis=0)).miou for places in rng.integers(200, size=(500, 200))]
    assert np.mean(np.array(drawn) <= scores(matrices.sum(axis=0)).miou) < 0.1  # without bias: 0.5
    found = score_intervals(areas, counts, 0.95)
    assert found.scores["miou"] is None is found.scores["mean_acc"] is miou_interval(areas, counts, 0.95)
    assert found.scores["pixel_acc"] and found.scores["fw_iou"] and found.iou[0] and found.iou[1:] == [None] * 20
