"""The progress bar in a terminal."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor

from fcnlab.training.callbacks.time_left import TimeLeft, duration


class Progress(TQDMProgressBar):
    """Lightning's progress bar with the loss of the last optimiser step and the remaining time of the whole run.

    The loss is read from the device only when the bar is drawn, where a logged loss would be read at every step. tqdm's
    own remaining time covers one epoch without validations.
    """

    _loss: Tensor | None = None

    def init_train_tqdm(self):
        bar = super().init_train_tqdm()
        bar.bar_format = self.BAR_FORMAT.replace("<{remaining}", "")
        return bar

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch, batch_idx: int) -> None:
        self._loss = pl_module.train_loss
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: L.Trainer, pl_module) -> dict[str, Any]:
        loss = {} if self._loss is None else {"train/loss": self._loss.item()}
        return loss | super().get_metrics(trainer, pl_module) | _left(trainer)


def _left(trainer: L.Trainer) -> dict[str, str]:
    callbacks: list = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    times = [each.seconds_left(trainer) for each in callbacks if isinstance(each, TimeLeft)]
    known = [seconds for seconds in times if seconds is not None]
    return {"left": duration(min(known))} if known else {}
