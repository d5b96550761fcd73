"""Which groups are compared, on which images and seeds, and the verdicts."""

import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from fcnlab.comparison.comparison import compare, curve
from fcnlab.comparison.markdown import markdown
from fcnlab.comparison.notes import confirm_command
from fcnlab.comparison.pairs import MOST_IMAGES
from fcnlab.comparison.ranking import answers, ranks
from fcnlab.comparison.runs import read_runs
from fcnlab.comparison.tables import headline
from fcnlab.comparison.terminal import terminal
from fcnlab.errors import UserError
from fcnlab.metrics.scores import SCORES, scores
from run_folders import CLASSES, toy_matrices, write_run


@pytest.fixture
def compared(tmp_path):
    """Compare the runs in ``runs/``."""
    return lambda **kwargs: compare(read_runs([tmp_path / "runs"])[0], **{"resamples": 500, **kwargs})


def names(comparison) -> list[str]:
    return [group.name for group in comparison.groups]


def test_three_different_models_are_compared_in_pairs(sweep, compared):
    comparison = compared()
    assert names(comparison) == ["model=fcn8s", "model=fcn16s", "model=fcn32s"] and comparison.baseline is None
    assert [(pair.first.name, pair.second.name) for pair in comparison.pairs] == [
        ("model=fcn8s", "model=fcn32s"),
        ("model=fcn8s", "model=fcn16s"),
        ("model=fcn16s", "model=fcn32s"),
    ]
    for pair in comparison.pairs:
        assert pair.better is pair.first and pair.verdict == "better" and pair.of_seeds == "3 paired seeds"
        assert pair.images == 36 and set(pair.seed_differences) == {1, 2, 3}
    assert not comparison.left_out and not without_reliability(comparison.notes)
    assert comparison.classes == CLASSES and comparison.set == "toys val"


def without_reliability(notes: list[str]) -> list[str]:
    """Return the notes but those on how reliable the intervals of these few images and seeds are."""
    return [note for note in notes if "simulations" not in note and "instead of 5 %" not in note]


def test_the_command_that_adds_the_missing_seeds_is_noted(make_run, compared, tmp_path):
    """Two seeds lack one for a verdict on retraining; a pair that is undecided lacks as many as it would need."""
    for seed in (1, 2):
        for model, quality in {"fcn8s": 0.9, "fcn32s": 0.5}.items():
            make_run(f"{model}{seed}", toy_matrices(quality + seed / 100, seed=seed), model=model, seed=seed)
    assert not any("sweep.extend" in note for note in compared().notes)
    (tmp_path / "runs" / "sweep.json").write_text('{"verb": "train"}')
    assert any(note.endswith("runs seed=3") and "train -m sweep.extend=" in note for note in compared().notes)
    for model, quality in {"fcn8s": 0.6, "fcn32s": 0.5}.items():
        make_run(f"{model}3", toy_matrices(quality, seed=3), model=model, seed=3)
    comparison = compared()
    (pair,) = comparison.pairs
    count = pair.design.seeds - 3
    seeds = ",".join(str(4 + place) for place in range(count)) if count <= 5 else f"range(4,{4 + count})"
    assert pair.verdict == "undecided" and count > 0
    assert any(note.replace("'", "").endswith(f"runs seed={seeds}") for note in comparison.notes)


def test_less_reliable_intervals_are_noted(make_run, compared):
    """Below 100 images, below 10 images of a class, and with three seeds that vary more than the images."""
    for seed in (1, 2, 3):
        for model, quality in {"fcn8s": 0.8, "fcn32s": 0.6}.items():
            matrices = toy_matrices(quality + seed / 20, 36, seed=seed)
            matrices[9:, 3], matrices[9:, [0, 1, 2], 0] = 0, matrices[9:, :3, [0, 3]].sum(axis=2)
            matrices[9:, :, 3] = 0
            make_run(f"{model}{seed}", matrices, model=model, seed=seed)
    comparison = compared()
    (pair,), notes = comparison.pairs, " ".join(comparison.notes)
    assert "Fewer than 10 images contain cow." in notes and "On fewer than 100 images" in notes
    assert pair.liberal and "6 to 8 % of equal groups differ significantly instead of 5 %: 1 pair" in notes


