"""The bar of a terminal."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """Lightning's bar; the loss is asked of the device when it is drawn, where a logged one would be at every step."""

    def get_metrics(self, trainer: L.Trainer, pl_module) -> dict[str, Any]:
        loss = trainer.callback_metrics.get("train/loss")
        shown = {} if loss is None else {"train/loss": loss.item()}
        return shown | super().get_metrics(trainer, pl_module)
