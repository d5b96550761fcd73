"""Rebuilt W&B runs: their content as W&B's own reader gives it, what they replace, and which folders are refused."""

import csv
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import wandb
import yaml
from wandb.apis.public.runs import RunNotFoundError

from fcnlab.errors import UserError
from fcnlab.files.locks import FolderLock
from fcnlab.tracking import push as module
from fcnlab.tracking.recorded_run import recorded_runs
from fcnlab.tracking.run_ids import run_id
from run_folders import CLASSES, toy_matrices, write_run_with_predictions


def offline_runs(folder: Path) -> list[Path]:
    return sorted((folder / "wandb").glob("offline-run-*"))


def content(run: Path) -> dict:
    """Return what W&B's reader finds in an offline run: the run, its rows, its summary and its exit code."""
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", run]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict = {"rows": [], "summary": {}}
    for record in map(json.loads, done.stdout.splitlines()):
        match record["type"]:
            case "run":
                found["run"] = record["run"]
                found["config"] = dict(record["run"]["config"]["update"])
            case "config":
                found["config"] |= record["config"].get("update", {})
            case "history":
                found["rows"].append(record["history"]["item"])
            case "summary":
                found["summary"] |= record["summary"].get("update", {})
            case "exit":
                found["exit"] = record["exit"]
    return found


def timeless(values: dict) -> dict:
    """Return values without times, counters and names of files, which differ between two runs of the same content.

    Images of validations and measurements of the machine are left out, too: no file records them.
    """
    own = ("_", "val/images", "throughput/", "memory/")
    names = ("path", "artifact_path", "_latest_artifact_path")
    return {key: value for key, value in values.items() if not key.startswith(own) and not key.endswith(names)}


def edit(path: Path, **facts) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_a_pushed_run_contains_what_its_folder_records(fcnlab, tmp_path, monkeypatch):
    monkeypatch.setattr("fcnlab.files.writing._sync", lambda path: None)
    settings = {"optim.lr": 0.125, "logger.wandb": {"tags": ["mine"], "name": "own name"}}
    run = write_run_with_predictions(tmp_path / "runs/a", 0.8, settings=settings)
    edit(run / "run.json", id="abcdef123456", host="gpu7")
    for _ in range(2):  # the second replaces the first
        assert fcnlab("wandb", "push", "runs=runs", "project=leaves", "mode=offline") == 0
    (files,) = offline_runs(run)
    found = content(files)
    (row,) = [row for row in found["rows"] if row.get("trainer/global_step") == 20]
    assert (row["train/loss"], row["val/miou"], row["epoch"]) == (1.0, 0.2, 0)
    assert [each["train/loss"] for each in found["rows"] if "train/loss" in each] == [2.0, 1.0, 0.5]
    described = found["run"]
    assert (described["display_name"], described["project"], described["job_type"]) == ("own name", "leaves", "train")
    assert described["run_id"] == run_id(run).text and described["run_id"] != "abcdef123456"
    assert described["tags"] == ["mine", "fcn8s", "toys"]
    assert described["host"] == "gpu7" and "git" not in described  # not this machine
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert described["config"]["update"]["optim"]["lr"] == config["optim"]["lr"] == 0.125
    assert described["config"]["update"]["options"]["model"] == "fcn8s"
    record = json.loads((run / "metrics.json").read_text())
    summary = found["summary"]
    assert (summary["final/miou"], summary["best/miou"], summary["best/step"]) == (record["miou"], 0.31, 40)
    assert summary["status"] == "finished" and found["exit"].get("exit_code", 0) == 0
    (table,) = (files / "files/media/table/final").glob("per_class_*.json")
    rows = {row[0]: row[1:] for row in json.loads(table.read_text())["data"]}
    with np.load(run / "confusions.npz") as file:
        total = file["matrices"].sum(axis=0)
    expected = np.diag(total) / (total.sum(axis=0) + total.sum(axis=1) - np.diag(total))
    assert list(rows) == list(CLASSES) and np.allclose([row[0] for row in rows.values()], expected)
    (table,) = (files / "files/media/table/final").glob("per_image_*.json")
    drawn = [row[1] for row in json.loads(table.read_text())["data"]]  # from predictions.zip
    assert drawn.count("Image") == 32 and drawn.count(None) == 4  # 16 of the lowest mIoU and 16 of the highest


