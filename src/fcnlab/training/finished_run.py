"""Recognise a finished run that is resumed with the same settings: it keeps its record."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fcnlab.comparison.runs import ExcludedRun, Run, read_or_reason
from fcnlab.config.components import leaves_of
from fcnlab.files.reading import Unreadable, display_path, read_yaml
from fcnlab.messages import log_warning
from fcnlab.runs.settings import differences, is_free
from fcnlab.training.resume_point import ResumePoint, why_unusable
from fcnlab.training.segments import has_new_segment

HOW_STARTED = re.compile(r"checkpoint|from_run|sweep\..*")  # these settings request no work


def finished_run(
    cfg: DictConfig, start: ResumePoint, segments: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], folder: Path
) -> Run | None:
    """Return the run in ``folder`` if it is finished and ``cfg`` requests no more work; otherwise None.

    More work is requested by any other setting, also one that no weight depends on, such as a logger. A run is also
    scored again if its record or the checkpoint that was scored is missing or damaged. ``facts`` are those of run.json.
    """
    if facts.get("status") != "finished" or not _is_at_end(cfg, start):
        return None
    if has_new_segment(segments, start) or has_free_changes(cfg, folder):
        return None
    run = read_or_reason(folder)
    if isinstance(run, ExcludedRun):
        log_warning(
            f"{display_path(folder)} is finished, but its record cannot be used ({run.reason}): the run is scored again"
        )
    return run if isinstance(run, Run) and _has_scored_checkpoint(run, start) else None


def _is_at_end(cfg: DictConfig, start: ResumePoint) -> bool:
    """Return whether a finished run's checkpoint is its last state, after which nothing is trained."""
    if start.checkpoint is None:
        return False
    return Path(start.checkpoint).name == "last.ckpt" or start.steps == cfg.trainer.get("max_steps", -1)


def has_free_changes(cfg: DictConfig, folder: Path) -> bool:
    """Return whether settings that no weight depends on differ from those of the run in ``folder``.

    All other changes make a new segment. A run whose settings cannot be read counts as changed.
    """
    try:
        recorded = leaves_of(read_yaml(folder, ".hydra/config.yaml"))
    except (OSError, Unreadable):
        return True
    present = leaves_of(OmegaConf.to_container(cfg, resolve=False))
    changed = differences(recorded, present)  # with interpolations, so that a run's folder may be moved
    return any(is_free(path) and not HOW_STARTED.fullmatch(path) for path in changed)


def _has_scored_checkpoint(run: Run, start: ResumePoint) -> bool:
    checkpoints = run.folder / "checkpoints"
    scored = run.selection["checkpoint"] if run.selection else None
    return (
        scored in ("best", "last")
        and (checkpoints / f"{scored}.ckpt").is_file()
        and not why_unusable(checkpoints, start, changed=False)
    )
