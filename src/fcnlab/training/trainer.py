"""Build Lightning's Trainer and its callbacks from the config."""

import sys
from pathlib import Path

import lightning as L
from hydra.utils import get_object, instantiate
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from fcnlab.config.components import to_plain
from fcnlab.config.run_context import RunContext
from fcnlab.errors import UserError
from fcnlab.inference import InferenceMethod, Postprocess
from fcnlab.messages import log_warning
from fcnlab.signals import StopSignals
from fcnlab.training.callbacks import (
    AtomicCheckpointIO,
    CheckpointSelection,
    ExactResume,
    FinalValidation,
    GracefulStop,
    MetricsCsv,
    StopOnNaN,
    StopReason,
    Throughput,
    TimeLeft,
    TopCheckpoints,
)
from fcnlab.training.components import instantiate_checked
from fcnlab.training.hardware import cluster, hush_lightning, precision, uses_gpu
from fcnlab.training.speed import allow_tf32


def build_trainer(cfg: DictConfig, folder: Path, loggers: list[Logger] | bool, callbacks: list[Callback]) -> L.Trainer:
    """Build Lightning's Trainer: fcnlab sets what it guarantees of a run, and the config sets everything else.

    ``val_check_interval`` counts optimiser steps, where Lightning counts batches.
    """
    settings = to_plain(cfg.trainer)
    settings["precision"] = precision(cfg)
    allow_tf32(cfg.speed.tf32)
    if settings["sync_batchnorm"] and not uses_gpu(settings["accelerator"]):
        settings["sync_batchnorm"] = False
        log_warning(
            "trainer.sync_batchnorm=true has no effect on a CPU: torch synchronises batch statistics on GPUs only"
        )
    settings["val_check_interval"] *= settings["accumulate_grad_batches"]
    settings["check_val_every_n_epoch"] = None
    if not shows_progress(cfg):
        settings.setdefault("enable_progress_bar", False)  # otherwise Lightning adds its own
    hush_lightning()
    return instantiate_checked(
        settings,
        "trainer",
        logger=loggers,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(), *cluster()],
        use_distributed_sampler=False,  # Lightning's would evaluate some images twice
        default_root_dir=str(folder),
    )


def shows_progress(cfg: DictConfig) -> bool:
    """Return whether to draw a progress bar: in terminals only, since it would flood the log of a job."""
    enabled = "callbacks" not in cfg or (cfg.callbacks.get("progress") or {}).get("enabled", True)
    return enabled and sys.stdout.isatty()


def members(node: DictConfig) -> dict[str, DictConfig]:
    """Return the callbacks or loggers of a config by name, without those set to null."""
    return {str(name): member for name, member in node.items() if member is not None}


def build_inference(cfg: DictConfig) -> tuple[InferenceMethod, Postprocess]:
    """Build the inference method and the post-processing step.

    Raises
    ------
    UserError
        A class does not have the right base class, or a package that the post-processing step needs is missing.
    """
    inference, postprocess = (instantiate(cfg[group], _convert_="all") for group in ("inference", "postprocess"))
    for group, component, base in (
        ("inference", inference, InferenceMethod),
        ("postprocess", postprocess, Postprocess),
    ):
        if not isinstance(component, base):
            raise UserError(
                f"{group}._target_={cfg[group]._target_} is not a subclass of fcnlab.inference.{base.__name__}: choose"
                f" {group}=NAME, or derive your class from it"
            )
    postprocess.check_installed()
    return inference, postprocess


def training_callbacks(cfg: DictConfig, curves: MetricsCsv, signals: StopSignals) -> list[Callback]:
    """Return the configured callbacks together with those of every training run; the order matters.

    Callbacks that set ``should_stop`` (FinalValidation, early stopping) come before StopReason, which records it, and
    ExactResume restores random states before GracefulStop saves them. Lightning moves checkpoint callbacks to the end.
    """
    return [
        FinalValidation(),
        TimeLeft(),
        Throughput(),
        StopOnNaN(cfg.trainer.log_every_n_steps),
        *configured_callbacks(cfg),
        StopReason(),
        ExactResume(curves, cfg.data.batch_size),
        CheckpointSelection(curves),
        GracefulStop(signals),
    ]


def check_scored(cfg: DictConfig) -> None:
    """Check that the run keeps the checkpoint that it will score.

    Raises
    ------
    UserError
        ``checkpointing.score`` is "best", but no callback keeps a best checkpoint.
    """
    if cfg.checkpointing.score == "best" and not any(map(_keeps_best, members(cfg.callbacks).values())):
        raise UserError(
            "checkpointing.score=best: without callbacks.best the run keeps no best checkpoint to score. Add"
            " checkpointing.score=last, or remove the override that disables it (callbacks.best.enabled=false,"
            " callbacks=none)"
        )


def check_output_paths(cfg: DictConfig, context: RunContext) -> None:
    """Refuse callbacks that write outside of the run's folder, which its lock and its record do not cover.

    Raises
    ------
    UserError
        A callback's ``dirpath`` or ``folder``, or a ``filename`` in it, is not inside the run's folder.
    """
    run = context.folder.resolve()
    for name, node in members(cfg.callbacks).items():
        for key in ("dirpath", "folder"):
            output = node.get(key)
            if not output or not node.get("enabled", True):
                continue
            for part, path in ((key, Path(output)), ("filename", Path(output, node.get("filename") or ""))):
                if not path.resolve().is_relative_to(run):
                    raise UserError(
                        f"callbacks.{name}.{part}={node[part]} is not inside the run's folder {run} and could replace"
                        " another run's files. Leave it out, and set the run's folder with"
                        f" {context.folder_setting}=FOLDER"
                    )


def _keeps_best(node: DictConfig) -> bool:
    """Return whether a configured callback keeps a best checkpoint."""
    kind = get_object(node["_target_"])
    if not (node.get("enabled", True) and isinstance(kind, type) and issubclass(kind, ModelCheckpoint)):
        return False
    return node.keep > 0 if kind is TopCheckpoints else node.get("monitor") is not None


def configured_callbacks(cfg: DictConfig) -> list[Callback]:
    """Build the callbacks that are not disabled by ``enabled: false``."""
    callbacks = []
    for name, node in members(cfg.callbacks).items():
        settings = to_plain(node)
        if settings.pop("enabled", True) and (name != "progress" or shows_progress(cfg)):
            callbacks.append(instantiate_checked(settings, f"callbacks.{name}"))
    return callbacks
