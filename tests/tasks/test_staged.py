"""FCN-32s, then 16s, then 8s: one command trains one run per stage, and can be interrupted in any stage."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

STAGES = ("1-fcn32s", "2-fcn16s", "3-fcn8s")
RECIPE = (
    "experiment=paper/staged", "data=shapes", "model/backbone=tiny", "model.backbone.weights=none", "trainer=smoke",
    "trainer.accelerator=cpu", "logger=csv", "callbacks.progress.enabled=false",
)  # fmt: skip


@pytest.fixture
def staged(small, shapes_root, tmp_path):
    """Start staged training as a user would; return its process."""

    def begin(folder: str, *words: str) -> subprocess.Popen:
        settings = (*RECIPE, *small, f"data.root={shapes_root}", f"hydra.run.dir={tmp_path / folder}", *words)
        command = [sys.executable, "-m", "fcnlab", "train", *settings]
        with (tmp_path / f"{folder}.log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=tmp_path, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )

    return begin


def facts(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, f"no {path}"
        time.sleep(0.02)


@pytest.mark.slow
def test_run_stopped_in_stage_two_resumes_there(staged, tmp_path):
    uninterrupted = staged("straight", "optim.lr=1e-6")
    process = staged("stopped", "optim.lr=1e-6")
    wait_for(tmp_path / "stopped" / STAGES[1] / "metrics.csv", process)
    process.send_signal(signal.SIGTERM)
    whole = tmp_path / "stopped"
    assert process.wait(60) == 128 + signal.SIGTERM
    assert facts(whole)["status"] == facts(whole / STAGES[1])["status"] == "interrupted"
    assert (
        "To resume, add to the same command: checkpoint=auto hydra.run.dir=" in (tmp_path / "stopped.log").read_text()
    )
    assert not (whole / "metrics.json").exists() and not (whole / STAGES[2]).exists()

    assert staged("stopped", "optim.lr=1e-6").wait(60) == 1  # without a request to resume, existing runs are unchanged
    assert staged("stopped", "optim.lr=1e-6", "checkpoint=auto").wait(180) == 0
    assert [facts(whole / stage)["starts"] for stage in STAGES] == [1, 2, 1]
    assert uninterrupted.wait(180) == 0
    for stage in STAGES:
        expected, actual = (weights(tmp_path / folder / stage) for folder in ("straight", "stopped"))
        assert expected.keys() == actual.keys() and all(torch.equal(expected[key], actual[key]) for key in expected)
    for name in ("metrics.json", "confusions.npz"):
        assert (whole / name).read_bytes() == (whole / STAGES[2] / name).read_bytes()
    record = (whole / "run.json").read_bytes()
    assert staged("stopped", "optim.lr=1e-6", "checkpoint=auto").wait(60) == 0  # finished: nothing is changed
    assert (whole / "run.json").read_bytes() == record
    assert staged("stopped", "optim.lr=1e-6", "checkpoint=auto", "evaluation.keep_predictions=none").wait(180) == 0
    assert [facts(whole / stage)["starts"] for stage in STAGES] == [2, 3, 2]  # scored again
    assert (whole / "metrics.json").read_bytes() == (whole / STAGES[2] / "metrics.json").read_bytes()


@pytest.mark.slow
def test_each_stage_starts_from_the_one_before(staged, tmp_path):
    """At a learning rate of 0, FCN-8s still has the weights of FCN-32s, and its new heads are zero."""
    assert staged("run", "optim.lr=0", "trainer.max_steps=1", "trainer.val_check_interval=1").wait(180) == 0
    first, last = (weights(tmp_path / "run" / stage, "best") for stage in (STAGES[0], STAGES[2]))
    assert {key for key in last if key not in first} == {
        f"net.heads.{n}.{p}" for n in (16, 8) for p in ("weight", "bias")
    }
    learned = {key for key in first if "running" not in key and "tracked" not in key}
    assert all(torch.equal(first[key], last[key]) for key in learned)
    assert all(not last[key].any() for key in last if key not in first)


def test_stages_of_a_sweep_job_share_its_group_under_different_names(tmp_path):
    from fcnlab.tasks.staged import Stage, _settings

    typed = ["experiment=paper/staged", "seed=2", "sweep.folder=/sweeps/1", "sweep.name='seed=2'"]
    cfg = OmegaConf.create({"logger": {"wandb": {"group": None}}, "sweep": {"folder": "/sweeps/1", "name": "seed=2"}})
    stages = [Stage("paper/fcn32s", tmp_path / "1-fcn32s"), Stage("paper/fcn16s", tmp_path / "2-fcn16s")]
    assert _settings(cfg, stages, 0, typed) == [*typed[1:], "sweep.name='seed=2 1-fcn32s'"]
    assert _settings(cfg, stages, 1, typed)[-1] == "sweep.name='seed=2 2-fcn16s'"
    typed += ["model.weights=old.ckpt", "model.reset_heads=true"]  # for other classes, and only for the first stage
    assert _settings(cfg, stages, 0, typed)[-3:-1] == typed[-2:]
    assert _settings(cfg, stages, 1, typed)[-2] == "model.reset_heads=false"
    cfg.sweep.folder = None
    assert _settings(cfg, stages, 0, typed)[-1] == f"logger.wandb.group='{tmp_path.name}'"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.backbone.weights=???"], "stage 1-fcn32s: Invalid configuration: "),
        (["checkpoint=best"], "checkpoint=best is not valid for a staged run"),
        (["checkpoint=last"], "contains no stage"),
        (["from_run=."], "no record of a run there"),
    ],
)
def test_invalid_stages_are_refused_before_the_first(fcnlab, tmp_path, capsys, words, message):
    assert fcnlab("train", *RECIPE, f"hydra.run.dir={tmp_path / 'run'}", *words) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("run/1-*"))


def test_finished_stage_accepts_no_other_settings(composed, tmp_path):
    """It does not run again, so the settings would not be used."""
    from fcnlab.errors import UserError
    from fcnlab.training.segments import check_finished

    cfg = composed("optim.lr=0.01")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    check_finished(cfg, tmp_path)
    with pytest.raises(UserError, match=r"cannot use optim\.lr=0\.02 \(was 0\.01\)"):
        check_finished(composed("optim.lr=0.02"), tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("metrics.json", "contains another run, whose scores would be replaced"),
        ("confusions.npz", "contains another run, whose scores would be replaced"),
        ("checkpoints/best.ckpt", "contains another run, whose scores would be replaced"),
        ("1-fcn32s/checkpoints/best.ckpt", "already contains a run: resume it with checkpoint=auto"),
    ],
)
def test_other_runs_are_not_overwritten(fcnlab, tmp_path, capsys, name, message):
    """The last stage's scores would replace those of the run."""
    kept = tmp_path / "run" / name
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"results")
    assert fcnlab("train", *RECIPE, f"hydra.run.dir={tmp_path / 'run'}") == 1
    assert message in capsys.readouterr().err
    assert kept.read_bytes() == b"results"
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name not in (".hydra", "train.log")] == [
        name.partition("/")[0]
    ]


