"""Signals: how a process is asked to stop, and with which code it says that it did. Imports neither torch nor Hydra."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # Slurm sends the last one before a job's time is up


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

    Ctrl-C a second time does not wait for the step.
    """

    def __init__(self):
        self.asked: int | None = None
        self.waiting = False  # for the step to end

    def __enter__(self) -> "StopSignals":
        self._before = {signum: signal.getsignal(signum) for signum in STOPPING}
        self.listen()
        return self

    def __exit__(self, *error) -> None:
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


def _interruption_before(error: BaseException | None) -> Interrupted | None:
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error
