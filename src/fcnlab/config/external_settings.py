"""Types and ranges of the arguments of external classes, whose own annotations say too little.

A key without an entry here is not checked, and left to the class itself.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

from fcnlab.config.ranges import Count, Meaning, NonNegative, Positive, Whole

Settings = Mapping[str, Any]

LONGEST_NAME = 100  # bytes of a file name; a file system allows 255, and values make a name longer
MOST_VALUES = 4  # of metrics in a file name
METRIC = r"[A-Za-z]\w*(/\w+)*"  # Lightning also writes the metric's own name into the file name
PLACEHOLDER = re.compile(rf"\{{(step|epoch)(:0?\d?d)?\}}|\{{{METRIC}(:0?\d?(\.\d)?[fge])?\}}", re.ASCII)


def _names_devices(value: Any) -> bool:
    """Return whether a value is one that Lightning accepts: a number of devices, all, or a list of indices."""
    if isinstance(value, str) and value not in ("auto", "-1"):
        numbers = value.split(",")
        return all(number.strip().isdigit() for number in numbers) and (len(numbers) > 1 or int(value) >= 1)
    if isinstance(value, list):
        return bool(value) and all(type(number) is int and number >= 0 for number in value)
    return value in ("auto", "-1") or (type(value) is int and (value == -1 or value >= 1))


def _limits_batches(value: float) -> bool:
    return value >= 1 if isinstance(value, int) else 0 < value <= 1


Devices = Annotated[
    Any, Meaning("a number of devices, auto for all, or a list of device indices such as [0,1]", _names_devices)
]
Precision = Annotated[
    Any,
    Meaning(
        "auto, 32-true, bf16-mixed, 16-mixed on a GPU, or fastest: weights and upsampling stay in single precision",
        lambda value: value in ("auto", "32-true", "bf16-mixed", "16-mixed", "fastest"),
    ),
]
Limit = Annotated[
    int | float, Meaning("a number of batches, or a fraction of them above 0, at most 1.0", _limits_batches)
]
Unlimited = Annotated[
    int, Meaning("a whole number of at least 1, or -1 for no limit", lambda value: value == -1 or value >= 1)
]
Sanity = Annotated[int, Meaning("a whole number of batches, or -1 for all", lambda value: value >= -1)]
Steps = Annotated[int, Meaning("a whole number of optimiser steps, at least 1", lambda value: value >= 1)]
NoEpochs = Annotated[None, Meaning("null: set trainer.val_check_interval, in steps, instead", lambda value: True)]
NoTrial = Annotated[Any, Meaning("false: trainer=smoke tries all parts in seconds", lambda value: not value)]
NoOverfit = Annotated[
    Any,
    Meaning(
        "0: each epoch would draw other images. To overfit a model to a few images, name a list of them in"
        " data.train_list and data.val_list, and add data.allow_overlap=true augment=none; for data=shapes, set"
        " data.dataset.num_train=4",
        lambda value: not value,
    ),
]
Ours = Annotated[
    Any,
    Meaning("removed: fcnlab sets it. Use logger=, callbacks= and hydra.run.dir=FOLDER", lambda value: False),
]


class TrainerSettings(TypedDict, total=False):
    """Settings of Lightning's Trainer in a config; ``val_check_interval`` counts optimiser steps."""

    devices: Devices
    num_nodes: Count
    precision: Precision
    logger: Ours
    callbacks: Ours
    plugins: Ours
    default_root_dir: Ours
    use_distributed_sampler: Ours
    fast_dev_run: NoTrial
    barebones: NoTrial
    overfit_batches: NoOverfit
    max_steps: Unlimited
    min_steps: Whole | None
    max_epochs: Unlimited | None
    min_epochs: Whole | None
    limit_train_batches: Limit | None
    limit_val_batches: Limit | None
    limit_test_batches: Limit | None
    limit_predict_batches: Limit | None
    val_check_interval: Steps
    check_val_every_n_epoch: NoEpochs
    num_sanity_val_steps: Sanity | None
    log_every_n_steps: Count
    accumulate_grad_batches: Count
    gradient_clip_val: Positive | None
    gradient_clip_algorithm: Literal["norm", "value"] | None
    deterministic: bool | Literal["warn"] | None
    benchmark: bool | None
    inference_mode: bool
    detect_anomaly: bool
    sync_batchnorm: bool
    enable_checkpointing: bool | None
    enable_progress_bar: bool | None
    enable_model_summary: bool | None
    reload_dataloaders_every_n_epochs: Whole


def _trainer_conflicts(settings: Settings) -> Iterator[str]:
    steps, epochs = settings.get("max_steps", -1), settings.get("max_epochs")
    if steps == -1 and epochs in (None, -1):
        yield "max_steps=-1 sets no limit, and the schedule needs one. Set max_steps or max_epochs."
    for unit in ("steps", "epochs"):
        most, least = settings.get(f"max_{unit}"), settings.get(f"min_{unit}")
        if isinstance(most, int) and isinstance(least, int) and -1 != most < least:
            yield f"min_{unit}={least} is more than max_{unit}={most}, which ends the run. Set at most {most}."


