"""From the config to a Trainer, its loggers and its callbacks."""

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from fcnlab.callbacks import (
    EndWithValidation,
    ExactResume,
    Interruption,
    MetricsFile,
    StopOnNaN,
    WholeFiles,
)
from fcnlab.config import plain
from fcnlab.data import DataModule
from fcnlab.errors import UserError
from fcnlab.models import FCN
from fcnlab.signals import Interrupted, StopSignals
from fcnlab.trust import DATA

log = logging.getLogger("fcnlab")
TAGGED = ("model", "backbone", "data", "experiment")  # groups whose options are W&B's tags


def run_folder() -> Path:
    """Where this run leaves its files."""
    return Path(HydraConfig.get().runtime.output_dir)


@rank_zero_only
def say(message: str) -> None:
    """Tell the user, once whatever the number of processes."""
    log.info(message)


@rank_zero_only
def warn(message: str) -> None:
    """Warn the user, once whatever the number of processes."""
    log.warning("Warning: %s", message)


def given(key: str) -> bool:
    """Whether a setting was typed."""
    return any(word.lstrip("+").startswith(f"{key}=") for word in HydraConfig.get().overrides.task)


def open_data(node: DictConfig, named_by_record: bool) -> DataModule:
    """The data of a config; what only a record names is only read, and keeps its cache in this run's folder."""
    if not named_by_record or node._target_ not in DATA[""]:
        return instantiate(node, _convert_="all")
    return instantiate(node, _convert_="all", read_only=True, cache_dir=str(run_folder() / "cache"))


def choices() -> dict[str, str]:
    """Which option of each group was chosen."""
    return {group: str(option) for group, option in HydraConfig.get().runtime.choices.items()}


def options() -> dict[str, str]:
    """The options of fcnlab's own groups by the group's last word: what runs are told apart by."""
    chosen = {group.rpartition("/")[2]: option for group, option in choices().items() if not group.startswith("hydra/")}
    return {group: option for group, option in chosen.items() if option != "None"}


def build_trainer(cfg: DictConfig, loggers: list[Logger] | bool, callbacks: list[Callback]) -> L.Trainer:
    """Lightning's Trainer; what fcnlab promises of a run is set here, everything else is the config's.

    ``val_check_interval`` counts optimiser steps; Lightning counts batches.
    """
    settings = plain(cfg.trainer)
    settings["precision"] = precision(cfg)
    allow_tf32(cfg.speed.tf32)
    if settings["sync_batchnorm"] and not _on_gpu(settings["accelerator"]):
        settings["sync_batchnorm"] = False
        warn("trainer.sync_batchnorm=true has no effect on a CPU: torch synchronises batch statistics on GPUs only")
    _check_validation(settings)
    settings["val_check_interval"] *= settings["accumulate_grad_batches"]
    settings["check_val_every_n_epoch"] = None
    if not _shows_progress(cfg):
        settings.setdefault("enable_progress_bar", False)  # or Lightning brings its own
    _hush_lightning()
    return instantiate(
        settings,
        logger=loggers,
        callbacks=callbacks,
        plugins=[WholeFiles(), *cluster()],
        use_distributed_sampler=False,  # Lightning's would evaluate some pictures twice
        default_root_dir=str(run_folder()),
        _convert_="all",
    )


def cluster() -> list[SLURMEnvironment]:
    """As a task of Slurm's: its ranks, without Lightning's own way to be queued again; launching/slurm.py has ours."""
    named = os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")  # Lightning's rule: a user at a terminal
    return [SLURMEnvironment(auto_requeue=False)] if "SLURM_NTASKS" in os.environ and named else []


def _shows_progress(cfg: DictConfig) -> bool:
    """Bars are for terminals: in the log of a job they would bury what was said."""
    enabled = "callbacks" not in cfg or cfg.callbacks.get("progress", {}).get("enabled", True)
    return enabled and sys.stdout.isatty()


def _check_validation(settings: dict[str, Any]) -> None:
    """Checkpoints, early stopping and exact resume hang on validations, and those on optimiser steps."""
    steps, epochs = settings["val_check_interval"], settings.get("check_val_every_n_epoch")
    if type(steps) is not int or steps < 1:
        raise UserError(f"trainer.val_check_interval={steps}: give a whole number of optimiser steps")
    if epochs is not None:
        raise UserError(f"trainer.check_val_every_n_epoch={epochs}: set trainer.val_check_interval, in steps, instead")
    if settings.get("limit_val_batches") == 0:
        raise UserError(
            "trainer.limit_val_batches=0: without a validation a run has no best checkpoint; give 1 or more"
        )


# What Lightning warns of without a reason here.
NOISE = (
    r".*treespec, LeafSpec.*is deprecated",  # its own use of torch
    r".*smaller than the logging interval",  # steps are counted through epochs
    r".*Checkpoint directory .* exists and is not empty",  # on resuming that is how it should be
    r".*does not have many workers",  # data.num_workers is the user's choice
    r".*It is recommended to use `self.log.*sync_dist=True",  # scores are made from what all ranks counted
    r".*module\(s\) in eval mode at the start of training",  # norms of a backbone that rests
    r".*your dataloader is not resumable",  # it is: DataModule finds its place again
    r"The `srun` command is available on your system but is not used",  # one process is what was asked for
)


