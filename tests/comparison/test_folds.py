"""Cross-validation and ensembles in a comparison: folds are pooled for each seed, and an ensemble has no seed."""

import json

import numpy as np
import pytest

from fcnlab.comparison.comparison import compare
from fcnlab.comparison.folds import pool_folds
from fcnlab.comparison.grouping import GroupingRules
from fcnlab.comparison.runs import read_runs
from run_folders import toy_matrices, trained

SET = "toys train, cross-validation"
COUNT = 60
FOLDS = np.arange(COUNT) % 3


def fold_of(make_run, name: str, matrices, number: int, seed: int = 1, model: str = "fcn8s", **more):
    """Write the run that held out a fold; the images of training and validation differ by fold."""
    chosen = np.flatnonzero(number == FOLDS)
    images = {split: {"count": 1, "names": f"{split} {number}"} for split in ("train", "val")}
    folder = make_run(
        name,
        matrices[chosen],
        model=model,
        seed=seed,
        names=[f"image_{index:03}" for index in chosen],
        settings={"data.folds": 3, "data.fold": number, "data.train_list": "train"} | more.pop("settings", {}),
        protocol={"set": SET, "images": len(chosen), "of": COUNT, "folds": 3, "fold": number}
        | more.pop("protocol", {}),
        **more,
    )
    path = folder / "run.json"
    if path.is_file():
        facts = json.loads(path.read_text())
        path.write_text(json.dumps(facts | {"images": images | {"folds": {"count": COUNT, "names": "all"}}}))
    return folder


def miou_by_hand(matrix) -> float:
    """Return the mean over classes of intersection / union."""
    intersection = np.diag(matrix)
    return float(np.mean(intersection / (matrix.sum(axis=0) + matrix.sum(axis=1) - intersection)))


def cross_validated(make_run, folds=(0, 1, 2)) -> dict[tuple[str, int], np.ndarray]:
    """Write two models with two seeds each; return all matrices of each."""
    matrices = {}
    for model, quality in {"fcn32s": 0.6, "fcn8s": 0.8}.items():
        for seed in (1, 2):
            every = matrices[model, seed] = toy_matrices(quality, COUNT, seed=10 * seed + len(model))
            for number in range(3) if (model, seed) != ("fcn8s", 2) else folds:
                fold_of(make_run, f"{model}-{seed}-{number}", every, number, seed, model)
    return matrices


def compared(tmp_path, **rules):
    runs, left_out = read_runs([tmp_path / "runs"])
    assert not left_out
    return compare(runs, rules=GroupingRules(**rules))


def test_the_folds_of_a_seed_are_one_record(make_run, tmp_path):
    matrices = cross_validated(make_run)
    comparison = compared(tmp_path)
    assert [group.name for group in comparison.groups] == ["model=fcn8s", "model=fcn32s"]
    assert comparison.scope == f"{SET}, {COUNT} images" and not comparison.left_out
    for group in comparison.groups:
        model = group.name.removeprefix("model=")
        assert group.seeds == (1, 2)  # a fold is no seed
        expected = [miou_by_hand(matrices[model, seed].sum(axis=0)) for seed in (1, 2)]
        assert group.values("miou").tolist() == pytest.approx(expected)
    assert sum("cross-validated (3 folds)" in note for note in comparison.notes) == 1
    assert not any("lacks" in note for note in comparison.notes)


def test_a_missing_fold_is_reported_and_its_images_are_left_out(make_run, tmp_path):
    matrices = cross_validated(make_run, folds=(0, 2))
    comparison = compared(tmp_path)
    assert comparison.scope == f"{SET}, 40 of {COUNT} images"
    (note,) = (note for note in comparison.notes if "lacks" in note)
    assert "(seed 2) lacks 1 of 3 folds: 1." in note
    best = comparison.groups[0]
    expected = [miou_by_hand(matrices["fcn8s", seed][FOLDS != 1].sum(axis=0)) for seed in (1, 2)]
    assert best.values("miou").tolist() == pytest.approx(expected)


