"""Test what is shown of runs and sweeps whose folders grow, are damaged, or belong to killed processes."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import bootstrap

from fcnlab.files.locks import FolderLock, read_holder
from fcnlab.live_view import monitor as module
from fcnlab.live_view.monitor import Monitor
from fcnlab.live_view.run_state import resident_memory
from fcnlab.live_view.score_interval import score_interval
from fcnlab.metrics.conventions import class_areas
from fcnlab.metrics.scores import scores
from fcnlab.sweeps.manifest import Job, Manifest
from fcnlab.tasks.watch import whole_view
from run_folders import toy_matrices, write_run

HEADER = "step,epoch,train/loss,val/miou\n"


@pytest.fixture
def ended_process() -> int:
    """Return the id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def monitor(runs, monkeypatch):
    monkeypatch.setattr(module, "SEARCH_AFTER", 0.0)
    return Monitor([runs])


@pytest.fixture
def start(make_run):
    """Write the folder of a run that is running in the process of ``pid`` on ``host``."""

    def run(name: str, pid: int = os.getpid(), host: str = platform.node(), **facts):
        folder = make_run(name, status="running", **facts)
        (folder / "metrics.csv").unlink()
        (folder / ".lock").write_text(f"{pid} on {host}")
        return folder

    return run


def rows(monitor) -> dict:
    monitor.update(seconds=60)
    return {row["folder"]: row for row in monitor.rows}


def append(folder, text: str) -> None:
    with (folder / "metrics.csv").open("a") as file:
        file.write(text)


def test_a_running_run_grows_and_finishes(monitor, start, make_run):
    folder = start("a", settings={"trainer.max_steps": 100, "trainer.max_epochs": -1})
    row = rows(monitor)["a"]
    assert (row["status"], row["step"], row["best"], row["total"]) == ("running", None, None, 100)
    assert row["memory"] == pytest.approx(resident_memory(os.getpid()), abs=100) and row["memory"] > 10
    append(folder, HEADER + "10,0,2.0,\n20,0,,0.5\n")
    os.utime(folder / "metrics.csv", (1000, 1000))
    row = rows(monitor)["a"]
    assert (row["step"], row["best"], row["best_step"], row["loss"]) == (20, 0.5, 20, 2.0)
    append(folder, "30,0,1.5,\n40,0,,0.25\n")
    os.utime(folder / "metrics.csv", (1010, 1010))
    row = rows(monitor)["a"]
    assert (row["step"], row["best"], row["best_step"], row["loss"]) == (40, 0.5, 20, 1.5)
    assert row["rate"] == 2.0 and row["left"] == 30.0  # 20 steps in 10 s, and 60 left
    shutil.rmtree(folder)
    make_run("a", toy_matrices(0.7))
    row = rows(monitor)["a"]
    assert (row["status"], row["rate"], row["memory"]) == ("finished", None, 100)
    assert row["best"] == 0.5 and row["best_step"] == 40  # of the selection that its metrics.json records
    assert row["images"] == 36 and row["interval"][0] < row["scored"] < row["interval"][1]


def test_the_interval_is_that_of_a_bootstrap_over_images(make_run):
    matrices = toy_matrices(0.7, images=60)
    areas = class_areas(matrices)

    def miou(places, axis=-1):
        sums = [np.asarray(part)[places].sum(axis=-2) for part in (areas[0], areas[2])]
        return (sums[0] / sums[1]).mean(axis=-1)

    scipys = bootstrap((np.arange(60),), miou, n_resamples=4000, method="percentile", rng=1).confidence_interval
    value = float(miou(np.arange(60)))
    found = score_interval(make_run("a", matrices), value)
    width = scipys.high - scipys.low
    assert not isinstance(found, str) and found.images == 60
    assert abs(found.low - scipys.low) < 0.15 * width and abs(found.high - scipys.high) < 0.15 * width
    assert score_interval(make_run("b", matrices), value + 0.01) == "confusions.npz belongs to another score"


