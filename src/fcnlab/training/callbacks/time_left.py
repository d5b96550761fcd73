"""How long a training still takes, by its own steps and validations: in its log, and in the bar."""

import logging
import math
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Timer

FIRST_LINE = 60.0  # seconds: after so long the log tells, again after twice as long, and behind each validation
log = logging.getLogger("fcnlab")


class TimeLeft(Callback):
    """Knows what the training's steps and validations took so far, by the clock, with all that came with them.

    A step is the mean of all so far but the first, for which workers start; a validation is the mean of all so far,
    each to the beginning of the next step, with the checkpoints that it writes. Until there is one, it is what was
    expected.
    """

    def __init__(self):
        self._expected: dict[str, float] = {}
        self._last = self._first = 0  # steps: of the whole run, and done when the clock began
        self._begun: float | None = None
        self._validated = 0.0  # seconds
        self._validations = 0
        self._validating: float | None = None  # since when
        self._next_line = FIRST_LINE

    def expect(self, step: float, validation: float) -> None:
        """What to go by at first, in seconds."""
        self._expected = {"step": step, "validation": validation}

    def on_train_start(self, trainer: L.Trainer, pl_module) -> None:
        by_epochs = (trainer.max_epochs or -1) * int(trainer.num_training_batches) // trainer.accumulate_grad_batches
        self._last = min((limit for limit in (trainer.max_steps, by_epochs) if limit >= 0), default=0)
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
            self._tell(trainer)

    def _trained(self) -> float:
        """Seconds since the clock began."""
        return 0.0 if self._begun is None else time.perf_counter() - self._begun

    def paces(self, trainer: L.Trainer) -> dict[str, float]:
        """Seconds of a ``step`` and of a ``validation``, as far as they are known."""
        steps = 0 if self._begun is None else trainer.global_step - self._first
        since = 0.0 if self._validating is None else time.perf_counter() - self._validating
        own = {"step": (self._trained() - self._validated - since) / steps} if steps else {}
        if self._validations:
            own["validation"] = self._validated / self._validations
        return self._expected | own

    def seconds_left(self, trainer: L.Trainer) -> float | None:
        """Until the last step and the validation behind it; None while nobody can tell."""
        paces = self.paces(trainer)
        if paces.keys() != {"step", "validation"} and not (paces and trainer.global_step >= self._last):
            return None
        steps = max(0, self._last - trainer.global_step)
        validations = validations_between(trainer.global_step, self._last, trainer)
        left = steps * paces["step"] + validations * paces["validation"]
        return min(left, seconds_allowed(trainer))

    def _tell(self, trainer: L.Trainer) -> None:
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


def validations_between(done: int, last: int, trainer: Any) -> int:
    """How many come behind ``done`` steps of a run of ``last``, which ends with one."""
    if done >= last:
        return 0
    every = int(trainer.val_check_interval) / trainer.accumulate_grad_batches  # Lightning counts batches
    return math.ceil(last / every) - math.floor(done / every)


def seconds_allowed(trainer: Any) -> float:
    """What ``trainer.max_time`` leaves of a training."""
    timers = (each for each in getattr(trainer, "callbacks", ()) if isinstance(each, Timer))
    left = [allowed for timer in timers if (allowed := timer.time_remaining()) is not None]
    return max(0.0, min(left, default=math.inf))


def duration(seconds: float) -> str:
    """In the unit that a person would choose."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
