"""What a run was set to, from which step on, and which settings may change when it resumes.

A run has a segment from its first step, and one more for each time that it resumed with other settings.
"""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fcnlab.config.components import Settings, iter_leaves, to_plain
from fcnlab.config.overrides import override_key, plain_overrides, shell_override
from fcnlab.data import DataModule
from fcnlab.errors import UserError, first_line
from fcnlab.files.reading import read_yaml
from fcnlab.files.writing import timestamp
from fcnlab.messages import log_info, log_warning
from fcnlab.runs.run_record import is_under
from fcnlab.runs.settings import Change, differences, is_free, shown_changes
from fcnlab.training.hardware import BY_DEVICE, FASTEST, precision
from fcnlab.training.resume_point import ResumePoint, precision_of

# No part of a checkpoint depends on these: the next step is computed with today's value, and the record says so.
MAY_CHANGE = re.compile(
    r"optim\.(lr|momentum|nesterov|betas|weight_decay|bias_lr_scale|pretrained_lr_scale|plain_backbone|fused)"
    r"|schedule(\..*)?|(data\.)?augment(\..*)?|speed\..*"
    r"|data\.(root|archive|test_list|crop_size|batch_size|eval_batch_size)"
    r"|trainer\.(max_steps|max_epochs|max_time|val_check_interval|accumulate_grad_batches|gradient_clip_\w+)"
    r"|trainer\.(precision|accelerator|devices|num_nodes|strategy|strategy\..*|deterministic|benchmark|sync_batchnorm)"
    r"|callbacks\.ema\.decay|checkpointing\.score"
    r"|callbacks\.(?!(ema|best|top|last)\.).*"  # a user's own act from the next step on, too
)
START_WEIGHTS = re.compile(r"model\.(.*\.)?(weights|reset_heads)")
# All others are refused; those that no line names, for the last reason.
REASONS = (
    (START_WEIGHTS.pattern, "the weights are the checkpoint's: others to start from have no effect"),
    (r"(data\.)?seed", "the seed decides the order of the images, and runs are paired by it"),
    (r"data\..*", "the run would train, or choose its best checkpoint, on other images"),
    (r"model\..*", "the checkpoint holds the weights of that network"),
    (r"optim\..*", "the checkpoint holds the state of that optimiser for those parameters"),
    (r"loss\..*", "the state of the optimiser comes from gradients of that loss"),
    (r"callbacks\.ema\..*", "the checkpoint holds the weights with that average, or without one"),
    (r".*", "fcnlab does not know how to resume with another value"),
)
OF_SCORING = re.compile(r"checkpointing\..*|data\.(root|archive|test_list|eval_batch_size)")


def settings_of(cfg: DictConfig) -> Settings:
    """Every value by its dotted path that a training depends on."""
    return {path: value for path, value in iter_leaves(to_plain(cfg)).items() if not is_free(path)}


def segments_of(cfg: DictConfig, start: ResumePoint) -> list[dict[str, Any]]:
    """The run's segments, with a new one where it resumes with other settings, which is reported.

    Raises
    ------
    UserError
        A setting is not the checkpoint's, and no run can resume with another value of it; the run is already longer
        than today's limit.
    """
    if start.checkpoint is None:
        return [_segment(0, {})]
    check_length(cfg, start)
    changed = changes(_kept_settings(start), cfg)
    refused = {path: change for path, change in changed.items() if not _may_change(path, change, cfg, start)}
    if refused:
        raise UserError(_refusal(refused, start.checkpoint))
    for path in [path for path in changed if START_WEIGHTS.fullmatch(path)]:
        change = changed.pop(path)
        log_warning(
            f"{path}={change.new} has no effect with checkpoint=: the weights are the checkpoint's. The record keeps"
            f" {change.old}, which is no longer there"
        )
    check_something_is_left(cfg, start, changed)
    before = list(start.segments)
    if not changed:
        return before
    log_info(f"Resumes at step {start.steps} with other settings: {'; '.join(shown_changes(changed))}")
    return [*before, _segment(start.steps, changed)]


