"""Record inside each checkpoint how it was selected."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint

from fcnlab.training.callbacks.checkpointing import LastCheckpoint, TopCheckpoints
from fcnlab.training.callbacks.metrics_file import MetricsCsv


class CheckpointSelection(Callback):
    """Save in the record of every checkpoint how it was selected; see :mod:`fcnlab.runs.selection`.

    A checkpoint callback with a ``monitor`` selects, any other keeps the last state.
    """

    def __init__(self, curves: MetricsCsv):
        self.curves = curves
        self._images = ""
        self._validated: tuple[int, float] | None = None  # the step of the last validation, and its mean IoU

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        before = checkpoint["fcnlab"].get("selection") or {}
        self._images = before.get("images", "")
        self.curves.validations = max(self.curves.validations, before.get("among", 0))  # also of rows that are lost

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        fingerprints = data.fingerprints("val")
        index, _ = pl_module.confusions.compute()  # as it was computed for the scores
        self._images = "".join(fingerprints[place] for place in index.tolist())
        self._validated = trainer.global_step, float(trainer.callback_metrics["val/miou"])

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            pl_module.record = pl_module.record | {"selection": self.facts(trainer, _keeper(trainer))}

    def facts(self, trainer: L.Trainer, keeper: Checkpoint | None = None) -> dict[str, Any]:
        """Return how the current weights are selected by ``keeper``; without one, as the last weights."""
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        monitor = getattr(keeper, "monitor", None)
        validated = self._validated and self._validated[0] == trainer.global_step
        return {
            "checkpoint": "best" if monitor else "last",
            "monitor": monitor,
            "mode": getattr(keeper, "mode", None) if monitor else None,
            "set": data.split("val").title,
            "list": data.lists["val"],
            "among": self.curves.validations,
            "step": trainer.global_step,
            "val_miou": self._validated[1] if self._validated and validated else None,
            "images": self._images,
        }


def _keeper(trainer: L.Trainer) -> Checkpoint | None:
    """Return the callback that is saving a checkpoint; fcnlab's callbacks have ``saving``, Lightning's has not."""
    callbacks = trainer.checkpoint_callbacks
    own = [callback for callback in callbacks if isinstance(callback, (LastCheckpoint, TopCheckpoints))]
    best = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint) and callback not in own]
    return next((callback for callback in own if callback.saving), None) or next(iter(best), None)
