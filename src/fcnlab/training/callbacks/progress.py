"""The progress bar in a terminal."""

from typing import Any

import lightning as L
from torch import Tensor

from fcnlab.library_internals.lightning import TimedProgressBar
from fcnlab.training.callbacks.time_left import TimeLeft, duration, last_step


class Progress(TimedProgressBar):
    """A progress bar of the whole run, in optimiser steps, with the loss of the last step and the remaining time.

    Lightning's bar is one of an epoch, in batches, and shows no position in an epoch that is resumed. The loss is read
    from the device only when the bar is drawn, where a logged loss would be read at every step. tqdm's own remaining
    time knows no validations.
    """

    _loss: Tensor | None = None

    def init_train_tqdm(self):
        bar = super().init_train_tqdm()
        bar.bar_format = self.BAR_FORMAT.replace("<{remaining}", "")
        return bar

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        bar = self.train_progress_bar
        bar.total = last_step(trainer) or None
        bar.n = bar.initial = trainer.global_step
        bar.refresh()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Do not begin another bar, as Lightning does."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch, batch_idx: int) -> None:
        self._loss, bar = pl_module.train_loss, self.train_progress_bar
        if self.is_due(trainer.global_step, bar.total):
            bar.n = trainer.global_step
            bar.set_postfix(self.get_metrics(trainer, pl_module))

    def get_metrics(self, trainer: L.Trainer, pl_module) -> dict[str, Any]:
        loss = {} if self._loss is None else {"train/loss": self._loss.item()}
        return loss | super().get_metrics(trainer, pl_module) | _left(trainer)


def _left(trainer: L.Trainer) -> dict[str, str]:
    callbacks: list = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    times = [each.seconds_left(trainer) for each in callbacks if isinstance(each, TimeLeft)]
    known = [seconds for seconds in times if seconds is not None]
    return {"left": duration(min(known))} if known else {}
