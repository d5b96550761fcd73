"""The loggers of a run: metrics.csv beside TensorBoard's and W&B's."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from fcnlab.config.components import to_plain
from fcnlab.config.overrides import (
    chosen_options,
    identifying_options_of_run,
    run_folder,
    shell_join,
    was_set_on_command_line,
)
from fcnlab.errors import UserError, first_line
from fcnlab.messages import log_info, log_warning
from fcnlab.runs.score_record import ID
from fcnlab.signals import Interrupted
from fcnlab.training.callbacks.wandb import in_nobodys_way
from fcnlab.training.components import REJECTIONS, instantiate_checked
from fcnlab.training.trainer import enabled_members

TAGGED = ("model", "backbone", "data", "experiment")  # groups whose options are W&B's tags


def check_output_paths(cfg: DictConfig) -> None:
    """Refuse callbacks that write beside the run, whose lock and record are its folder's alone.

    Raises
    ------
    UserError
        A callback's ``dirpath`` or ``folder``, or a ``filename`` in it, is not below the run's folder.
    """
    whole = run_folder().resolve()
    for name, node in enabled_members(cfg.callbacks).items():
        for key in ("dirpath", "folder"):
            place = node.get(key)
            if not place or not node.get("enabled", True):
                continue
            for part, path in ((key, Path(place)), ("filename", Path(place, node.get("filename") or ""))):
                if not path.resolve().is_relative_to(whole):
                    raise UserError(
                        f"callbacks.{name}.{part}={node[part]} is not below the run's folder, {whole}: it could replace"
                        " another run's files. Leave it out, and name the run's folder by hydra.run.dir=FOLDER"
                    )


@contextmanager
def open_loggers(cfg: DictConfig, facts: Mapping[str, Any] | None = None) -> Iterator[list[Logger]]:
    """The configured loggers; W&B's run ends with the status and the exit code that the process will have.

    ``facts`` are those of the run's record: ``wandb`` is the id of the W&B run to resume, ``segments`` goes into its
    config.
    """
    loggers = _opened(cfg)
    if "wandb" in enabled_members(cfg.logger):  # last: what another one refuses leaves no run there
        loggers.append(_open_wandb(cfg, facts or {}))
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
    with in_nobodys_way("facts"):
        logger.experiment.summary["status"] = status
        logger.experiment.finish(exit_code=code)


def wandb_id(loggers: list[Logger]) -> str | None:
    """The id of this run in W&B, if it has one."""
    return next((logger.experiment.id for logger in loggers if isinstance(logger, WandbLogger)), None)


def _opened(cfg: DictConfig) -> list[Logger]:
    """The loggers but W&B's, each of which has begun: what it refuses at its first call is the user's mistake, too.

    Raises
    ------
    UserError
        A logger refuses its settings, or would write where a run or another logger does.
    """
    loggers: dict[str, Logger] = {
        name: instantiate_checked(cfg.logger[name], f"logger.{name}")
        for name in enabled_members(cfg.logger)
        if name != "wandb"
    }
    places: dict[tuple[type, Path], str] = {}
    for name, logger in loggers.items():  # all of them before the first makes its files
        if place := _asked_of(name, logger, "log_dir"):
            _check_place(name, logger, Path(place).resolve(), places)
    for name, logger in loggers.items():
        _asked_of(name, logger, "experiment")  # with which Lightning's loggers make their files
    return list(loggers.values())


def _asked_of(name: str, logger: Logger, what: str) -> Any:
    """A property of a logger; None where it has none. What it refuses is the user's mistake."""
    try:
        return getattr(logger, what, None)
    except REJECTIONS as error:
        raise UserError(f"logger.{name}: {first_line(error)}") from error


def _check_place(name: str, logger: Logger, place: Path, places: dict[tuple[type, Path], str]) -> None:
    """Refuse a logger that would replace a run's curves or mix its files with another's; ``places`` are taken."""
    if isinstance(logger, CSVLogger) and (place == run_folder().resolve() or (place / "run.json").exists()):
        raise UserError(
            f"logger.{name} writes into {place}, a run's own folder, and would replace its metrics.csv: name a folder"
            f" of its own by logger.{name}.save_dir, logger.{name}.name or logger.{name}.version"
        )
    other = places.setdefault((type(logger), place), name)
    if other != name:
        raise UserError(
            f"logger.{name} writes into {place}, as logger.{other} does, and they would mix their files: set another"
            f" logger.{name}.name, or leave one of them out"
        )
    if not place.is_relative_to(run_folder().resolve()) and place.is_dir() and any(place.iterdir()):
        log_warning(
            f"logger.{name} writes into {place}, outside of the run's folder, where files are already: curves of"
            f" several runs may be shown as one. Set another logger.{name}.version, or leave logger.{name}.save_dir out"
        )


def _open_wandb(cfg: DictConfig, facts: Mapping[str, Any]) -> WandbLogger:
    settings, sweep = cfg.logger.wandb, Path(cfg.sweep.folder).resolve() if cfg.sweep.folder else None
    run_id, other = facts.get("wandb"), os.environ.get("WANDB_RUN_ID")
    if not run_id and other is not None and not ID.fullmatch(other):
        raise UserError(
            f"WANDB_RUN_ID={other} in the environment is no id that a record can hold: give 1 to 100 letters, digits, -"
            " and _, or unset it"
        )
    if run_id and other not in (None, run_id):
        log_warning(
            f"WANDB_RUN_ID={other} in the environment: no effect, since this run's record has the W&B run {run_id}"
        )
    logger = instantiate(settings, _convert_="all")(
        folder=sweep or run_folder(),  # one wandb/ for a whole sweep
        config=to_plain(cfg)
        | {"options": identifying_options_of_run()}
        | {key: facts[key] for key in ("segments",) if key in facts},
        name=settings.name or cfg.sweep.name or os.environ.get("WANDB_NAME") or _run_name(cfg),
        group=settings.group
        or os.environ.get("WANDB_RUN_GROUP")
        or (f"{sweep.parent.name}/{sweep.name}" if sweep else None),
        project=settings.project
        if was_set_on_command_line("logger.wandb.project")
        else os.environ.get("WANDB_PROJECT", settings.project),
        job_type=HydraConfig.get().job.config_name,
        tags=list(
            dict.fromkeys(
                [
                    *settings.tags,
                    *(
                        identifying_options_of_run().get(group)
                        for group in TAGGED
                        if group in identifying_options_of_run()
                    ),
                ]
            )
        ),
        run_id=run_id,
    )
    _say_where(logger)
    return logger


@rank_zero_only
def _say_where(logger: WandbLogger) -> None:
    if logger.experiment.offline:
        log_info(
            f"W&B: this run is offline; later: {shell_join(['wandb', 'sync', str(Path(logger.experiment.dir).parent)])}"
        )


def _run_name(cfg: DictConfig) -> str:
    chosen = chosen_options()
    parts = [chosen.get(group) for group in ("model", "model/backbone", "data")]
    return "-".join([part for part in parts if part] + [f"s{cfg.seed}"])
