"""What a run records of the weights that it starts from, and of itself for whoever scores its checkpoints."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fcnlab.config import plain
from fcnlab.errors import UserError
from fcnlab.launching.manifest import facts_of
from fcnlab.results import lineage
from fcnlab.results.origins import environment, part
from fcnlab.results.settings import leaves
from fcnlab.tasks.checkpoints import read_checkpoint
from fcnlab.tasks.resuming import Start, is_own
from fcnlab.tasks.scoring import machine


def weights_used(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each file of weights that a config names, by setting: its name, its hash, the recipe of its training."""
    return {path: file_facts(Path(value)) | {"recipe": _recipe(Path(value))} for path, value in _paths(config)}


def _paths(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for path, value in leaves(config).items():
        is_weights = path.startswith("model.") and path.endswith(".weights")
        if is_weights and isinstance(value, str) and Path(value).is_file():
            yield path, value


def file_facts(path: Path) -> dict[str, Any]:
    """What a file is, wherever it lies."""
    with path.open("rb") as file:
        return {"name": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _recipe(path: Path) -> str | None:
    try:
        training = lineage.from_facts(trained_of(read_checkpoint(path)))
    except UserError:  # others' weights
        return None
    return training and lineage.recipe(training)


def trained_of(checkpoint: Mapping[str, Any]) -> Any:
    """What a checkpoint tells of its training; None where it is too old."""
    return checkpoint["fcnlab"].get("trained")


def came_from(start: Start, folder: Path, cfg: DictConfig) -> dict[str, Any]:
    """Facts for run.json: the files of weights that a run begins with, and whether another run's checkpoint is one.

    Nothing for a run that resumes its own: what it began with stays.
    """
    if start.checkpoint is None:
        return {"resumed_at": 0, "inherited": [], "weights": weights_used({"model": plain(cfg.model)})}
    if is_own(start.checkpoint, folder):
        return {}
    inherited = start.trained.get("sources")
    return {
        "resumed_at": start.steps,
        "inherited": inherited if isinstance(inherited, list) else [],
        "weights": part(start.trained, "files"),
    }


def describe_training(cfg: DictConfig, facts: Mapping[str, Any], trainer: L.Trainer) -> dict[str, Any]:
    """What every checkpoint of a run tells of it; ``facts`` are those of its run.json."""
    runtime = {"choices": dict(HydraConfig.get().runtime.choices), "cwd": HydraConfig.get().runtime.cwd}
    found = lineage.described(OmegaConf.to_container(cfg, resolve=False), plain(cfg), runtime, facts)
    provenance = machine(trainer.strategy.root_device) | {"commit": facts.get("commit")}
    found = found._replace(
        settings=found.settings | {"trainer.precision": str(trainer.precision)},
        environment=environment({"provenance": provenance}),
    )
    return lineage.as_facts(found, run=facts.get("id"), sources=lineage.sources(facts))


def trained_when_scored(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """For the metrics.json of an evaluation: what the checkpoint tells, its step, and whether its run was finished."""
    trained = trained_of(checkpoint)
    if not isinstance(trained, dict):
        return None
    run = facts_of(path.absolute().parent.parent, "run.json")
    status = run.get("status") if run.get("id") == trained.get("run") else None  # else another run's folder
    return trained | {"step": int(checkpoint.get("global_step", 0)), "status": status}