def test_numbers_of_a_pair_equal_scipy(sweep, compared):
    """The expected values are computed from the matrices, with the definition of the scores and scipy."""
    pair = compared().pairs[0]
    mious = {
        model: np.array([scores(toy_matrices(quality + seed / 100, seed=seed).sum(axis=0)).miou for seed in (1, 2, 3)])
        for model, quality in {"fcn8s": 0.9, "fcn32s": 0.5}.items()
    }
    differences = mious["fcn8s"] - mious["fcn32s"]
    assert pair.difference == pair.over_images.value == pytest.approx(differences.mean(), rel=1e-12)
    assert list(pair.seed_differences.values()) == pytest.approx(differences.tolist(), rel=1e-12)
    expected = stats.ttest_1samp(differences, 0)
    assert pair.over_seeds == pytest.approx((differences.mean(), *expected.confidence_interval(), expected.pvalue))
    assert pair.over_images.low < differences.mean() < pair.over_images.high


def test_p_values_are_corrected_for_all_pairs(sweep, compared):
    """Holm's method multiplies the smallest p by the number of pairs. It is that of the far tails."""
    pairs = compared().pairs
    assert min(pair.p for pair in pairs) == pytest.approx(3 * min(pair.two_factor.p(comparisons=3) for pair in pairs))
    assert all(pair.p > pair.interval.p for pair in pairs) and {pair.comparisons for pair in pairs} == {3}
    assert all(1 / 501 <= pair.p_step_down <= 0.05 for pair in pairs)


def test_a_model_and_itself_do_not_differ_significantly(make_run, compared):
    for seed in (1, 2, 3):
        for model in ("fcn8s", "fcn32s"):
            make_run(f"{model}{seed}", toy_matrices(0.7, seed=seed), model=model, seed=seed)
    (pair,) = compared().pairs
    assert pair.over_images == (0, 0, 0, 1) and pair.verdict == "undecided" and not pair.apart
    assert pair.over_seeds is None and pair.better is None


@pytest.mark.parametrize(
    ("seeds", "verdict", "message", "note"),
    [
        ((1,), "higher", "one seed: retraining not tested", "Each group has only one seed"),
        ((1, 2), "higher", "2 seeds: retraining not tested", "one or two seeds"),
        ((1, 2, 3), "better", "3 paired seeds", None),
    ],
)
def test_verdicts_with_few_seeds(make_run, compared, seeds, verdict, message, note):
    for seed in seeds:
        for model, quality in {"fcn8s": 0.9, "fcn32s": 0.5}.items():
            make_run(f"{model}{seed}", toy_matrices(quality + seed / 100, seed=seed), model=model, seed=seed)
    comparison = compared()
    (pair,) = comparison.pairs
    assert pair.verdict == verdict and message == pair.of_seeds and (pair.over_seeds is None) == (len(seeds) < 3)
    assert (pair.interval == pair.over_images) == (pair.scope == "images only") == (len(seeds) < 3)
    assert list(pair.seed_differences) == list(seeds)
    notes = without_reliability(comparison.notes)
    assert bool(notes) == bool(note) and all(note in text for text in notes)


def test_seeds_that_disagree_are_inconclusive(make_run, compared):
    """The models differ clearly on every image, but one of three seeds of the better one failed."""
    for model, qualities in {"fcn8s": (0.95, 0.95, 0.4), "fcn32s": (0.5, 0.5, 0.5)}.items():
        for seed, quality in enumerate(qualities, start=1):
            make_run(f"{model}{seed}", toy_matrices(quality, seed=seed), model=model, seed=seed)
    (pair,) = compared().pairs
    assert pair.over_images.p < 0.05 and pair.verdict == "undecided" and pair.better is None


def test_no_seed_in_common_is_reported(make_run, compared):
    make_run("a", toy_matrices(0.9), model="fcn8s", seed=1)
    make_run("b", toy_matrices(0.5), model="fcn32s", seed=2)
    (pair,) = compared().pairs
    assert pair.seed_differences == {} and pair.of_seeds == "one seed: retraining not tested"


