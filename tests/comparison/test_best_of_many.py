"""Test the held-out score of the best group against sets with known true scores."""

import numpy as np
import pytest

from fcnlab.comparison.best_of_many import best_of_many
from fcnlab.metrics.conventions import ClassAreas

IMAGES, PIXELS = 60, 10_000


def drawn(true_scores: np.ndarray, seeds: int, rng: np.random.Generator) -> list[list[ClassAreas]]:
    """Draw runs of one class, with noise of the seed (sd 0.006), the image (0.03) and both (0.02)."""
    groups, union = len(true_scores), np.full((IMAGES, 1), PIXELS)
    of_seeds, of_images = rng.normal(0, 0.006, (groups, seeds, 1)), rng.normal(0, 0.03, (groups, 1, IMAGES))
    iou = true_scores[:, None, None] + of_seeds + of_images + rng.normal(0, 0.02, (groups, seeds, IMAGES))
    areas = np.rint(PIXELS * iou).astype(np.int64)[..., None]
    return [[ClassAreas(run, union, union) for run in runs] for runs in areas]


def biases(seeds: int, spread: float, failed: int, repeats: int = 20) -> tuple[float, float]:
    """Return the mean bias of the observed and of the held-out score of the best of 30 groups."""
    rng, differences = np.random.default_rng(0), []
    for _ in range(repeats):
        truth = 0.6 + rng.normal(0, spread, 30)
        truth[:failed] = 0.1  # settings that do not train at all
        groups = drawn(truth, seeds, rng)
        best = int(np.argmax([np.mean([run.intersection.mean() for run in runs]) for runs in groups]))
        estimate = best_of_many(groups, splits=10)
        differences.append([estimate.observed - truth[best], estimate.held_out - truth[best]])
    observed, held_out = np.mean(differences, axis=0)
    return float(observed), float(held_out)


@pytest.mark.parametrize(("spread", "failed"), [(0.0, 0), (0.003, 10)])
def test_the_held_out_score_is_not_too_high(spread: float, failed: int):
    observed, held_out = biases(3, spread, failed)
    assert observed > 0.005  # in units of IoU: half a point
    assert -0.5 * observed < held_out < 0.2 * observed


def test_with_one_seed_its_luck_remains():
    observed, held_out = biases(1, 0.0, 0)
    assert 0.2 * observed < held_out < 0.8 * observed


def test_a_clear_winner_keeps_its_score():
    groups = drawn(np.array([0.9, *[0.5] * 11]), 3, np.random.default_rng(1))
    estimate = best_of_many(groups)
    assert estimate.observed == pytest.approx(np.mean([run.intersection.mean() for run in groups[0]]) / PIXELS)
    assert estimate.held_out == pytest.approx(estimate.observed, abs=1e-3)


def test_two_images_by_hand():
    """Each group is better on one image, and the image that does not select it shows the other score."""
    union = np.array([[10], [10]])
    groups = [[ClassAreas(np.array([[9], [1]]), union, union)], [ClassAreas(np.array([[2], [8]]), union, union)]]
    # Selected by the first image: group 0, which has 0.1 on the second one; by the second image: group 1, 0.2.
    advantage = ((0.1 - 0.45) + (0.2 - 0.55)) / 2
    assert best_of_many(groups, splits=1) == pytest.approx((0.5, 0.5 + advantage))
