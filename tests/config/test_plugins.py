"""Test plugins: installed packages whose config files are options of all commands."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest

import fcnlab
from fcnlab.config.locations import CONF, config_roots
from fcnlab.config.plugins import plugins, unusable_plugins
from fcnlab.config.trust import MODEL_COMPONENTS, UntrustedError, check_components, data_components, model_components
from fcnlab.errors import UserError
from fcnlab.runs import source_fingerprint
from fcnlab.runs.provenance import used_plugins
from fcnlab.runs.source_fingerprint import source_fingerprints

BACKBONE = """
from fcnlab.models import Tiny

class Small(Tiny):
    def __init__(self, width: int = 2):
        super().__init__(width=width)

def delete(path):
    raise AssertionError("a checkpoint has called a function that no config file names")
"""
FILES = {
    "__init__.py": BACKBONE,
    "conf/model/backbone/small.yaml": "_target_: PACKAGE.Small\nwidth: 2\n",
    "conf/loss/smoothed.yaml": "_target_: torch.nn.CrossEntropyLoss\nignore_index: 255\nlabel_smoothing: 0.1\n",
    "conf/experiment/PACKAGE/first.yaml": (
        "# @package _global_\n# fcnlab train experiment=PACKAGE/first\n"
        "defaults: [override /model/backbone: small, override /loss: smoothed]\n"
    ),
}


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """Return a folder that Python imports from, as an environment's site-packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def install(site, monkeypatch):
    """Install a package with an entry point; its files are by path, and PACKAGE in them is its name."""

    def write(package: str, files: dict[str, str], entry: str | None = None) -> None:
        for path, text in files.items():
            file = site / package / path.replace("PACKAGE", package)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.replace("PACKAGE", package))
        record = site / f"{package}-0.3.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.3\n")
        (record / "entry_points.txt").write_text(f"[fcnlab.plugins]\n{entry or f'{package} = {package}'}\n")
        monkeypatch.syspath_prepend(str(site))  # a new value of sys.path, as in a new process
        monkeypatch.delitem(sys.modules, package, raising=False)

    return write


def test_options_of_a_plugin_are_those_of_all_commands(install, fcnlab, capsys):
    install("optlab", FILES)
    (found,) = plugins()
    assert (found.name, found.package, found.version) == ("optlab", "optlab", "0.3")
    assert config_roots() == [CONF, found.conf]
    assert fcnlab("train", "--help") == 0
    help_text = capsys.readouterr().out
    assert "smoothed" in help_text and "experiment/optlab: first\n" in help_text
    assert fcnlab("train", "experiment=optlab/first", "--cfg", "job") == 0
    output = capsys.readouterr()
    assert "_target_: optlab.Small\n" in output.out and "label_smoothing: 0.1\n" in output.out
    assert "Warning" not in output.err and "optlab" not in sys.modules  # composing runs none of its code
    assert fcnlab("eval", "experiment=optlab/first") == 1
    assert "experiment=optlab/first is for fcnlab train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("loss=smothed", "Did you mean loss=smoothed?"),
        ("experiment=typolab/frist", "Did you mean experiment=typolab/first?"),
        ("model/backbone=smal", "Did you mean model/backbone=small?"),
    ],
)
def test_typos_find_the_options_of_a_plugin(install, fcnlab, capsys, word, hint):
    install("typolab", FILES)
    assert fcnlab("train", word) == 1
    assert hint in capsys.readouterr().err


def test_python_composes_with_a_plugin(install):
    install("pylab_", FILES)
    assert fcnlab.compose(["loss=smoothed"]).loss.label_smoothing == 0.1


@pytest.mark.parametrize(
    ("entry", "files", "reason"),
    [
        ("broken = nowhere_to_be_found", {}, "its package nowhere_to_be_found cannot be found"),
        ("broken = a-b", {}, "its entry point must be NAME = PACKAGE"),
        ("broken = brokenlab:object", {}, "its entry point must be NAME = PACKAGE"),
        ("broken = brokenlab", {"__init__.py": ""}, "its package brokenlab contains no folder conf/"),
        ("broken = brokenlab", {"conf/train_schema.yaml": "seed: 1"}, "conf/train_schema.yaml would replace settings"),
        ("broken = brokenlab", {"conf/hydra/launcher/basic.yaml": "a: 1"}, "hydra/launcher/basic.yaml would replace"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_left_out(install, entry, files, reason):
    install("soundlab", FILES)
    install("brokenlab", files, entry)
    assert [each.name for each in plugins()] == ["soundlab"]
    (problem,) = unusable_plugins()
    assert problem.startswith("The plugin 'broken' is left out: ") and reason in problem


def test_commands_work_beside_a_broken_plugin_and_name_it(install, fcnlab, capsys, caplog):
    install("soundlab", FILES)
    install("brokenlab", {"__init__.py": ""})
    assert fcnlab("train", "loss=smoothed", "--cfg", "job") == 0
    assert caplog.messages == [
        "Warning: The plugin 'brokenlab' is left out: its package brokenlab contains no folder conf/ with config files"
    ]
    assert "label_smoothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ImportError('no CUDA here')", "__init__.py:2: ImportError: no CUDA here"),
        ("import sys; sys.exit(0)", "__init__.py:2: SystemExit: 0"),
        ("undefined", "__init__.py:2: NameError: name 'undefined' is not defined"),
        ("def", "SyntaxError: invalid syntax"),
    ],
)
def test_a_plugin_with_an_error_breaks_only_commands_that_use_it(install, site, fcnlab, capsys, code, message):
    install("raiselab", {**FILES, "__init__.py": f"x = 1\n{code}\n"})
    assert fcnlab("train", "loss=smoothed", "--cfg", "job") == 0
    assert fcnlab("train", "model/backbone=small") == 1
    error = capsys.readouterr().err
    assert "model.backbone._target_=raiselab.Small cannot be imported: its code fails: " in error and message in error
    with pytest.raises(UntrustedError, match=r"raiselab\.Small is of a package that you trust, and cannot be imported"):
        check_components({"_target_": "raiselab.Small"}, {}, ["raiselab"], "the checkpoint")