Monitored = Annotated[
    str, Meaning("a validation score such as val/miou, or val/loss", lambda value: value.startswith("val/"))
]


def _names_checkpoint(name: str) -> bool:
    """Return whether str.format turns a name into another file name of the same folder, and a short one.

    ``{step:c}`` is a character of the step's number, two of them may be "..", and ``{step:900000000d}`` a gigabyte.
    """
    text, count = PLACEHOLDER.subn("0", name)  # no value of a metric is, or ends in, a point or a slash
    is_plain = text.isprintable() and not set("{}\\") & set(text)
    is_inside = not text.startswith(("/", "~")) and ".." not in text.split("/")
    return is_plain and is_inside and count <= MOST_VALUES and len(name.encode(errors="replace")) <= LONGEST_NAME


CheckpointName = Annotated[
    str,
    Meaning(
        f"a file name in the run's folder of at most {LONGEST_NAME} bytes, without '..', with at most {MOST_VALUES}"
        " values, such as {step}, {epoch:03d} or {val/miou:.4f}",
        _names_checkpoint,
    ),
]
Mode = Literal["min", "max"]
NoLast = Annotated[Any, Meaning("false: callbacks.last keeps last.ckpt", lambda value: not value)]
WholeState = Annotated[
    Any,
    Meaning("false: without the states of callbacks, the EMA weights would be lost", lambda value: not value),
]
AtValidations = Annotated[Any, Meaning("null or false: patience counts validations", lambda value: not value)]


class EarlyStoppingSettings(TypedDict, total=False):
    """Settings of Lightning's EarlyStopping; ``patience`` counts validations."""

    monitor: Monitored
    mode: Mode
    min_delta: NonNegative
    patience: Count
    stopping_threshold: float | None
    divergence_threshold: float | None
    verbose: bool
    strict: bool
    check_finite: bool
    check_on_train_epoch_end: AtValidations
    log_rank_zero_only: bool


class ModelCheckpointSettings(TypedDict, total=False):
    """Settings of Lightning's ModelCheckpoint, and of classes derived from it."""

    filename: CheckpointName | None
    monitor: Monitored | None
    mode: Mode
    save_last: NoLast
    save_top_k: Sanity
    every_n_train_steps: Whole | None
    every_n_epochs: Whole | None
    save_on_train_epoch_end: bool | None
    verbose: bool
    save_weights_only: WholeState
    save_on_exception: bool
    auto_insert_metric_name: bool
    enable_version_counter: bool


def _monitor_conflicts(settings: Settings) -> Iterator[str]:
    """Yield a mode that prefers the worst value: a loss is minimised, a score maximised."""
    monitor, mode = settings.get("monitor"), settings.get("mode", "min")
    best = "min" if monitor == "val/loss" else "max"
    if monitor is not None and mode in ("min", "max") and mode != best:
        yield f"mode={mode} would keep the worst {monitor}. Set mode={best}."


def _checkpoint_conflicts(settings: Settings) -> Iterator[str]:
    """Yield settings that would keep a checkpoint under the score of other weights than its own."""
    yield from _monitor_conflicts(settings)
    if settings.get("monitor") is None:
        return
    between = [key for key in ("every_n_train_steps", "train_time_interval") if settings.get(key) is not None]
    between += ["save_on_train_epoch_end"] * (settings.get("save_on_train_epoch_end") is True)
    for key in between:
        yield (
            f"{key}={settings[key]} would keep weights under the score of an earlier validation. Remove it."
            " trainer.val_check_interval sets how often weights are validated, checkpointing.every_n_minutes how often"
            " last.ckpt is written."
        )
    if settings.get("every_n_epochs") not in (None, 1):
        yield (
            f"every_n_epochs={settings['every_n_epochs']} would skip validations, perhaps the best one."
            " Remove it, and set trainer.val_check_interval."
        )
    save_top_k, filename = settings.get("save_top_k", 1), settings.get("filename")
    if save_top_k != 1 and isinstance(filename, str) and "{" not in filename:
        yield (
            f"save_top_k={save_top_k} with filename={filename} would give all checkpoints one name. Set save_top_k=1."
            " checkpointing.keep_top=3 keeps further checkpoints, callbacks.best.enabled=false keeps none."
        )


@dataclass(frozen=True)
class ExternalClass:
    """The annotations of an external class, and the conflicts between its settings."""

    settings: type
    conflicts: Callable[[Settings], Iterator[str]]


EXTERNAL_CLASSES = {
    "lightning.pytorch.trainer.trainer.Trainer": ExternalClass(TrainerSettings, _trainer_conflicts),
    "lightning.pytorch.callbacks.early_stopping.EarlyStopping": ExternalClass(
        EarlyStoppingSettings, _monitor_conflicts
    ),
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint": ExternalClass(
        ModelCheckpointSettings, _checkpoint_conflicts
    ),
}


def external_class(target: Callable) -> ExternalClass | None:
    """Return the annotations of an external class, or of the one that a class is derived from; None without any."""
    names = [f"{each.__module__}.{each.__qualname__}" for each in getattr(target, "__mro__", ())]
    return next((EXTERNAL_CLASSES[name] for name in names if name in EXTERNAL_CLASSES), None)
