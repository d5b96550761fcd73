"""Views and reports of W&B: their specifications as JSON, and what is sent to a server."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb

from fcnlab.comparison.comparison import compare
from fcnlab.comparison.grouping import GroupingRules
from fcnlab.comparison.runs import read_runs
from fcnlab.errors import UserError
from fcnlab.tracking import charts
from fcnlab.tracking.accepted_values import accepted_title
from fcnlab.tracking.report import MOST_GROUPS, report
from fcnlab.tracking.saving import save
from fcnlab.tracking.workspace import workspace
from run_folders import toy_matrices

CURVES = ["val/miou", "val/loss", "train/loss"]


def comparison(folder: Path, **settings):
    return compare(read_runs([folder])[0], resamples=100, **settings)


def recorded(folder: Path, run_id: str) -> None:
    """Add the id of a live W&B run to a record."""
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"wandb": run_id}))


@pytest.fixture
def grid(make_run, tmp_path) -> Path:
    """Write two groups of two seeds, which differ in an option of a subgroup and in a setting."""
    for model, backbone, rate in (("fcn8s", "vgg16", 0.25), ("fcn16s", "tiny", 0.5)):
        for seed in (1, 2):
            settings, options = {"optim.lr": rate}, {"model/backbone": backbone}
            matrices = toy_matrices(rate + 0.25, seed=seed)
            run = make_run(f"{model}-{seed}", matrices, model=model, seed=seed, settings=settings, options=options)
            recorded(run, f"{model}-{seed}")
    return tmp_path / "runs"


def spec_of(view) -> dict:
    """Return the specification that the library would send."""
    return json.loads(view._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))


def ids_of(run_set: dict) -> list[str]:
    """Return the ids in the filter of a run set; it has no other condition."""
    (condition,) = run_set["filters"]["filters"]
    assert condition["key"] == {"section": "run", "name": "name"} and condition["op"] == "IN"  # W&B's name of the id
    assert not condition["disabled"]
    return sorted(condition["value"])


def test_a_view_contains_the_compared_runs_by_group(grid, make_run):
    make_run("elsewhere", protocol={"set": "other val"}, model="fcn8s", seed=9)
    section = spec_of(workspace(comparison(grid), "leaves", "us", "Skips"))["section"]
    (run_set,) = section["runSets"]
    assert ids_of(run_set) == ["fcn16s-1", "fcn16s-2", "fcn8s-1", "fcn8s-2"]
    assert run_set["grouping"] == [  # as W&B stores {"options": {"model": ...}} and {"optim": {"lr": ...}}
        {"section": "config", "name": "options.value.model"},
        {"section": "config", "name": "options.value.backbone"},
        {"section": "config", "name": "optim.value.lr"},
    ]
    assert run_set["sort"]["keys"] == [{"key": {"section": "summary", "name": "best/miou"}, "ascending": False}]
    assert section["settings"]["useRunsTableGroupingInPanels"] and section["settings"]["xAxis"] == "trainer/global_step"
    curves, settings = section["panelBankConfig"]["sections"]
    assert [panel["config"]["metrics"] for panel in curves["panels"]] == [[name] for name in CURVES]
    for panel in curves["panels"]:
        config = panel["config"]
        assert (config["groupAgg"], config["groupArea"], config["xAxis"]) == ("mean", "minmax", "trainer/global_step")
    kinds = {panel["viewType"]: panel["config"] for panel in settings["panels"]}
    assert kinds["Parameter Importance"]["targetKey"] == "best/miou" and kinds["Run Comparer"] == {"diffOnly": "split"}


def test_runs_of_a_single_group_are_one_line(grid):
    found = comparison(grid, rules=GroupingRules(merge_over=("optim", "model")))
    (run_set,) = spec_of(workspace(found, "leaves", "us", "Skips"))["section"]["runSets"]
    assert run_set["grouping"] == [{"section": "run", "name": "jobType"}]


def test_facts_that_w_and_b_does_not_have_group_no_runs(make_run, tmp_path):
    for place, code in enumerate(("a", "b")):
        make_run(str(place), source=code, seed=1)
    found = comparison(tmp_path / "runs")
    assert charts.grouping(found).missing == ["source.fcnlab"]
    kind = [{"section": "run", "name": "jobType"}]
    (run_set,) = spec_of(workspace(found, "leaves", "us", "Code"))["section"]["runSets"]
    assert run_set["grouping"] == kind
    blocks = spec_of(report(found, "leaves", "us", "Code"))["blocks"]
    grid_ = next(block["metadata"] for block in blocks if block["type"] == "panel-grid")
    assert [each["grouping"] for each in grid_["runSets"]] == [kind, kind]


def test_a_report_has_the_result_and_a_run_set_for_each_group(grid):
    found = comparison(grid, names={"fcn8s": "FCN-8s"})
    blocks = spec_of(report(found, "leaves", "us", "Skips"))["blocks"]
    curves, settings, images = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    sets = {each["name"]: ids_of(each) for each in curves["runSets"]}
    assert sets.pop("FCN-8s") == ["fcn8s-1", "fcn8s-2"] and list(sets.values()) == [["fcn16s-1", "fcn16s-2"]]
    assert all(each["grouping"][0]["name"] == "options.value.model" for each in curves["runSets"])
    assert len({each["id"] for grid in (curves, settings, images) for each in grid["runSets"]}) == 4
    panels = curves["panelBankSectionConfig"]["panels"]
    assert [panel["config"]["metrics"] for panel in panels] == [[name] for name in CURVES]
    places = [(panel["layout"]["x"], panel["layout"]["y"], panel["layout"]["w"]) for panel in panels]
    assert places == [(0, 0, 8), (8, 0, 8), (16, 0, 8)]  # one row of W&B's 24 columns
    for grid_ in (settings, images):
        assert ids_of(*grid_["runSets"]) == ["fcn16s-1", "fcn16s-2", "fcn8s-1", "fcn8s-2"]
    assert "final/per_image" in json.dumps(images["panelBankSectionConfig"]["panels"])
    texts = [block["content"] for block in blocks if block["type"] == "markdown-block"]
    assert "## Differences in mIoU" in texts[0] and "FCN-8s" in texts[0] and "## Scores" in texts[0]
    (pair,) = found.pairs
    name, first, second = pair.apart[0]  # the largest difference
    assert f"- {name}: {100 * first:.2f} % and {100 * second:.2f} %" in texts[-1]


def test_text_of_a_record_is_escaped_in_a_report(make_run, tmp_path):
    for seed in (1, 2):
        for name in ("[click](http://x)", "plain"):
            make_run(f"{len(name)}-{seed}", model="fcn8s", seed=seed, options={"optim": name})
    found = comparison(tmp_path / "runs")
    texts = [each["content"] for each in spec_of(report(found, "p", "us", "t"))["blocks"] if "content" in each]
    assert "[click](" not in "".join(texts) and r"\[click\](http://x)" in texts[0]


def test_the_curves_of_a_report_are_those_of_the_best_groups(make_run, tmp_path):
    for number in range(MOST_GROUPS + 1):
        make_run(str(number), settings={"optim.lr": 2.0**-number})
    found = comparison(tmp_path / "runs")
    blocks = spec_of(report(found, "p", "us", "t"))["blocks"]
    grid = next(block for block in blocks if block["type"] == "panel-grid")
    assert len(grid["metadata"]["runSets"]) == MOST_GROUPS
    assert any(f"of the {MOST_GROUPS} groups with the highest mIoU, out of 11" in str(block) for block in blocks)


def test_pooled_folds_are_a_w_and_b_run_each(make_run, tmp_path):
    folds = {"data.folds": 2, "data.train_list": "all", "data.val_list": None}
    for number in (0, 1):
        names = [f"image_{place:03}" for place in range(36 * number, 36 * number + 36)]
        protocol = {"fold": number, "folds": 2, "of": 72}
        run = make_run(str(number), settings=folds | {"data.fold": number}, names=names, protocol=protocol)
        recorded(run, f"fold{number}")
    assert charts.ids(comparison(tmp_path / "runs").groups) == ["fold0", "fold1"]


class Server:
    """A double of W&B's API that keeps the requests."""

    default_entity = "us"

    def __init__(self):
        self.requests: list[dict] = []
        self._service_api = SimpleNamespace(execute_graphql=self.answer, app_url="https://wandb.example")

    def answer(self, query: str, variables: dict) -> dict:
        self.requests.append(variables)
        project = {"name": variables["projectName"], "entityName": variables["entityName"]}
        view = {"id": "VmlldzoxMjM=", "name": variables["name"], "displayName": variables["displayName"]}
        view |= {"spec": variables["spec"], "project": project, "description": "", "createdAt": "2026-11-30T00:00:00"}
        return {"upsertView": {"view": view | {"updatedAt": "2026-11-30T00:00:00"}, "inserted": True}}

    def create_project(self, name: str, entity: str) -> None:
        """Do nothing."""

    def projects(self, entity: str) -> list:
        return [SimpleNamespace(name="leaves")]


