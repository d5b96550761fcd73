"""Test that a call which lasts holds up its caller for a limited time, and that the order of calls stays."""

import sys
import threading
import time

import pytest

from fcnlab.tracking import bounded_calls
from fcnlab.tracking.bounded_calls import BoundedCalls


@pytest.fixture
def blocked(monkeypatch):
    """Calls of which the first lasts until an event is set."""
    monkeypatch.setattr(bounded_calls, "LONGEST", 0.05)
    calls, released = BoundedCalls(), threading.Event()
    yield calls, released
    released.set()
    calls.close()


def test_calls_are_waited_for():
    calls, done = BoundedCalls(), []
    assert calls.run(lambda: (time.sleep(0.02), done.append(1)))
    assert done == [1]
    calls.close()


def test_a_late_call_holds_up_nobody_and_keeps_its_turn(blocked, caplog):
    calls, released = blocked
    done: list[int] = []
    assert not calls.run(released.wait)
    began = time.monotonic()
    for number in range(100):
        assert not calls.run(lambda number=number: done.append(number))
    assert time.monotonic() - began < 0.5 and done == []
    assert caplog.text.count("W&B does not respond") == 1
    released.set()
    assert calls.run_within(5, lambda: None)
    assert done == [*range(100)]


def test_after_a_late_call_callers_wait_again(blocked):
    calls, released = blocked
    calls.run(released.wait)
    released.set()
    assert calls.run_within(5, lambda: None) and calls.run(lambda: None)


def test_many_slow_calls_use_up_the_patience(monkeypatch):
    """Each is in time, but in all they would hold up a run for long."""
    monkeypatch.setattr(bounded_calls, "SLOW", 0.01)
    monkeypatch.setattr(bounded_calls, "PATIENCE", 0.1)
    calls = BoundedCalls()
    began = time.monotonic()
    ended = [calls.run(lambda: time.sleep(0.04)) for _ in range(20)]
    assert time.monotonic() - began < 0.6 and ended[0] and not ended[-1]
    calls.close()


def test_calls_beyond_a_limit_are_dropped(blocked, monkeypatch):
    monkeypatch.setattr(bounded_calls, "MOST_WAITING", 3)
    calls, released = BoundedCalls(), blocked[1]
    done: list[int] = []
    calls.run(released.wait)
    for number in range(10):
        calls.run(lambda number=number: done.append(number))
    assert calls.dropped == 7
    released.set()
    deadline = time.monotonic() + 5
    while len(done) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert done == [0, 1, 2]


def test_a_closed_queue_begins_anew(blocked):
    calls, released = blocked
    calls.run(released.wait)
    calls.close()
    assert calls.run(lambda: None)


def test_the_last_call_waits_for_a_place_in_a_full_queue(blocked, monkeypatch):
    """The end of a run must come after all that was logged."""
    monkeypatch.setattr(bounded_calls, "MOST_WAITING", 3)
    calls, released, done = BoundedCalls(), blocked[1], []
    calls.run(released.wait)
    for number in range(3):
        calls.run(lambda number=number: done.append(number))
    threading.Timer(0.1, released.set).start()
    assert calls.run_within(5, lambda: done.append("end")) and done == [0, 1, 2, "end"]


def test_a_call_that_exits_does_not_end_the_others(caplog):
    calls, done = BoundedCalls(), []
    assert calls.run(lambda: sys.exit(3)) and calls.run(lambda: done.append(1))
    assert done == [1] and "SystemExit(3)" in caplog.text
    calls.close()
