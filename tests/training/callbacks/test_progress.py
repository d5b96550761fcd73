"""The bar's loss."""

from unittest.mock import Mock

import lightning as L
import pytest
import torch

from fcnlab.training.callbacks import Progress, TimeLeft


def test_the_loss_is_read_when_the_bar_is_drawn():
    trainer = Mock(spec=L.Trainer, loggers=[], callbacks=[], progress_bar_metrics={"miou": 0.25})
    bar, drawn = Progress(refresh_rate=10), []
    bar._trainer = trainer
    bar.train_progress_bar = Mock(total=25, n=0, set_postfix=drawn.append)
    assert bar.get_metrics(trainer, None) == {"miou": 0.25}
    for batch in range(25):
        module = Mock(train_loss=torch.tensor(float(batch)))
        bar.on_train_batch_end(trainer, module, {"loss": torch.tensor(7.0)}, None, batch)
    assert [shown["train/loss"] for shown in drawn] == pytest.approx([9, 19, 24])
    assert all(shown["miou"] == 0.25 for shown in drawn)


def test_before_the_first_step_there_is_no_loss_to_show():
    """The first batches may only be accumulated."""
    trainer = Mock(spec=L.Trainer, loggers=[], callbacks=[], progress_bar_metrics={})
    bar = Progress()
    bar._trainer, bar.train_progress_bar = trainer, Mock(total=4, n=0)
    bar.on_train_batch_end(trainer, Mock(train_loss=None), {"loss": torch.tensor(7.0)}, None, 0)
    assert bar.get_metrics(trainer, None) == {}


def test_the_bar_tells_what_the_log_tells_of_the_time_that_is_left():
    """tqdm's own is that of an epoch, and knows of no validation."""
    left = TimeLeft()
    left.expect(step=60.0, validation=0.0)
    trainer = Mock(spec=L.Trainer, loggers=[], progress_bar_metrics={}, callbacks=[left], max_steps=10, max_epochs=-1)
    trainer.configure_mock(global_step=4, val_check_interval=5, accumulate_grad_batches=1, num_training_batches=2)
    left.on_train_start(trainer, None)
    bar = Progress()
    bar._trainer = trainer
    assert bar.get_metrics(trainer, None) == {"left": "6 min"}
    assert "{remaining}" not in bar.init_train_tqdm().bar_format
