"""How a run ends."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from fcnlab.errors import UserError


class EndWithValidation(Callback):
    """Ask for a stop on the last step, since Lightning validates (and so saves) before a stop that was asked for.

    A run that reaches max_steps or max_epochs by itself ends between two validations with neither.
    """

    def on_train_batch_end(self, trainer: L.Trainer, *args) -> None:
        if at_the_end(trainer):
            trainer.should_stop = True


def at_the_end(trainer: L.Trainer) -> bool:
    """Whether the steps or epochs that the run was to have are done."""
    last_step = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    last_epoch = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs
    return last_step or (last_epoch and trainer.is_last_batch)


class TrainingDiverged(UserError):
    """The loss became infinite or not a number."""


class StopOnNaN(Callback):
    """Stop when the loss is no number any more, and save nothing after that.

    The losses of optimiser steps stay on the device and are looked at every ``every_n_steps`` steps, so that no other
    step waits for them. They are those of all devices together, which so stop at the same step.
    Before a checkpoint is written its weights are looked at too: one step on from a good loss they can be lost.
    """

    def __init__(self, every_n_steps: int = 10):
        self.every_n_steps = every_n_steps
        self._losses: list[tuple[int, Tensor]] = []
        self._newest: Tensor | None = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch, batch_idx: int) -> None:
        newest = pl_module.train_loss
        if newest is self._newest:  # a batch that was only accumulated
            return
        self._newest = newest
        self._losses.append((trainer.global_step, newest))
        if len(self._losses) >= self.every_n_steps:
            self._look(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module) -> None:
        self._look(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module, checkpoint) -> None:
        self._look(trainer)
        for name, value in checkpoint["state_dict"].items():
            if not value.isfinite().all():
                raise TrainingDiverged(_advice(f"{name} is no longer finite after step {trainer.global_step}"))

    def _look(self, trainer: L.Trainer) -> None:
        if not self._losses:
            return
        steps, losses = zip(*self._losses, strict=True)
        self._losses.clear()
        bad = ~torch.stack(losses).isfinite()
        if bad.any():
            first = int(bad.nonzero()[0])
            raise TrainingDiverged(_advice(f"the loss became {losses[first].item()} at step {steps[first]}"))


def _advice(what: str) -> str:
    return (
        f"{what}: training stopped. What was saved before is in checkpoints/."
        " Lower optim.lr, or warm up for longer (schedule.warmup)."
    )
