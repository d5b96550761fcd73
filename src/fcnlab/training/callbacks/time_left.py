"""Estimate the remaining time of a run from its steps and validations, for the log and the progress bar."""

import logging
import math
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Timer

FIRST_LINE = 60.0  # seconds until the first line; the next ones at twice the time each, and after each validation
log = logging.getLogger("fcnlab")


class TimeLeft(Callback):
    """Measure the wall time of steps and validations, including everything that happens in between.

    The time of a step is the mean of all steps except the first one, for which workers start. The time of a validation
    is the mean of all validations, each until the next step begins, so that it includes saving checkpoints. Before the
    first validation, the estimate of :mod:`fcnlab.training.cost_estimate` is used.
    """

    def __init__(self):
        self._expected: dict[str, float] = {}
        self._last = self._first = 0  # the run's last step, and the step at which the clock was started
        self._begun: float | None = None
        self._validated = 0.0  # seconds
        self._validations = 0
        self._validating: float | None = None  # since when
        self._next_line = FIRST_LINE

    def expect(self, step: float, validation: float) -> None:
        """Set the initial estimates, in seconds."""
        self._expected = {"step": step, "validation": validation}

    def on_train_start(self, trainer: L.Trainer, pl_module) -> None:
        self._last = last_step(trainer)
        self._begun = self._validating = None
        self._validated, self._validations = 0.0, 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        if self._begun is None and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._begun, self._first = time.perf_counter(), trainer.global_step

    def on_validation_start(self, trainer: L.Trainer, pl_module) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validating = time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module, batch, batch_idx: int) -> None:
        validated = self._validating is not None
        if self._validating is not None:
            self._validated += time.perf_counter() - self._validating
            self._validations += 1
            self._validating = None
        if validated or self._trained() >= self._next_line:
            self._next_line = 2 * max(self._next_line, self._trained()) if not validated else self._next_line
            self._log(trainer)

    def _trained(self) -> float:
        """Return the seconds since the clock was started."""
        return 0.0 if self._begun is None else time.perf_counter() - self._begun

    def paces(self, trainer: L.Trainer) -> dict[str, float]:
        """Return the seconds of a ``step`` and of a ``validation``, as far as they are known."""
        steps = 0 if self._begun is None else trainer.global_step - self._first
        since = 0.0 if self._validating is None else time.perf_counter() - self._validating
        own = {"step": (self._trained() - self._validated - since) / steps} if steps else {}
        if self._validations:
            own["validation"] = self._validated / self._validations
        return self._expected | own

    def seconds_left(self, trainer: L.Trainer) -> float | None:
        """Return the seconds until the last step and the final validation; None while unknown."""
        paces = self.paces(trainer)
        if paces.keys() != {"step", "validation"} and not (paces and trainer.global_step >= self._last):
            return None
        steps = max(0, self._last - trainer.global_step)
        validations = validations_between(trainer.global_step, self._last, trainer)
        left = steps * paces["step"] + validations * paces["validation"]
        return min(left, seconds_allowed(trainer))

    def _log(self, trainer: L.Trainer) -> None:
        left, paces = self.seconds_left(trainer), self.paces(trainer)
        if left is not None and trainer.is_global_zero:
            log.info(
                "Step %d of %d: about %s left (a step takes %s, a validation %s)",
                trainer.global_step,
                self._last,
                duration(left),
                duration(paces["step"]),
                duration(paces["validation"]),
            )


def last_step(trainer: Any) -> int:
    """Return the number of optimiser steps of the whole run; 0 without a limit of steps or epochs."""
    by_epochs = (trainer.max_epochs or -1) * int(trainer.num_training_batches) // trainer.accumulate_grad_batches
    return min((limit for limit in (trainer.max_steps, by_epochs) if limit >= 0), default=0)


def validations_between(done: int, last: int, trainer: Any) -> int:
    """Return the number of validations after step ``done`` of a run of ``last`` steps; the last step has one."""
    if done >= last:
        return 0
    every = int(trainer.val_check_interval) / trainer.accumulate_grad_batches  # Lightning counts batches
    return math.ceil(last / every) - math.floor(done / every)


def seconds_allowed(trainer: Any) -> float:
    """Return the seconds that ``trainer.max_time`` leaves; infinity without it."""
    timers = (each for each in getattr(trainer, "callbacks", ()) if isinstance(each, Timer))
    left = [allowed for timer in timers if (allowed := timer.time_remaining()) is not None]
    return max(0.0, min(left, default=math.inf))


def duration(seconds: float) -> str:
    """Return a duration as text, in a suitable unit."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
