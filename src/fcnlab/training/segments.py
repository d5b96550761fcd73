"""Record the settings of a run by step, and decide which settings may change when it resumes.

A run has a segment from its first step, and another one for each resume with other settings.
"""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fcnlab.config.components import Settings, leaves_of, to_plain
from fcnlab.config.overrides import override_key, shell_override
from fcnlab.data import DataModule
from fcnlab.errors import UserError, first_line
from fcnlab.files.reading import read_yaml
from fcnlab.files.writing import timestamp
from fcnlab.messages import log_info, log_warning
from fcnlab.runs.run_record import is_under
from fcnlab.runs.settings import Change, differences, is_free, shown_changes
from fcnlab.training.hardware import BY_DEVICE, FASTEST, precision
from fcnlab.training.resume_point import ResumePoint, precision_of

# No part of a checkpoint depends on these settings: the next step uses the new value, and the record contains it.
MAY_CHANGE = re.compile(
    r"optim\.(lr|momentum|nesterov|betas|weight_decay|bias_lr_scale|pretrained_lr_scale|plain_backbone|fused)"
    r"|schedule(\..*)?|(data\.)?augment(\..*)?|speed\..*"
    r"|data\.(root|archive|test_list|crop_size|batch_size|eval_batch_size)"
    r"|trainer\.(max_steps|max_epochs|max_time|val_check_interval|accumulate_grad_batches|gradient_clip_\w+)"
    r"|trainer\.(precision|accelerator|devices|num_nodes|strategy|strategy\..*|deterministic|benchmark|sync_batchnorm)"
    r"|callbacks\.ema\.decay|checkpointing\.score"
    r"|callbacks\.(?!(ema|best|top|last)\.).*"  # a user's own callbacks included
)
START_WEIGHTS = re.compile(r"model\.(.*\.)?(weights|reset_heads)")
# All other settings are refused, with the first reason that matches.
REASONS = (
    (START_WEIGHTS.pattern, "the weights come from the checkpoint: other initial weights have no effect"),
    (r"(data\.)?seed", "the seed determines the order of the images, and runs are paired by it"),
    (r"data\..*", "the run would train, or select its best checkpoint, on other images"),
    (r"model\..*", "the checkpoint contains the weights of the original model"),
    (r"optim\..*", "the checkpoint contains the state of the original optimiser and its parameters"),
    (r"loss\..*", "the optimiser's state comes from gradients of the original loss"),
    (r"callbacks\.ema\..*", "the checkpoint's weights depend on the original EMA setting"),
    (r".*", "fcnlab cannot resume with another value"),
)
SCORING_ONLY = re.compile(r"checkpointing\..*|data\.(root|archive|test_list|eval_batch_size)")


def settings_of(cfg: DictConfig) -> Settings:
    """Return every setting that training depends on, by its dotted path."""
    return {path: value for path, value in leaves_of(to_plain(cfg)).items() if not is_free(path)}


