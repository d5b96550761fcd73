"""Which groups are compared, on what, and what is concluded."""

import time

import numpy as np
import pytest
from scipy import stats

from fcnlab.comparison.comparison import compare, curve
from fcnlab.comparison.pairs import MOST_IMAGES
from fcnlab.comparison.runs import read_runs
from fcnlab.comparison.tables import answers, headline, markdown, terminal
from fcnlab.errors import UserError
from fcnlab.metrics.scores import SCORES, scores
from run_folders import CLASSES, toy_matrices, write_run

BETTER = "better, significant over images and seeds"


@pytest.fixture
def compared(tmp_path):
    """Compare what lies in ``runs/``."""
    return lambda **kwargs: compare(read_runs([tmp_path / "runs"])[0], **{"resamples": 500, **kwargs})


def names(found) -> list[str]:
    return [group.name for group in found.groups]


def test_three_models_that_differ(sweep, compared):
    found = compared()
    assert names(found) == ["model=fcn8s", "model=fcn16s", "model=fcn32s"] and found.baseline is None
    assert [(pair.first.name, pair.second.name) for pair in found.pairs] == [
        ("model=fcn8s", "model=fcn32s"),
        ("model=fcn8s", "model=fcn16s"),
        ("model=fcn16s", "model=fcn32s"),
    ]
    for pair in found.pairs:
        assert pair.better is pair.first and pair.verdict == BETTER and pair.of_seeds == "3 seeds in common"
        assert pair.images == 36 and set(pair.seed_differences) == {1, 2, 3}
    assert not found.left_out and not found.notes and found.classes == CLASSES and found.set == "toys val"


def test_numbers_of_a_pair(sweep, compared):
    """From the matrices themselves, by the scores' own definition and scipy."""
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
    """The largest stays, the smallest is multiplied by their number."""
    pairs = compared().pairs
    raw, corrected = ([value(pair) for pair in pairs] for value in (lambda p: p.over_seeds.p, lambda p: p.p_seeds))
    assert max(corrected) == pytest.approx(max(raw)) or max(corrected) > max(raw)
    assert min(corrected) == pytest.approx(3 * min(raw))
    assert min(pair.p_images for pair in pairs) == pytest.approx(3 * min(pair.over_images.p for pair in pairs))


def test_a_net_and_itself_are_not_told_apart(make_run, compared):
    for seed in (1, 2, 3):
        for model in ("fcn8s", "fcn32s"):
            make_run(f"{model}{seed}", toy_matrices(0.7, seed=seed), model=model, seed=seed)
    (pair,) = compared().pairs
    assert pair.over_images == (0, 0, 0, 1) and pair.verdict == "no significant difference" and not pair.apart
    assert pair.over_seeds is None and pair.better is None


@pytest.mark.parametrize(
    ("seeds", "verdict", "message", "note"),
    [
        (
            (1,),
            "better, significant over images only (seeds not tested)",
            "only one seed in common: no claim",
            "Each group has only one seed",
        ),
        (
            (1, 2),
            "better, significant over images only (seeds not tested)",
            "two seeds in common: too few to judge",
            "one or two seeds",
        ),
        ((1, 2, 3), "better, significant over images and seeds", "3 seeds in common", None),
    ],
)
def test_few_seeds(make_run, compared, seeds, verdict, message, note):
    for seed in seeds:
        for model, quality in {"fcn8s": 0.9, "fcn32s": 0.5}.items():
            make_run(f"{model}{seed}", toy_matrices(quality + seed / 100, seed=seed), model=model, seed=seed)
    found = compared()
    (pair,) = found.pairs
    assert pair.verdict == verdict and message in pair.of_seeds and (pair.over_seeds is None) == (len(seeds) < 3)
    assert list(pair.seed_differences) == list(seeds)
    assert bool(found.notes) == bool(note) and all(note in text for text in found.notes)


def test_seeds_that_disagree_leave_it_open(make_run, compared):
    """Far apart on every image, but one seed of three is a failure of the better one."""
    for model, qualities in {"fcn8s": (0.95, 0.95, 0.4), "fcn32s": (0.5, 0.5, 0.5)}.items():
        for seed, quality in enumerate(qualities, start=1):
            make_run(f"{model}{seed}", toy_matrices(quality, seed=seed), model=model, seed=seed)
    (pair,) = compared().pairs
    assert (
        pair.sure_of_images
        and pair.verdict == "better, significant over images only (not over seeds)"
        and pair.better is None
    )
    assert pair.of_seeds == "3 seeds in common"


