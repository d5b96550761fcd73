"""Which runs form a group, and the names of groups."""

from dataclasses import replace

import pytest

from fcnlab.comparison.grouping import GroupingRules, find_group, group_runs, groups_split_by_one_setting, merged_values
from fcnlab.comparison.runs import read_runs
from fcnlab.errors import UserError
from run_folders import toy_matrices, trained


@pytest.fixture
def groups(make_run, tmp_path):
    """Write runs from (model, seed, settings, options); return their groups."""

    def make(*runs, **kwargs):
        for place, (model, seed, settings, *options) in enumerate(runs):
            make_run(
                str(place), model=model, seed=seed, settings=settings, options=options[0] if options else None, **kwargs
            )
        return group_runs(read_runs([tmp_path / "runs"])[0])

    return make


def seeds_by_name(grouping) -> dict[str, tuple]:
    return {group.name: group.seeds for group in grouping[0]}


def test_runs_that_differ_in_the_seed_are_one_group(groups):
    grouping = groups(("fcn8s", 2, {}), ("fcn32s", 1, {}), ("fcn8s", 1, {}), ("fcn32s", 2, {}))
    assert seeds_by_name(grouping) == {"model=fcn8s": (1, 2), "model=fcn32s": (1, 2)}


def test_a_single_group_is_named_all_runs(groups):
    assert seeds_by_name(groups(("fcn8s", 1, {}), ("fcn8s", 2, {}))) == {"all runs": (1, 2)}


def test_group_names_contain_options_and_settings(groups):
    grouping = groups(*[(model, 1, {"optim.lr": lr}) for model in ("fcn32s", "fcn8s") for lr in (0.1, 0.01)])
    assert list(seeds_by_name(grouping)) == [
        f"model={model} optim.lr={lr}" for model in ("fcn32s", "fcn8s") for lr in (0.1, 0.01)
    ]


def test_an_option_replaces_its_values_except_swept_settings(groups):
    """optim=sgd sets momentum and another learning rate; lr was swept for both."""
    sgd, adam = {"optim.momentum": 0.9, "optim._target_": "fcnlab.training.optimizers.sgd"}, {}
    runs = [
        ("fcn8s", 1, chosen | {"optim.lr": lr}, {"optim": name})
        for name, chosen in {"sgd": sgd, "adamw": adam}.items()
        for lr in (0.1, 0.01)
    ]
    assert list(seeds_by_name(groups(*runs))) == [
        f"optim={name} optim.lr={lr}" for name in ("sgd", "adamw") for lr in (0.1, 0.01)
    ]


def test_an_experiment_replaces_its_options(groups):
    runs = [
        (model, 1, {"optim.lr": lr}, {"experiment": f"paper/{model}"})
        for model, lr in {"fcn32s": 0.1, "fcn8s": 0.2}.items()
    ]
    assert list(seeds_by_name(groups(*runs))) == ["experiment=paper/fcn32s", "experiment=paper/fcn8s"]


def test_settings_that_change_together_are_both_named(groups):
    grouping = groups(
        ("fcn8s", 1, {"optim.lr": 1, "augment.flip": True}), ("fcn8s", 1, {"optim.lr": 2, "augment.flip": False})
    )
    assert list(seeds_by_name(grouping)) == ["augment.flip=true optim.lr=1", "augment.flip=false optim.lr=2"]


def test_another_data_root_is_another_group(groups):
    grouping = groups(("fcn8s", 1, {"data.root": "clean"}), ("fcn8s", 1, {"data.root": "noisy"}))
    assert seeds_by_name(grouping) == {"data.root=clean": (1,), "data.root=noisy": (1,)} and not grouping[1]


def test_a_setting_of_some_runs_only_is_named(groups):
    grouping = groups(("fcn8s", 1, {}), ("fcn8s", 1, {"model.new": [1, None]}))
    assert list(seeds_by_name(grouping)) == ["all runs", "model.new=[1,null]"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (0, 0.0),
        (1, 1.0),
        (0.3, 0.1 + 0.2),
        (1e-3, 0.001),
        ([0.5, 2], [0.5, 2.0]),
        ([0.3, None], [0.1 + 0.2, None]),
    ],
)
def test_equal_settings_are_one_group(groups, first, second):
    assert seeds_by_name(groups(("fcn8s", 1, {"optim.x": first}), ("fcn8s", 2, {"optim.x": second}))) == {
        "all runs": (1, 2)
    }


def test_null_equals_a_missing_key(groups):
    grouping = groups(("fcn8s", 1, {"optim.new": None}), ("fcn8s", 2, {}), ("fcn8s", 1, {"optim.new": 0.1 + 0.2}))
    assert seeds_by_name(grouping) == {"optim.new=null": (1, 2), "optim.new=0.3": (1,)}