def test_a_ranking_does_not_contradict_the_verdict(make_run, compared):
    """fcn8s has the higher mean because of two lucky seeds, and is worse on the seeds that it shares with fcn16s."""
    for seed in (1, 2, 3, 4, 5):
        make_run(f"a{seed}", toy_matrices(0.95 if seed > 3 else 0.6, seed=seed), model="fcn8s", seed=seed)
    for model, quality in {"fcn16s": 0.66, "fcn32s": 0.3}.items():
        for seed in (1, 2, 3):
            make_run(f"{model}{seed}", toy_matrices(quality + seed / 1000, seed=seed), model=model, seed=seed)
    comparison = compared()
    assert comparison.groups[0].parts["model"] == "fcn8s" and not ranks(comparison)
    assert any(text.startswith("model=fcn16s is better than model=fcn8s: +") for text in answers(comparison))


def test_an_interval_on_the_other_side_of_zero_gives_no_verdict(make_run, compared):
    for model in ("fcn8s", "fcn32s"):
        make_run(model, toy_matrices(0.9 if model == "fcn8s" else 0.5), model=model)
    (pair,) = compared().pairs
    assert pair.verdict == "higher"
    assert replace(pair, difference=-pair.difference).verdict == "undecided"


def test_a_negative_seed_of_a_foreign_run_is_compared(make_run, compared):
    for seed in (-1, 2, 3):
        for model, quality in {"fcn8s": 0.9, "fcn32s": 0.5}.items():
            matrices = toy_matrices(quality + seed / 100, seed=abs(seed))
            make_run(f"{model}{seed}", matrices, model=model, seed=seed)
    assert compared().pairs[0].verdict == "better"


def test_unpaired_seeds_are_compared_with_all_runs(make_run, compared):
    """The groups share two of their seeds, which are too few for pairs."""
    for model, quality, seeds in (("fcn8s", 0.9, (1, 2, 3)), ("fcn32s", 0.5, (2, 3, 4, 5))):
        for seed in seeds:
            make_run(f"{model}{seed}", toy_matrices(quality + seed / 100, seed=seed), model=model, seed=seed)
    (pair,) = compared().pairs
    assert pair.of_seeds == "3 and 4 unpaired seeds" and pair.verdict == "better"
    assert pair.difference == pytest.approx(pair.first.mean() - pair.second.mean(), rel=1e-12)
    assert len(pair.two_factor.samples) == 2 and pair.over_seeds is None


def test_equal_groups_are_equivalent_within_a_margin(make_run, compared):
    """The verdict is about the margin: within 5 points, but not within 0.01."""
    for seed in (1, 2, 3, 4):
        for model, shift in {"fcn8s": 0, "fcn32s": 20}.items():
            make_run(f"{model}{seed}", toy_matrices(0.7, seed=seed + shift), model=model, seed=seed)
    (wide,), (narrow,) = compared(equivalence=5).pairs, compared(equivalence=0.01).pairs
    assert wide.verdict == "equivalent" and narrow.verdict == "undecided" and wide.better is None
    assert "are equivalent within 5 points of mIoU" in answers(compared(equivalence=5))[0]
    assert (
        answers(compared(equivalence=0.01))[-1] == "The difference is not shown to be smaller than 0.01 points of mIoU."
    )
    assert not any("not shown" in answer for margin in (5, None) for answer in answers(compared(equivalence=margin)))
    half = narrow.two_factor.interval(0.9)  # two one-sided tests at 5 % are the 90 % interval within the margin
    for margin in (1.01 * max(abs(half.low), abs(half.high)), 0.99 * max(abs(half.low), abs(half.high))):
        assert (narrow.two_factor.p_equivalent(margin) < 0.05) == (max(abs(half.low), abs(half.high)) < margin)


def many(make_run, count: int) -> None:
    for place in range(count):
        make_run(str(place), toy_matrices(0.4 + 0.05 * place), settings={"optim.lr": place / 10})


