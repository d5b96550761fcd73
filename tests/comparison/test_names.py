"""Names of groups: paths are shortened, users choose names, and settings that all runs share are named once."""

import pytest

from fcnlab.comparison.comparison import compare
from fcnlab.comparison.grouping import Group
from fcnlab.comparison.names import common_settings, short_values, usual_settings
from fcnlab.comparison.page import page
from fcnlab.comparison.runs import read_runs
from fcnlab.comparison.terminal import common_lines, terminal
from fcnlab.errors import UserError
from run_folders import toy_matrices


@pytest.mark.parametrize(
    ("values", "short"),
    [
        (["/a/b/x.pth", "/a/c/y.pth"], ["x.pth", "y.pth"]),
        (["/a/b/x.pth", "/a/c/x.pth"], ["b/x.pth", "c/x.pth"]),
        (["/a/b/x.pth", "x.pth"], ["b/x.pth", "x.pth"]),
        (["/a/x", "/b/a/x"], ["/a/x", "b/a/x"]),
        (["/data/", "0.1"], ["data/", "0.1"]),
        (["[/a/b,/a/c]", "null"], ["[/a/b,/a/c]", "null"]),
    ],
)
def test_paths_become_base_names(values, short):
    assert list(short_values("data.root", values).values()) == short


def test_options_keep_their_names():
    """An experiment of a subfolder is a name that is typed as it is."""
    assert short_values("experiment", ["paper/fcn8s"]) == {"paper/fcn8s": "paper/fcn8s"}


@pytest.fixture
def compared(make_run, tmp_path):
    for place, model in enumerate(("fcn32s", "fcn16s", "fcn8s")):
        settings = {"data.root": f"/long/path/{model}/voc", "model.weights": f"/long/{model}.pth", "trainer.x": 7}
        make_run(model, toy_matrices(0.5 + place / 10), model=model, settings=settings)
    return lambda **kwargs: compare(read_runs([tmp_path / "runs"])[0], **{"resamples": 100, **kwargs})


def test_a_user_names_groups_and_the_baseline(compared):
    comparison = compared(names={"fcn8s": "FCN-8s", "model=fcn32s": "FCN-32s"}, baseline="FCN-32s")
    assert [group.name for group in comparison.groups][::2] == ["FCN-8s", "FCN-32s"]
    assert comparison.groups[1].name.startswith("model=fcn16s") and "/long" not in comparison.groups[1].name
    assert comparison.baseline and comparison.baseline.parts["model"] == "fcn32s"
    assert compared(names={"fcn8s": "FCN-8s"}, baseline="model=fcn8s").baseline.name == "FCN-8s"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"fcn4s": "x"}, "names=fcn4s matches no group; the groups are 'model=fcn"),
        ({"fcn8s": "x", "fcn16s": "x"}, "names= gives 2 groups the name 'x'"),
        ({"fcn8s": "x", "model=fcn8s": "y"}, "names= gives one group two names"),
    ],
)
def test_names_that_are_not_clear_are_refused(compared, names, message):
    with pytest.raises(UserError, match=message):
        compared(names=names)


def test_settings_that_all_runs_share_are_named_once(compared):
    """Only those that were typed: all others are defaults."""
    runs = [run for group in compared().groups for run in group.runs]
    assert common_settings(runs) == "trainer.x=7"


LONG = "median_frequency_of_the_training_set"


def group(**parts: str) -> Group:
    return Group({"loss.class_weights": LONG, "model": "fcn8s", "optim.lr": "0.1"} | parts, runs=())


@pytest.mark.parametrize(
    ("groups", "usual"),
    [
        # Two of three are a majority, but without all three settings the name of the first would be empty.
        (
            [group(), group(model="fcn16s"), group(**{"optim.lr": "0.2"})],
            {"loss.class_weights": LONG, "optim.lr": "0.1"},
        ),
        # One of two is no majority.
        ([group(), group(**{"loss.class_weights": "none"})], {"model": "fcn8s", "optim.lr": "0.1"}),
        # One group has no class weights, so their absence in a name would be ambiguous.
        ([group(), group(), Group({"model": "fcn8s", "data.root": "x" * 40}, runs=())], {"model": "fcn8s"}),
        # Short names stay as they are.
        ([Group({"model": "fcn8s", "optim.lr": str(lr)}, runs=()) for lr in range(9)], {}),
    ],
)
def test_settings_of_most_groups_are_left_out_of_long_names(groups, usual):
    assert usual_settings(groups) == usual


def test_a_setting_that_most_groups_share_is_named_once(make_run, tmp_path):
    weights = "x" * 40
    for place, (model, lr) in enumerate([("fcn8s", 0.1), ("fcn8s", 0.2), ("fcn16s", 0.1), ("fcn8s", 0.3)]):
        settings = {"optim.lr": lr, "augment.crop": weights if place else "none"}
        make_run(str(place), toy_matrices(0.5 + place / 10), model=model, settings=settings)
    runs = read_runs([tmp_path / "runs"])[0]
    comparison = compare(runs, resamples=100, baseline="model=fcn16s")
    names = ["optim.lr=0.3", "model=fcn16s optim.lr=0.1", "optim.lr=0.2", "augment.crop=none optim.lr=0.1"]
    assert [each.name for each in comparison.groups] == names
    (line,) = [each for each in common_lines(comparison) if each.startswith("Settings of each group")]
    assert line == f"Settings of each group, unless its name has others: model=fcn8s augment.crop={weights}"
    assert all(line in text for text in (terminal(comparison), page(comparison, "x").replace("<wbr>", "")))
    chosen = compare(runs, resamples=100, names=dict(zip(names, "abcd", strict=True)))
    assert [each.name for each in chosen.groups] == list("abcd")
    assert not any(each.startswith("Settings of each group") for each in common_lines(chosen))