def has_new_segment(segments: Sequence[Mapping[str, Any]], start: ResumePoint) -> bool:
    """Whether a run resumes with other settings."""
    return start.checkpoint is not None and len(segments) > len(start.segments)


def as_recorded(cfg: DictConfig, start: ResumePoint) -> DictConfig:
    """The config as the record shall have it: weights to start from are those that the run did start from."""
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
    """Refuse a limit that the checkpoint is beyond: no record could be true of both."""
    steps, epochs = cfg.trainer.get("max_steps", -1), cfg.trainer.get("max_epochs")
    inside = f"checkpoint={start.checkpoint} was written after {start.steps} steps"
    way_out = "raise the limit, or score the checkpoint as it is: fcnlab eval checkpoint=PATH"
    if 0 <= steps < start.steps:
        raise UserError(f"trainer.max_steps={steps}: {inside}: {way_out}")
    if epochs is not None and 0 <= epochs <= start.epoch:
        raise UserError(f"trainer.max_epochs={epochs}: {inside}, in epoch {start.epoch + 1}: {way_out}")


def check_something_is_left(cfg: DictConfig, start: ResumePoint, changed: Mapping[str, Change]) -> None:
    """Refuse settings with which no step would be trained: the record would name them as those of its scores."""
    if cfg.trainer.get("max_steps", -1) != start.steps:
        return
    idle = {path: change for path, change in changed.items() if not OF_SCORING.fullmatch(path)}
    if idle:
        raise UserError(
            f"trainer.max_steps={start.steps}: checkpoint={start.checkpoint} has reached it, so that nothing would be"
            f" trained with {'; '.join(shown_changes(idle))}: raise trainer.max_steps, or give the values that it has"
        )


def changes(then: Settings, cfg: DictConfig) -> dict[str, Change]:
    """What differs between a checkpoint's settings and today's; a value that follows another is named once."""
    then = {path: value for path, value in then.items() if not is_free(path)}
    today, then = _with_precision(settings_of(cfg), then, cfg)
    found = differences(then, today)
    links = _links(cfg)
    found = {path: change for path, change in found.items() if not _follows(path, change, links, found)}
    return {path: change for path, change in found.items() if not _has_moved(path, change)}


def _with_precision(today: Settings, then: Settings, cfg: DictConfig) -> tuple[Settings, Settings]:
    """Today's and a record's settings with the precision that is used; what either leaves open is the other's."""
    key, decided = "trainer.precision", precision(cfg)
    before = then.get(key)
    if decided == FASTEST:
        decided = before
    if before in (BY_DEVICE, FASTEST):  # the record of a run that ended before it was decided
        before = decided
    return today | {key: decided}, then | {key: before}


def check_finished(cfg: DictConfig, folder: Path) -> None:
    """Refuse settings that a run which is finished, and is passed over, did not have.

    Raises
    ------
    UserError
        They would be in the record of the whole, and nothing would have been trained with them.
    """
    found = changes(_recorded_settings(folder), cfg)
    if found:
        raise UserError(
            f"it is finished, and cannot have {'; '.join(shown_changes(found))}: give the values that it has, or start"
            " the whole anew in a folder of its own"
        )


def _links(cfg: DictConfig) -> dict[str, str]:
    """Which settings are interpolations of which others."""
    whole = re.compile(r"\$\{([\w.]+)\}")
    values = iter_leaves(OmegaConf.to_container(cfg, resolve=False))
    return {path: match[1] for path, value in values.items() if (match := whole.fullmatch(str(value)))}


def _follows(path: str, change: Change, links: Mapping[str, str], found: Mapping[str, Change]) -> bool:
    linked = next((prefix for prefix in links if is_under(path, {prefix})), None)
    return linked is not None and found.get(links[linked] + path.removeprefix(linked)) == change