def test_many_groups_are_compared_with_a_default_baseline(make_run, compared):
    many(make_run, 6)
    comparison = compared()
    assert comparison.baseline.name == "optim.lr=0.0" and len(comparison.pairs) == 5
    assert (
        all(pair.second is comparison.baseline for pair in comparison.pairs) and "baseline=NAME" in comparison.notes[0]
    )


def test_the_best_of_many_groups_is_reported_to_be_selected_by_chance(make_run, compared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in range(11):
        make_run(str(place), toy_matrices(0.7, seed=place), seed=5, settings={"optim.lr": place + 1.0})
    (note,) = (note for note in compared().notes if "selected by chance" in note)
    observed, held_out = (float(number) for number in re.findall(r"([\d.]+) %", note))
    best = compared().groups[0]
    assert note.startswith("The best of 11 groups is ") and observed == round(100 * best.mean(), 2) > held_out
    assert "Groups with one seed are selected and scored with it" in note
    assert note.endswith(": fcnlab train -m sweep.confirm=FOLDER sweep.best=3 seed=6,7,8")
    (tmp_path / "runs" / "sweep.json").write_text('{"verb": "train"}')
    assert confirm_command(best.runs) == "fcnlab train -m sweep.confirm=runs sweep.best=3 seed=6,7,8"


def test_a_baseline_can_be_chosen(make_run, compared):
    many(make_run, 3)
    comparison = compared(baseline="0.1")
    assert {pair.first.name for pair in comparison.pairs} == {"optim.lr=0.0", "optim.lr=0.2"}
    assert not without_reliability(comparison.notes)[1:]
    worse = next(pair for pair in comparison.pairs if pair.first.name == "optim.lr=0.0")
    assert worse.difference < 0 and worse.verdict == "lower" and worse.leader is comparison.baseline
    with pytest.raises(UserError, match=r"baseline=0\.7 matches no group"):
        compared(baseline="0.7")


def test_nothing_to_compare_is_reported(make_run, compared):
    with pytest.raises(UserError, match="no finished run"):
        compare([])
    make_run("a")
    comparison = compared()
    assert names(comparison) == ["all runs"] and comparison.pairs == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": {"set": "toys test"}}, "its set is 'toys test', but 'toys val' in"),
        ({"protocol": {"ignored_pixels": "counts as background"}}, "its ignored_pixels is 'counts as background'"),
        ({"protocol": {"absent_classes": "count 0"}}, "its absent_classes is"),
        ({"protocol": {"resolution": "512x512"}}, "its resolution is '512x512'"),
        ({"protocol": {"padded_samples": 3}}, "its padded_samples is '3'"),
        ({"classes": ("background", "cat", "dog", "horse")}, "they differ in cow, horse"),
        ({"classes": ("background", "dog", "cat", "cow")}, "their order differs"),
        ({"names": [f"other_{place}" for place in range(36)]}, "no image in common"),
        ({"matrices": 2 * toy_matrices(0.7)}, "the ground truth of 36 of its images, such as image_000, differs"),
    ],
)
def test_runs_that_are_not_comparable_are_excluded_with_a_reason(make_run, compared, changes, message):
    for seed in (1, 2):
        make_run(f"a{seed}", seed=seed)
    odd = make_run("odd", model="fcn32s", **changes)
    comparison = compared()
    assert names(comparison) == ["all runs"]
    (out,) = comparison.left_out
    assert out.folder == odd and out.reason.startswith("not comparable: ") and message in out.reason


def listed(count: int) -> list[str]:
    return [f"image_{place:03}" for place in range(count)]


