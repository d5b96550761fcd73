"""A run as a process of its own: the single run that its words say, whatever started it."""

import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fcnlab.files.in_place import open_own
from fcnlab.signals import Interrupted

PR_SET_PDEATHSIG = 1  # PR_SET_PDEATHSIG of prctl(2)
RANK_VARIABLES = re.compile(  # what says that a process is one of several
    r"(LOCAL_|NODE_|GROUP_|ROLE_)?RANK|(LOCAL_|GROUP_|ROLE_)?WORLD_SIZE|MASTER_(ADDR|PORT)|PL_.*|TORCHELASTIC_.*"
    r"|SLURM_(NTASKS|PROCID|LOCALID|NODEID)|OMPI_.*|PMI_.*"
)
WANDB_RUN_VARIABLES = re.compile(
    r"WANDB_(RUN_ID|RUN_STORAGE_ID|(RUN_)?NAME|RESUME(_FROM)?|FORK_FROM|SWEEP_ID|SWEEP_PARAM_PATH)"
)


@runtime_checkable  # by make test-slow, which checks annotations
class JobHandle(Protocol):
    """A job that was started: a process here, or a job of Slurm's."""

    def poll(self) -> int | None:
        """None while it goes on, else its exit code; -N: signal N ended it."""
        ...

    def send_signal(self, sig: int) -> None: ...

    def is_alive(self) -> bool:
        """Whether anything is left of it, such as a rank that waits for one that has failed."""
        ...

    def kill_all(self) -> None: ...


class ProcessSession(subprocess.Popen):
    """A process with all that it starts."""

    def is_alive(self) -> bool:
        try:
            os.killpg(self.pid, 0)
        except (ProcessLookupError, PermissionError):  # the latter on macOS, where only what is dead is left
            return False
        return True

    def kill_all(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def start_verb(
    verb: str,
    words: Sequence[str],
    config_dir: str | None = None,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    held: Sequence[int] = (),
) -> ProcessSession:
    """Start ``fcnlab VERB WORDS`` in a session of its own, so that Ctrl-C reaches it through its parent alone.

    On Linux it gets SIGTERM when its parent dies, and saves itself: nothing goes on that nobody waits for. What it
    says goes to the end of ``log``. ``held`` are open files that stay open, and locked, as long as it lives.
    """
    options = [] if config_dir is None else ["--config-dir", config_dir]
    command = [sys.executable, "-m", "fcnlab", verb, *options, *words]
    return start_process(command, environment, log, held)


def start_process(
    command: Sequence[str], environment: Mapping[str, str] | None, log: Path | None, held: Sequence[int]
) -> ProcessSession:
    """:func:`start` for any command."""
    fixed: dict[str, Any] = {"start_new_session": True, "preexec_fn": _make_child_setup(), "pass_fds": held}
    if log is None:
        return ProcessSession(command, env=environment, **fixed)
    with os.fdopen(open_own(log, os.O_WRONLY | os.O_APPEND), "ab") as file:
        return ProcessSession(command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **fixed)


def _make_child_setup():
    """What the child does first; looked up here, since a child of a process with threads may not."""
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def begin() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler would be lost with the SIGTERM that it got
        _signal_when_parent_dies(prctl, signal.SIGTERM, parent)

    return begin


def die_with_parent(parent: int) -> None:
    """Have Linux kill this process, which can do nothing alone, when the one that started it ends.

    Where that is over already, as it is where this process has another parent, it ends now.
    """
    if sys.platform.startswith("linux"):
        _signal_when_parent_dies(ctypes.CDLL(None).prctl, signal.SIGKILL, parent)


def _signal_when_parent_dies(prctl: Callable[[int, int], int], signum: int, parent: int) -> None:
    prctl(PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:  # it ended before: nobody will send the signal
        os._exit(128 + signum)


def single_process_environment() -> dict[str, str]:
    """The environment of a job of its own: without what says that this process is one of several.

    Lightning leaves such variables behind (and torchrun and Slurm set them); a run that finds them takes itself for a
    rank of another.
    """
    return {name: value for name, value in shared_sweep_environment().items() if not RANK_VARIABLES.fullmatch(name)}


def shared_sweep_environment() -> dict[str, str]:
    """This process's environment without what names a W&B run: several runs would have one id, or one name."""
    return {name: value for name, value in os.environ.items() if not WANDB_RUN_VARIABLES.fullmatch(name)}


def describe_removed_environment() -> str | None:
    """A sentence about what names a W&B run in the environment, which several runs cannot share; None without any."""
    names = sorted(filter(WANDB_RUN_VARIABLES.fullmatch, os.environ))
    if not names:
        return None
    return f"{', '.join(names)} in the environment: no effect here, where each part is a W&B run of its own"


def wait_for_process(process: subprocess.Popen) -> int:
    """Wait for a process, hand on the signals that :class:`~fcnlab.signals.StopSignals` raises, give its exit code.

    One that a signal ended has 128 + the signal's number, as a shell would report it.
    """
    while True:
        try:
            return shell_exit_code(process.wait())
        except Interrupted as stop:
            process.send_signal(stop.signal)


def shell_exit_code(code: int) -> int:
    return code if code >= 0 else 128 - code