def test_the_best_run_says_why_it_has_no_interval(make_run, tmp_path):
    matrices = toy_matrices(0.7, images=60)
    matrices[9:, 0, :], matrices[9:, :, 0] = 0, 0
    make_run("a", matrices)
    monitor = Monitor([tmp_path / "runs"])
    monitor.update(seconds=60)
    miou = scores(matrices.sum(axis=0)).miou
    reason = "no interval: fewer than 10 images contain one of its classes"
    assert monitor.best_runs()[0][1] == f"It is scored on toys val: {100 * miou:.2f} % ({reason})."


def test_a_run_that_is_scored_has_no_time_left(make_run, tmp_path):
    """Its steps are done, and its evaluation takes a time that nothing here knows."""
    folder = make_run("a", status="running", settings={"trainer.max_steps": 40})
    (folder / ".lock").write_text(f"{os.getpid()} on {platform.node()}")
    monitor = Monitor([tmp_path / "runs"])
    monitor.update(seconds=60)
    (row,) = monitor.rows
    assert (row["status"], row["step"], row["total"], row["left"]) == ("running", 40, 40, None)


def test_the_current_folder_is_named(make_run, tmp_path, monkeypatch):
    make_run("a")
    monkeypatch.chdir(tmp_path / "runs")
    assert Monitor([Path(), Path("a")]).changes(0, {})["folders"] == [str(tmp_path / "runs"), "a"]


@pytest.mark.parametrize("status", ["finished", "interrupted", "failed"])
def test_a_recorded_status_holds_whatever_the_process(monitor, make_run, ended_process, status):
    folder = make_run("a", status=status)
    (folder / ".lock").write_text(f"{ended_process} on {platform.node()}")
    assert rows(monitor)["a"]["status"] == status


def test_a_run_whose_process_has_ended_is_killed(monitor, start, ended_process, runs):
    start("killed", pid=ended_process)
    start("elsewhere", pid=ended_process, host="another-machine")
    unclaimed = start("unclaimed")
    (unclaimed / ".lock").unlink()
    found = rows(monitor)
    assert {name: row["status"] for name, row in found.items()} == {
        "killed": "killed",
        "elsewhere": "running",
        "unclaimed": "killed",
    }
    assert "on another-machine" in found["elsewhere"]["reason"]


def test_a_process_that_reuses_the_number_does_not_hold_the_folder(tmp_path):
    lock = FolderLock(tmp_path)
    lock.claim()
    assert read_holder(tmp_path) == (os.getpid(), platform.node(), True)
    os.utime(tmp_path / ".lock", (1, 1))  # claimed long before this process began
    assert read_holder(tmp_path) == (os.getpid(), platform.node(), False)
    for text in ("", "x on y", "12", "1234567890123 on y", "\0"):
        (tmp_path / ".lock").write_text(text)
        assert read_holder(tmp_path) is None


def test_a_run_that_is_killed_while_it_is_watched(monitor, start):
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    try:
        folder = start("a", pid=process.pid)
        append(folder, HEADER + "10,0,2.0,0.25\n")
        assert rows(monitor)["a"]["status"] == "running"
    finally:
        process.kill()
        process.wait()
    row = rows(monitor)["a"]
    assert row["status"] == "killed" and row["best"] == 0.25 and row["memory"] is None
    (folder / ".lock").write_text(f"{os.getpid()} on {platform.node()}")  # resumed
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"starts": 2, "started": "2026-11-24T12:00:00+00:00"}))
    assert rows(monitor)["a"]["status"] == "running"


def write_sweep(folder, statuses: list[str], **facts) -> None:
    jobs = {
        number: Job(number, str(number), [f"seed={number}"], f"seed={number}", status)
        for number, status in enumerate(statuses)
    }
    folder.mkdir(exist_ok=True, parents=True)
    Manifest(folder, "train", ["seed=0,1,2"], jobs=jobs, **facts).write()


