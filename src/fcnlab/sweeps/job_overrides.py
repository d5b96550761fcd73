"""Separate the overrides of a sweep's jobs from those of the sweep itself."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from fcnlab.config.overrides import format_override, override_key, plain_overrides

log = logging.getLogger("fcnlab")
SWEEP_KEYS = re.compile(r"[+~]*hydra[./](launcher|sweeper|sweep|mode|run)\b")  # not passed on to the jobs
NOT_REPEATED = re.compile(  # not in the command that repeats a sweep: its folder, and what the record holds elsewhere
    r"[+~]*hydra(\.(sweep(\.dir)?|run(\.dir)?|mode|searchpath)$|\.sweeper\.params\b)"
)
SINGLE_RUN_KEYS = re.compile(r"hydra\.(run(\.dir)?|job\.(num|id))")
RESERVED_NAMES = {"sweep.json", "multirun.yaml", "search.json", "search.db", "wandb"}  # in a sweep's folder
MAX_FILE_NAME_BYTES = 255  # bytes, on most file systems


def warn_about_single_run_overrides(hydra: DictConfig) -> None:
    """Warn about settings of a single run's folder and number, which have no effect with -m."""
    ignored = [word for word in plain_overrides(hydra.overrides.hydra) if SINGLE_RUN_KEYS.fullmatch(override_key(word))]
    if ignored:
        log.warning(
            "Warning: %s has no effect on a sweep. Set its folder with hydra.sweep.dir=FOLDER; its jobs are numbered"
            " from 0",
            ", ".join(ignored),
        )


def resuming_option(config: DictConfig) -> str | None:
    """Return the setting that names an existing sweep whose jobs are run; None for a new sweep."""
    return next((option for option in ("sweep.resume", "sweep.extend") if OmegaConf.select(config, option)), None)


def user_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without those that make a run a job of a sweep."""
    return [override for override in overrides if not override.startswith("sweep.")]


def overrides_for_job(folder: Path, name: str) -> list[str]:
    """Return the overrides that make a run a job of the sweep in ``folder``.

    Its name has no ``$``: a recorded configuration that contains ``${`` is refused, since it could read anything.
    """
    return [format_override("sweep.folder", folder), format_override("sweep.name", name.replace("$", ""))]
