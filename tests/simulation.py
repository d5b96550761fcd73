"""Simulate comparisons on real per-image counts: how often does the two-factor analysis err? (make simulate)

``real_counts/`` has intersection and union of each class in each image, for two networks and several seeds of each, on
real images (see docs/explanation/comparing-runs.md). They are the population. A simulated comparison draws

- images with replacement;
- seeds: the mean of a network's seeds plus random multiples of their deviations from it, which have the covariances of
  the real seeds over all images and classes. The deviations are scaled so that the variances over images and over seeds
  have a given ratio. The classes that a seed predicts in an image are those of one real seed;
- for equal methods: which network is the first, for each drawn image. Both methods are then drawn from the same
  distribution, although they differ on each image as two real networks do.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import ndarray
from scipy.stats import norm, ttest_ind, ttest_rel

from fcnlab.comparison.classes import ClassScores, class_intervals, leave_one_out_by_class
from fcnlab.comparison.intervals import draws, mean_iou, resampled_miou
from fcnlab.comparison.two_factor import TwoFactor, changes, paired, unpaired

COUNTS = Path(__file__).parent / "real_counts"
RATIOS = {"1:4": 0.25, "1:1": 1.0, "4:1": 4.0}  # variance of the difference over images : over seeds
SEEDS = (3, 5, 10)
RESAMPLES = 400  # of the images of each simulated comparison
MOST_SCALE = 30  # of the deviations of seeds


class Counts(NamedTuple):
    """Intersections and unions of two networks, each ``[network][seeds, images, 2 x classes]``."""

    networks: tuple[ndarray, ndarray]

    @property
    def images(self) -> int:
        return self.networks[0].shape[1]

    def only(self, classes: ndarray) -> "Counts":
        """Return the counts of some classes."""
        columns = np.concatenate([classes, classes + self.networks[0].shape[2] // 2])
        return Counts((self.networks[0][:, :, columns], self.networks[1][:, :, columns]))


class Case(NamedTuple):
    """What is simulated: ``equal`` methods, or the two networks; ``classes`` are all, or those of 10 images or more."""

    set: str
    classes: str
    images: int
    seeds: int
    ratio: str
    equal: bool
    paired: bool = True


class Drawn(NamedTuple):
    """A simulated comparison, and the p values of tests of one kind of chance each."""

    found: TwoFactor
    p_seeds: float
    p_images: float


class Outcome(NamedTuple):
    """Shares of comparisons: with p < 0.05, and whose 95 % interval contains the true difference.

    ``seeds`` is the share with p < 0.05 in the t test over seeds, ``images`` over images, ``both`` in both.
    ``of_images`` is the mean share of the variance that all seeds have in common.
    """

    of_images: float
    significant: float
    covered: float
    seeds: float
    images: float
    both: float


class ClassOutcome(NamedTuple):
    """Simultaneous 95 % intervals of classes: the share of comparisons in which any misses, and their half-widths.

    ``half_width`` is the median over classes and comparisons, in points. ``images_only`` is that of intervals over
    images only, for the trained models.
    """

    missed: float
    half_width: float
    images_only: float


def read_counts(name: str) -> Counts:
    with np.load(COUNTS / f"{name}.npz") as file:
        return Counts((file["fcn32s"].astype(np.float64), file["fcn8s"].astype(np.float64)))


def frequent(counts: Counts, least: int = 10) -> ndarray:
    """Return the classes that at least some images have, in the union of a network's mean seed."""
    classes = counts.networks[0].shape[2] // 2
    union = counts.networks[0][:, :, classes:].mean(axis=0)
    return np.flatnonzero((union > 0).sum(axis=0) >= least)