@pytest.mark.slow
def test_a_pushed_run_equals_the_live_one(train, fcnlab, tmp_path):
    folder = train("logger=default", "trainer.max_steps=4", "trainer.log_every_n_steps=1", "callbacks.ema.decay=0.5")
    (live,) = offline_runs(folder)
    (folder / "wandb").rename(tmp_path / "lost")
    assert fcnlab("wandb", "push", f"runs={folder}", "mode=offline") == 0
    (pushed,) = offline_runs(folder)
    first, second = content(tmp_path / "lost" / live.name), content(pushed)
    for key in ("run_id", "display_name", "project", "job_type", "tags", "run_group"):
        assert first["run"].get(key) == second["run"].get(key), key
    configs = [{key: value for key, value in each["config"].items() if key[0] != "_"} for each in (first, second)]
    assert configs[0] == configs[1] and configs[0]["run"] and configs[0]["seed"] == 1  # without W&B's own keys
    assert timeless(first["summary"]) == timeless(second["summary"])
    rows = [list(filter(None, map(timeless, each["rows"]))) for each in (first, second)]
    logged = [[row for row in each if row.keys() - {"trainer/global_step"}] for each in rows]
    assert logged[0] == logged[1] and logged[0]


class FakeRun(SimpleNamespace):
    """What wandb_logger was asked for, and what was logged."""


@pytest.fixture
def opened(monkeypatch) -> list[FakeRun]:
    """Replace W&B's runs by doubles."""
    runs: list[FakeRun] = []

    def open_logger(folder, **described):
        files = folder / "wandb" / f"offline-run-20261130_{len(runs):06}-{described['run_id']}" / "files"
        files.mkdir(parents=True)
        run = FakeRun(folder=folder, **described, rows=[], summary={}, dir=str(files), url="there")
        run.settings, run.offline = SimpleNamespace(finish_timeout=0.1), True
        run.finish = lambda exit_code: setattr(run, "code", exit_code)
        runs.append(run)
        return SimpleNamespace(experiment=run, log_metrics=lambda values, step: run.rows.append((step, values)))

    monkeypatch.setattr(module, "wandb_logger", open_logger)
    monkeypatch.setattr(module, "log_evaluation", lambda logger, evaluation: setattr(logger.experiment, "scored", 1))
    return runs


def test_an_interrupted_run_has_curves_and_no_scores(make_run, fcnlab, opened, capsys):
    make_run("a", status="interrupted")
    assert fcnlab("wandb", "push", "runs=runs", "mode=offline") == 0
    (run,) = opened
    assert [step for step, _ in run.rows] == [10, 20, 40] and not hasattr(run, "scored")
    assert (run.summary["status"], run.code) == ("interrupted", 1)
    assert "runs/a: offline, without scores (interrupted" in capsys.readouterr().out


def test_a_run_that_works_is_left_out_and_a_killed_one_is_not(make_run, tmp_path):
    works, killed = make_run("works", status="running"), make_run("killed", status="running")
    edit(works / "run.json", id="a")
    edit(killed / "run.json", id="b")
    lock = FolderLock(works)
    runs, excluded = recorded_runs([tmp_path / "runs"])
    assert [(run.folder.name, run.status) for run in runs] == [("killed", "killed")]
    assert [(out.folder.name, out.reason) for out in excluded] == [("works", "still running: its own process logs it")]
    lock.abandon()
    assert not (killed / ".lock").exists()