def _hush_lightning() -> None:
    """Keep its warnings, once (its own handlers repeat Hydra's), but for those without a reason."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NOISE:
        warnings.filterwarnings("ignore", message)


def allow_tf32(allowed: bool) -> None:
    """Let a GPU round the factors of single-precision products to 10 bits; torch lets convolutions do so by default."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def evaluation_speed(cfg: DictConfig, net: FCN) -> dict[str, Any]:
    """What of ``speed=`` the Segmenter takes to evaluate: as in training, so that equal weights give equal scores."""
    for key in ("compile", "fused_optimizer"):
        if given(f"speed.{key}"):
            warn(f"speed.{key} has no effect here: it is for training")
    return speed_of_net(cfg, net)


def speed_of_net(cfg: DictConfig, net: FCN) -> dict[str, Any]:
    """The memory format, by device and backbone, and whether scores are taken by rows.

    Raises
    ------
    UserError
        ``speed.channels_last`` is neither a truth value nor "auto".
    """
    wanted = cfg.speed.channels_last
    if wanted not in (True, False, "auto"):
        raise UserError(f"speed.channels_last={wanted}: choose true, false or auto")
    if wanted == "auto":  # a user's own backbone need not say
        wanted = _on_gpu(cfg.trainer.accelerator) or getattr(net.backbone, "channels_last_on_cpu", False)
    return {"channels_last": wanted, "row_blocks": cfg.speed.row_blocks}


def training_speed(cfg: DictConfig, net: FCN) -> dict[str, Any]:
    """What of ``speed=`` the Segmenter takes to train.

    Raises
    ------
    UserError
        Nothing is there to compile with.
    """
    if cfg.speed.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise UserError("speed.compile=true needs a C++ compiler, and finds none: install g++, or leave it out")
    return speed_of_net(cfg, net) | {"compiled": cfg.speed.compile}


def precision(cfg: DictConfig) -> str:
    """``auto`` is bf16 on a GPU that computes in it, where ``speed.bf16`` lets it, and else single precision."""
    if cfg.trainer.precision != "auto":
        return cfg.trainer.precision
    gpu = cfg.speed.bf16 and _on_gpu(cfg.trainer.accelerator)
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def _on_gpu(accelerator: str) -> bool:
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def training_callbacks(cfg: DictConfig, curves: MetricsFile, signals: StopSignals) -> list[Callback]:
    """The configured callbacks, between those that every training has; the order matters.

    What sets ``should_stop`` (EndWithValidation, early stopping) comes before what records it, and restored random
    states before an interruption that saves them. Lightning puts those that save behind all others.
    """
    return [
        EndWithValidation(),
        StopOnNaN(cfg.trainer.log_every_n_steps),
        *configured_callbacks(cfg),
        ExactResume(curves, cfg.data.batch_size),
        Interruption(signals),
    ]


def configured_callbacks(cfg: DictConfig) -> list[Callback]:
    """The callbacks that are not disabled by ``enabled: false``."""
    built = []
    for name, node in cfg.callbacks.items():
        settings = plain(node)
        if settings.pop("enabled", True):
            if name == "progress" and not _shows_progress(cfg):
                continue
            built.append(instantiate(settings, _convert_="all"))
        else:
            changed = [word for word in HydraConfig.get().overrides.task if word.startswith(f"callbacks.{name}.")]
            if any(not word.startswith(f"callbacks.{name}.enabled=") for word in changed):
                warn(f"{', '.join(changed)} has no effect: add callbacks.{name}.enabled=true")
    return built


@contextmanager
def open_loggers(cfg: DictConfig, wandb_id: str | None = None) -> Iterator[list[Logger]]:
    """The configured loggers; W&B's run ends with the status and the exit code that the process will have.

    ``wandb_id`` is that of the W&B run to go on with.
    """
    loggers = [_build_logger(name, cfg, wandb_id) for name in cfg.logger]
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
    logger.experiment.summary["status"] = status
    logger.experiment.finish(exit_code=code)


def wandb_id(loggers: list[Logger]) -> str | None:
    """The id of this run in W&B, if it has one."""
    return next((logger.experiment.id for logger in loggers if isinstance(logger, WandbLogger)), None)


def _build_logger(name: str, cfg: DictConfig, wandb_id: str | None) -> Logger:
    if name != "wandb":
        return instantiate(cfg.logger[name], _convert_="all")
    settings, sweep = cfg.logger.wandb, Path(cfg.sweep.folder) if cfg.sweep.folder else None
    logger = instantiate(settings, _convert_="all")(
        folder=sweep or run_folder(),  # one wandb/ for a whole sweep
        config=plain(cfg) | {"options": options()},
        name=settings.name or cfg.sweep.name or _run_name(cfg),
        group=settings.group or (f"{sweep.parent.name}/{sweep.name}" if sweep else None),
        job_type=HydraConfig.get().job.config_name,
        tags=list(dict.fromkeys([*settings.tags, *(options().get(group) for group in TAGGED if group in options())])),
        run_id=wandb_id,
    )
    _say_where(logger)
    return logger


@rank_zero_only
def _say_where(logger: WandbLogger) -> None:
    if logger.experiment.offline:
        say(f"W&B: this run is offline; later: wandb sync {Path(logger.experiment.dir).parent}")


def _run_name(cfg: DictConfig) -> str:
    chosen = choices()
    parts = [chosen.get(group) for group in ("model", "model/backbone", "data")]
    return "-".join([part for part in parts if part] + [f"s{cfg.seed}"])