def test_linked_stage_folder_is_refused(fcnlab, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "2-fcn16s").symlink_to("../mine")
    assert fcnlab("train", "experiment=paper/staged", "hydra.run.dir=run", "checkpoint=auto", "trainer=smoke") == 1
    assert "2-fcn16s is a symbolic link" in capsys.readouterr().err and not list((tmp_path / "mine").iterdir())


@pytest.fixture
def experiments(tmp_path):
    """Write a user config folder with ``experiment=a`` and ``b`` as stages; return a function that adds others."""
    folder = tmp_path / "conf"
    (folder / "experiment").mkdir(parents=True)

    def add(**files: str) -> Path:
        for name, text in files.items():
            (folder / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")
        return folder

    add(a="optim: {lr: 0.1}", b="defaults:\n  - override /model: fcn16s\noptim: {lr: 0.2}")
    return add


EXTENDED = "defaults: [a, _self_]\nstages: [a, b]\n"  # like the shipped ones: composed like its first stage


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("stages: [a, b]\noptim: {lr: 0.5}", "optim.lr=0.5 ("),
        ("stages: [a, b]\nseed: 3", "seed=3 (the default has "),
        ("stages: [a, b]\nlogger: {wandb: {group: mine}}", "logger.wandb.group=mine (the default has null)"),
        ("defaults:\n  - override /loss: dice\nstages: [a, b]", "loss._target_="),
        ("stages: [a, b]\nneeds: {data.root: where}", "needs.data.root=where"),
        (EXTENDED + "optim: {lr: 0.5}", "optim.lr=0.5 (experiment=a has 0.1)"),
        (EXTENDED + "optim: {lr: 0.001}", "optim.lr=0.001 (experiment=a has 0.1)"),  # the default
    ],
)
@pytest.mark.usefixtures("composed")
def test_recipe_settings_that_reach_no_stage_are_refused(experiments, text, lost):
    """Two such experiments would train the same runs, but their records would differ."""
    from hydra import compose

    from fcnlab.errors import UserError
    from fcnlab.sweeps.stages import check_settings_reach_stages

    words, where = ["experiment=sta"], [f"hydra.searchpath=[{experiments(sta=text)}]"]
    with pytest.raises(
        UserError, match="experiment=sta sets more than its stages, and no stage would get these settings"
    ) as output:
        check_settings_reach_stages(compose("train", [*where, *words]), words, where)
    assert lost in str(output.value)


