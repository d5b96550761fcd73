"""The two-factor analysis, compared with a published worked example, a loop, and simulations with known truth."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from fcnlab.comparison.intervals import draws, resampled_miou
from fcnlab.comparison.multiple import holm
from fcnlab.comparison.two_factor import SeedSample, TwoFactor, changes, degrees_of_freedom, paired, unpaired
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


def areas(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    intersection = np.array([np.diag(matrix) for matrix in matrices])
    return intersection, matrices.sum(axis=2) + matrices.sum(axis=1) - intersection


def test_products_of_changes_are_covariances():
    first, second = np.random.default_rng(1).normal(size=(2, 500))
    first[3] = np.nan  # only ignored pixels
    expected = np.cov(np.delete(first, 3), np.delete(second, 3))
    assert changes(first) @ changes(first) == pytest.approx(expected[0, 0])
    assert changes(first) @ changes(second) == pytest.approx(expected[0, 1], rel=0.05)
    assert changes(second) @ changes(second) == pytest.approx(np.var(second, ddof=1))


def test_a_class_of_two_images_varies_the_score_as_it_should():
    """One of two models has false positives of a rare class: in sets without this class they cost a third of the score.

    The variance of the difference over sets that are drawn anew is that of the bootstrap. The jackknife, which leaves
    out one image, finds none of it.
    """
    images, population = 60, np.zeros((60, 2, 3), int)  # intersection and union of three classes
    population[:, :, :2] = [[60, 70, 0][:2], [100, 100, 0][:2]]
    population[:2, :, 2] = 40  # the rare class is found perfectly
    other = population.copy()
    other[2:30, 1, 2] = 1  # false positives on other images
    counts = draws(images, 4000)
    first, second = (resampled_miou(counts, table[:, 0], table[:, 1]) for table in (population, other))
    found = float(np.square(changes(first) - changes(second)).sum())
    rng, differences = np.random.default_rng(5), []
    for _ in range(4000):
        chosen = rng.integers(images, size=images)
        sums = [table[chosen].sum(axis=0) for table in (population, other)]
        ious = [total[0][total[1] > 0] / total[1][total[1] > 0] for total in sums]
        differences.append(ious[0].mean() - ious[1].mean())
    assert found == pytest.approx(np.var(differences), rel=0.1) and found > 0.001


def four_covariances(first: np.ndarray, other: np.ndarray) -> tuple[float, float, float, float]:
    """Return the variance and Cov1, Cov2, Cov3 of Obuchowski and Rockette, by loops over all pairs."""
    seeds = range(len(first))
    both = (first, other)
    var = np.mean([method[j] @ method[j] for method in both for j in seeds])
    cov1 = np.mean([first[j] @ other[j] for j in seeds])
    cov2 = np.mean([method[j] @ method[k] for method in both for j in seeds for k in seeds if j != k])
    cov3 = np.mean([first[j] @ other[k] for j in seeds for k in seeds if j != k])
    return float(var), float(cov1), float(cov2), float(cov3)


def scored(seeds: range, quality: float) -> tuple[list[float], np.ndarray]:
    runs = [toy_matrices(quality + seed / 100, seed=seed) for seed in seeds]
    resampled = [resampled_miou(draws(36, 300), *areas(run)) for run in runs]
    return [scores(run.sum(axis=0)).miou for run in runs], np.array([changes(mious) for mious in resampled])


def test_paired_seeds_have_the_covariances_of_obuchowski_and_rockette():
    (first, of_first), (second, other) = scored(range(4), 0.7), scored(range(10, 14), 0.6)
    found = paired(first, second, of_first, other)
    var, cov1, cov2, cov3 = four_covariances(of_first, other)
    assert found.shared == pytest.approx(max(2 * (cov2 - cov3), 0)) and found.paired
    differences = np.subtract(first, second)
    assert found.samples[0].variance == pytest.approx(differences.var(ddof=1))
    assert found.samples[0].from_images == pytest.approx(max(2 * (var - cov1 - cov2 + cov3), 0))
    assert found.difference == pytest.approx(differences.mean())


def test_unpaired_seeds_have_covariances_within_and_between_methods():
    (first, of_first), (second, other) = scored(range(3), 0.7), scored(range(10, 15), 0.6)
    found = unpaired(first, second, of_first, other)
    within = [
        np.mean([rows[j] @ rows[k] for j in range(len(rows)) for k in range(len(rows)) if j != k])
        for rows in (of_first, other)
    ]
    between = np.mean([one @ another for one in of_first for another in other])
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


def test_the_tails_of_one_kind_of_chance_are_those_of_its_distribution():
    over_seeds = TwoFactor(0.3, (SeedSample(4, 0.02, 0.0),), 0.0)
    assert over_seeds.p(comparisons=2) == pytest.approx(2 * stats.t.sf(0.3 / np.sqrt(0.02 / 4), 3), rel=1e-6)
    over_images = TwoFactor(0.3, (SeedSample(4, 1e-20, 0.0),), 0.01)
    assert over_images.p(comparisons=2) == pytest.approx(2 * stats.norm.sf(3), rel=1e-6)
    assert over_images.p_equivalent(0.5, comparisons=2) == pytest.approx(stats.norm.sf(2), rel=1e-6)
    assert over_images.p_equivalent(0.1, comparisons=2) == pytest.approx(stats.norm.cdf(2), rel=1e-6)


def false_positives(seeds: int, share: float, sets: int, methods: int = 5) -> tuple[float, float]:
    """Return the shares of sets of equal methods in which Holm's correction finds a difference among all pairs.

    The first is that of the p values for many comparisons, the second that of Hillis' p values. ``share`` is the part
    of the variance of a difference that all seeds share.
    """
    rng, wrong, shared = np.random.default_rng(3), np.zeros(2), share / (1 - share) * 2 / seeds
    for _ in range(sets):
        scores = rng.normal(size=(methods, seeds)) + rng.normal(0, np.sqrt(shared / 2), (methods, 1))
        differences = [first - second for first, second in combinations(scores, 2)]
        samples = [(SeedSample(seeds, each.var(ddof=1), 0.0),) for each in differences]
        found = [TwoFactor(each.mean(), *rest, shared) for each, *rest in zip(differences, samples, strict=True)]
        p = [each.p(comparisons=len(found)) for each in found], [each.p() for each in found]
        wrong += [min(holm(values)) < 0.05 for values in p]
    first, second = wrong / sets
    return first, second


def false_positives_of_one_pair(seeds: int, share: float, repetitions: int) -> float:
    """Return the share of pairs of equal methods whose p value is below 0.05."""
    rng, shared = np.random.default_rng(1), share / (1 - share)  # in units of the variance over seeds
    difference = rng.normal(0, np.sqrt(1 + shared), repetitions)
    part = rng.chisquare(seeds - 1, repetitions) / (seeds - 1)
    freedom = degrees_of_freedom(part + shared, [(part, seeds)])
    return float(np.mean(np.abs(difference) > stats.t.ppf(0.975, freedom) * np.sqrt(part + shared)))


def test_many_comparisons_of_equal_methods_with_three_seeds_rarely_find_a_difference():
    """Hillis' p values, corrected by Holm's method, find one in more than a tenth of such sets."""
    for_many, hillis = false_positives(3, 0.1, 200)
    assert for_many < 0.06 and hillis > 0.1


def test_a_pair_of_three_seeds_errs_most_where_seeds_vary_most():
    assert false_positives_of_one_pair(3, 0.1, 50_000) == pytest.approx(0.075, abs=0.005)
    assert false_positives_of_one_pair(3, 0.8, 50_000) == pytest.approx(0.05, abs=0.005)


def test_equal_differences_of_seeds_have_no_variance_by_rounding():
    first = np.array([0.1, 0.2, 0.7, 0.55]) + 0.1
    found = paired(first, first - 0.1, np.zeros((4, 30)), np.zeros((4, 30)))
    assert found.samples[0].variance == 0
