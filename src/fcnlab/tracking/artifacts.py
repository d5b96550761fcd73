"""W&B artifacts: the checkpoints and predictions of a run, its data (as hashes) and the checkpoint it starts from.

W&B uploads the files of an artifact when the run is online, and otherwise with ``wandb sync``. By default it first
copies them to a folder in the home folder, which may have little space. fcnlab hands it hard links beside the files of
the W&B run instead: they need no space, and stay as they are when the run is resumed and replaces its checkpoints.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from fcnlab.data import DataModule
from fcnlab.files.reading import read_json_facts
from fcnlab.library_internals.wandb import add_reference, log_artifact, use_artifact
from fcnlab.metrics.scores import SCORES
from fcnlab.runs.prediction_archive import NAME as PREDICTIONS
from fcnlab.tracking.accepted_values import MAX_NAME, sendable, shortened
from fcnlab.tracking.bounded_calls import within
from fcnlab.tracking.downloads import CheckpointFile
from fcnlab.tracking.links import TrackedRun, mirrors
from fcnlab.tracking.mirror import Mirror, attempt, errors_as_warnings

FORBIDDEN = re.compile(r"[^\w.-]+", re.ASCII)  # in names and aliases, so that each is a part of an address
DESCRIBED_BY = (*SCORES, "fine_grained", "split", "selection", "protocol")  # parts of metrics.json
USE_TIMEOUT = 10.0  # seconds
CONTENT = "artifacts"  # in warnings


def log_results(loggers: Iterable[Logger], folder: Path) -> None:
    """Log the checkpoints and the predictions in a run's folder as artifacts, as ``logger.wandb.artifacts`` says.

    "best" are ``best.ckpt`` (without it, ``last.ckpt``) and the predictions, "all" are all checkpoints and the
    predictions. The metadata of the scored checkpoint and of the predictions contain the scores, how the checkpoint was
    selected and the protocol; those of the others only the name of the file.
    """
    for logger in _storing(loggers):
        run_id = logger.experiment.id
        with errors_as_warnings(CONTENT):
            record = read_json_facts(folder, "metrics.json")
            facts = {key: record[key] for key in DESCRIBED_BY if key in record}
            scored = facts["selection"].get("checkpoint") if isinstance(facts.get("selection"), Mapping) else None
            for path in _checkpoints(folder / "checkpoints", logger):
                about = facts if path.stem == scored else {}
                artifact = _with_file(logger, checkpoint_name(run_id), "model", path, about)
                attempt(CONTENT, partial(log_artifact, logger.experiment, artifact, [_accepted(path.stem)]))
            if (folder / PREDICTIONS).is_file():
                artifact = _with_file(logger, f"predictions-{run_id}", "predictions", folder / PREDICTIONS, facts)
                attempt(CONTENT, partial(log_artifact, logger.experiment, artifact))


def _checkpoints(folder: Path, logger: Mirror) -> list[Path]:
    """Return the checkpoints to log; W&B calls the one that is logged last "latest", so the best is."""
    paths = sorted(folder.glob("*.ckpt"), key=lambda path: (*(path.stem == name for name in ("best", "last")), path))
    return paths if logger.artifacts == "all" else paths[-1:]


def checkpoint_name(run_id: str) -> str:
    """Return the name of the artifact that has a run's checkpoints as its versions."""
    return f"checkpoint-{run_id}"


def use_checkpoint(loggers: Iterable[Logger], file: CheckpointFile, trained: TrackedRun | None = None) -> None:
    """Log a checkpoint as an input of this run.

    A downloaded one is the artifact that it comes from. Any other is logged under the name of the artifact of its
    training run ``trained``: W&B stores equal files of one name once, so both runs have the same artifact.
    """
    if file.artifact is None:
        for logger in _storing(loggers):
            with errors_as_warnings(CONTENT):
                artifact = _with_file(
                    logger, checkpoint_name(trained.id) if trained else "checkpoint", "model", file.path, {}
                )
                attempt(CONTENT, partial(log_artifact, logger.experiment, artifact, is_input=True))
        return
    for logger in mirrors(loggers):
        run = logger.experiment
        if not (run.offline or run.disabled):
            with errors_as_warnings(CONTENT):
                within(USE_TIMEOUT, use_artifact, run, file.artifact["artifact"], int(USE_TIMEOUT))


def _storing(loggers: Iterable[Logger]) -> Iterator[Mirror]:
    """Yield the W&B loggers that store artifacts."""
    for logger in mirrors(loggers):
        if logger.artifacts != "none" and not logger.experiment.disabled:
            yield logger


def use_data(loggers: Iterable[Logger], data: DataModule, *splits: str) -> None:
    """Log the data of some splits as inputs of this run: for each list an artifact with a hash, without files."""
    for logger in _storing(loggers):
        with errors_as_warnings(CONTENT):
            for split in {data.lists[split]: split for split in splits}.values():
                attempt(CONTENT, partial(log_artifact, logger.experiment, _data_artifact(data, split), is_input=True))


def _data_artifact(data: DataModule, split: str) -> Any:
    import wandb

    dataset, digest = data.split(split), data.content_digest(split)
    facts = {"title": dataset.title, "images": len(dataset), "classes": len(dataset.classes), "sha256": digest}
    artifact = wandb.Artifact(_accepted(dataset.title), "dataset", metadata=sendable(facts))
    add_reference(artifact, "images-and-masks", f"fcnlab-data:{digest}")
    return artifact


def _with_file(logger: Mirror, name: str, kind: str, path: Path, facts: Mapping[str, Any]) -> Any:
    import wandb

    artifact = wandb.Artifact(_accepted(name), kind, metadata=sendable({"file": path.name, **facts}))
    kept = _kept(path.resolve(), Path(logger.experiment.dir).absolute().parent / "artifacts")
    artifact.add_file(str(kept), name=path.name, policy="immutable", skip_cache=True)
    return artifact


def _kept(path: Path, folder: Path) -> Path:
    """Return a hard link to a file in ``folder``; the file itself where the file system has no such links."""
    try:
        link = folder / str(path.stat().st_ino) / path.name  # an ensemble has files of one name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        os.link(path, link)
    except OSError:
        return path
    return link


def _accepted(name: str) -> str:
    """Return a name or an alias of letters, digits and _ . - that W&B accepts."""
    return shortened(FORBIDDEN.sub("-", name), MAX_NAME)
