"""Test metrics.json and confusions.npz, which other programs read."""

import json
import os
import subprocess

import numpy as np
import pytest

from fcnlab.escaping import CONTROL_CHARACTERS
from fcnlab.files.writing import own_part, remove_own_parts, write_json
from fcnlab.metrics.scores import SCORES, scores
from fcnlab.runs import score_record
from fcnlab.runs.score_record import write_record

CLASSES = ("ground", "cat", "chien à pois")
MATRICES = np.array([[[3, 1, 0], [2, 4, 0], [0, 0, 0]], [[1, 1, 0], [0, 1, 0], [0, 0, 0]]])


@pytest.fixture
def write(tmp_path):
    def run(matrices=MATRICES, **facts):
        return write_record(tmp_path / "run", "toys val", ("a", "b"), CLASSES, matrices, **facts)

    return run


def test_metrics_json_contains_the_scores(write, tmp_path):
    write(protocol={"flip": False}, cost={"minutes": 1.5})
    text = (tmp_path / "run" / "metrics.json").read_text()
    metrics = json.loads(text)
    assert list(metrics) == ["split", *SCORES, "fine_grained", "iou", "protocol", "cost"]
    assert (
        metrics["split"] == "toys val"
        and metrics["protocol"] == {"flip": False}
        and metrics["cost"] == {"minutes": 1.5}
    )
    assert metrics["pixel_acc"] == 9 / 13 and metrics["iou"] == {"ground": 4 / 8, "cat": 5 / 9, "chien à pois": None}
    assert metrics["fine_grained"]["miou_i"] == pytest.approx(((3 / 6 + 4 / 7) / 2 + 1 / 2) / 2)
    assert "NaN" not in text and "chien à pois" in text


def test_the_scores_follow_from_confusions_npz(write, tmp_path):
    expected = write()
    with np.load(tmp_path / "run" / "confusions.npz", allow_pickle=False) as saved:
        assert saved["names"].tolist() == ["a", "b"] and saved["classes"].tolist() == list(CLASSES)
        np.testing.assert_array_equal(saved["matrices"], MATRICES)
        again = scores(saved["matrices"].sum(axis=0))
    np.testing.assert_array_equal(again[:4], expected[:4])


@pytest.mark.parametrize(("failing", "kept"), [("savez_compressed", "confusions.npz"), ("dumps", "metrics.json")])
def test_failure_keeps_the_old_file(write, tmp_path, monkeypatch, failing, kept):
    write()
    before = (tmp_path / "run" / kept).read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(score_record.np if failing == "savez_compressed" else json, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        write(2 * MATRICES)
    assert (tmp_path / "run" / kept).read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["confusions.npz", "metrics.json"]


def test_a_score_without_pixels_is_null_not_nan(write, tmp_path):
    write(0 * MATRICES)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert [metrics[name] for name in SCORES] == [None] * 4


def test_links_in_the_place_of_a_record_are_not_followed(tmp_path):
    """The folder may come from someone else."""
    (tmp_path / "mine").write_text("all my work")
    (tmp_path / "run").mkdir()
    for name in ("run.json", "run.json.part"):
        (tmp_path / "run" / name).symlink_to("../mine")
    write_json(tmp_path / "run" / "run.json", {"a": 1})
    assert (tmp_path / "mine").read_text() == "all my work"
    assert not (tmp_path / "run" / "run.json").is_symlink()


def test_active_characters_in_a_record_are_escaped(tmp_path):
    """The escapes are JSON's: a reader gets the text that was written."""
    hostile = "a\x1b[2J\x9b31m\u202egpj.exe\u2028\udcff\r\n\x7f"
    write_json(tmp_path / "run.json", {"name": hostile, "ß": [hostile]})
    text = (tmp_path / "run.json").read_text()
    assert not CONTROL_CHARACTERS.search(text.replace("\n", "")) and '"ß"' in text
    assert json.loads(text) == {"name": hostile, "ß": [hostile]}


def test_half_written_files_of_killed_processes_are_removed(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / "below").mkdir()
    mine = own_part(tmp_path, ".png")
    gone = tmp_path / "below" / mine.name.replace(str(os.getpid()), str(ended.pid))
    elsewhere = gone.with_name(f".{ended.pid}@another-machine.part.png")
    for path in (mine, gone, elsewhere, tmp_path / "b.png"):
        path.touch()
    remove_own_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        [mine.name, elsewhere.name, "b.png"]
    )
