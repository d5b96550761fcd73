"""Test the live view as text."""

import os
import platform
import re

import pytest

from fcnlab.live_view.monitor import Monitor
from fcnlab.live_view.terminal import lines, spark_line
from fcnlab.sweeps.manifest import Job, Manifest
from run_folders import toy_matrices


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
    assert text[0] == "1 running, 1 waiting, 1 finished, 20 failed"
    best = " ".join(text[1:3])
    assert best.startswith("Best so far: model=fcn8s, 50.00 % validation mIoU at step 40. Scored: ")
    assert re.search(r"95 % interval over\s+36 images \d\d\.\d\d to \d\d\.\d\d %\.", best)
    assert re.search(r"▶ a\\x1b\[31mlong\S*… running +40 of 80 +31\.00 ▁█", text[4])
    assert len([line for line in text if " failed " in line]) == 20
    assert text[-1].split() == ["✓", "model=fcn8s", "finished", "40", "50.00", "▁█"]


@pytest.mark.parametrize("width", [20, 48, 79, 100, 300])
@pytest.mark.parametrize("height", [3, 10, 24, 100])
def test_the_view_fits_the_terminal(monitor, width, height):
    text = lines(monitor, width, height, colours=False)
    assert max(map(len, text)) <= max(48, width) and all("\x1b" not in line for line in text)
    assert len(text) <= max(height, 4)
    if height < 20:
        assert re.fullmatch(r"    and \d+ more runs", text[-1])


def test_colours_end_with_their_line(monitor):
    coloured = lines(monitor, 79, 24, colours=True)
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in coloured] == lines(monitor, 79, 24, colours=False)
    assert all(line.count("\x1b[") in (0, 2) and line.endswith("m") == ("\x1b" in line) for line in coloured)


def test_an_empty_folder(tmp_path):
    monitor = Monitor([tmp_path])
    monitor.update()
    assert lines(monitor, 79, 24, colours=False)[:2] == [
        "No run was found here yet.",
        "Best so far: no validation yet.",
    ]


@pytest.mark.parametrize(
    ("values", "line"),
    [([], ""), ([1.0], "▁"), ([0.0, 0.5, 1.0], "▁▅█"), (range(24), "▁▂▂▃▄▄▅▅▆▇▇█"), ([3.0] * 99, "▁" * 12)],
)
def test_a_curve_as_bars(values, line):
    assert spark_line(values, 12) == line