def test_jobs_of_a_sweep_share_a_folder_and_a_group(make_run, tmp_path):
    for seed in (1, 2):
        make_run(f"nightly/{seed}", seed=seed, settings={"sweep": {"name": f"seed={seed}", "folder": "/elsewhere"}})
    (tmp_path / "runs/nightly/sweep.json").write_text("{}")
    runs, _ = recorded_runs([tmp_path / "runs"])
    assert {run.home for run in runs} == {tmp_path / "runs/nightly"}  # not what the record names
    assert {run.labels["group"] for run in runs} == {"runs/nightly"}
    assert [run.labels["name"] for run in runs] == ["seed=1", "seed=2"]


def test_stages_are_runs_of_a_group(make_run, tmp_path):
    make_run("staged", settings={"stages": ["a", "b"]})
    for name in ("1-a", "2-b"):
        edit(make_run(f"staged/{name}") / "run.json", id=name)
    runs, excluded = recorded_runs([tmp_path / "runs"])
    assert [run.folder.name for run in runs] == ["1-a", "2-b"] and not excluded
    assert {run.labels["group"] for run in runs} == {"staged"}


def test_an_evaluation_is_a_run_and_its_id_follows_from_its_record(make_run, tmp_path):
    for name in ("a", "b"):
        edit(
            make_run(name, verb="eval", settings={"inference": "whole"}) / "metrics.json", published={"miou": len(name)}
        )
    runs, _ = recorded_runs([tmp_path / "runs"])
    assert len({run.id for run in runs}) == 2 and not any(run.id.is_recorded for run in runs)
    assert [run.labels["job_type"] for run in runs] == ["eval", "eval"]
    edit(tmp_path / "runs/a/metrics.json", wandb_run={"id": "live", "project": "p"})
    assert run_id(tmp_path / "runs/a") == ("live", True)


def test_a_folder_that_w_and_b_cannot_name_is_left_out(make_run, tmp_path):
    make_run(os.fsdecode(b"caf\xe9"))
    runs, (out,) = recorded_runs([tmp_path / "runs"])
    assert not runs and out.reason == "W&B cannot write to a folder whose name is not UTF-8"


@pytest.mark.parametrize("recorded", ["../up", "a/b", 7, None, "x" * 200, ["a"]])
def test_an_id_that_is_none_is_not_used(make_run, recorded):
    run = make_run("a")
    before = run_id(run)
    edit(run / "run.json", id="same")
    own = run_id(run)
    edit(run / "run.json", wandb=recorded)
    assert run_id(run) == own != before and len(own.text) == 12 and not own.is_recorded


def test_a_copy_is_not_pushed_twice(make_run, tmp_path):
    for name in ("a", "b"):
        edit(make_run(name) / "run.json", wandb="same")
    runs, excluded = recorded_runs([tmp_path / "runs"])
    assert [run.folder.name for run in runs] == ["a"]
    assert [out.reason for out in excluded] == [f"a copy of {tmp_path}/runs/a: both are the W&B run same"]


def test_a_foreign_folder_cannot_lead_elsewhere(make_run, tmp_path):
    for name in ("link", "table", "yaml", "good"):
        edit(make_run(name) / "run.json", id=name)
    (tmp_path / "target").mkdir()
    (tmp_path / "runs/link/wandb").symlink_to(tmp_path / "target")
    (tmp_path / "runs/table/metrics.csv").unlink()
    (tmp_path / "runs/table/metrics.csv").symlink_to("/dev/zero")
    (tmp_path / "runs/yaml/config.yaml").write_text("a: !!python/object/apply:os.system [ls]\n")
    runs, excluded = recorded_runs([tmp_path / "runs"])
    assert [run.folder.name for run in runs] == ["good"]
    reasons = {out.folder.name: out.reason for out in excluded}
    assert "does not write through links" in reasons["link"] and "leads out of the folder" in reasons["table"]
    assert "tag" in reasons["yaml"] and not any((tmp_path / "target").iterdir())


