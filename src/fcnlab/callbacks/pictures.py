"""The same few pictures at every validation, and beside their truth at the end."""

from itertools import chain, islice
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from fcnlab.data.pictures import VOID, Pictures
from fcnlab.ranges import MOST_DRAWN, Drawn
from fcnlab.results.drawing import panel, save_png
from fcnlab.results.escaping import in_line


class FixedPictures(Callback):
    """Show ``count`` pictures of the set, evenly spread over it.

    At each validation in W&B (with masks) and TensorBoard; at the test as ``NAME.png`` in ``folder``: picture, truth
    and prediction side by side.
    """

    def __init__(self, folder: str | Path, count: Drawn = 8):
        if not 0 <= count <= MOST_DRAWN:
            raise ValueError(f"callbacks.pictures.count={count}: choose 0 to {MOST_DRAWN}")
        self.folder, self.count = Path(folder), count
        self._wanted: set[int] = set()
        self._shown: list[tuple[int, np.ndarray]] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module) -> None:
        self._choose(trainer.val_dataloaders, int(trainer.num_val_batches[0]))

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module) -> None:
        self._choose(trainer.test_dataloaders, int(trainer.num_test_batches[0]))

    def _choose(self, loader: Any, batches: int) -> None:
        """Of the pictures that this process evaluates."""
        evaluated = sorted(chain(*islice(loader.batch_sampler, batches)))
        self._wanted = {evaluated[int(place)] for place in np.linspace(0, len(evaluated) - 1, self.count)}
        self._shown.clear()

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module, outputs, batch, batch_idx: int, dataloader_idx=0):
        self._keep(outputs, batch)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module, outputs, batch, batch_idx: int, dataloader_idx=0):
        self._keep(outputs, batch)

    def _keep(self, outputs, batch) -> None:
        for index, prediction in zip(batch["index"].tolist(), outputs["prediction"], strict=True):
            if index in self._wanted:
                self._shown.append((index, prediction.to(torch.uint8).cpu().numpy()))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        pictures = _pictures(trainer.val_dataloaders)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                self._to_wandb(logger, pictures, trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                for index, prediction in self._shown:
                    image = self._panel(pictures, index, prediction)
                    logger.experiment.add_image(
                        in_line(pictures.names[index]), image, trainer.global_step, dataformats="HWC"
                    )

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module) -> None:
        if not trainer.is_global_zero:
            return
        pictures = _pictures(trainer.test_dataloaders)
        for index, prediction in self._shown:
            save_png(self.folder / f"{pictures.names[index]}.png", self._panel(pictures, index, prediction))

    def _panel(self, pictures: Pictures, index: int, prediction: np.ndarray) -> np.ndarray:
        return panel(pictures.image(index), pictures.mask(index), prediction, pictures.classes, pictures.palette)

    def _to_wandb(self, logger: WandbLogger, pictures: Pictures, step: int) -> None:
        import wandb

        from fcnlab.callbacks.wandb import in_nobodys_way, sendable

        names = dict(enumerate(sendable(pictures.classes))) | {VOID: "void"}
        with in_nobodys_way("pictures"):
            images = []
            for index, prediction in self._shown:
                masks = {"truth": pictures.mask(index), "prediction": prediction}
                overlays = {key: {"mask_data": mask, "class_labels": names} for key, mask in masks.items()}
                images.append(
                    wandb.Image(pictures.image(index), masks=overlays, caption=in_line(pictures.names[index]))
                )
            logger.experiment.log({"val/pictures": images, "trainer/global_step": step})


def _pictures(loader: Any) -> Pictures:
    return loader.dataset.pictures
