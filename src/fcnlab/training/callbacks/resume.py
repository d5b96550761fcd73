"""Exact resume: what a checkpoint needs beside Lightning's own state for a run to go on as if it had never stopped."""

import logging
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import Adam, Optimizer

from fcnlab.errors import UserError, first_line
from fcnlab.training.callbacks.checkpointing import relocate_checkpoints
from fcnlab.training.callbacks.metrics_file import MetricsCsv
from fcnlab.training.callbacks.stopping import is_final_step

# What torch's optimisers keep for each number of a parameter: their kernels walk through both without looking.
LIKE_PARAMETERS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer"}  # SGD, Adam and its kin
LIKE_PARAMETERS |= {"sum", "square_avg", "grad_avg", "acc_delta", "prev", "step_size", "ax"}  # the others
OF_ADAM = {"step", "exp_avg", "exp_avg_sq"}
log = logging.getLogger("fcnlab")


class Batches(NamedTuple):
    """How many images the processes take together at a time, and how many times before a step."""

    images: int
    accumulate: int


class ExactResume(Callback):
    """Keep every process's random states, the length of metrics.csv and the place in the epoch in checkpoints.

    Images and their augmentation need no random state: they follow from (seed, epoch, index).

    Parameters
    ----------
    curves
        The run's metrics.csv.
    batch_size
        Training images on each device.
    """

    def __init__(self, curves: MetricsCsv, batch_size: int):
        self.curves, self.batch_size = curves, batch_size
        self._validated = 0  # the step of the last whole validation
        self._restored: dict[str, Any] | None = None
        self._optimizer_states: list[dict[str, Any]] = []  # until they are restored

    def on_validation_start(self, trainer: L.Trainer, pl_module) -> None:
        counts: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        counts.ready = counts.started = counts.processed = counts.completed  # what _validate_again made unequal

    def on_validation_end(self, trainer: L.Trainer, pl_module) -> None:
        self._validated = trainer.global_step

    def _owes_validation(self, trainer: L.Trainer) -> bool:
        """Also before a validation has begun: Lightning starts its workers first, which takes a while."""
        due = (
            trainer.should_stop
            or trainer.fit_loop.epoch_loop.batch_progress.total.completed % int(trainer.val_check_batch or 1) == 0
        )
        return due and self._validated != trainer.global_step

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        # Before the first resumed step (a validation was done again, say) the states of before are still to come.
        before = self._restored and self._restored["random"]
        owed = self._owes_validation(trainer)
        checkpoint["resume"] = {
            "random": before or _of_all_processes(trainer, random_states()),
            "rows": self.curves.count,
            "images": self.batch_size * trainer.world_size,
            "accumulate": trainer.accumulate_grad_batches,
            "stopped_early": trainer.should_stop and not owed and not is_final_step(trainer),
            "validated": self._validated,
        }
        loop = checkpoint["loops"]["fit_loop"]
        _forget_the_next_batch(loop["epoch_loop.batch_progress"])
        if owed:
            _validate_again(loop["epoch_loop.val_loop.batch_progress"])

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return
        relocate_checkpoints(trainer, checkpoint)
        self._restored = kept = checkpoint["resume"]
        self._validated = kept["validated"]
        self._optimizer_states = checkpoint["optimizer_states"]
        before = Batches(kept["images"], kept["accumulate"])
        now = Batches(self.batch_size * trainer.world_size, trainer.accumulate_grad_batches)
        if now != before:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            _count_in_other_batches(progress, before, now, checkpoint["global_step"])
        if trainer.is_global_zero:
            for difference in _differences(len(kept["random"]), trainer.world_size, before, now):
                log.warning("Warning: %s", difference)

    def on_fit_start(self, trainer: L.Trainer, pl_module) -> None:
        """The optimisers are built now, and their states not restored yet."""
        states, self._optimizer_states = self._optimizer_states, []
        if not states or not trainer.strategy.lightning_restore_optimizer:
            return
        if len(states) != len(trainer.optimizers):
            raise UserError(f"checkpoint={trainer.ckpt_path} cannot be resumed from: it has {len(states)} optimisers")
        for optimizer, state in zip(trainer.optimizers, states, strict=True):
            try:
                check_optimizer_state(optimizer, state)
            except ValueError as error:
                raise UserError(f"checkpoint={trainer.ckpt_path} cannot be resumed from: {error}") from error

    def on_train_batch_start(self, trainer: L.Trainer, pl_module, batch, batch_idx: int) -> None:
        if self._restored is None:
            return
        states = self._restored["random"]
        if len(states) == trainer.world_size:
            restore_random_states(states[trainer.global_rank])
        self._restored = None


