"""``fcnlab.compose``, ``fcnlab.train`` and ``fcnlab.compare``: in any thread, beside another Hydra app."""

import json
import logging
import os
import shlex
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import Image

import fcnlab
from fcnlab.training.segmenter import Segmenter


@pytest.fixture
def overrides(small, shapes_root, quick_probe, tmp_path, monkeypatch) -> list[str]:
    """Return the overrides of the fixture ``train_code``, without its folder."""
    monkeypatch.chdir(tmp_path)
    return [*small, f"data.root={shapes_root}", "trainer=smoke", "trainer.accelerator=cpu", "logger=csv"]


def test_a_composed_config_builds_a_network_beside_another_hydra_app(tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "other.yaml").write_text("lr: 1\n")
    words = ["model=fcn32s", "model.backbone.width=4", "data.num_workers=0"]
    HydraConfig.instance().cfg = None
    with hydra.initialize_config_dir(str(tmp_path / "conf"), version_base="1.2"):
        before = GlobalHydra.instance().config_loader()
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(lambda seed: fcnlab.compose([*words, f"seed={seed}"]), (1, 2))
        assert hydra.compose("other") == {"lr": 1}
        assert GlobalHydra.instance().config_loader() is before and not HydraConfig.initialized()
    assert (first.seed, second.seed) == (1, 2)
    net = hydra.utils.instantiate(first.model)
    assert isinstance(net, fcnlab.FCN) and tuple(net.heads) == ("32",)
    resolved = OmegaConf.to_container(second, resolve=True)
    assert isinstance(resolved, dict) and resolved["data"]["seed"] == 2
    assert Path(resolved["callbacks"]["best"]["dirpath"]).parts[-2:] != ("outputs", "checkpoints")


def test_a_config_folder_of_the_user_is_composed(tmp_path):
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "mine.yaml").write_text(
        "_target_: fcnlab.training.optimizers.adamw\n_partial_: true\nlr: 0.25\n"
    )
    assert fcnlab.compose(["optim=mine"], config_dir=tmp_path).optim.lr == 0.25


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["model=fcn7s", "optim.lr=fast"], ["Did you mean model=fcn", "optim.lr must be a number of at least 0"]),
        (["optim.lr=-1", "seed=x"], ["optim.lr must be", "seed must be a whole number"]),
        (["seed=1,2"], ["Start the sweep in a shell: fcnlab train -m seed=1,2"]),
        (["-m"], ["-m is an option of the command line"]),
        (["data=null"], ["data=null: null is not an option"]),
        (["experiment=paper/verify_fcn8s"], ["is for fcnlab eval"]),
        (["from_run=nowhere"], ["no record of a run there"]),
        (["seed=(1"], ["cannot be parsed"]),
    ],
)
def test_all_mistakes_are_reported(words, messages):
    with pytest.raises(fcnlab.UserError) as refused:
        fcnlab.compose(words)
    assert all(message in str(refused.value) for message in messages)


