"""What is one group, and what it is called."""

import pytest

from fcnlab.comparison.grouping import GroupingRules, find_group, group_runs, groups_split_by_one_setting, merged_values
from fcnlab.comparison.runs import read_runs
from fcnlab.errors import UserError
from run_folders import toy_matrices, trained


@pytest.fixture
def groups(make_run, tmp_path):
    """Make runs from (model, seed, settings, options); give their groups."""

    def make(*runs, **kwargs):
        for place, (model, seed, settings, *options) in enumerate(runs):
            make_run(
                str(place), model=model, seed=seed, settings=settings, options=options[0] if options else None, **kwargs
            )
        return group_runs(read_runs([tmp_path / "runs"])[0])

    return make


def named(found) -> dict[str, tuple]:
    return {one.name: one.seeds for one in found[0]}


def test_seeds_are_one_group(groups):
    found = groups(("fcn8s", 2, {}), ("fcn32s", 1, {}), ("fcn8s", 1, {}), ("fcn32s", 2, {}))
    assert named(found) == {"model=fcn8s": (1, 2), "model=fcn32s": (1, 2)}


def test_one_group(groups):
    assert named(groups(("fcn8s", 1, {}), ("fcn8s", 2, {}))) == {"all runs": (1, 2)}


def test_settings_and_options(groups):
    found = groups(*[(model, 1, {"optim.lr": lr}) for model in ("fcn32s", "fcn8s") for lr in (0.1, 0.01)])
    assert list(named(found)) == [f"model={model} optim.lr={lr}" for model in ("fcn32s", "fcn8s") for lr in (0.1, 0.01)]


def test_an_option_stands_for_its_values_and_a_setting_inside_it_for_itself(groups):
    """optim=sgd brings momentum and another rate along; lr was swept on top of both."""
    sgd, adam = {"optim.momentum": 0.9, "optim._target_": "fcnlab.training.optimizers.sgd"}, {}
    runs = [
        ("fcn8s", 1, chosen | {"optim.lr": lr}, {"optim": name})
        for name, chosen in {"sgd": sgd, "adamw": adam}.items()
        for lr in (0.1, 0.01)
    ]
    assert list(named(groups(*runs))) == [
        f"optim={name} optim.lr={lr}" for name in ("sgd", "adamw") for lr in (0.1, 0.01)
    ]


def test_an_experiment_stands_for_its_options(groups):
    runs = [
        (model, 1, {"optim.lr": lr}, {"experiment": f"paper/{model}"})
        for model, lr in {"fcn32s": 0.1, "fcn8s": 0.2}.items()
    ]
    assert list(named(groups(*runs))) == ["experiment=paper/fcn32s", "experiment=paper/fcn8s"]


def test_settings_that_go_together_are_both_named(groups):
    found = groups(
        ("fcn8s", 1, {"optim.lr": 1, "augment.flip": True}), ("fcn8s", 1, {"optim.lr": 2, "augment.flip": False})
    )
    assert list(named(found)) == ["augment.flip=true optim.lr=1", "augment.flip=false optim.lr=2"]


def test_another_folder_may_hold_another_set(groups):
    found = groups(("fcn8s", 1, {"data.root": "clean"}), ("fcn8s", 1, {"data.root": "noisy"}))
    assert named(found) == {"data.root=clean": (1,), "data.root=noisy": (1,)} and not found[1]


def test_what_only_some_runs_have(groups):
    found = groups(("fcn8s", 1, {}), ("fcn8s", 1, {"model.new": [1, None]}))
    assert list(named(found)) == ["all runs", "model.new=[1,null]"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0, 0.0),
        (1, 1.0),
        (0.3, 0.1 + 0.2),
        (1e-3, 0.001),
        ([0.5, 2], [0.5, 2.0]),
        ([0.3, None], [0.1 + 0.2, None]),
    ],
)
def test_equal_settings_are_one_group(groups, one, other):
    assert named(groups(("fcn8s", 1, {"optim.x": one}), ("fcn8s", 2, {"optim.x": other}))) == {"all runs": (1, 2)}