def test_the_jobs_of_a_sweep_are_named_and_counted(monitor, start, make_run, runs, ended_process):
    make_run("s/0", toy_matrices(0.7))
    append(start("s/1"), HEADER + "10,0,2.0,0.25\n")
    write_sweep(runs / "s", ["finished", "running", "waiting"])
    (runs / "s" / ".lock").write_text(f"{os.getpid()} on {platform.node()}")
    found = rows(monitor)
    assert [(row["name"], row["job"], row["status"]) for row in found.values()] == [
        ("seed=0", 0, "finished"),
        ("seed=1", 1, "running"),
        ("seed=2", 2, "waiting"),
    ]
    (sweep,) = monitor.sweep_rows()
    assert sweep["counts"] == {"finished": 1, "running": 1, "waiting": 1} and sweep["status"] == "running"
    assert sweep["best"] == sweep["best_scored"] == found["s/0"]["number"]
    append(runs / "s/1", "20,0,1.0,0.75\n")
    best = rows(monitor)["s/1"]
    (sweep,) = monitor.sweep_rows()
    assert sweep["best"] == best["number"] and sweep["best_scored"] == found["s/0"]["number"]
    (runs / "s" / ".lock").write_text(f"{ended_process} on {platform.node()}")
    rows(monitor)
    assert monitor.sweep_rows()[0]["status"] == "killed"


def test_a_job_is_failed_if_its_sweep_says_so(monitor, start, runs, ended_process):
    start("s/0", pid=ended_process)
    start("s/1", pid=ended_process)
    (runs / "s" / "2").mkdir()
    (runs / "s" / "2" / "job.log").write_text("Traceback\n")
    write_sweep(runs / "s", ["failed", "running", "running"])
    (runs / "s" / ".lock").write_text(f"{ended_process} on {platform.node()}")
    assert [row["status"] for row in rows(monitor).values()] == ["failed", "killed", "killed"]


def test_damaged_and_foreign_files_are_shown_as_such(monitor, make_run, runs):
    make_run("good")
    for name, content in {
        "half": b'{"status": "runn',
        "list": b"[1, 2]",
        "bytes": b"\xff\x00",
        "status": b'{"status": "\\u001b[31mgreat<script>"}',
        "deep": b'{"status": ' + b"[" * 10_000,
    }.items():
        (make_run(name, status="running") / "run.json").write_bytes(content)
    (make_run("pipe", status="running") / "run.json").unlink()
    os.mkfifo(runs / "pipe" / "run.json")
    (make_run("scores") / "metrics.json").write_bytes(b"{")
    (make_run("matrices") / "confusions.npz").write_bytes(b"PK")
    (make_run("curves") / "metrics.csv").unlink()
    (runs / "curves" / "metrics.csv").mkdir()
    (make_run("digits") / "metrics.csv").write_text(f"step,epoch\n\u00b2,0\n{'9' * 5000},0\n")
    (runs / "loop").symlink_to(runs / "loop")
    write_sweep(runs / "s", ["running"])
    (runs / "s" / "sweep.json").write_text('{"jobs": [{"folder": "/etc"}]}')
    write_sweep(runs / "outside", ["running"])
    text = (runs / "outside" / "sweep.json").read_text()
    (runs / "outside" / "sweep.json").write_text(text.replace('"folder": "0"', '"folder": "../../x"'))
    found = rows(monitor)
    damaged = {name for name, row in found.items() if row["status"] == "damaged"}
    assert damaged == {"half", "list", "bytes", "status", "deep", "pipe", "digits"}
    assert found["half"]["reason"].startswith("run.json is damaged or half written")
    assert "\x1b" not in found["status"]["reason"] and found["good"]["interval"]
    assert found["scores"]["scored"] is None and found["matrices"]["interval"] is None
    assert {sweep["name"]: sweep["status"] for sweep in monitor.sweep_rows()} == {
        "": "",
        "s": "damaged",
        "outside": "damaged",
    }
    assert len(monitor.notes) == 1 and "a broken link" in monitor.notes[0]
    json.dumps(monitor.changes(0, {}), allow_nan=False)