class Simulation:
    """Draws comparisons of one case."""

    def __init__(self, counts: Counts, case: Case):
        self.counts, self.case = counts, case
        self.rng = np.random.default_rng(7)
        self.means = [network.mean(axis=0) for network in counts.networks]
        self.deviations = [
            (network - mean) / np.sqrt(len(network) - 1)
            for network, mean in zip(counts.networks, self.means, strict=True)
        ]
        self.occurring = [halves(network)[1] > 0 for network in counts.networks]
        self.classes = counts.networks[0].shape[2] // 2
        self.scale = 1.0
        self.scale = self._scale()
        self.truth = 0.0 if case.equal else self._true_difference()

    def methods(self) -> tuple[ndarray, ndarray]:
        """Draw the counts of both methods, each ``[seeds, images, 2 x classes]``."""
        images = self.rng.integers(self.counts.images, size=self.case.images)
        swapped = (self.rng.random(len(images)) < 0.5) & self.case.equal
        return self._method(images, ~swapped), self._method(images, swapped)

    def comparison(self) -> Drawn:
        """Draw one comparison."""
        first, second = self.methods()
        scores = [score(areas) for areas in (first, second)]
        counts = draws(self.case.images, RESAMPLES, seed=int(self.rng.integers(2**31)))
        of_images = [
            np.array([changes(resampled_miou(counts, *halves(run))) for run in areas]) for areas in (first, second)
        ]
        found = (paired if self.case.paired else unpaired)(*scores, *of_images)
        over_images = np.linalg.norm(of_images[0].mean(axis=0) - of_images[1].mean(axis=0))
        p_images = 2 * norm.sf(abs(found.difference) / over_images)
        test = ttest_rel(*scores) if self.case.paired else ttest_ind(*scores, equal_var=False)
        return Drawn(found, float(test.pvalue), float(p_images))

    def _method(self, images: ndarray, is_first: ndarray) -> ndarray:
        """Draw the counts of a method's seeds, ``[seeds, images, 2 x classes]``; the first network's where is_first."""
        drawn = [self._seeds(network, images) for network in (0, 1)]
        return np.where(is_first[:, None], *drawn)

    def _seeds(self, network: int, images: ndarray) -> ndarray:
        weights = self.rng.standard_normal((self.case.seeds, len(self.deviations[network])))
        change = np.tensordot(weights, self.deviations[network][:, images], axes=1)
        areas = self.means[network][images] + self.scale * change
        intersection, union = np.split(np.maximum(areas, 0), 2, axis=2)
        real = self.rng.integers(len(self.deviations[network]), size=self.case.seeds)
        occurring = self.occurring[network][real][:, images]
        union = np.where(occurring, np.maximum(union, 1), 0)
        return np.concatenate([np.minimum(intersection, union), union], axis=2)

    def _scale(self) -> float:
        """Return the factor of the deviations for which the variances have the ratio of the case, by bisection."""
        low, high = 0.0, float(MOST_SCALE)
        for _ in range(12):
            self.scale = (low + high) / 2
            low, high = (self.scale, high) if self._ratio() > RATIOS[self.case.ratio] else (low, self.scale)
        return (low + high) / 2

    def _ratio(self) -> float:
        """Estimate the ratio of the shared variance over images to that over seeds, from some comparisons."""
        drawn = [self.comparison().found for _ in range(30)]
        over_seeds = np.mean([sum(sample.variance / sample.seeds for sample in found.samples) for found in drawn])
        return float(np.mean([found.shared for found in drawn]) / over_seeds)

    def _true_difference(self) -> float:
        return float(self.true_difference(score))

    def true_difference(self, of_seeds: Callable[[ndarray], ndarray]) -> ndarray:
        """Return the difference of a score of each seed on all images, averaged over many seeds."""
        everything = np.arange(self.counts.images)
        drawn = [self._method(everything, np.full(self.counts.images, network == 0)) for network in (0, 1) * 60]
        means = [np.mean([of_seeds(areas).mean(axis=0) for areas in drawn[network::2]], axis=0) for network in (0, 1)]
        return np.asarray(means[0] - means[1])


def halves(areas: ndarray) -> tuple[ndarray, ndarray]:
    intersection, union = np.split(areas, 2, axis=-1)
    return intersection, union


def score(areas: ndarray) -> ndarray:
    """Return the mean IoU of each seed."""
    return mean_iou(*halves(areas.sum(axis=1)))


def class_iou(areas: ndarray) -> ndarray:
    """Return the IoU of each class with each seed; 0 for a class that is nowhere."""
    intersection, union = halves(areas.sum(axis=1))
    return np.divide(intersection, union, out=np.zeros(union.shape), where=union > 0)


