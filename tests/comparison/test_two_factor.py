"""The two-factor analysis, compared with a published worked example, a loop, and simulations with known truth."""

import numpy as np
import pytest

from fcnlab.comparison.intervals import mean_iou
from fcnlab.comparison.two_factor import SeedSample, TwoFactor, leave_one_out, paired, unpaired
from fcnlab.metrics.scores import scores
from run_folders import toy_matrices

# Van Dyke's study: areas under the ROC curve of five readers, with two methods. The results are those in the README of
# the R package MRMCaov 0.1.5, and equal those of RJafroc 2.0.1, another implementation.
FIRST = np.array([0.9196457, 0.8587762, 0.9038647, 0.9731079, 0.8297907])
SECOND = np.array([0.9478261, 0.9053140, 0.9217391, 0.9993559, 0.9299517])
COV2, COV3 = 0.0003440748, 0.0002390284


def test_the_published_example_of_paired_readers():
    differences = FIRST - SECOND
    assert differences.var(ddof=1) / 2 == pytest.approx(0.0005510306, rel=1e-5), "MS(T:R)"
    sample = SeedSample(5, differences.var(ddof=1), 0)
    found = TwoFactor(differences.mean(), (sample,), 2 * (COV2 - COV3))
    assert found.variance**0.5 == pytest.approx(0.02074862, rel=1e-5)
    assert found.freedom == pytest.approx(15.25967, rel=1e-5)
    assert found.interval(0.95) == pytest.approx((-0.04380032, -0.0879594986, 0.0003588544, 0.05166569), rel=1e-4)


@pytest.mark.parametrize(
    ("values", "cov2", "mean_square", "error", "freedom"),
    [
        (FIRST, 0.0004839618, 0.003082629, 0.03317360, 12.74465),
        (SECOND, 0.0002041879, 0.001304602, 0.02156637, 12.71019),
    ],
)
def test_the_published_example_of_one_method(values, cov2, mean_square, error, freedom):
    """Unpaired seeds add such a variance for each method."""
    sample = SeedSample(5, values.var(ddof=1), 0)
    found = TwoFactor(values.mean(), (sample,), cov2)
    assert sample.variance == pytest.approx(mean_square, rel=1e-5)
    assert found.variance**0.5 == pytest.approx(error, rel=1e-5) and found.freedom == pytest.approx(freedom, rel=1e-5)


def jackknife_covariance(first: np.ndarray, second: np.ndarray) -> float:
    images = len(first)
    return (images - 1) / images * float(np.sum((first - first.mean()) * (second - second.mean())))


def left_out(matrices: np.ndarray) -> np.ndarray:
    """Return the mIoU of the set without each image, by definition."""
    return np.array([scores(np.delete(matrices, image, axis=0).sum(axis=0)).miou for image in range(len(matrices))])


def areas(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    intersection = np.array([np.diag(matrix) for matrix in matrices])
    return intersection, matrices.sum(axis=2) + matrices.sum(axis=1) - intersection


def test_changes_give_the_covariances_of_the_jackknife():
    first, second = toy_matrices(0.7, 20, seed=1), toy_matrices(0.8, 20, seed=2)
    first[1:, 3], first[1:, :, 3] = 0, 0  # only one image has this class
    changes = leave_one_out(*areas(first)), leave_one_out(*areas(second))
    for one, other in ((0, 0), (0, 1), (1, 1)):
        expected = jackknife_covariance(*(left_out((first, second)[place]) for place in (one, other)))
        assert changes[one] @ changes[other] == pytest.approx(expected, rel=1e-9)


def four_covariances(changes: np.ndarray, other: np.ndarray) -> tuple[float, float, float, float]:
    """Return the variance and Cov1, Cov2, Cov3 of Obuchowski and Rockette, by loops over all pairs."""
    seeds = range(len(changes))
    both = (changes, other)
    var = np.mean([method[j] @ method[j] for method in both for j in seeds])
    cov1 = np.mean([changes[j] @ other[j] for j in seeds])
    cov2 = np.mean([method[j] @ method[k] for method in both for j in seeds for k in seeds if j != k])
    cov3 = np.mean([changes[j] @ other[k] for j in seeds for k in seeds if j != k])
    return float(var), float(cov1), float(cov2), float(cov3)


def scored(seeds: range, quality: float) -> tuple[list[float], np.ndarray]:
    runs = [toy_matrices(quality + seed / 100, seed=seed) for seed in seeds]
    return [scores(run.sum(axis=0)).miou for run in runs], np.array([leave_one_out(*areas(run)) for run in runs])


def test_paired_seeds_have_the_covariances_of_obuchowski_and_rockette():
    (first, changes), (second, other) = scored(range(4), 0.7), scored(range(10, 14), 0.6)
    found = paired(first, second, changes, other)
    var, cov1, cov2, cov3 = four_covariances(changes, other)
    assert found.shared == pytest.approx(max(2 * (cov2 - cov3), 0)) and found.paired
    differences = np.subtract(first, second)
    assert found.samples[0].variance == pytest.approx(differences.var(ddof=1))
    assert found.samples[0].from_images == pytest.approx(max(2 * (var - cov1 - cov2 + cov3), 0))
    assert found.difference == pytest.approx(differences.mean())


def test_unpaired_seeds_have_covariances_within_and_between_methods():
    (first, changes), (second, other) = scored(range(3), 0.7), scored(range(10, 15), 0.6)
    found = unpaired(first, second, changes, other)
    within = [
        np.mean([rows[j] @ rows[k] for j in range(len(rows)) for k in range(len(rows)) if j != k])
        for rows in (changes, other)
    ]
    between = np.mean([one @ another for one in changes for another in other])
    assert found.shared == pytest.approx(max(sum(within) - 2 * between, 0))
    assert [sample.seeds for sample in found.samples] == [3, 5] and not found.paired
    variance = np.var(first, ddof=1) / 3 + np.var(second, ddof=1) / 5 + found.shared
    assert found.variance == pytest.approx(variance)
    parts = np.var(first, ddof=1) / 3, np.var(second, ddof=1) / 5
    assert found.freedom == pytest.approx(variance**2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 4))


def test_without_variance_over_images_it_is_the_t_test():
    differences = np.array([0.1, 0.3, 0.2, 0.5])
    found = paired(differences, np.zeros(4), np.zeros((4, 30)), np.zeros((4, 30)))
    assert found.freedom == 3 and found.variance == pytest.approx(differences.var(ddof=1) / 4)


def test_a_set_where_one_image_has_pixels():
    intersection, union = np.zeros((3, 2), int), np.zeros((3, 2), int)
    intersection[1], union[1] = 5, 10
    assert np.isfinite(leave_one_out(intersection, union)).all()
    assert mean_iou(intersection.sum(axis=0), union.sum(axis=0)) == 0.5
