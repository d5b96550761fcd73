"""Check before training that the limits of a run leave steps, images and scores."""

import difflib
from collections.abc import Sequence

import lightning as L

from fcnlab.config.run_context import RunContext
from fcnlab.data import DataModule
from fcnlab.data.samplers import TrainingBatches, batches_of_equal_size
from fcnlab.errors import UserError
from fcnlab.messages import log_warning
from fcnlab.metrics.scores import IGNORE_INDEX, SCORES


def check_training_plan(trainer: L.Trainer, data: DataModule, classes: Sequence[str], context: RunContext) -> None:
    """Refuse limits or monitors with which the run has nothing to train on or no score to select by."""
    check_monitors(trainer, classes)
    check_limits(trainer, data, context)
    check_validation_has_scores(trainer, data)


def check_limits(trainer: L.Trainer, data: DataModule, context: RunContext) -> None:
    """Refuse limits that leave no batch, or that end an epoch inside an optimiser step.

    Raises
    ------
    UserError
        See above. (Lightning finds the first only when the pass begins, and counts an incomplete step as a step.)
    """
    batches, limited = _batches_of_epoch(trainer, data)
    accumulated, world_size, limit = trainer.accumulate_grad_batches, trainer.world_size, trainer.limit_train_batches
    if limited == 0 or limited % accumulated:
        raise UserError(
            f"trainer.limit_train_batches={limit} leaves {limited} of {batches} batches per epoch: set it to a multiple"
            f" of trainer.accumulate_grad_batches={accumulated}"
        )
    warn_about_overridden_limit(trainer, limited // accumulated, context)
    for name in ("val", "test") if data.eval_batch_size == 1 else ():  # otherwise Lightning checks it
        limit = getattr(trainer, f"limit_{name}_batches")
        batches = len(range(0, len(data.split(name)), world_size))
        if isinstance(limit, float) and int(batches * limit) == 0:
            raise UserError(
                f"trainer.limit_{name}_batches={limit} leaves none of {batches} batches: set it to a larger fraction,"
                " or to a number of batches"
            )


def _batches_of_epoch(trainer: L.Trainer, data: DataModule) -> tuple[int, int]:
    """Return the batches per epoch on each device, without and with ``trainer.limit_train_batches``."""
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
    """Return the optimiser steps per epoch."""
    return _batches_of_epoch(trainer, data)[1] // trainer.accumulate_grad_batches


def warn_about_overridden_limit(trainer: L.Trainer, steps_of_epoch: int, context: RunContext) -> None:
    """Warn where both max_steps and max_epochs are set and the longer one, set by the user, has no effect."""
    steps, epochs = trainer.max_steps, trainer.max_epochs
    if -1 in (steps, epochs) or epochs is None:
        return
    if context.sets("trainer.max_epochs") and epochs * steps_of_epoch > steps:
        log_warning(
            f"trainer.max_epochs={epochs} has no effect: trainer.max_steps={steps} ends the run in epoch"
            f" {-(-steps // steps_of_epoch)}. Set trainer.max_steps=-1 to train (and schedule) by epochs"
        )
    elif context.sets("trainer.max_steps") and epochs * steps_of_epoch < steps:
        log_warning(
            f"trainer.max_steps={steps} has no effect: trainer.max_epochs={epochs} ends the run at step"
            f" {epochs * steps_of_epoch}"
        )


def check_monitors(trainer: L.Trainer, classes: Sequence[str]) -> None:
    """Raise a UserError where a callback monitors a score that validations do not have."""
    known = {"val/loss", *(f"val/{name}" for name in (*SCORES, *(f"iou/{name}" for name in classes)))}
    for monitor, callback in _monitors(trainer).items():
        if monitor not in known:
            near = difflib.get_close_matches(monitor, known, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"Choose one of {', '.join(sorted(known))}"
            raise UserError(f"{callback}: monitor={monitor} is not a validation score. {hint}")


def check_validation_has_scores(trainer: L.Trainer, data: DataModule) -> None:
    """Refuse images without any score, or without the score that a callback monitors: evaluating them ends the run.

    Raises
    ------
    UserError
        All pixels of the validated or tested images (within their limit) are ignored, or none has a monitored class.
    """
    for name in ("val", "test"):
        dataset, within = data.split(name), _within_limit(trainer, data, name)
        limit = f"trainer.limit_{name}_batches={getattr(trainer, f'limit_{name}_batches')}: "
        where = limit if len(within) < len(dataset) else ""
        if within and not _any_pixel(data, name, within):
            raise UserError(
                f"{where}{len(within)} of {len(dataset)} images of {dataset.title} are scored, but all their pixels"
                f" are ignored, so there is no score. Choose another data.{name}_list, or a larger limit"
            )
        monitors = _monitors(trainer) if name == "val" else {}
        for label, class_name in enumerate(dataset.classes):
            monitor = f"val/iou/{class_name}"
            if within and monitor in monitors and not _any_pixel(data, name, within, label):
                raise UserError(
                    f"{where}{monitors[monitor]}: monitor={monitor} has no value, since none of the {len(within)}"
                    f" validated images contains {class_name}. Choose another monitor, or validate more images"
                )


def _within_limit(trainer: L.Trainer, data: DataModule, name: str) -> list[int]:
    """Return the indices of the images that all devices together evaluate."""
    limit, dataset, world_size = getattr(trainer, f"limit_{name}_batches"), data.split(name), trainer.world_size
    if limit == 1.0 and isinstance(limit, float):
        return list(range(len(dataset)))
    evaluated = []
    for rank in range(world_size):
        indices = range(rank, len(dataset), world_size)
        single = data.eval_batch_size == 1  # avoids reading the size of every image
        batches = (
            [[index] for index in indices] if single else batches_of_equal_size(dataset, indices, data.eval_batch_size)
        )
        evaluated += batches[: int(limit if isinstance(limit, int) else len(batches) * limit)]
    return sorted(index for batch in evaluated for index in batch)


def _any_pixel(data: DataModule, name: str, within: Sequence[int], label: int | None = None) -> bool:
    """Return whether one of the images has a pixel of the class ``label``, or of any class."""
    dataset = data.split(name)
    if len(within) == len(dataset):
        pixels = data.label_pixels(name)[: len(dataset.classes)]
        return bool(pixels.any() if label is None else pixels[label])
    masks = map(dataset.mask, within)
    return any(bool((mask != IGNORE_INDEX).any() if label is None else (mask == label).any()) for mask in masks)


def _monitors(trainer: L.Trainer) -> dict[str, str]:
    """Return the scores that callbacks monitor, each with the name of a callback."""
    callbacks: list = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    monitors = {getattr(each, "monitor", None): type(each).__name__ for each in callbacks}
    return {monitor: callback for monitor, callback in monitors.items() if monitor is not None}
