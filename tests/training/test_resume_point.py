"""Test the warnings about checkpoints that a run cannot use."""

from pathlib import Path

import pytest

from fcnlab.config.run_context import RunContext
from fcnlab.errors import UserError
from fcnlab.training import resume_point
from fcnlab.training.resume_point import ResumePoint, find_resume_point, unusable_checkpoints


@pytest.fixture(params=["x.ckpt is damaged", "x.ckpt is damaged."])
def warnings(monkeypatch, tmp_path, request) -> list[str]:
    """The warnings, where ``tmp_path/checkpoints`` contains a last.ckpt that is refused with this message."""
    logged: list[str] = []

    def refuse(path: Path) -> None:
        raise UserError(request.param)

    monkeypatch.setattr(resume_point, "read_checkpoint", refuse)
    monkeypatch.setattr(resume_point, "log_warning", logged.append)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    return logged


def test_a_warning_about_a_checkpoint_that_is_not_resumed_has_complete_sentences(warnings, tmp_path):
    assert find_resume_point("auto", RunContext("train", tmp_path)) == ResumePoint()
    assert warnings == ["x.ckpt is damaged. Continuing without it."]


def test_a_warning_about_a_checkpoint_that_is_renamed_has_complete_sentences(warnings, tmp_path):
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert unusable_checkpoints(last.parent, ResumePoint(), changed=False) == [last]
    assert warnings == [
        "x.ckpt is damaged. It is renamed to last.ckpt.damaged, and its score no longer counts",
    ]
