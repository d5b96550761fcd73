"""Measure images per second, the wait for data and the memory of training, for the loggers."""

import time
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback

from fcnlab.library_internals.lightning import logs_this_step
from fcnlab.training.callbacks.metrics_file import MetricsCsv
from fcnlab.training.memory import MemoryMeter


class Throughput(Callback):
    """Log ``throughput/images_per_second``, ``throughput/data_wait`` and ``memory/peak`` whenever a step is logged.

    The images are those of all devices. ``data_wait`` is the fraction of the time in which the main process waited for
    the loader; without workers, it loads the images itself in that time. Both are means since the last logged step. The
    first step, for which workers start and kernels are selected, and validations are not counted. ``memory/peak`` is
    the peak in MiB since the start of training: of the GPU's memory, or of the process on a CPU.

    They are not logged to metrics.csv, which is equal for equal runs.
    """

    def __init__(self):
        self._counted = np.zeros(3)  # images, seconds, seconds of waiting
        self._logged = np.zeros(3)  # those counted at the last logged step
        self._mark: np.ndarray | None = None  # the same at the last batch; None while nothing is counted
        self._has_begun, self._step = False, 0

    def on_train_start(self, trainer: L.Trainer, pl_module) -> None:
        self._counted, self._logged, self._mark = np.zeros(3), np.zeros(3), None
        self._has_begun, self._step = False, trainer.global_step

    def on_train_batch_start(self, trainer: L.Trainer, pl_module, batch, batch_idx: int) -> None:
        if self._has_begun and self._mark is None:  # after a validation
            self._mark = _clocks(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module, outputs, batch: Any, batch_idx: int) -> None:
        if self._has_begun:
            self._count(trainer, len(batch["image"]) * trainer.world_size)
        self._has_begun, self._mark = True, _clocks(trainer)
        is_complete, self._step = trainer.global_step != self._step, trainer.global_step  # accumulated batches are not
        if is_complete and logs_this_step(trainer) and (values := _rates(self._counted - self._logged)):
            self._logged = self._counted
            peak = MemoryMeter(pl_module.device).peak() / 2**20
            named = {f"throughput/{name}": value for name, value in values.items()} | {"memory/peak": peak}
            for logger in trainer.loggers:
                if not isinstance(logger, MetricsCsv):
                    logger.log_metrics(named, trainer.global_step)

    def on_validation_start(self, trainer: L.Trainer, pl_module) -> None:
        if self._mark is not None:
            self._count(trainer, 0)
            self._mark = None

    def _count(self, trainer: L.Trainer, images: int) -> None:
        assert self._mark is not None
        self._counted = self._counted + (_clocks(trainer) - self._mark) + np.array([images, 0.0, 0.0])

    def facts(self) -> dict[str, float]:
        """Return the means of the training as entries of ``cost`` in metrics.json; empty if they are unknown."""
        return {f"training_{name}": round(value, 4) for name, value in _rates(self._counted).items()}


def _clocks(trainer: L.Trainer) -> np.ndarray:
    """Return 0 images, the time in seconds, and the seconds that this process has waited for training batches."""
    loader: Any = trainer.train_dataloader
    return np.array([0.0, time.perf_counter(), loader.waited])


def _rates(counted: np.ndarray) -> dict[str, float]:
    images, seconds, waited = counted.tolist()
    return {"images_per_second": images / seconds, "data_wait": waited / seconds} if images and seconds > 0 else {}