def test_null_is_as_a_key_that_an_older_record_lacks(groups):
    found = groups(("fcn8s", 1, {"optim.new": None}), ("fcn8s", 2, {}), ("fcn8s", 1, {"optim.new": 0.1 + 0.2}))
    assert named(found) == {"optim.new=null": (1, 2), "optim.new=0.3": (1,)}


@pytest.mark.parametrize(("one", "other"), [(0, False), (1, True), (0.3, 0.300001), (None, 0), (None, "")])
def test_other_settings_are_others(groups, one, other):
    assert len(groups(("fcn8s", 1, {"optim.x": one}), ("fcn8s", 2, {"optim.x": other}))[0]) == 2


def test_data_beside_one_run_are_those_of_another(make_run, tmp_path):
    for place, name in enumerate(("a", "deep/b")):
        make_run(
            name, seed=place, settings={"data.root": f"{tmp_path}/runs/data", "model.weights": f"{tmp_path}/runs/w.pth"}
        )
    assert named(group_runs(read(tmp_path))) == {"all runs": (0, 1)}


def test_one_setting_that_keeps_seeds_apart_is_named(groups):
    found, _ = groups(("fcn8s", 1, {"data.root": "/a"}), ("fcn8s", 2, {"data.root": "/b"}), ("fcn32s", 3, {}))
    assert [(key, *(one.seeds for one in pair)) for key, *pair in groups_split_by_one_setting(found)] == [
        ("data.root", (1,), (2,))
    ]


def test_what_is_another_group_on_purpose_is_not_named(groups):
    assert not list(
        groups_split_by_one_setting(groups(("fcn8s", 1, {}), ("fcn32s", 2, {}), ("fcn8s", 1, {"optim.lr": 1}))[0])
    )


def test_a_run_that_was_done_again_counts_once(groups, tmp_path):
    (found,), repeats = groups(("fcn8s", 1, {}), ("fcn8s", 1, {}), ("fcn8s", 2, {}))
    assert found.seeds == (1, 2) and found.runs[0].folder == tmp_path / "runs" / "1"
    (out,) = repeats
    assert (
        out.folder == tmp_path / "runs" / "0"
        and "repeated with the same settings" in out.reason
        and "runs/1" in out.reason
    )


def test_means_and_spreads_are_over_seeds(groups):
    import numpy as np

    (found,), _ = groups(("fcn8s", 1, {}), ("fcn8s", 2, {}), ("fcn8s", 3, {}))
    mious = [run.scores.miou for run in found.runs]
    assert found.mean("miou") == pytest.approx(sum(mious) / 3) and found.cost("minutes") == pytest.approx(12)
    assert found.spread("miou") == pytest.approx(np.std(mious, ddof=1)) and found.cost("unknown") is None
    np.testing.assert_allclose(found.iou(), np.mean([run.scores.iou for run in found.runs], axis=0))


@pytest.mark.parametrize("wanted", ["model=fcn8s optim.lr=0.1", "fcn8s 0.1", "optim.lr=0.1 model=fcn8s"])
def test_a_group_is_chosen_by_words_that_no_other_has(groups, wanted):
    found, _ = groups(*[(model, 1, {"optim.lr": lr}) for model in ("fcn32s", "fcn8s") for lr in (0.1, 0.01)])
    assert find_group(found, wanted).name == "model=fcn8s optim.lr=0.1"


@pytest.mark.parametrize(
    ("wanted", "message"), [("fcn8s", "matches 2 groups"), ("fcn9s", "matches no group"), (" ", "matches no group")]
)
def test_words_that_choose_none_or_several(groups, wanted, message):
    found, _ = groups(*[(model, 1, {"optim.lr": lr}) for model in ("fcn32s", "fcn8s") for lr in (0.1, 0.01)])
    with pytest.raises(UserError, match=f"{message}; the groups are 'model=fcn32s optim.lr=0.1'"):
        find_group(found, wanted)


def read(tmp_path) -> list:
    return read_runs([tmp_path / "runs"])[0]


def evaluated(make_run, name: str, training, **kwargs) -> None:
    """By ``fcnlab eval checkpoint=... data=toys``, whose own batch and crop are the defaults."""
    settings = {"checkpoint": f"{training}/checkpoints/best.ckpt", "inference._target_": "fcnlab.inference.whole"}
    settings |= {"data.batch_size": 8, "data.crop_size": 128} | kwargs.pop("settings", {})
    options = {"inference": "whole", "postprocess": "none", "model": None}
    folder = make_run(name, verb="eval", settings=settings, options=options, trained=trained(training), **kwargs)
    (folder / "metrics.csv").unlink()


