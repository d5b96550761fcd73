"""Calls into W&B in threads of their own, so that none holds up a run for long."""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

log = logging.getLogger("fcnlab")
LONGEST = 5.0  # seconds that a run waits for a call
PATIENCE = 10.0  # seconds that it waits in all for slow calls
SLOW = 1.0  # seconds from which a call is slow
MOST_WAITING = 10_000  # calls that may wait while an earlier one lasts; further ones are dropped, and counted

Call = Callable[[], object]
Result = TypeVar("Result")


class BoundedCalls:
    """Run calls in their order, in one thread. Callers wait for a call, but only for some seconds.

    While a call is late, the others wait behind it, and no caller waits any longer. A call handles its own errors.
    ``dropped`` is the number of calls that were never run because too many were waiting.
    """

    def __init__(self):
        self._forget()

    def _forget(self) -> None:
        """Begin with a new thread; an old one, which may never end, is left to itself."""
        self._waiting: queue.Queue[tuple[Call, threading.Event] | None] = queue.Queue(MOST_WAITING)
        self._newest: threading.Event | None = None  # set when the newest call has ended
        self._patience, self.dropped = PATIENCE, 0
        self._process, self._started, self._warned = os.getpid(), False, False

    def run(self, call: Call) -> bool:
        """Run a call and wait for it, unless an earlier one is late; return whether it has ended."""
        behind = self._newest is not None and not self._newest.is_set()
        began = time.monotonic()
        ended = self.run_within(0.0 if behind else min(LONGEST, self._patience), call)
        waited = time.monotonic() - began
        self._patience -= waited if waited > SLOW else 0.0
        if not ended and not self._warned:
            self._warned = True
            log.warning("Warning: W&B does not respond: the run goes on without waiting for it")
        return ended

    def run_within(self, seconds: float, call: Call) -> bool:
        """Run a call after all earlier ones, and wait for at most ``seconds``; return whether it has ended."""
        if self._process != os.getpid():  # a fork has no threads
            self._forget()
        if not self._started:
            self._started = True
            threading.Thread(target=_work, args=(self._waiting,), daemon=True, name="fcnlab-wandb").start()
        ended, began = threading.Event(), time.monotonic()
        try:
            self._waiting.put((call, ended), block=seconds > 0, timeout=seconds)
        except queue.Full:
            self.dropped += 1
            return False
        self._newest = ended
        return ended.wait(max(0.0, seconds - (time.monotonic() - began)))

    def close(self) -> None:
        """End the thread after its calls; further calls get a new one."""
        if self._started and self._process == os.getpid():
            with suppress(queue.Full):  # the thread never ends then, but does not hold up the end of the process
                self._waiting.put_nowait(None)
        self._forget()


def _work(waiting: queue.Queue) -> None:
    while (job := waiting.get()) is not None:
        call, ended = job
        try:
            call()
        except BaseException as error:  # W&B ends threads with SystemExit; the next calls need this one
            log.warning("Warning: a call of W&B has failed: %r", error)
        finally:
            ended.set()


calls = BoundedCalls()  # of this process


def within(seconds: float, function: Callable[..., Result], *arguments: Any) -> Result:
    """Return the result of a function that runs in a thread, which is left alone after ``seconds``.

    Raises
    ------
    TimeoutError
        The function has not returned by then. Its own errors are raised, too.
    """
    result: Future[Result] = Future()

    def run() -> None:
        try:
            result.set_result(function(*arguments))
        except Exception as error:  # raised in the calling thread
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result(seconds)
