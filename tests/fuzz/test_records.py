"""A damaged record is left out with a reason, or what it says can be shown; the sound one beside it always is."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcnlab.results.comparison import compare
from fcnlab.results.page import page
from fcnlab.results.runs import read_runs
from fcnlab.results.tables import markdown, terminal, write_csv

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


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A sound run and another, whose files' bytes are kept."""
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "sound", toy_matrices(0.8))
    folder = write_run(root / "other", toy_matrices(0.6), model="fcn32s", drawn=1, published={"miou": 65.5})
    return root, {name: (folder / name).read_bytes() for name in FILES}


@given(st.sampled_from(FILES), st.data())
def test_damaged_records(folders, tmp_path, name, data):
    root, sound = folders
    (root / "other" / name).write_bytes(data.draw(damaged(sound[name])))
    try:
        runs, left_out = read_runs([root])
        assert root / "sound" in [run.folder for run in runs] and len(runs) + len(left_out) <= 2
        found = compare(runs, resamples=100)
        terminal(found), markdown(found), page(found, "")
        write_csv(tmp_path, found)
    finally:
        (root / "other" / name).write_bytes(sound[name])