def test_a_run_that_w_and_b_has_stays_unless_it_is_to_be_replaced(make_run, fcnlab, opened, capsys, monkeypatch):
    asked = []

    def find(path: str) -> SimpleNamespace:
        asked.append(path)
        if path.endswith("lost"):
            raise RunNotFoundError("Could not find run")
        return SimpleNamespace(url="https://wandb.example/run")

    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(run=find))
    monkeypatch.setattr(module, "check_server", lambda: None)
    for name in ("kept", "lost"):
        edit(make_run(name) / "run.json", wandb=name)
    edit(make_run("own") / "run.json", id="own")
    words = ["wandb", "push", "runs=runs", "mode=online", "project=leaves", "entity=us"]
    assert fcnlab(*words) == 0
    output = capsys.readouterr().out
    assert asked == ["us/leaves/kept", "us/leaves/lost"]
    assert "runs/kept: W&B has it (https://wandb.example/run). overwrite=true replaces it" in output
    assert opened[0].run_id == "lost" and len(opened) == 2
    asked_for = {(run.entity, run.project, run.mode, run.recorded_host) for run in opened}
    assert asked_for == {("us", "leaves", "online", "")}
    assert fcnlab(*words, "overwrite=true") == 0
    assert [run.run_id for run in opened][2:4] == ["kept", "lost"]


def test_offline_files_of_a_live_run_stay(make_run, fcnlab, opened, capsys):
    run = make_run("a")
    edit(run / "run.json", wandb="live")
    (run / "wandb/offline-run-20261129_000000-live").mkdir(parents=True)
    assert fcnlab("wandb", "push", "runs=runs", "mode=offline") == 0
    assert not opened and "offline-run-20261129_000000-live" in capsys.readouterr().out
    for count in (1, 2):
        assert fcnlab("wandb", "push", "runs=runs", "mode=offline", "overwrite=true") == 0
        live, pushed = offline_runs(run)  # the second push replaces the first, but not the live run
        assert live.name == "offline-run-20261129_000000-live" and Path(opened[-1].dir).parent == pushed
        assert len(opened) == count


def test_a_run_that_was_online_stays(make_run, fcnlab, opened, capsys):
    run = make_run("a")
    edit(run / "run.json", wandb="live")
    (run / "wandb/run-20261130_000000-live").mkdir(parents=True)
    assert fcnlab("wandb", "push", "runs=runs", "mode=offline") == 0
    assert not opened and "wandb/run-20261130_000000-live" in capsys.readouterr().out


def test_an_earlier_push_of_a_lost_run_is_replaced(make_run, fcnlab, opened):
    run = make_run("a")
    edit(run / "run.json", wandb="lost")
    other = run / "wandb/run-20261130_000000-not-lost"  # of the run "not-lost"
    other.mkdir(parents=True)
    for count in (1, 2):
        assert fcnlab("wandb", "push", "runs=runs", "mode=offline") == 0
        assert len(opened) == count and offline_runs(run) == [Path(opened[-1].dir).parent] and other.is_dir()


def test_a_run_that_did_not_start_is_pushed_later(make_run, fcnlab, opened, monkeypatch):
    run = make_run("a")
    edit(run / "run.json", wandb="lost")

    def fail(folder: Path, **described) -> None:
        (folder / "wandb/run-20261129_000000-lost").mkdir(parents=True)  # as W&B does
        raise UserError("W&B did not start a run")

    with monkeypatch.context() as patch:
        patch.setattr(module, "wandb_logger", fail)
        assert fcnlab("wandb", "push", "runs=runs", "mode=offline") == 1
    assert fcnlab("wandb", "push", "runs=runs", "mode=offline") == 0
    assert len(opened) == 1 and not (run / "wandb/run-20261129_000000-lost").exists()


