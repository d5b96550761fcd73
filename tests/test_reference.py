"""Test that docs/reference names every option, setting, file, key of a record, exit code and environment variable."""

import ast
import json
import re
import runpy
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from fcnlab.config import schemas
from fcnlab.config.components import DIRECTIVES
from fcnlab.config.locations import CONF
from fcnlab.signals import STOPPING
from fcnlab.verbs import VERBS

REPOSITORY = Path(__file__).parents[1]
REFERENCE = REPOSITORY / "docs/reference"
OPTIONS = [path for path in sorted(CONF.glob("*/**/*.yaml")) if path.relative_to(CONF).parts[0] != "experiment"]
ROOTS = [getattr(schemas, f"{verb.capitalize()}Config") for verb in VERBS]
# What looks like an environment variable in src/ and is none: signals, image modes, opcodes, attributes of modules.
NO_VARIABLE = re.compile(r"SIG[A-Z0-9]+|O_NONBLOCK|(BATCH|INSTANCE)_NORMS|EMPTY_\w+|LONG_\w+|SC_\w+|SHORT_\w+")
PLAIN_VARIABLES = {"RANK", "TERM", "CXX", "PYTHONSAFEPATH"}  # without an underscore


@pytest.fixture(scope="module")
def entries() -> dict[str, str]:
    """Return the entries of the configuration reference by name."""
    text = runpy.run_path(str(REPOSITORY / "docs/scripts/config_reference.py"))["document"]()
    return dict(re.findall(r"^:::\{confval\} (.+)\n((?:.*\n)*?):::$", text, re.MULTILINE))


def defaults(entry: str) -> dict[str, object]:
    """Return the defaults in an entry by option; that of all options by ""."""
    text, found = json.loads(re.search(r"^:default: (.*)$", entry, re.MULTILINE)[1]), {}
    for value, names in re.findall(r"(required|`.*?`(?= in `|; |$))(?: in ((?:`[^`]+`(?:, )?)+))?", text):
        plain = "???" if value == "required" else yaml.safe_load(value.strip("`"))
        found |= dict.fromkeys(re.findall(r"`([^`]+)`", names) or [""], plain)
    return found


def settings(path: Path) -> Iterator[tuple[str, object]]:
    """Yield the settings in a file of conf/ by path; a mapping with numbers for keys is a value."""

    def walk(prefix: str, value: object) -> Iterator[tuple[str, object]]:
        if isinstance(value, dict) and value and not any(isinstance(key, int) for key in value):
            for key, each in value.items():
                if key not in {"defaults", *DIRECTIVES}:
                    yield from walk(f"{prefix}.{key}", each)
        elif value != {} or prefix.count("."):
            yield prefix, value

    package = ".".join(path.relative_to(CONF).parent.parts)
    return ((key, value) for key, value in walk(package, yaml.safe_load(path.read_text())) if key != package)


def test_every_option_is_in_the_reference_with_its_values(entries):
    for path in OPTIONS:
        group = path.relative_to(CONF).parent
        assert f"{group}={path.stem}" in entries
        for key, value in settings(path):
            stated = defaults(entries[key])
            assert stated.get(path.stem, stated.get("")) == value, f"{path.stem}: {key}"


def test_every_experiment_is_in_the_reference_as_it_is(entries):
    for path in (CONF / "experiment").rglob("*.yaml"):
        entry = entries[f"experiment={path.relative_to(CONF / 'experiment').with_suffix('')}"]
        lines = path.read_text().splitlines()
        assert all(line in entry for line in lines if not line.startswith("#"))
        assert lines[1].removeprefix("# ") in entry  # its command


def test_every_setting_of_a_command_is_in_the_reference(entries):
    def keys(root: type, prefix: str = "") -> Iterator[str]:
        for each in fields(root):
            kind = get_type_hints(root)[each.name]
            yield from keys(kind, f"{each.name}.") if is_dataclass(kind) else [f"{prefix}{each.name}"]

    named = {key for root in ROOTS for key in keys(root) if not (CONF / key).is_dir()}
    assert named <= entries.keys()


def test_arguments_that_a_file_does_not_set_are_in_the_reference_with_what_to_type(entries):
    assert "`+model.skip_scales=VALUE` with `fcn16s`, `fcn32s`, `fcn8s`, whose" in entries["model.skip_scales"]
    assert "+trainer.max_steps" not in entries["trainer.max_steps"]


def test_comments_types_and_targets_are_in_the_reference(entries):
    assert "`cell: 32`" not in entries["loss.cell"] and "32` in `sampled`" in entries["loss.cell"]
    assert "as many as its cores allow" in entries["hydra.sweeper.n_jobs"]  # a comment of several lines
    assert "With colours, masks are read by the colours" in entries["data.dataset.classes"]  # lines above a key
    assert "0 to 0.1" in entries["schedule.warmup"] and "`same` or `paper`" in entries["model.backbone.padding"]


def test_every_exit_code_is_in_the_reference():
    text = (REFERENCE / "exit-codes.md").read_text()
    rows = dict(re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE))
    for number in STOPPING:
        assert number.name in rows[str(128 + number)]
    assert literal_codes() <= {int(code) for code in rows}


def literal_codes() -> set[int]:
    """Return the exit codes that src/ writes as numbers."""
    ends = {"exit", "_exit", "SystemExit"}
    calls = (node for node in nodes() if isinstance(node, ast.Call))
    return {
        argument.value
        for call in calls
        if getattr(call.func, "attr", getattr(call.func, "id", "")) in ends
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, int)
    }


@cache
def nodes() -> list[ast.AST]:
    """Return the nodes of all files of src/."""
    return [node for path in (REPOSITORY / "src").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]


def test_every_environment_variable_is_in_the_reference():
    named = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", (REFERENCE / "environment.md").read_text()))
    texts = {node.value for node in nodes() if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    variables = {text for text in texts if re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+", text)} | PLAIN_VARIABLES
    assert {name for name in variables if not NO_VARIABLE.fullmatch(name)} <= named


def test_every_file_of_a_run_and_every_key_of_its_records_is_in_the_reference(trained_once):
    folder = trained_once()
    text = (REFERENCE / "run-files.md").read_text()
    for path in folder.iterdir():
        assert re.search(rf"`{re.escape(path.name)}(/|/\S+)?`", text), path.name
    for name in ("run.json", "metrics.json"):
        for key in json.loads((folder / name).read_text()):
            assert f"`{key}`" in text, f"{name}: {key}"