def test_no_seed_in_common(make_run, compared):
    make_run("a", toy_matrices(0.9), model="fcn8s", seed=1)
    make_run("b", toy_matrices(0.5), model="fcn32s", seed=2)
    (pair,) = compared().pairs
    assert pair.seed_differences == {} and "no seed in common" in pair.of_seeds


def many(make_run, count: int) -> None:
    for place in range(count):
        make_run(str(place), toy_matrices(0.4 + 0.05 * place), settings={"optim.lr": place / 10})


def test_many_groups_are_compared_with_the_first(make_run, compared):
    many(make_run, 6)
    found = compared()
    assert found.baseline.name == "optim.lr=0.0" and len(found.pairs) == 5
    assert all(pair.second is found.baseline for pair in found.pairs) and "baseline=NAME" in found.notes[0]


def test_a_baseline_is_chosen(make_run, compared):
    many(make_run, 3)
    found = compared(baseline="0.1")
    assert {pair.first.name for pair in found.pairs} == {"optim.lr=0.0", "optim.lr=0.2"} and not found.notes[1:]
    worse = next(pair for pair in found.pairs if pair.first.name == "optim.lr=0.0")
    assert worse.difference < 0 and worse.verdict.startswith("worse, ") and worse.better is found.baseline
    with pytest.raises(UserError, match=r"baseline=0\.7 matches no group"):
        compared(baseline="0.7")


def test_nothing_to_compare(make_run, compared):
    with pytest.raises(UserError, match="no finished run"):
        compare([])
    make_run("a")
    found = compared()
    assert names(found) == ["all runs"] and found.pairs == []


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"protocol": {"set": "toys test"}}, "its set is 'toys test', but 'toys val' in"),
        ({"protocol": {"void": "counts as background"}}, "its void is 'counts as background'"),
        ({"protocol": {"absent_classes": "count 0"}}, "its absent classes is"),
        ({"protocol": {"resolution": "512x512"}}, "its resolution is '512x512'"),
        ({"protocol": {"padded_samples": 3}}, "its padded samples is '3'"),
        ({"classes": ("background", "cat", "dog", "horse")}, "they differ in cow, horse"),
        ({"classes": ("background", "dog", "cat", "cow")}, "their order differs"),
        ({"names": [f"other_{place}" for place in range(36)]}, "no image in common"),
        ({"matrices": 2 * toy_matrices(0.7)}, "the ground truth of 36 of its images, such as image_000, differs"),
    ],
)
def test_what_is_not_comparable_is_refused_by_name(make_run, compared, other, message):
    for seed in (1, 2):
        make_run(f"a{seed}", seed=seed)
    odd = make_run("odd", model="fcn32s", **other)
    found = compared()
    assert names(found) == ["all runs"]
    (out,) = found.left_out
    assert out.folder == odd and out.reason.startswith("not comparable: ") and message in out.reason


def listed(count: int) -> list[str]:
    return [f"image_{place:03}" for place in range(count)]


def test_all_numbers_are_of_the_common_images(make_run, compared, tmp_path):
    """The second has images 4 to 45 in another order, of which the first lacks six: 36 of 46 are common.

    Its four further images are so bad that with them it would be the worse one.
    """
    one, other = toy_matrices(0.6, 46, seed=1), toy_matrices(0.7, 46, seed=2)
    other[40:] = toy_matrices(0.01, 46, seed=2)[40:]
    order, names46 = np.random.default_rng(0).permutation(np.arange(4, 46)), listed(46)
    make_run("a", one[:40], model="fcn8s", names=names46[:40])
    make_run("b", other[order], model="fcn32s", names=[names46[place] for place in order])
    found = compared(baseline="fcn8s")
    expected = {model: scores(areas[4:40].sum(axis=0)) for model, areas in (("fcn8s", one), ("fcn32s", other))}
    difference = expected["fcn32s"].miou - expected["fcn8s"].miou
    (pair,) = found.pairs
    assert difference > 0 and pair.images == found.images == 36 and found.of == 46
    assert pair.difference == pair.over_images.value == pytest.approx(difference, rel=1e-12)
    assert list(pair.seed_differences.values()) == pytest.approx([difference])
    for group in found.groups:
        wanted = expected[group.parts["model"]]
        assert [group.mean(name) for name in SCORES] == pytest.approx(list(wanted[:4]), rel=1e-12)
        np.testing.assert_allclose(group.iou(), wanted.iou)
    effect = next(effect for effect in found.effects if effect.value == "fcn32s")
    assert effect.difference == pytest.approx(difference) and effect.miou == pytest.approx(expected["fcn32s"].miou)
    assert any("40 to 42 per run" in note and "on the 36 images that all runs share" in note for note in found.notes)
    assert {name for name, *_ in pair.apart} <= set(names46[4:40])
    assert "toys val, 36 of 46 images" in headline(found) and found.scored[tmp_path / "runs" / "b"] == 42