def test_an_unknown_verb_or_folder_is_refused(tmp_path):
    with pytest.raises(fcnlab.UserError, match="choose from train, eval"):
        fcnlab.compose([], verb="trian")
    with pytest.raises(fcnlab.UserError, match="is not a folder: choose a folder with your own"):
        fcnlab.compose([], config_dir=tmp_path / "none")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.devices=2"], "fcnlab.train runs in this one. Set trainer.devices=1, or start the run in a shell"),
        (["hydra.job.chdir=true"], "hydra.job.chdir=true is not supported"),
        (["checkpoint=best"], "this run is new: add folder=FOLDER"),
        (["callbacks.best.dirpath=elsewhere"], "set the run's folder with folder=FOLDER"),
    ],
)
def test_a_refused_run_leaves_no_folder(overrides, tmp_path, words, message):
    with pytest.raises(fcnlab.UserError, match=message):
        fcnlab.train([*overrides, *words], folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def process_state() -> tuple:
    """Return what a run may change in its process."""
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
    flags = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(), torch.get_num_threads()
    random = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
    loggers = [list(logging.getLogger(name).handlers) for name in ("", "fcnlab", "lightning.pytorch")]
    return handlers, flags, random, loggers, dict(os.environ), HydraConfig.initialized()


def test_a_run_in_python_equals_that_of_the_command_line(overrides, trained_once, tmp_path):
    expected = trained_once(folder="shell")
    state, runs = process_state(), []
    thread = threading.Thread(target=lambda: runs.append(fcnlab.train(overrides, folder=tmp_path / "run 1")))
    thread.start()
    thread.join()
    run = runs[0]
    assert process_state() == state
    assert (run.folder / "metrics.csv").read_bytes() == (expected / "metrics.csv").read_bytes()
    assert {path.name for path in run.folder.iterdir()} == {path.name for path in expected.iterdir()}
    record, theirs = (json.loads((folder / "run.json").read_text()) for folder in (run.folder, expected))
    assert (record["command"], record["overrides"]) == (theirs["command"], theirs["overrides"])
    configs = [(folder / ".hydra" / "config.yaml").read_text() for folder in (run.folder, expected)]
    assert configs[0] == configs[1] and "Trained 20 steps" in (run.folder / "train.log").read_text()
    scores = json.loads((expected / "metrics.json").read_text())
    assert run.scores.miou == pytest.approx(scores["miou"]) and run.classes == tuple(scores["iou"])
    assert run.val_miou == scores["selection"]["val_miou"]
    assert run.load("cpu").predict(Image.new("RGB", (50, 40))).shape == (40, 50)
    assert "Next: fcnlab.load('run 1/checkpoints/best.ckpt').predict(FILE)" in (run.folder / "train.log").read_text()
    check_a_repeated_call(overrides, run)


def check_a_repeated_call(overrides: list[str], run: fcnlab.TrainedRun) -> None:
    """The messages name arguments of the function, and a finished run is returned as it is."""
    with pytest.raises(fcnlab.UserError, match="or set folder to a new folder"):
        fcnlab.train(overrides, folder=run.folder)
    with pytest.raises(fcnlab.UserError, match=r"is not a file\. Did you mean .*run 1/checkpoints/best\.ckpt or "):
        fcnlab.load(run.folder)
    assert repr(run) == f"<TrainedRun: run 1, best.ckpt, mIoU {100 * run.scores.miou:.2f} %>"
    record = (run.folder / "metrics.json").read_bytes()
    again = fcnlab.train([*overrides, "checkpoint=auto"], folder=run.folder)
    assert (again.checkpoint, again.scores.miou, again.val_miou) == (run.checkpoint, run.scores.miou, run.val_miou)
    assert (run.folder / "metrics.json").read_bytes() == record


@pytest.mark.slow  # two runs
def test_an_interrupted_run_resumes(overrides, at_call, tmp_path):
    """tests/tasks/test_resume.py compares the curves of resumed runs."""
    handler = signal.getsignal(signal.SIGINT)
    words, folder = [*overrides, "trainer.max_steps=4", "trainer.val_check_interval=4"], tmp_path / "run"
    at_call(Segmenter, "training_step", 2, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match=r"add 'checkpoint=last' and folder="):
        fcnlab.train(words, folder=folder)
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert signal.getsignal(signal.SIGINT) is handler
    assert fcnlab.train([*words, "checkpoint=last"], folder=folder).checkpoint == folder / "checkpoints" / "best.ckpt"
    assert json.loads((folder / "run.json").read_text())["starts"] == 2


def test_one_run_at_a_time_is_trained_in_a_process(overrides, monkeypatch):
    def nested(cfg, run):
        fcnlab.train(overrides)

    monkeypatch.setattr("fcnlab.tasks.train.train", nested)
    with pytest.raises(fcnlab.UserError, match=r"another fcnlab\.train is running"):
        fcnlab.train(overrides)


def test_compare_returns_tables_and_saves_the_files_of_the_command(sweep, tmp_path):
    report = fcnlab.compare(sweep, baseline="fcn32s", resamples=200)
    assert [group.name for group in report.groups] == ["model=fcn8s", "model=fcn16s", "model=fcn32s"]
    assert [line.count("mIoU") for line in repr(report.groups[:1]).splitlines()] == [1]
    assert repr(report.groups[0]).startswith("<Group: model=fcn8s, 3 runs, mIoU ")
    assert len(report.pairs) == 2 and "3 groups" in str(report) and repr(report) == str(report)
    words = shlex.split(report.command)
    assert words[:2] == ["fcnlab", "compare"] and "resamples=200" in words and f"runs=[{sweep}]" in words
    assert report.save(tmp_path / "report").read_text().lower().startswith("<!doctype html>")
    names = ["class_differences.csv", "comparison.html", "comparison.md"]
    names += ["groups.csv", "pairs.csv", "per_image.csv", "runs.csv"]
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == names
    assert report._repr_markdown_() == (tmp_path / "report" / "comparison.md").read_text()
    with pytest.raises(fcnlab.UserError, match=r"folders=.*: the folder does not exist"):
        fcnlab.compare(tmp_path / "none")


def test_names_of_groups_are_taken_literally(sweep):
    """An override would interpolate them, and its keys cannot contain an accent."""
    names = {"fcn8s": "${oc.env:HOME} $x^2$ {a}", "fcn16s": r"\${seed}"}
    assert [group.name for group in fcnlab.compare(sweep, names=names, resamples=100).groups][:2] == [*names.values()]
    with pytest.raises(fcnlab.UserError, match=r"^names=modèle \$\{x\} matches no group"):
        fcnlab.compare(sweep, names={"modèle ${x}": "x"}, resamples=100)
    with pytest.raises(fcnlab.UserError, match="each group needs a text"):
        fcnlab.compare(sweep, names={"fcn8s": 1}, resamples=100)  # pyright: ignore[reportArgumentType]


def test_only_the_command_line_and_the_sweeps_read_hydras_global_state(repository):
    source = repository / "src" / "fcnlab"
    readers = {path.relative_to(source) for path in source.rglob("*.py") if "import HydraConfig" in path.read_text()}
    assert {str(path) for path in readers if path.parts[0] != "sweeps"} == {"cli.py", "config/hydra_values.py"}
