"""Test ``fcnlab new``: which names and folders it takes, and docs/how-to/own-code.md followed from an empty folder."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from fcnlab.config.plugins import GROUP

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