@pytest.mark.parametrize(("first", "second"), [(0, False), (1, True), (0.3, 0.300001), (None, 0), (None, "")])
def test_different_settings_are_different_groups(groups, first, second):
    assert len(groups(("fcn8s", 1, {"optim.x": first}), ("fcn8s", 2, {"optim.x": second}))[0]) == 2


def test_paths_of_the_same_files_are_equal_for_all_run_folders(make_run, tmp_path):
    for place, name in enumerate(("a", "deep/b")):
        make_run(
            name, seed=place, settings={"data.root": f"{tmp_path}/runs/data", "model.weights": f"{tmp_path}/runs/w.pth"}
        )
    assert seeds_by_name(group_runs(read(tmp_path))) == {"all runs": (0, 1)}


def test_a_single_setting_that_splits_seeds_is_named(groups):
    found_groups, _ = groups(("fcn8s", 1, {"data.root": "/a"}), ("fcn8s", 2, {"data.root": "/b"}), ("fcn32s", 3, {}))
    assert [(key, *(group.seeds for group in pair)) for key, *pair in groups_split_by_one_setting(found_groups)] == [
        ("data.root", (1,), (2,))
    ]


def test_intended_groups_are_not_reported_as_split(groups):
    assert not list(
        groups_split_by_one_setting(groups(("fcn8s", 1, {}), ("fcn32s", 2, {}), ("fcn8s", 1, {"optim.lr": 1}))[0])
    )


def test_a_repeated_run_counts_once(groups, tmp_path):
    (group,), repeats = groups(("fcn8s", 1, {}), ("fcn8s", 1, {}), ("fcn8s", 2, {}))
    assert group.seeds == (1, 2) and group.runs[0].folder == tmp_path / "runs" / "1"
    (out,) = repeats
    assert (
        out.folder == tmp_path / "runs" / "0"
        and "repeated with the same settings" in out.reason
        and "runs/1" in out.reason
    )


def test_means_and_deviations_are_over_seeds(groups):
    import numpy as np

    (group,), _ = groups(("fcn8s", 1, {}), ("fcn8s", 2, {}), ("fcn8s", 3, {}))
    mious = [run.scores.miou for run in group.runs]
    assert group.mean("miou") == pytest.approx(sum(mious) / 3) and group.cost("minutes") == pytest.approx(12)
    assert group.spread("miou") == pytest.approx(np.std(mious, ddof=1)) and group.cost("unknown") is None
    np.testing.assert_allclose(group.iou(), np.mean([run.scores.iou for run in group.runs], axis=0))


@pytest.mark.parametrize("query", ["model=fcn8s optim.lr=0.1", "fcn8s 0.1", "optim.lr=0.1 model=fcn8s"])
def test_a_group_is_chosen_by_words_unique_to_it(groups, query):
    found_groups, _ = groups(*[(model, 1, {"optim.lr": lr}) for model in ("fcn32s", "fcn8s") for lr in (0.1, 0.01)])
    assert find_group(found_groups, query).name == "model=fcn8s optim.lr=0.1"


@pytest.mark.parametrize(
    ("query", "message"), [("fcn8s", "matches 2 groups"), ("fcn9s", "matches no group"), (" ", "matches no group")]
)
def test_words_that_match_no_or_several_groups_are_an_error(groups, query, message):
    found_groups, _ = groups(*[(model, 1, {"optim.lr": lr}) for model in ("fcn32s", "fcn8s") for lr in (0.1, 0.01)])
    with pytest.raises(UserError, match=f"{message}; the groups are 'model=fcn32s optim.lr=0.1'"):
        find_group(found_groups, query)


def read(tmp_path) -> list:
    return read_runs([tmp_path / "runs"])[0]


def evaluated(make_run, name: str, train_run, **kwargs) -> None:
    """Write an evaluation by ``fcnlab eval checkpoint=... data=toys``, with default batch and crop size."""
    settings = {"checkpoint": f"{train_run}/checkpoints/best.ckpt", "inference._target_": "fcnlab.inference.whole"}
    settings |= {"data.batch_size": 8, "data.crop_size": 128} | kwargs.pop("settings", {})
    options = {"inference": "whole", "postprocess": "none", "model": None}
    folder = make_run(name, verb="eval", settings=settings, options=options, trained=trained(train_run), **kwargs)
    (folder / "metrics.csv").unlink()