@pytest.mark.parametrize(("count", "judged"), [(1, False), (2, False), (29, False), (30, True)])
def test_no_verdict_on_few_images(make_run, compared, count, judged):
    """However far apart the two are."""
    for seed in (1, 2, 3):
        for model, quality in {"fcn8s": 0.95, "fcn32s": 0.2}.items():
            make_run(f"{model}{seed}", toy_matrices(quality, count, seed=seed), model=model, seed=seed)
    found = compared()
    (pair,) = found.pairs
    assert (pair.over_images is not None) == (pair.p_images is not None) == bool(pair.better) == judged
    assert pair.verdict == (BETTER if judged else f"no verdict: {count} images, at least 30 are needed")
    assert any("No verdict" in note for note in found.notes) != judged
    for text in (terminal(found), markdown(found)):
        assert f"n = {count}" in text and ("better than" in text) == judged


def test_one_run_on_a_handful_of_images_is_left_out(make_run, compared):
    """Otherwise it would leave no image to the others."""
    for model, quality in {"fcn8s": 0.9, "fcn32s": 0.5}.items():
        make_run(model, toy_matrices(quality), model=model)
    smoke = make_run("smoke", toy_matrices(0.7, 2), model="fcn16s", names=listed(2))
    found = compared()
    assert found.images == 36 and len(found.groups) == 2
    (out,) = found.left_out
    assert out.folder == smoke and "has 2 of the 36 images" in out.reason


def test_runs_without_a_image_common_to_all(make_run, compared):
    """Both share images with the usual run, not with each other."""
    matrices, names = toy_matrices(0.7, 12), listed(12)
    for seed in (1, 2):
        make_run(f"usual{seed}", matrices, seed=seed)
    make_run("x", matrices[:6], model="fcn16s", names=names[:6])
    other = make_run("y", matrices[6:], model="fcn32s", names=names[6:])
    found = compared()
    assert found.images == 6 and [out.folder for out in found.left_out] == [other]


def test_a_difference_and_its_intervals_are_of_the_same_runs(make_run, compared):
    """Seed 4 of one group alone is far worse: it is in no pair, and the group's own mean has it."""
    for model, quality, seeds in (("fcn8s", 0.8, (1, 2, 3, 4)), ("fcn32s", 0.7, (1, 2, 3))):
        for seed in seeds:
            matrices = toy_matrices(0.05 if seed == 4 else quality + seed / 100, seed=seed)
            make_run(f"{model}{seed}", matrices, model=model, seed=seed)
    found = compared(baseline="fcn32s")
    (pair,) = found.pairs
    assert pair.difference == pytest.approx(np.mean(list(pair.seed_differences.values())), rel=1e-12)
    assert pair.difference == pair.over_images.value == pytest.approx(pair.over_seeds.value, rel=1e-12)
    assert pair.difference > 0 > pair.first.mean() - pair.second.mean()
    assert next(effect for effect in found.effects if effect.value == "fcn32s").difference == -pair.difference
    assert any("different seeds" in note for note in found.notes)


def test_seeds_that_change_nothing_are_no_evidence(make_run, compared):
    """Weights of one file, evaluated under three seeds, are one training."""
    for seed in (1, 2, 3):
        for model, quality in {"fcn8s": 0.9, "fcn32s": 0.5}.items():
            make_run(f"{model}{seed}", toy_matrices(quality, seed=7), model=model, seed=seed)
    (pair,) = compared().pairs
    assert pair.over_seeds is pair.p_seeds is None and "all with the same difference" in pair.of_seeds
    assert pair.verdict == "better, significant over images only (seeds not tested)"


