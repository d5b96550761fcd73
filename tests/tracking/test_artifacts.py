"""Test the artifacts of a run: what is logged, where its files stay, and what W&B's own reader finds of them."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import wandb
from PIL import Image

from fcnlab.data import DataModule, open_folder
from fcnlab.data.transforms import none
from fcnlab.tracking import artifacts, mirror
from fcnlab.tracking.downloads import CheckpointFile
from fcnlab.tracking.links import TrackedRun

RECORD = {"split": "val", "miou": 0.5, "iou": {"a": 0.5}, "selection": {"checkpoint": "best"}, "protocol": {"set": "s"}}


@pytest.fixture
def logged(monkeypatch, tmp_path):
    """A logger whose run is in ``tmp_path``; ``outputs`` and ``inputs`` are the artifacts that W&B gets."""
    mirror._warn_about_missing.cache_clear()
    run = MagicMock(spec=wandb.Run, id="abc", dir=str(tmp_path / "wandb/offline-run-abc/files"), offline=True)
    Path(run.dir).mkdir(parents=True)
    logger = mirror.Mirror(experiment=run)
    outputs, inputs = [], []
    run.disabled = False

    def log(run: MagicMock, artifact: wandb.Artifact, aliases=(), is_input: bool = False) -> None:
        if run.log_artifact.side_effect:
            raise run.log_artifact.side_effect
        inputs.append(artifact) if is_input else outputs.append((artifact, aliases))

    monkeypatch.setattr(artifacts, "log_artifact", log)
    used: list[str] = []
    monkeypatch.setattr(artifacts, "use_artifact", lambda run, address, timeout: used.append(address))
    return SimpleNamespace(logger=logger, outputs=outputs, inputs=inputs, run=run, used=used)


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of a run with four checkpoints."""
    (tmp_path / "checkpoints").mkdir()
    for name in ("best.ckpt", "last.ckpt", "miou=0.5000-step=4.ckpt", "miou=0.4000-step=2.ckpt", "best.ckpt.damaged"):
        (tmp_path / "checkpoints" / name).write_text(name)
    (tmp_path / "predictions.zip").write_text("zip")
    (tmp_path / "metrics.json").write_text(json.dumps(RECORD))
    return tmp_path


TOP = ("miou-0.4000-step-2", "miou-0.5000-step-4")


@pytest.mark.parametrize(
    ("choice", "aliases"),
    [("none", []), ("best", [["best"], ()]), ("all", [[TOP[0]], [TOP[1]], ["last"], ["best"], ()])],
)
def test_the_chosen_files_are_logged(logged, folder, choice, aliases):
    logged.logger.artifacts = choice
    artifacts.log_results([logged.logger], folder)
    assert [each for _, each in logged.outputs] == aliases
    if choice != "none":
        *_, (best, _), (predictions, _) = logged.outputs
        facts = {key: RECORD[key] for key in ("split", "miou", "selection", "protocol")}
        assert best.metadata == {"file": "best.ckpt"} | facts
        assert predictions.metadata == {"file": "predictions.zip"} | facts
        assert (best.name, best.type) == ("checkpoint-abc", "model")
        assert (predictions.name, predictions.type) == ("predictions-abc", "predictions")
    for artifact, _ in logged.outputs[:-2]:
        assert list(artifact.metadata) == ["file"]


def test_without_a_best_checkpoint_the_last_is_logged(logged, folder):
    logged.logger.artifacts = "best"
    (folder / "checkpoints/best.ckpt").unlink()
    artifacts.log_results([logged.logger], folder)
    assert [aliases for _, aliases in logged.outputs] == [["last"], ()]


def kept_file(artifact: wandb.Artifact) -> Path:
    (entry,) = artifact.manifest.entries.values()
    return Path(entry.local_path)


def test_files_of_a_run_stay_as_they_are_until_it_is_uploaded(logged, folder, monkeypatch):
    """As hard links, which take no space; where there are none, the files themselves."""
    logged.logger.artifacts = "best"
    artifacts.log_results([logged.logger], folder)
    best = folder / "checkpoints" / "best.ckpt"
    link = kept_file(logged.outputs[0][0])
    assert link.samefile(best) and link.is_relative_to(Path(logged.run.dir).parent)
    (folder / "new").write_text("a better one")
    (folder / "new").rename(best)  # as a resumed run does
    assert link.read_text() == "best.ckpt" and not link.samefile(best)

    def impossible(*paths) -> None:
        raise OSError("Operation not permitted")

    monkeypatch.setattr(os, "link", impossible)
    artifacts.log_results([logged.logger], folder)
    assert kept_file(logged.outputs[2][0]) == best


def test_networks_of_an_ensemble_are_kept_apart(logged, tmp_path):
    logged.logger.artifacts = "best"
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.ckpt").write_text(name)
        trained = TrackedRun(name, "fcnlab")
        artifacts.use_checkpoint([logged.logger], CheckpointFile(tmp_path / name / "best.ckpt"), trained)
    assert [each.name for each in logged.inputs] == ["checkpoint-a", "checkpoint-b"]
    assert [kept_file(each).read_text() for each in logged.inputs] == ["a", "b"]


