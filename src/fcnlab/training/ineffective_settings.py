"""Settings that were typed and have no effect: a sentence for each, which a verb warns with before any long work."""

import re
from collections.abc import Iterator

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fcnlab.config.overrides import chosen_options, override_key, plain_overrides, was_set_on_command_line
from fcnlab.training.hardware import uses_gpu
from fcnlab.training.trainer import enabled_members, shows_progress

# Of the trainer and the data, what nothing but a training reads; a checkpoint's own data are those of its run.
OF_TRAINING = re.compile(
    r"trainer\.(m(ax|in)_(steps|epochs)|max_time|val_check_interval|accumulate_grad_batches|gradient_clip_\w+"
    r"|log_every_n_steps|limit_(train|val)_batches|num_sanity_val_steps|sync_batchnorm|reload_\w+)"
    r"|data\.(train_list|batch_size|crop_size|allow_overlap)|(data\.)?augment(\..*)?"
)
OF_SWEEPS = re.compile(r"hydra[./](launcher|sweeper|sweep)\b.*")
LIGHTNINGS = ("fcnlab.", "lightning.")  # callbacks of which it is known whether they can stop a run


def ineffective_in_training(cfg: DictConfig) -> Iterator[str]:
    """What has no effect in ``fcnlab train``, or makes all the rest have none."""
    yield from without_a_sweep()
    yield from _of_data(cfg)
    yield from _of_optimisation(cfg)
    yield from _of_speed(cfg)
    yield from _of_length(cfg)
    yield from _of_callbacks(cfg)


def ineffective_in_scoring(verb: str) -> Iterator[str]:
    """What has no effect where nothing is trained."""
    yield from without_a_sweep()
    for key in typed():
        if OF_TRAINING.fullmatch(key):
            yield f"{key} has no effect in fcnlab {verb}: it is for training"
    for key in ("compile", "fused_optimizer"):
        if was_set_on_command_line(f"speed.{key}"):
            yield f"speed.{key} has no effect here: it is for training"


def without_a_sweep() -> Iterator[str]:
    """Launchers and sweepers are asked for by ``-m`` alone."""
    hydra = HydraConfig.get()
    words = [word for word in plain_overrides(hydra.overrides.hydra) if OF_SWEEPS.fullmatch(override_key(word))]
    if words and hydra.mode == RunMode.RUN:
        yield f"{', '.join(words)} has no effect on a single run: add -m"


def typed() -> list[str]:
    """The keys of settings and groups that were typed."""
    return [override_key(word) for word in plain_overrides(HydraConfig.get().overrides.task)]


def _of_data(cfg: DictConfig) -> Iterator[str]:
    whole = chosen_options().get("augment") == "none"
    if whole and was_set_on_command_line("data.crop_size"):
        yield "data.crop_size has no effect with augment=none, which takes whole images"
    if cfg.data.get("cache") != "disk" and was_set_on_command_line("data.cache_dir"):
        yield f"data.cache_dir has no effect with data.cache={cfg.data.get('cache')}: set data.cache=disk"
    if cfg.data.get("num_workers") == 0 and was_set_on_command_line("data.prefetch_factor"):
        yield "data.prefetch_factor has no effect with data.num_workers=0: nothing is read ahead"
    if was_set_on_command_line("data.dataset.split_seed") and cfg.data.dataset.get("fractions") is None:
        yield "data.dataset.split_seed has no effect without data.dataset.fractions, which it deals out"


def _of_optimisation(cfg: DictConfig) -> Iterator[str]:
    if cfg.optim.get("lr") == 0:
        yield "optim.lr=0: nothing learns, so that no other setting of the optimiser or the schedule has an effect"
    weights = cfg.loss.get("class_weights")
    if was_set_on_command_line("loss.class_weights") and weights is None:
        yield "loss.class_weights=null has no effect: all classes count alike, as with loss=cross_entropy"
    elif (
        was_set_on_command_line("loss.class_weights")
        and len(set(weights)) == 1
        and cfg.loss._target_ == "fcnlab.training.losses.CrossEntropy"
    ):
        yield "loss.class_weights has no effect where all are equal: the mean is divided by them"
    if was_set_on_command_line("trainer.gradient_clip_algorithm") and cfg.trainer.get("gradient_clip_val") is None:
        yield "trainer.gradient_clip_algorithm has no effect with trainer.gradient_clip_val=null: nothing is clipped"


