"""Test that affinity and the quotas of control groups limit the cores."""

import os

import pytest
import torch

from fcnlab import cores
from fcnlab.cores import visible_cores
from fcnlab.data.loader_workers import worker_count
from fcnlab.training.hardware import limit_threads_to_cores


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Simulate a machine with 64 cores and control groups with these files."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    monkeypatch.setattr(cores, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(cores, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def build(membership: str, **files: str) -> None:
        (tmp_path / "membership").write_text(membership)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return build


VERSION_1 = "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/\n"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "nonsense\n"}, 64),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "800000 100000\n"}, 4),
        ("0::/named/by/the/host\n", {"cpu.max": "500000 100000\n"}, 5),
        (VERSION_1, {"cpu/docker/x/cpu.cfs_quota_us": "200000", "cpu/docker/x/cpu.cfs_period_us": "100000"}, 2),
        (VERSION_1, {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "10000\n"}, 5),
        (VERSION_1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        (VERSION_1, {}, 64),
        ("", {"cpu.max": "200000 100000\n"}, 64),
    ],
)
def test_a_quota_limits_the_cores(machine, membership, files, expected):
    machine(membership, **files)
    assert visible_cores() == expected
    assert worker_count("auto") == min(8, expected)


def test_without_control_groups_all_cores_count(machine):
    assert visible_cores() == 64


@pytest.mark.parametrize(("typed", "expected"), [(None, 2), ("5", 7)])
def test_torch_starts_no_more_threads_than_cores_by_default(machine, monkeypatch, typed, expected):
    machine("0::/\n", **{"cpu.max": "200000 100000\n"})
    if typed:
        monkeypatch.setenv("OMP_NUM_THREADS", typed)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(7)
        limit_threads_to_cores()
        assert torch.get_num_threads() == expected
        torch.set_num_threads(1)
        limit_threads_to_cores()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