def test_all_scores_use_the_common_images_only(make_run, compared, tmp_path):
    """The second run has images 4 to 45 in another order, of which the first lacks six: 36 of 46 are common.

    Its other images have such low scores that with them it would be the worse one.
    """
    first, second = toy_matrices(0.6, 46, seed=1), toy_matrices(0.7, 46, seed=2)
    second[40:] = toy_matrices(0.01, 46, seed=2)[40:]
    order, names46 = np.random.default_rng(0).permutation(np.arange(4, 46)), listed(46)
    make_run("a", first[:40], model="fcn8s", names=names46[:40])
    make_run("b", second[order], model="fcn32s", names=[names46[place] for place in order])
    comparison = compared(baseline="fcn8s")
    expected = {model: scores(areas[4:40].sum(axis=0)) for model, areas in (("fcn8s", first), ("fcn32s", second))}
    difference = expected["fcn32s"].miou - expected["fcn8s"].miou
    (pair,) = comparison.pairs
    assert difference > 0 and pair.images == comparison.images == 36 and comparison.of == 46
    assert pair.difference == pair.over_images.value == pytest.approx(difference, rel=1e-12)
    assert list(pair.seed_differences.values()) == pytest.approx([difference])
    for group in comparison.groups:
        group_scores = expected[group.parts["model"]]
        assert [group.mean(name) for name in SCORES] == pytest.approx(list(group_scores[:4]), rel=1e-12)
        np.testing.assert_allclose(group.iou(), group_scores.iou)
    effect = next(effect for effect in comparison.effects if effect.value == "fcn32s")
    assert effect.difference == pytest.approx(difference) and effect.miou == pytest.approx(expected["fcn32s"].miou)
    assert any(
        "40 to 42 per run" in note and "on the 36 images that all runs share" in note for note in comparison.notes
    )
    assert {name for name, *_ in pair.apart} <= set(names46[4:40])
    assert "toys val, 36 of 46 images" in headline(comparison) and comparison.scored[tmp_path / "runs" / "b"] == 42


@pytest.mark.parametrize(("count", "judged"), [(1, False), (2, False), (29, False), (30, True)])
def test_no_verdict_on_few_images(make_run, compared, count, judged):
    """This holds for any difference."""
    for seed in (1, 2, 3):
        for model, quality in {"fcn8s": 0.95, "fcn32s": 0.2}.items():
            make_run(f"{model}{seed}", toy_matrices(quality, count, seed=seed), model=model, seed=seed)
    comparison = compared()
    (pair,) = comparison.pairs
    assert (pair.over_images is not None) == (pair.p is not None) == bool(pair.better) == judged
    assert pair.verdict == ("better" if judged else "none")
    assert judged or pair.scope == f"{count} images, at least 30 are needed"
    assert any("No verdict is given" in note for note in comparison.notes) != judged
    for text in (terminal(comparison), markdown(comparison)):
        assert f"on {count} image" in text.replace("the same ", "") and ("better than" in text) == judged


def test_a_run_on_very_few_images_is_excluded(make_run, compared):
    """Otherwise the other runs would be compared on these images only."""
    for model, quality in {"fcn8s": 0.9, "fcn32s": 0.5}.items():
        make_run(model, toy_matrices(quality), model=model)
    smoke = make_run("smoke", toy_matrices(0.7, 2), model="fcn16s", names=listed(2))
    comparison = compared()
    assert comparison.images == 36 and len(comparison.groups) == 2
    (out,) = comparison.left_out
    assert out.folder == smoke and "has 2 of the 36 images" in out.reason


def test_runs_without_an_image_common_to_all_are_excluded(make_run, compared):
    """Both runs share images with the usual runs, but not with each other."""
    matrices, names = toy_matrices(0.7, 12), listed(12)
    for seed in (1, 2):
        make_run(f"usual{seed}", matrices, seed=seed)
    make_run("x", matrices[:6], model="fcn16s", names=names[:6])
    last = make_run("y", matrices[6:], model="fcn32s", names=names[6:])
    comparison = compared()
    assert comparison.images == 6 and [out.folder for out in comparison.left_out] == [last]


def test_a_difference_and_its_intervals_use_the_same_runs(make_run, compared):
    """Seed 4 exists in one group only and is far worse: it is in no pair, but in the group's mean."""
    for model, quality, seeds in (("fcn8s", 0.8, (1, 2, 3, 4)), ("fcn32s", 0.7, (1, 2, 3))):
        for seed in seeds:
            matrices = toy_matrices(0.05 if seed == 4 else quality + seed / 100, seed=seed)
            make_run(f"{model}{seed}", matrices, model=model, seed=seed)
    comparison = compared(baseline="fcn32s")
    (pair,) = comparison.pairs
    assert pair.difference == pytest.approx(np.mean(list(pair.seed_differences.values())), rel=1e-12)
    assert pair.difference == pair.over_images.value == pytest.approx(pair.over_seeds.value, rel=1e-12)
    assert pair.difference > 0 > pair.first.mean() - pair.second.mean()
    assert next(effect for effect in comparison.effects if effect.value == "fcn32s").difference == -pair.difference
    assert any("different seeds" in note for note in comparison.notes)


