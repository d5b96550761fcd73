"""A model card states what the records contain, in metadata that the Hub reads, and escapes text of others."""

import re

import pytest
import yaml
from markdown_it import MarkdownIt

from fcnlab.comparison.intervals import draws
from fcnlab.comparison.runs import read_run
from fcnlab.comparison.score_intervals import score_intervals
from fcnlab.publication.card_records import CardRecords
from fcnlab.publication.model_card import TO_FILL_IN, Model, Publication, model_card
from fcnlab.runs.lineage import TrainingRun
from run_folders import CLASSES, toy_matrices

MODEL = Model("best.ckpt", "FCN-8s on Tiny", True, 342_490, CLASSES, 1, "0.1.0", ())
UNKNOWN = Publication(None, None, ())
HOSTILE = ("---\nlicense: mit", "<script>alert(1)</script>", "| [x](http://a.example) `a`", "![y](http://b.example)")


def card_of(*runs, model=MODEL, publication=UNKNOWN, **records) -> str:
    known = {"trained": None, "step": None, "command": None, "cost": {}, "without_scores": None}
    intervals = [score_intervals(run.areas, draws(len(run.names), 200), 0.95) for run in runs]
    return model_card(model, CardRecords(**known | records, evaluations=list(runs)), intervals, publication, 0.95)


def header(card: str) -> dict:
    """Return the metadata, found as the Hub's client does: the text between the first two lines of dashes."""
    return yaml.safe_load(re.match(r"\A---\n(.*?)\n---\n", card, re.DOTALL)[1])


