"""Test that the documents show the current output of the commands."""

import re
import runpy
from pathlib import Path

from PIL import Image

REPOSITORY = Path(__file__).parents[1]


def test_the_table_of_networks_is_the_output_of_the_command():
    table = runpy.run_path(str(REPOSITORY / "docs/scripts/model_table.py"))
    output = re.search(f"{table['BEGIN']}\n(.*)\n{table['END']}", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert output and output[1] == table["table"]()
    backbones = {path.stem for path in (REPOSITORY / "conf/model/backbone").glob("*.yaml")}
    assert set(table["BACKBONES"]) == backbones


def test_links_are_valid():
    for document in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_option_is_in_the_readme():
    text = (REPOSITORY / "README.md").read_text()
    groups = (
        "model",
        "model/backbone",
        "data",
        "augment",
        "optim",
        "schedule",
        "loss",
        "inference",
        "postprocess",
        "logger",
        "callbacks",
    )
    for group in groups:
        for path in (REPOSITORY / "conf" / group).glob("*.yaml"):
            assert f"`{path.stem}`" in text, f"{group}={path.stem}"


def test_the_python_in_the_readme_runs(trained_once, tmp_path, monkeypatch):
    trained_once(folder="RUN")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (83, 70)).save("photo.jpg")
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL):
        exec(code, names)
    assert names["labels"].shape == (70, 83) and names["shares"].shape == (21, 70, 83)
    assert names["scores"].shape == (1, 21, 224, 256)
