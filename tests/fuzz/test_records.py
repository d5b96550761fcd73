"""A damaged record is excluded with a reason, or it can be shown; the valid one next to it is always shown."""

import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hypothesis import given
from hypothesis import strategies as st

from fcnlab.comparison.comparison import compare
from fcnlab.comparison.csv_files import write_csv
from fcnlab.comparison.markdown import markdown
from fcnlab.comparison.page import page
from fcnlab.comparison.runs import read_runs
from fcnlab.comparison.terminal import terminal
from fcnlab.config.locations import CONF
from fcnlab.config.trust import WRITERS, override_rejection

from .damage import damaged

sys.path.insert(0, str(Path(__file__).parents[1]))
from run_folders import toy_matrices, write_run

FILES = (
    "metrics.json",
    "confusions.npz",
    "run.json",
    "metrics.csv",
    "config.yaml",
    ".hydra/config.yaml",
    ".hydra/hydra.yaml",
)


PIECES = [
    *("loss", "model/backbone", "hydra", "seed", "stages", "callbacks.best.", "dirpath", "_target_", "--config-dir"),
    *(
        "+",
        "++",
        "~",
        "=",
        "@",
        ".",
        "..",
        "/",
        "../",
        ",",
        "[",
        "]",
        "{",
        "}",
        ":",
        "'",
        '"',
        "(",
        ")",
        "*",
        "-",
        "\\",
    ),
    *("logger.x", "trainer.x", "${seed}", "file:", 5_000 * "9", 300 * "a"),
    *("dice", "tiny", "1", "choice(", "glob(", "os.system", "$", "${", "oc.env:", "HOME", " ", "\n", "\u2024"),
]


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=9).map("".join))
def test_an_override_of_a_record_sets_a_value_or_is_refused(override):
    """Accepted overrides lead to no file outside of conf/, read no environment and name no code."""
    if override_rejection(override, [CONF]):
        return
    parsed = OverridesParser.create().parse_override(override)
    assert not parsed.is_hydra_override() and parsed.package is None and not override.startswith("-")
    assert "oc.env:" not in override or "${" not in override
    for value in [parsed.key_or_group, *strings(parsed._value)]:
        assert "_target_" not in value.split(".")
        assert "$" not in value or parsed.key_or_group.split(".")[0] not in WRITERS
    if (CONF / parsed.key_or_group).is_dir() and not isinstance(parsed._value, dict):
        for option in strings(parsed._value):
            assert (CONF / parsed.key_or_group / f"{option}.yaml").resolve().is_relative_to(CONF)


def strings(value):
    """Yield every text in a parsed value."""
    inside = {ChoiceSweep: lambda: value.list, dict: lambda: [*value, *value.values()], list: lambda: value}
    for kind, parts in inside.items():
        if isinstance(value, kind):
            return [text for part in parts() for text in strings(part)]
    return [getattr(value, "text", value)] if isinstance(value, (str, QuotedString)) else []


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Write a valid run and another one; keep the bytes of its files."""
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "sound", toy_matrices(0.8))
    folder = write_run(root / "other", toy_matrices(0.6), model="fcn32s", drawn=1, published={"miou": 65.5})
    return root, {name: (folder / name).read_bytes() for name in FILES}


@given(st.sampled_from(FILES), st.data())
def test_damaged_records_are_excluded_or_shown(folders, tmp_path, name, data):
    root, sound = folders
    (root / "other" / name).write_bytes(data.draw(damaged(sound[name])))
    try:
        runs, left_out = read_runs([root])
        assert root / "sound" in [run.folder for run in runs] and len(runs) + len(left_out) <= 2
        comparison = compare(runs, resamples=100)
        terminal(comparison), markdown(comparison), page(comparison, "")
        write_csv(tmp_path, comparison)
    finally:
        (root / "other" / name).write_bytes(sound[name])
