"""Differences of classes: compared with loops and scipy, and the coverage of all intervals of a pair at once."""

import csv
from collections.abc import Sequence
from math import hypot, isnan

import numpy as np
import pytest
from scipy import optimize, special, stats

from fcnlab.comparison.classes import ClassScores, class_intervals, leave_one_out_by_class
from fcnlab.comparison.comparison import compare
from fcnlab.comparison.intervals import FEWEST_IMAGES, Bounds
from fcnlab.comparison.report import ComparisonReport
from fcnlab.comparison.runs import read_runs
from fcnlab.comparison.two_factor import paired, unpaired
from fcnlab.metrics.fine_grained import fine_grained_miou
from fcnlab.metrics.scores import scores
from run_folders import CLASSES, toy_matrices


@pytest.fixture
def compared(tmp_path):
    return lambda **kwargs: compare(read_runs([tmp_path / "runs"])[0], **{"resamples": 200, **kwargs})


def iou_without(matrices: np.ndarray) -> np.ndarray:
    """Return the IoU of each class on the set without each image, by definition."""
    return np.array([scores(np.delete(matrices, image, axis=0).sum(axis=0)).iou for image in range(len(matrices))])


def jackknife(first: np.ndarray, second: np.ndarray) -> float:
    """Return the covariance over images of two scores, from their values without each image."""
    images = len(first)
    return (images - 1) / images * float(np.sum((first - first.mean()) * (second - second.mean())))


