"""A run that is asked to stop finishes its step and saves itself."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from fcnlab.library_internals.lightning import share_no_sigterm
from fcnlab.signals import Interrupted, StopSignals


def safe_to_stop(trainer: Any, batch_idx: int) -> bool:
    """Whether the run could stop before this batch: a step begins, and every process asks the others now.

    Gradients that are being accumulated are no part of a checkpoint.
    """
    step_begins = batch_idx % trainer.accumulate_grad_batches == 0
    return step_begins and (trainer.world_size == 1 or trainer.global_step % max(1, trainer.log_every_n_steps) == 0)


class GracefulStop(Callback):
    """Raise :class:`Interrupted` between two steps, or two validated images, once a signal has come.

    With several processes all stop at the same step, whichever of them got the signal; they agree as often as the
    trainer logs, and not during a validation, whose shares may differ by a image.

    Lightning puts its own handler of SIGTERM first, again and again. That one ends a run with exit code 0, and with
    several processes it starts a collective call in the middle of whatever other was going on: so each stage listens
    anew.
    """

    def __init__(self, signals: StopSignals):
        self.signals = signals

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module) -> None:
        self.signals.listen()

    def on_train_start(self, trainer: L.Trainer, pl_module) -> None:
        self.signals.waiting = True
        self.signals.listen()
        # Before every batch Lightning asks all ranks whether rank 0 got a SIGTERM, and waits for the device to answer.
        share_no_sigterm(trainer)

    def on_test_start(self, trainer: L.Trainer, pl_module) -> None:
        self.signals.listen()

    def on_predict_start(self, trainer: L.Trainer, pl_module) -> None:
        self.signals.listen()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module, batch, batch_idx: int) -> None:
        if safe_to_stop(trainer, batch_idx):
            self._stop_if_asked(trainer)

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module, batch, batch_idx: int, dataloader_idx=0) -> None:
        if trainer.world_size == 1 and not trainer.should_stop:  # the last validation is the end of the run
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module) -> None:
        self._stop_if_asked(trainer)
        self.signals.waiting = False
        if self.signals.asked:  # while that was going on
            raise Interrupted(self.signals.asked)

    def on_exception(self, trainer: L.Trainer, pl_module, exception: BaseException) -> None:
        self.signals.waiting = True  # what is being saved now shall be whole

    def teardown(self, trainer: L.Trainer, pl_module, stage: str) -> None:
        self.signals.waiting = False

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        asked = self.signals.asked or 0
        if trainer.world_size > 1:
            asked = int(
                trainer.strategy.reduce(torch.tensor(asked, device=trainer.strategy.root_device), reduce_op="max")
            )
        if asked:
            # Lightning kills this process, saved or not, as soon as one that it started ends with a code other than 0.
            getattr(trainer.strategy.launcher, "procs", []).clear()
            raise Interrupted(asked, at_once=False)