def test_an_unreadable_file_of_entry_points_leaves_out_that_package_only(install, site):
    install("soundlab", FILES)
    install("brokenlab", FILES)
    (site / "brokenlab-0.3.dist-info" / "entry_points.txt").write_text("[fcnlab.plugins]\nbrokenlab\n")
    assert [each.name for each in plugins()] == ["soundlab"]
    (problem,) = unusable_plugins()
    assert problem.startswith(f"The entry points of a package in {site} cannot be read: ")


def test_only_the_plugin_whose_file_counts_is_recorded(install, monkeypatch):
    for package in ("firstlab", "secondlab"):
        install(package, FILES)
    context = SimpleNamespace(options={"loss": "smoothed", "model/backbone": "tiny"})
    assert list(used_plugins(context, {"loss": {"_target_": "torch.nn.CrossEntropyLoss"}})) == ["firstlab"]


def test_plugins_in_site_packages_are_recorded_by_their_code(install, site, tmp_path, monkeypatch):
    """pip install of changed code may leave the version as it is."""
    monkeypatch.setattr(source_fingerprint, "INSTALLED", {site.name})
    install("hashlab", FILES)
    config = {"model": {"_target_": "hashlab.Small"}}
    before = source_fingerprints(config)["hashlab"]
    (site / "hashlab" / "__init__.py").write_text(f"{BACKBONE}# changed\n")
    assert source_fingerprints(config)["hashlab"] != before != "0.3"


def test_two_plugins_of_one_name(install):
    install("firstlab", FILES, "same = firstlab")
    install("secondlab", FILES, "same = secondlab")
    assert [each.package for each in plugins()] == ["firstlab"]
    assert unusable_plugins() == ("The plugin 'same' is left out: firstlab has declared a plugin of this name",)


def test_no_option_of_fcnlab_is_replaced_and_a_warning_says_so(install, fcnlab, capsys, caplog, tmp_path):
    """fcnlab's options come first, then those of plugins by name, then typed folders."""
    install("anlab", {"conf/loss/dice.yaml": "a: 1\n", "conf/loss/mine.yaml": "owner: anlab\n"})
    install("bolab", {"conf/loss/mine.yaml": "owner: bolab\n"})
    for name in ("focal", "mine", "typed"):
        path = tmp_path / "own" / "loss" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("owner: typed\n")
    assert fcnlab("train", "--config-dir", "own", "loss=dice", "--cfg", "job", "-p", "loss") == 0
    assert "_target_: fcnlab.training.losses.Dice" in capsys.readouterr().out
    same = "an option of the same name. Choose another name"
    assert caplog.messages == [
        f"Warning: loss/dice.yaml of the plugin anlab has no effect, because fcnlab has {same}",
        f"Warning: loss/mine.yaml of the plugin bolab has no effect, because the plugin anlab has {same}",
        f"Warning: loss/focal.yaml of the folder own has no effect, because fcnlab has {same}",
        f"Warning: loss/mine.yaml of the folder own has no effect, because the plugin anlab has {same}",
    ]
    for name, owner in (("mine", "anlab"), ("typed", "typed")):
        assert fcnlab("train", "--config-dir", "own", f"loss={name}", "--cfg", "job", "-p", "loss") == 0
        assert f"owner: {owner}\n" in capsys.readouterr().out


# --- checkpoints and records


def model_with(backbone: str) -> dict:
    return {"_target_": "fcnlab.models.FCN", "backbone": {"_target_": backbone}}


def is_allowed(tree, places) -> bool:
    try:
        check_components(tree, places, (), "a file")
    except UntrustedError:
        return False
    return True


