"""A run that is asked to stop does not wait for data that never come."""

import os
import signal
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader

from fcnlab import signals
from fcnlab.signals import Interrupted, StopSignals


class Stuck(torch.utils.data.Dataset):
    """Each item takes so many seconds."""

    def __init__(self, *seconds):
        self.seconds = seconds

    def __len__(self):
        return len(self.seconds)

    def __getitem__(self, index):
        time.sleep(self.seconds[index])
        return index


def in_a_while(seconds: float) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(signals, "DATA_TIMEOUT", 0.2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wait_for_data_ends_soon_after_the_signal_and_between_two_steps(workers):
    with StopSignals() as stop:
        stop.waiting = True
        loader = iter(DataLoader(Stuck(0, 60), batch_size=None, num_workers=workers, prefetch_factor=None))
        next(loader)
        in_a_while(0.1)
        began = time.monotonic()
        with pytest.raises(Interrupted) as ended:
            next(loader)
        assert time.monotonic() - began < 1.5 and not ended.value.at_once
        for process in getattr(loader, "_workers", []):
            process.kill()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_second_signal_ends_a_wait_at_once(monkeypatch):
    monkeypatch.setattr(signals, "DATA_TIMEOUT", 60)
    with StopSignals() as stop:
        stop.waiting = True
        in_a_while(0.1)
        in_a_while(0.2)
        with pytest.raises(Interrupted):
            next(iter(DataLoader(Stuck(60), batch_size=None)))


def test_data_that_come_and_steps_are_waited_for():
    """Many short fetches, at any of which an alarm may come, and a step longer than a wait may be."""
    with StopSignals() as stop:
        stop.waiting = True
        in_a_while(0.05)
        assert len(list(DataLoader(Stuck(*[0.04] * 15), batch_size=None))) == 15
        time.sleep(0.5)
        assert stop.asked == signal.SIGTERM
