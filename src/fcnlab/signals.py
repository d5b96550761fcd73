"""Signals: how a process is asked to stop, and with which code it says that it did.

The command line imports this first, and hears no signal before it has: it imports little.
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
    """Slurm sends SIGUSR1 before a job's time is up, a terminal SIGHUP when it is closed; Windows has neither."""
    return tuple(known[name] for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if name in known.__members__)


STOPPING = of_this_system(signal.Signals)
HARD_STOP_AFTER = 5.0  # seconds between a second Ctrl-C and the end of a process that does not hear it


def heard() -> list[signal.Signals]:
    """The signals that stop this process: nohup starts it with SIGHUP ignored, and that stays so."""
    return [each for each in STOPPING if each.name != "SIGHUP" or signal.getsignal(each) is not signal.SIG_IGN]


SOON = 0.05  # seconds after which an interruption that Python has swallowed is raised again
DATA_MAY_TAKE = 5.0  # seconds that a run which was asked to stop still waits for a batch


class Interrupted(SystemExit):
    """A signal asked the run to stop; the process ends with 128 + the signal's number, as a shell would report it.

    ``at_once``: wherever it was, so that nothing can be saved. ``reported``: the user has read a line about it.
    """

    reported = False

    def __init__(self, signum: int, at_once: bool = True):
        self.signal, self.at_once = signal.Signals(signum), at_once
        super().__init__(128 + signum)

    def __str__(self) -> str:
        return self.signal.name


class StopSignals:
    """While entered, a stopping signal raises :class:`Interrupted`: at once, or between two steps while training runs.

    Ctrl-C a second time does not wait for the step. A wait for data, which may never end, is no step: it ends a few
    seconds after the signal, or by a second one.
    """

    def __init__(self):
        self.asked: int | None = None
        self.waiting = False  # for the step to end
        self.raised = False
        self._wait: FrameType | None = None

    def __enter__(self) -> "StopSignals":
        self._before = {signum: signal.getsignal(signum) for signum in heard()}
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

    def listen(self) -> None:
        """Take every signal here, also from those who put handlers of their own first.

        torch's handler of SIGCHLD raises wherever the process is when a worker dies, such as between a step that is
        done and its row in metrics.csv. Without it a dead worker is found where its batch is awaited.
        """
        for signum in self._before:
            signal.signal(signum, self._receive)
        if hasattr(signal, "SIGCHLD"):  # not on Windows
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
        """Stop in a wait that goes on since the last look; else look again by an alarm, until the run has stopped."""
        wait = wait_for_data(frame)
        if self.asked and self.waiting and wait is not None and wait is self._wait:
            raise Interrupted(self.asked, at_once=False)
        self._wait = wait
        if hasattr(signal, "setitimer"):  # not on Windows
            signal.signal(signal.SIGALRM, self._end_wait_for_data)
            signal.setitimer(signal.ITIMER_REAL, DATA_MAY_TAKE)

    def _raise_again(self, swallowed: Any) -> None:
        """Raise an interruption once more that came where Python lets nothing out, such as in a handler of a fork.

        Python would print it ("Exception ignored in ..."), and the signal would be lost. A forked child is not asked.
        """
        if not isinstance(swallowed.exc_value, Interrupted):
            self._hook(swallowed)
        elif self._may_wait():
            self._stop_soon()

    def _may_wait(self) -> bool:
        return hasattr(signal, "setitimer") and os.getpid() == self._process

    def _stop_soon(self) -> None:
        signal.signal(signal.SIGALRM, self._stop)
        signal.setitimer(signal.ITIMER_REAL, SOON)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        """Stop at once, but for a loader that starts its workers: one that is half made fails when it is dropped."""
        if self.waiting:
            self._end_wait_for_data(signum, frame)
        elif _call_of_a_loader(frame, "__init__") and self._may_wait():
            self._stop_soon()
        else:
            self.raised = True
            raise Interrupted(self.asked or signum)

    @contextmanager
    def reraise_as_interrupted(self) -> Iterator[None]:
        """Let what ended because of a signal end as :class:`Interrupted`, whatever came out of it.

        Where Python had to swallow ours (in a handler of a fork, say), Lightning's SystemExit may end the run first,
        with code 0. Lightning's clearing up fails where it was interrupted before its loops were ready, and a module
        that was half imported where it is used. An error of a run that was saving itself stays an error.
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
            if self.asked and hasattr(signal, "setitimer"):  # it has ended: what is written now shall be whole
                signal.setitimer(signal.ITIMER_REAL, 0)


def wait_for_data(frame: FrameType | None) -> FrameType | None:
    """The call in which a DataLoader fetches a batch where a signal came; None where it does not."""
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
    """The signals of a whole command: one that stops ends it at once, with a line, until it enters StopSignals.

    Nothing is raised: during imports an exception of a signal ends in a traceback, or nowhere. Ctrl-C a second time
    ends the process whatever it is doing, such as waiting for one that hangs.
    """
    before = {signum: signal.signal(signum, _end) for signum in heard()}
    try:
        with _hard_stop():
            yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _end(signum: int, frame: FrameType | None = None) -> None:
    with suppress(Exception):  # it may be in the middle of writing there
        sys.stdout.flush()
    _leave(signum, f"fcnlab: stopped by {signal.Signals(signum).name}\n")


def _leave(signum: int, line: str) -> None:
    with suppress(OSError):
        os.write(2, line.encode())
    os._exit(128 + signum)


@contextmanager
def _hard_stop() -> Iterator[None]:
    """Count Ctrl-C in a thread: a main thread that waits inside torch runs no handler, however often it is asked."""
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
    """End the process some time after the second SIGINT, unless it is over by itself; close the pipe with its end."""
    interrupts = 0
    while received := os.read(pipe, 1):
        interrupts += received[0] == signal.SIGINT
        if interrupts == 2 and not over.wait(HARD_STOP_AFTER):
            _leave(signal.SIGINT, "fcnlab: ended by the second SIGINT; what came after the last checkpoint is lost\n")
    os.close(pipe)


def _deaf_child() -> None:
    """A fork has its parent's pipe, and must not count its own signals there."""
    with suppress(ValueError):  # not in a main thread
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_deaf_child)
