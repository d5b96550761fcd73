"""Intervals against scipy, loops and their own promise: the share of cases that they cover."""

import numpy as np
import pytest
from scipy import stats

from fcnlab.comparison.intervals import (
    FEWEST_IMAGES,
    draws,
    holm,
    mean_iou,
    over_images,
    over_seeds,
    resampled_miou,
    resamples_needed,
)
from fcnlab.metrics.scores import scores

CLASSES, IMAGES = 6, 300


def tallies(matrices) -> tuple[np.ndarray, np.ndarray]:
    """Hits and union of each image, by definition."""
    intersection = np.array([np.diag(matrix) for matrix in matrices])
    return intersection, matrices.sum(axis=2) + matrices.sum(axis=1) - intersection


def few_classes(images: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 900, (images, 5, 5)) * (rng.random((images, 5, 5)) < 0.15)


@pytest.mark.parametrize("seed", range(4))
def test_mean_iou_is_that_of_the_scores(seed):
    matrices = few_classes(2, seed)
    intersection, union = tallies(matrices)
    assert mean_iou(intersection.sum(axis=0), union.sum(axis=0)) == pytest.approx(
        scores(matrices.sum(axis=0)).miou, rel=1e-12
    )
    assert np.isnan(mean_iou(0 * intersection[0], 0 * union[0]))


def test_a_draw_is_so_many_images_with_repetition():
    counts = draws(50, 2500)
    assert (counts.sum(axis=1) == 50).all() and counts.min() == 0
    assert counts.mean(axis=0) == pytest.approx(np.ones(50), abs=0.1)
    assert counts.var() == pytest.approx(1 - 1 / 50, rel=0.02)  # binomial: n p (1 - p) with p = 1 / n
    np.testing.assert_array_equal(counts[:1000], draws(50, 1000))
    assert (draws(50, 10, seed=1) != counts[:10]).any()


def test_a_resample_is_scored_as_the_set_of_its_images():
    matrices, counts = few_classes(30, 0), draws(30, 40)
    found = resampled_miou(counts, *tallies(matrices))
    expected = [scores(np.repeat(matrices, row.astype(int), axis=0).sum(axis=0)).miou for row in counts]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_interval_is_scipys():
    """scipy draws by itself; the ends of both scatter by some hundredths of the width."""
    one, other = synthetic_pair(np.random.default_rng(3), 80, (1.0, 1.4))

    def difference(places) -> float:
        places = places.astype(int)
        sums = [area[places].sum(axis=0) for area in (*one, *other)]
        return float(mean_iou(*sums[:2]) - mean_iou(*sums[2:]))

    expected = stats.bootstrap(
        (np.arange(80),), difference, vectorized=False, n_resamples=4000, method="percentile", rng=1
    ).confidence_interval
    counts = draws(80, 4000)
    found = over_images(difference(np.arange(80)), resampled_miou(counts, *one) - resampled_miou(counts, *other))
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.06 * (expected.high - expected.low))


def test_p_of_the_bootstrap():
    normal = stats.norm.ppf((np.arange(10_000) + 0.5) / 10_000)  # quantiles: a sample without chance
    for mean in (0.5, -1.0, 2.0):
        assert over_images(mean, normal + mean).p == pytest.approx(2 * stats.norm.sf(abs(mean)), rel=0.02)
    assert over_images(6, normal + 6).p == pytest.approx(2 / 10_001)  # beyond all resamples: no smaller p is shown
    assert over_images(0, normal).p == pytest.approx(1)
    equal = over_images(0, np.zeros(1000))
    assert equal == (0, 0, 0, 1), "a net against itself"
    assert over_images(0.1, np.full(1000, 0.1)).p <= 0.02


def test_draws_of_nothing_but_void_are_passed_over():
    found = over_images(1.0, np.array([np.nan, *np.linspace(0.9, 1.1, 201)]))
    assert (found.low, found.high) == pytest.approx((0.905, 1.095))


@pytest.mark.parametrize("count", [3, 5, 10])
def test_t_interval_is_scipys(count):
    values = np.random.default_rng(count).normal(0.3, 1, count)
    found, expected = over_seeds(values, 0.9), stats.ttest_1samp(values, 0)
    ends = expected.confidence_interval(0.9)
    assert found == pytest.approx((values.mean(), ends.low, ends.high, expected.pvalue), rel=1e-9)


def test_fewer_than_three_seeds_are_not_judged():
    assert over_seeds([]) is over_seeds([0.3]) is over_seeds([0.3, 0.4]) is None


def test_seeds_that_change_nothing_are_not_judged():
    """Without any spread there would be p = 0 of three copies of one training."""
    assert over_seeds([0.25] * 3) is over_seeds([0, 0, 0]) is None


