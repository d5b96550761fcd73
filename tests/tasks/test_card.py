"""``fcnlab card`` as a user types it, with the checkpoint of a real run."""

import json
import re

import pytest
import yaml
from PIL import Image


@pytest.fixture
def run(trained_once):
    return trained_once()


def metadata(path) -> dict:
    return yaml.safe_load(path.read_text().split("---\n")[1])


def test_a_card_has_the_scores_and_the_command_of_its_run(fcnlab, run, tmp_path, monkeypatch):
    """And its snippet runs."""
    assert fcnlab("card", f"checkpoint={run}/checkpoints/best.ckpt", "output=release/README.md", "license=mit") == 0
    text, record = (tmp_path / "release/README.md").read_text(), json.loads((run / "metrics.json").read_text())
    (result,) = metadata(tmp_path / "release/README.md")["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == pytest.approx(record["miou"], abs=1e-6)
    assert json.loads((run / "run.json").read_text())["command"] in text
    assert "| training images | 24, list train |" in text and "| seed | 1 |" in text
    monkeypatch.chdir(run / "checkpoints")
    Image.new("RGB", (40, 30)).save("photo.jpg")
    names: dict = {}
    exec(re.search(r"```python\n(.*?)\n```", text, re.DOTALL)[1], names)
    assert names["class_map"].shape == (30, 40) and set(names["names"]) <= set(record["iou"])


def test_an_existing_file_is_replaced_only_with_permission(fcnlab, run, tmp_path, capsys):
    words = ["card", f"checkpoint={run}/checkpoints/best.ckpt", "output=README.md"]
    (tmp_path / "README.md").write_text("mine")
    assert fcnlab(*words) == 1
    assert "output=README.md exists: choose another file, or add overwrite=true" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "mine"
    assert fcnlab(*words, "overwrite=true") == 0
    assert (tmp_path / "README.md").read_text().startswith("---\n")


def test_a_file_in_the_folder_of_the_command_is_replaced_only_with_permission(fcnlab, run, tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    assert fcnlab("card", f"checkpoint={run}/checkpoints/best.ckpt", "hydra.run.dir=.") == 1
    assert "contains README.md: choose another folder, set output=FILE, or add overwrite" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("other", ["moved", "last"])
def test_scores_of_other_weights_are_not_stated(fcnlab, run, tmp_path, capsys, other):
    checkpoint = run / "checkpoints" / "last.ckpt"
    if other == "moved":
        checkpoint = (run / "checkpoints" / "best.ckpt").rename(tmp_path / "best.ckpt")
    assert fcnlab("card", f"checkpoint={checkpoint}", "output=README.md") == 0
    reason = "is not in the folder of its run" if other == "moved" else "its run has scored best.ckpt of step"
    assert reason in capsys.readouterr().out and "model-index" not in metadata(tmp_path / "README.md")
    assert "## Scores\n\n- **To fill in**: no record contains scores" in (tmp_path / "README.md").read_text()


def test_scores_of_another_checkpoint_of_the_same_step_are_not_stated(fcnlab, run, tmp_path, capsys):
    """A run that was resumed from an earlier step may leave a top checkpoint of the branch before."""
    record = json.loads((run / "metrics.json").read_text())
    record["selection"]["val_miou"] = 0.123
    (run / "metrics.json").write_text(json.dumps(record))
    assert fcnlab("card", f"checkpoint={run}/checkpoints/best.ckpt", "output=README.md") == 0
    assert f"of step {record['selection']['step']} and val mIoU 12.30 % instead" in capsys.readouterr().out
    assert "model-index" not in metadata(tmp_path / "README.md")


def test_a_folder_without_scores_of_the_checkpoint_is_refused(fcnlab, run, capsys):
    assert fcnlab("card", f"checkpoint={run}/checkpoints/best.ckpt", f"evaluations={run}") == 1
    assert "is not an evaluation of checkpoint=" in capsys.readouterr().err


@pytest.mark.slow
def test_an_evaluation_adds_its_scores(fcnlab, run, tmp_path):
    checkpoint = f"checkpoint={run}/checkpoints/last.ckpt"
    evaluation = ["trainer.accelerator=cpu", "logger=csv", "inference=flip", "hydra.run.dir=flip"]
    assert fcnlab("eval", checkpoint, *evaluation) == 0
    assert fcnlab("card", checkpoint, "evaluations=flip", "output=README.md") == 0
    (result,) = metadata(tmp_path / "README.md")["model-index"][0]["results"]
    assert result["metrics"][0]["args"]["inference"] == "Flip()"
    assert result["metrics"][0]["value"] == pytest.approx(
        json.loads((tmp_path / "flip/metrics.json").read_text())["miou"], abs=1e-6
    )
