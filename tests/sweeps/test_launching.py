"""Test the resources, record, job queue and table of a sweep, with jobs that do nothing."""

import errno
import fcntl
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf

from fcnlab.config.overrides import (
    absolute_searchpath,
    command_options,
    format_mapping,
    format_override,
    searchpath_folders,
    shell_join,
    shell_override,
    unquote_value,
)
from fcnlab.errors import UserError
from fcnlab.escaping import escape_line
from fcnlab.signals import Interrupted, StopSignals
from fcnlab.sweeps import resumed_settings
from fcnlab.sweeps.job_checks import check_single_process, launcher_choice, report_user_errors
from fcnlab.sweeps.job_names import job_names
from fcnlab.sweeps.job_queue import JobQueue
from fcnlab.sweeps.launchers import SlotsLauncher, is_finished, shared_run_environment
from fcnlab.sweeps.manifest import Job, Manifest, SweepLock, open_manifest
from fcnlab.sweeps.processes import (
    describe_removed_environment,
    shared_sweep_environment,
    single_process_environment,
    start_process,
)
from fcnlab.sweeps.resources import (
    Requirement,
    ResourcePool,
    gpu_uuids,
    requirement_of,
    slot_limit,
    slots_for,
    visible_gpus,
)
from fcnlab.sweeps.resumed_settings import check_same_folder, check_unchanged
from fcnlab.sweeps.sweep_table import Progress, SweepTable, last_lines, read_last_rows


def table_of(folder: Path, jobs: dict[int, Job]) -> tuple[SweepTable, io.StringIO]:
    out = io.StringIO()
    return SweepTable(Manifest(folder, "train", [], jobs=jobs), dict.fromkeys(jobs, 10), out), out


# --- resources


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        ("0,1,3", ["0", "1", "3"]),
        ("", []),
        ("1,-1,0", ["1"]),  # as in CUDA
        ("NoDevFiles", []),
        ("GPU-8932f937, MIG-0b2c", ["GPU-8932f937", "MIG-0b2c"]),
        ("2,2", ["2"]),
    ],
)
def test_cuda_visible_devices_limits_the_gpus(visible: str, gpus: list[str]):
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": visible}) == gpus


LISTING = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f)
  MIG 3g.20gb     Device  0: (UUID: MIG-7089d0f3-293f-58c9-8f8c-5ea666eedbde)
  MIG 3g.20gb     Device  1: (UUID: MIG-56c30729-347f-5dd6-8da0-c3cb59d8c0c5)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-d6a1-0002)
