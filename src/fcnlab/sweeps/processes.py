"""Start runs in processes of their own, with an environment that does not depend on what started them."""

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

from fcnlab.errors import WANDB_DIR_IGNORED
from fcnlab.files.in_place import open_own
from fcnlab.signals import Interrupted

PR_SET_PDEATHSIG = 1  # option of prctl(2): the signal that a process gets when its parent ends
RANK_VARIABLES = re.compile(  # variables that make a process a rank of a distributed run
    r"(LOCAL_|NODE_|GROUP_|ROLE_)?RANK|(LOCAL_|GROUP_|ROLE_)?WORLD_SIZE|MASTER_(ADDR|PORT)|PL_.*|TORCHELASTIC_.*"
    r"|SLURM_(NTASKS|PROCID|LOCALID|NODEID)|OMPI_.*|PMI_.*"
)
WANDB_RUN_VARIABLES = re.compile(  # variables that apply to a single run, and the one that applies to none
    r"WANDB_(DIR|RUN_ID|RUN_STORAGE_ID|(RUN_)?NAME|RESUME(_FROM)?|FORK_FROM|SWEEP_ID|SWEEP_PARAM_PATH)"
)


@runtime_checkable  # by make test-slow, which checks annotations
class JobHandle(Protocol):
    """A started job: a local process or a Slurm job."""

    def poll(self) -> int | None:
        """Return the exit code, -N if signal N ended the job, or None while it runs."""
        ...

    def send_signal(self, sig: int) -> None: ...

    def is_alive(self) -> bool:
        """Return whether any of its processes is alive, such as a rank that waits for one that has failed."""
        ...

    def kill_all(self) -> None: ...


class ProcessSession(subprocess.Popen):
    """A process and all processes that it starts."""

    def is_alive(self) -> bool:
        try:
            os.killpg(self.pid, 0)
        except (ProcessLookupError, PermissionError):  # PermissionError: on macOS, if only dead processes are left
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
    """Start ``fcnlab VERB WORDS`` in a session of its own, so that Ctrl-C reaches it only through its parent.

    On Linux the process gets SIGTERM when its parent dies, saves a checkpoint and ends. Its output is appended to
    ``log``. ``held`` are open files that it keeps open, and locked, as long as it lives.
    """
    options = [] if config_dir is None else ["--config-dir", config_dir]
    command = [sys.executable, "-m", "fcnlab", verb, *options, *words]
    return start_process(command, import_environment(environment or os.environ), log, held)


def import_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a process, and its ranks, that imports from where this process does.

    ``python -m`` puts the current folder first: a file ``hydra.py`` there would run in place of the library.
    """
    imports_from_here = str(Path.cwd()) in map(os.path.abspath, sys.path)  # as with PYTHONPATH=., or python -m fcnlab
    return {**environment} if imports_from_here else {**environment, "PYTHONSAFEPATH": "1"}


def start_process(
    command: Sequence[str], environment: Mapping[str, str] | None, log: Path | None, held: Sequence[int]
) -> ProcessSession:
    """Start any command as :func:`start_verb` does."""
    fixed: dict[str, Any] = {"start_new_session": True, "preexec_fn": _make_child_setup(), "pass_fds": held}
    if log is None:
        return ProcessSession(command, env=environment, **fixed)
    with os.fdopen(open_own(log, os.O_WRONLY | os.O_APPEND), "ab") as file:
        return ProcessSession(command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **fixed)


def _make_child_setup():
    """Return what the child runs before exec; libc is loaded here, since the child of a threaded process must not."""
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def begin() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler would swallow a SIGTERM before exec
        _signal_when_parent_dies(prctl, signal.SIGTERM, parent)

    return begin


def die_with_parent(parent: int) -> None:
    """Have Linux kill this process when the one that started it ends; exit now if it has ended already.

    It has ended already if this process has another parent.
    """
    if sys.platform.startswith("linux"):
        _signal_when_parent_dies(ctypes.CDLL(None).prctl, signal.SIGKILL, parent)


def _signal_when_parent_dies(prctl: Callable[[int, int], int], signum: int, parent: int) -> None:
    prctl(PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:  # the parent has ended already: no signal will come
        os._exit(128 + signum)


def single_process_environment() -> dict[str, str]:
    """Return this process's environment without the variables that would make a job a rank of a distributed run.

    Lightning, torchrun and Slurm set such variables.
    """
    return {name: value for name, value in shared_sweep_environment().items() if not RANK_VARIABLES.fullmatch(name)}


def shared_sweep_environment() -> dict[str, str]:
    """Return this process's environment without the variables that give all runs the same W&B id, name or folder."""
    return {name: value for name, value in os.environ.items() if not WANDB_RUN_VARIABLES.fullmatch(name)}


def describe_removed_environment() -> str | None:
    """Describe the W&B variables of the environment that the runs of a sweep do not get; None if there are none."""
    removed = set(filter(WANDB_RUN_VARIABLES.fullmatch, os.environ))
    names = sorted(removed - {"WANDB_DIR"})
    have = "have" if len(names) > 1 else "has"
    reason = f"in the environment {have} no effect, since each job or stage is a W&B run of its own"
    sentences = [f"{', '.join(names)} {reason}"] if names else []
    return ". ".join([*sentences, *([WANDB_DIR_IGNORED] if "WANDB_DIR" in removed else [])]) or None


def wait_for_process(process: subprocess.Popen) -> int:
    """Wait for a process, forward signals that :class:`~fcnlab.signals.StopSignals` raises, return its exit code.

    If signal N ended the process, the code is 128 + N, as a shell reports it.
    """
    while True:
        try:
            return shell_exit_code(process.wait())
        except Interrupted as stop:
            process.send_signal(stop.signal)


def shell_exit_code(code: int) -> int:
    return code if code >= 0 else 128 - code
