"""Intervals, compared with scipy and loops, and their coverage."""

import numpy as np
import pytest
from scipy import stats

from fcnlab.comparison.intervals import (
    FEWEST_IMAGES,
    draws,
    mean_iou,
    over_images,
    over_seeds,
    resampled_miou,
    resamples_needed,
)
from fcnlab.comparison.multiple import holm
from fcnlab.metrics.scores import scores

CLASSES, IMAGES = 6, 300


def tallies(matrices) -> tuple[np.ndarray, np.ndarray]:
    """Return intersection and union of each image, by definition."""
    intersection = np.array([np.diag(matrix) for matrix in matrices])
    return intersection, matrices.sum(axis=2) + matrices.sum(axis=1) - intersection


def few_classes(images: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 900, (images, 5, 5)) * (rng.random((images, 5, 5)) < 0.15)


@pytest.mark.parametrize("seed", range(4))
def test_mean_iou_equals_that_of_the_scores(seed):
    matrices = few_classes(2, seed)
    intersection, union = tallies(matrices)
    assert mean_iou(intersection.sum(axis=0), union.sum(axis=0)) == pytest.approx(
        scores(matrices.sum(axis=0)).miou, rel=1e-12
    )
    assert np.isnan(mean_iou(0 * intersection[0], 0 * union[0]))


def test_a_draw_samples_images_with_replacement():
    counts = draws(50, 2500)
    assert (counts.sum(axis=1) == 50).all() and counts.min() == 0
    assert counts.mean(axis=0) == pytest.approx(np.ones(50), abs=0.1)
    assert counts.var() == pytest.approx(1 - 1 / 50, rel=0.02)  # binomial: n p (1 - p) with p = 1 / n
    np.testing.assert_array_equal(counts[:1000], draws(50, 1000))
    assert (draws(50, 10, seed=1) != counts[:10]).any()


def test_the_score_of_a_resample_equals_that_of_its_images():
    matrices, counts = few_classes(30, 0), draws(30, 40)
    mious = resampled_miou(counts, *tallies(matrices))
    expected = [scores(np.repeat(matrices, row.astype(int), axis=0).sum(axis=0)).miou for row in counts]
    np.testing.assert_allclose(mious, expected, rtol=1e-6)


def test_bootstrap_interval_equals_scipy():
    """scipy uses its own draws; the limits of both vary by some hundredths of the width."""
    first, second = synthetic_pair(np.random.default_rng(3), 80, (1.0, 1.4))

    def difference(places) -> float:
        places = places.astype(int)
        sums = [area[places].sum(axis=0) for area in (*first, *second)]
        return float(mean_iou(*sums[:2]) - mean_iou(*sums[2:]))

    expected = stats.bootstrap(
        (np.arange(80),), difference, vectorized=False, n_resamples=4000, method="percentile", rng=1
    ).confidence_interval
    counts = draws(80, 4000)
    interval = over_images(difference(np.arange(80)), resampled_miou(counts, *first) - resampled_miou(counts, *second))
    assert (interval.low, interval.high) == pytest.approx(tuple(expected), abs=0.06 * (expected.high - expected.low))


def test_bootstrap_p_values_equal_a_normal_test():
    normal = stats.norm.ppf((np.arange(10_000) + 0.5) / 10_000)  # quantiles: a sample without randomness
    for mean in (0.5, -1.0, 2.0):
        assert over_images(mean, normal + mean).p == pytest.approx(2 * stats.norm.sf(abs(mean)), rel=0.02)
    assert over_images(6, normal + 6).p == pytest.approx(2 / 10_001)  # beyond all resamples, p has this minimum
    assert over_images(0, normal).p == pytest.approx(1)
    equal = over_images(0, np.zeros(1000))
    assert equal == (0, 0, 0, 1), "a model against itself"
    assert over_images(0.1, np.full(1000, 0.1)).p <= 0.02


def test_draws_of_ignored_pixels_only_are_skipped():
    interval = over_images(1.0, np.array([np.nan, *np.linspace(0.9, 1.1, 201)]))
    assert (interval.low, interval.high) == pytest.approx((0.905, 1.095))


@pytest.mark.parametrize("count", [3, 5, 10])
def test_t_interval_equals_scipy(count):
    values = np.random.default_rng(count).normal(0.3, 1, count)
    interval, expected = over_seeds(values, 0.9), stats.ttest_1samp(values, 0)
    ends = expected.confidence_interval(0.9)
    assert interval == pytest.approx((values.mean(), ends.low, ends.high, expected.pvalue), rel=1e-9)


def test_fewer_than_three_seeds_are_not_tested():
    assert over_seeds([]) is over_seeds([0.3]) is over_seeds([0.3, 0.4]) is None


def test_seeds_with_equal_scores_are_not_tested():
    """Without any spread, three copies of one training run would give p = 0."""
    assert over_seeds([0.25] * 3) is over_seeds([0, 0, 0]) is None