def areas(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    intersection = np.array([np.diag(matrix) for matrix in matrices])
    return intersection, matrices.sum(axis=2) + matrices.sum(axis=1) - intersection


def class_scores(runs: list[np.ndarray]) -> ClassScores:
    changes = [leave_one_out_by_class(*areas(run)) for run in runs]
    return ClassScores(np.array([scores(run.sum(axis=0)).iou for run in runs]), np.array(changes))


def test_changes_of_each_class_give_the_covariances_of_the_jackknife():
    first, second = toy_matrices(0.7, 12, seed=1), toy_matrices(0.6, 12, seed=2)
    changes = [leave_one_out_by_class(*areas(matrices)) for matrices in (first, second)]
    without = [iou_without(matrices) for matrices in (first, second)]
    for place in range(len(CLASSES)):
        expected = jackknife(without[0][:, place], without[1][:, place])
        assert changes[0][:, place] @ changes[1][:, place] == pytest.approx(expected, rel=1e-9)


def freedom(changed: np.ndarray, images: int) -> float:
    """Return the degrees of freedom of a variance, from the kurtosis of the values."""
    return min(2 * len(changed) / (stats.kurtosis(changed, fisher=False) - 1), images - 1)


def by_limma(variances: np.ndarray, freedom: int) -> tuple[np.ndarray, float]:
    """Return moderated variances and their degrees of freedom by the formulas of Smyth (2004), section 6.2."""
    values = np.log(variances) - special.digamma(freedom / 2) + np.log(freedom / 2)
    spread = values.var(ddof=1) - special.polygamma(1, freedom / 2)
    if spread <= 0:
        return np.full(len(variances), np.exp(values.mean())), len(variances) * freedom
    prior = 2 * optimize.brentq(lambda half: special.polygamma(1, half) - spread, 1e-6, 1e6)
    scale = np.exp(values.mean() + special.digamma(prior / 2) - np.log(prior / 2))
    together = (prior * scale + freedom * variances) / (prior + freedom)
    return together, min(prior + freedom, len(variances) * freedom)


@pytest.mark.parametrize("shift", [0.02, 0.2])  # with the second, the variance of a class is much larger
def test_intervals_over_seeds_and_images_equal_scipy(shift):
    """The half-width is that over seeds (on these images) and that over images, which all seeds share, combined."""
    runs = [[toy_matrices(quality + seed / 50, 15, seed) for seed in range(3)] for quality in (0.7, 0.6)]
    for seed, run in enumerate(runs[0]):
        moved = (shift * seed * run[:, 3, 3]).astype(int)
        run[:, 3, 3] -= moved
        run[:, 3, 0] += moved
    first, second = map(class_scores, runs)
    without = np.array([[iou_without(run) for run in side] for side in runs])
    found = class_intervals(first, second, np.full(4, 15), paired, 0.95)
    variances, seed_freedom = by_limma((first.iou - second.iou).var(axis=0, ddof=1), 2)
    assert 2 < seed_freedom <= 8
    for place in range(4):
        difference = (first.iou - second.iou)[:, place].mean()
        changed = (without[0] - without[1])[:, :, place]
        shared = np.mean([jackknife(changed[j], changed[k]) for j in range(3) for k in range(3) if j != k])
        tail = 1 - 0.025 / 4
        over_seeds = stats.t.ppf(tail, seed_freedom) * (variances[place] / 3) ** 0.5
        half = hypot(over_seeds, stats.t.ppf(tail, freedom(changed.mean(axis=0), 15)) * max(shared, 0) ** 0.5)
        assert found[place] == pytest.approx((max(difference - half, -1), min(difference + half, 1)), rel=1e-5)


def test_intervals_over_images_equal_scipy():
    first, second = toy_matrices(0.7, 20, seed=1), toy_matrices(0.6, 20, seed=2)
    images = np.array([20, 20, 9, 12])
    found = class_intervals(class_scores([first]), class_scores([second]), images, None, 0.9)
    assert found[2] is None, "nine images"
    changed = iou_without(first) - iou_without(second)
    for place, count in ((0, 20), (1, 20), (3, 12)):
        half = (
            stats.t.ppf(1 - 0.05 / 3, freedom(changed[:, place], count))
            * jackknife(changed[:, place], changed[:, place]) ** 0.5
        )
        difference = (scores(first.sum(axis=0)).iou - scores(second.sum(axis=0)).iou)[place]
        assert found[place] == pytest.approx((difference - half, difference + half), rel=1e-6)


def without_class(matrices: np.ndarray, label: int, images: slice) -> np.ndarray:
    """Return matrices of a set where some images do not have a class; its predictions become background."""
    matrices = matrices.copy()
    matrices[images, label] = 0
    matrices[images, :, 0] += matrices[images, :, label]
    matrices[images, :, label] = 0
    return matrices


def test_classes_that_few_images_have(make_run, compared):
    """Class 1 is nowhere, class 2 in nine images, class 3 in ten."""
    for seed in (1, 2, 3):
        for model, quality in {"fcn8s": 0.8, "fcn32s": 0.6}.items():
            matrices = toy_matrices(quality + seed / 100, seed=seed)
            for label, images in ((1, slice(None)), (2, slice(9, None)), (3, slice(10, None))):
                matrices = without_class(matrices, label, images)
            make_run(f"{model}{seed}", matrices, model=model, seed=seed)
    (pair,) = compared().pairs
    background, nowhere, few, enough = pair.class_differences
    assert (
        [each.images for each in pair.class_differences]
        == [each.found for each in pair.class_differences]
        == [36, 0, 9, 10]
    )
    assert background.pixels == pair.first.runs[0].areas.target[:, 0].sum()
    assert background.interval and background.interval.low > 0
    assert isnan(nowhere.difference) and nowhere.interval is None and nowhere.pixels == 0
    assert few.difference > 0 and few.interval is None
    assert enough.interval and enough.difference == pytest.approx(enough.interval.low / 2 + enough.interval.high / 2)


def test_no_intervals_on_few_images(make_run, compared):
    for model, quality in {"fcn8s": 0.8, "fcn32s": 0.6}.items():
        make_run(model, toy_matrices(quality, images=FEWEST_IMAGES - 1), model=model)
    (pair,) = compared().pairs
    assert pair.verdict == "none" and not any(each.interval for each in pair.class_differences)
    assert all(each.difference > 0.1 for each in pair.class_differences)


@pytest.mark.parametrize("analysis", [paired, unpaired])
@pytest.mark.parametrize(("missing", "known"), [((), True), ((3, 4, 5), True), ((0, 4), False), (range(6), False)])
def test_a_class_that_neither_group_finds_with_all_seeds_has_no_interval(analysis, missing, known):
    """The first three runs are those of the first group."""
    runs = [toy_matrices(0.7, 12, seed) for seed in range(6)]
    for place in missing:
        runs[place][:, 3, 0] += runs[place][:, 3, 3]
        runs[place][:, 3, 3] = 0
    found = class_intervals(class_scores(runs[:3]), class_scores(runs[3:]), np.full(4, 12), analysis, 0.95)
    assert (found[3] is not None) == known and all(found[:3])


def test_classes_and_fine_grained_scores_in_all_outputs(sweep, compared, tmp_path):
    comparison = compared()
    ComparisonReport(comparison, "fcnlab compare").save(tmp_path)
    with (tmp_path / "class_differences.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(CLASSES)
    pair, cat = comparison.pairs[0], comparison.pairs[0].class_differences[1]
    assert rows[1]["first"] == pair.first.name and rows[1]["class"] == "cat" and rows[1]["interval_over"] == pair.scope
    assert isinstance(cat.interval, Bounds) and float(rows[1]["low"]) == cat.interval.low
    assert float(rows[1]["iou_difference"]) == cat.difference == pair.first.iou()[1] - pair.second.iou()[1]
    text = (tmp_path / "comparison.md").read_text()
    assert f"| cat | {cat.images} | {cat.pixels:,} | {100 * cat.first:.1f} | {100 * cat.second:.1f} |" in text
    expected = np.mean([fine_grained_miou(toy_matrices(0.9 + seed / 100, seed=seed)).miou_i10 for seed in (1, 2, 3)])
    with (tmp_path / "groups.csv").open(newline="") as file:
        assert float(next(csv.DictReader(file))["miou_i10"]) == pytest.approx(expected)
    page = (tmp_path / "comparison.html").read_text()
    assert page.count('aria-label="IoU by class: model=') == 3 and "worst mIoU-C,&nbsp;%" in page


PRESENCE = np.array([1, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.015])  # share of the images with each class
QUALITY = np.array([2, 1.5, 1, 1, 0.5, 0.5, 0, 0])  # logit of the share of its pixels that a model finds


def drawn(rng: np.random.Generator, shifts: np.ndarray, quality: np.ndarray, images: np.ndarray):
    """Draw the areas of each class for some seeds of a model, whose quality differs by the shifts."""
    size, hard = images
    for shift in shifts:
        logit = quality + shift + hard + 0.5 * rng.standard_normal(size.shape)
        false = (rng.random(size.shape) < 0.15) * rng.lognormal(4, 1, size.shape)
        yield (size / (1 + np.exp(-logit))).astype(int), (size + false).astype(int)


def drawn_images(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return the size of each class in each image, and how much easier it is there, for all models."""
    shape = count, len(PRESENCE)
    return np.array([(rng.random(shape) < PRESENCE) * rng.lognormal(7, 1.2, shape) // 1, rng.standard_normal(shape)])


def as_scores(runs) -> ClassScores:
    runs = list(runs)
    iou = np.array([intersection.sum(axis=0) / np.maximum(union.sum(axis=0), 1) for intersection, union in runs])
    return ClassScores(iou, np.array([leave_one_out_by_class(*run) for run in runs]))


def true_difference(rng: np.random.Generator, qualities: Sequence[np.ndarray], training: float) -> np.ndarray:
    """Return the mean difference of each class on 30,000 images; its mean over seeds is a Gauss quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    images = drawn_images(rng, 30_000)
    iou = [as_scores(drawn(rng, training * nodes, quality, images)).iou for quality in qualities]
    return weights / weights.sum() @ (iou[0] - iou[1])


def misses(seeds: int, analysis, training: float, pairs: int, images: int = 300) -> tuple[float, float]:
    """Return how often any interval misses: of simultaneous intervals, and of 95 % intervals of single classes.

    The models of a pair differ in quality; ``training`` is the standard deviation over seeds, as a logit.
    """
    rng, qualities, classes = np.random.default_rng(1), (QUALITY + 0.4, QUALITY), len(PRESENCE)
    truth = true_difference(rng, qualities, training)
    missed = {0.95: 0, 1 - 0.05 * classes: 0}  # Bonferroni's correction divides the latter's 40 % by 8
    for _ in range(pairs):
        drawn_set = drawn_images(rng, images)
        shifts = training * rng.standard_normal((2, seeds, classes))
        pair = [as_scores(drawn(rng, *each, drawn_set)) for each in zip(shifts, qualities, strict=True)]
        counts = (drawn_set[0] > 0).sum(axis=0)
        for confidence in missed:
            intervals = class_intervals(*pair, counts, analysis, confidence)
            bounds = zip(intervals, truth, strict=True)
            missed[confidence] += any(each and not each.low <= true <= each.high for each, true in bounds)
    simultaneous, single = missed.values()
    return simultaneous / pairs, single / pairs


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "analysis", "training"), [(3, paired, 0.2), (5, unpaired, 0.2), (1, None, 0)])
def test_all_intervals_of_a_pair_hold_together(seeds, analysis, training):
    """At most 5 % of the pairs have an interval that misses, and 7.5 % by chance; without a correction, many have."""
    simultaneous, single = misses(seeds, analysis, training, 200)
    assert simultaneous <= 0.075 and single > 0.1
