"""Exponential moving average of the weights."""

from itertools import chain

import lightning as L
import torch
from torch import Tensor, nn

from fcnlab.config.ranges import BelowOne
from fcnlab.library_internals.lightning import AveragedWeights
from fcnlab.library_internals.torch import add_to_each, multiply_each, subtract_each


class EMA(AveragedWeights):
    """Validate, test and save an average of the weights in place of the last ones.

    The average forgets quickly at first, by (1 + n) / (10 + n) after n steps, and by ``decay`` once that is less, so
    that a short run is not held back by its first steps. Training itself goes on with the plain weights.

    How many steps it has seen is counted on the host: torch's own average asks the device for it, and so waits for it,
    once for every tensor at every step.
    """

    def __init__(self, decay: BelowOne = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay={decay}: choose a number from 0 to less than 1")
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
        """A validation that ends early leaves average and weights swapped, and so would a checkpoint of it."""
        if self._swapped:
            self.swap(pl_module)
            self._swapped = False


@torch.no_grad()
def update_ema(average: nn.Module, current: nn.Module, share: float) -> None:
    """Take ``average + share * (current - average)``, of buffers too, in a few kernels; copy what is counted, or all.

    Not by ``lerp``, whose fused multiply and add would round differently than the three operations.
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
