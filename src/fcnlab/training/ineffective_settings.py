"""Find command-line settings without an effect: one message for each, shown as a warning before any long work."""

import re
from collections.abc import Iterator

from omegaconf import DictConfig

from fcnlab.config.overrides import override_key
from fcnlab.config.run_context import RunContext
from fcnlab.runs.settings import TRAINING_ONLY
from fcnlab.training.hardware import uses_gpu
from fcnlab.training.trainer import members, shows_progress

SWEEP_ONLY = re.compile(r"hydra[./](launcher|sweeper|sweep)\b.*")
KNOWN_PACKAGES = ("fcnlab.", "lightning.")  # whose callbacks are known to stop a run or not


def ineffective_in_training(cfg: DictConfig, context: RunContext) -> Iterator[str]:
    """Yield a message for each setting without an effect in ``fcnlab train``."""
    yield from sweep_settings_of_single_run(context)
    yield from _of_data(cfg, context)
    yield from _of_optimisation(cfg, context)
    yield from _of_speed(cfg, context)
    yield from _of_length(cfg, context)
    yield from _of_callbacks(cfg, context)
    yield from ineffective_of_wandb(cfg, context)


def ineffective_of_wandb(cfg: DictConfig, context: RunContext) -> Iterator[str]:
    """Yield a message for a setting of the W&B run without an effect, in a command that evaluates."""
    if context.sets("logger.wandb.table_images") and cfg.evaluation.keep_predictions == "none":
        yield (
            "logger.wandb.table_images has no effect with evaluation.keep_predictions=none: the images of the table are"
            " those of predictions.zip"
        )


def ineffective_in_scoring(context: RunContext) -> Iterator[str]:
    """Yield a message for each setting without an effect in a command that does not train."""
    yield from sweep_settings_of_single_run(context)
    for key in command_line_keys(context):
        divides_list = key == "data.train_list" and context.sets("data.folds")
        if TRAINING_ONLY.fullmatch(key) and not divides_list:
            yield f"{key} has no effect in fcnlab {context.verb}: it applies to training only"
    for key in ("compile", "fused_optimizer"):
        if context.sets(f"speed.{key}"):
            yield f"speed.{key} has no effect here: it applies to training only"


def sweep_settings_of_single_run(context: RunContext) -> Iterator[str]:
    """Yield a message for launcher and sweeper settings without ``-m``."""
    overrides = [each for each in context.hydra_overrides if SWEEP_ONLY.fullmatch(override_key(each))]
    if overrides and not context.in_sweep:
        yield f"{', '.join(overrides)} has no effect on a single run: add -m to start a sweep"


def command_line_keys(context: RunContext) -> list[str]:
    """Return the keys of all settings and groups on the command line."""
    return [override_key(override) for override in context.overrides]


def _of_data(cfg: DictConfig, context: RunContext) -> Iterator[str]:
    whole_images = context.options.get("augment") == "none"
    if whole_images and context.sets("data.crop_size"):
        yield "data.crop_size has no effect with augment=none, which trains on whole images"
    if cfg.data.get("cache") != "disk" and context.sets("data.cache_dir"):
        yield f"data.cache_dir has no effect with data.cache={cfg.data.get('cache')}: set data.cache=disk"
    if cfg.data.get("num_workers") == 0 and context.sets("data.prefetch_factor"):
        yield "data.prefetch_factor has no effect with data.num_workers=0: only workers prefetch"
    folds, fraction = cfg.data.get("folds"), cfg.data.get("fraction")
    if folds is not None and context.sets("data.val_list"):
        yield f"data.val_list has no effect with data.folds={folds}, which validates on a fold of data.train_list"
    if folds is None and context.sets("data.stratify"):
        yield "data.stratify has no effect without data.folds"
    if folds is None and fraction is None and context.sets("data.fold_group"):
        yield "data.fold_group has no effect without data.folds or data.fraction"
    if context.sets("data.dataset.split_seed") and cfg.data.dataset.get("fractions") is None:
        yield "data.dataset.split_seed has no effect without data.dataset.fractions"