"""


def test_mig_instances_replace_their_gpu():
    instances = ["MIG-7089d0f3-293f-58c9-8f8c-5ea666eedbde", "MIG-56c30729-347f-5dd6-8da0-c3cb59d8c0c5"]
    assert gpu_uuids(LISTING) == [*instances, "GPU-d6a1-0002"]
    assert gpu_uuids("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.") == []


def test_without_a_driver_there_are_no_gpus(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus({}) == []


def allocated(places: ResourcePool, needs: list[Requirement]) -> list[tuple[str, ...] | None]:
    return [None if (share := places.take(need)) is None else share.gpus for need in needs]


def test_gpus_are_allocated_and_released():
    needs = [Requirement(1, 1), Requirement(2, 2), Requirement(2, 2), Requirement(1, 1)]
    places = ResourcePool(["a", "b", "c", "d"], needs, None, cores=32)
    assert (places.slots, places.threads) == (4, 8)
    share = places.take(needs[0])
    assert share is not None and share.gpus == ("a",)
    assert allocated(places, needs[1:]) == [("b", "c"), None, ("d",)]
    places.release(share)
    assert allocated(places, [Requirement(2, 2), Requirement(1, 1)]) == [None, ("a",)]


def test_fractions_of_a_gpu_go_to_the_gpu_with_most_room():
    third = Requirement(1 / 3, 1)
    places = ResourcePool(["a", "b"], [third], None, cores=12)
    assert (places.slots, places.threads) == (6, 2)
    assert allocated(places, [third] * 7) == [("a",), ("b",), ("a",), ("b",), ("a",), ("b",), None]


def test_slots_limit_the_jobs_on_gpus_too():
    places = ResourcePool(["a", "b", "c"], [Requirement(1, 1)], 2, cores=8)
    assert (places.slots, places.threads) == (2, 4) and allocated(places, [Requirement(1, 1)] * 3) == [
        ("a",),
        ("b",),
        None,
    ]


def test_on_a_cpu_each_process_takes_a_slot():
    places = ResourcePool([], [Requirement(0, 1), Requirement(0, 2)], 3, cores=6)
    assert (places.slots, places.threads) == (3, 2)
    assert allocated(places, [Requirement(0, 2), Requirement(0, 2), Requirement(0, 1)]) == [(), None, ()]
    assert allocated(ResourcePool([], [Requirement(0, 8)], 2, cores=2), [Requirement(0, 8), Requirement(0, 1)]) == [
        (),
        None,
    ]  # all, not never


@pytest.mark.parametrize(("cores", "slots"), [(1, 1), (2, 2), (4, 4), (8, 4), (16, 4), (64, 16)])
def test_slots_follow_from_the_cores(cores: int, slots: int):
    assert slots_for(cores) == slots


def test_an_allocation_limits_the_devices_and_threads_of_a_process(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    share = ResourcePool(["a", "b"], [Requirement(2, 2)], None, cores=8).take(Requirement(2, 2))
    assert share and share.environment() == {"CUDA_VISIBLE_DEVICES": "a,b", "OMP_NUM_THREADS": "4"}
    share = ResourcePool(["a"], [Requirement(1, 1)], None, cores=8).take(Requirement(0, 1))
    assert share and share.environment()["CUDA_VISIBLE_DEVICES"] == ""  # a job without GPUs sees none
    share = ResourcePool([], [Requirement(0, 1)], 1, cores=8).take(Requirement(0, 1))
    assert share and "CUDA_VISIBLE_DEVICES" not in share.environment()  # other kinds of GPU are not limited
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert share.environment() == {"OMP_NUM_THREADS": "3"}


@pytest.mark.parametrize(
    ("trainer", "per_job", "need"),
    [
        ({"devices": 1}, "auto", Requirement(1, 1)),
        ({"devices": 2}, "auto", Requirement(2, 2)),
        ({"devices": "2"}, "auto", Requirement(2, 2)),
        ({"devices": "auto"}, "auto", Requirement(4, 4)),
        ({"devices": -1}, 2, Requirement(2, 2)),  # all visible GPUs
        ({"devices": 1}, 0.5, Requirement(0.5, 1)),
        ({"devices": 1}, 0, Requirement(0, 1)),
        ({"devices": 2, "accelerator": "cpu"}, "auto", Requirement(0, 2)),
        ({"devices": "auto", "accelerator": "cpu"}, "auto", Requirement(0, 1)),
    ],
)
def test_the_requirement_of_a_job_follows_trainer_devices(trainer: dict, per_job, need: Requirement):
    assert requirement_of(trainer, ["a", "b", "c", "d"], per_job, "job 1") == need


@pytest.mark.parametrize(
    ("trainer", "per_job", "message"),
    [
        ({"devices": 8}, "auto", "job 1 needs 8 GPUs, but only 2 are visible: a, b"),
        ({"devices": 2}, 1, "job 1: trainer.devices=2 exceeds hydra.launcher.gpus_per_job=1"),
        ({"devices": [0, 1]}, "auto", r"job 1: trainer.devices=\[0, 1\] lists devices"),
        (
            {"devices": 1},
            1.5,
            "hydra.launcher.gpus_per_job=1.5 must be a whole number, or at most 1 for a part of one GPU",
        ),
        ({"devices": 1}, "many", "hydra.launcher.gpus_per_job=many must be auto or a number of at least 0"),
        ({"devices": 1}, -1, "gpus_per_job=-1"),
    ],
)
def test_a_requirement_that_cannot_be_met_is_an_error(trainer: dict, per_job, message: str):
    with pytest.raises(UserError, match=message):
        requirement_of(trainer, ["a", "b"], per_job, "job 1")


@pytest.mark.parametrize("slots", [0, 1.5, "two", True])
def test_slots_are_a_number_of_jobs(slots):
    with pytest.raises(UserError, match=f"hydra.launcher.slots={slots} must be auto"):
        slot_limit(slots)
    assert slot_limit("auto") is None and slot_limit(3) == 3


# --- names


def test_a_job_is_named_by_the_settings_that_differ():
    words = ["data=shapes", "model=fcn8s,fcn16s", "+optim.x=1", "optim.lr=interval(0.1,1)", "seed=range(3)"]
    job = ["data=shapes", "model=fcn8s", "+optim.x=1", "optim.lr=0.3", "seed=2", "sweep.resume=x"]
    assert job_names({7: job}, words) == {7: "model=fcn8s optim.lr=0.3 seed=2"}
    assert job_names({0: ["seed=1", "seed=1"], 1: ["seed=1", "seed=2"]}, ["seed=1", "seed=1,2"])[0] == "seed=1"


LONG = "/scratch/of/somebody/with/many/folders/in/each/other/and/names/that/go/on/for/a/while/until/the/line/is/full"


@pytest.mark.parametrize(
    ("jobs", "names"),
    [
        (
            [[f"model.weights={LONG}/a.ckpt"], [f"model.weights={LONG}/b.ckpt"]],
            ["model.weights=a.ckpt", "model.weights=b.ckpt"],
        ),
        (
            [[f"model.weights='{LONG} {seed}/a.ckpt'", f"seed={seed}"] for seed in (1, 2)],
            [f"model.weights=full {seed}/a.ckpt seed={seed}" for seed in (1, 2)],
        ),
        ([["data.root=a/x"], ["data.root=b/x"]], ["data.root=a/x", "data.root=b/x"]),
        (
            [["experiment=p/a"], ["experiment=p/b"]],
            ["experiment=p/a", "experiment=p/b"],
        ),  # the name of the option itself
        ([["seed=1"], ["seed=1"]], ["seed=1 #0", "seed=1 #1"]),
        ([[], []], ["#0", "#1"]),
    ],
)
def test_job_names_are_short_and_unique(jobs: list[list[str]], names: list[str]):
    assert list(job_names(dict(enumerate(jobs)), []).values()) == names


def test_a_long_name_is_shortened_in_the_middle():
    jobs = {seed: [f"+a.b={LONG}", f"c={{x:{LONG}}}", f"seed={seed}"] for seed in range(5)}
    names = job_names(jobs, [])
    assert all(len(name) <= 100 and name.startswith("a.b=") for name in names.values())
    assert [name.rpartition(" ")[2] for name in names.values()] == [f"seed={seed}" for seed in range(5)]
    many = {seed: [*(f"key{place}={LONG}" for place in range(30)), f"seed={seed}"] for seed in range(5)}
    assert len(set(job_names(many, []).values())) == 5


# --- the record


def manifest(folder: Path, *names: str) -> Manifest:
    jobs = {number: Job(number, str(number), [name], name) for number, name in enumerate(names)}
    return Manifest(folder, "train", ["seed=1,2"], jobs=jobs)


def test_a_record_is_read_as_written(tmp_path):
    written = manifest(tmp_path, "seed=1", "seed=2")
    written.jobs[1].status, written.jobs[1].exit_code = "failed", 137
    written.end("failed")
    read = open_manifest(tmp_path, "train", ["seed=1,2"], "sweep.resume")
    assert read.jobs == written.jobs and read.status == "running" and read.ended is None
    facts = json.loads((tmp_path / "sweep.json").read_text())
    assert facts["command"] == "fcnlab train -m seed=1,2" and facts["process"]["pid"] == os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_a_sweep_is_resumed_only_on_request(tmp_path):
    manifest(tmp_path).write()
    with pytest.raises(UserError, match=r"already contains a sweep\. Resume it with sweep\.resume="):
        open_manifest(tmp_path, "train", ["seed=1,2"], None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["seed=1,2,3"],
            "only in the record:  seed=1,2\n  only in this sweep:  seed=1,2,3\n"
            "Type the same settings, or none: fcnlab train -m",
        ),
        (["seed=1,2", "optim=sgd"], "those of that sweep:\n  only in this sweep:  optim=sgd\n"),
        ([], "only in the record:  seed=1,2\n"),
    ],
)
def test_differing_settings_are_listed(tmp_path, words: list[str], message: str):
    manifest(tmp_path).write()
    with pytest.raises(UserError) as error:
        open_manifest(tmp_path, "train", words, "sweep.resume")
    assert message in str(error.value)


def test_overrides_in_another_order_are_refused(tmp_path):
    Manifest(tmp_path, "train", ["a=1,2", "b=1,2"]).write()
    with pytest.raises(UserError, match="their order differs"):
        open_manifest(tmp_path, "train", ["b=1,2", "a=1,2"], "sweep.resume")


def test_a_job_with_other_settings_is_refused(tmp_path):
    with pytest.raises(
        UserError,
        match=r"job 1 was started with other settings:\n  only in the record:  seed=2\n  only in this sweep:  seed=3",
    ):
        manifest(tmp_path, "seed=1", "seed=2").plan(Job(1, "1", ["seed=3"], ""))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"jobs": [1]}', '{"jobs": [{"number": 1}]}', '{"jobs": []}', "\xff"],
)
def test_an_invalid_record_is_an_error(tmp_path, text: str):
    (tmp_path / "sweep.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="no valid record of a sweep"):
        open_manifest(tmp_path, "train", [], "sweep.resume")


@pytest.mark.parametrize("folder", ["/etc", "../other"])
def test_a_record_cannot_name_folders_elsewhere(tmp_path, folder: str):
    written = manifest(tmp_path, "seed=1")
    written.jobs[0].folder = folder
    written.write()
    with pytest.raises(UserError, match="folder is outside the sweep's folder"):
        open_manifest(tmp_path, "train", ["seed=1,2"], "sweep.resume")


@pytest.mark.parametrize(
    ("record", "status", "done"),
    [
        ('{"status": "finished"}', "running", True),  # nothing recorded the end
        ('{"status": "running"}', "finished", False),
        ('{"status": "interrupted"}', "waiting", False),
        ('{"stat', "running", False),  # killed while writing
        (None, "waiting", False),
        (None, "finished", True),  # a verb without a run.json
    ],
)
def test_finished_jobs_follow_from_run_json(tmp_path, record: str | None, status, done: bool):
    (tmp_path / "metrics.json").write_text('{"miou": 0.5}')
    (tmp_path / "confusions.npz").touch()
    if record is not None:
        (tmp_path / "run.json").write_text(record)
    job = Job(0, "0", [], "", status=status)
    assert is_finished(job, tmp_path) is done
    (tmp_path / "metrics.json").write_text('{"mio')  # damaged: the job is scored again
    assert not is_finished(job, tmp_path) and not is_finished(job, tmp_path / "gone")


def planned(folder: Path, subdirs: list[str], resumes: bool) -> list[Job]:
    launcher = SlotsLauncher()
    launcher.manifest, launcher.resumes = Manifest(folder, "train", ["seed=1,2"]), resumes
    node: dict = {"job": {"config_name": "train"}}
    hydra = {n: node | {"overrides": {"task": [f"seed={n}"]}, "sweep": {"subdir": s}} for n, s in enumerate(subdirs)}
    return launcher._plan_jobs({number: OmegaConf.create({"hydra": node}) for number, node in hydra.items()})


def test_only_a_resumed_sweep_uses_existing_results(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "run.json").write_text('{"status": "finished"}')
    (tmp_path / "1" / "metrics.json").write_text('{"miou": 0.75, "selection": {"val_miou": 0.5}}')
    (tmp_path / "1" / "confusions.npz").touch()
    assert [(job.status, job.miou) for job in planned(tmp_path, ["0", "1"], True)] == [
        ("waiting", None),
        ("finished", 0.5),
    ]
    assert [(job.status, job.miou) for job in planned(tmp_path, ["0", "1"], False)] == [("waiting", None)] * 2


RECORDED = "optim: {lr: 0.1, momentum: 0.9}\nseed: 1\ncheckpoint: auto\ndata: {num_workers: 2}\nsweep: {name: x}\n"
CURRENT = {
    "optim": {"lr": 0.1, "momentum": 0.9},
    "seed": 1,
    "checkpoint": None,
    "data": {"num_workers": 4},
    "sweep": {"name": None},
}


def unchanged(
    folder: Path, monkeypatch, then: str, settings: str | None, verb: str = "train", subdir: str = "3", **now
) -> None:
    """Compare the recorded and current settings of job 3; ``settings`` is the recorded hash, None for an equal one."""
    (folder / "3" / ".hydra").mkdir(parents=True)
    (folder / "3" / ".hydra" / "config.yaml").write_text(then)
    cfg = OmegaConf.create(CURRENT | now | {"hydra": {"job": {"config_name": verb}, "sweep": {"subdir": subdir}}})
    recorded = settings or resumed_settings.hash_of(resumed_settings.settings_of(cfg))
    record = Manifest(folder, verb, ["seed=1,2"], jobs={3: Job(3, "3", [], "", settings=recorded)})
    monkeypatch.setattr(resumed_settings, "compose_jobs", lambda context, config, jobs, first: {first: cfg})
    check_unchanged(None, cfg, {3: ["seed=1"], 4: ["seed=2"]}, record)  # pyright: ignore


@pytest.mark.parametrize(
    ("then", "now", "verb", "message"),
    [
        (RECORDED, {"optim": {"lr": 0.2, "momentum": 0.9}}, "train", "job 3: optim.lr=0.2 (was 0.1)\n"),
        (RECORDED, {"optim": {"lr": 0.1}}, "train", "job 3: optim.momentum=null (was 0.9)\n"),
        (RECORDED, {"seed": "${hydra:job.num}"}, "train", "job 3: seed=${hydra:job.num} (was 1)\n"),
        (RECORDED, {"checkpoint": "b.ckpt"}, "eval", "job 3: checkpoint=b.ckpt (was auto)\n"),
        ("{", {}, "train", "job 3: unknown settings, since 3/.hydra/config.yaml is not readable\n"),
    ],
)
def test_changed_settings_of_a_file_are_named(tmp_path, monkeypatch, then, now, verb, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        unchanged(tmp_path, monkeypatch, then, "another", verb, **now)
    assert f"would get other settings:\n{message}Restore the files" in str(error.value)
    assert str(error.value).endswith(f"or start a new sweep: fcnlab {verb} -m seed=1,2")


def test_settings_without_effect_do_not_prevent_resuming(tmp_path, monkeypatch):
    unchanged(tmp_path, monkeypatch, RECORDED, "another")


def test_settings_that_each_job_decides_are_not_compared(tmp_path, monkeypatch):
    """A job's record has the precision that ``auto`` chose."""
    then = RECORDED + "trainer: {precision: 32-true}\n"
    unchanged(tmp_path, monkeypatch, then, "another", trainer={"precision": "auto"})
    with pytest.raises(UserError, match=r"job 3: trainer\.precision=bf16-mixed \(was 32-true\)"):
        unchanged(tmp_path / "b", monkeypatch, then, "another", trainer={"precision": "bf16-mixed"})