def test_seeds_with_equal_scores_are_not_tested(make_run, compared):
    """One weights file evaluated with three seeds is a single training run."""
    for seed in (1, 2, 3):
        for model, quality in {"fcn8s": 0.9, "fcn32s": 0.5}.items():
            make_run(f"{model}{seed}", toy_matrices(quality, seed=7), model=model, seed=seed)
    (pair,) = compared().pairs
    assert pair.over_seeds is pair.two_factor is None and "all with the same difference" in pair.of_seeds
    assert pair.verdict == "higher"


def test_a_difference_that_one_image_makes_is_undecided(make_run, compared):
    """One image decides, equally for each seed: other images could change the result, other seeds could not."""
    for seed in (1, 2, 3):
        base = toy_matrices(0.7, seed=seed)
        better = base.copy()
        better[0] = 40 * np.diag(base[0].sum(axis=1))
        base[0] = better[0]
        base[0, 1], base[0, 1, 2] = 0, better[0, 1].sum()
        make_run(f"a{seed}", better, model="fcn8s", seed=seed)
        make_run(f"b{seed}", base, model="fcn32s", seed=seed)
    (pair,) = compared().pairs
    assert pair.over_seeds.p < 0.05 and pair.verdict == "undecided" and pair.better is None


def test_too_few_resamples_for_significance_are_reported(make_run, compared):
    """The smallest p of 100 resamples is 2 / 101, which is 0.099 after Holm's correction for 5 pairs."""
    many(make_run, 6)
    comparison = compared(resamples=100)
    assert min(pair.over_images.p for pair in comparison.pairs) == pytest.approx(2 / 101)
    assert all(not pair.significant for pair in comparison.pairs) and any(
        "resamples=200" in note for note in comparison.notes
    )
    enough = compared(resamples=200)
    assert any(pair.significant for pair in enough.pairs) and not any("resamples=" in note for note in enough.notes)


def test_runs_with_different_precision_are_compared_with_a_note(make_run, compared):
    make_run("a", toy_matrices(0.9))
    make_run("b", toy_matrices(0.7), model="fcn32s", protocol={"precision": "bf16-mixed"})
    comparison = compared()
    assert len(comparison.pairs) == 1 and any(
        "=32-true, trainer.precision=bf16-mixed" in note for note in comparison.notes
    )


def test_images_with_the_largest_differences_are_listed(make_run, compared):
    first = toy_matrices(0.7, 30, seed=1)
    second = first.copy()
    for image, gain in ((5, 1), (17, -1)):  # one model is correct everywhere, the other nowhere
        target = first[image].sum(axis=1)
        first[image] = np.diag(target)
        second[image] = np.roll(np.diag(target), 1, axis=1)
        if gain < 0:
            first[image], second[image] = second[image].copy(), first[image].copy()
    make_run("a", first, model="fcn8s")
    make_run("b", second, model="fcn32s")
    (pair,) = compared(baseline="fcn32s").pairs
    assert pair.apart == [("image_005", 1, 0), ("image_017", 0, 1)]
    assert len(pair.apart) <= MOST_IMAGES