def test_a_folder_that_changes_while_it_is_read_stops_no_other_run(make_run, fcnlab, opened, capsys, monkeypatch):
    for name in ("a", "b", "c", "d"):
        edit(make_run(name) / "run.json", id=name)
    few = make_run("../few", toy_matrices(0.7, seed=1)[:4])
    settled = module.settled_mode

    def change(mode: str) -> str:
        Path("runs/b/confusions.npz").unlink()
        (few / "confusions.npz").replace("runs/d/confusions.npz")
        return settled(mode)

    monkeypatch.setattr(module, "settled_mode", change)
    assert fcnlab("wandb", "push", "runs=runs", "mode=offline") == 1
    output = capsys.readouterr()
    assert [run.folder.name for run in opened] == ["a", "c"]  # nothing of b is begun
    assert "2 of 4 runs are written" in output.out and "2/4 runs/b: the folder was changed" in output.out
    assert "not, or not completely, written: runs/b, runs/d" in output.err


def test_the_status_is_the_runs_and_not_the_one_of_the_push(make_run, fcnlab, opened, monkeypatch):
    def stop(logger, evaluation) -> None:
        raise KeyboardInterrupt

    make_run("a")
    monkeypatch.setattr(module, "log_evaluation", stop)
    with suppress(KeyboardInterrupt):
        fcnlab("wandb", "push", "runs=runs", "mode=offline")
    assert (opened[0].summary["status"], opened[0].code) == ("finished", 0)


@pytest.mark.parametrize(("seconds", "tried"), [(0.0, 3), (0.1, 1)], ids=["refuses", "is late"])
def test_a_server_that_fails_makes_the_push_fail(make_run, fcnlab, opened, capsys, monkeypatch, seconds, tried):
    for name in ("a", "b", "c"):
        edit(make_run(name) / "run.json", id=name)

    def end(run, status: str, code: int) -> str:
        time.sleep(seconds)
        return "the server refused some of them"

    monkeypatch.setattr(module, "check_server", lambda: None)
    monkeypatch.setattr(module, "end_run", end)
    assert fcnlab("wandb", "push", "runs=runs", "mode=online") == 1
    output = capsys.readouterr()
    assert len(opened) == tried and "0 of 3 runs are written" in output.out
    assert "1/3 runs/a: W&B does not have all of it (the server refused some of them)" in output.out
    untried = f"runs/{'abc'[tried - 1]}" + (". 2 more were not tried" if tried == 1 else "")
    assert output.err.strip().endswith(untried)


@pytest.mark.parametrize("recorded", ["all", 0, 500, 40])
def test_as_many_images_are_drawn_as_in_the_live_run(make_run, tmp_path, recorded):
    make_run("a", settings={"logger.wandb": {"table_images": recorded}})
    ((run,), _) = recorded_runs([tmp_path / "runs"])
    assert run.labels["table_images"] == recorded


@pytest.mark.parametrize("recorded", ["most", -1, 501, True, 1.5, [3], None])
def test_an_invalid_number_of_images_is_the_default(make_run, tmp_path, recorded):
    make_run("a", settings={"logger.wandb": {"table_images": recorded}})
    ((run,), _) = recorded_runs([tmp_path / "runs"])
    assert run.labels["table_images"] == 16


TRAINED = {"run": "r1", "wandb_run": {"id": "abc", "project": "leaves", "entity": "team", "group": None}}
ALONE = {"run": "r2", "wandb_run": {"id": "def", "project": "leaves", "entity": None, "group": "ours"}}
OWN = {"id": "e1", "project": "leaves", "entity": None}


