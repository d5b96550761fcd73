"""Test the live view as text."""

import os
import platform
import re

import pytest

from fcnlab.live_view.monitor import Monitor
from fcnlab.live_view.terminal import lines, spark_line
from fcnlab.sweeps.manifest import Job, Manifest
from run_folders import toy_matrices

NO_SCORE = "No run has been scored yet."


@pytest.fixture
def monitor(make_run, tmp_path):
    """Return the monitor of a sweep with a finished, a running and a waiting job, and 20 that failed."""
    sweep = tmp_path / "runs" / "s"
    make_run("s/0", toy_matrices(0.7))
    running = make_run("s/1", status="running", settings={"trainer.max_steps": 80})
    (running / ".lock").write_text(f"{os.getpid()} on {platform.node()}")
    statuses = ["finished", "running", "waiting", *["failed"] * 20]
    names = ["model=fcn8s", "a\x1b[31m" + "long" * 30, *[f"seed={number}" for number in range(2, 23)]]
    jobs = {
        number: Job(number, str(number), [], name, status)
        for number, (name, status) in enumerate(zip(names, statuses, strict=True))
    }
    Manifest(sweep, "train", [], jobs=jobs).write()
    (sweep / ".lock").write_text(f"{os.getpid()} on {platform.node()}")
    monitor = Monitor([tmp_path / "runs"])
    monitor.update(seconds=60)
    return monitor


def test_the_view_says_what_runs_and_what_is_best(monitor):
    text = lines(monitor, 79, 100, colours=False)
    assert text[0] == "1 running, 20 failed, 1 waiting, 1 finished"
    best = " ".join(" ".join(text[1:4]).split())
    assert best.startswith("Best so far: model=fcn8s in s: 50.00 % validation mIoU at step 40, the highest of 2 ")
    assert " runs (finished). It is scored on toys val: " in best
    assert re.search(r"95 % interval over\s+36 images \d\d\.\d\d to \d\d\.\d\d %\.", best)
    assert re.search(r"▶ a\\x1b\[31mlong\S*… running +40 of 80 +31\.00 ▁█", text[5])
    assert len([line for line in text if " failed " in line]) == 20
    assert text[-1].split() == ["✓", "model=fcn8s", "finished", "40", "50.00", "▁█"]


def test_each_sweep_has_its_best_run(make_run, tmp_path):
    """Scores of different sweeps may be of different data, so that one best of all would mislead."""
    for number, score in enumerate((0.25, 0.75, 0.5)):
        folder = make_run(f"{number}/0", status="running")
        (folder / "metrics.csv").write_text(f"step,epoch,val/miou\n10,0,{score}\n")
        statuses = ["running", "waiting"]
        jobs = {place: Job(place, str(place), [], "", status) for place, status in enumerate(statuses)}
        Manifest(tmp_path / "runs" / str(number), "train", [], jobs=jobs).write()
    monitor = Monitor([tmp_path / "runs"])
    monitor.update(seconds=60)
    expected = [
        [f"{number}/0 in {number}: {score:.2f} % validation mIoU at step 10, the highest of 1 run (killed).", NO_SCORE]
        for number, score in ((1, 75), (2, 50), (0, 25))
    ]
    assert monitor.best_runs() == monitor.changes(0, {})["best_runs"] == expected
    assert monitor.best_runs(most=2) == [*expected[:2], ["And 1 more sweep."]]
    text = " ".join(" ".join(lines(monitor, 100, 10**9, colours=False)).split())
    assert f"Best so far: {' '.join(' '.join(each) for each in expected)} run " in text


@pytest.mark.parametrize("width", [20, 48, 79, 100, 300])
@pytest.mark.parametrize("height", [3, 10, 24, 100])
def test_the_view_fits_the_terminal(monitor, width, height):
    text = lines(monitor, width, height, colours=False)
    assert max(map(len, text)) <= max(48, width) and all("\x1b" not in line for line in text)
    assert len(text) <= max(height, 4)
    if height < 20:
        assert re.fullmatch(r"    and \d+ more runs", text[-1])


def test_states_have_the_same_order_in_the_terminal_and_on_the_page(make_run, tmp_path):
    """A run without a result is above all that wait or have one."""
    for place, status in enumerate(["finished", "failed", "interrupted", "strange"]):
        make_run(f"s/{place}", status=status)
    make_run("s/4", status="running")
    (tmp_path / "runs/s/4/.lock").write_text(f"{os.getpid()} on {platform.node()}")
    make_run("killed", status="running")  # without a lock
    names = ["finished", "failed", "interrupted", "damaged", "running", "waiting"]
    jobs = {place: Job(place, str(place), [], name, "waiting") for place, name in enumerate(names)}
    Manifest(tmp_path / "runs/s", "train", [], jobs=jobs).write()
    (tmp_path / "runs/s/.lock").write_text(f"{os.getpid()} on {platform.node()}")
    monitor = Monitor([tmp_path / "runs"])
    monitor.update(seconds=60)
    expected = ["running", "failed", "killed", "damaged", "interrupted", "waiting", "finished"]
    assert [line.split()[1:3] for line in lines(monitor, 79, 24, colours=False)[-7:]] == [
        [name] * 2 for name in expected
    ]
    assert list(monitor.changes(0, {})["statuses"]) == expected


def test_colours_end_with_their_line(monitor):
    coloured = lines(monitor, 79, 24, colours=True)
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in coloured] == lines(monitor, 79, 24, colours=False)
    assert all(line.count("\x1b[") in (0, 2) and line.endswith("m") == ("\x1b" in line) for line in coloured)


def test_an_empty_folder(tmp_path):
    monitor = Monitor([tmp_path])
    monitor.update()
    assert lines(monitor, 79, 24, colours=False)[:2] == [
        "No run was found here yet.",
        "Best so far: No validation yet.",
    ]


@pytest.mark.parametrize(
    ("values", "line"),
    [([], ""), ([1.0], "▁"), ([0.0, 0.5, 1.0], "▁▅█"), (range(24), "▁▂▂▃▄▄▅▅▆▇▇█"), ([3.0] * 99, "▁" * 12)],
)
def test_a_curve_as_bars(values, line):
    assert spark_line(values, 12) == line