def test_repeated_folds_count_once_and_folds_of_other_code_are_pooled_on_request_only(make_run, tmp_path):
    matrices = toy_matrices(0.7, COUNT)
    for number, source in ((0, "a"), (1, "a"), (2, "b")):
        fold_of(make_run, str(number), matrices, number, source=source * 16)
    fold_of(make_run, "again", matrices, 1, source="a" * 16)
    comparison = compared(tmp_path)
    assert comparison.images == 40
    repeated, other_code = (out.reason for out in comparison.left_out)
    assert repeated.startswith("repeated with the same settings and seed")
    assert other_code.startswith("not comparable: it has no image in common")
    assert compared(tmp_path, merge_over=("source",)).images == COUNT


def test_folds_of_different_settings_are_not_mixed_by_merge_over(make_run, tmp_path):
    """Two whole cross-validations of one seed: either of them is used, not the later run of each fold."""
    matrices = {rate: toy_matrices(0.5 + rate, COUNT, seed=int(100 * rate)) for rate in (0.1, 0.3)}
    for number in range(3):
        for rate, every in matrices.items():
            folder = fold_of(make_run, f"{rate}-{number}", every, number, settings={"optim.lr": rate})
            day = 10 + (number if rate == 0.1 else 1)  # in turns the later one of its fold
            facts = json.loads((folder / "run.json").read_text()) | {"ended": f"2026-11-{day}T00:00:00+00:00"}
            (folder / "run.json").write_text(json.dumps(facts))
    assert [len(group.runs) for group in compared(tmp_path).groups] == [1, 1]
    comparison = compared(tmp_path, merge_over=("optim.lr",))
    (group,), (out,) = comparison.groups, comparison.left_out
    assert "with which it is merged (optim.lr=" in out.reason and comparison.images == COUNT
    scores = [miou_by_hand(every.sum(axis=0)) for every in matrices.values()]
    assert any(group.values("miou")[0] == pytest.approx(score) for score in scores)


def test_a_fold_that_was_scored_by_a_run_that_trained_on_it_is_excluded(make_run, tmp_path):
    matrices = toy_matrices(0.7, COUNT)
    for number in range(3):
        fold_of(make_run, str(number), matrices, number)
    fold_of(make_run, "leak", matrices, 1, settings={"data.fold": 0})
    comparison = compared(tmp_path)
    (out,) = comparison.left_out
    assert "fold 1 was scored by the run that held out fold 0, which has trained on these images" in out.reason
    assert comparison.images == COUNT


def test_initial_weights_of_another_fold_are_another_setting(make_run, tmp_path):
    """These weights have been trained on images that are held out."""
    matrices, names = toy_matrices(0.7, COUNT), []
    for number, source in ((0, "0"), (1, "1"), (2, "1")):
        folder = fold_of(make_run, str(number), matrices, number, settings={"model.weights": "best.ckpt"})
        facts = json.loads((folder / "run.json").read_text())
        weights = {"model.weights": {"name": "best.ckpt", "sha256": "1" * 64, "recipe": "aaaa", "fold": source}}
        (folder / "run.json").write_text(json.dumps(facts | {"weights": weights}))
        names.append(read_runs([folder])[0][0].settings["model.weights"])
    assert names == ["best.ckpt (aaaa)", "best.ckpt (aaaa)", "best.ckpt (aaaa, fold 1)"]


@pytest.mark.parametrize(("scored", "leaks"), [("train", True), ("other", False)])
def test_a_fold_that_was_scored_by_a_run_without_folds_is_excluded(make_run, tmp_path, scored, leaks):
    matrices = toy_matrices(0.7, COUNT)
    training = make_run("whole", settings={"data.train_list": "train"})
    for number in range(3):
        settings = {"checkpoint": f"{training}/checkpoints/best.ckpt", "inference": {}, "postprocess": {}}
        settings |= {"data.train_list": scored}
        fold_of(make_run, str(number), matrices, number, verb="eval", settings=settings, trained=trained(training))
    runs, _ = read_runs([tmp_path / "runs" / str(number) for number in range(3)])
    assert [run.fold.is_trained_on for run in runs] == 3 * [leaks]
    reasons = [out.reason for out in pool_folds(runs, GroupingRules()).excluded]
    expected = [
        f"fold {number} was scored by a run that has trained on these images: it held out no fold"
        for number in range(3)
    ]
    assert reasons == (expected if leaks else [])


