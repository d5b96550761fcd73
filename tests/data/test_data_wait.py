"""A run that receives a stop signal does not wait for data that never arrive."""

import os
import signal
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader

from fcnlab import signals
from fcnlab.signals import Interrupted, StopSignals


class SlowDataset(torch.utils.data.Dataset):
    """A dataset whose items take this many seconds each."""

    def __init__(self, *seconds):
        self.seconds = seconds

    def __len__(self):
        return len(self.seconds)

    def __getitem__(self, index):
        time.sleep(self.seconds[index])
        return index


def signal_after(seconds: float) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()


@pytest.fixture(autouse=True)
def short_timeout(monkeypatch):
    monkeypatch.setattr(signals, "DATA_TIMEOUT", 0.2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_ends_a_wait_for_data_between_two_steps(workers):
    with StopSignals() as stop:
        stop.waiting = True
        loader = iter(DataLoader(SlowDataset(0, 60), batch_size=None, num_workers=workers, prefetch_factor=None))
        next(loader)
        signal_after(0.1)
        started = time.monotonic()
        with pytest.raises(Interrupted) as ended:
            next(loader)
        assert time.monotonic() - started < 1.5 and not ended.value.at_once
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's raises errors if a worker is killed
        for process in getattr(loader, "_workers", []):
            process.kill()
            process.join()
        signal.signal(signal.SIGCHLD, handler)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_second_signal_ends_a_wait_immediately(monkeypatch):
    monkeypatch.setattr(signals, "DATA_TIMEOUT", 60)
    with StopSignals() as stop:
        stop.waiting = True
        signal_after(0.1)
        signal_after(0.2)
        with pytest.raises(Interrupted):
            next(iter(DataLoader(SlowDataset(60), batch_size=None)))


def test_slow_data_and_steps_are_not_interrupted():
    """There are many short fetches, during which an alarm may fire, and a step longer than the timeout."""
    with StopSignals() as stop:
        stop.waiting = True
        signal_after(0.05)
        assert len(list(DataLoader(SlowDataset(*[0.04] * 15), batch_size=None))) == 15
        time.sleep(0.5)
        assert stop.asked == signal.SIGTERM