def test_a_checkpoint_may_name_what_config_files_name_at_the_same_place(install, tmp_path):
    own = {"_target_": "trustlab.open_own", "_partial_": True}
    data = {"_target_": "fcnlab.data.DataModule", "dataset": own}
    assert not is_allowed(model_with("trustlab.Small"), model_components())
    files = {
        "conf/data/own.yaml": "defaults: [camvid, _self_]\ndataset: {_target_: PACKAGE.open_own}\n",
        "conf/experiment/own.yaml": "# @package _global_\nmodel: {backbone: {_target_: PACKAGE.Other}}\n",
        "conf/loss/broken.yaml": "a: [\n",
        "conf/model/broken.yaml": "a: [\n",
    }
    install("trustlab", FILES | files)
    assert is_allowed(model_with("trustlab.Small"), model_components())
    assert is_allowed(model_with("trustlab.Other"), model_components())
    assert is_allowed(data, data_components())
    for name in ("trustlab.delete", "trustlab.Tiny", "trustlab.open_own", "torch.nn.CrossEntropyLoss"):
        assert not is_allowed(model_with(name), model_components())
    for tree in (
        {"_target_": "trustlab.Small"},
        model_with("fcnlab.models.Tiny") | {"x": {"_target_": "trustlab.Small"}},
    ):
        assert not is_allowed(tree, model_components())
    call = {"_target_": "trustlab.Small", "_args_": [3]}
    assert not is_allowed(model_with("trustlab.Small") | {"backbone": call}, model_components())
    # of a typed folder in the same way
    assert not is_allowed(model_with("typedlab.Net"), model_components())
    (tmp_path / "own/model/backbone").mkdir(parents=True)
    (tmp_path / "own/model/backbone/net.yaml").write_text("_target_: typedlab.Net\n")
    assert is_allowed(model_with("typedlab.Net"), model_components([tmp_path / "own"]))
    assert MODEL_COMPONENTS["backbone"] == tuple(sorted(set(MODEL_COMPONENTS["backbone"]))), "unchanged"


FEW = ("trainer.max_steps=2", "trainer.val_check_interval=2", "callbacks.sample_images.enabled=false")


def test_a_run_with_a_plugin_is_recorded_evaluated_and_repeated(install, site, train, fcnlab, capsys, monkeypatch):
    install("runlab", FILES)
    folder = train("model/backbone=small", "loss=smoothed", *FEW)
    record = json.loads((folder / "run.json").read_text())
    (facts,) = record["plugins"].values()
    assert list(record["plugins"]) == ["runlab"] and facts["package"] == "runlab" and facts["version"] == "0.3"
    assert facts["source"] == record["source"]["runlab"]  # a package outside of site-packages is recorded by its hash
    checkpoint = folder / "checkpoints" / "best.ckpt"
    how_to_predict = capsys.readouterr().out.splitlines()[-1]
    assert "fcnlab predict" in how_to_predict and "trust" not in how_to_predict
    assert type(fcnlab_load(checkpoint)).__module__ == "runlab"
    (site / "runlab" / "__init__.py").write_text(f"{BACKBONE}# changed\n")
    assert fcnlab("train", "from_run=run", "hydra.run.dir=again", "trainer.max_steps=1", *FEW[2:]) == 0
    assert "Warning: the recorded run used plugin runlab 0.3 with source" in capsys.readouterr().out
    # without the plugin
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(site)])
    capsys.readouterr()
    assert fcnlab("train", "from_run=run") == 1
    assert "this run used a plugin that is not installed here: runlab. Install it, if you" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"install it as a plugin, type the --config-dir whose files name the class"):
        fcnlab_load(checkpoint)
    assert fcnlab_load(checkpoint, config_dir=site / "runlab" / "conf")  # its module is still imported


def fcnlab_load(checkpoint: Path, **settings):
    return fcnlab.load(checkpoint, device="cpu", **settings).net.backbone


@pytest.mark.slow  # starts processes
def test_jobs_of_a_sweep_and_a_resumed_sweep_find_a_plugin(install, site, small, shapes_root, tmp_path):
    install("sweeplab", FILES)
    environment = os.environ | {"PYTHONPATH": str(site)}
    few = (*small, *FEW, f"data.root={shapes_root}", "trainer=smoke", "trainer.accelerator=cpu", "logger=none")
    words = ["experiment=sweeplab/first", "seed=1,2", "hydra.launcher.slots=2", "hydra.sweep.dir=s", *few]
    command = [sys.executable, "-m", "fcnlab", "train", "-m"]
    subprocess.run([*command, *words], cwd=tmp_path, env=environment, check=True)
    for job in ("0", "1"):
        record = json.loads((tmp_path / "s" / job / "run.json").read_text())
        assert record["status"] == "finished" and list(record["plugins"]) == ["sweeplab"]
        assert (tmp_path / "s" / job / "metrics.json").is_file()
    (tmp_path / "s" / "1" / "metrics.json").unlink()
    (tmp_path / "s" / "1" / "run.json").unlink()
    (site / "sweeplab" / "__init__.py").write_text(f"{BACKBONE}# changed\n")
    resumed = [*command, "sweep.resume=s"]
    output = subprocess.run(resumed, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert "Warning: the code of sweeplab has changed since job 0 (" in output.stdout + output.stderr
    assert (tmp_path / "s" / "1" / "metrics.json").is_file()


def test_no_plugin_is_installed_here():
    """Otherwise the tests of options would test those of the plugin, too."""
    assert not entry_points(group="fcnlab.plugins") and plugins() == () and config_roots() == [CONF]
