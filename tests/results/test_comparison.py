"""Which groups are compared, on what, and what is concluded."""

import time

import numpy as np
import pytest
from scipy import stats

from fcnlab.errors import UserError
from fcnlab.results.comparison import MOST_PICTURES, compare, curve
from fcnlab.results.runs import read_runs
from fcnlab.results.scores import scores
from run_folders import CLASSES, toy_matrices, write_run


@pytest.fixture
def compared(tmp_path):
    """Compare what lies in ``runs/``."""
    return lambda **kwargs: compare(read_runs([tmp_path / "runs"])[0], **{"resamples": 500, **kwargs})


def names(found) -> list[str]:
    return [group.name for group in found.groups]


def test_three_models_that_differ(sweep, compared):
    found = compared()
    assert names(found) == ["model=fcn8s", "model=fcn16s", "model=fcn32s"] and found.baseline is None
    assert [(pair.one.name, pair.other.name) for pair in found.pairs] == [
        ("model=fcn8s", "model=fcn32s"),
        ("model=fcn8s", "model=fcn16s"),
        ("model=fcn16s", "model=fcn32s"),
    ]
    for pair in found.pairs:
        assert pair.better is pair.one and pair.verdict == "better" and "holds for other trainings" in pair.of_trainings
        assert pair.pictures == 12 and set(pair.seed_differences) == {1, 2, 3}
    assert not found.left_out and not found.notes and found.classes == CLASSES and found.set == "toys val"


def test_numbers_of_a_pair(sweep, compared):
    """From the matrices themselves, by the scores' own definition and scipy."""
    pair = compared().pairs[0]
    mious = {
        model: np.array([scores(toy_matrices(quality + seed / 100, seed=seed).sum(axis=0)).miou for seed in (1, 2, 3)])
        for model, quality in {"fcn8s": 0.9, "fcn32s": 0.5}.items()
    }
    differences = mious["fcn8s"] - mious["fcn32s"]
    assert pair.over_pictures.value == pytest.approx(differences.mean(), rel=1e-12)
    assert list(pair.seed_differences.values()) == pytest.approx(differences.tolist(), rel=1e-12)
    expected = stats.ttest_1samp(differences, 0)
    assert pair.over_seeds == pytest.approx((differences.mean(), *expected.confidence_interval(), expected.pvalue))
    assert pair.over_pictures.low < differences.mean() < pair.over_pictures.high


def test_p_values_are_corrected_for_all_pairs(sweep, compared):
    """The largest stays, the smallest is multiplied by their number."""
    pairs = compared().pairs
    raw, corrected = ([value(pair) for pair in pairs] for value in (lambda p: p.over_seeds.p, lambda p: p.p_seeds))
    assert max(corrected) == pytest.approx(max(raw)) or max(corrected) > max(raw)
    assert min(corrected) == pytest.approx(3 * min(raw))
    assert min(pair.p_pictures for pair in pairs) == pytest.approx(3 * min(pair.over_pictures.p for pair in pairs))


def test_a_net_and_itself_are_not_told_apart(make_run, compared):
    for seed in (1, 2, 3):
        for model in ("fcn8s", "fcn32s"):
            make_run(f"{model}{seed}", toy_matrices(0.7, seed=seed), model=model, seed=seed)
    (pair,) = compared().pairs
    assert pair.over_pictures == (0, 0, 0, 1) and pair.verdict == "not told apart" and not pair.apart
    assert pair.over_seeds == (0, 0, 0, 1) and pair.better is None


@pytest.mark.parametrize(
    ("seeds", "verdict", "said", "note"),
    [
        ((1,), "better as trained", "one seed: nothing is known of other trainings", "Each group has one seed"),
        ((1, 2), "better as trained", "two seeds: shown, too few to judge", "one or two seeds"),
        ((1, 2, 3), "better", "3 seeds: holds", None),
    ],
)
def test_few_seeds(make_run, compared, seeds, verdict, said, note):
    for seed in seeds:
        for model, quality in {"fcn8s": 0.9, "fcn32s": 0.5}.items():
            make_run(f"{model}{seed}", toy_matrices(quality + seed / 100, seed=seed), model=model, seed=seed)
    found = compared()
    (pair,) = found.pairs
    assert pair.verdict == verdict and said in pair.of_trainings and (pair.over_seeds is None) == (len(seeds) < 3)
    assert list(pair.seed_differences) == list(seeds)
    assert bool(found.notes) == bool(note) and all(note in text for text in found.notes)


def test_seeds_that_disagree_leave_it_open(make_run, compared):
    """Far apart on every picture, but one seed of three is a failure of the better one."""
    for model, qualities in {"fcn8s": (0.95, 0.95, 0.4), "fcn32s": (0.5, 0.5, 0.5)}.items():
        for seed, quality in enumerate(qualities, start=1):
            make_run(f"{model}{seed}", toy_matrices(quality, seed=seed), model=model, seed=seed)
    (pair,) = compared().pairs
    assert pair.sure_of_pictures and pair.verdict == "ahead, not surely" and pair.better is None
    assert pair.of_trainings == "3 seeds: another training could turn it"


def test_no_seed_in_common(make_run, compared):
    make_run("a", toy_matrices(0.9), model="fcn8s", seed=1)
    make_run("b", toy_matrices(0.5), model="fcn32s", seed=2)
    (pair,) = compared().pairs
    assert pair.seed_differences == {} and "no seed in common" in pair.of_trainings


def many(make_run, count: int) -> None:
    for place in range(count):
        make_run(str(place), toy_matrices(0.4 + 0.05 * place), settings={"optim.lr": place / 10})


