"""Record the origin of a run's initial weights, and the run's description for its checkpoints."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig, OmegaConf

from fcnlab.config.components import leaves_of, to_plain
from fcnlab.config.run_context import RunContext
from fcnlab.errors import UserError
from fcnlab.files.reading import read_json_facts
from fcnlab.runs import lineage
from fcnlab.runs.origins import environment, nested_map
from fcnlab.runs.provenance import machine
from fcnlab.training.checkpoints import read_checkpoint
from fcnlab.training.resume_point import ResumePoint, belongs_to_run


def starting_weights(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the weight files that a config names, by setting: name, hash and training recipe."""
    return {path: file_facts(Path(value)) | _training_facts(Path(value)) for path, value in _paths(config)}


def _paths(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for path, value in leaves_of(config).items():
        is_weights = path.startswith("model.") and path.endswith(".weights")
        if is_weights and isinstance(value, str) and Path(value).is_file():
            yield path, value


def file_facts(path: Path) -> dict[str, Any]:
    """Return the name and the hash of a file."""
    with path.open("rb") as file:
        return {"name": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _training_facts(path: Path) -> dict[str, Any]:
    """Return the recipe of a checkpoint's training run, its fold, and its data set and list; None for other files."""
    try:
        training = lineage.from_facts(trained_of(read_checkpoint(path)))
    except UserError:  # not a checkpoint of fcnlab's
        training = None
    if training is None:
        return {"recipe": None, "fold": None, "trained_on": None}
    fold = training.settings.get(lineage.FOLD)
    return {
        "recipe": lineage.recipe(training),
        "fold": None if fold is None else str(fold),
        "trained_on": lineage.list_of(training.settings),
    }


def trained_of(checkpoint: Mapping[str, Any]) -> Any:
    """Return a checkpoint's description of its training; None where it has none."""
    return checkpoint["fcnlab"].get("trained")


def starting_point_facts(start: ResumePoint, folder: Path, cfg: DictConfig) -> dict[str, Any]:
    """Return the facts of run.json on the initial weights, and on another run's checkpoint where the run starts there.

    Return nothing for a run that resumes from its own checkpoint: its recorded facts stay.
    """
    if start.checkpoint is None:
        weights = starting_weights({"model": to_plain(cfg.model)})
        return {"resumed_at": 0, "inherited": [], "weights": weights, "artifact": None}
    if belongs_to_run(start.checkpoint, folder):
        return {}
    inherited = start.trained.get("sources")
    return {
        "resumed_at": start.steps,
        "inherited": inherited if isinstance(inherited, list) else [],
        "weights": nested_map(start.trained, "files"),
        "artifact": start.artifact,
    }


def describe_training(
    cfg: DictConfig, context: RunContext, facts: Mapping[str, Any], trainer: L.Trainer
) -> dict[str, Any]:
    """Return the description of the run for its checkpoints; ``facts`` are those of run.json."""
    runtime = {"choices": dict(context.options), "cwd": context.cwd}
    training = lineage.describe_training_run(OmegaConf.to_container(cfg, resolve=False), to_plain(cfg), runtime, facts)
    provenance = machine(trainer.strategy.root_device) | {"commit": facts.get("commit")}
    training = training._replace(
        settings=training.settings | {"trainer.precision": str(trainer.precision)},
        environment=environment({"provenance": provenance}),
    )
    return lineage.as_facts(
        training, run=facts.get("id"), sources=lineage.sources(facts), wandb_run=facts.get("wandb_run")
    )


def training_of_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """Return the training facts for an evaluation's metrics.json: description, step and the run's status."""
    trained = trained_of(checkpoint)
    if not isinstance(trained, dict):
        return None
    run = read_json_facts(path.absolute().parent.parent, "run.json")
    # With another id, the folder contains another run.
    status = run.get("status") if run.get("id") == trained.get("run") else None
    return trained | {"step": int(checkpoint.get("global_step", 0)), "status": status}