def check_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Compare a state with the parameters that it is for: torch does not, and its kernels write beyond what is small.

    Raises
    ------
    ValueError
        It is none, is of other parameters, or something in it is missing or has another shape than its parameter.
    """
    moments, groups = state.get("state"), state.get("param_groups")
    if not isinstance(moments, dict) or not isinstance(groups, list):
        raise ValueError("its optimiser's state is none")
    places = [place for group in groups for place in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if len(places) != len(parameters) or not set(moments) <= set(places):
        raise ValueError("its optimiser's state is of other parameters")
    for place, parameter in zip(places, parameters, strict=True):
        found = moments.get(place, {})
        if not isinstance(found, dict) or (isinstance(optimizer, Adam) and found and not found.keys() >= OF_ADAM):
            raise ValueError(f"its optimiser's state of parameter {place} is incomplete")
        for name, value in found.items():
            if name == "step" and torch.as_tensor(value).numel() != 1:
                raise ValueError(f"its optimiser's step of parameter {place} is no number")
            if name in LIKE_PARAMETERS and value is not None and getattr(value, "shape", None) != parameter.shape:
                raise ValueError(f"its optimiser's {name} of parameter {place} has another shape than that")


def _differences(processes_before: int, processes: int, before: Batches, now: Batches) -> Iterator[str]:
    """Why the bits from here on cannot be those of a run that never stopped."""
    if processes != processes_before:
        yield (
            f"{processes} processes go on with a checkpoint of {processes_before}: sums run in another order and"
            " dropout draws anew, so the last digits will differ from those of an uninterrupted run"
        )
    if now.images * now.accumulate != before.images * before.accumulate:
        yield (
            f"a step takes {now.images * now.accumulate} images now and took {before.images * before.accumulate}"
            " in the checkpoint: from here on other images meet in a step, and an epoch has another number of steps"
        )


def random_states() -> dict[str, Any]:
    """This process's random states, as tensors and plain values."""
    _, keys, *rest = np.random.get_state()
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def check_random_states(found: Any) -> None:
    """Raise a ValueError unless it is the list of what :func:`random_states` gave in each process."""
    if not isinstance(found, list) or not found:
        raise ValueError("its random states are no list")
    try:
        for states in found:
            random.Random().setstate(states["python"])
            keys, place, *rest = states["numpy"]
            if keys.shape != (624,) or type(place) is not int or not 0 <= place <= 624:  # numpy does not look
                raise ValueError("numpy's is none")
            np.random.RandomState().set_state(("MT19937", keys.numpy().astype(np.uint32), place, *rest))
            torch.Generator().set_state(states["torch"])
            if "cuda" in states and torch.cuda.is_available():
                torch.Generator("cuda").set_state(states["cuda"])
    except Exception as error:  # of four libraries, which say what they like
        raise ValueError(f"its random states cannot be restored ({first_line(error)})") from error


def restore_random_states(states: dict[str, Any]) -> None:
    """Go on where :func:`random_states` was called."""
    random.setstate(states["python"])
    keys, *rest = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _of_all_processes(trainer: L.Trainer, state: dict[str, Any]) -> list[dict[str, Any]]:
    states = [state] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(states, state)
    return states


# Lightning's counts of batches: ready (fetched), started, processed, completed; in this epoch ("current") and in all.


def _forget_the_next_batch(progress: dict[str, Any]) -> None:
    """Between two steps the next batch is fetched already; the resumed run fetches it again."""
    if progress["current"]["ready"] > progress["current"]["completed"] == progress["current"]["started"]:
        for counts in (progress["current"], progress["total"]):
            counts["ready"] = counts["completed"]
        progress["is_last_batch"] = False  # said of the batch to come


def _validate_again(progress: dict[str, Any]) -> None:
    """Make Lightning run a validation that had not ended, and from its first image."""
    progress["current"].update(ready=0, started=0, processed=0, completed=0)
    progress["total"].update(ready=1, started=1, processed=0, completed=0)  # by this it knows
    progress["is_last_batch"] = False


def _count_in_other_batches(progress: dict[str, Any], before: Batches, now: Batches, steps: int) -> None:
    """Translate the place in the epoch; images that do not fill a step of today's size are seen again."""
    seen = progress["current"]["completed"] * before.images
    done = seen // (now.images * now.accumulate) * now.accumulate
    for counts, value in ((progress["current"], done), (progress["total"], steps * now.accumulate)):
        counts.update(ready=value, started=value, processed=value, completed=value)
    progress["is_last_batch"] = False