def test_settings_added_by_a_newer_version_cause_a_warning(tmp_path, monkeypatch, caplog):
    with caplog.at_level("WARNING", logger="fcnlab"):
        unchanged(tmp_path, monkeypatch, RECORDED, "another", optim={"lr": 0.1, "momentum": 0.9, "nesterov": False})
    assert "did not exist when the jobs were started:\njob 3: optim.nesterov=false (was null)" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "rate", "there", "message"),
    [
        ("lr", "${oc.decode:${oc.env:LR}}", "0.2", {"optim": {"lr": 0.1}}, "job 3: optim.lr=0.2 (was 0.1)\n"),
        ("lr", "${oc.decode:${oc.env:LR}}", "0.1", {"optim": {"lr": 0.1}}, ""),
        ("lr", "${oc.decode:${oc.env:LR}}", None, {"optim": {"lr": 0.1}}, ""),  # it cannot be resolved here
        ("lr", "${oc.decode:${oc.env:LR}}", "0.2", {}, ""),  # no config.yaml: killed before it was written
        (
            "betas",
            ["${oc.env:LR}", 1],
            "2",
            {"optim": {"betas": ["3", 1]}},
            "job 3: optim.betas=['2', 1] (was ['3', 1])\n",
        ),
        ("x", "${oc.create:{lr:1}}", None, {"optim": {"x": {"lr": 2}}}, "job 3: optim.x.lr=1 (was 2)\n"),
        ("a.b", "${oc.env:LR}", "1", {"optim": {"a.b": "2"}}, ""),
        ("lr", "${seed}", None, {"optim": {"lr": 2}}, ""),  # follows another setting
    ],
)
def test_changed_values_of_interpolations_cause_a_warning(
    tmp_path, monkeypatch, caplog, name, text, rate, there, message
):
    """For example of the environment: the composed text is the same."""
    monkeypatch.delenv("LR", raising=False) if rate is None else monkeypatch.setenv("LR", rate)
    (tmp_path / "3").mkdir()
    OmegaConf.save(OmegaConf.create(there), tmp_path / "3" / "config.yaml")
    with caplog.at_level("WARNING", logger="fcnlab"):
        unchanged(tmp_path, monkeypatch, RECORDED, None, optim={name: text})
    assert [record.getMessage().partition("current values:\n")[2].startswith(message) for record in caplog.records] == [
        True
    ] * bool(message)


