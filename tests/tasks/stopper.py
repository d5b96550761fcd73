"""For runs in other processes: a callback that sends its own process a signal at a given batch."""

import os
import signal

from lightning.pytorch.callbacks import Callback


class StopAt(Callback):
    """Send SIGTERM to rank 0 in the run's n-th batch, after which the run stops."""

    def __init__(self, batch: int):
        self.batch, self.seen = batch, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        self.seen += 1
        if self.seen == self.batch and trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGTERM)
