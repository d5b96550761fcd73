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
from shlex import quote
from typing import Any, Protocol, runtime_checkable

from omegaconf import OmegaConf

from fcnlab.in_place import open_own
from fcnlab.signals import Interrupted

DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
SEARCHPATH = "hydra.searchpath"
RANKS = re.compile(  # what says that a process is one of several
    r"(LOCAL_|NODE_|GROUP_|ROLE_)?RANK|(LOCAL_|GROUP_|ROLE_)?WORLD_SIZE|MASTER_(ADDR|PORT)|PL_.*|TORCHELASTIC_.*"
    r"|SLURM_(NTASKS|PROCID|LOCALID|NODEID)|OMPI_.*|PMI_.*"
)
RUN_OF_WANDB = re.compile(
    r"WANDB_(RUN_ID|RUN_STORAGE_ID|(RUN_)?NAME|RESUME(_FROM)?|FORK_FROM|SWEEP_ID|SWEEP_PARAM_PATH)"
)


@runtime_checkable  # by make test-slow, which checks annotations
class Started(Protocol):
    """A job that was started: a process here, or a job of Slurm's."""

    def poll(self) -> int | None:
        """None while it goes on, else its exit code; -N: signal N ended it."""
        ...

    def send_signal(self, sig: int) -> None: ...

    def is_left(self) -> bool:
        """Whether anything is left of it, such as a rank that waits for one that has failed."""
        ...

    def kill_all(self) -> None: ...


class Session(subprocess.Popen):
    """A process with all that it starts."""

    def is_left(self) -> bool:
        try:
            os.killpg(self.pid, 0)
        except (ProcessLookupError, PermissionError):  # the latter on macOS, where only what is dead is left
            return False
        return True

    def kill_all(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def setting(key: str, value: object) -> str:
    """``key='value'``, quoted so that a path is one whatever characters it holds; a plain path needs no quotes."""
    plain = re.fullmatch(r"[\w.-]*/[\w./-]+", str(value), re.ASCII)
    return f"{key}={value if plain else quoted(value)}"


def quoted(value: object) -> str:
    """A value as Hydra takes it for text, whatever characters it holds: a backslash counts before a quote alone."""
    text = re.sub(r"(\\+)(?='|\Z)", r"\1\1", str(value)).replace("'", "\\'")
    return f"'{text}'"


def in_quotes(word: str, is_list: bool) -> str | None:
    """A word that Hydra cannot read, with those of its values in quotes that need them; None where that is no help.

    ``is_list``: a comma separates the values of a sweep.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    def reads(text: str) -> bool:
        try:
            return bool(OverridesParser.create().parse_override(text))
        except HydraException:
            return False

    key, separator, value = word.partition("=")
    values = value.split(",") if is_list else [value]
    safe = [each if reads(f"x={each}") else quoted(each) for each in values]
    repaired = f"{key}={','.join(safe)}"
    return repaired if separator and not value.startswith(("'", '"', "[", "{")) and reads(repaired) else None


def unquoted(text: str) -> str:
    """What Hydra takes a word's value for; what it could not read stays as it is."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return str(OverridesParser.create().parse_override(f"x={text}").value()) if text[:1] in "'\"" else text
    except HydraException:
        return text


def key_of(override: str) -> str:
    """The setting of an override, or the group."""
    return override.partition("=")[0].lstrip("+~")


def is_dictionary(override: str) -> bool:
    """Whether an override sets some values inside its key, and leaves the others there."""
    return override.partition("=")[2].startswith("{")


def typed(words: Sequence[str]) -> str:
    """Words as a shell takes them, in quotes that can be read, and by characters that can be shown."""
    return " ".join(map(_as_shell_word, words))


def _as_shell_word(word: str) -> str:
    if not word.isprintable():  # it would be shown in another way than it is typed
        return f"$'{''.join(map(_in_ansi_quotes, word))}'"
    return f'"{word}"' if "'" in word and not re.search(r'["$`\\!]', word) else quote(word)


def _in_ansi_quotes(character: str) -> str:
    """A character inside ``$'...'``, as bash, zsh and ksh have it: what cannot be shown by its bytes."""
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    errors = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in character.encode(errors=errors))


def to_type(key: str, value: object) -> str:
    """A setting as it is typed in a shell."""
    return typed([setting(key, value)])