def test_a_value_with_changed_text_causes_no_interpolation_warning(tmp_path, monkeypatch, caplog):
    """A file changed it. The sweep is refused, without a warning about jobs that will not run."""
    monkeypatch.setenv("LR", "0.2")
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "config.yaml").write_text("optim: {lr: 0.1}")
    text, momentum = "${oc.decode:${oc.env:LR}}", "momentum: 0.9"
    with caplog.at_level("WARNING", logger="fcnlab"), pytest.raises(UserError, match=r"job 3: optim\.lr=\$\{oc"):
        unchanged(tmp_path, monkeypatch, RECORDED, "another", optim={"lr": text, "momentum": 0.9})
    assert not caplog.records
    (tmp_path / "b" / "3").mkdir(parents=True)
    (tmp_path / "b" / "3" / "config.yaml").write_text("optim: {lr: 0.1}")
    then = RECORDED.replace(f"lr: 0.1, {momentum}", momentum)  # a newer version has added it
    with caplog.at_level("WARNING", logger="fcnlab"):
        unchanged(tmp_path / "b", monkeypatch, then, "another", optim={"lr": text, "momentum": 0.9})
    assert len(caplog.records) == 1 and "did not exist" in caplog.text


@pytest.mark.parametrize(
    ("statuses", "left"),
    [(["finished", "finished"], False), (["finished", "failed"], True), (["finished"], True), ([], True)],
)
def test_jobs_are_left_until_all_have_finished(tmp_path, statuses, left: bool):
    record = manifest(tmp_path, *(f"seed={number}" for number in range(len(statuses))))
    for number, status in enumerate(statuses):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "run.json").write_text(json.dumps({"status": status}))
        (tmp_path / str(number) / "metrics.json").write_text('{"miou": 0.5}')
        (tmp_path / str(number) / "confusions.npz").touch()
    jobs = {0: ["seed=0"], 1: ["seed=1"]}
    assert resumed_settings.nothing_left_to_run(jobs, record) is not left
    assert not resumed_settings.nothing_left_to_run(jobs, None)  # of a launcher without a record


def test_changed_interpolations_without_effect_on_scores_are_ignored(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CORES", "4")
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "config.yaml").write_text("data: {num_workers: 2}")
    with caplog.at_level("WARNING", logger="fcnlab"):
        unchanged(tmp_path, monkeypatch, RECORDED, None, data={"num_workers": "${oc.decode:${oc.env:CORES}}"})
    assert not caplog.records


def test_a_resumed_sweep_keeps_its_job_folders(tmp_path, monkeypatch):
    """Overrides of Hydra are not restored: jobs that are not planned yet would be in other folders."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        unchanged(tmp_path, monkeypatch, RECORDED, "another", subdir="seed=1")
    assert str(error.value).startswith(
        "sweep.resume=.: hydra.sweep.subdir has changed: the folder of job 3 was 3, and would now be seed=1. Add "
    )
    assert str(error.value).endswith("hydra.sweep.subdir=... with its old value, which is not in sweep.json")
    words = "'hydra.sweep.subdir=${hydra.job.num}' 'hydra.job.config.override_dirname.item_sep= '"
    (tmp_path / "sweep.json").write_text(json.dumps({"command": f"fcnlab train -m hydra.launcher.slots=1 {words}"}))
    with pytest.raises(UserError) as error:
        check_same_folder(*as_today(tmp_path, "seed=1"))
    assert str(error.value).endswith(f"Add {words}")
    for of_the_hour in ("${now:%H}", "${oc.env:HOME}"):
        check_same_folder(*as_today(tmp_path, of_the_hour))


def as_today(folder: Path, subdir: str):
    """Job 3 is in the folder 3, but would now be in another one."""
    config = OmegaConf.create({"hydra": {"sweep": {"subdir": subdir}}})
    return Manifest(folder, "train", ["seed=1,2"]), Job(3, "3", [], ""), "other", config


def test_two_jobs_cannot_share_a_folder(tmp_path):
    with pytest.raises(
        UserError, match=r"jobs 0 and 1 would both use the folder .*same\. Give each job its own hydra\.sweep\.subdir"
    ):
        planned(tmp_path, ["same", "same"], False)


def test_a_second_process_is_refused(tmp_path):
    lock = SweepLock(tmp_path)
    lock.own.claim()
    with pytest.raises(UserError, match=f"process {os.getpid()} on .* is working there"):
        SweepLock(tmp_path)
    lock.release()
    SweepLock(tmp_path).release()


@pytest.mark.parametrize("name", [".lock", ".jobs.lock"])
@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.symlink_to("../mine"),
        lambda path: path.hardlink_to(path.parents[1] / "mine"),
        lambda path: os.mkfifo(path),
        Path.mkdir,
    ],
)
def test_a_lock_file_that_is_a_link_or_pipe_is_refused(tmp_path, name, make):
    """In a folder from someone else, the link's target would be emptied."""
    (tmp_path / "mine").write_text("all my work")
    (tmp_path / "sweep").mkdir()
    make(tmp_path / "sweep" / name)
    with pytest.raises(UserError, match=r"is a (link, or not a regular file|hard link)"):
        SweepLock(tmp_path / "sweep")
    assert (tmp_path / "mine").read_text() == "all my work"


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_the_output_of_a_job_is_not_appended_to_a_link(tmp_path, link):
    (tmp_path / "mine").write_text("all my work")
    link(tmp_path / "job.log", tmp_path / "mine")
    with pytest.raises(
        UserError,
        match=r"is a (link, .* is not written to|hard link: writing to it would change)",
    ):
        start_process([sys.executable, "-c", "print('mine now')"], None, tmp_path / "job.log", held=())
    assert (tmp_path / "mine").read_text() == "all my work"


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.write_text("[]")]
)
def test_a_record_that_is_not_a_regular_file_is_an_error(tmp_path, make):
    make(tmp_path / "sweep.json")
    with pytest.raises(UserError, match="no valid record of a sweep"):
        open_manifest(tmp_path, "train", [], "sweep.resume")


