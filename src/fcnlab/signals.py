"""Signals: how a process is asked to stop, and with which code it says that it did. Imports neither torch nor Hydra."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # Slurm sends the last one before a job's time is up


DATA_MAY_TAKE = 5.0  # seconds that a run which was asked to stop still waits for a batch


class Interrupted(SystemExit):
    """A signal asked the run to stop; the process ends with 128 + the signal's number, as a shell would report it.

    ``at_once``: wherever it was, so that nothing can be saved.
    """

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
        self._wait: FrameType | None = None

    def __enter__(self) -> "StopSignals":
        self._before = {signum: signal.getsignal(signum) for signum in STOPPING}
        self.listen()
        return self

    def __exit__(self, *error) -> None:
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
        for signum in STOPPING:
            signal.signal(signum, self._receive)
        if hasattr(signal, "SIGCHLD"):  # not on Windows
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        again = self.asked is not None
        self.asked = self.asked or signum
        if (again and signum == signal.SIGINT) or not (again or self.waiting):
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

    @contextmanager
    def told_apart(self) -> Iterator[None]:
        """Let what ended because of a signal end as :class:`Interrupted`, whatever came out of it.

        Where Python had to swallow ours (in a handler of a fork, say), Lightning's SystemExit ends the run, with code
        0. And Lightning's clearing up fails where it was interrupted before its loops were ready. An error of a run
        that was saving itself stays an error.
        """
        try:
            yield
        except Interrupted:
            raise
        except SystemExit as ended:
            raise Interrupted(self.asked) if self.asked else ended from None
        except Exception as error:
            began = _interruption_before(error)
            if began is None or not began.at_once:
                raise
            raise began from None


def wait_for_data(frame: FrameType | None) -> FrameType | None:
    """The call in which a DataLoader fetches a batch where a signal came; None where it does not."""
    while frame is not None:
        if frame.f_code.co_name == "__next__" and frame.f_globals.get("__name__") == "torch.utils.data.dataloader":
            return frame
        frame = frame.f_back
    return None


def _interruption_before(error: BaseException | None) -> Interrupted | None:
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error
