"""Signals: a run that is asked to stop finishes its step, saves itself and says with which code it ended."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # Slurm sends the last one before a job's time is up


class Interrupted(SystemExit):
    """A signal asked the run to stop; the process ends with 128 + the signal's number, as a shell would report it.

    ``at_once``: wherever it was, so that nothing can be saved.
    """

    def __init__(self, signum: int, at_once: bool = True):
        self.signal, self.at_once = signal.Signals(signum), at_once
        super().__init__(128 + signum)

    def __str__(self) -> str:
        return self.signal.name


class StopSignals:
    """While entered, a stopping signal raises :class:`Interrupted`: at once, or between two steps while training runs.

    Ctrl-C a second time does not wait for the step.
    """

    def __init__(self):
        self.asked: int | None = None
        self.waiting = False  # for the step to end

    def __enter__(self) -> "StopSignals":
        self._before = {signum: signal.getsignal(signum) for signum in STOPPING}
        self.listen()
        return self

    def __exit__(self, *error) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def listen(self) -> None:
        for signum in STOPPING:
            signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        again = self.asked is not None
        self.asked = self.asked or signum
        if (again and signum == signal.SIGINT) or not (again or self.waiting):
            raise Interrupted(self.asked)

    @contextmanager
    def told_apart(self) -> Iterator[None]:
        """Let what ended because of a signal end as :class:`Interrupted`, whatever came out of it.

        Where Python had to swallow ours (in a handler of a fork, say), Lightning's SystemExit ends the run, with code
        0. And Lightning's clearing up fails where it was interrupted before its loops were ready. An error of a run
        that was saving itself stays an error.
        """
        try:
            yield
        except Interrupted:
            raise
        except SystemExit as ended:
            raise Interrupted(self.asked) if self.asked else ended from None
        except Exception as error:
            began = _interruption_before(error)
            if began is None or not began.at_once:
                raise
            raise began from None


def _interruption_before(error: BaseException | None) -> Interrupted | None:
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error


def may_stop(trainer: Any, batch_idx: int) -> bool:
    """Whether the run could stop before this batch: a step begins, and every process asks the others now.

    Gradients that are being accumulated are no part of a checkpoint.
    """
    step_begins = batch_idx % trainer.accumulate_grad_batches == 0
    return step_begins and (trainer.world_size == 1 or trainer.global_step % max(1, trainer.log_every_n_steps) == 0)


class Interruption(Callback):
    """Raise :class:`Interrupted` between two steps, or two validated pictures, once a signal has come.

    With several processes all stop at the same step, whichever of them got the signal; they agree as often as the
    trainer logs, and not during a validation, whose shares may differ by a picture.

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

    def on_test_start(self, trainer: L.Trainer, pl_module) -> None:
        self.signals.listen()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module, batch, batch_idx: int) -> None:
        if may_stop(trainer, batch_idx):
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
