"""Test what compare reports, in all of its outputs and groups, about the images that selected a checkpoint."""

import csv
import json
import re

import pytest

from fcnlab.comparison.comparison import compare
from fcnlab.comparison.csv_files import write_csv
from fcnlab.comparison.markdown import markdown
from fcnlab.comparison.page import page
from fcnlab.comparison.runs import Unusable, read_run, read_runs
from fcnlab.comparison.terminal import terminal
from fcnlab.runs.selection import FINGERPRINT, describe_selection, recorded_selection, selection_of_scored
from fcnlab.sweeps.sweep_table import selection_score
from run_folders import toy_matrices

BEST = {"checkpoint": "best", "monitor": "val/miou", "mode": "max", "set": "toys val", "list": "val", "step": 40}
BEST |= {"among": 8, "val_miou": 0.5, "same_images": True, "shared_images": 36, "stopped_early": False}
LAST = BEST | {"checkpoint": "last", "monitor": None, "mode": None}
OTHER_SET = {"set": "toys dev", "same_images": False}
OPTIMISTIC = "Scores on images that a checkpoint was selected on are optimistic"


@pytest.fixture
def compared(tmp_path):
    return lambda: compare(read_runs([tmp_path / "runs"])[0], resamples=500)


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        (None, "selected in an unknown way (by other software)"),
        (BEST, "selected on this set, among 8 validations"),
        (BEST | {"among": 1}, "selected on this set, among 1 validation"),
        (BEST | {"at_least": True}, "selected on this set, among at least 8 validations"),
        (BEST | {"monitor": "val/loss"}, "selected by val/loss on this set, among 8 validations"),
        (
            BEST | OTHER_SET | {"shared_images": 3},
            "selected on toys dev, among 8 validations; toys dev contains 3 of the scored images",
        ),
        (
            BEST | OTHER_SET | {"shared_images": 0},
            "selected on toys dev, among 8 validations; toys dev contains none of the scored images",
        ),
        (LAST, "those of the last step: no checkpoint was selected"),
        (
            LAST | {"stopped_early": True},
            "those of the last step: no checkpoint was selected, but early stopping on validation scores ended the"
            " training",
        ),
    ],
)
def test_the_selection_of_weights_is_described(selection, words):
    assert describe_selection(selection) == words


def test_scored_images_used_for_validation_are_counted():
    """Three images are used for validation, of which two are among the four scored ones."""
    a, b, c, d, e = (letter * FINGERPRINT for letter in "abcde")
    facts = selection_of_scored({"checkpoint": "best", "images": a + b + c}, [b, d, c, e])
    assert facts == {"checkpoint": "best", "same_images": False, "shared_images": 2}
    assert selection_of_scored({"images": a + b + c}, [c, a]) == {"same_images": True, "shared_images": 2}
    assert selection_of_scored(None, [a]) is None


@pytest.mark.parametrize(
    ("selections", "notes"),
    [
        ([BEST], [f"The weights of the run were selected on this set, among 8 validations. {OPTIMISTIC}."]),
        ([BEST] * 2, [f"The weights of all runs were selected on this set, among 8 validations. {OPTIMISTIC}."]),
        (
            [BEST, BEST | {"among": 3}],
            [
                "The weights of all runs were selected on this set, among 3 to 8 validations."
                f" {OPTIMISTIC}, and more so after more validations."
            ],
        ),
        ([BEST | {"among": 1}], ["The weights of the run were selected on this set, among 1 validation."]),
        (
            [BEST | OTHER_SET | {"shared_images": 0}] * 2,
            [
                "The weights of all runs were selected on toys dev, among 8 validations; toys dev contains none of the"
                " scored images."
            ],
        ),
        (
            [BEST, LAST, None],
            [
                f"The weights of 1 of 3 runs were selected on this set, among 8 validations. {OPTIMISTIC}.",
                "The weights of 1 of 3 runs were those of the last step: no checkpoint was selected.",
                "The weights of 1 of 3 runs were selected in an unknown way (by other software).",
            ],
        ),
    ],
)
def test_page_markdown_and_terminal_describe_the_selection(make_run, compared, selections, notes):
    for seed, selection in enumerate(selections, start=1):
        weights_of_others = {"verb": "eval", "settings": {"inference._target_": "fcnlab.inference.WholeImage"}}
        make_run(str(seed), seed=seed, selection=selection, **({} if selection else weights_of_others))
    comparison = compared()
    assert sorted(comparison.selection) == sorted(notes)
    output = [re.sub(r"\s+", " ", text) for text in (page(comparison, "x"), markdown(comparison), terminal(comparison))]
    assert all(note in text for note in notes for text in output)


def test_every_run_of_the_table_shows_the_selection(make_run, compared, tmp_path):
    make_run("a", selection=BEST)
    make_run("b", selection=LAST, seed=2)
    write_csv(tmp_path, compared())
    with (tmp_path / "runs.csv").open(newline="") as file:
        words = {row["seed"]: row["selected"] for row in csv.DictReader(file)}
    assert words == {"1": describe_selection(BEST), "2": describe_selection(LAST)}


def test_best_and_last_are_two_groups(make_run, compared):
    for seed in (1, 2):
        make_run(f"best{seed}", toy_matrices(0.8, seed=seed), seed=seed, selection=BEST)
        make_run(f"last{seed}", toy_matrices(0.7, seed=seed), seed=seed, selection=LAST)
    groups = {group.name: group.seeds for group in compared().groups}
    assert groups == {"scoring.checkpoint=best.ckpt": (1, 2), "scoring.checkpoint=last.ckpt": (1, 2)}


@pytest.mark.parametrize(
    "damaged",
    [
        "best",
        [1],
        3,
        {},
        {key: value for key, value in BEST.items() if key != "set"},
        BEST | {"among": "8"},
        BEST | {"among": True},
        BEST | {"same_images": 1},
        BEST | {"set": None},
        BEST | {"monitor": ["val/miou"]},
    ],
    ids=str,
)
def test_a_training_run_with_a_damaged_selection_is_excluded(make_run, damaged):
    folder = make_run("a", selection=damaged)
    assert recorded_selection(json.loads((folder / "metrics.json").read_text())) is None
    with pytest.raises(Unusable, match="it does not record how its weights were selected"):
        read_run(folder)


@pytest.mark.parametrize(
    ("facts", "score"),
    [
        ({"miou": 0.5}, 0.5),  # an older record
        ({"miou": 0.5, "selection": None}, 0.5),  # an evaluation of an older checkpoint
        ({"miou": 0.5, "selection": {"same_images": False}}, 0.5),  # an evaluation
        ({"miou": 0.5, "split": "test", "selection": {"val_miou": 0.25, "list": "val"}}, 0.25),
        ({"miou": 0.5, "split": "test", "selection": {"val_miou": None, "list": "val", "same_images": False}}, None),
        ({"miou": 0.5, "split": "val", "selection": {"val_miou": None, "list": "val", "same_images": False}}, 0.5),
        ({"miou": 0.5, "split": "half", "selection": {"val_miou": None, "list": "val", "same_images": True}}, 0.5),
        ({"miou": 0.5, "selection": {"val_miou": "high"}}, None),
        ({"miou": 0.5, "selection": {"val_miou": True}}, None),
        ({"miou": "high", "selection": "best"}, None),
        ({}, None),
    ],
)
def test_sweeps_rank_runs_only_by_validation_images(tmp_path, facts, score):
    (tmp_path / "metrics.json").write_text(json.dumps(facts))
    assert selection_score(tmp_path) == score