@pytest.fixture
def server(monkeypatch) -> Server:
    double = Server()
    monkeypatch.setattr("fcnlab.tracking.server.check_server", lambda: None)
    monkeypatch.setattr(wandb, "Api", lambda **settings: double)
    return double


@pytest.mark.parametrize(("describe", "kind"), [(workspace, "project-view"), (report, "runs")])
def test_what_is_saved_is_what_was_described(grid, server, describe, kind):
    found = comparison(grid)
    address = save(lambda entity: describe(found, "leaves", entity, "Skips"), None)
    (request,) = server.requests
    place = (request["entityName"], request["projectName"], request["displayName"], request["type"])
    assert place == ("us", "leaves", "Skips", kind)
    assert address.startswith("https://wandb.example/us/leaves") and "fcn16s-2" in request["spec"]


def test_errors_of_the_server_are_one_sentence(grid, server, monkeypatch):
    def refuse(query, variables):
        raise wandb.errors.CommError("permission denied\nsecond line")

    monkeypatch.setattr(server._service_api, "execute_graphql", refuse)
    found = comparison(grid)
    with pytest.raises(UserError, match=r"^W&B did not save it: permission denied$"):
        save(lambda entity: workspace(found, "leaves", entity, "Skips"), "us")


def test_the_command_saves_and_warns(fcnlab, grid, server, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "fromenvironment")
    assert fcnlab("wandb", "workspace", f"runs={grid}", "resamples=100", "overwrite=true", "title='a = b'") == 0
    output = capsys.readouterr().out
    assert "overwrite has no effect on fcnlab wandb workspace" in output
    assert "Workspace: https://wandb.example/us/fromenvironment?nw=" in output
    assert server.requests[0]["displayName"] == "a - b"  # W&B refuses symbols
    assert fcnlab("wandb", "report", f"runs={grid}", "resamples=100", "project=typed", "entity=them") == 0
    assert (server.requests[1]["entityName"], server.requests[1]["projectName"]) == ("them", "typed")
    assert server.requests[1]["displayName"] == "2 groups, 4 runs on toys val, 36 images"


def test_without_a_server_nothing_is_saved(fcnlab, grid, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert fcnlab("wandb", "workspace", f"runs={grid}", "resamples=100", "hydra.run.dir=out") == 1
    assert "WANDB_MODE=offline in the environment forbids the connection" in capsys.readouterr().err
    assert not Path("out").exists()


def test_without_the_package_the_error_says_what_to_type(fcnlab, grid, capsys, monkeypatch):
    charts.library.cache_clear()
    monkeypatch.setattr(charts, "find_spec", lambda name: None)
    assert fcnlab("wandb", "report", f"runs={grid}") == 1
    assert "pip install 'fcnlab[workspaces]'" in capsys.readouterr().err


def test_titles_have_a_form_that_w_and_b_accepts():
    assert accepted_title("mIoU > 0.5 😀\n~") == "mIoU - 0.5 -\\n-"
    assert len(accepted_title("x" * 300)) == 128
