"""Errors of the two-factor analysis on real per-image counts; make simulate prints all cases."""

import numpy as np
import pytest

from fcnlab.comparison.intervals import draws, mean_iou, resampled_miou
from fcnlab.comparison.two_factor import changes, covariance
from simulation import Case, halves, read_counts, simulate, simulate_classes

REPETITIONS = 700  # three standard errors of a share of 5 % are 2.5 points


def test_the_real_counts_are_plausible():
    counts = read_counts("voc")
    assert counts.images == 300 and [len(network) for network in counts.networks] == [5, 5]
    for network in counts.networks:
        intersection, union = network[:, :, : network.shape[2] // 2], network[:, :, network.shape[2] // 2 :]
        assert (intersection >= 0).all() and (intersection <= union).all()


def test_leaving_out_one_image_misses_most_of_the_variance_of_rare_classes():
    """The variance over images that all seeds share, of the difference of two networks, by bootstrap and jackknife."""
    counts = read_counts("voc")
    resamples = draws(counts.images, 4000)
    bootstrap, jackknife = (
        covariance(np.subtract(*(np.array([of_run(run) for run in network]) for network in counts.networks)))
        for of_run in (lambda run: changes(resampled_miou(resamples, *halves(run))), leave_one_out)
    )
    assert 0 < jackknife < bootstrap / 10


def leave_one_out(run: np.ndarray) -> np.ndarray:
    """Return the changes of the mIoU without each image, whose products are the jackknife's covariances."""
    left = mean_iou(*halves(run.sum(axis=0) - run))
    return np.sqrt((len(left) - 1) / len(left)) * (left - left.mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case("voc", "frequent", 300, 3, "1:4", equal=True),
        Case("voc", "frequent", 300, 5, "1:1", equal=True),
        Case("voc", "frequent", 300, 10, "4:1", equal=True),
        Case("voc", "frequent", 300, 5, "1:1", equal=True, paired=False),
        Case("voc", "all", 100, 5, "1:1", equal=True),
    ],
    ids=lambda case: "-".join(map(str, case[1:])),
)
def test_equal_methods_rarely_differ_significantly(case):
    """Nominal are 5 %; two separate tests in one kind of chance are far from it."""
    found = simulate(case, REPETITIONS)
    assert 0.025 < found.significant < 0.075 and found.covered == pytest.approx(1 - found.significant)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "ratio"), [(3, "1:1"), (10, "4:1")])
def test_intervals_contain_the_true_difference(seeds, ratio):
    found = simulate(Case("voc", "frequent", 300, seeds, ratio, equal=False), REPETITIONS)
    assert found.covered == pytest.approx(0.95, abs=0.025)


@pytest.mark.slow
def test_ten_seeds_without_a_test_over_images_find_differences_between_equal_methods():
    """What the analysis is for: the t test over seeds is right for these images only."""
    assert simulate(Case("voc", "frequent", 300, 10, "4:1", equal=True), REPETITIONS).seeds > 0.2


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "equal"), [("1:4", False), ("1:1", True)])
def test_intervals_of_all_classes_hold_together_with_three_seeds(ratio, equal):
    """In 95 +- 2.5 % of comparisons no interval misses; over images only, intervals are at least half as wide."""
    found = simulate_classes(Case("voc", "frequent", 300, 3, ratio, equal), 400)
    assert 1 - found.missed == pytest.approx(0.95, abs=0.025)
    assert found.half_width < 2 * found.images_only
