"""Test the links between a training run and its evaluations in W&B."""

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import wandb

from fcnlab.config.run_context import RunContext
from fcnlab.tracking import connection, links, mirror
from fcnlab.tracking.links import TrackedRun, common_group, recorded_run, tracked_run
from fcnlab.training import loggers
from wandb_artifact_server import serving

TRAINED = {"id": "abc", "project": "fcnlab", "entity": "team", "group": None}


def logger(**attributes) -> mirror.Mirror:
    usual = {"id": "e1", "project": "fcnlab", "entity": "team", "group": "abc", "offline": False, "disabled": False}
    run = MagicMock(spec=wandb.Run, **{**usual, **attributes})
    return mirror.Mirror(experiment=run)


@pytest.fixture
def server(monkeypatch):
    """A run in W&B, and the addresses that it was asked for."""
    mirror._warn_about_missing.cache_clear()
    run = SimpleNamespace(config={"run": "r1"}, summary=MagicMock(), group=None, update=MagicMock(), asked=[])
    api = SimpleNamespace(run=lambda address: run.asked.append(address) or run)
    monkeypatch.setattr(wandb, "Api", lambda timeout: api)
    return run


def test_a_run_is_described_as_it_is_recorded():
    facts = tracked_run([MagicMock(), logger(entity="", group="")])
    assert facts == {"id": "e1", "project": "fcnlab", "entity": None, "group": None}
    run = recorded_run(facts)
    assert run == TrackedRun("e1", "fcnlab") and run.address == "fcnlab/e1"
    assert TrackedRun(**TRAINED).address == "team/fcnlab/abc"
    assert tracked_run([]) is None and tracked_run([logger(disabled=True)]) is None


@pytest.mark.parametrize(
    "change",
    [
        {"id": None}, {"id": "a/b"}, {"id": "a b"}, {"id": "i" * 101}, {"id": 3}, {"project": None}, {"project": ""},
        {"project": "a/b"}, {"project": "a\n"}, {"project": "p" * 129}, {"entity": "a:b"}, {"entity": 1},
        {"entity": ""}, {"group": 1}, {"group": ""}, {"group": "g" * 129},
    ],
)  # fmt: skip
def test_a_record_of_another_form_names_no_run(change):
    assert recorded_run(TRAINED) == TrackedRun(**TRAINED)
    assert recorded_run(TRAINED | change) is None
    assert recorded_run(None) is None and recorded_run("abc") is None and recorded_run({}) is None


def test_evaluations_join_the_group_of_the_run_or_its_id():
    alone, first, second = TrackedRun("a", "p"), TrackedRun("b", "p", None, "g"), TrackedRun("c", "p", None, "g")
    assert common_group([alone]) == "a" and common_group([first, second]) == "g"
    assert common_group([alone, first]) is None and common_group([]) is None


@pytest.mark.parametrize(
    ("words", "group"),
    [((), "abc"), (("logger.wandb.group=mine",), "mine"), (("sweep.folder=/sweeps/1", "sweep.name=job"), "sweeps/1")],
)
def test_a_typed_group_and_that_of_a_sweep_come_first(composed, monkeypatch, tmp_path, words, group):
    asked: list[dict] = []
    monkeypatch.setattr(connection, "_started", lambda described, mode: asked.append(described) or MagicMock())
    monkeypatch.setattr(connection, "Mirror", lambda experiment, **_: SimpleNamespace(experiment=experiment))
    monkeypatch.setattr(loggers, "_report_offline", lambda logger, alerts: None)
    cfg = composed("logger=wandb", *words, name="eval")
    loggers._open_wandb(cfg, RunContext("eval", tmp_path, words), {}, [TrackedRun(**TRAINED)])
    assert (asked[0]["group"], asked[0]["job_type"]) == (group, "eval")
    assert asked[0]["config"]["scored_run"] == "team/fcnlab/abc"


@pytest.mark.parametrize("entity", ["team", None])  # an offline run does not know it
def test_a_training_run_gets_the_address_of_its_evaluation(server, entity):
    links.add_links([logger()], {"r1": TrackedRun("abc", "fcnlab", entity)})
    assert server.asked == ["team/fcnlab/abc"] and server.group == "abc"
    server.summary.__setitem__.assert_called_once_with("evaluations/e1", "team/fcnlab/e1")
    server.update.assert_called_once_with()


@pytest.mark.parametrize(("its", "own"), [("g", "g"), (None, "mine")])
def test_a_group_is_never_replaced(server, its, own):
    server.group = its
    links.add_links([logger(group=own)], {"r1": TrackedRun("abc", "fcnlab", "team", its)})
    assert server.group == its and not server.update.called
    server.summary.update.assert_called_once_with()


@pytest.mark.parametrize(
    ("run", "attributes"),
    [
        (TrackedRun("abc", "fcnlab", "others"), {}),
        (TrackedRun("abc", "theirs", "team"), {}),
        (TrackedRun("abc", "fcnlab", "team"), {"offline": True}),
        (TrackedRun("abc", "fcnlab", "team"), {"disabled": True}),
    ],
)
def test_nothing_is_asked_offline_or_in_another_project(server, run, attributes):
    links.add_links([logger(**attributes)], {"r1": run})
    assert not server.asked


def test_another_run_of_this_id_is_left_alone(server, caplog):
    links.add_links([logger()], {"another": TrackedRun(**TRAINED)})
    assert not server.summary.__setitem__.called and not server.update.called
    assert "some links of this run are missing in W&B (the run abc is not the one" in caplog.text


def test_a_server_that_hangs_is_left_after_a_while(server, monkeypatch, caplog):
    monkeypatch.setattr(links, "TIMEOUT", 0.1)
    monkeypatch.setattr(wandb, "Api", lambda timeout: time.sleep(2))
    began = time.monotonic()
    links.add_links([logger()], {"r1": TrackedRun(**TRAINED)})
    assert time.monotonic() - began < 1.5 and "some links of this run are missing in W&B" in caplog.text


BUCKET = {
    "id": "b", "name": "abc", "projectId": 1, "tags": [], "displayName": "d", "state": "finished", "group": None,
    "jobType": "train", "commit": None, "readOnly": False, "createdAt": "2026-01-01T00:00:00", "historyLineCount": 0,
    "heartbeatAt": "2026-01-01T00:00:00", "description": "", "notes": "", "systemMetrics": "{}", "sweepName": None,
    "summaryMetrics": json.dumps({"final/miou": 0.5}), "user": {"name": "u", "username": "u"}, "historyKeys": None,
    "config": json.dumps({"run": {"value": "r1", "desc": None}, "seed": {"value": 3, "desc": None}}),
}  # fmt: skip


@pytest.mark.slow
def test_a_server_gets_the_address_and_the_group_and_keeps_the_rest(tmp_path):
    """W&B's own client, with a server on this machine."""
    code = (
        "from types import SimpleNamespace as Run; from fcnlab.tracking.links import TrackedRun, _add_link;"
        " _add_link(Run(id='e1', project='fcnlab', entity='team', group='abc'), TrackedRun('abc', 'fcnlab'), 'r1')"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    with serving({}, b"") as server:
        server.answers = {"upsertBucket": {"upsertBucket": {"bucket": BUCKET, "inserted": False}}}
        server.answers["run("] = {"project": {"internalId": "1", "run": BUCKET}}
        clean |= {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": server.address, "WANDB_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    run, summary = server.sent
    assert (run["groupName"], run["jobType"], run["config"]) == ("abc", "train", BUCKET["config"])
    assert json.loads(summary["summaryMetrics"]) == {"final/miou": 0.5, "evaluations/e1": "team/fcnlab/e1"}
