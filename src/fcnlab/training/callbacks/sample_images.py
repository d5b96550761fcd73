"""Show the same few images with their predictions at every validation, and with the ground truth at the end."""

from itertools import chain, islice
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from fcnlab.config.ranges import MOST_DRAWN, Drawn
from fcnlab.data.dataset import SegmentationDataset
from fcnlab.escaping import escape_line
from fcnlab.runs.drawing import panel, save_png
from fcnlab.tracking.media import log_images
from fcnlab.tracking.mlflow_runs import MlflowRun


class SampleImages(Callback):
    """Show ``count`` images, evenly spaced in the set.

    They are logged at each validation to W&B (with masks), TensorBoard and MLflow, and saved at the final evaluation as
    ``NAME.png`` in ``folder``: image, ground truth and prediction side by side.
    """

    def __init__(self, folder: str | Path, count: Drawn = 8):
        if not 0 <= count <= MOST_DRAWN:
            raise ValueError(f"callbacks.sample_images.count={count} must be from 0 to {MOST_DRAWN}")
        self.folder, self.count = Path(folder), count
        self._indices: set[int] = set()
        self._shown: list[tuple[int, np.ndarray]] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module) -> None:
        self._choose(trainer.val_dataloaders, int(trainer.num_val_batches[0]))

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module) -> None:
        self._choose(trainer.test_dataloaders, int(trainer.num_test_batches[0]))

    def _choose(self, loader: Any, batches: int) -> None:
        """Choose among the images that this process evaluates."""
        evaluated = sorted(chain(*islice(loader.batch_sampler, batches)))
        self._indices = {evaluated[int(position)] for position in np.linspace(0, len(evaluated) - 1, self.count)}
        self._shown.clear()

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module, outputs, batch, batch_idx: int, dataloader_idx=0):
        self._keep(outputs, batch)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module, outputs, batch, batch_idx: int, dataloader_idx=0):
        self._keep(outputs, batch)

    def _keep(self, outputs, batch) -> None:
        for index, prediction in zip(batch["index"].tolist(), outputs["prediction"], strict=True):
            if index in self._indices:
                self._shown.append((index, prediction.to(torch.uint8).cpu().numpy()))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        dataset = _dataset(trainer.val_dataloaders)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                log_images(logger, dataset, self._shown, trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                for index, prediction in self._shown:
                    image = self._panel(dataset, index, prediction)
                    logger.experiment.add_image(
                        escape_line(dataset.names[index]), image, trainer.global_step, dataformats="HWC"
                    )
            elif isinstance(logger, MlflowRun):
                for index, prediction in self._shown:
                    logger.log_image(dataset.names[index], self._panel(dataset, index, prediction), trainer.global_step)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module) -> None:
        if not trainer.is_global_zero:
            return
        dataset = _dataset(trainer.test_dataloaders)
        for index, prediction in self._shown:
            save_png(self.folder / f"{dataset.names[index]}.png", self._panel(dataset, index, prediction))

    def _panel(self, dataset: SegmentationDataset, index: int, prediction: np.ndarray) -> np.ndarray:
        return panel(dataset.image(index), dataset.mask(index), prediction, dataset.classes, dataset.palette)


def _dataset(loader: Any) -> SegmentationDataset:
    return loader.dataset.dataset