def _of_speed(cfg: DictConfig) -> Iterator[str]:
    gpu = uses_gpu(cfg.trainer.accelerator)
    if was_set_on_command_line("speed.bf16") and cfg.trainer.precision != "auto":
        yield f"speed.bf16 has no effect with trainer.precision={cfg.trainer.precision}: it is for auto"
    elif was_set_on_command_line("speed.bf16") and cfg.speed.bf16 and not gpu:
        yield "speed.bf16=true has no effect on a CPU: trainer.precision=bf16-mixed computes in it there"
    if was_set_on_command_line("speed.tf32") and cfg.speed.tf32 and not gpu:
        yield "speed.tf32=true has no effect on a CPU"
    if was_set_on_command_line("trainer.benchmark") and cfg.trainer.benchmark and not gpu:
        yield "trainer.benchmark=true has no effect on a CPU: it tries cuDNN's ways to convolve"
    if was_set_on_command_line("speed.fused_optimizer") and "fused" not in cfg.optim:
        yield f"speed.fused_optimizer has no effect with optim={chosen_options().get('optim')}, which has no fused"
    if was_set_on_command_line("speed.fused_optimizer") and was_set_on_command_line("optim.fused"):
        yield "speed.fused_optimizer has no effect with optim.fused, which stands in its place"


def _of_length(cfg: DictConfig) -> Iterator[str]:
    """Least lengths where nothing stops a run before its end; early stopping that has no time to."""
    trainer, early = cfg.trainer, _early_stopping(cfg)
    stops = bool(early) or trainer.get("max_time") is not None or _has_others(cfg)
    for key in ("min_steps", "min_epochs"):
        if was_set_on_command_line(f"trainer.{key}") and trainer.get(key) and not stops:
            yield (
                f"trainer.{key} has no effect where nothing stops a run early: it is for"
                " callbacks.early_stopping.enabled=true"
            )
    if trainer.get("max_steps", -1) == -1 or trainer.get("max_epochs") not in (None, -1):
        return
    validations = -(-trainer.max_steps // trainer.val_check_interval)
    for name, node in early.items():
        limits = (node.get(f"{kind}_threshold") for kind in ("stopping", "divergence"))
        if validations <= node.get("patience", 3) + 1 and all(limit is None for limit in limits):
            yield (
                f"callbacks.{name} has no effect with {validations} validations, since it waits for"
                f" {node.get('patience', 3)} behind the best: lower its patience or trainer.val_check_interval"
            )


def _enabled(cfg: DictConfig) -> dict[str, DictConfig]:
    return {name: node for name, node in enabled_members(cfg.callbacks).items() if node.get("enabled", True)}


def _early_stopping(cfg: DictConfig) -> dict[str, DictConfig]:
    return {name: node for name, node in _enabled(cfg).items() if node["_target_"].endswith(".EarlyStopping")}


def _has_others(cfg: DictConfig) -> bool:
    """Whether there are callbacks of the user's own, which may do anything."""
    return any(not node["_target_"].startswith(LIGHTNINGS) for node in _enabled(cfg).values())


def _of_callbacks(cfg: DictConfig) -> Iterator[str]:
    enabled = _enabled(cfg)
    for name in cfg.callbacks:
        words = [key for key in typed() if key.startswith(f"callbacks.{name}.")]
        if name not in enabled and any(key != f"callbacks.{name}.enabled" for key in words):
            yield f"{', '.join(words)} has no effect: add callbacks.{name}.enabled=true"
    for key, name in {"every_n_minutes": "last", "keep_top": "top"}.items():
        if was_set_on_command_line(f"checkpointing.{key}") and name not in enabled:
            yield f"checkpointing.{key} has no effect without callbacks.{name}"
    if was_set_on_command_line("callbacks.progress.refresh_rate") and "progress" in enabled and not shows_progress(cfg):
        yield "callbacks.progress.refresh_rate has no effect: bars are drawn on terminals only"
