"""A few of the harness's disturbances; ``make faults`` does hundreds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("harness.py")
KINDS = {
    *("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGKILL", "second process"),
    *("truncated", "flipped", "data gone", "worker killed", "disk full"),
}


def disturb(count: int, seed: int) -> dict:
    command = [sys.executable, HARNESS, "--count", str(count), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "seed"),
    [pytest.param(len(KINDS), 1, id="one of each"), pytest.param(24, 2, id="dozens", marks=pytest.mark.campaign)],
)
def test_disturbed_runs_end_as_undisturbed_ones(count, seed):
    report = disturb(count, seed)
    assert report["faults"] >= count and not report["broken"]
    assert {*report["by_kind"], *report["not_possible_here"]} == set(KINDS)