def test_other_commands_and_other_folders_are_no_runs(monitor, make_run, runs):
    (make_run("compare", verb="compare", status="none") / "metrics.csv").unlink()
    (runs / "notes").mkdir()
    (runs / "notes" / "text.txt").write_text("a note")
    make_run("evaluated", verb="eval")
    assert {name: row["status"] for name, row in rows(monitor).items()} == {"evaluated": "finished"}
    assert rows(monitor)["evaluated"]["best"] is None and rows(monitor)["evaluated"]["scored"] > 0


def test_only_changes_are_sent(monitor, start, make_run, runs):
    folder = start("a")
    make_run("b")
    append(folder, HEADER + "10,0,2.0,\n")
    rows(monitor)
    first = monitor.changes(0, {})
    numbers = {row["folder"]: row["number"] for row in first["rows"]}
    assert set(numbers) == {"a", "b"} and first["removed"] == []
    rows(monitor)
    assert monitor.changes(first["version"], {})["rows"] == []
    append(folder, "20,0,1.0,0.5\n")
    shutil.rmtree(runs / "b")
    rows(monitor)
    second = monitor.changes(first["version"], {numbers["a"]: 0, numbers["b"]: 0, 99: 0})
    assert [row["folder"] for row in second["rows"]] == ["a"] and second["removed"] == [numbers["b"]]
    (curves,) = second["curves"]
    assert curves["points"] == {"val/miou": [(20, 0.5)], "train/loss": [(10, 2.0), (20, 1.0)], "val/loss": []}
    assert monitor.changes(second["version"], {numbers["a"]: curves["version"]})["curves"] == []


def test_nothing_is_written_or_locked(monitor, start, make_run, runs):
    make_run("s/0")
    append(start("s/1"), HEADER + "10,0,2.0,0.5\n")
    write_sweep(runs / "s", ["finished", "running"])
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(runs.rglob("*"))}
    rows(monitor)
    monitor.changes(0, dict.fromkeys(monitor.runs, 0))
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(runs.rglob("*"))}
    FolderLock(runs / "s" / "1").release()


def test_settled_runs_are_read_once(monitor, make_run, monkeypatch):
    make_run("a")
    rows(monitor)
    monkeypatch.setattr(module, "SEARCH_AFTER", 3600.0)
    monkeypatch.setattr("fcnlab.live_view.run_state.file_stamp", None)  # any look at its files would fail
    assert rows(monitor)["a"]["status"] == "finished"


def write_long_curve(folder, rows: int) -> None:
    """Write rows whose steps are counted from 1, and whose last score is the highest."""
    text = "".join(f"{step},0,1.0,{step / rows / 2:.6f}\n" for step in range(1, rows + 1))
    (folder / "metrics.csv").write_text(HEADER + text)


@pytest.fixture
def short_parts(monkeypatch):
    monkeypatch.setattr("fcnlab.live_view.curves.READ_AT_A_TIME", 1000)


@pytest.mark.parametrize("status", ["interrupted", "failed", "running"])
def test_a_long_curve_is_read_to_its_end(monitor, start, short_parts, status):
    """A run without scores is read in parts, also after it has ended."""
    write_long_curve(start("a") if status == "running" else (folder := start("b")), 500)
    if status != "running":
        (folder / "run.json").write_text(json.dumps({"status": status, "reason": "why"}))
    view = whole_view(monitor)
    (row,) = monitor.rows
    assert (row["status"], row["step"], row["best"], row["best_step"]) == (status, 500, 0.5, 500)
    assert not monitor.is_reading and any("50.00" in line for line in view)


def test_the_bars_of_a_finished_run_are_those_of_its_whole_curve(monitor, make_run, short_parts):
    write_long_curve(make_run("a"), 500)
    assert "▁▂▂▃▄▄▅▅▆▇▇█" in whole_view(monitor)[-1]  # of a curve that rises evenly to its end
    assert monitor.runs[1].curves.step == 500


def test_the_parts_of_a_long_curve_are_no_progress(monitor, start, short_parts):
    folder = start("a")
    write_long_curve(folder, 500)
    os.utime(folder / "metrics.csv", (1000, 1000))
    while rows(monitor)["a"]["step"] != 500:
        assert monitor.rows[0]["rate"] is None
    append(folder, "540,0,1.0,\n")
    os.utime(folder / "metrics.csv", (1010, 1010))
    assert rows(monitor)["a"]["rate"] == 4.0  # 40 steps in 10 s


