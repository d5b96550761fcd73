"""What is one group, and what it is called."""

import pytest

from fcnlab.errors import UserError
from fcnlab.results.grouping import choose, group
from fcnlab.results.runs import read_runs


@pytest.fixture
def groups(make_run, tmp_path):
    """Make runs from (model, seed, settings, options); give their groups."""

    def make(*runs, **kwargs):
        for place, (model, seed, settings, *options) in enumerate(runs):
            make_run(
                str(place), model=model, seed=seed, settings=settings, options=options[0] if options else None, **kwargs
            )
        return group(read_runs([tmp_path / "runs"])[0])

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
    sgd, adam = {"optim.momentum": 0.9, "optim._target_": "fcnlab.optim.sgd"}, {}
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


def test_a_run_that_was_done_again_counts_once(groups, tmp_path):
    (found,), repeats = groups(("fcn8s", 1, {}), ("fcn8s", 1, {}), ("fcn8s", 2, {}))
    assert found.seeds == (1, 2) and found.runs[0].folder == tmp_path / "runs" / "1"
    (out,) = repeats
    assert out.folder == tmp_path / "runs" / "0" and "done again" in out.reason and "runs/1" in out.reason


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
    assert choose(found, wanted).name == "model=fcn8s optim.lr=0.1"


@pytest.mark.parametrize(
    ("wanted", "said"), [("fcn8s", "means 2 groups"), ("fcn9s", "is no group"), (" ", "is no group")]
)
def test_words_that_choose_none_or_several(groups, wanted, said):
    found, _ = groups(*[(model, 1, {"optim.lr": lr}) for model in ("fcn32s", "fcn8s") for lr in (0.1, 0.01)])
    with pytest.raises(UserError, match=f"{said}; there are: 'model=fcn32s optim.lr=0.1'"):
        choose(found, wanted)
