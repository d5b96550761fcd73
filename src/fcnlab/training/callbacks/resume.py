"""Exact resume: save what Lightning's checkpoints lack, so that a resumed run equals an uninterrupted one."""

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

# States of torch's optimisers with the shape of their parameter: torch's kernels do not check it.
LIKE_PARAMETERS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer"}  # SGD, Adam and variants
LIKE_PARAMETERS |= {"sum", "square_avg", "grad_avg", "acc_delta", "prev", "step_size", "ax"}  # other optimisers
ADAM_STATES = {"step", "exp_avg", "exp_avg_sq"}
log = logging.getLogger("fcnlab")


class Batches(NamedTuple):
    """The number of images of a batch over all processes, and the number of batches per step."""

    images: int
    accumulate: int


class ExactResume(Callback):
    """Save every process's random states, the length of metrics.csv and the position in the epoch in checkpoints.

    The order of the images and their augmentation need no random state: they depend on (seed, epoch, index) alone.

    Parameters
    ----------
    curves
        The run's metrics.csv.
    batch_size
        Training images on each device.
    """

    def __init__(self, curves: MetricsCsv, batch_size: int):
        self.curves, self.batch_size = curves, batch_size
        self._validated = 0  # the step of the last complete validation
        self._restored: dict[str, Any] | None = None
        self._optimizer_states: list[dict[str, Any]] = []  # until they are restored

    def on_validation_start(self, trainer: L.Trainer, pl_module) -> None:
        counts: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        counts.ready = counts.started = counts.processed = counts.completed  # undo _validate_again

    def on_validation_end(self, trainer: L.Trainer, pl_module) -> None:
        self._validated = trainer.global_step

    def _validation_is_due(self, trainer: L.Trainer) -> bool:
        """Return whether a validation is due, also before it begins: Lightning starts its workers first."""
        due = (
            trainer.should_stop
            or trainer.fit_loop.epoch_loop.batch_progress.total.completed % int(trainer.val_check_batch or 1) == 0
        )
        return due and self._validated != trainer.global_step

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        # Before the first resumed step, for example in a repeated validation, the old states are not restored yet.
        before = self._restored and self._restored["random"]
        validation_due = self._validation_is_due(trainer)
        checkpoint["resume"] = {
            "random": before or _of_all_processes(trainer, random_states()),
            "rows": self.curves.count,
            "images": self.batch_size * trainer.world_size,
            "accumulate": trainer.accumulate_grad_batches,
            "stopped_early": trainer.should_stop and not validation_due and not is_final_step(trainer),
            "validated": self._validated,
        }
        loop = checkpoint["loops"]["fit_loop"]
        _forget_the_next_batch(loop["epoch_loop.batch_progress"])
        if validation_due:
            _validate_again(loop["epoch_loop.val_loop.batch_progress"])

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return
        relocate_checkpoints(trainer, checkpoint)
        self._restored = saved = checkpoint["resume"]
        self._validated = saved["validated"]
        self._optimizer_states = checkpoint["optimizer_states"]
        before = Batches(saved["images"], saved["accumulate"])
        now = Batches(self.batch_size * trainer.world_size, trainer.accumulate_grad_batches)
        if now != before:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            _count_in_other_batches(progress, before, now, checkpoint["global_step"])
        if trainer.is_global_zero:
            for difference in _differences(len(saved["random"]), trainer.world_size, before, now):
                log.warning("Warning: %s", difference)

    def on_fit_start(self, trainer: L.Trainer, pl_module) -> None:
        """Check the optimisers' states: the optimisers are built now, but their states are not restored yet."""
        states, self._optimizer_states = self._optimizer_states, []
        if not states or not trainer.strategy.lightning_restore_optimizer:
            return
        if len(states) != len(trainer.optimizers):
            raise UserError(f"checkpoint={trainer.ckpt_path} cannot be resumed: it has {len(states)} optimisers")
        for optimizer, state in zip(trainer.optimizers, states, strict=True):
            try:
                check_optimizer_state(optimizer, state)
            except ValueError as error:
                raise UserError(f"checkpoint={trainer.ckpt_path} cannot be resumed: {error}") from error

    def on_train_batch_start(self, trainer: L.Trainer, pl_module, batch, batch_idx: int) -> None:
        if self._restored is None:
            return
        states = self._restored["random"]
        if len(states) == trainer.world_size:
            restore_random_states(states[trainer.global_rank])
        self._restored = None


