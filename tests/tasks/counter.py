"""For runs in other processes: a callback that counts their collective calls."""

import json
from collections import Counter
from pathlib import Path

from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile


class CountCollectives(Callback):
    """Write the names of rank 0's collective calls to ``file``, batch by batch."""

    def __init__(self, file: str):
        self.file, self.batches, self.profile = Path(file), [], None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if self.profile is not None:
            self.profile.stop()
            self.batches.append(
                Counter(event.name for event in self.profile.events() if event.name.startswith("c10d::"))
            )
        if trainer.is_global_zero:
            self.file.write_text(json.dumps(self.batches))
        self.profile = profile(activities=[ProfilerActivity.CPU])
        self.profile.start()

    def on_validation_start(self, trainer, pl_module) -> None:
        if self.profile is not None:
            self.profile.stop()
            self.profile = None