def _has_moved(path: str, change: Change) -> bool:
    """Weights of another path but the same file, or in a run's folder that was moved, such as the stage's before."""
    if not (START_WEIGHTS.fullmatch(path) and isinstance(change.old, str) and isinstance(change.new, str)):
        return False
    if _is_there(change.old) and _is_there(change.new) and Path(change.old).samefile(change.new):
        return True
    old, new = Path(change.old).parts[-3:], Path(change.new).parts[-3:]
    return old == new and len(old) == 3


def _is_there(path: str) -> bool:
    return os.path.isfile(path)  # noqa: PTH113  (no OSError, whatever the text)


def _may_change(path: str, change: Change, cfg: DictConfig, start: ResumePoint) -> bool:
    if START_WEIGHTS.fullmatch(path):  # whether there were any decides the backbone's rate; what is gone needs another
        return isinstance(change.old, str) and "none" not in (change.old, change.new) and not _is_there(change.old)
    if path == "optim.pretrained_lr_scale" and 0 in change:  # such a backbone is no part of the optimiser's state
        return False
    if path.startswith("optim.") and not str(cfg.optim.get("_target_")).startswith("fcnlab.training.optimizers."):
        return False  # a user's own optimiser takes its settings from its state
    return bool(MAY_CHANGE.fullmatch(path)) or _is_new(path, start)


def _is_new(path: str, start: ResumePoint) -> bool:
    """A setting that nobody typed, and that the fcnlab of the checkpoint did not have yet."""
    typed = {override_key(word).replace("/", ".") for word in plain_overrides(HydraConfig.get().overrides.task)}
    return path not in _kept_settings(start) and not is_under(path, typed)


def _kept_settings(start: ResumePoint) -> Settings:
    """Return the settings in the checkpoint, with the precision that its run used."""
    used = precision_of(start)
    return dict(start.settings) | ({"trainer.precision": used} if used else {})


def _recorded_settings(folder: Path) -> Settings:
    path = folder / "config.yaml"
    try:
        found = read_yaml(folder, path.name)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)})") from error
    if not found:
        raise UserError(f"{path} is missing, or no configuration")
    return iter_leaves(found)


def _refusal(refused: Mapping[str, Change], checkpoint: str) -> str:
    by_reason: dict[str, dict[str, Change]] = {}
    for path, change in refused.items():
        reason = next(reason for pattern, reason in REASONS if re.fullmatch(pattern, path))
        by_reason.setdefault(reason, {})[path] = change
    parts = [f"{'; '.join(shown_changes(found))}, since {reason}" for reason, found in by_reason.items()]
    fits = not any(path.startswith("model.backbone.") for path in refused)
    weights = f" from its weights, by {shell_override('model.weights', checkpoint)}" if fits else ""
    return (
        f"checkpoint={checkpoint} cannot resume with {'; nor with '.join(parts)}. Give the values that it has, or leave"
        f" checkpoint= out and start a new run in a folder of its own{weights}"
    )


# The images themselves: settings can stay as they are where a folder gets more files.


def images_of(data: DataModule) -> dict[str, dict[str, Any]]:
    """How many images a training and its validations have, and a hash of their names in order."""
    return {split: _named(data.split(split).names) for split in ("train", "val")}


def _named(names: tuple[str, ...]) -> dict[str, Any]:
    return {"count": len(names), "names": hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()}


def check_images(data: DataModule, start: ResumePoint) -> None:
    """Refuse to resume on other images than the checkpoint's: an image is known by its place in the list.

    Raises
    ------
    UserError
        The names differ, or their order does.
    """
    for split, today in images_of(data).items():
        kept = start.images.get(split)
        if kept and kept != today:
            raise UserError(
                f"checkpoint={start.checkpoint} cannot resume on other images: {data.split(split).title} has"
                f" {today['count']} for {split} and had {kept.get('count')}, or their names differ. Restore data.root="
                f"{data.root}, or leave checkpoint= out and start a new run in a folder of its own from its weights, by"
                f" {shell_override('model.weights', start.checkpoint)}"
            )
