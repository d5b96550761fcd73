"""The progress bar: when it is drawn, where it begins, and what it shows."""

from unittest.mock import Mock

import lightning as L
import pytest
import torch

from fcnlab.library_internals import lightning as internals
from fcnlab.training.callbacks import Progress, TimeLeft


def a_trainer(**state) -> Mock:
    trainer = Mock(spec=L.Trainer, loggers=[], callbacks=[], progress_bar_metrics={}, max_steps=25, max_epochs=-1)
    trainer.configure_mock(global_step=0, val_check_interval=5, accumulate_grad_batches=1, num_training_batches=10)
    trainer.configure_mock(**state)
    return trainer


def a_bar(trainer: Mock, **settings) -> Progress:
    bar = Progress(**settings)
    bar._trainer = trainer
    return bar


@pytest.fixture
def steps(monkeypatch):
    """Return the steps after which a bar is drawn, if each takes some seconds; and what it shows then."""

    def drawn_steps(trainer: Mock, bar: Progress, seconds: float) -> tuple[list[int], list[dict]]:
        bar.on_train_start(trainer, None)
        clock, shown, at = [100.0], [], []
        bar.train_progress_bar = Mock(
            total=25, set_postfix=lambda metrics: (at.append(trainer.global_step), shown.append(metrics))
        )
        monkeypatch.setattr(internals.time, "monotonic", lambda: clock[0])
        for step in range(trainer.global_step, 25):
            clock[0] += seconds
            trainer.global_step = step + 1
            bar.on_train_batch_end(trainer, Mock(train_loss=torch.tensor(float(step))), {}, None, step % 10)
        return at, shown

    return drawn_steps


@pytest.mark.parametrize(
    ("seconds", "refresh_rate", "expected"),
    [
        (3.0, 1, list(range(1, 26))),
        (0.0625, 1, [*range(1, 25, 2), 25]),  # at most every tenth of a second
        (3.0, 10, [10, 20, 25]),
        (3.0, 0, []),
    ],
)
def test_the_bar_moves_at_every_slow_step(steps, seconds, refresh_rate, expected):
    trainer = a_trainer()
    assert steps(trainer, a_bar(trainer, refresh_rate=refresh_rate), seconds)[0] == expected


def test_the_loss_is_read_when_the_bar_is_drawn(steps):
    trainer = a_trainer(progress_bar_metrics={"miou": 0.25})
    bar = a_bar(trainer, refresh_rate=10)
    assert bar.get_metrics(trainer, None) == {"miou": 0.25}
    _, shown = steps(trainer, bar, 3.0)
    assert [each["train/loss"] for each in shown] == pytest.approx([9, 19, 24])
    assert all(each["miou"] == 0.25 for each in shown)


@pytest.mark.parametrize(
    ("limits", "total"),
    [({}, 25), ({"max_steps": -1, "max_epochs": 3}, 30), ({"max_steps": -1}, None)],
)
def test_the_bar_of_a_resumed_run_begins_at_its_step(capsys, limits, total):
    """In the middle of an epoch, where Lightning begins no epoch and sets no total."""
    trainer = a_trainer(global_step=12, **limits)
    bar = a_bar(trainer)
    bar.on_train_start(trainer, None)
    assert (bar.train_progress_bar.n, bar.train_progress_bar.initial, bar.train_progress_bar.total) == (12, 12, total)
    bar.on_train_epoch_start(trainer, None)  # the next epoch
    assert bar.train_progress_bar.n == 12
    assert f"12/{total or '?'} [" in capsys.readouterr().out


def test_before_the_first_step_there_is_no_loss_to_show():
    """The first batches may only be accumulated."""
    trainer = a_trainer()
    bar = a_bar(trainer)
    bar.train_progress_bar = Mock(total=4, n=0)
    bar.on_train_batch_end(trainer, Mock(train_loss=None), {"loss": torch.tensor(7.0)}, None, 0)
    assert bar.get_metrics(trainer, None) == {}


def test_the_bar_tells_what_the_log_tells_of_the_time_that_is_left():
    """tqdm's own is that of an epoch, and knows of no validation."""
    left = TimeLeft()
    left.expect(step=60.0, validation=0.0)
    trainer = a_trainer(callbacks=[left], max_steps=10, global_step=4, num_training_batches=2)
    left.on_train_start(trainer, None)
    bar = a_bar(trainer)
    assert bar.get_metrics(trainer, None) == {"left": "6 min"}
    assert "{remaining}" not in bar.init_train_tqdm().bar_format