def test_pipes_and_endless_files_are_not_read(tmp_path):
    for name in ("metrics.csv", "job.log"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "zero").symlink_to("/dev/zero")
    assert read_last_rows(tmp_path / "metrics.csv") == read_last_rows(tmp_path / "zero") == []
    assert last_lines(tmp_path / "job.log", 3) == last_lines(tmp_path / "zero", 3) == []
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "metrics.csv").write_text("step,val/miou\n\u00b2,0.1\n4,high\n5,0.5\n")
    progress = Progress(total=10)
    progress.read(tmp_path)
    assert (progress.step, progress.miou) == (5, 0.5)


def test_escape_sequences_in_job_names_are_escaped(tmp_path):
    jobs = {0: Job(0, "0", [], "a\x1b[2J\r", status="finished", miou=0.5)}
    table, out = table_of(tmp_path, jobs)
    table.log("message \x1b]0;owned\x07")
    table.close("last \x1b[2J")
    assert not set(out.getvalue()) & {"\x1b", "\r", "\x07"} and "a\\x1b[2J" in out.getvalue()


def test_the_record_is_read_only_after_locking(tmp_path):
    """Before that, another process may still be writing the record."""
    hydra = {
        "job": {"config_name": "train"},
        "sweep": {"dir": str(tmp_path)},
        "overrides": {"task": [], "hydra": []},
        "runtime": {"config_sources": []},
    }
    config = OmegaConf.create({"hydra": hydra, "sweep": {"resume": str(tmp_path)}})
    lock = SweepLock(tmp_path)
    with pytest.raises(CompactHydraException, match="is working there"):  # and not: there is no record
        SlotsLauncher().setup(hydra_context=None, task_function=None, config=config)
    lock.release()


def test_hydra_parses_the_resume_command(tmp_path):
    folder = tmp_path / "a b=c,d"
    stopped = Manifest(folder, "eval", [], launched_by=["--config-dir", "/my conf", "hydra.launcher.slots=2"])
    completed = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {stopped.resume_command}"], capture_output=True, text=True, check=True
    )
    words = completed.stdout.split("\n")[:-1]
    assert words[:-1] == ["fcnlab", "eval", "-m", "--config-dir", "/my conf", "hydra.launcher.slots=2"]
    resume = OverridesParser.create().parse_override(words[-1])
    assert (resume.key_or_group, resume.value()) == ("sweep.resume", str(folder))


def test_the_resume_command_keeps_the_options():
    sources = [{"provider": "main", "path": "/conf"}, {"provider": "command-line", "path": "/mine"}]
    words = ["hydra/launcher=slots", "hydra.sweep.dir=x", "hydra.launcher.slots=2"]
    hydra = OmegaConf.create({"overrides": {"hydra": words}, "runtime": {"config_sources": sources}})
    assert launcher_choice(hydra) == ["--config-dir", "/mine", "hydra/launcher=slots", "hydra.launcher.slots=2"]


def test_a_sweep_waits_for_jobs_of_an_earlier_process(tmp_path):
    lock = SweepLock(tmp_path)
    assert lock.jobs.try_acquire()
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[lock.jobs.inherited]) as job:
        lock.release()
        after = SweepLock(tmp_path)
        assert not after.jobs.try_acquire()
        job.communicate(b"\n")
    assert after.jobs.try_acquire()
    after.release()


# --- running


def fake(code: str, tmp_path: Path, held=()) -> subprocess.Popen:
    return start_process([sys.executable, "-S", "-c", code], None, tmp_path / "job.log", held)


def sweep(tmp_path: Path, codes: dict[str, str], slots: int = 2, started: list | None = None) -> JobQueue:
    """Return a function that runs a sweep whose jobs execute these lines of Python."""
    record = manifest(tmp_path, *codes)
    needs = dict.fromkeys(record.jobs, Requirement(0, 1))

    def begin(job: Job, share) -> subprocess.Popen:
        if started is not None:
            started.append((job.number, len(running.running)))
        (tmp_path / job.folder).mkdir()
        return fake(codes[job.name], tmp_path / job.folder)

    table = SweepTable(record, dict.fromkeys(record.jobs, 10), io.StringIO())
    running = JobQueue(record, ResourcePool([], list(needs.values()), slots, 2), needs, begin, table)
    return running


SCORE = "from pathlib import Path; import os; os.chdir(os.path.dirname(os.readlink('/proc/self/fd/1')));"
SCORE += "Path('metrics.json').write_text('{\"miou\": %s}')"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fake jobs find their folder in /proc")
def test_a_failed_job_does_not_stop_the_others(tmp_path):
    started: list = []
    codes = {"a": SCORE % 0.25, "b": "print('so sorry'); raise SystemExit(3)", "c": SCORE % 0.5, "d": SCORE % "null"}
    running = sweep(tmp_path, codes, started=started)
    with StopSignals() as signals:
        running.run(list(running.manifest.jobs.values()), signals)
    jobs = running.manifest.jobs
    assert [job.status for job in jobs.values()] == ["finished", "failed", "finished", "finished"]
    assert [job.exit_code for job in jobs.values()] == [0, 3, 0, 0]
    assert [job.miou for job in jobs.values()] == [0.25, None, 0.5, None]
    assert [number for number, _ in started] == [0, 1, 2, 3] and max(others for _, others in started) == 1
    assert json.loads((tmp_path / "sweep.json").read_text())["jobs"][1]["exit_code"] == 3
    assert (tmp_path / "1" / "job.log").read_text() == "so sorry\n"
    message = running.table.out.getvalue()
    assert "Job 1 failed with exit code 3 after" in message and "best 50.00 % (job 2: c)" in message


SAVES = """
import signal, sys, time
def stop(*_): print("saved"); sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True: time.sleep(0.02)
"""


def when(happened, then) -> None:
    """Call a function from another thread once a condition holds."""

    def wait() -> None:
        deadline = time.monotonic() + 20
        while not happened() and time.monotonic() < deadline:
            time.sleep(0.02)
        then()

    threading.Thread(target=wait, daemon=True).start()


def ready(log: Path) -> bool:
    return log.is_file() and "ready" in log.read_text()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_running_jobs_save_their_state_on_a_signal(tmp_path, signum):
    running = sweep(tmp_path, {"a": SAVES, "b": SAVES, "c": SAVES})
    logs = [tmp_path / name / "job.log" for name in ("0", "1")]
    when(lambda: all(map(ready, logs)), lambda: os.kill(os.getpid(), signum))
    with StopSignals() as signals, pytest.raises(Interrupted) as stopped:
        running.run(list(running.manifest.jobs.values()), signals)
    assert stopped.value.code == 128 + signum
    assert [job.status for job in running.manifest.jobs.values()] == ["interrupted", "interrupted", "waiting"]
    assert all(log.read_text() == "ready\nsaved\n" for log in logs)