def test_significant_over_seeds_only_does_not_contradict_itself(make_run, compared):
    """One image decides, the same way for each seed: other images could turn it, other seeds could not."""
    for seed in (1, 2, 3):
        base = toy_matrices(0.7, seed=seed)
        other = base.copy()
        other[0] = 40 * np.diag(base[0].sum(axis=1))
        base[0] = other[0]
        base[0, 1], base[0, 1, 2] = 0, other[0, 1].sum()
        make_run(f"a{seed}", other, model="fcn8s", seed=seed)
        make_run(f"b{seed}", base, model="fcn32s", seed=seed)
    found = compared()
    (pair,) = found.pairs
    assert pair.sure_of_seeds and not pair.sure_of_images and pair.better is None
    assert pair.verdict == "better, significant over seeds only (not over images)"
    assert answers(found)[0].endswith("images; 3 seeds in common.") and "No significant" not in answers(found)[0]


def test_pairs_that_no_number_of_runs_could_tell_apart_are_named(make_run, compared):
    """The smallest p of 100 resamples is 2 / 101; of 5 pairs it is 0.099 after Holm's correction."""
    many(make_run, 6)
    found = compared(resamples=100)
    assert min(pair.over_images.p for pair in found.pairs) == pytest.approx(2 / 101)
    assert all(not pair.better for pair in found.pairs) and any("resamples=200" in note for note in found.notes)
    enough = compared(resamples=200)
    assert any(pair.better for pair in enough.pairs) and not any("resamples=" in note for note in enough.notes)


def test_other_precision_and_inference_are_said_and_compared(make_run, compared):
    make_run("a", toy_matrices(0.9))
    make_run("b", toy_matrices(0.7), model="fcn32s", protocol={"precision": "bf16-mixed"})
    found = compared()
    assert len(found.pairs) == 1 and any("precision: 32-true, bf16-mixed" in note for note in found.notes)


def test_images_on_which_they_differ_most(make_run, compared):
    one = toy_matrices(0.7, 30, seed=1)
    other = one.copy()
    for image, gain in ((5, 1), (17, -1)):  # all right on one, all wrong on the other
        target = one[image].sum(axis=1)
        one[image] = np.diag(target)
        other[image] = np.roll(np.diag(target), 1, axis=1)
        if gain < 0:
            one[image], other[image] = other[image].copy(), one[image].copy()
    make_run("a", one, model="fcn8s")
    make_run("b", other, model="fcn32s")
    (pair,) = compared(baseline="fcn32s").pairs
    assert pair.apart == [("image_005", 1, 0), ("image_017", 0, 1)]
    assert len(pair.apart) <= MOST_IMAGES


def test_effects_are_of_groups_that_agree_in_all_else(make_run, compared):
    """fcn32s was not run at the second rate: the rate's effect is that on fcn8s alone."""
    mious = {}
    for model, lr, quality in (("fcn32s", 1, 0.3), ("fcn8s", 1, 0.6), ("fcn8s", 2, 0.8)):
        matrices = toy_matrices(quality)
        mious[model, lr] = scores(matrices.sum(axis=0)).miou
        make_run(f"{model}-{lr}", matrices, model=model, settings={"optim.lr": lr})
    found = {(effect.key, effect.value): effect for effect in compared().effects}
    rate = found["optim.lr", "2"]
    assert rate.difference == pytest.approx(mious["fcn8s", 2] - mious["fcn8s", 1]) and rate.matched == 1
    assert found["optim.lr", "1"].miou == pytest.approx((mious["fcn8s", 1] + mious["fcn32s", 1]) / 2)
    assert found["optim.lr", "1"].difference == 0 and found["model", "fcn32s"].matched == 1


def test_curves_are_means_over_seeds(sweep, compared):
    found = curve(compared().groups[0], "val/miou")
    assert found.steps.tolist() == [20, 40] and found.mean.tolist() == pytest.approx([0.2, 0.32])
    assert found.low.tolist() == pytest.approx([0.2, 0.31]) and found.high.tolist() == pytest.approx([0.2, 0.33])
    assert curve(compared().groups[0], "no/such") is None


@pytest.mark.slow
def test_a_thousand_runs_in_a_minute(tmp_path):
    """Of 1,449 images and 21 classes each, against a baseline, from the folders to the files.

    In seconds of one processor, so that what else the machine does is not counted.
    """
    from fcnlab.comparison.page import write_page
    from fcnlab.comparison.tables import markdown, terminal, write_csv

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
    found = compare(runs)
    markdown(found), terminal(found)
    write_csv(tmp_path, found)
    write_page(tmp_path / "comparison.html", found, "fcnlab compare")
    seconds = time.process_time() - started
    assert len(found.groups) == 1000 and len(found.pairs) == 999
    assert seconds < 60, f"{seconds:.0f} s"
