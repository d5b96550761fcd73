"""Open the loggers of a run: TensorBoard, W&B and others, in addition to metrics.csv."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from fcnlab.config.components import leaves_of, to_plain
from fcnlab.config.run_context import RunContext
from fcnlab.errors import WANDB_DIR_IGNORED, UserError, first_line
from fcnlab.messages import log_info, log_warning
from fcnlab.runs.score_record import ID
from fcnlab.signals import Interrupted
from fcnlab.tracking.alerts import send_alert
from fcnlab.tracking.contents import numbers
from fcnlab.tracking.contents import settings as settings_in_wandb
from fcnlab.tracking.end import end_run, sync_command
from fcnlab.tracking.labels import TAGGED, group_of_sweep, run_name, tags
from fcnlab.tracking.links import TrackedRun, common_group, scored_run_config
from fcnlab.tracking.mirror import Mirror
from fcnlab.tracking.mlflow_runs import MlflowRun
from fcnlab.tracking.tensorboard_settings import log_settings
from fcnlab.training.callbacks import MetricsCsv
from fcnlab.training.callbacks.stopping import TrainingDiverged
from fcnlab.training.components import REJECTIONS, instantiate_checked
from fcnlab.training.trainer import members


@contextmanager
def open_loggers(
    cfg: DictConfig,
    context: RunContext,
    facts: Mapping[str, Any] | None = None,
    scored: Sequence[TrackedRun] = (),
) -> Iterator[list[Logger]]:
    """Open the configured loggers; the W&B run ends with the status and the exit code of the process.

    ``facts`` are those of the run's record: ``wandb`` is the id of the W&B run to resume, and ``segments`` is added to
    its config. ``scored`` are the runs in W&B whose checkpoints an evaluation scores: it joins their group.
    """
    loggers = _opened(cfg, context.folder.resolve())
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            log_settings(logger, _settings(cfg, context))
    if _has_own_mlflow(cfg):
        loggers.append(_open_mlflow(cfg, context, facts or {}))
    if "wandb" in members(cfg.logger):  # last, so that another logger's error leaves no W&B run
        loggers.append(_open_wandb(cfg, context, facts or {}, scored))
    status, code = "failed", 1
    try:
        yield loggers
        status, code = "finished", 0
    except Interrupted as stop:
        status, code = "interrupted", 128 + stop.signal
        for logger in loggers:
            send_alert(logger, "The run was interrupted", f"It was stopped by {stop}.", "WARN")
        raise
    except TrainingDiverged as error:
        for logger in loggers:
            send_alert(logger, "The run has diverged", str(error), "ERROR")
        raise
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                _finish(logger, status, code)
            elif isinstance(logger, MlflowRun):
                logger.finish(status)


@rank_zero_only
def _finish(logger: WandbLogger, status: str, code: int) -> None:
    end_run(logger.experiment, status, code)


def restore_best(loggers: list[Logger], curves: MetricsCsv) -> None:
    """Restore the best validation of a resumed run in W&B's summary, from the rows of metrics.csv."""
    for logger in loggers:
        if isinstance(logger, Mirror):
            logger.restore_best(numbers(row) for row in curves.rows())


def wandb_id(loggers: list[Logger]) -> str | None:
    """Return the id of this run in W&B, if it has one."""
    return next((logger.experiment.id for logger in loggers if isinstance(logger, WandbLogger)), None)


def _opened(cfg: DictConfig, run: Path) -> list[Logger]:
    """Open all loggers except W&B's and our MLflow's, and call each once, so that invalid settings are found now.

    Raises
    ------
    UserError
        A logger rejects its settings, or would write to the folder of a run or of another logger.
    """
    later = {"wandb", *(["mlflow"] if _has_own_mlflow(cfg) else [])}
    loggers: dict[str, Logger] = {
        name: instantiate_checked(cfg.logger[name], f"logger.{name}")
        for name in members(cfg.logger)
        if name not in later
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


def _has_own_mlflow(cfg: DictConfig) -> bool:
    """Return whether ``logger=mlflow`` is chosen: a user's own logger may have the same name."""
    return "mlflow" in members(cfg.logger) and cfg.logger.mlflow.get("_partial_", False)


def _settings(cfg: DictConfig, context: RunContext) -> dict[str, Any]:
    """Return settings and chosen options by path, without those of loggers, whose addresses may contain a password."""
    settings = {path: value for path, value in leaves_of(to_plain(cfg)).items() if not path.startswith("logger.")}
    return settings | leaves_of(context.identifying_options, "options")


def _open_mlflow(cfg: DictConfig, context: RunContext, facts: Mapping[str, Any]) -> Logger:
    options = context.identifying_options
    sweep = Path(cfg.sweep.folder).resolve() if cfg.sweep.folder else None
    described = {group: options[group] for group in TAGGED if group in options} | {"verb": context.verb}
    return instantiate(cfg.logger.mlflow, _convert_="all")(
        folder=context.folder,
        run_name=cfg.sweep.name or run_name(context.options, cfg.seed),
        described=described | ({"sweep": group_of_sweep(sweep)} if sweep else {}),
        settings=_settings(cfg, context),
        run=facts.get("id"),
    )


def _open_wandb(
    cfg: DictConfig, context: RunContext, facts: Mapping[str, Any], scored: Sequence[TrackedRun] = ()
) -> WandbLogger:
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
    link = scored_run_config(scored)
    logger = instantiate(settings, _convert_="all")(
        folder=sweep or context.folder,  # one wandb/ for a whole sweep
        config=settings_in_wandb(composed, to_plain(cfg), options, facts.get("segments", ())) | link,
        name=settings.name or cfg.sweep.name or os.environ.get("WANDB_NAME") or run_name(context.options, cfg.seed),
        group=settings.group
        or os.environ.get("WANDB_RUN_GROUP")
        or (group_of_sweep(sweep) if sweep else common_group(scored)),
        project=settings.project
        if context.sets("logger.wandb.project")
        else os.environ.get("WANDB_PROJECT") or settings.project,
        job_type=context.verb,
        tags=tags(settings.tags, options),
        run_id=run_id,
    )
    _report_offline(logger, settings.alerts)
    return logger


@rank_zero_only
def _report_offline(logger: WandbLogger, alerts: bool) -> None:
    run = logger.experiment
    if alerts and (run.offline or run.disabled):
        state = "off" if run.disabled else "offline"
        log_warning(f"logger.wandb.alerts=true has no effect, because W&B is {state} for this run")
    if run.offline:
        log_info(f"W&B logs this run offline. To upload it later: {sync_command(logger.experiment)}")
