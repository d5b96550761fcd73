"""Lightning: the Trainer's state in a step, and work that it does in addition to callbacks.

Tested with Lightning 2.6.6, the first that pyproject.toml allows.
"""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar, WeightAveraging
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch.optim.swa_utils import AveragedModel


def logs_this_step(trainer: L.Trainer) -> bool:
    """Return whether loggers get a row for the step that has just ended: by Lightning's rule, which is not public."""
    return trainer._logger_connector.should_update_logs


def forget_training_batches(trainer: L.Trainer) -> None:
    """Make Lightning request the training batches again when the epoch begins.

    If a run is limited by epochs, Lightning counts its steps by requesting the batches, and keeps them. At that time, a
    resumed run does not know yet with which batch it continues.
    """
    trainer.fit_loop._combined_loader = None


def share_no_sigterm(trainer: L.Trainer) -> None:
    """Stop Lightning from telling all ranks before each batch whether rank 0 got a SIGTERM.

    Each rank would wait for its device every time, and Lightning has no setting to turn this off.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def is_restoring(trainer: L.Trainer) -> bool:
    """Return whether a checkpoint is being restored: Lightning keeps it until it has restored all of it."""
    return bool(trainer._checkpoint_connector._loaded_checkpoint)


def starts_processes_itself(trainer: L.Trainer) -> bool:
    """Return whether ranks are forked or spawned from this process; the class that does so is private."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def synchronises_batch_norm(trainer: L.Trainer) -> bool:
    """Return whether ``sync_batchnorm`` is set; the Trainer stores it only in its strategy."""
    return getattr(trainer.strategy, "_layer_sync", None) is not None


class AveragedWeights(WeightAveraging):
    """Lightning's average of the weights, with public names for the members that fcnlab's own update rule needs.

    Lightning's public hook decides when the average is updated, but not how, and its swap of the weights is private.
    """

    @property
    def average(self) -> AveragedModel | None:
        """The average; None until training is set up."""
        return self._average_model

    @property
    def updated_at(self) -> int:
        """The optimiser step after which the average was last updated; checkpoints do not contain it."""
        return self._latest_update_step

    @updated_at.setter
    def updated_at(self, step: int) -> None:
        self._latest_update_step = step

    def swap(self, pl_module: L.LightningModule) -> None:
        """Exchange the average and the weights."""
        self._swap_models(pl_module)


class TimedProgressBar(TQDMProgressBar):
    """Lightning's progress bars, drawn at most ten times per second: they move at every slow step, and cost little.

    Lightning's only setting is a number of steps, which is too long for slow ones or too short for fast ones.
    """

    MIN_SECONDS = 0.1  # tqdm's own default, which Lightning bypasses
    _drawn_at = 0.0

    def is_due(self, current: int, total: int | None) -> bool:
        """Return whether to draw a bar now."""
        now = time.monotonic()
        if not self.is_enabled or (current != total and now - self._drawn_at < self.MIN_SECONDS):
            return False
        if current != total and current % self.refresh_rate:
            return False
        self._drawn_at = now
        return True

    def _should_update(self, current: int, total: int) -> bool:
        return self.is_due(current, total)


class ObservedCheckpoint(ModelCheckpoint):
    """Lightning's best checkpoints; ``saving`` is true only while one is written, and false again after a failure.

    Lightning's hooks for checkpoints do not say which callback writes the file.
    """

    saving = False

    def _save_checkpoint(self, trainer: L.Trainer, filepath: Any) -> None:
        self.saving = True
        try:
            super()._save_checkpoint(trainer, filepath)
        finally:
            self.saving = False
