"""Exponential moving average of the weights."""

from itertools import chain

import lightning as L
import torch
from torch import Tensor, nn

from fcnlab.config.ranges import BelowOne
from fcnlab.library_internals.lightning import AveragedWeights
from fcnlab.library_internals.torch import add_to_each, multiply_each, subtract_each


class EMA(AveragedWeights):
    """Validate, test and save EMA weights in place of the last weights.

    The decay is (1 + n) / (10 + n) after n steps, and at most ``decay``, so that the first steps do not dominate a
    short run. Training itself continues with the plain weights.

    The number of steps is counted on the CPU: torch's own averaging reads it from the device, and so waits for the
    device, once per tensor in every step.
    """

    def __init__(self, decay: BelowOne = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay={decay} must be at least 0 and less than 1")
        super().__init__()
        self.decay = decay
        self._swapped = False

    def setup(self, trainer: L.Trainer, pl_module, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self.average is not None:
            self.average.n_averaged = torch.tensor(0)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        average = self.average
        if trainer.global_step > self.updated_at and average is not None:
            count = int(average.n_averaged)
            keep = min(self.decay, (1 + count) / (10 + count)) if count else 0.0
            update_ema(average.module, pl_module, 1 - keep)
            average.n_averaged += 1
            self.updated_at = trainer.global_step

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module) -> None:
        super().on_validation_epoch_start(trainer, pl_module)
        self._swapped = self.average is not None

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        self._swapped = False

    def on_exception(self, trainer: L.Trainer, pl_module, exception: BaseException) -> None:
        """Swap the weights back if an exception ends a validation, before a checkpoint is saved."""
        if self._swapped:
            self.swap(pl_module)
            self._swapped = False


@torch.no_grad()
def update_ema(average: nn.Module, current: nn.Module, share: float) -> None:
    """Set ``average`` to ``average + share * (current - average)``, for parameters and buffers, in a few kernels.

    Integer tensors are copied, and with a share of 1 all tensors. ``lerp`` is not used, since its fused multiply-add
    rounds differently.
    """
    pairs = list(zip(_tensors(average), _tensors(current), strict=True))
    moved = [pair for pair in pairs if share < 1 and pair[0].is_floating_point()]
    if moved:
        averages, currents = map(list, zip(*moved, strict=True))
        steps = subtract_each(currents, averages)
        multiply_each(steps, share)
        add_to_each(averages, steps)
    for old, new in pairs:
        if share == 1 or not old.is_floating_point():
            old.copy_(new)


def _tensors(module: nn.Module) -> chain[Tensor]:
    return chain(module.parameters(), module.buffers())