def start(
    verb: str,
    words: Sequence[str],
    config_dir: str | None = None,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    held: Sequence[int] = (),
) -> Session:
    """Start ``fcnlab VERB WORDS`` in a session of its own, so that Ctrl-C reaches it through its parent alone.

    On Linux it gets SIGTERM when its parent dies, and saves itself: nothing goes on that nobody waits for. What it
    says goes to the end of ``log``. ``held`` are open files that stay open, and locked, as long as it lives.
    """
    options = [] if config_dir is None else ["--config-dir", config_dir]
    command = [sys.executable, "-m", "fcnlab", verb, *options, *words]
    return spawn(command, environment, log, held)


def spawn(
    command: Sequence[str], environment: Mapping[str, str] | None, log: Path | None, held: Sequence[int]
) -> Session:
    """:func:`start` for any command."""
    fixed: dict[str, Any] = {"start_new_session": True, "preexec_fn": _end_with_parent(), "pass_fds": held}
    if log is None:
        return Session(command, env=environment, **fixed)
    with os.fdopen(open_own(log, os.O_WRONLY | os.O_APPEND), "ab") as file:
        return Session(command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **fixed)


def _end_with_parent():
    """What the child does first; looked up here, since a child of a process with threads may not."""
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def begin() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler would be lost with the SIGTERM that it got
        _follow(prctl, signal.SIGTERM, parent)

    return begin


def follow_parent(parent: int) -> None:
    """Have Linux kill this process, which can do nothing alone, when the one that started it ends.

    Where that is over already, as it is where this process has another parent, it ends now.
    """
    if sys.platform.startswith("linux"):
        _follow(ctypes.CDLL(None).prctl, signal.SIGKILL, parent)


def _follow(prctl: Callable[[int, int], int], signum: int, parent: int) -> None:
    prctl(DEATH_SIGNAL, signum)
    if os.getppid() != parent:  # it ended before: nobody will send the signal
        os._exit(128 + signum)


def as_typed(words: Any) -> list[str]:
    """A command's overrides, ``hydra.overrides.task`` or ``.hydra``, as a plain list.

    Iterating over the node itself would resolve their interpolations: here and now, whoever they are for.
    """
    plain: Any = OmegaConf.to_container(words, resolve=False) if OmegaConf.is_config(words) else words
    return list(plain)


def config_dir(hydra: Any) -> str | None:
    """The folder that the user's --config-dir added."""
    sources = hydra.runtime.config_sources
    return next((source.path for source in sources if source.provider == "command-line"), None)


def options(hydra: Any) -> list[str]:
    """What is typed before the words of a command, and what a record only shows: where further options are found."""
    folder = config_dir(hydra)
    return [*(["--config-dir", folder] if folder else []), *searchpath(hydra)]


def searchpath(hydra: Any) -> list[str]:
    """The words that say where further options are found."""
    return [word for word in as_typed(hydra.overrides.hydra) if key_of(word) == SEARCHPATH]


def environment_of_one() -> dict[str, str]:
    """The environment of a job of its own: without what says that this process is one of several.

    Lightning leaves such variables behind (and torchrun and Slurm set them); a run that finds them takes itself for a
    rank of another.
    """
    return {name: value for name, value in environment_of_part().items() if not RANKS.fullmatch(name)}


def environment_of_part() -> dict[str, str]:
    """This process's environment without what names a W&B run: several runs would have one id, or one name."""
    return {name: value for name, value in os.environ.items() if not RUN_OF_WANDB.fullmatch(name)}


def left_out_of_parts() -> str | None:
    """A sentence about what names a W&B run in the environment, which several runs cannot share; None without any."""
    names = sorted(filter(RUN_OF_WANDB.fullmatch, os.environ))
    if not names:
        return None
    return f"{', '.join(names)} in the environment: no effect here, where each part is a W&B run of its own"


def finish(process: subprocess.Popen) -> int:
    """Wait for a process, hand on the signals that :class:`~fcnlab.signals.StopSignals` raises, give its exit code.

    One that a signal ended has 128 + the signal's number, as a shell would report it.
    """
    while True:
        try:
            return exit_code(process.wait())
        except Interrupted as stop:
            process.send_signal(stop.signal)


def exit_code(code: int) -> int:
    return code if code >= 0 else 128 - code