def segments_of(cfg: DictConfig, start: ResumePoint, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Return the run's segments, with a new one where it resumes with other settings; ``overrides`` are typed.

    Raises
    ------
    UserError
        A setting differs from the checkpoint's and may not change on resume; or the checkpoint is beyond the limit of
        steps or epochs.
    """
    if start.checkpoint is None:
        return [_segment(0, {})]
    check_length(cfg, start)
    changed = changes(_kept_settings(start), cfg)
    refused = {path: change for path, change in changed.items() if not _may_change(path, change, cfg, start, overrides)}
    if refused:
        raise UserError(_refusal(refused, start.checkpoint))
    for path in [path for path in changed if START_WEIGHTS.fullmatch(path)]:
        change = changed.pop(path)
        log_warning(
            f"{path}={change.new} has no effect with checkpoint=, since the checkpoint has the weights. The record"
            f" keeps {change.old}, which no longer exists"
        )
    check_changes_are_used(cfg, start, changed)
    before = list(start.segments)
    if not changed:
        return before
    log_info(f"Resuming at step {start.steps} with other settings: {'; '.join(shown_changes(changed))}")
    return [*before, _segment(start.steps, changed)]


def has_new_segment(segments: Sequence[Mapping[str, Any]], start: ResumePoint) -> bool:
    """Return whether a run resumes with other settings."""
    return start.checkpoint is not None and len(segments) > len(start.segments)


def as_recorded(cfg: DictConfig, start: ResumePoint) -> DictConfig:
    """Return the config to record: its initial weights are those that the run started from."""
    if start.checkpoint is None:
        return cfg
    recorded = cfg.copy()
    for path, change in changes(_kept_settings(start), cfg).items():
        if START_WEIGHTS.fullmatch(path):
            OmegaConf.update(recorded, path, change.old)
    return recorded


def _segment(step: int, changed: Mapping[str, Change]) -> dict[str, Any]:
    return {
        "from_step": step,
        "started": timestamp(),
        "changed": {path: list(change) for path, change in changed.items()},
    }


def check_length(cfg: DictConfig, start: ResumePoint) -> None:
    """Refuse a limit below the checkpoint's step or epoch: the record would contradict itself."""
    steps, epochs = cfg.trainer.get("max_steps", -1), cfg.trainer.get("max_epochs")
    written = f"checkpoint={start.checkpoint} was written after {start.steps} steps"
    hint = "Raise the limit, or score the checkpoint with fcnlab eval checkpoint=PATH"
    if 0 <= steps < start.steps:
        raise UserError(f"trainer.max_steps={steps}: {written}. {hint}")
    if epochs is not None and 0 <= epochs <= start.epoch:
        raise UserError(f"trainer.max_epochs={epochs}: {written}, in epoch {start.epoch + 1}. {hint}")


def check_changes_are_used(cfg: DictConfig, start: ResumePoint, changed: Mapping[str, Change]) -> None:
    """Refuse changed settings if no step is left to train with them: the record would be wrong."""
    if cfg.trainer.get("max_steps", -1) != start.steps:
        return
    unused = {path: change for path, change in changed.items() if not SCORING_ONLY.fullmatch(path)}
    if unused:
        raise UserError(
            f"trainer.max_steps={start.steps}: checkpoint={start.checkpoint} is at this step already, so no step would"
            f" use {'; '.join(shown_changes(unused))}. Raise trainer.max_steps, or restore the original values"
        )


def changes(then: Settings, cfg: DictConfig) -> dict[str, Change]:
    """Return the differences between a checkpoint's settings and ``cfg``; a linked value is listed once."""
    then = {path: value for path, value in then.items() if not is_free(path)}
    today, then = _with_precision(settings_of(cfg), then, cfg)
    changed = differences(then, today)
    links = _links(cfg)
    changed = {path: change for path, change in changed.items() if not _follows(path, change, links, changed)}
    return {path: change for path, change in changed.items() if not _has_moved(path, change)}


def _with_precision(today: Settings, then: Settings, cfg: DictConfig) -> tuple[Settings, Settings]:
    """Return today's and a record's settings with the actual precision; an undecided one is taken from the other."""
    key, decided = "trainer.precision", precision(cfg)
    before = then.get(key)
    if decided == FASTEST:
        decided = before
    if before in (BY_DEVICE, FASTEST):  # the run ended before the precision was decided
        before = decided
    return today | {key: decided}, then | {key: before}


def check_finished(cfg: DictConfig, folder: Path) -> None:
    """Refuse changed settings for a stage that is finished and will not run again.

    Raises
    ------
    UserError
        The whole run's record would contain settings that were not used in training.
    """
    changed = changes(_recorded_settings(folder), cfg)
    if changed:
        raise UserError(
            f"the stage is finished, so it cannot use {'; '.join(shown_changes(changed))}: restore the original values,"
            " or start a new run in another folder"
        )


def _links(cfg: DictConfig) -> dict[str, str]:
    """Return the settings that are interpolations of other settings, with these."""
    whole = re.compile(r"\$\{([\w.]+)\}")
    values = leaves_of(OmegaConf.to_container(cfg, resolve=False))
    return {path: match[1] for path, value in values.items() if (match := whole.fullmatch(str(value)))}


def _follows(path: str, change: Change, links: Mapping[str, str], changed: Mapping[str, Change]) -> bool:
    linked = next((prefix for prefix in links if is_under(path, {prefix})), None)
    return linked is not None and changed.get(links[linked] + path.removeprefix(linked)) == change


def _has_moved(path: str, change: Change) -> bool:
    """Return whether a weights setting names the same file by another path, or in a run folder that was moved."""
    if not (START_WEIGHTS.fullmatch(path) and isinstance(change.old, str) and isinstance(change.new, str)):
        return False
    if _is_file(change.old) and _is_file(change.new) and Path(change.old).samefile(change.new):
        return True
    old, new = Path(change.old).parts[-3:], Path(change.new).parts[-3:]
    return old == new and len(old) == 3


def _is_file(path: str) -> bool:
    return os.path.isfile(path)  # noqa: PTH113  (raises no OSError for any text)


def _may_change(path: str, change: Change, cfg: DictConfig, start: ResumePoint, overrides: Sequence[str]) -> bool:
    if START_WEIGHTS.fullmatch(path):  # only a missing file may be replaced; "none" changes the backbone's lr
        return isinstance(change.old, str) and "none" not in (change.old, change.new) and not _is_file(change.old)
    if path == "optim.pretrained_lr_scale" and 0 in change:  # a frozen backbone is not in the optimiser's state
        return False
    if path.startswith("optim.") and not str(cfg.optim.get("_target_")).startswith("fcnlab.training.optimizers."):
        return False  # a user's own optimiser restores its settings from its state
    return bool(MAY_CHANGE.fullmatch(path)) or _is_new(path, start, overrides)


def _is_new(path: str, start: ResumePoint, overrides: Sequence[str]) -> bool:
    """Return whether a setting is not on the command line and did not exist in the checkpoint's fcnlab."""
    keys = {override_key(override).replace("/", ".") for override in overrides}
    return path not in _kept_settings(start) and not is_under(path, keys)


def _kept_settings(start: ResumePoint) -> Settings:
    """Return the settings in the checkpoint, with the precision that its run used."""
    used = precision_of(start)
    return dict(start.settings) | ({"trainer.precision": used} if used else {})


def _recorded_settings(folder: Path) -> Settings:
    path = folder / "config.yaml"
    try:
        config = read_yaml(folder, path.name)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)})") from error
    if not config:
        raise UserError(f"{path} is missing or empty")
    return leaves_of(config)


