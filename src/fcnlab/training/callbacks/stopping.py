"""End a run: the final validation, early stopping, and divergence."""

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

from fcnlab.errors import UserError


class FinalValidation(Callback):
    """Request a stop on the last step, so that Lightning validates and saves before it stops.

    Lightning does neither when it reaches max_steps or max_epochs between two validations. min_steps and min_epochs are
    reset, since they would prevent the stop where they exceed these limits.
    """

    def on_train_batch_end(self, trainer: L.Trainer, *args) -> None:
        if is_final_step(trainer):
            trainer.should_stop = True
            trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = 0


def is_final_step(trainer: L.Trainer) -> bool:
    """Return whether the run has reached its limit of steps or epochs."""
    last_step = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    last_epoch = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs
    return last_step or (last_epoch and trainer.is_last_batch)


class StopReason(Callback):
    """Save why a run stopped early, and let the current settings decide whether a resumed run trains further.

    Lightning restores a callback's patience from the checkpoint, so a run that resumes with more patience, or without
    early stopping, would stop at once. ``reason`` is None for a run that did not stop early; otherwise it has ``step``,
    and for early stopping ``monitor``, ``best`` (value), ``best_step``, ``patience`` (in validations) and thresholds.
    """

    def __init__(self):
        self.reason: dict[str, Any] | None = None
        self._best: dict[str, list[float]] = {}  # value and step of each monitor's best
        self._resumes_stopped = False

    def on_validation_end(self, trainer: L.Trainer, pl_module) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        for early in _early_stopping(trainer):
            best = float(early.best_score)
            if best != self._best.get(early.state_key, [None])[0]:
                self._best[early.state_key] = [best, trainer.global_step]
        if trainer.should_stop and not is_final_step(trainer):
            self.reason = {"step": trainer.global_step} | self._stopped_by(trainer)

    def _stopped_by(self, trainer: L.Trainer) -> dict[str, Any]:
        early = next((each for each in _early_stopping(trainer) if _has_stopped(each)), None)
        if early is None:  # stopped by a user's callback or trainer.max_time
            return {}
        best, step = self._best[early.state_key]
        return {
            "monitor": early.monitor,
            "best": best if math.isfinite(best) else None,
            "best_step": step,
            "patience": early.patience,
            "out_of_patience": early.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED,
            **_limits(early),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"reason": self.reason, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.reason, self._best = state_dict["reason"], state_dict["best"]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return
        states = checkpoint["callbacks"]
        # Timer stops the run itself.
        self._resumes_stopped = checkpoint["resume"]["stopped_early"] and "Timer" not in states
        for early in _early_stopping(trainer):
            if early.state_key in states:
                states[early.state_key]["patience"] = early.patience

    def on_train_start(self, trainer: L.Trainer, pl_module) -> None:
        if self._resumes_stopped and self._is_over(trainer):
            trainer.should_stop = True
            return
        self.reason = None
        for early in _early_stopping(trainer):
            early.stopping_reason = EarlyStoppingReason.NOT_STOPPED

    def _is_over(self, trainer: L.Trainer) -> bool:
        """Return whether the run would also stop with the current settings."""
        if self.reason and "monitor" not in self.reason:
            return True
        return any(_still_stops(early, self.reason or {}) for early in _early_stopping(trainer))


def _early_stopping(trainer: L.Trainer) -> list[EarlyStopping]:
    return [callback for callback in trainer.early_stopping_callbacks if isinstance(callback, EarlyStopping)]


def _has_stopped(early: EarlyStopping) -> bool:
    return early.stopping_reason != EarlyStoppingReason.NOT_STOPPED


def _limits(early: EarlyStopping) -> dict[str, float | None]:
    return {"stopping_threshold": early.stopping_threshold, "divergence_threshold": early.divergence_threshold}


def _still_stops(early: EarlyStopping, reason: dict[str, Any]) -> bool:
    if early.stopping_reason == EarlyStoppingReason.PATIENCE_EXHAUSTED:
        return early.wait_count >= early.patience
    return _has_stopped(early) and all(reason.get(name) == limit for name, limit in _limits(early).items())


REASON_TYPES: dict[str, tuple[type, ...]] = {  # of StopReason.reason after early stopping
    "monitor": (str,),
    "best": (float, type(None)),
    "best_step": (int,),
    "patience": (int,),
    "out_of_patience": (bool,),
    "stopping_threshold": (int, float, type(None)),
    "divergence_threshold": (int, float, type(None)),
}


def check_stopping_states(callbacks: dict[str, Any]) -> None:
    """Raise a ValueError unless a checkpoint's states of :class:`StopReason` and early stopping are valid."""
    for key, state in callbacks.items():
        if str(key).startswith("EarlyStopping") and not _is_early_stopping(state):
            raise ValueError("its early stopping state is invalid")
    state = callbacks.get("StopReason", {"reason": None, "best": {}})
    if not isinstance(state, dict) or not is_reason(state.get("reason")) or not _are_bests(state.get("best")):
        raise ValueError("its early stopping reason is invalid")


def _is_early_stopping(state: Any) -> bool:
    if not isinstance(state, dict) or not isinstance(score := state.get("best_score"), Tensor) or score.numel() != 1:
        return False
    return all(type(state.get(name)) is int and state[name] >= 0 for name in ("wait_count", "stopped_epoch"))


def is_reason(reason: Any) -> bool:
    """Return whether an untrusted value is a :class:`StopReason`'s ``reason``."""
    if reason is None:
        return True
    if not isinstance(reason, dict) or type(reason.get("step")) is not int:
        return False
    details = reason.keys() - {"step"}
    typed = details == REASON_TYPES.keys() and all(type(reason[key]) in kinds for key, kinds in REASON_TYPES.items())
    return not details or typed


def _are_bests(best: Any) -> bool:
    if not isinstance(best, dict):
        return False
    pairs = best.values()
    return all(isinstance(pair, list) and [type(value) for value in pair] == [float, int] for pair in pairs)


class TrainingDiverged(UserError):
    """The loss or the weights became infinite or nan."""


class StopOnNaN(Callback):
    """Stop the run when the loss becomes infinite or nan, and save nothing after that.

    The losses of optimiser steps stay on the device and are checked every ``every_n_steps`` steps, so that the other
    steps do not wait for the device. They are losses over all devices, which therefore stop at the same step. Before a
    checkpoint is written its weights are checked, too: they can diverge one step after a finite loss.
    """

    def __init__(self, every_n_steps: int = 10):
        self.every_n_steps = every_n_steps
        self._losses: list[tuple[int, Tensor]] = []
        self._newest: Tensor | None = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch, batch_idx: int) -> None:
        newest = pl_module.train_loss
        if newest is self._newest:  # no optimiser step in this batch
            return
        self._newest = newest
        self._losses.append((trainer.global_step, newest))
        if len(self._losses) >= self.every_n_steps:
            self._check_losses()

    def on_validation_start(self, trainer: L.Trainer, pl_module) -> None:
        self._check_losses()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module, checkpoint) -> None:
        self._check_losses()
        for name, value in checkpoint["state_dict"].items():
            if not value.isfinite().all():
                raise TrainingDiverged(_advice(f"{name} is no longer finite after step {trainer.global_step}"))

    def _check_losses(self) -> None:
        if not self._losses:
            return
        steps, losses = zip(*self._losses, strict=True)
        self._losses.clear()
        bad = ~torch.stack(losses).isfinite()
        if bad.any():
            first = int(bad.nonzero()[0])
            raise TrainingDiverged(_advice(f"the loss became {losses[first].item()} at step {steps[first]}"))


def _advice(problem: str) -> str:
    return (
        f"{problem}: training stopped. Earlier checkpoints are in checkpoints/."
        " Lower optim.lr, or use a longer warm-up (schedule.warmup)."
    )
