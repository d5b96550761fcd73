"""Test ``fcnlab new``: which names and folders it takes, and docs/how-to/own-code.md followed from an empty folder."""

import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fcnlab import compose
from fcnlab.config.locations import options_in
from fcnlab.config.plugins import GROUP
from fcnlab.config.trust import data_components, model_components
from fcnlab.config.validation import ConfigError, validate_config

PAGE = (Path(__file__).parents[2] / "docs/how-to/own-code.md").read_text()


def test_the_package_has_the_name_of_its_folder(fcnlab, capsys, tmp_path, repository):
    assert fcnlab("new", "my-lab") == 0
    assert "fcnlab train experiment=my_lab/first" in capsys.readouterr().out
    template = [path.relative_to(repository / "template") for path in (repository / "template").rglob("*.*")]
    expected = {
        str(path).replace("mylab", "my_lab") for path in template if path.suffix in {".md", ".py", ".toml", ".yaml"}
    }
    written = {
        str(path.relative_to(tmp_path / "my-lab")): path for path in (tmp_path / "my-lab").rglob("*") if path.is_file()
    }
    assert set(written) == expected and "src/my_lab/conf/experiment/my_lab/first.yaml" in expected
    assert not [name for name, path in written.items() if "mylab" in path.read_text()]
    project = tomllib.loads(written["pyproject.toml"].read_text())["project"]
    assert project["entry-points"][GROUP] == {"my_lab": "my_lab"}
    assert not list(tmp_path.glob("outputs")), "a command that runs once writes no other folder"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["new"], "which folder? Type fcnlab new FOLDER"),
        (["new", "full"], "folder=full: the folder contains files. Choose a new or an empty folder"),
        (["new", "full/file"], "is not a folder"),
        (["new", "2lab"], "so it must be letters, digits and underscores after a letter"),
        (["new", "class"], "and no word of Python, got 'class'"),
        (["new", "numpy"], "Python has a package numpy already. Choose another name"),
        (["new", "-m", "mine"], "-m must be left out: this command runs once.\n"),
    ],
)
def test_a_folder_that_cannot_be_a_package_is_refused(fcnlab, capsys, tmp_path, words, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    assert fcnlab(*words) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "file"]


def test_a_package_without_a_file_of_its_own_has_the_name(fcnlab, capsys, tmp_path, monkeypatch):
    """Several distributions share such a package, as they do google and nvidia; a folder on the path looks the same."""
    (tmp_path / "site" / "sharedlab" / "cuda").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "site"):
        monkeypatch.syspath_prepend(str(folder))
    for name in ("hydra_plugins", "sharedlab", "elsewhere/sharedlab"):
        assert fcnlab("new", name) == 1
        taken = name.rpartition("/")[2]
        assert f"folder={name}: Python has a package {taken} already. Choose another name" in capsys.readouterr().err
    (tmp_path / "emptylab").mkdir()
    assert fcnlab("new", "emptylab") == 0


@pytest.fixture
def install(fcnlab, tmp_path, monkeypatch):
    """Write a package, and put it on the path with its entry point, as ``pip install -e`` does."""

    def write(name: str) -> None:
        assert fcnlab("new", name) == 0
        source = tmp_path / name / "src"
        project = tomllib.loads((tmp_path / name / "pyproject.toml").read_text())["project"]
        record = source / f"{name}-{project['version']}.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {project['version']}\n")
        entries = [f"{key} = {value}\n" for key, value in project["entry-points"][GROUP].items()]
        (record / "entry_points.txt").write_text(f"[{GROUP}]\n{''.join(entries)}")
        monkeypatch.syspath_prepend(str(source))

    yield write
    for name in [name for name in sys.modules if re.match(r"((first|second|my)lab|backbone|ownparts)\b", name)]:
        del sys.modules[name]


def targets_of(cfg) -> set[str]:
    """Return the packages of all classes of a configuration, except those of libraries."""
    named = re.findall(r"_target_: (\w+)\.", OmegaConf.to_yaml(cfg))
    return {package for package in named if package.endswith("lab")} - {"fcnlab"}


def test_two_packages_side_by_side_use_their_own_parts(install, fcnlab, capsys, caplog):
    install("firstlab")
    install("secondlab")
    for name in ("firstlab", "secondlab"):
        cfg = compose([f"experiment={name}/first"])
        validate_config(cfg)
        assert targets_of(cfg) == {name}
        own = (cfg.model.backbone, cfg.loss, cfg.data.dataset, cfg.callbacks.mean_dice)
        assert all(part._target_.startswith(f"{name}.") for part in own)
    capsys.readouterr()
    assert fcnlab("train", "experiment=secondlab/first", "--cfg", "job") == 0
    assert "firstlab" not in capsys.readouterr().out and not caplog.messages
    # A checkpoint may name the classes where an option names them.
    assert "secondlab.backbone.Strided" in model_components()["backbone"]
    assert "secondlab.dataset.open_discs" in data_components()["dataset"]
    assert not any("lab" in path for path in [*model_components(), *data_components()]), "only of settings that exist"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("loss=smoothed", "Unknown option loss=smoothed. Did you mean loss=firstlab/smoothed?"),
        ("loss=firstlab/smothed", "Unknown option loss=firstlab/smothed. Did you mean loss=firstlab/smoothed?"),
        ("loss=fistlab/smoothed", "Unknown option loss=fistlab/smoothed. Did you mean loss=firstlab/smoothed?"),
        ("model/backbone=firstlab/stride", "Did you mean model/backbone=firstlab/strided?"),
        ("loss/firstlab=smoothed", "config group 'loss/firstlab'. Did you mean loss=firstlab/smoothed?"),
    ],
)
def test_typos_find_the_options_in_the_folder_of_a_package(install, fcnlab, capsys, word, message):
    install("firstlab")
    assert fcnlab("train", word) == 1
    assert message in capsys.readouterr().err