def class_scores(areas: ndarray) -> ClassScores:
    return ClassScores(class_iou(areas), np.array([leave_one_out_by_class(*halves(run)) for run in areas]))


def simulation_of(case: Case) -> Simulation:
    counts = read_counts(case.set)
    return Simulation(counts.only(frequent(counts)) if case.classes == "frequent" else counts, case)


def simulate_classes(case: Case, repetitions: int) -> ClassOutcome:
    """Simulate the intervals of all classes at once; they are about seeds and images."""
    simulation = simulation_of(case)
    truth = np.zeros(simulation.classes) if case.equal else simulation.true_difference(class_iou)
    missed, widths = 0, {True: [], False: []}
    for _ in range(repetitions):
        methods = simulation.methods()
        found = np.any([halves(areas)[0].max(axis=0) > 0 for areas in methods], axis=0).sum(axis=0)
        scores = [class_scores(areas) for areas in methods]
        for analysis in (paired if case.paired else unpaired, None):
            intervals = class_intervals(scores[0], scores[1], found, analysis, 0.95)
            known = [(each, true) for each, true in zip(intervals, truth.tolist(), strict=True) if each]
            widths[analysis is None] += [50 * (each.high - each.low) for each, _ in known]
            missed += analysis is not None and any(not each.low <= true <= each.high for each, true in known)
    return ClassOutcome(missed / repetitions, *(float(np.median(widths[images_only])) for images_only in (False, True)))


def simulate(case: Case, repetitions: int) -> Outcome:
    simulation = simulation_of(case)
    drawn = [simulation.comparison() for _ in range(repetitions)]
    intervals = [each.found.interval(0.95) for each in drawn]
    over_seeds, over_images = (
        np.array([getattr(each, name) < 0.05 for each in drawn]) for name in ("p_seeds", "p_images")
    )
    return Outcome(
        float(np.mean([each.found.share_of_images for each in drawn])),
        float(np.mean([interval.p < 0.05 for interval in intervals])),
        float(np.mean([interval.low <= simulation.truth <= interval.high for interval in intervals])),
        float(over_seeds.mean()),
        float(over_images.mean()),
        float((over_seeds & over_images).mean()),
    )


def cases() -> Iterator[Case]:
    for images, classes in ((300, "frequent"), (300, "all"), (100, "frequent"), (100, "all"), (40, "frequent")):
        for equal in (True, False):
            for seeds in SEEDS:
                for ratio in RATIOS:
                    yield Case("voc", classes, images, seeds, ratio, equal)
    for seeds in SEEDS:
        for ratio in RATIOS:
            yield Case("voc", "frequent", 300, seeds, ratio, equal=True, paired=False)


def class_cases() -> Iterator[Case]:
    for images, classes in ((300, "frequent"), (300, "all"), (100, "frequent")):
        for equal in (True, False):
            for seeds in (3, 5):
                for ratio in RATIOS:
                    yield Case("voc", classes, images, seeds, ratio, equal)
    for ratio in RATIOS:
        yield Case("voc", "frequent", 300, 3, ratio, equal=True, paired=False)


def described(case: Case) -> str:
    return ("equal" if case.equal else "different") + ("" if case.paired else ", unpaired")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=1000)
    repetitions = parser.parse_args().repetitions
    print("| classes, images | methods | seeds | images : seeds | share | p < 0.05 | covers | t | images | both |")
    print("|---|---|---|---|---:|---:|---:|---:|---:|---:|")
    for case in cases():
        found = simulate(case, repetitions)
        shares = " | ".join(f"{100 * share:.1f}" for share in found)
        print(
            f"| {case.classes}, {case.images} | {described(case)} | {case.seeds} | {case.ratio} | {shares} |",
            flush=True,
        )
    print("\n| classes, images | methods | seeds | images : seeds | any class missed | half-width | images only |")
    print("|---|---|---|---|---:|---:|---:|")
    for case in class_cases():
        found = simulate_classes(case, repetitions)
        numbers = f"{100 * found.missed:.1f} | {found.half_width:.1f} | {found.images_only:.1f}"
        print(
            f"| {case.classes}, {case.images} | {described(case)} | {case.seeds} | {case.ratio} | {numbers} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