def test_a_second_ctrl_c_kills_the_jobs(tmp_path):
    running = sweep(tmp_path, {"a": SAVES.replace("sys.exit(143)", "print('saving', flush=True)")})
    log = tmp_path / "0" / "job.log"
    when(lambda: ready(log), lambda: os.kill(os.getpid(), signal.SIGINT))
    when(lambda: log.is_file() and "saving" in log.read_text(), lambda: os.kill(os.getpid(), signal.SIGINT))
    with StopSignals() as signals, pytest.raises(Interrupted):
        running.run(list(running.manifest.jobs.values()), signals)
    (process,) = [job.process for job in running.running.values()]
    assert process.wait(5) == -signal.SIGKILL


def test_running_jobs_save_their_state_on_an_error_of_the_sweep(tmp_path):
    running = sweep(tmp_path, {"a": SAVES, "b": SAVES})
    start, log = running.start, tmp_path / "0" / "job.log"

    def begin_one(job: Job, share) -> subprocess.Popen:
        if job.number == 1:
            deadline = time.monotonic() + 20
            while not ready(log) and time.monotonic() < deadline:
                time.sleep(0.02)
            raise OSError("no space left")
        return start(job, share)

    running.start = begin_one
    with StopSignals() as signals, pytest.raises(OSError, match="no space left"):
        running.run(list(running.manifest.jobs.values()), signals)
    assert not running.running and log.read_text() == "ready\nsaved\n"  # the sweep waited for it
    assert [job.status for job in running.manifest.jobs.values()] == ["interrupted", "waiting"]


def test_a_full_disk_stops_the_sweep_like_a_signal(tmp_path, monkeypatch):
    running = sweep(tmp_path, {"a": SAVES, "b": SAVES, "c": "raise SystemExit(3)"}, slots=3)
    logs, write = [tmp_path / name / "job.log" for name in ("0", "1")], Manifest.write

    def write_while_there_is_room(manifest: Manifest) -> None:
        if any(job.status == "failed" for job in manifest.jobs.values()):
            while not all(map(ready, logs)):
                time.sleep(0.02)
            raise OSError(errno.ENOSPC, "No space left on device", "sweep.json.part")
        write(manifest)

    monkeypatch.setattr(Manifest, "write", write_while_there_is_room)
    launcher = SlotsLauncher()
    launcher.manifest = running.manifest
    with StopSignals() as signals, pytest.raises(UserError) as error, launcher._os_errors_reported():
        running.run(list(running.manifest.jobs.values()), signals)
    assert "No space left on device" in str(error.value) and running.manifest.resume_command in str(error.value)
    assert not running.running and all(log.read_text() == "ready\nsaved\n" for log in logs)
    assert [job.status for job in running.manifest.jobs.values()] == ["interrupted", "interrupted", "failed"]


def test_remaining_processes_of_a_failed_job_are_killed(tmp_path, monkeypatch):
    """A rank that waits for a dead one would keep its GPU."""
    monkeypatch.setattr("fcnlab.sweeps.job_queue.RANK_GRACE_PERIOD", 0.5)
    rank = "import signal, time; print('ready', flush=True); time.sleep(600)"
    code = f"import subprocess, sys; rank = subprocess.Popen([sys.executable, '-S', '-c', {rank!r}]); print(rank.pid)"
    running = sweep(tmp_path, {"a": f"{code}; sys.exit(1)"})
    with StopSignals() as signals:
        running.run(list(running.manifest.jobs.values()), signals)
    pid = int(next(word for word in (tmp_path / "0" / "job.log").read_text().split() if word.isdigit()))
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_jobs_do_not_inherit_rank_variables(monkeypatch):
    for name in ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED",
                 "TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_PROCID"):  # fmt: skip
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    environment = single_process_environment()
    assert environment == {name: value for name, value in os.environ.items() if name in environment}
    assert not {"LOCAL_RANK", "MASTER_PORT", "PL_GLOBAL_SEED", "SLURM_NTASKS"} & environment.keys()
    assert {"PATH", "SLURM_JOB_ID"} <= environment.keys()


SINGLE_RUN_VARIABLES = (
    "WANDB_RUN_ID", "WANDB_NAME", "WANDB_RUN_NAME", "WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM",
    "WANDB_RUN_STORAGE_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH",
)  # fmt: skip
SHARED_VARIABLES = ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_MODE", "WANDB_RUN_GROUP", "WANDB_TAGS")


def test_jobs_do_not_inherit_the_name_of_a_wandb_run(monkeypatch):
    for name in (*SINGLE_RUN_VARIABLES, *SHARED_VARIABLES):
        monkeypatch.setenv(name, "x")
    for environment in (single_process_environment(), shared_sweep_environment()):
        assert not set(SINGLE_RUN_VARIABLES) & environment.keys() and set(SHARED_VARIABLES) <= environment.keys()
    with shared_run_environment():
        assert dict(os.environ) == shared_sweep_environment() and describe_removed_environment() is None
    assert set(SINGLE_RUN_VARIABLES) <= os.environ.keys()
    assert ", ".join(sorted(SINGLE_RUN_VARIABLES)) in (describe_removed_environment() or "")


def test_the_folder_of_wandb_in_the_environment_is_not_silently_ignored(monkeypatch):
    for name in (*SINGLE_RUN_VARIABLES, "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert describe_removed_environment() is None
    monkeypatch.setenv("WANDB_DIR", "x")
    assert (describe_removed_environment() or "").startswith("WANDB_DIR in the environment has no effect, since wandb/")
    assert "WANDB_DIR" not in shared_sweep_environment()
    monkeypatch.setenv("WANDB_NAME", "x")
    assert re.fullmatch(
        "WANDB_NAME in the .* of its own. WANDB_DIR in the .* sweep", describe_removed_environment() or ""
    )


def test_inherited_files_stay_locked_while_a_job_lives(tmp_path):
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = fake("import time; time.sleep(600)", tmp_path, held=[file.fileno()])
    with (tmp_path / "lock").open("w") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.kill()
        process.wait(5)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_settings_survive_quotes():
    assert format_override("a.b", r"it's C:\x") == r"a.b='it\'s C:\x'"
    assert format_override("a.b", "/plain/path-1.x") == "a.b=/plain/path-1.x"
    assert format_override("a.b", "plain/path-1.x") == "a.b=plain/path-1.x"
    for words in (["a='b c'"], [r"a='it\'s'", 'b="c"'], ["$x", "a='$x'", "`ls`!"], ["", "é"]):
        completed = subprocess.run(
            ["sh", "-c", f"printf '%s\\n' {shell_join(words)}"], capture_output=True, text=True, check=True
        )
        assert completed.stdout.split("\n")[:-1] == words


@pytest.mark.parametrize("word", [b"d\xe9j\xe0", b"x='/d\xe9 \\it's'", b"two\nlines\x1b[1m", "\u202e é\xa0".encode()])
def test_unprintable_characters_are_typed_as_bytes(word: bytes):
    line = shell_join(["a", os.fsdecode(word)])
    assert escape_line(line) == line and line.isprintable()
    assert subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True).stdout == b"a\0" + word + b"\0"