def test_trainings_that_differ_in_their_data_stay_apart_where_they_are_scored_alike(make_run, tmp_path):
    for seed, (batch, crop) in enumerate([(4, 96), (16, 96), (8, 64)], start=1):
        settings = {"data.batch_size": batch, "data.crop_size": crop}
        training = make_run(f"train/{batch}", seed=seed, settings=settings)
        evaluated(make_run, f"eval/{batch}", training)
    found, repeats = group_runs([run for run in read(tmp_path) if run.folder.parent.name == "eval"])
    assert {one.name: one.seeds for one in found} == {
        "data.batch_size=4 data.crop_size=96": (1,),
        "data.batch_size=16 data.crop_size=96": (2,),
        "data.batch_size=8 data.crop_size=64": (3,),
    }
    assert not repeats


def test_one_training_scored_on_two_roots(make_run, tmp_path):
    training = make_run("train", settings={"data.root": "clean"})
    evaluated(make_run, "eval", training, settings={"data.root": "noisy"})
    assert list(named(group_runs(read(tmp_path)))) == ["scoring.data.root=noisy", "scoring.data.root=clean"]


def test_the_larger_record_counts(make_run, tmp_path):
    """An evaluation of 48 images before the training's own record of 36, whose curves and minutes it has."""
    training = make_run("train", toy_matrices(0.7, 36))
    evaluated(make_run, "eval", training, matrices=toy_matrices(0.7, 48))
    evaluated(make_run, "small", training, matrices=toy_matrices(0.7, 20))
    (found,), repeats = group_runs(read(tmp_path))
    (run,) = found.runs
    assert run.folder == tmp_path / "runs" / "eval" and len(run.names) == 48
    assert set(run.curves) == {"val/miou", "train/loss"} and run.cost["minutes"] == 11
    reasons = {out.folder.name: out.reason for out in repeats}
    assert set(reasons) == {"small", "train"} and all("runs/eval" in reason for reason in reasons.values())
    assert "36 instead of 48" in reasons["train"] and "the larger record is used" in reasons["small"]


def test_other_code_is_another_group(make_run, tmp_path):
    """Also beside a record that tells of none; a run's name shows it only where nothing else does."""
    for name, source in {"a": "aaa", "b": "bbb", "c": None}.items():
        make_run(name, source=source)
    make_run("d", source="bbb", model="fcn32s")
    found = group_runs(read(tmp_path))
    wanted = [f"model={model} source.fcnlab={code}" for model, code in (("fcn8s", "aaa"), ("fcn8s", "bbb"))]
    assert list(named(found)) == [*wanted, "model=fcn8s source.fcnlab=unknown", "model=fcn32s source.fcnlab=bbb"]


def test_runs_are_merged_over_a_setting_on_request(make_run, tmp_path):
    for seed, source in ((1, "aaa"), (2, "bbb")):
        make_run(str(seed), seed=seed, source=source)
    assert len(group_runs(read(tmp_path))[0]) == 2
    found = group_runs(read(tmp_path), GroupingRules(merge_over=("source",)))
    assert named(found) == {"all runs": (1, 2)}
    merged = merged_values(read(tmp_path), ("source",))
    assert merged["source.fcnlab"] == ["aaa", "bbb"] and set(merged) == {"source.fcnlab", "scoring.source.fcnlab"}
    with pytest.raises(
        UserError, match=r"merge_over=sorce is not a setting in which these runs differ; they differ in 's"
    ):
        merged_values(read(tmp_path), ("sorce",))


def test_runs_are_split_by_their_environment_on_request(make_run, tmp_path):
    for place, torch in enumerate(("2.9.0", "2.10.0", "2.10.0")):
        make_run(str(place), seed=place, torch=torch)
    assert named(group_runs(read(tmp_path))) == {"all runs": (0, 1, 2)}
    split = group_runs(read(tmp_path), GroupingRules(split_by=("torch",)))
    assert named(split) == {"torch=2.9.0": (0,), "torch=2.10.0": (1, 2)}