def test_a_damaged_run_with_a_long_curve_ends_the_reading(monitor, start, short_parts):
    folder = start("a")
    write_long_curve(folder, 500)
    rows(monitor)
    (folder / "run.json").write_text('{"status": []}')
    whole_view(monitor)
    assert rows(monitor)["a"]["status"] == "damaged"


def test_numbers_that_no_table_can_show_are_left_out(monitor, make_run):
    """Each is valid JSON or CSV."""
    selection = {"val_miou": 7e300, "step": 1e300}
    folders = [make_run(name, selection=selection) for name in ("curve", "none")]
    (folders[0] / "metrics.csv").write_text(HEADER + "10,0,,0.25\n20,0,,-5\n30,0,,7e300\n")
    (folders[1] / "metrics.csv").write_text(HEADER + f"{'9' * 4000},0,,0.75\n")
    facts = json.loads((folders[0] / "run.json").read_text())
    (folders[0] / "run.json").write_text(json.dumps(facts | {"status": "interrupted"}))
    (folders[0] / "metrics.json").unlink()
    found = rows(monitor)
    assert (found["curve"]["best"], found["curve"]["best_step"]) == (0.25, 10)
    assert (found["none"]["best"], found["none"]["best_step"], found["none"]["step"]) == (None, None, None)


def test_secrets_in_records_are_hidden(monitor, make_run, runs):
    make_run("s/0", status="failed", reason="boom mysql://u:pw@h/x")
    folder = runs / "s" / "0"
    long = "x" * 480 + " mysql://user:" + "p" * 100 + "@host"  # longer than what is shown
    (folder / "run.json").write_text(json.dumps({"status": "failed", "reason": long}))
    write_sweep(runs / "s", ["failed"])
    text = (runs / "s" / "sweep.json").read_text()
    (runs / "s" / "sweep.json").write_text(text.replace('"name": "seed=0"', '"name": "password=abc"'))
    row = rows(monitor)["s/0"]
    assert row["name"] == "password=[hidden]" and "ppp" not in row["reason"]
    assert row["reason"].endswith("x mysql://[hidden]@ho") and len(row["reason"]) == 500


def test_a_folder_with_several_paths_is_one_run(make_run, runs, monkeypatch):
    make_run("s/0")
    make_run("other")
    write_sweep(runs / "s", ["finished"])
    (runs / "best").symlink_to(runs / "s" / "0")  # found before the job
    (runs.parent / "link").symlink_to(runs)
    monkeypatch.chdir(runs)
    monitor = Monitor([Path("../runs"), runs, Path(), runs.parent / "link"])
    found = rows(monitor)
    assert {name: row["name"] for name, row in found.items()} == {"s/0": "seed=0", "other": ""}
    assert len(monitor.sweeps) == 1


def test_the_stages_of_a_run_are_part_of_it(monitor, start, runs, make_run):
    """The row has the numbers of the newest stage, and no stage has a row."""
    job = start("s/0")
    first, second = make_run("s/0/1-fcn32s"), start("s/0/2-fcn16s", settings={"trainer.max_steps": 300})
    os.utime(first / "metrics.csv", (1000, 1000))
    write_sweep(runs / "s", ["running", "waiting"])
    (runs / "s" / ".lock").write_text(f"{os.getpid()} on {platform.node()}")
    row = rows(monitor)["s/0"]
    assert (row["step"], row["best"]) == (40, 0.31)  # those of the first stage
    append(second, HEADER + "10,0,2.0,\n100,0,,0.125\n")
    found = rows(monitor)
    assert {name: row["status"] for name, row in found.items()} == {"s/0": "running", "s/1": "waiting"}
    (runs / "best").symlink_to(runs / "s" / "0")  # by which the stages are found then
    found = rows(monitor)
    assert list(found) == ["s/0", "s/1"]
    row = found["s/0"]
    assert (row["name"], row["step"], row["total"], row["best"]) == ("seed=0", 100, 300, 0.125)
    assert job.exists() and monitor.sweep_rows()[0]["counts"] == {"running": 1, "waiting": 1}