def test_initial_weights_of_the_whole_list_are_named(make_run):
    names = []
    for number, trained_on in enumerate(("toys train", "toys other")):
        folder = fold_of(
            make_run, str(number), toy_matrices(0.7, COUNT), number, settings={"data.dataset._target_": "toys"}
        )
        facts = json.loads((folder / "run.json").read_text())
        file = {"name": "best.ckpt", "sha256": "1" * 64, "recipe": "aaaa", "fold": None, "trained_on": trained_on}
        (folder / "run.json").write_text(json.dumps(facts | {"weights": {"model.weights": file}}))
        names.append(read_runs([folder])[0][0].settings["model.weights"])
    assert names == ["best.ckpt (aaaa, trained on all folds)", "best.ckpt (aaaa)"]


def test_folds_that_were_scored_on_one_test_list_stay_apart(make_run, tmp_path):
    for number in range(3):
        settings = {"data.folds": 3, "data.fold": number, "data.test_list": "val"}
        make_run(str(number), toy_matrices(0.7, seed=number), settings=settings)
    comparison = compared(tmp_path)
    assert sorted(group.name for group in comparison.groups) == [f"data.fold={number}" for number in range(3)]


@pytest.mark.parametrize("fold", [-1, 3, "0", 1.5, True, None, [0]])
def test_a_record_with_an_impossible_fold_is_excluded(make_run, tmp_path, fold):
    fold_of(make_run, "a", toy_matrices(0.7, COUNT), 0, protocol={"fold": fold})
    runs, left_out = read_runs([tmp_path / "runs"])
    assert not runs and "its protocol contains an invalid fold" in left_out[0].reason


def ensemble_of(make_run, folders, name: str = "ensemble", quality: float = 0.9):
    networks = [
        {"trained": trained(folder), "weights": {"checkpoint": {"name": "best.ckpt", "sha256": f"{place:016}"}}}
        for place, folder in enumerate(folders)
    ]
    settings = {"checkpoint": [f"{folder}/checkpoints/best.ckpt" for folder in folders]}
    settings |= {"inference": {}, "postprocess": {}, "data": None}
    options = {"inference": "whole", "postprocess": "none", "data": None, "model": None, "optim": None}
    make_run(
        name,
        toy_matrices(quality),
        verb="eval",
        seed=5,
        settings=settings,
        options=options,
        typed=[],
        ensemble=networks,
    )


def test_an_ensemble_is_a_group_of_its_own_without_a_seed(make_run, tmp_path):
    folders = [make_run(str(seed), seed=seed) for seed in (1, 2, 3)]
    ensemble_of(make_run, folders)
    comparison = compared(tmp_path)
    assert [(group.name, group.seeds) for group in comparison.groups] == [
        ("ensemble=3", (None,)),
        ("ensemble=1", (1, 2, 3)),
    ]


def test_an_ensemble_has_the_settings_that_all_of_its_networks_share(make_run, tmp_path):
    """Also if the code was changed between their runs: its name must not lose the model."""
    for model in ("fcn8s", "fcn32s"):
        folders = [make_run(f"{model}{seed}", model=model, seed=seed, source=f"code{seed}") for seed in (1, 2, 3)]
        ensemble_of(make_run, folders, name=f"ensemble-{model}")
    assert {group.name for group in compared(tmp_path, merge_over=("source",)).groups} == {
        f"model={model} ensemble={count}" for model in ("fcn8s", "fcn32s") for count in (1, 3)
    }


def test_ensembles_of_other_checkpoints_are_other_groups(make_run, tmp_path):
    folders = [make_run(str(seed), seed=seed) for seed in (1, 2, 3)]
    ensemble_of(make_run, folders)
    ensemble_of(make_run, folders[:2], name="of-two")
    ensemble_of(make_run, [*folders[:2], make_run("other", seed=1, settings={"optim.lr": 0.1})], name="mixed")
    assert len(compared(tmp_path).groups) == 5