@pytest.mark.parametrize("path", ["a/b", "a b/c,d='e'", 'f"g', "$x", "h\\"])
def test_printed_overrides_are_parsed_unchanged(path: str):
    (word,) = shlex.split(shell_override("checkpoint", path))
    assert OverridesParser.create().parse_override(word).value() == path


def test_the_recorded_command_keeps_config_folders(tmp_path):
    further = ["hydra.searchpath=[mine]"]
    command = Manifest(
        tmp_path, "train", ["optim=own"], launched_by=["--config-dir", "c", *further, "hydra/launcher=x"]
    )
    assert command.command == "fcnlab train -m --config-dir c 'hydra.searchpath=[mine]' hydra/launcher=x optim=own"
    hydra = {"overrides": {"hydra": further}, "runtime": {"config_sources": []}}
    assert command_options(OmegaConf.create(hydra)) == further


@pytest.mark.parametrize(
    ("entries", "absolute"),
    [
        ("file://mine", "file://{}/mine"),
        ("mine,/else", "{}/mine,/else"),
        ("'my conf',pkg://mine", "'{}/my conf','pkg://mine'"),
        ("/else,file:///else", "/else,file:///else"),
        ("pkg://mine", "pkg://mine"),
    ],
)
def test_a_relative_searchpath_is_recorded_as_absolute(monkeypatch, tmp_path, entries: str, absolute: str):
    monkeypatch.chdir(tmp_path)
    word = absolute_searchpath(f"hydra.searchpath=[{entries}]")
    assert word == absolute_searchpath(word) == f"hydra.searchpath=[{absolute.format(tmp_path)}]"


@pytest.mark.parametrize(
    "word",
    ["seed=1", "hydra.searchpath=mine", "hydra.searchpath=[a],[b]", "hydra.searchpath=[", "hydra.searchpath=[1]"],
)
def test_other_words_are_unchanged(word: str):
    assert absolute_searchpath(word) == word and searchpath_folders([word]) == []


@pytest.mark.parametrize(
    "text", [r"a\b", r"a\'b", "a\\", r"a\\'\\", "/tmp/a b=c,d", "'", '"', "/home/é", "é/b", "a/b", "", "1", "null", "."]
)
def test_hydra_parses_quoted_values_unchanged(text: str):
    """Checked with Hydra's parser."""
    word = format_override("x", text)
    assert OverridesParser.create().parse_override(word).value() == text
    assert unquote_value(word.removeprefix("x=")) == text


@pytest.mark.parametrize(
    "text", ["${seed}", "a${", r"\${seed}", r"\\${oc.env:HOME}'", r"a\b'${x}\c", "$x{", "${${x}}\\"]
)
def test_formatted_values_are_taken_literally(text: str):
    """Checked with OmegaConf, which would interpolate them."""
    word = format_override("x", text)
    value = OverridesParser.create().parse_override(word).value()
    assert OmegaConf.create({"x": value, "seed": 3}).x == text == unquote_value(word.removeprefix("x="))
    mapping = OverridesParser.create().parse_override(f"x={format_mapping({'${x}, {y}': text})}").value()
    assert dict(OmegaConf.create(mapping)) == {"${x}, {y}": text}


@pytest.mark.parametrize("text", ["'", "'a", "a b", ".", "", '"a'])
def test_unquoted_values_stay_unchanged(text: str):
    assert unquote_value(text) == text


# --- output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def new_table(tmp_path: Path, out: io.StringIO) -> SweepTable:
    record = manifest(tmp_path, *(f"model=fcn8s seed={seed}" for seed in range(40)))
    for number, (status, miou) in enumerate([("finished", 0.25), ("failed", None), ("running", None)]):
        record.jobs[number].status, record.jobs[number].miou = status, miou
    return SweepTable(record, dict.fromkeys(record.jobs, 100), out)