@pytest.mark.parametrize("pairs", [1, 7, 50])
def test_resamples_needed_is_the_minimum_for_significance(pairs):
    """The smallest p is significant after Holm's correction; with three resamples fewer it is not."""
    needed = resamples_needed(pairs, 0.05)
    smallest = {count: over_images(1, np.ones(count)).p for count in (needed - 3, needed)}
    assert holm([smallest[needed]] * pairs)[0] < 0.05 <= holm([smallest[needed - 3]] * pairs)[0]


@pytest.mark.parametrize("count", [3, 5])
def test_coverage_over_seeds(count):
    """Scores of seeds are normally distributed; four standard errors of the share of 2,000 intervals are 2 points."""
    rng = np.random.default_rng(count)
    intervals = [over_seeds(rng.normal(0.7, 2, count)) for _ in range(2000)]
    assert np.mean([interval.low <= 0.7 <= interval.high for interval in intervals]) == pytest.approx(0.95, abs=0.02)
    significant = np.mean([interval.p < 0.05 for interval in map(over_seeds, rng.normal(0, 2, (2000, count)))])
    assert significant == pytest.approx(0.05, abs=0.02)


# Coverage of the bootstrap: pairs of models on synthetic images, whose difficulty is the same for both.


def synthetic_pair(rng, images: int, quality: tuple[float, float]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return intersection and union of two models on the same images, with objects and difficulties of all sizes."""
    frequency = np.array([1, 0.5, 0.4, 0.3, 0.2, 0.15])
    present = rng.random((images, CLASSES)) < frequency
    size = np.rint(1000 * present * rng.lognormal(0, 0.8, (images, CLASSES)))
    hardness = rng.normal(0, 0.6, (images, 1)) + rng.normal(0, 0.8, (images, CLASSES))
    models = []
    for skill in quality:
        recall = 1 / (1 + np.exp(hardness - skill + rng.normal(0, 0.8, (images, CLASSES))))
        confused = rng.random((images, CLASSES)) < 0.5 * frequency + 0.03
        false = confused * rng.lognormal(-2, 1.2, (images, CLASSES)) * 1000 * (1 - recall.mean(axis=1, keepdims=True))
        models.append((np.rint(size * recall).astype(int), (size + np.rint(false)).astype(int)))
    return models


def true_difference(quality: tuple[float, float]) -> float:
    """Return the difference on very many images; 0 for equal quality by symmetry."""
    if quality[0] == quality[1]:
        return 0.0
    first, second = synthetic_pair(np.random.default_rng(99), 400_000, quality)
    return float(mean_iou(*(area.sum(axis=0) for area in first)) - mean_iou(*(area.sum(axis=0) for area in second)))


def coverage(pairs: int, resamples: int, quality: tuple[float, float], images: int = IMAGES) -> tuple[float, float]:
    """Return the shares of pairs whose interval covers the true difference, and whose p is below 0.05."""
    target, rng, covered, significant = true_difference(quality), np.random.default_rng(5), 0, 0
    for pair in range(pairs):
        first, second = synthetic_pair(rng, images, quality)
        counts = draws(images, resamples, seed=pair)
        value = mean_iou(*(area.sum(axis=0) for area in first)) - mean_iou(*(area.sum(axis=0) for area in second))
        interval = over_images(float(value), resampled_miou(counts, *first) - resampled_miou(counts, *second))
        covered += interval.low <= target <= interval.high
        significant += interval.p < 0.05
    return covered / pairs, significant / pairs


def test_coverage_with_few_pairs():
    """Three standard errors of a share of 0.95 of 200 pairs are 4.6 points."""
    covered, significant = coverage(pairs=200, resamples=400, quality=(1.0, 1.0))
    assert covered == pytest.approx(0.95, abs=0.046) and significant == pytest.approx(0.05, abs=0.046)


@pytest.mark.slow
@pytest.mark.parametrize("quality", [(1.0, 1.0), pytest.param((1.0, 1.4), marks=pytest.mark.campaign)])
def test_coverage(quality):
    covered, significant = coverage(pairs=1000, resamples=1000, quality=quality)
    assert covered == pytest.approx(0.95, abs=0.025), "nominal coverage"
    if quality[0] == quality[1]:
        assert significant == pytest.approx(0.05, abs=0.02), "two models of one distribution"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "most"), [(FEWEST_IMAGES, 0.08), pytest.param(100, 0.07, marks=pytest.mark.campaign)]
)
def test_equal_models_on_few_images(images, most):
    """Few pairs of equal models differ significantly on the minimum number of images; on three images, many do."""
    assert coverage(pairs=1000, resamples=1000, quality=(1.0, 1.0), images=images)[1] <= most
    assert coverage(pairs=200, resamples=1000, quality=(1.0, 1.0), images=3)[1] > 0.1
