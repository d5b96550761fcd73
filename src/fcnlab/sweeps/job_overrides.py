"""Which of a sweep's overrides are each job's, and which are the sweep's own."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from fcnlab.config.overrides import format_override, override_key, plain_overrides

log = logging.getLogger("fcnlab")
SWEEP_KEYS = re.compile(r"[+~]*hydra[./](launcher|sweeper|sweep|mode|run)\b")  # no words for one of its jobs
NOT_REPEATED = re.compile(  # no words for its repetition: its folder, and what its record holds as words of the jobs
    r"[+~]*hydra(\.(sweep(\.dir)?|run(\.dir)?|mode|searchpath)$|\.sweeper\.params\b)"
)
OF_ONE_RUN = re.compile(r"hydra\.(run(\.dir)?|job\.(num|id))")
RESERVED_NAMES = {"sweep.json", "multirun.yaml", "search.json", "search.db", "wandb"}
MAX_FILE_NAME_BYTES = 255  # bytes, on most file systems


def warn_about_single_run_overrides(hydra: DictConfig) -> None:
    words = [word for word in plain_overrides(hydra.overrides.hydra) if OF_ONE_RUN.fullmatch(override_key(word))]
    if words:
        log.warning(
            "Warning: %s: no effect on a sweep, which hydra.sweep.dir=FOLDER names, and whose jobs are numbered",
            ", ".join(words),
        )


def user_overrides(words: Sequence[str]) -> list[str]:
    """Overrides without those that make a run a job of a sweep."""
    return [word for word in words if not word.startswith("sweep.")]


def overrides_for_job(folder: Path, name: str) -> list[str]:
    """What tells a run that it is a job, and of which sweep."""
    return [format_override("sweep.folder", folder), format_override("sweep.name", name.replace("$", ""))]
