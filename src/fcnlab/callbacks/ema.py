"""Exponential moving average of the weights."""

from itertools import chain

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from fcnlab.ranges import BelowOne


class EMA(WeightAveraging):
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
        if stage == "fit" and self._average_model is not None:
            self._average_model.n_averaged = torch.tensor(0)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        average = self._average_model
        if trainer.global_step > self._latest_update_step and average is not None:
            count = int(average.n_averaged)
            keep = min(self.decay, (1 + count) / (10 + count)) if count else 0.0
            move_towards(average.module, pl_module, 1 - keep)
            average.n_averaged += 1
            self._latest_update_step = trainer.global_step

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


@torch.no_grad()
def move_towards(average: nn.Module, current: nn.Module, share: float) -> None:
    """Take ``average + share * (current - average)``, of buffers too, in a few kernels; copy what is counted, or all.

    Not by ``lerp``, whose fused multiply and add would round differently than the three operations.
    """
    pairs = list(zip(_tensors(average), _tensors(current), strict=True))
    moved = [pair for pair in pairs if share < 1 and pair[0].is_floating_point()]
    if moved:
        averages, currents = map(list, zip(*moved, strict=True))
        steps = torch._foreach_sub(currents, averages)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_mul_(steps, share)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(averages, steps)  # pyright: ignore[reportPrivateImportUsage]
    for old, new in pairs:
        if share == 1 or not old.is_floating_point():
            old.copy_(new)


def _tensors(module: nn.Module) -> chain[Tensor]:
    return chain(module.parameters(), module.buffers())