def test_effects_compare_groups_that_differ_in_one_setting_only(make_run, compared):
    """fcn32s has no run with the second learning lr_effect, so the effect is that on fcn8s."""
    mious = {}
    for model, lr, quality in (("fcn32s", 1, 0.3), ("fcn8s", 1, 0.6), ("fcn8s", 2, 0.8)):
        matrices = toy_matrices(quality)
        mious[model, lr] = scores(matrices.sum(axis=0)).miou
        make_run(f"{model}-{lr}", matrices, model=model, settings={"optim.lr": lr})
    effects = {(effect.key, effect.value): effect for effect in compared().effects}
    lr_effect = effects["optim.lr", "2"]
    assert lr_effect.difference == pytest.approx(mious["fcn8s", 2] - mious["fcn8s", 1]) and lr_effect.matched == 1
    assert effects["optim.lr", "1"].miou == pytest.approx((mious["fcn8s", 1] + mious["fcn32s", 1]) / 2)
    assert effects["optim.lr", "1"].difference == 0 and effects["model", "fcn32s"].matched == 1


def test_curves_are_means_over_seeds(sweep, compared):
    mean_curve = curve(compared().groups[0], "val/miou")
    assert mean_curve.steps.tolist() == [20, 40] and mean_curve.mean.tolist() == pytest.approx([0.2, 0.32])
    assert mean_curve.low.tolist() == pytest.approx([0.2, 0.31]) and mean_curve.high.tolist() == pytest.approx(
        [0.2, 0.33]
    )
    assert curve(compared().groups[0], "no/such") is None


@pytest.mark.slow
def test_a_thousand_runs_are_compared_in_a_minute(tmp_path):
    """Runs have 1,449 images and 21 classes and are compared with a baseline, from run folders to written files.

    CPU time is measured, so that other load on the machine does not count.
    """
    from fcnlab.comparison.csv_files import write_csv
    from fcnlab.comparison.markdown import markdown
    from fcnlab.comparison.page import write_page
    from fcnlab.comparison.terminal import terminal

    classes = ("background", *(f"class {place}" for place in range(1, 21)))
    rng = np.random.default_rng(0)
    matrices = np.zeros((1449, 21, 21), np.int64)
    for matrix in matrices:
        present = rng.choice(21, 3, replace=False)
        matrix[np.ix_(present, present)] = rng.integers(0, 40_000, (3, 3)) + 60_000 * np.eye(3, dtype=int)
    first = write_run(tmp_path / "runs" / "0", matrices, classes=classes, settings={"optim.lr": 0})
    for place in range(1, 1000):
        folder = tmp_path / "runs" / str(place)
        (folder / ".hydra").mkdir(parents=True)
        for name in ("metrics.json", "confusions.npz", "run.json", "metrics.csv", ".hydra/hydra.yaml"):
            (folder / name).hardlink_to(first / name)
        for name in ("config.yaml", ".hydra/config.yaml"):
            (folder / name).write_text((first / name).read_text().replace("lr: 0", f"lr: {place}"))
    started = time.process_time()
    runs, _ = read_runs([tmp_path / "runs"])
    comparison = compare(runs)
    markdown(comparison), terminal(comparison)
    write_csv(tmp_path, comparison)
    write_page(tmp_path / "comparison.html", comparison, "fcnlab compare")
    seconds = time.process_time() - started
    assert len(comparison.groups) == 1000 and len(comparison.pairs) == 999
    assert seconds < 60, f"{seconds:.0f} s"


def test_a_setting_that_splits_seeds_is_one_note(make_run, compared):
    """However many pairs of groups it splits."""
    for seed in range(1, 5):
        make_run(str(seed), seed=seed, source=f"code{seed}")
    (note,) = (note for note in compared().notes if "differ only in" in note)
    assert "(seed 1) and " in note and "(seed 2) differ only in source.fcnlab, and so do 5 other pairs" in note
    assert note.count("merge_over=[source.fcnlab]") == 1


def test_commits_are_short_in_notes(make_run, compared):
    for seed, commit in enumerate([f"{'a' * 10}{'0' * 30}", f"{'b' * 10}{'0' * 30}+changes"]):
        record = make_run(str(seed), seed=seed) / "metrics.json"
        facts = json.loads(record.read_text())
        record.write_text(json.dumps(facts | {"provenance": facts["provenance"] | {"commit": commit}}))
    (note,) = (note for note in compared().notes if "differ in commit" in note)
    assert note.startswith(f"The runs differ in commit: {'a' * 10} (1 run), {'b' * 10}+changes (1 run).")
