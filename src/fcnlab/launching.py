"""A run as a process of its own: the single run that its words say, whatever started it."""

import ctypes
import signal
import subprocess
import sys
from collections.abc import Sequence

from fcnlab.callbacks import Interrupted

DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def setting(key: str, value: object) -> str:
    """``key='value'``, quoted so that a path is one whatever characters it holds."""
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{text}'"


def start(verb: str, words: Sequence[str], config_dir: str | None = None) -> subprocess.Popen:
    """Start ``fcnlab VERB WORDS`` in a session of its own, so that Ctrl-C reaches it through its parent alone.

    On Linux it gets SIGTERM when its parent dies, and saves itself: nothing goes on that nobody waits for.
    """
    options = [] if config_dir is None else ["--config-dir", config_dir]
    command = [sys.executable, "-m", "fcnlab", verb, *options, *words]
    return subprocess.Popen(command, start_new_session=True, preexec_fn=_end_with_parent())


def _end_with_parent():
    """What the child does first; looked up here, since a child of a process with threads may not."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(DEATH_SIGNAL, signal.SIGTERM)


def finish(process: subprocess.Popen) -> int:
    """Wait for a process, hand on the signals that :class:`~fcnlab.callbacks.StopSignals` raises, give its exit code.

    One that a signal ended has 128 + the signal's number, as a shell would report it.
    """
    while True:
        try:
            code = process.wait()
            return code if code >= 0 else 128 - code
        except Interrupted as stop:
            process.send_signal(stop.signal)
