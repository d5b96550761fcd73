"""Random numbers that go on where a checkpoint left them."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback


class RandomState(Callback):
    """Keep torch's random state (dropout draws from it) in checkpoints, and restore it before the first step.

    Pictures and their augmentation need none of this: they follow from (seed, epoch, index).
    """

    def __init__(self):
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def on_train_batch_start(self, trainer: L.Trainer, pl_module, batch, batch_idx: int) -> None:
        if self._restored is None:
            return
        torch.set_rng_state(self._restored["cpu"])
        if len(self._restored["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(self._restored["cuda"])
        self._restored = None