def rows(card: str) -> dict[str, list[str]]:
    """Return the cells of all tables by their first one, as a renderer shows them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(card.split("\n---\n", 1)[1])
    cells = [tokens[place + 1].content for place, token in enumerate(tokens) if token.type in ("td_open", "th_open")]
    lines, line = [], []
    for token in tokens:
        if token.type == "tr_open":
            line = []
        elif token.type in ("td_open", "th_open"):
            line.append(cells.pop(0))
        elif token.type == "tr_close":
            lines.append(line)
    return {line[0]: line[1:] for line in lines}


def test_scores_are_those_of_the_record(make_run):
    run = read_run(make_run("a", toy_matrices(0.7)))
    card = card_of(run)
    results = header(card)["model-index"][0]["results"]
    metrics = {metric["type"]: metric["value"] for metric in results[0]["metrics"]}
    assert metrics["mean_iou"] == pytest.approx(run.scores.miou, abs=1e-6)
    assert metrics["accuracy"] == pytest.approx(run.scores.pixel_acc, abs=1e-6)
    assert results[0]["dataset"] == {"type": "toys-val", "name": "toys val"}
    assert results[0]["task"]["type"] == "image-segmentation" == header(card)["pipeline_tag"]
    table = rows(card)
    assert table["**mIoU**"][0] == f"**{100 * run.scores.miou:.2f}**"
    low, high = map(float, table["**mIoU**"][1].split(" to "))
    assert low < 100 * run.scores.miou < high
    assert [table[name][0] for name in CLASSES] == [f"{100 * value:.2f}" for value in run.scores.iou]
    assert table["cat"][2] == str((run.areas.target[:, 1] > 0).sum())


def test_a_card_says_that_scores_of_a_selected_checkpoint_are_optimistic(make_run):
    card = card_of(read_run(make_run("a")))
    assert "selected on this set, among 8 validations" in card and card.count("are optimistic") == 2
    last = {"checkpoint": "last", "monitor": None, "mode": None, "set": "toys val", "list": "val", "step": 40}
    selection = last | {"among": 8, "val_miou": None, "same_images": True, "shared_images": 36}
    card = card_of(read_run(make_run("b", selection=selection)))
    assert "no checkpoint was selected" in card and "optimistic" not in card


def test_what_is_unknown_is_to_fill_in():
    card = card_of(without_scores="the checkpoint is not in the folder of its run")
    facts = header(card)
    assert facts["license"] == "other" and facts["license_name"] == "to-fill-in"
    assert not {"datasets", "model-index"} & facts.keys()
    unknown = [line for line in card.splitlines() if TO_FILL_IN in line]
    assert any("not in the folder of its run" in line for line in unknown)
    assert any("the command of the training run" in line for line in unknown)


def test_what_the_user_states_is_in_the_metadata(make_run):
    card = card_of(read_run(make_run("a")), publication=Publication("My net", "mit", ("me/toys",)))
    facts = header(card)
    assert facts["license"] == "mit" and "license_name" not in facts and facts["datasets"] == ["me/toys"]
    assert facts["model-index"][0]["name"] == "My net" and "\n# My net\n" in card


def test_few_images_and_two_evaluations_are_stated(make_run):
    few = read_run(make_run("a", toy_matrices(0.7, images=5)))
    flip = read_run(make_run("b", toy_matrices(0.8, images=5), protocol={"inference": "flip"}))
    card = card_of(few, flip)
    assert card.count("With fewer than 30 images, the intervals are unreliable.") == 2
    methods = [result["metrics"][0]["args"]["inference"] for result in header(card)["model-index"][0]["results"]]
    assert methods == ["whole", "flip"]
    assert "&id" not in card and "*id" not in card  # aliases of YAML


def test_a_rare_class_is_named_and_has_no_interval(make_run):
    matrices = toy_matrices(0.7)
    matrices[5:, 3, :], matrices[5:, :, 3] = 0, 0
    card = card_of(read_run(make_run("a", matrices)))
    table = rows(card)
    assert "Fewer than 10 images contain cow. In the mIoU, a rare class has the same weight" in card
    assert "A class without an interval is found in fewer than 10 images." in card
    assert {title for title, cells in table.items() if "-" in cells} == {"**mIoU**", "mean acc.", "cow"}


def test_secrets_of_the_records_are_not_published():
    """And small numbers keep their digits."""
    trained = TrainingRun(1, {}, {"model.backbone.weights": "https://user:s3cretpw@host/w.pth"}, {})
    command = "fcnlab train logger.mlflow.tracking_uri=https://user:s3cretpw@host/ seed=1"
    cost = {"gmacs_per_image": 0.00321, "training_minutes": 1234.5}
    card = card_of(model=MODEL._replace(parameters=1_234), trained=trained, step=10, command=command, cost=cost)
    assert (
        "s3cretpw" not in card and r"https://\[hidden\]@host/w.pth" in card and "=https://[hidden]@host/ seed=1" in card
    )
    table = rows(card)
    assert table["cost of one image"] == ["0.00321 GMACs, for the first scored image"]
    assert table["time of training"] == ["1,234 minutes"] and table["step of these weights"] == ["10"]
    assert "0.00123 million parameters" in card


def test_text_of_others_is_no_markup(make_run):
    """Neither in the metadata, nor in what a renderer makes of the card."""
    run = read_run(make_run("a", classes=HOSTILE, protocol={"set": HOSTILE[0]}))
    model = MODEL._replace(file="```\n---\nx'.ckpt", classes=HOSTILE)
    card = card_of(run, model=model, command="fcnlab train a='```\n# x'", publication=Publication(HOSTILE[1], None, ()))
    facts = header(card)
    assert facts["license"] == "other"
    assert facts["model-index"][0]["name"] == HOSTILE[1]
    assert facts["model-index"][0]["results"][0]["dataset"]["name"] == "---\\nlicense: mit"
    tokens = MarkdownIt("commonmark").enable("table").parse(card.split("\n---\n", 1)[1])
    every = [each for token in tokens for each in (token, *(token.children or ()))]
    kinds = {token.type for token in every}
    assert not kinds & {"html_inline", "html_block", "link_open", "image", "hr"}
    blocks = [token.content for token in tokens if token.type == "fence"]
    assert len(blocks) == 2 and blocks[1] == "fcnlab train a='```\n# x'\n"
    assert next(token.content for token in every if token.type == "inline") == "&lt;script&gt;alert(1)&lt;/script&gt;"
    compile(blocks[0], "snippet", "exec")


def test_the_client_of_the_hub_reads_the_card(make_run):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed, and fcnlab does not need it")
    runs = [read_run(make_run("a")), read_run(make_run("b", protocol={"inference": "flip"}))]
    data = hub.ModelCard(card_of(*runs)).data
    assert data.license == "other" and data.pipeline_tag == "image-segmentation" and data.library_name == "fcnlab"
    found = [each.metric_value for each in data.eval_results if each.metric_type == "mean_iou"]
    assert found == pytest.approx([run.scores.miou for run in runs], abs=1e-6)