@pytest.mark.parametrize("pairs", [1, 7, 50])
def test_resamples_that_can_show_anything_at_all(pairs):
    """Their smallest p survives Holm's correction; that of three fewer does not."""
    needed = resamples_needed(pairs, 0.05)
    smallest = {count: over_images(1, np.ones(count)).p for count in (needed - 3, needed)}
    assert holm([smallest[needed]] * pairs)[0] < 0.05 <= holm([smallest[needed - 3]] * pairs)[0]


@pytest.mark.parametrize("count", [3, 5])
def test_coverage_over_seeds(count):
    """Of 2,000 intervals of seeds that scatter normally; four standard errors of that share are 2 points."""
    rng = np.random.default_rng(count)
    found = [over_seeds(rng.normal(0.7, 2, count)) for _ in range(2000)]
    assert np.mean([each.low <= 0.7 <= each.high for each in found]) == pytest.approx(0.95, abs=0.02)
    significant = np.mean([each.p < 0.05 for each in map(over_seeds, rng.normal(0, 2, (2000, count)))])
    assert significant == pytest.approx(0.05, abs=0.02)


def test_holm():
    """R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == pytest.approx([1, 1]) and holm([0.02]) == pytest.approx([0.02]) and holm([]) == []


# Coverage of the bootstrap: pairs of nets on synthetic images, whose difficulty both share.


def synthetic_pair(rng, images: int, quality: tuple[float, float]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Hits and union of two nets on the same images: few large and many small objects, hard and easy images."""
    frequency = np.array([1, 0.5, 0.4, 0.3, 0.2, 0.15])
    present = rng.random((images, CLASSES)) < frequency
    size = np.rint(1000 * present * rng.lognormal(0, 0.8, (images, CLASSES)))
    hardness = rng.normal(0, 0.6, (images, 1)) + rng.normal(0, 0.8, (images, CLASSES))
    nets = []
    for skill in quality:
        found = 1 / (1 + np.exp(hardness - skill + rng.normal(0, 0.8, (images, CLASSES))))
        confused = rng.random((images, CLASSES)) < 0.5 * frequency + 0.03
        false = confused * rng.lognormal(-2, 1.2, (images, CLASSES)) * 1000 * (1 - found.mean(axis=1, keepdims=True))
        nets.append((np.rint(size * found).astype(int), (size + np.rint(false)).astype(int)))
    return nets


def true_difference(quality: tuple[float, float]) -> float:
    """What so many images tend to; 0 for equal skill by symmetry."""
    if quality[0] == quality[1]:
        return 0.0
    one, other = synthetic_pair(np.random.default_rng(99), 400_000, quality)
    return float(mean_iou(*(area.sum(axis=0) for area in one)) - mean_iou(*(area.sum(axis=0) for area in other)))


def coverage(pairs: int, resamples: int, quality: tuple[float, float], images: int = IMAGES) -> tuple[float, float]:
    """The shares of pairs whose interval covers the truth, and whose p is below 0.05."""
    target, rng, covered, significant = true_difference(quality), np.random.default_rng(5), 0, 0
    for pair in range(pairs):
        one, other = synthetic_pair(rng, images, quality)
        counts = draws(images, resamples, seed=pair)
        value = mean_iou(*(area.sum(axis=0) for area in one)) - mean_iou(*(area.sum(axis=0) for area in other))
        found = over_images(float(value), resampled_miou(counts, *one) - resampled_miou(counts, *other))
        covered += found.low <= target <= found.high
        significant += found.p < 0.05
    return covered / pairs, significant / pairs


def test_coverage_in_short():
    """Three standard errors of a share of 0.95 among 200 are 4.6 points."""
    covered, significant = coverage(pairs=200, resamples=400, quality=(1.0, 1.0))
    assert covered == pytest.approx(0.95, abs=0.046) and significant == pytest.approx(0.05, abs=0.046)


@pytest.mark.slow
@pytest.mark.parametrize("quality", [(1.0, 1.0), pytest.param((1.0, 1.4), marks=pytest.mark.campaign)])
def test_coverage(quality):
    covered, significant = coverage(pairs=1000, resamples=1000, quality=quality)
    assert covered == pytest.approx(0.95, abs=0.025), "nominal coverage"
    if quality[0] == quality[1]:
        assert significant == pytest.approx(0.05, abs=0.02), "two nets of one distribution"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "most"), [(FEWEST_IMAGES, 0.08), pytest.param(100, 0.07, marks=pytest.mark.campaign)]
)
def test_equal_nets_on_few_images(images, most):
    """From the fewest that a verdict needs on, few pairs of equal nets differ significantly; on three, many do."""
    assert coverage(pairs=1000, resamples=1000, quality=(1.0, 1.0), images=images)[1] <= most
    assert coverage(pairs=200, resamples=1000, quality=(1.0, 1.0), images=3)[1] > 0.1
