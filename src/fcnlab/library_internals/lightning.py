"""Lightning: what the Trainer knows of a step, and what it does beside our own callbacks.

Seen to work with Lightning 2.6.6, the first that pyproject.toml allows.
"""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch.optim.swa_utils import AveragedModel


def logs_this_step(trainer: L.Trainer) -> bool:
    """Whether loggers get a row of the step that has just ended: Lightning's own rule, which nothing public tells."""
    return trainer._logger_connector.should_update_logs


def forget_training_batches(trainer: L.Trainer) -> None:
    """Let the training batches be asked for again when the epoch begins.

    Where epochs limit a run, Lightning counts its steps by asking for them, and keeps what it got, while a resumed run
    does not know yet from which batch it goes on.
    """
    trainer.fit_loop._combined_loader = None


def share_no_sigterm(trainer: L.Trainer) -> None:
    """Before no batch ask all ranks whether rank 0 got a SIGTERM: each waits for its device to answer.

    Lightning has no setting for it.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def is_restoring(trainer: L.Trainer) -> bool:
    """Whether a checkpoint is being restored: Lightning keeps it until all of it is."""
    return bool(trainer._checkpoint_connector._loaded_checkpoint)


def starts_processes_itself(trainer: L.Trainer) -> bool:
    """Whether ranks are forked or spawned from this process; the class that does so is private."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def synchronises_batch_norm(trainer: L.Trainer) -> bool:
    """Whether ``sync_batchnorm`` was asked for; the Trainer keeps it in the strategy only."""
    return getattr(trainer.strategy, "_layer_sync", None) is not None


class AveragedWeights(WeightAveraging):
    """Lightning's average of the weights, with names for what a rule of our own to update it needs.

    Its public hook says when to update, not how; and its swap of the weights has no public counterpart.
    """

    @property
    def average(self) -> AveragedModel | None:
        """None until a training is set up."""
        return self._average_model

    @property
    def updated_at(self) -> int:
        """The optimiser step behind which the average was last updated, which a checkpoint does not hold."""
        return self._latest_update_step

    @updated_at.setter
    def updated_at(self, step: int) -> None:
        self._latest_update_step = step

    def swap(self, pl_module: L.LightningModule) -> None:
        """Exchange average and weights."""
        self._swap_models(pl_module)


class ObservedCheckpoint(ModelCheckpoint):
    """Lightning's best checkpoints; ``saving`` is true while one is written, and after no failure.

    The hooks that Lightning calls of checkpoints do not tell whether this callback writes the file.
    """

    saving = False

    def _save_checkpoint(self, trainer: L.Trainer, filepath: Any) -> None:
        self.saving = True
        try:
            super()._save_checkpoint(trainer, filepath)
        finally:
            self.saving = False
