"""Test that a checkpoint of the previous release resumes; make release puts it into tests/releases."""

import json
import runpy
from pathlib import Path

import pytest

CHECKPOINTS = sorted((Path(__file__).parents[1] / "releases").glob("*.ckpt"))  # none before the first release


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=[path.stem for path in CHECKPOINTS])
def test_a_checkpoint_of_the_previous_release_resumes(checkpoint: Path, fcnlab, repository, tmp_path):
    release = runpy.run_path(str(repository / "scripts" / "release.py"))
    steps = release["STEPS"]
    places = (f"data.root={tmp_path / 'shapes'}", f"hydra.run.dir={tmp_path / 'run'}")
    words = (*release["SETTINGS"], *places, f"trainer.max_steps={2 * steps}", f"checkpoint={checkpoint}")
    assert fcnlab("train", *words) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [segment["from_step"] for segment in record["segments"]] == [0, steps]
