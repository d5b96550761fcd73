"""Whether the limits of a training leave steps, images and scores, before it begins."""

import difflib
from collections.abc import Sequence

import lightning as L

from fcnlab.config.overrides import was_set_on_command_line
from fcnlab.data import DataModule
from fcnlab.data.samplers import TrainingBatches, batches_of_equal_size
from fcnlab.errors import UserError
from fcnlab.messages import log_warning
from fcnlab.metrics.scores import IGNORE_INDEX, SCORES


def check_training_plan(trainer: L.Trainer, data: DataModule, classes: Sequence[str]) -> None:
    """Refuse a training whose limits, or whose callbacks' monitors, leave it nothing to train on or to score by."""
    check_monitors(trainer, classes)
    check_limits(trainer, data)
    check_validation_has_scores(trainer, data)


def check_limits(trainer: L.Trainer, data: DataModule) -> None:
    """Refuse limits by which a pass has no batch, or an epoch ends inside an optimiser step.

    Raises
    ------
    UserError
        See above. (Lightning would say the first when a pass begins, and take a part of a step for a whole one.)
    """
    batches, limited = _batches_of_epoch(trainer, data)
    accumulated, world_size, limit = trainer.accumulate_grad_batches, trainer.world_size, trainer.limit_train_batches
    if limited == 0 or limited % accumulated:
        raise UserError(
            f"trainer.limit_train_batches={limit} leaves {limited} of {batches} batches to an epoch: give a multiple of"
            f" trainer.accumulate_grad_batches={accumulated}"
        )
    warn_about_overridden_limit(trainer, limited // accumulated)
    for name in ("val", "test") if data.eval_batch_size == 1 else ():  # else Lightning says it when the pass begins
        limit = getattr(trainer, f"limit_{name}_batches")
        batches = len(range(0, len(data.split(name)), world_size))
        if isinstance(limit, float) and int(batches * limit) == 0:
            raise UserError(
                f"trainer.limit_{name}_batches={limit} leaves none of {batches} batches: give a larger share, or a"
                " number of batches"
            )


def _batches_of_epoch(trainer: L.Trainer, data: DataModule) -> tuple[int, int]:
    """On each device: those that the images fill, and those of them that ``trainer.limit_train_batches`` leaves."""
    batches = len(
        TrainingBatches(
            len(data.split("train")),
            data.batch_size,
            data.seed,
            world_size=trainer.world_size,
            accumulate=trainer.accumulate_grad_batches,
        )
    )
    limit = trainer.limit_train_batches
    return batches, int(batches * limit) if isinstance(limit, float) else min(batches, int(limit or batches))


def steps_of_epoch(trainer: L.Trainer, data: DataModule) -> int:
    """Optimiser steps."""
    return _batches_of_epoch(trainer, data)[1] // trainer.accumulate_grad_batches


def warn_about_overridden_limit(trainer: L.Trainer, steps_of_epoch: int) -> None:
    """Of two limits of a run's length the longer one, where it was typed, has no effect."""
    steps, epochs = trainer.max_steps, trainer.max_epochs
    if -1 in (steps, epochs) or epochs is None:
        return
    if was_set_on_command_line("trainer.max_epochs") and epochs * steps_of_epoch > steps:
        log_warning(
            f"trainer.max_epochs={epochs} has no effect: trainer.max_steps={steps} ends the run in epoch"
            f" {-(-steps // steps_of_epoch)}. Set trainer.max_steps=-1, and the schedule follows the epochs"
        )
    elif was_set_on_command_line("trainer.max_steps") and epochs * steps_of_epoch < steps:
        log_warning(
            f"trainer.max_steps={steps} has no effect: trainer.max_epochs={epochs} ends the run at step"
            f" {epochs * steps_of_epoch}"
        )


def check_monitors(trainer: L.Trainer, classes: Sequence[str]) -> None:
    """Raise a UserError where a callback waits for a score that no validation gives."""
    known = {"val/loss", *(f"val/{name}" for name in (*SCORES, *(f"iou/{name}" for name in classes)))}
    for monitor, callback in _monitors(trainer).items():
        if monitor not in known:
            near = difflib.get_close_matches(monitor, known, n=1)
            there = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise UserError(f"{callback}: monitor={monitor} is no score of a validation: {there}")


def check_validation_has_scores(trainer: L.Trainer, data: DataModule) -> None:
    """Refuse images that give no score, or not the one that a callback monitors: a pass over them would end the run.

    Raises
    ------
    UserError
        All that is validated or tested, within its limit, is void, or has no pixel of a class that is monitored.
    """
    for name in ("val", "test"):
        images, within = data.split(name), _within_limit(trainer, data, name)
        limit = f"trainer.limit_{name}_batches={getattr(trainer, f'limit_{name}_batches')}: "
        where = limit if len(within) < len(images) else ""
        if within and not _any_pixel(data, name, within):
            raise UserError(
                f"{where}{len(within)} of {len(images)} images of {images.title} are scored, and all their pixels"
                f" are void: there would be no score. Choose another data.{name}_list, or a larger limit"
            )
        monitors = _monitors(trainer) if name == "val" else {}
        for label, class_name in enumerate(images.classes):
            monitor = f"val/iou/{class_name}"
            if within and monitor in monitors and not _any_pixel(data, name, within, label):
                raise UserError(
                    f"{where}{monitors[monitor]}: monitor={monitor} has no value, since none of the {len(within)}"
                    f" validated images has a pixel of {class_name}. Choose another monitor, or validate more images"
                )


def _within_limit(trainer: L.Trainer, data: DataModule, name: str) -> list[int]:
    """The images that a pass takes on all devices together."""
    limit, images, world_size = getattr(trainer, f"limit_{name}_batches"), data.split(name), trainer.world_size
    if limit == 1.0 and isinstance(limit, float):
        return list(range(len(images)))
    taken = []
    for rank in range(world_size):
        share = range(rank, len(images), world_size)
        single = data.eval_batch_size == 1  # then no size is asked for
        batches = [[index] for index in share] if single else batches_of_equal_size(images, share, data.eval_batch_size)
        taken += batches[: int(limit if isinstance(limit, int) else len(batches) * limit)]
    return sorted(index for batch in taken for index in batch)


def _any_pixel(data: DataModule, name: str, within: Sequence[int], label: int | None = None) -> bool:
    """Whether one of the images has a pixel of a class, or of any class."""
    dataset = data.split(name)
    if len(within) == len(dataset):
        counted = data.label_pixels(name)[: len(dataset.classes)]
        return bool(counted.any() if label is None else counted[label])
    masks = map(dataset.mask, within)
    return any(bool((mask != IGNORE_INDEX).any() if label is None else (mask == label).any()) for mask in masks)


def _monitors(trainer: L.Trainer) -> dict[str, str]:
    """The scores that callbacks wait for, each with the name of a callback."""
    found = {getattr(each, "monitor", None): type(each).__name__ for each in trainer.callbacks}  # pyright: ignore[reportAttributeAccessIssue]
    return {monitor: callback for monitor, callback in found.items() if monitor is not None}
