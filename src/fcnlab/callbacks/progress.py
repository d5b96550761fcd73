"""The bar of a terminal."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor


class Progress(TQDMProgressBar):
    """Lightning's bar; the loss is asked of the device when it is drawn, where a logged one would be at every step.

    It is that of the last optimiser step, as it is logged.
    """

    _loss: Tensor | None = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch, batch_idx: int) -> None:
        self._loss = pl_module.train_loss
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: L.Trainer, pl_module) -> dict[str, Any]:
        loss = {} if self._loss is None else {"train/loss": self._loss.item()}
        return loss | super().get_metrics(trainer, pl_module)