def _refusal(refused: Mapping[str, Change], checkpoint: str) -> str:
    by_reason: dict[str, dict[str, Change]] = {}
    for path, change in refused.items():
        reason = next(reason for pattern, reason in REASONS if re.fullmatch(pattern, path))
        by_reason.setdefault(reason, {})[path] = change
    parts = [f"{'; '.join(shown_changes(changed))}, since {reason}" for reason, changed in by_reason.items()]
    fits = not any(path.startswith("model.backbone.") for path in refused)
    weights = f" from its weights with {shell_override('model.weights', checkpoint)}" if fits else ""
    return (
        f"checkpoint={checkpoint} cannot resume with {'; nor with '.join(parts)}. Restore the original values, or leave"
        f" checkpoint= out and start a new run in another folder{weights}"
    )


# The images are compared as well: a folder can get more files without any change of settings.


def images_of(data: DataModule) -> dict[str, dict[str, Any]]:
    """Return the number of images and a hash of their ordered names, for training and validation.

    With folds, "folds" is the whole list that is divided.
    """
    images = {split: _count_and_hash(data.split(split).names) for split in ("train", "val")}
    return images | ({"folds": _count_and_hash(data.whole("val").names)} if data.is_held_out("val") else {})


def _count_and_hash(names: tuple[str, ...]) -> dict[str, Any]:
    return {"count": len(names), "names": hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()}


def check_images(data: DataModule, start: ResumePoint) -> None:
    """Refuse to resume on other images than the checkpoint's: images are identified by their index in the list.

    Raises
    ------
    UserError
        The names or their order differ.
    """
    for split in ("train", "val"):
        images, recorded = images_of(data)[split], start.images.get(split)
        if recorded and recorded != images:
            raise UserError(
                f"checkpoint={start.checkpoint} cannot resume on other images: {data.split(split).title} has"
                f" {images['count']} images for {split} and had {recorded.get('count')}, or their names differ. Restore"
                f" data.root={data.root}, or leave checkpoint= out and start a new run in another folder from its"
                f" weights with {shell_override('model.weights', start.checkpoint)}"
            )