@pytest.mark.parametrize("chosen", [["experiment=sta"], ["-m", "experiment=sta,stb"]])
def test_recipe_settings_that_reach_no_stage_are_refused_before_any_work(fcnlab, experiments, tmp_path, capsys, chosen):
    folder = experiments(sta="stages: [a, b]\noptim: {lr: 0.5}", stb="stages: [a, b]\noptim: {lr: 0.6}")
    assert fcnlab("train", "--config-dir", folder, *chosen) == 1
    message = capsys.readouterr().err
    assert "experiment=sta sets more than its stages, and no stage would get these settings: optim.lr=0.5 (" in message
    assert len(chosen) == 1 or ("job 0: " in message and "job 1: " in message and "optim.lr=0.6 (" in message)
    assert not list(tmp_path.glob("outputs/**/run.json")) and not list(tmp_path.glob("outputs/**/metrics.csv"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stages: [a, b]", []),
        ("stages: [a, b]", ["optim.lr=0.5"]),
        ("stages: [a, b]\ncheckpoint: auto\nhydra: {verbose: true}", ["optim=sgd", "optim.momentum=0.5"]),
        (EXTENDED, []),
        (EXTENDED, ["optim.lr=0.5", "model=fcn8s", "+trainer.detect_anomaly=true", "~callbacks.ema"]),
        ("defaults: [b, _self_]\nstages: [a, b]", []),
    ],
)
@pytest.mark.usefixtures("composed")
def test_typed_settings_and_stage_settings_are_accepted(experiments, text, words):
    from hydra import compose

    from fcnlab.sweeps.stages import check_settings_reach_stages

    words = ["experiment=sta", *words]
    where = [f"hydra.searchpath=[{experiments(sta=text)}]"]
    check_settings_reach_stages(compose("train", [*where, *words]), words, where)


@pytest.mark.parametrize("name", ["staged", "cvpr_staged"])
@pytest.mark.usefixtures("composed")
def test_all_settings_of_the_shipped_recipes_reach_a_stage(name):
    from hydra import compose

    from fcnlab.sweeps.stages import check_settings_reach_stages

    for words in ([f"experiment=paper/{name}"], [f"experiment=paper/{name}", *RECIPE[1:]]):
        check_settings_reach_stages(compose("train", words), words, [])


@pytest.fixture
def first_stage(fcnlab, monkeypatch):
    """Run a command up to its first stage; return the words of that stage."""
    from fcnlab.errors import UserError

    started: list[list[str]] = []

    def start(verb, words, *args, **more):
        started.append(words)
        raise UserError("enough")

    monkeypatch.setattr("fcnlab.tasks.staged.start_verb", start)

    def run(*words: str) -> list[str]:
        assert fcnlab("train", *words) == 1
        return started[-1]

    return run


def test_finished_stages_with_changed_free_settings_are_scored_again(fcnlab, monkeypatch, tmp_path, capsys):
    """As a plain run is: a logger is opened, and kept predictions are written. Settings of the training are refused."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from fcnlab.config.composition import compose_command, without_hydra

    started: list[str] = []

    class Ended:
        returncode = 0

    def start(verb: str, words: list[str], *args, **more) -> Ended:
        """Leave the files of a finished run, without training it."""
        folder = Path(OverridesParser.create().parse_override(next(w for w in words if "run.dir=" in w)).value())
        started.append(folder.name)
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints").mkdir(exist_ok=True)
        OmegaConf.save(without_hydra(compose_command(verb, words)), folder / ".hydra" / "config.yaml")
        (folder / "run.json").write_text('{"status": "finished"}')
        (folder / "metrics.json").write_text('{"miou": 1}')
        (folder / "confusions.npz").write_bytes(folder.name.encode())
        return Ended()

    monkeypatch.setattr("fcnlab.tasks.staged.start_verb", start)
    monkeypatch.setattr("fcnlab.tasks.staged.wait_for_process", lambda process: process.returncode)
    monkeypatch.setattr("fcnlab.tasks.staged.check_finished", lambda *_: None)

    def train(*words: str) -> list[str]:
        started.clear()
        assert fcnlab("train", *RECIPE, f"hydra.run.dir={tmp_path / 'run'}", *words) == 0
        return [*started]

    assert train() == [*STAGES]
    assert train("checkpoint=auto") == [] and "so nothing is changed" in capsys.readouterr().out
    assert train("checkpoint=auto", "evaluation.keep_predictions=none") == [*STAGES]
    (tmp_path / "run" / STAGES[1] / "metrics.json").unlink()
    assert train("checkpoint=auto", "evaluation.keep_predictions=none") == [STAGES[1]]
    assert (tmp_path / "run" / "confusions.npz").read_bytes() == STAGES[2].encode()


def test_stages_have_the_number_of_their_job(first_stage, fcnlab, capsys):
    """``${hydra:job.num}`` is resolved by Hydra and is not a setting of the task."""
    words = first_stage(*RECIPE, "hydra.job.num=3", "seed=${hydra:job.num}")
    assert "hydra.job.num=3" in words
    assert not any(word.startswith("hydra.job.num") for word in first_stage(*RECIPE))
    capsys.readouterr()
    assert fcnlab("train", *words, "--cfg", "job", "--resolve") == 0
    assert "\nseed: 3\n" in capsys.readouterr().out


def test_stages_have_the_number_of_their_job_in_the_sweep_process(first_stage):
    assert "hydra.job.num=0" in first_stage("-m", "hydra/launcher=basic", *RECIPE, "seed=${hydra:job.num}")


def test_stages_use_the_searchpath_of_the_recipe(first_stage, experiments):
    folder = experiments(sta="stages: [a, b]")
    where = f"hydra.searchpath=[{folder}]"
    assert where in first_stage(where, "experiment=sta", "trainer=smoke", "logger=csv")
