"""Processes that fcnlab starts: jobs of a sweep and stages."""

import sys
from importlib.metadata import version

import pytest

from fcnlab.sweeps.processes import start_verb


@pytest.mark.parametrize("here", [False, True], ids=["fcnlab", "python -m fcnlab"])
def test_a_job_has_the_import_path_of_its_sweep(tmp_path, monkeypatch, here):
    """A module in the current folder, perhaps of someone else, does not replace a library."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*([str(tmp_path)] if here else []), *(place for place in sys.path if place)])
    (tmp_path / "fcnlab.py").write_text("print('imported from here')")
    assert start_verb("--version", (), log=tmp_path / "output.txt").wait(60) == 0
    expected = "imported from here" if here else f"fcnlab {version('fcnlab')}"
    assert (tmp_path / "output.txt").read_text() == f"{expected}\n"