def test_a_stage_has_no_stages(monitor, make_run):
    for name in ("a", "a/1-b", "a/1-b/1-c", "d/1-e"):
        make_run(name)
    assert sorted(rows(monitor)) == ["a", "a/1-b/1-c", "d/1-e"]


def test_only_validated_runs_are_counted_for_the_best(monitor, start, make_run, runs):
    make_run("s/0")
    start("s/1")
    write_sweep(runs / "s", ["finished", "running", "waiting"])
    (runs / "s" / ".lock").write_text(f"{os.getpid()} on {platform.node()}")
    rows(monitor)
    assert monitor.sweep_rows()[0]["validated"] == 1


def test_a_link_leads_no_job_out_of_its_sweep(monitor, runs, make_run):
    """a/b/../../private is inside the sweep if the link is followed, and sw/../private if it is not."""
    make_run("private")
    (runs / "sw" / "a" / "b").mkdir(parents=True)
    (runs / "sw" / "link").symlink_to("a/b")
    write_sweep(runs / "sw", ["finished"])
    text = (runs / "sw" / "sweep.json").read_text()
    for name in ("link/../../private", "", str(runs / "sw" / "a")):
        (runs / "sw" / "sweep.json").write_text(text.replace('"folder": "0"', f'"folder": "{name}"'))
        assert [(row["folder"], row["job"]) for row in rows(monitor).values()] == [("private", None)]
        assert {sweep.status for sweep in monitor.sweeps.values()} == {"damaged"}


@pytest.mark.slow
def test_a_thousand_runs_take_a_fraction_of_a_second(tmp_path, monkeypatch):
    """100 of them run. Seconds of this process are counted, since other tests run at the same time."""
    monkeypatch.setattr("fcnlab.files.writing._sync", lambda path: None)
    sweep, original = tmp_path / "s", write_run(tmp_path / "original", toy_matrices(0.7))
    statuses = ["running" if number % 10 == 0 else "finished" for number in range(1000)]
    write_sweep(sweep, statuses)
    claim = f"{os.getpid()} on {platform.node()}"
    (sweep / ".lock").write_text(claim)
    curve = HEADER + "".join(f"{step},0,{2 - step / 1000},{step / 1000}\n" for step in range(10, 1000, 10))
    for number, status in enumerate(statuses):
        folder = sweep / str(number)
        folder.mkdir()
        append(folder, curve)
        (folder / "run.json").write_text(json.dumps({"status": status}))
        if status == "running":
            (folder / ".lock").write_text(claim)
        else:
            for name in ("metrics.json", "confusions.npz"):
                (folder / name).hardlink_to(original / name)
    monitor = Monitor([sweep])
    while not monitor.runs or monitor.changes(0, {})["unread"]:
        monitor.update()
    monitor.update(seconds=3600)
    assert len(monitor.rows) == 1000 and sum(row["interval"] is not None for row in monitor.rows) == 900
    times = []
    for turn in range(10):
        for number in range(0, 1000, 50):
            append(sweep / str(number), f"{1000 + 10 * turn},0,1.0,{turn / 10}\n")
        monitor._searched_at = -3600.0  # with a search for new folders
        version, began = monitor.version, time.process_time()
        monitor.update(seconds=3600)
        changes = monitor.changes(version, dict.fromkeys(range(1, 9), 0))
        times.append(time.process_time() - began)
        assert len(changes["rows"]) >= 20 and len(changes["curves"]) == 8
    print(f"an update of 1,000 runs: {np.median(times):.3f} s, at most {max(times):.3f} s")
    assert np.median(times) < 0.3


def test_a_job_as_recorded(runs):
    """The record that write_sweep makes is that of a sweep."""
    write_sweep(runs / "s", ["waiting"])
    job = json.loads((runs / "s" / "sweep.json").read_text())["jobs"][0]
    assert job == asdict(Job(0, "0", ["seed=0"], "seed=0", "waiting"))