def _of_optimisation(cfg: DictConfig, context: RunContext) -> Iterator[str]:
    if cfg.optim.get("lr") == 0:
        yield "optim.lr=0: the model does not learn, so no other setting of the optimiser or schedule has an effect"
    weights = cfg.loss.get("class_weights")
    if context.sets("loss.class_weights") and weights is None:
        yield "loss.class_weights=null has no effect: all classes have the same weight, as with loss=cross_entropy"
    elif (
        context.sets("loss.class_weights")
        and len(set(weights)) == 1
        and cfg.loss._target_ == "fcnlab.training.losses.CrossEntropy"
    ):
        yield "loss.class_weights has no effect if all weights are equal: the weighted mean cancels them"
    if context.sets("trainer.gradient_clip_algorithm") and cfg.trainer.get("gradient_clip_val") is None:
        yield "trainer.gradient_clip_algorithm has no effect with trainer.gradient_clip_val=null: nothing is clipped"


def _of_speed(cfg: DictConfig, context: RunContext) -> Iterator[str]:
    gpu = uses_gpu(cfg.trainer.accelerator)
    if context.sets("speed.bf16") and cfg.trainer.precision != "auto":
        yield f"speed.bf16 has no effect with trainer.precision={cfg.trainer.precision}: it applies to auto only"
    elif context.sets("speed.bf16") and cfg.speed.bf16 and not gpu:
        yield "speed.bf16=true has no effect on a CPU: set trainer.precision=bf16-mixed for bf16"
    if context.sets("speed.tf32") and cfg.speed.tf32 and not gpu:
        yield "speed.tf32=true has no effect on a CPU"
    if context.sets("trainer.benchmark") and cfg.trainer.benchmark and not gpu:
        yield "trainer.benchmark=true has no effect on a CPU: it selects cuDNN's convolution algorithms"
    if context.sets("speed.fused_optimizer") and "fused" not in cfg.optim:
        yield f"speed.fused_optimizer has no effect with optim={context.options.get('optim')}, which has none"
    if context.sets("speed.fused_optimizer") and context.sets("optim.fused"):
        yield "speed.fused_optimizer has no effect with optim.fused, which overrides it"


def _of_length(cfg: DictConfig, context: RunContext) -> Iterator[str]:
    """Yield messages for minimum lengths without early stopping, and for early stopping that can never stop."""
    trainer, early = cfg.trainer, _early_stopping(cfg)
    may_stop = bool(early) or trainer.get("max_time") is not None or _has_own_callbacks(cfg)
    for key in ("min_steps", "min_epochs"):
        if context.sets(f"trainer.{key}") and trainer.get(key) and not may_stop:
            yield f"trainer.{key} has no effect without early stopping: add callbacks.early_stopping.enabled=true"
    if trainer.get("max_steps", -1) == -1 or trainer.get("max_epochs") not in (None, -1):
        return
    validations = -(-trainer.max_steps // trainer.val_check_interval)
    for name, node in early.items():
        limits = (node.get(f"{kind}_threshold") for kind in ("stopping", "divergence"))
        if validations <= node.get("patience", 3) + 1 and all(limit is None for limit in limits):
            yield (
                f"callbacks.{name} has no effect with {validations} validations, since its patience is"
                f" {node.get('patience', 3)} validations after the best: lower its patience or"
                " trainer.val_check_interval"
            )


def _enabled(cfg: DictConfig) -> dict[str, DictConfig]:
    return {name: node for name, node in members(cfg.callbacks).items() if node.get("enabled", True)}


def _early_stopping(cfg: DictConfig) -> dict[str, DictConfig]:
    return {name: node for name, node in _enabled(cfg).items() if node["_target_"].endswith(".EarlyStopping")}


def _has_own_callbacks(cfg: DictConfig) -> bool:
    """Return whether the user has added callbacks, which may stop the run."""
    return any(not node["_target_"].startswith(KNOWN_PACKAGES) for node in _enabled(cfg).values())


def _of_callbacks(cfg: DictConfig, context: RunContext) -> Iterator[str]:
    enabled = _enabled(cfg)
    for name in cfg.callbacks:
        keys = [key for key in command_line_keys(context) if key.startswith(f"callbacks.{name}.")]
        if name not in enabled and any(key != f"callbacks.{name}.enabled" for key in keys):
            yield f"{', '.join(keys)} has no effect: add callbacks.{name}.enabled=true"
    for key, name in {"every_n_minutes": "last", "keep_top": "top"}.items():
        if context.sets(f"checkpointing.{key}") and name not in enabled:
            yield f"checkpointing.{key} has no effect without callbacks.{name}"
    if context.sets("callbacks.progress.refresh_rate") and "progress" in enabled and not shows_progress(cfg):
        yield "callbacks.progress.refresh_rate has no effect: the progress bar is drawn in terminals only"