def test_many_groups_are_compared_with_the_first(make_run, compared):
    many(make_run, 6)
    found = compared()
    assert found.baseline.name == "optim.lr=0.0" and len(found.pairs) == 5
    assert all(pair.other is found.baseline for pair in found.pairs) and "baseline=NAME" in found.notes[0]


def test_a_baseline_is_chosen(make_run, compared):
    many(make_run, 3)
    found = compared(baseline="0.1")
    assert {pair.one.name for pair in found.pairs} == {"optim.lr=0.0", "optim.lr=0.2"} and not found.notes[1:]
    worse = next(pair for pair in found.pairs if pair.one.name == "optim.lr=0.0")
    assert worse.over_pictures.value < 0 and worse.verdict == "worse as trained" and worse.better is found.baseline
    with pytest.raises(UserError, match=r"baseline=0\.7 is no group"):
        compared(baseline="0.7")


def test_nothing_to_compare(make_run, compared):
    with pytest.raises(UserError, match="no finished run"):
        compare([])
    make_run("a")
    found = compared()
    assert names(found) == ["all runs"] and found.pairs == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"protocol": {"set": "toys test"}}, "its set is 'toys test', 'toys val' in"),
        ({"protocol": {"void": "counts as background"}}, "its void is 'counts as background'"),
        ({"protocol": {"absent_classes": "count 0"}}, "its absent classes is"),
        ({"protocol": {"resolution": "512x512"}}, "its resolution is '512x512'"),
        ({"protocol": {"padded_samples": 3}}, "its padded samples is '3'"),
        ({"classes": ("background", "cat", "dog", "horse")}, "they differ in cow, horse"),
        ({"classes": ("background", "dog", "cat", "cow")}, "their order differs"),
        ({"names": [f"other_{place}" for place in range(12)]}, "no picture in common"),
        ({"matrices": 2 * toy_matrices(0.7)}, "the labels of 12 of its pictures, such as picture_000, are others"),
    ],
)
def test_what_is_not_comparable_is_refused_by_name(make_run, compared, other, said):
    for seed in (1, 2):
        make_run(f"a{seed}", seed=seed)
    odd = make_run("odd", model="fcn32s", **other)
    found = compared()
    assert names(found) == ["all runs"]
    (out,) = found.left_out
    assert out.folder == odd and out.reason.startswith("not comparable: ") and said in out.reason


def test_different_pictures_are_paired_on_the_common_ones(make_run, compared):
    """The second has pictures 4 to 15 in another order, of which the first lacks four."""
    one, other = toy_matrices(0.9, 16, seed=1), toy_matrices(0.6, 16, seed=2)
    order = np.random.default_rng(0).permutation(np.arange(4, 16))
    listed = [f"picture_{place:03}" for place in range(16)]
    make_run("a", one[:12], model="fcn8s", names=listed[:12])
    make_run("b", other[order], model="fcn32s", names=[listed[place] for place in order])
    found = compared()
    (pair,) = found.pairs
    common = slice(4, 12)
    expected = scores(one[common].sum(axis=0)).miou - scores(other[common].sum(axis=0)).miou
    assert pair.pictures == 8 and pair.over_pictures.value == pytest.approx(expected, rel=1e-12)
    assert list(pair.seed_differences.values()) == pytest.approx([expected])
    assert "different pictures" in found.notes[0] and {name for name, *_ in pair.apart} <= set(listed[common])
    single = compare(read_runs([pair.one.runs[0].folder])[0]).groups[0].mean()
    assert pair.one.mean() == single, "each group's own score stays that of its record"


def test_two_groups_of_runs_without_a_common_picture_are_not_compared(make_run, compared):
    """Both share pictures with the usual run, not with each other."""
    matrices, listed = toy_matrices(0.7, 12), [f"picture_{place:03}" for place in range(12)]
    for seed in (1, 2):
        make_run(f"usual{seed}", matrices, seed=seed)
    make_run("x", matrices[:6], model="fcn16s", names=listed[:6])
    make_run("y", matrices[6:], model="fcn32s", names=listed[6:])
    found = compared()
    assert len(found.pairs) == 2 and any("no picture in common" in note for note in found.notes)


def test_other_precision_and_refinement_are_said_and_compared(make_run, compared):
    make_run("a", toy_matrices(0.9))
    make_run("b", toy_matrices(0.7), model="fcn32s", protocol={"precision": "bf16-mixed"})
    found = compared()
    assert len(found.pairs) == 1 and any("precision: 32-true, bf16-mixed" in note for note in found.notes)


def test_pictures_on_which_they_differ_most(make_run, compared):
    one = toy_matrices(0.7, 30, seed=1)
    other = one.copy()
    for picture, gain in ((5, 1), (17, -1)):  # all right on one, all wrong on the other
        truth = one[picture].sum(axis=1)
        one[picture] = np.diag(truth)
        other[picture] = np.roll(np.diag(truth), 1, axis=1)
        if gain < 0:
            one[picture], other[picture] = other[picture].copy(), one[picture].copy()
    make_run("a", one, model="fcn8s")
    make_run("b", other, model="fcn32s")
    (pair,) = compared(baseline="fcn32s").pairs
    assert pair.apart == [("picture_005", 1, 0), ("picture_017", 0, 1)]
    assert len(pair.apart) <= MOST_PICTURES


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
    """Of 1,449 pictures and 21 classes each, against a baseline, from the folders to the files.

    In seconds of one processor, so that what else the machine does is not counted.
    """
    from fcnlab.results.page import write_page
    from fcnlab.results.tables import markdown, terminal, write_csv

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