def test_evaluations_are_grouped_by_the_settings_of_training(make_run, tmp_path):
    for seed, (batch, crop) in enumerate([(4, 96), (16, 96), (8, 64)], start=1):
        settings = {"data.batch_size": batch, "data.crop_size": crop}
        train_run = make_run(f"train/{batch}", seed=seed, settings=settings)
        evaluated(make_run, f"eval/{batch}", train_run)
    found_groups, repeats = group_runs([run for run in read(tmp_path) if run.folder.parent.name == "eval"])
    assert {group.name: group.seeds for group in found_groups} == {
        "data.batch_size=4 data.crop_size=96": (1,),
        "data.batch_size=16 data.crop_size=96": (2,),
        "data.batch_size=8 data.crop_size=64": (3,),
    }
    assert not repeats


def test_one_training_run_evaluated_on_two_roots(make_run, tmp_path):
    train_run = make_run("train", settings={"data.root": "clean"})
    evaluated(make_run, "eval", train_run, settings={"data.root": "noisy"})
    assert list(seeds_by_name(group_runs(read(tmp_path)))) == ["scoring.data.root=noisy", "scoring.data.root=clean"]


def test_the_evaluation_with_more_images_counts(make_run, tmp_path):
    """An evaluation of 48 images replaces the training run's record of 36, and gets its curves and minutes."""
    train_run = make_run("train", toy_matrices(0.7, 36))
    evaluated(make_run, "eval", train_run, matrices=toy_matrices(0.7, 48))
    evaluated(make_run, "small", train_run, matrices=toy_matrices(0.7, 20))
    (group,), repeats = group_runs(read(tmp_path))
    (run,) = group.runs
    assert run.folder == tmp_path / "runs" / "eval" and len(run.names) == 48
    assert set(run.curves) == {"val/miou", "train/loss"} and run.cost["minutes"] == 11
    reasons = {out.folder.name: out.reason for out in repeats}
    assert set(reasons) == {"small", "train"} and all("runs/eval" in reason for reason in reasons.values())
    assert "36 instead of 48" in reasons["train"] and "the larger record is used" in reasons["small"]


def test_other_code_is_another_group(make_run, tmp_path):
    """This also holds next to a record without code; names contain the code if nothing else differs."""
    for name, source in {"a": "aaa", "b": "bbb", "c": None}.items():
        make_run(name, source=source)
    make_run("d", source="bbb", model="fcn32s")
    grouping = group_runs(read(tmp_path))
    expected = [f"model={model} source.fcnlab={code}" for model, code in (("fcn8s", "aaa"), ("fcn8s", "bbb"))]
    assert list(seeds_by_name(grouping)) == [
        *expected,
        "model=fcn8s source.fcnlab=unknown",
        "model=fcn32s source.fcnlab=bbb",
    ]


def test_runs_are_merged_over_a_setting_on_request(make_run, tmp_path):
    for seed, source in ((1, "aaa"), (2, "bbb")):
        make_run(str(seed), seed=seed, source=source)
    assert len(group_runs(read(tmp_path))[0]) == 2
    grouping = group_runs(read(tmp_path), GroupingRules(merge_over=("source",)))
    assert seeds_by_name(grouping) == {"all runs": (1, 2)}
    merged = merged_values(read(tmp_path), ("source",))
    assert merged["source.fcnlab"] == ["aaa", "bbb"] and set(merged) == {"source.fcnlab", "scoring.source.fcnlab"}
    with pytest.raises(
        UserError, match=r"merge_over=sorce is not a setting in which these runs differ; they differ in 's"
    ):
        merged_values(read(tmp_path), ("sorce",))


def test_runs_are_split_by_their_environment_on_request(make_run, tmp_path):
    for place, torch in enumerate(("2.9.0", "2.10.0", "2.10.0")):
        make_run(str(place), seed=place, torch=torch)
    assert seeds_by_name(group_runs(read(tmp_path))) == {"all runs": (0, 1, 2)}
    split = group_runs(read(tmp_path), GroupingRules(split_by=("torch",)))
    assert seeds_by_name(split) == {"torch=2.9.0": (0,), "torch=2.10.0": (1, 2)}


@pytest.mark.parametrize(
    ("versions", "names"),
    [
        ({"unet": "1.0"}, ["model=fcn8s", "model=unet"]),  # the model names the package
        ({"unet": "1.0", "later": "2.0"}, ["model=fcn8s", "model=unet source.lib=1.0", "model=unet source.lib=2.0"]),
    ],
)
def test_the_version_of_a_package_that_some_groups_use(make_run, tmp_path, versions, names):
    make_run("fcn")
    for name in versions:
        make_run(name, model="unet")
    runs = [
        replace(run, settings=run.settings | {"source.lib": versions[run.folder.name]})
        if run.folder.name in versions
        else run
        for run in read_runs([tmp_path / "runs"])[0]
    ]
    assert sorted(group.name for group in group_runs(runs)[0]) == names
