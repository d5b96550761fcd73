"""When a run is asked to end, and what stops one whose loss is no number any more."""

from unittest.mock import Mock

import lightning as L
import pytest
import torch

from fcnlab.errors import UserError
from fcnlab.training.callbacks import FinalValidation, StopOnNaN
from fcnlab.training.callbacks.stopping import TrainingDiverged


def stand_in(**state) -> L.Trainer:
    return Mock(spec=L.Trainer, **state)


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "step", "epoch", "last_batch", "stops"),
    [
        (10, -1, 9, 0, False, False),
        (10, -1, 10, 0, False, True),
        (10, None, 9, 5, True, False),  # an epoch's end is none of the run's
        (-1, 3, 99, 1, True, False),
        (-1, 3, 99, 2, False, False),
        (-1, 3, 99, 2, True, True),
        (10, 3, 9, 2, True, True),  # whichever comes first
        (10, 3, 10, 0, False, True),
        (-1, -1, 10**6, 10**3, True, False),
    ],
)
def test_the_last_step_asks_for_a_stop(max_steps, max_epochs, step, epoch, last_batch, stops):
    trainer = stand_in(
        max_steps=max_steps,
        max_epochs=max_epochs,
        global_step=step,
        current_epoch=epoch,
        is_last_batch=last_batch,
        should_stop=False,
        fit_loop=Mock(),
    )
    FinalValidation().on_train_batch_end(trainer, None, None, None, 0)
    assert trainer.should_stop is stops


def after(callback: StopOnNaN, losses, first_step: int = 1) -> None:
    """What Lightning tells it of after each batch."""
    for step, loss in enumerate(losses, first_step):
        callback.on_train_batch_end(stand_in(global_step=step), Mock(train_loss=torch.tensor(loss)), None, None, 0)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_the_first_bad_loss_is_named(value):
    callback = StopOnNaN(every_n_steps=4)
    after(callback, [1.0, float(value), 1.0])  # not looked at yet
    with pytest.raises(TrainingDiverged, match=rf"the loss became {value} at step 2: .*Lower optim\.lr"):
        after(callback, [float("nan")], first_step=4)
    assert issubclass(TrainingDiverged, UserError)


def test_a_step_in_parts_is_one_loss():
    """Batches that are accumulated leave that of the step before, at first none: ten steps are ten losses."""
    callback, module = StopOnNaN(every_n_steps=3), Mock(train_loss=None)
    for batch in range(1, 12):
        if batch % 4 == 0:
            module.train_loss = torch.tensor(float("nan" if batch == 8 else 1))
        callback.on_train_batch_end(stand_in(global_step=batch // 4), module, None, None, 0)
    module.train_loss = torch.tensor(1.0)
    with pytest.raises(TrainingDiverged, match="the loss became nan at step 2"):
        callback.on_train_batch_end(stand_in(global_step=3), module, None, None, 0)


@pytest.mark.parametrize("moment", ["on_validation_start", "on_save_checkpoint"])
def test_nothing_is_validated_or_saved_after_a_bad_loss(moment):
    callback = StopOnNaN(every_n_steps=100)
    arguments = (stand_in(), None, *([{"state_dict": {}}] if moment == "on_save_checkpoint" else []))
    getattr(callback, moment)(*arguments)  # before the first step there is nothing to look at
    after(callback, [1.0, 2.0])
    getattr(callback, moment)(*arguments)
    after(callback, [1.0, float("nan")], first_step=3)
    with pytest.raises(TrainingDiverged, match="at step 4"):
        getattr(callback, moment)(*arguments)


def test_weights_that_are_lost_are_not_saved():
    """The step after a good loss can be the one that loses them."""
    callback, trainer = StopOnNaN(), stand_in(global_step=7)
    state = {"net.steps": torch.tensor(3), "net.kernel": torch.ones(2)}
    callback.on_save_checkpoint(trainer, None, {"state_dict": state})
    state["net.kernel"][1] = float("inf")
    with pytest.raises(TrainingDiverged, match=r"net\.kernel is no longer finite after step 7: training stopped"):
        callback.on_save_checkpoint(trainer, None, {"state_dict": state})


def test_large_losses_are_no_reason_to_stop():
    after(StopOnNaN(every_n_steps=1), [1e30, 0.0, 3e6])  # the papers' summed loss is in the millions
