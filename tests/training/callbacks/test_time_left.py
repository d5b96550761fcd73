"""How long a training still takes, by a clock that its steps and validations move."""

import logging
from datetime import timedelta
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import Timer

from fcnlab.training.callbacks import TimeLeft, time_left
from fcnlab.training.callbacks.time_left import duration, validations_between


class Run:
    """Ten steps of two batches each, validated behind every fourth and the last."""

    def __init__(self, monkeypatch, **settings):
        self.now = 100.0
        monkeypatch.setattr(time_left.time, "perf_counter", lambda: self.now)
        self.callback = TimeLeft()
        state = SimpleNamespace(fn="fit")
        fixed = {"accumulate_grad_batches": 2, "val_check_interval": 8, "max_steps": 10, "max_epochs": -1}
        self.trainer = SimpleNamespace(
            **(fixed | {"global_step": 0, "num_training_batches": 6, "callbacks": [self.callback]} | settings),
            **{"state": state, "sanity_checking": False, "is_global_zero": True},
        )
        self.callback.on_train_start(self.trainer, None)

    def step(self, seconds: float) -> None:
        for batch in (0, 1):
            self.callback.on_train_batch_start(self.trainer, None, None, batch)
            self.now += seconds / 2
            self.trainer.global_step += batch
            self.callback.on_train_batch_end(self.trainer, None, None, None, batch)

    def validate(self, seconds: float) -> None:
        self.callback.on_validation_start(self.trainer, None)
        self.now += seconds

    @property
    def left(self) -> float | None:
        return self.callback.seconds_left(self.trainer)


def test_the_run_itself_corrects_what_was_expected(monkeypatch):
    run = Run(monkeypatch)
    assert run.left is None  # nobody has said anything yet
    run.callback.expect(step=100.0, validation=50.0)
    assert run.left == pytest.approx(10 * 100 + 3 * 50)
    run.step(60.0)  # in which workers started
    assert run.left == pytest.approx(9 * 100 + 3 * 50)
    run.step(2.0)
    run.step(4.0)
    assert run.left == pytest.approx(7 * 3 + 3 * 50)
    run.step(3.0)
    run.validate(7.0)
    assert run.left == pytest.approx(6 * 3 + 2 * 50)  # it is not over yet
    run.step(3.0)
    assert run.left == pytest.approx(5 * 3 + 2 * 7)


def test_a_resumed_run_goes_by_its_own_clock(monkeypatch):
    run = Run(monkeypatch, global_step=6)
    run.callback.expect(1.0, 10.0)
    assert run.left == pytest.approx(4 * 1 + 2 * 10)
    run.step(9.0)
    run.step(2.0)
    assert run.left == pytest.approx(2 * 2 + 10)


def test_the_shorter_of_steps_epochs_and_time_ends_a_run(monkeypatch):
    run = Run(monkeypatch, max_steps=-1, max_epochs=2)  # of three steps each
    run.callback.expect(1.0, 10.0)
    assert run.left == pytest.approx(6 + 2 * 10)
    run.trainer.callbacks.append(Timer(timedelta(seconds=5)))
    assert run.left == pytest.approx(5)


def test_the_log_tells_behind_each_validation_and_seldom_in_between(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "fcnlab")
    run = Run(monkeypatch, max_steps=1000, val_check_interval=1000)
    run.callback.expect(1.0, 20.0)
    for _ in range(400):
        run.step(1.0)
    assert [message.split(":")[0] for message in caplog.messages] == [f"Step {n} of 1000" for n in (61, 121, 241)]
    assert caplog.messages[0] == "Step 61 of 1000: about 16 min left (a step takes 1.0 s, a validation 20.0 s)"
    caplog.clear()
    run.validate(40.0)
    run.step(1.0)
    assert caplog.messages == ["Step 400 of 1000: about 11 min left (a step takes 1.0 s, a validation 40.0 s)"]


@pytest.mark.parametrize(
    ("done", "last", "every", "accumulated", "count"),
    [(0, 10, 4, 1, 3), (6, 10, 4, 1, 2), (8, 10, 4, 1, 1), (0, 8, 4, 1, 2), (10, 10, 4, 1, 0), (3, 10, 8, 2, 3)],
)
def test_validations_that_are_to_come(done, last, every, accumulated, count):
    trainer = SimpleNamespace(val_check_interval=every, accumulate_grad_batches=accumulated)
    assert validations_between(done, last, trainer) == count


def test_durations_are_in_the_unit_of_choice():
    assert [duration(seconds) for seconds in (0.25, 5, 300, 7200)] == ["250 ms", "5.0 s", "5 min", "2.0 h"]
