"""Exponential moving average of the weights."""

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class EMA(WeightAveraging):
    """Validate, test and save an average of the weights in place of the last ones.

    The average forgets quickly at first, by (1 + n) / (10 + n) after n steps, and by ``decay`` once that is less, so
    that a short run is not held back by its first steps. Training itself goes on with the plain weights.
    """

    def __init__(self, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay={decay}: choose a number from 0 to less than 1")

        def average(averaged: Tensor, current: Tensor, count: Tensor) -> Tensor:
            keep = min(decay, (1 + int(count)) / (10 + int(count)))
            return averaged + (1 - keep) * (current - averaged)

        super().__init__(avg_fn=average)
        self._swapped = False

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        self._swapped = self._average_model is not None

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        self._swapped = False

    def on_exception(self, trainer: L.Trainer, pl_module, exception: BaseException) -> None:
        """A validation that ends early leaves average and weights swapped, and so would a checkpoint of it."""
        if self._swapped:
            self._swap_models(pl_module)
            self._swapped = False
