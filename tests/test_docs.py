"""Test that the documents show the current output of the commands."""

import re
import runpy
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.slow  # builds 30 networks
def test_the_table_of_networks_is_the_output_of_the_command():
    table = runpy.run_path(str(REPOSITORY / "docs/scripts/model_table.py"))
    page = (REPOSITORY / "docs/reference/networks.md").read_text()
    output = re.search(f"{table['BEGIN']}\n(.*)\n{table['END']}", page, re.DOTALL)
    assert output and output[1] == table["table"]()
    backbones = {path.stem for path in (REPOSITORY / "conf/model/backbone").glob("*.yaml")}
    assert set(table["BACKBONES"]) == backbones


def test_links_are_valid():
    for document in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
