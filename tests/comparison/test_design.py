"""The power of a design, compared with simulations and with tables of the t test."""

import numpy as np
import pytest
from scipy import stats

from fcnlab.comparison.comparison import compare
from fcnlab.comparison.design import (
    Level,
    design,
    detectable_difference,
    images_needed,
    power,
    seeds_needed,
    with_numbers,
)
from fcnlab.comparison.plan import plans
from fcnlab.comparison.runs import read_runs
from fcnlab.comparison.two_factor import SeedSample, TwoFactor
from fcnlab.errors import UserError
from run_folders import toy_matrices

LEVEL = Level(0.05)


def training_only(seeds: int, deviation: float, difference: float) -> TwoFactor:
    return TwoFactor(difference, (SeedSample(seeds, deviation**2, 0.0),), 0.0)


@pytest.mark.parametrize(("ratio", "seeds"), [(1, 10), (1.5, 6), (2, 5), (3, 4)])
def test_seeds_for_a_paired_t_test(ratio, seeds):
    """Cohen (1988), table 2.4.1: a difference of so many standard deviations, 80 % power, two-sided 5 %."""
    assert seeds_needed(training_only(3, 0.01, 0.01 * ratio), LEVEL) == seeds


def test_power_equals_that_of_a_simulation():
    components = TwoFactor(0.0, (SeedSample(5, 4.0, 1.0),), 0.3)
    rng, repetitions, difference = np.random.default_rng(1), 20_000, 2.5
    mean = rng.normal(difference, np.sqrt(components.variance), repetitions)
    variance = 4.0 / 5 * rng.chisquare(4, repetitions) / 4
    freedom = (variance + 0.3) ** 2 / (variance**2 / 4)
    found = np.mean(mean / np.sqrt(variance + 0.3) > stats.t.ppf(0.975, freedom))
    assert power(difference, components, LEVEL) == pytest.approx(found, abs=0.02)
    assert power(detectable_difference(components, LEVEL), components, LEVEL) == pytest.approx(0.8, abs=1e-6)


def test_more_images_reduce_only_the_variance_that_they_cause():
    pilot = TwoFactor(0.01, (SeedSample(3, 5.0, 2.0),), 0.5)
    doubled = with_numbers(pilot, image_ratio=2)
    assert doubled.samples == (SeedSample(3, 4.0, 1.0),) and doubled.shared == 0.25
    assert with_numbers(pilot, seeds=7).samples[0].seeds == 7


def test_what_cannot_be_reached_has_no_number():
    """A variance over images that seeds share bounds the power of more seeds; that of training the power of images."""
    images_alone = TwoFactor(0.01, (SeedSample(3, 1e-8, 1e-8),), 0.01)
    assert seeds_needed(images_alone, LEVEL) is None and images_needed(images_alone, 100, LEVEL) > 100
    training_alone = training_only(3, 0.1, 0.01)
    assert images_needed(training_alone, 100, LEVEL) is None and seeds_needed(training_alone, LEVEL) > 100
    assert design(training_alone, 100, LEVEL).detectable > 0.1


def test_a_plan_has_the_detectable_difference_of_each_design(make_run, tmp_path):
    """Three seeds on the images of the pilot are the pilot's own design."""
    for model, quality in {"fcn8s": 0.8, "fcn32s": 0.6}.items():
        for seed in (1, 2, 3):
            make_run(f"{model}{seed}", toy_matrices(quality + seed / 50, seed=seed), model=model, seed=seed)
    pairs = compare(read_runs([tmp_path / "runs"])[0], resamples=100).pairs
    (plan,) = plans(pairs)
    assert plan.detectable[0][0] == pytest.approx(pairs[0].design.detectable) and plan.images == (36, 72, 144)
    table = np.array(plan.detectable)
    assert (np.diff(table, axis=0) < 0).all() and (np.diff(table, axis=1) <= 0).all()


def test_a_pilot_needs_three_seeds(make_run, tmp_path):
    for seed in (1, 2):
        make_run(f"a{seed}", model="fcn8s", seed=seed)
        make_run(f"b{seed}", model="fcn32s", seed=seed)
    with pytest.raises(UserError, match="plan=true needs a pilot of two groups with at least 3 seeds each"):
        plans(compare(read_runs([tmp_path / "runs"])[0], resamples=100).pairs)


def test_many_pairs_need_larger_differences():
    """With ten comparisons of five seeds that share no variance, the tails of Student's t at 0.05 / 20 decide."""
    pilot = training_only(5, 0.01, 0.01)
    critical = stats.t.ppf(1 - 0.05 / 20, 4)
    found = detectable_difference(pilot, Level(0.05, 10))
    assert found > detectable_difference(pilot, LEVEL)
    assert 1 - stats.nct.cdf(critical, 4, found / np.sqrt(pilot.variance)) == pytest.approx(0.8, abs=1e-6)