def test_a_package_may_have_the_name_of_a_group(install, fcnlab):
    install("backbone")
    cfg = compose(["experiment=backbone/first"])
    assert cfg.model.backbone._target_ == "backbone.backbone.Strided" and cfg.loss._target_ == "backbone.loss.Smoothed"
    assert "backbone/strided" in options_in("model/backbone") and "backbone/vgg16" not in options_in("model")
    assert "backbone.backbone.Strided" in model_components()["backbone"]


def test_the_page_without_a_package_works_beside_the_package(install, fcnlab, tmp_path, monkeypatch, capsys):
    install("mylab")
    write_files_of_page(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert fcnlab("train", "--config-dir", "mine", "loss=smoothed", "--cfg", "job", "-p", "loss") == 0
    assert "_target_: ownparts.SmoothedCrossEntropy\n" in capsys.readouterr().out


def test_the_loss_of_the_page_is_0_without_labelled_pixels(tmp_path):
    """Without labelled pixels it is 0, and elsewhere a mean over the labelled pixels."""
    write_files_of_page(tmp_path)
    names = runpy.run_path(str(tmp_path / "ownparts.py"))
    loss = names["SmoothedCrossEntropy"](smoothing=0.2)
    scores = torch.randn(2, 3, 4, 5, requires_grad=True)
    nothing = loss(scores, torch.full((2, 4, 5), 255))
    nothing.backward()
    assert nothing.item() == 0 and not scores.grad.any()
    target = torch.randint(3, (2, 4, 5))
    target[0, :2] = 255
    probabilities = 0.8 * np.eye(3)[target[target != 255]] + 0.2 / 3
    logs = np.log(scores.detach().double().softmax(1).movedim(1, -1)[target != 255].numpy())
    assert loss(scores, target).item() == pytest.approx(-(probabilities * logs).sum(1).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("loss.smoothing=7", "loss.smoothing must be a fraction above 0, at most 1, got 7"),
        ("loss.smoothing=much", "loss.smoothing must be a fraction above 0, at most 1, got 'much'"),
        ("model.backbone.width=0", "model.backbone.width must be a whole number of at least 1, got 0"),
    ],
)
def test_ranges_of_a_package_are_checked(install, word, message):
    install("mylab")
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate_config(compose(["experiment=mylab/first", word]))


def write_files_of_page(folder: Path) -> None:
    """Write the blocks of the page that begin with the path of a file, except those of the package."""
    for text in [*blocks("python"), *blocks("yaml")]:
        name, _, text = text.partition("\n")
        if not name.startswith("# mylab/"):
            path = folder / name.removeprefix("# ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def run(tmp_path, repository):
    """Run a command of the page in an environment that has fcnlab, but not yet the package; return its output."""
    environment = tmp_path / "venv"
    venv.create(environment, symlinks=True)
    (site,) = environment.glob("lib/python*/site-packages")
    outside = [path for path in sys.path if "site-packages" in path and Path(path).is_dir()]
    (site / "outside.pth").write_text("\n".join([str(repository / "src"), *outside]))
    python = str(environment / "bin" / "python")
    programs = {
        "fcnlab": [python, "-m", "fcnlab"],
        "pytest": [python, "-m", "pytest", "-p", "no:cacheprovider", "-k", "not (compiled or exported)"],
        "pip": [sys.executable, "-m", "pip", "--python", python],
    }
    further = {"pip": ["--no-build-isolation", "--no-index", "--quiet"], "fcnlab": ["trainer.accelerator=cpu"]}
    folder = tmp_path / "empty"
    folder.mkdir()

    def call(line: str, code: int = 0) -> str:
        program, *words = shlex.split(line)
        added = further.get(program, []) if words[0] != "new" else []
        completed = subprocess.run(
            [*programs[program], *words, *added], cwd=folder, env=os.environ | {"PYTHONSAFEPATH": "1"},
            capture_output=True, text=True,
        )  # fmt: skip
        assert completed.returncode == code, f"{line}\n{completed.stdout}\n{completed.stderr}"
        return completed.stdout

    return call


@pytest.mark.slow  # trains, and tests a package
def test_the_page_can_be_followed_from_an_empty_folder(run, tmp_path):
    commands = blocks("bash")[0].splitlines()
    assert [line.split()[0] for line in commands] == ["fcnlab", "pip", "fcnlab", "pytest"]
    *before, test = commands
    for line in before:
        run(line)
    (metrics,) = (tmp_path / "empty").glob("outputs/train/*/*/metrics.csv")
    assert "val/mean_dice" in metrics.read_text() and "final/mean_dice" in metrics.read_text()
    further, planted, *_ = blocks("python")
    name, _, text = further.partition("\n")
    (tmp_path / "empty" / name.removeprefix("# ")).write_text(text)
    # The wrong origin of the page: both classes of tests find it, and print the sentence of the page.
    name, _, text = planted.partition("\n")
    source = tmp_path / "empty" / name.removeprefix("# ")
    right = source.read_text()
    wrong = right.replace("        initialize(self)\n", text, 1)
    assert wrong != right
    source.write_text(wrong.replace("from torch import nn", "from fcnlab.models import Grid\nfrom torch import nn"))
    output = " ".join(run(f"{test} -k origins", code=1).split())
    assert " ".join(blocks("text")[0].split()) in output and "2 failed" in output
    source.write_text(right)
    run(test)