@pytest.mark.parametrize(
    ("record", "group", "scored"),
    [
        ({"trained": TRAINED}, "abc", "team/leaves/abc"),
        ({"trained": ALONE}, "ours", "leaves/def"),
        ({"ensemble": [{"trained": TRAINED}, {"trained": ALONE}]}, None, "team/leaves/abc, leaves/def"),
        ({"ensemble": [{"trained": ALONE}, {"trained": ALONE}, 3, {"trained": []}]}, "ours", "leaves/def"),
        ({"trained": TRAINED, "wandb_run": OWN | {"group": "mine"}}, "mine", "team/leaves/abc"),
        ({"trained": TRAINED, "wandb_run": OWN | {"group": "g" * 129}}, "abc", "team/leaves/abc"),
        ({"trained": TRAINED | {"wandb_run": {"id": "../x", "project": "p"}}}, None, None),
        ({"trained": "text", "ensemble": "text"}, None, None),
    ],
)
def test_a_pushed_evaluation_is_linked_to_the_run_that_it_scores(make_run, tmp_path, record, group, scored):
    edit(make_run("a", verb="eval", settings={"inference": "whole"}) / "metrics.json", **record)
    ((run,), _) = recorded_runs([tmp_path / "runs"])
    assert (run.labels["group"], run.labels["config"].get("scored_run")) == (group, scored)


def test_a_pushed_run_has_the_id_of_its_record_and_its_recorded_group(make_run, tmp_path):
    settings = {"logger.wandb": {"group": "typed"}}
    for name, group in (("a", "from the environment"), ("b", None), ("c", 3)):
        edit(make_run(name, settings=settings) / "run.json", id=name, wandb_run=OWN | {"group": group})
    runs, _ = recorded_runs([tmp_path / "runs"])
    assert [run.labels["config"]["run"] for run in runs] == ["a", "b", "c"]
    assert [run.labels["group"] for run in runs] == ["from the environment", None, "typed"]


def test_settings_that_w_and_b_would_wait_for_or_reject_end_a_push(make_run, fcnlab, tmp_path, capsys, monkeypatch):
    """W&B's reader waits for a FIFO without end, and raises pydantic's errors: here its own, of its own settings."""

    def setup() -> None:
        assert not (tmp_path / "wandb").exists()
        wandb.Settings().update_from_env_vars({"WANDB_FINISH_TIMEOUT": "abc"})

    monkeypatch.setattr(wandb, "setup", setup)
    monkeypatch.delenv("WANDB_MODE")
    make_run("a")
    (tmp_path / "wandb").mkdir()
    os.mkfifo(tmp_path / "wandb/settings")
    for mode in ("auto", "offline"):
        assert fcnlab("wandb", "push", "runs=runs", f"mode={mode}") == 1
        assert "W&B reads wandb/settings in the current folder: " in capsys.readouterr().err
    (tmp_path / "wandb/settings").unlink()
    (tmp_path / "wandb").rmdir()
    for mode in ("auto", "offline"):
        assert fcnlab("wandb", "push", "runs=runs", f"mode={mode}") == 1
        error = capsys.readouterr().err
        assert "W&B rejects its settings: finish_timeout='abc'" in error and "Traceback" not in error


def test_a_damaged_table_of_curves_logs_what_is_a_number(make_run, fcnlab, opened):
    run = make_run("a")
    with (run / "metrics.csv").open("a", newline="") as file:
        csv.writer(file).writerows([["x", 1, 2, 3], ["1e300", 1, 2, 3], ["-5", 1, 2, 3], [50, 1, "inf", 0.5]])
    assert fcnlab("wandb", "push", "runs=runs", "mode=offline") == 0
    assert opened[0].rows[-1] == (50, {"epoch": 1.0, "val/miou": 0.5}) and len(opened[0].rows) == 4


def test_without_runs_the_command_says_so(fcnlab, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert fcnlab("wandb", "push", "runs=empty", "baseline=a") == 1
    output = capsys.readouterr()
    assert "runs=empty: no run found" in output.err and "baseline has no effect on fcnlab wandb push" in output.out


@pytest.mark.parametrize("mode", ["disabled", "online"])
def test_push_ends_within_seconds_without_a_server(make_run, fcnlab, capsys, monkeypatch, mode):
    make_run("a")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert fcnlab("wandb", "push", "runs=runs", *(["mode=online"] if mode == "online" else [])) == 1
    assert "WANDB_MODE=disabled in the environment" in capsys.readouterr().err