def test_a_downloaded_checkpoint_is_its_artifact(logged, tmp_path):
    file = CheckpointFile(tmp_path / "best.ckpt", {"artifact": "team/fcnlab/checkpoint-x:v3"})
    artifacts.use_checkpoint([logged.logger], file)
    assert not logged.used  # there is no server
    logged.run.offline = logged.run.disabled = False
    artifacts.use_checkpoint([logged.logger], file)
    assert logged.used == ["team/fcnlab/checkpoint-x:v3"]
    assert not logged.inputs


def test_errors_are_warnings(logged, folder, caplog):
    logged.logger.artifacts = "best"
    logged.run.log_artifact.side_effect = OSError(28, "No space left on device")
    artifacts.log_results([logged.logger], folder)
    (folder / "checkpoints" / "best.ckpt").unlink()
    (folder / "checkpoints" / "last.ckpt").unlink()
    artifacts.use_checkpoint([logged.logger], CheckpointFile(folder / "checkpoints" / "best.ckpt"))
    assert "some artifacts of this run are missing in W&B ([Errno 28] No space" in caplog.text


@pytest.fixture
def data(tmp_path):
    """Return a function that opens a folder of two images."""
    for split, value in {"train": 0, "val": 1}.items():
        image = np.full((8, 8, 3), value, np.uint8)
        for place, pixels in {"images": image, "masks": image[..., 0]}.items():
            (tmp_path / "set" / place / split).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / "set" / place / split / "a.png")

    def opened() -> DataModule:
        def dataset(root: str, split: str):
            return open_folder(root, split, "images/{split}/{name}.png", "masks/{split}/{name}.png", ["one", "two"])

        return DataModule(dataset, str(tmp_path / "set"), "train", "val", 2, lambda size: none(size))

    return opened


def test_data_have_a_hash_of_names_images_and_masks(data, logged, tmp_path):
    logged.logger.artifacts = "best"
    first = data()
    artifacts.use_data([logged.logger], first, "train", "val", "test")
    assert [each.name for each in logged.inputs] == ["set-train", "set-val"]  # test is val
    assert {each.type for each in logged.inputs} == {"dataset"}
    for artifact, split in zip(logged.inputs, ("train", "val"), strict=True):
        (entry,) = artifact.manifest.entries.values()
        assert entry.ref == f"fcnlab-data:{first.content_digest(split)}" and entry.local_path is None
    digests = [first.content_digest(split) for split in ("train", "val")]
    assert [data().content_digest(split) for split in ("train", "val")] == digests
    mask = tmp_path / "set" / "masks" / "val" / "a.png"
    Image.fromarray(np.array(Image.open(mask)) ^ np.eye(8, dtype=np.uint8)).save(mask)
    changed = [data().content_digest(split) for split in ("train", "val")]
    assert changed[0] == digests[0] and changed[1] != digests[1]


def records(run: Path) -> list[dict]:
    """The artifacts in an offline run, as W&B's own reader shows them."""
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", run]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [record["artifact"] for record in map(json.loads, done.stdout.splitlines()) if record["type"] == "artifact"]
    return [each for each in found if each["type"] != "run_table"]


def md5(path: Path) -> str:
    return base64.b64encode(hashlib.md5(path.read_bytes()).digest()).decode()


@pytest.mark.slow
def test_an_evaluation_uses_what_its_training_run_has_logged(train, fcnlab, tmp_path):
    """Offline: equal names and hashes are one version in W&B."""
    ours = ("logger=wandb", "logger.wandb.mode=offline", "callbacks.sample_images.enabled=false")
    folder = train(*ours, "logger.wandb.artifacts=all", "trainer.max_steps=2")
    (run,) = (folder / "wandb").glob("offline-run-*")
    trained = {f"{each['type']} {' '.join(sorted(each['aliases']))} {each['name']}": each for each in records(run)}
    run_id = json.loads((folder / "run.json").read_text())["wandb"]
    best = trained[f"model best latest checkpoint-{run_id}"]
    assert set(trained) == {
        "dataset latest shapes-train", "dataset latest shapes-val", f"model last latest checkpoint-{run_id}",
        f"model best latest checkpoint-{run_id}", f"predictions latest predictions-{run_id}",
    }  # fmt: skip
    (content,) = best["manifest"]["contents"]
    assert content["digest"] == md5(folder / "checkpoints/best.ckpt")
    assert json.loads(best["metadata"])["miou"] == json.loads((folder / "metrics.json").read_text())["miou"]

    checkpoint = f"checkpoint={folder}/checkpoints/best.ckpt"
    scored = tmp_path / "scored"
    words = ("logger=wandb", "logger.wandb.mode=offline", "logger.wandb.artifacts=best", "trainer.accelerator=cpu")
    assert fcnlab("eval", checkpoint, *words, f"hydra.run.dir={scored}") == 0
    (run,) = (scored / "wandb").glob("offline-run-*")
    used = {each["type"]: each for each in records(run)}
    assert used["model"]["digest"] == best["digest"] and used["model"]["name"] == best["name"]
    assert used["dataset"]["digest"] == trained["dataset latest shapes-val"]["digest"]
    assert used["model"]["use_after_commit"] and used["dataset"]["use_after_commit"]
    assert "use_after_commit" not in used["predictions"]
    record = json.loads((scored / "metrics.json").read_text())
    assert record["wandb_run"]["group"] == record["trained"]["wandb_run"]["id"] == run_id
