"""Stop signals: how they interrupt a process, and the exit code afterwards.

The command line imports this first, since no signal is handled before; so it imports little.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any


def of_this_system(known: type[signal.Signals]) -> tuple[signal.Signals, ...]:
    """Return the stop signals of this system.

    Slurm sends SIGUSR1 before a job's time limit, and a terminal SIGHUP when it is closed; Windows has neither.
    """
    return tuple(known[name] for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if name in known.__members__)


STOPPING = of_this_system(signal.Signals)
HARD_STOP_AFTER = 5.0  # seconds from a second Ctrl-C until a process that does not react is ended


def heard() -> list[signal.Signals]:
    """Return the signals that stop this process: SIGHUP stays ignored if nohup has ignored it.

    There are none outside of the main thread, where Python runs no signal handler.
    """
    if not in_main_thread():
        return []
    return [each for each in STOPPING if each.name != "SIGHUP" or signal.getsignal(each) is not signal.SIG_IGN]


def in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


RAISE_AGAIN_AFTER = 0.05  # seconds after which an interruption that Python has suppressed is raised again
DATA_TIMEOUT = 5.0  # seconds that an interrupted run still waits for a batch


class Interrupted(SystemExit):
    """A signal stopped the run; the process ends with 128 + the signal's number, as shells do.

    ``at_once``: the run stopped anywhere, so that nothing can be saved. ``reported``: a message was shown already.
    """

    reported = False

    def __init__(self, signum: int, at_once: bool = True):
        self.signal, self.at_once = signal.Signals(signum), at_once
        super().__init__(128 + signum)

    def __str__(self) -> str:
        return self.signal.name


class StopSignals:
    """Raise :class:`Interrupted` on a stop signal: immediately, or between two steps during training.

    A second Ctrl-C does not wait for the step. Waiting for data, which may never end, is interrupted a few seconds
    after the signal, or by a second signal.
    """

    def __init__(self):
        self.asked: int | None = None
        self.waiting = False  # for the step to end
        self.raised = False
        self._wait: FrameType | None = None

    def __enter__(self) -> "StopSignals":
        self._before = {signum: signal.getsignal(signum) for signum in heard()}
        self._child_ended = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        self._process, self._hook = os.getpid(), sys.unraisablehook
        sys.unraisablehook = self._raise_again
        self.listen()
        return self

    def __exit__(self, *error) -> None:
        sys.unraisablehook = self._hook
        if self.asked and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self._before and self._child_ended is not None:
            signal.signal(signal.SIGCHLD, self._child_ended)

    def listen(self) -> None:
        """Install the signal handlers, also in place of handlers that libraries have installed.

        torch's handler of SIGCHLD raises an error anywhere when a worker dies, for example between a step and its row
        in metrics.csv. Without it, a dead worker is detected where its batch is awaited.
        """
        for signum in self._before:
            signal.signal(signum, self._receive)
        if self._before and hasattr(signal, "SIGCHLD"):  # not on Windows
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        again = self.asked is not None
        self.asked = self.asked or signum
        if not (again or self.waiting):
            return self._stop(signum, frame)
        if again and signum == signal.SIGINT:
            self.raised = True
            raise Interrupted(self.asked)
        self._end_wait_for_data(signum, frame)

    def _end_wait_for_data(self, signum: int, frame: FrameType | None) -> None:
        """Stop if the process still waits for the same batch as at the last check; otherwise check again later."""
        wait = wait_for_data(frame)
        if self.asked and self.waiting and wait is not None and wait is self._wait:
            raise Interrupted(self.asked, at_once=False)
        self._wait = wait
        if hasattr(signal, "setitimer"):  # not on Windows
            signal.signal(signal.SIGALRM, self._end_wait_for_data)
            signal.setitimer(signal.ITIMER_REAL, DATA_TIMEOUT)

    def _raise_again(self, swallowed: Any) -> None:
        """Raise an interruption again that Python has suppressed, for example in a fork handler.

        Python would print it ("Exception ignored in ..."), and the signal would be lost. Forked children are excluded.
        """
        if not isinstance(swallowed.exc_value, Interrupted):
            self._hook(swallowed)
        elif self._may_wait():
            self._stop_soon()

    def _may_wait(self) -> bool:
        return hasattr(signal, "setitimer") and os.getpid() == self._process

    def _stop_soon(self) -> None:
        signal.signal(signal.SIGALRM, self._stop)
        signal.setitimer(signal.ITIMER_REAL, RAISE_AGAIN_AFTER)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        """Stop immediately, except while a data loader starts its workers: an incomplete loader fails when deleted."""
        if self.waiting:
            self._end_wait_for_data(signum, frame)
        elif _call_of_a_loader(frame, "__init__") and self._may_wait():
            self._stop_soon()
        else:
            self.raised = True
            raise Interrupted(self.asked or signum)

    @contextmanager
    def reraise_as_interrupted(self) -> Iterator[None]:
        """Raise :class:`Interrupted` in place of other errors that a signal has caused.

        Where Python suppresses the interruption (in a fork handler), Lightning's SystemExit may end the run first, with
        code 0. Lightning's cleanup fails if it is interrupted before its loops are ready, and so does the use of a
        partially imported module. An error while a checkpoint is saved stays an error.
        """
        try:
            yield
        except Interrupted:
            raise
        except SystemExit as ended:
            raise Interrupted(self.asked) if self.asked else ended from None
        except Exception as error:
            began = _interruption_before(error)
            if self.asked and (self.raised or (began and began.at_once)):
                raise Interrupted(self.asked) from None
            raise
        finally:
            if self.asked and hasattr(signal, "setitimer"):  # do not interrupt the final writing
                signal.setitimer(signal.ITIMER_REAL, 0)


def wait_for_data(frame: FrameType | None) -> FrameType | None:
    """Return the frame in which a DataLoader waits for a batch; None where it does not."""
    return _call_of_a_loader(frame, "__next__")


def _call_of_a_loader(frame: FrameType | None, name: str) -> FrameType | None:
    while frame is not None:
        if frame.f_code.co_name == name and frame.f_globals.get("__name__") == "torch.utils.data.dataloader":
            return frame
        frame = frame.f_back
    return None


def _interruption_before(error: BaseException | None) -> Interrupted | None:
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """End the process with a message on a stop signal, outside of StopSignals.

    No exception is raised, since during imports it would show a traceback or get lost. A second Ctrl-C ends the process
    whatever it is doing, for example while it waits for another process.
    """
    before = {signum: signal.signal(signum, _end) for signum in heard()}
    try:
        with _hard_stop():
            yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _end(signum: int, frame: FrameType | None = None) -> None:
    with suppress(Exception):  # the signal may have interrupted a write
        sys.stdout.flush()
    _leave(signum, f"fcnlab: stopped by {signal.Signals(signum).name}\n")


def _leave(signum: int, line: str) -> None:
    with suppress(OSError):
        os.write(2, line.encode())
    os._exit(128 + signum)


@contextmanager
def _hard_stop() -> Iterator[None]:
    """Count Ctrl-C in a thread, since a main thread that waits inside torch runs no signal handler."""
    over = threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_count_interrupts, args=(reading, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(writing)


def _count_interrupts(pipe: int, over: threading.Event) -> None:
    """End the process some time after the second SIGINT unless it ends by itself; close the pipe at its end."""
    interrupts = 0
    while received := os.read(pipe, 1):
        interrupts += received[0] == signal.SIGINT
        if interrupts == 2 and not over.wait(HARD_STOP_AFTER):
            _leave(signal.SIGINT, "fcnlab: ended by a second SIGINT; the work since the last checkpoint is lost\n")
    os.close(pipe)


def _deaf_child() -> None:
    """Detach a forked child from its parent's pipe, so that it does not count its signals there."""
    with suppress(ValueError):  # not in a main thread
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_deaf_child)
