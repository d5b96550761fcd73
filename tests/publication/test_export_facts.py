"""What an exported file says: scores with fold and selection, and what an exported file that is its source states."""

import json
from dataclasses import replace

from torch import nn

from fcnlab.comparison.runs import Fold, read_run
from fcnlab.publication.card_records import CardRecords
from fcnlab.publication.export_facts import Stated, export_facts, stated_in
from fcnlab.publication.model_card import Model
from run_folders import CLASSES

MODEL = Model("best.ckpt", "FCN-8s on Tiny", True, 342_490, CLASSES, 1, "0.1.0", ())
SCORES = {"images": 7, "protocol": {"set": "toys val"}, "selection": "The weights were selected.", "miou": 0.25}


def facts_of(*runs, model=MODEL, license=None, stated=None) -> dict:
    records = CardRecords(None, 40, None, {}, list(runs), None)
    return export_facts(model, nn.Identity(), [], records, {"name": "a"}, license, stated or Stated(None, []))


def test_scores_have_the_fold_and_the_selection_that_the_card_states(make_run):
    run = replace(read_run(make_run("a")), fold=Fold(2, 5))
    run.protocol["of"] = 100
    (scores,) = facts_of(run)["scores"]
    assert scores["fold"] == "fold 2 of 5, counted from 0" and scores["of"] == 100
    assert "selected on this set, among 8 validations. Scores on images that a checkpoint" in scores["selection"]
    assert "fold" not in facts_of(replace(run, fold=None))["scores"][0]


def test_an_unknown_version_is_called_so():
    assert facts_of()["checkpoint"]["trained_with"] == "fcnlab 0.1.0"
    assert facts_of(model=MODEL._replace(version=None))["checkpoint"]["trained_with"] == "an unknown version of fcnlab"


def test_licence_and_scores_of_an_exported_file_are_kept(make_run):
    """A licence that is typed comes first, and scores that the run's folder has."""
    stated = stated_in({"license": "mit", "scores": [SCORES]})
    facts = facts_of(stated=stated)
    assert (facts["license"], facts["scores"]) == ("mit", [SCORES])
    assert stated_in(json.loads(json.dumps(facts))) == stated
    run = read_run(make_run("a"))
    facts = facts_of(run, license="bsd", stated=stated)
    assert facts["license"] == "bsd" and facts["scores"][0]["images"] == len(run.names)
    assert stated_in(facts_of()) == Stated(None, [])  # "not stated" is no licence


def test_facts_of_a_foreign_file_are_data():
    hostile = {
        "license": "mit\n\x1b[2J" + "x" * 10_000,
        "scores": [SCORES | {"miou": 7, "pixel_acc": "1", "path": "/"}],
    }
    hostile["scores"] += ["text", {"protocol": [], "images": True, "fold": 3, "selection": "a\nb"}] * 100
    stated = stated_in(hostile)
    assert stated.license is not None and stated.license.startswith(r"mit\n\x1b[2Jxx") and len(stated.license) < 600
    assert stated.scores[0] == {key: value for key, value in SCORES.items() if key != "miou"}
    assert stated.scores[1] == {"protocol": {}, "selection": r"a\nb"} and len(stated.scores) <= 20
    for odd in ({"license": 3, "scores": {}}, {"license": " ", "scores": None}, {}):
        assert stated_in(odd) == Stated(None, [])