def test_the_table_fits_the_terminal_and_omits_waiting_jobs(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    lines = new_table(tmp_path, Terminal()).lines(width=80, height=10)
    assert len(lines) <= 10 and max(map(len, lines)) <= 80
    output = "\n".join(lines)
    assert lines[1].split() == ["job", "settings", "state", "val", "mIoU", "time"]
    assert "1 finished, 1 failed, 1 running, 37 waiting" in output and "and 34 more" in output
    assert "✗    1" in output and "▶    2  model=fcn8s seed=2  0 of 100" in output and "*  25.00 %" in output
    assert len(new_table(tmp_path, Terminal()).lines(width=80)) == 42


def test_only_terminals_get_colours_and_cursor_movement(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    live, plain = new_table(tmp_path, Terminal()), new_table(tmp_path, io.StringIO())
    for table in (live, plain):
        table.refresh()
        table.refresh()  # too early for another update
        table.log("news")
        table.close("the end")
    drawn, after = live.out.getvalue().split("\x1b[", 1)[1].count("settings"), live.out.getvalue().partition("news")[2]
    assert drawn == 2 and "\x1b[31m" in live.out.getvalue()  # once while it ran, and the whole table at the end
    assert "A\x1b[J" in live.out.getvalue() and "A\x1b[J" not in after
    assert "\x1b" not in plain.out.getvalue() and f"the end\nSweep folder: {tmp_path}\n" in plain.out.getvalue()


def test_the_next_command_is_printed_after_the_last_batch(tmp_path):
    jobs = {number: Job(number, str(number), [], f"seed={number}", status="finished") for number in (1, 2)}
    for count, ended, words in ((2, True, 2), (2, False, 0), (1, True, 1)):
        some = dict(list(jobs.items())[:count])
        out = io.StringIO()
        SweepTable(Manifest(tmp_path / "a sweep", "train", [], jobs=some), dict.fromkeys(some, 10), out).close(
            ended=ended
        )
        last = [f"Sweep folder: {tmp_path}/a sweep", f"Next: fcnlab compare 'runs={tmp_path}/a sweep'"][:words]
        assert out.getvalue().splitlines()[2 + count :] == last


def test_the_only_job_of_a_sweep_has_a_name(tmp_path):
    job = Job(0, "0", [], "", status="finished")
    out = io.StringIO()
    table = SweepTable(Manifest(tmp_path, "train", [], jobs={0: job}), {0: 10}, out)
    table.job_started(job, "the CPU")
    table.job_ended(job)
    assert "Job 0 started on the CPU\n" in out.getvalue() and "finished after 0 s. 1 finished" in out.getvalue()
    assert table.lines(80)[2].split()[:4] == ["✓", "0", "-", "finished"]


def test_the_summary_is_printed_after_a_long_silence(tmp_path):
    table = new_table(tmp_path, io.StringIO())
    table.refresh()
    assert table.out.getvalue() == ""
    table._reported_at -= 601
    table.refresh()
    table.refresh()
    assert table.out.getvalue().count("1 finished, 1 failed, 1 running, 37 waiting") == 1


def test_the_time_left_is_estimated_from_finished_jobs(tmp_path):
    table = new_table(tmp_path, io.StringIO())
    assert table.seconds_left() is None
    table.began = time.monotonic() - 60  # the first job was done before, and the second failed: both are ignored
    table.progress[2].step = 50
    assert table.seconds_left() == pytest.approx(60 / 0.5 * 37.5, rel=0.01)


CURVES = "step,epoch,train/loss,val/miou\n10,0,1.5,\n20,0,1.4,0.25\n30,1,1.3,0.125\n"


def test_progress_is_read_from_the_curves_while_they_are_written(tmp_path):
    progress = Progress(100)
    progress.read(tmp_path)
    assert (progress.step, progress.miou, progress.fraction) == (0, None, 0.0)
    (tmp_path / "2-fcn16s").mkdir()  # of a stage
    (tmp_path / "2-fcn16s" / "metrics.csv").write_text(CURVES + "40,1,1.")
    progress.read(tmp_path)
    assert (progress.step, progress.miou, progress.fraction) == (30, 0.25, 0.3)


def test_only_the_end_of_long_curves_is_read(tmp_path):
    rows = "".join(f"{step},0,1.5,\n" for step in range(10, 200_000, 10))
    (tmp_path / "metrics.csv").write_text("step,epoch,train/loss,val/miou\n" + rows)
    last_rows = read_last_rows(tmp_path / "metrics.csv")
    assert 1000 < len(last_rows) < 10_000 and last_rows[-1]["step"] == "199990"
    assert all(row["train/loss"] == "1.5" for row in last_rows)


def test_short_rows_of_a_long_header_take_no_memory(tmp_path):
    """Missing cells are not stored: 20,000 rows of 10,000 names would be 200 million."""
    (tmp_path / "metrics.csv").write_text(",".join(map(str, range(10_000))) + "\n" + ",\n" * 20_000)
    assert read_last_rows(tmp_path / "metrics.csv") == [{"0": "", "1": ""}] * 20_000


def test_the_last_lines_of_a_log_omit_progress_bar_history(tmp_path):
    (tmp_path / "job.log").write_bytes(
        b"one\ntwo\n\nEpoch 1\rEpoch 2\rEpoch 3\r\nthe \xff end\nError executing job with overrides: []\n"
    )
    assert last_lines(tmp_path / "job.log", 3) == ["two", "Epoch 3", "the � end"]
    assert last_lines(tmp_path / "none", 3) == []


# --- in one process


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (
            {"devices": 2},
            r"job 1: trainer.devices=2 does not work .* Leave hydra/launcher=basic out, or set trainer.devices=1",
        ),
        ({"devices": 1, "strategy": "ddp"}, "trainer.strategy=ddp .* or set trainer.strategy=auto"),
        ({"devices": "auto"}, "trainer.devices=auto"),
        ({"devices": 1, "num_nodes": 2}, "trainer.num_nodes=2"),
    ],
)
def test_the_basic_launcher_refuses_jobs_with_several_processes(trainer: dict, message: str):
    hydra = {"hydra": HydraConf()}
    fine = OmegaConf.create(hydra | {"trainer": {"devices": 1, "strategy": "auto"}})
    check_single_process(
        {0: fine, 1: OmegaConf.create(hydra | {"runs": ["a"]})}
    )  # a verb that trains and scores nothing
    with pytest.raises(UserError, match=message):
        check_single_process({0: fine, 1: OmegaConf.create(hydra | {"trainer": trainer})})


def test_user_errors_are_reported_without_traceback():
    with pytest.raises(CompactHydraException, match="fcnlab train: no"), report_user_errors("train"):
        raise UserError("no")


def test_no_job_starts_if_one_is_invalid(fcnlab, capsys, tmp_path):
    words = ["train", "-m", "trainer=smoke", "optim=adamw,sgd", "+optim.momentun=0.9", "hydra.sweep.dir=sweep"]
    assert fcnlab(*words) == 1
    message = capsys.readouterr().err
    assert (
        "job 0: Invalid configuration" in message
        and "job 1: Invalid configuration" in message
        and "optim.momentum?" in message
    )
    assert not list(tmp_path.iterdir())
    assert fcnlab("train", "-m", "trainer=smoke", "trainer.devices=1,2", "hydra/launcher=basic") == 1
    assert "job 1: trainer.devices=2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("launcher", ["slots", "basic"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("seed=range(3,3)",), "has no value"),
        (("hydra/sweeper=optuna", "optim.lr=interval(-1,1)"), "optim.lr must be"),
        (("seed=1", "model=fcn8s,fcn9z"), "fcn9z"),
        (("seed=1,2", "data=${nothing}"), "nothing"),
    ],
)
def test_a_refused_sweep_creates_no_folder(fcnlab, tmp_path, capsys, launcher: str, words, message: str):
    assert fcnlab("train", "-m", "trainer=smoke", f"hydra/launcher={launcher}", *words) == 1
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [("seed=1,2",), pytest.param(("hydra/sweeper=optuna", "optim.lr=interval(0.1,0.2)"), marks=pytest.mark.slow)],
)
def test_a_sweep_that_its_launcher_refuses_leaves_the_folder_as_it_was(fcnlab, tmp_path, capsys, words):
    """At that time the sweeper has already written Hydra's record and the storage of a search."""
    refused = ("train", "-m", "trainer=smoke", *words, "hydra.launcher.gpus_per_job=many")
    assert fcnlab(*refused) == 1 and not list(tmp_path.iterdir())
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "multirun.yaml").write_text("mine")
    (tmp_path / "sweep" / ".lock").touch()
    assert fcnlab(*refused, "hydra.sweep.dir=sweep") == 1
    assert "gpus_per_job=many" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == [".lock", "multirun.yaml"]


def test_a_folder_with_only_lock_files_counts_as_empty(fcnlab, tmp_path, capsys):
    """A killed sweep leaves lock files."""
    words = ("train", "-m", "hydra/launcher=basic", "seed=range(3,3)", "hydra.sweep.dir=sweep")
    SweepLock(tmp_path / "sweep").release()
    assert fcnlab(*words) == 1
    assert "has no value" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == [".jobs.lock", ".lock"]
    lock = SweepLock(tmp_path / "sweep")
    assert fcnlab(*words) == 1
    assert "another process is working there" in capsys.readouterr().err
    lock.release()
