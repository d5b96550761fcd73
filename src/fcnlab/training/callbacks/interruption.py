"""Stop a run after a signal: finish the step, then save a checkpoint."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from fcnlab.library_internals.lightning import share_no_sigterm
from fcnlab.signals import Interrupted, StopSignals


def safe_to_stop(trainer: Any, batch_idx: int) -> bool:
    """Return whether the run can stop before this batch: a step begins, and all processes communicate now.

    A checkpoint does not contain accumulated gradients, so a run cannot stop inside a step.
    """
    step_begins = batch_idx % trainer.accumulate_grad_batches == 0
    return step_begins and (trainer.world_size == 1 or trainer.global_step % max(1, trainer.log_every_n_steps) == 0)


class GracefulStop(Callback):
    """Raise :class:`Interrupted` between two steps, or two validated images, after a signal.

    With several processes, all stop at the same step, whichever of them received the signal. They communicate as often
    as the trainer logs, and not during a validation, in which their numbers of images can differ by one.

    Each stage installs the signal handlers again, since Lightning replaces the handler of SIGTERM several times. Its
    handler ends a run with exit code 0, and with several processes it starts a collective call in the middle of others.
    """

    def __init__(self, signals: StopSignals):
        self.signals = signals

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module) -> None:
        self.signals.listen()

    def on_train_start(self, trainer: L.Trainer, pl_module) -> None:
        self.signals.waiting = True
        self.signals.listen()
        # Lightning would synchronise all ranks before every batch, to share whether rank 0 received a SIGTERM.
        share_no_sigterm(trainer)

    def on_test_start(self, trainer: L.Trainer, pl_module) -> None:
        self.signals.listen()

    def on_predict_start(self, trainer: L.Trainer, pl_module) -> None:
        self.signals.listen()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module, batch, batch_idx: int) -> None:
        if safe_to_stop(trainer, batch_idx):
            self._stop_if_asked(trainer)

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module, batch, batch_idx: int, dataloader_idx=0) -> None:
        if trainer.world_size == 1 and not trainer.should_stop:  # complete the last validation
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module) -> None:
        self._stop_if_asked(trainer)
        self.signals.waiting = False
        if self.signals.asked:  # in the meantime
            raise Interrupted(self.signals.asked)

    def on_exception(self, trainer: L.Trainer, pl_module, exception: BaseException) -> None:
        self.signals.waiting = True  # complete the checkpoint that is being saved

    def teardown(self, trainer: L.Trainer, pl_module, stage: str) -> None:
        self.signals.waiting = False

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        asked = self.signals.asked or 0
        if trainer.world_size > 1:
            asked = int(
                trainer.strategy.reduce(torch.tensor(asked, device=trainer.strategy.root_device), reduce_op="max")
            )
        if asked:
            # Lightning kills this process, saved or not, when a process that it started ends with a non-zero code.
            getattr(trainer.strategy.launcher, "procs", []).clear()
            raise Interrupted(asked, at_once=False)