def check_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Check an optimiser's state against its parameters: torch does not, and its kernels write out of bounds.

    Raises
    ------
    ValueError
        The state is invalid or belongs to other parameters, or a value is missing or has the wrong shape.
    """
    moments, groups = state.get("state"), state.get("param_groups")
    if not isinstance(moments, dict) or not isinstance(groups, list):
        raise ValueError("its optimiser state is invalid")
    indices = [index for group in groups for index in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if len(indices) != len(parameters) or not set(moments) <= set(indices):
        raise ValueError("its optimiser state belongs to other parameters")
    for index, parameter in zip(indices, parameters, strict=True):
        values = moments.get(index, {})
        if not isinstance(values, dict) or (
            isinstance(optimizer, Adam) and values and not values.keys() >= ADAM_STATES
        ):
            raise ValueError(f"its optimiser state of parameter {index} is incomplete")
        for name, value in values.items():
            if name == "step" and torch.as_tensor(value).numel() != 1:
                raise ValueError(f"its optimiser's step of parameter {index} is not a number")
            if name in LIKE_PARAMETERS and value is not None and getattr(value, "shape", None) != parameter.shape:
                raise ValueError(f"its optimiser's {name} of parameter {index} has the wrong shape")


def _differences(processes_before: int, processes: int, before: Batches, now: Batches) -> Iterator[str]:
    """Yield the reasons why the run will differ from an uninterrupted one."""
    if processes != processes_before:
        yield (
            f"{processes} processes resume a checkpoint of {processes_before}: the order of summation and the dropout"
            " masks change, so the results will differ slightly from those of an uninterrupted run"
        )
    if now.images * now.accumulate != before.images * before.accumulate:
        yield (
            f"a step takes {now.images * now.accumulate} images now, but took {before.images * before.accumulate}"
            " before the checkpoint: steps combine other images, and an epoch has another number of steps"
        )


def random_states() -> dict[str, Any]:
    """Return this process's random states, as tensors and plain values."""
    _, keys, *rest = np.random.get_state()
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def check_random_states(states_by_process: Any) -> None:
    """Raise a ValueError unless this is a list with the :func:`random_states` of each process."""
    if not isinstance(states_by_process, list) or not states_by_process:
        raise ValueError("its random states are not a list")
    try:
        for states in states_by_process:
            random.Random().setstate(states["python"])
            keys, place, *rest = states["numpy"]
            if keys.shape != (624,) or type(place) is not int or not 0 <= place <= 624:  # numpy does not check
                raise ValueError("NumPy's state is invalid")
            np.random.RandomState().set_state(("MT19937", keys.numpy().astype(np.uint32), place, *rest))
            torch.Generator().set_state(states["torch"])
            if "cuda" in states and torch.cuda.is_available():
                torch.Generator("cuda").set_state(states["cuda"])
    except Exception as error:  # four libraries raise all kinds of errors
        raise ValueError(f"its random states cannot be restored ({first_line(error)})") from error


def restore_random_states(states: dict[str, Any]) -> None:
    """Restore this process's random states from the result of :func:`random_states`."""
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


# Lightning counts batches as ready (fetched), started, processed and completed, in this epoch ("current") and in total.


def _forget_the_next_batch(progress: dict[str, Any]) -> None:
    """Do not count the next batch, which is already fetched between two steps: the resumed run fetches it again."""
    if progress["current"]["ready"] > progress["current"]["completed"] == progress["current"]["started"]:
        for counts in (progress["current"], progress["total"]):
            counts["ready"] = counts["completed"]
        progress["is_last_batch"] = False  # refers to the next batch


def _validate_again(progress: dict[str, Any]) -> None:
    """Make Lightning repeat an incomplete validation from its first image."""
    progress["current"].update(ready=0, started=0, processed=0, completed=0)
    progress["total"].update(ready=1, started=1, processed=0, completed=0)  # Lightning checks this
    progress["is_last_batch"] = False


def _count_in_other_batches(progress: dict[str, Any], before: Batches, now: Batches, steps: int) -> None:
    """Convert the position in the epoch to the new batch size; images of an incomplete step are seen again."""
    seen = progress["current"]["completed"] * before.images
    done = seen // (now.images * now.accumulate) * now.accumulate
    for counts, value in ((progress["current"], done), (progress["total"], steps * now.accumulate)):
        counts.update(ready=value, started=value, processed=value, completed=value)
    progress["is_last_batch"] = False
