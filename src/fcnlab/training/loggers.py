"""Open the loggers of a run: TensorBoard, W&B and others, in addition to metrics.csv."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from fcnlab.config.components import to_plain
from fcnlab.config.overrides import shell_join
from fcnlab.config.run_context import RunContext
from fcnlab.errors import WANDB_DIR_IGNORED, UserError, first_line
from fcnlab.messages import log_info, log_warning
from fcnlab.runs.score_record import ID
from fcnlab.signals import Interrupted
from fcnlab.tracking.contents import numbers
from fcnlab.tracking.contents import settings as settings_in_wandb
from fcnlab.tracking.mirror import Mirror, errors_as_warnings
from fcnlab.training.callbacks import MetricsCsv
from fcnlab.training.components import REJECTIONS, instantiate_checked
from fcnlab.training.trainer import members

TAGGED = ("model", "backbone", "data", "experiment")  # groups whose options are W&B's tags


@contextmanager
def open_loggers(
    cfg: DictConfig, context: RunContext, facts: Mapping[str, Any] | None = None
) -> Iterator[list[Logger]]:
    """Open the configured loggers; the W&B run ends with the status and the exit code of the process.

    ``facts`` are those of the run's record: ``wandb`` is the id of the W&B run to resume, and ``segments`` is added to
    its config.
    """
    loggers = _opened(cfg, context.folder.resolve())
    if "wandb" in members(cfg.logger):  # last, so that another logger's error leaves no W&B run
        loggers.append(_open_wandb(cfg, context, facts or {}))
    status, code = "failed", 1
    try:
        yield loggers
        status, code = "finished", 0
    except Interrupted as stop:
        status, code = "interrupted", 128 + stop.signal
        raise
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                _finish(logger, status, code)


@rank_zero_only
def _finish(logger: WandbLogger, status: str, code: int) -> None:
    with errors_as_warnings("facts"):
        logger.experiment.summary["status"] = status
        logger.experiment.finish(exit_code=code)


def restore_best(loggers: list[Logger], curves: MetricsCsv) -> None:
    """Restore the best validation of a resumed run in W&B's summary, from the rows of metrics.csv."""
    for logger in loggers:
        if isinstance(logger, Mirror):
            logger.restore_best(numbers(row) for row in curves.rows())


def wandb_id(loggers: list[Logger]) -> str | None:
    """Return the id of this run in W&B, if it has one."""
    return next((logger.experiment.id for logger in loggers if isinstance(logger, WandbLogger)), None)


def _opened(cfg: DictConfig, run: Path) -> list[Logger]:
    """Open all loggers except W&B's, and call each once, so that invalid settings are found now.

    Raises
    ------
    UserError
        A logger rejects its settings, or would write to the folder of a run or of another logger.
    """
    loggers: dict[str, Logger] = {
        name: instantiate_checked(cfg.logger[name], f"logger.{name}") for name in members(cfg.logger) if name != "wandb"
    }
    folders: dict[tuple[type, Path], str] = {}
    for name, logger in loggers.items():  # check all of them before the first creates its files
        if folder := _property(name, logger, "log_dir"):
            _check_folder(name, logger, Path(folder).resolve(), folders, run)
    for name, logger in loggers.items():
        _property(name, logger, "experiment")  # makes Lightning's loggers create their files
    return list(loggers.values())


def _property(name: str, logger: Logger, attribute: str) -> Any:
    """Return a property of a logger, or None without it; raise a UserError where it fails."""
    try:
        return getattr(logger, attribute, None)
    except REJECTIONS as error:
        raise UserError(f"logger.{name}: {first_line(error)}") from error


def _check_folder(name: str, logger: Logger, folder: Path, folders: dict[tuple[type, Path], str], run: Path) -> None:
    """Refuse a logger that would replace a run's metrics.csv or share a folder; ``folders`` are in use.

    ``run`` is the folder of this run.
    """
    if isinstance(logger, CSVLogger) and (folder == run or (folder / "run.json").exists()):
        raise UserError(
            f"logger.{name} writes to {folder}, the folder of a run, and would replace its metrics.csv: choose another"
            f" folder with logger.{name}.save_dir, logger.{name}.name or logger.{name}.version"
        )
    owner = folders.setdefault((type(logger), folder), name)
    if owner != name:
        raise UserError(
            f"logger.{name} and logger.{owner} both write to {folder}: set another logger.{name}.name, or leave one of"
            " them out"
        )
    if not folder.is_relative_to(run) and folder.is_dir() and any(folder.iterdir()):
        log_warning(
            f"logger.{name} writes to {folder}, outside of the run's folder, which already contains files: runs"
            f" may appear as one. Set another logger.{name}.version, or leave logger.{name}.save_dir out"
        )


def _open_wandb(cfg: DictConfig, context: RunContext, facts: Mapping[str, Any]) -> WandbLogger:
    settings, options = cfg.logger.wandb, context.identifying_options
    composed: Any = OmegaConf.to_container(cfg, resolve=False)
    sweep = Path(cfg.sweep.folder).resolve() if cfg.sweep.folder else None
    run_id, environment_id = facts.get("wandb"), os.environ.get("WANDB_RUN_ID")
    if not run_id and environment_id is not None and not ID.fullmatch(environment_id):
        raise UserError(
            f"WANDB_RUN_ID={environment_id} in the environment is not a valid id: use 1 to 96 letters, digits, - and"
            " _, or unset it"
        )
    if run_id and environment_id not in (None, run_id):
        log_warning(
            f"WANDB_RUN_ID={environment_id} in the environment has no effect: this run resumes its W&B run {run_id}"
        )
    if os.environ.get("WANDB_DIR"):  # not in a sweep, which removes it and warns once
        log_warning(WANDB_DIR_IGNORED)
    logger = instantiate(settings, _convert_="all")(
        folder=sweep or context.folder,  # one wandb/ for a whole sweep
        config=settings_in_wandb(composed, to_plain(cfg), options, facts.get("segments", ())),
        name=settings.name or cfg.sweep.name or os.environ.get("WANDB_NAME") or _run_name(cfg, context),
        group=settings.group
        or os.environ.get("WANDB_RUN_GROUP")
        or (f"{sweep.parent.name}/{sweep.name}" if sweep else None),
        project=settings.project
        if context.sets("logger.wandb.project")
        else os.environ.get("WANDB_PROJECT", settings.project),
        job_type=context.verb,
        tags=list(dict.fromkeys([*settings.tags, *(options[group] for group in TAGGED if group in options)])),
        run_id=run_id,
    )
    _report_sync_command(logger)
    return logger


@rank_zero_only
def _report_sync_command(logger: WandbLogger) -> None:
    if logger.experiment.offline:
        command = shell_join(["wandb", "sync", str(Path(logger.experiment.dir).parent)])
        log_info(f"W&B logs this run offline. To upload it later: {command}")


def _run_name(cfg: DictConfig, context: RunContext) -> str:
    parts = [context.options.get(group) for group in ("model", "model/backbone", "data")]
    return "-".join([part for part in parts if part] + [f"s{cfg.seed}"])
