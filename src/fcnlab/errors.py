"""Errors that the user can fix, and the messages for errors of the system."""

import errno
import os
from pathlib import Path


class UserError(ValueError):
    """A mistake in the user's input. The message names the setting, its value, what is allowed and what to type.

    The command line and notebooks show the message without a traceback (``HYDRA_FULL_ERROR=1`` shows both on the
    command line). A DataLoader raises a worker's error again with the worker's traceback before the message; that part
    is removed.
    """

    def __init__(self, message: str = ""):
        kind = f"{type(self).__module__}.{type(self).__qualname__}: "
        super().__init__(message.rpartition(kind)[2] if str(message).startswith("Caught ") else message)

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows: the message alone, as on the command line."""
        return [f"{type(self).__name__}: {self}"]


WANDB_DIR_IGNORED = "WANDB_DIR in the environment has no effect, since wandb/ is in the folder of the run or the sweep"
CHDIR_REFUSED = (
    "hydra.job.chdir=true is not supported: relative paths would lead into the run's folder, away from data and"
    " checkpoints. Remove it. ${hydra:runtime.output_dir} is the run's folder"
)


NO_MEMORY = ("failed to map segment", "annot allocate memory", "DefaultCPUAllocator: can't allocate memory")


LONGEST_REASON = 2_000  # characters; a path may have 4,096, of which both ends are kept
LONGEST_MESSAGE = 50_000  # a command to type may contain 10,000 characters of overrides


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, shortened, or its class name if the message is empty."""
    return shortened((str(error).strip() or type(error).__name__).splitlines()[0])


def shortened(text: str, most: int = LONGEST_REASON) -> str:
    """Return a text, without its middle if it is long: an error may quote a value of gigabytes."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[1 - most // 2 :]}"


def unusable_file_message(error: OSError) -> str:
    """Return the message for a file that the system does not let us use."""
    return f"{os.fsdecode(error.filename)}: {error.strerror}. Choose another file or folder"


def unwritable_reason(folder: Path) -> str | None:
    """Return why no file can be created in a folder, which need not exist yet; None if one can."""
    for place in (folder.absolute(), *folder.absolute().parents):
        try:
            os.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            return f"{place}: {getattr(error, 'strerror', None) or error}"
        if not place.is_dir():
            return f"{place} is not a folder" if place.exists() else f"{place} is a broken link"
        return None if os.access(place, os.W_OK | os.X_OK) else f"{place} is not writable"
    return None


def limit_of_process(error: BaseException) -> str | None:
    """Return the message for an error caused by a limit on this process; None for any other error."""
    number, text = getattr(error, "errno", None), str(error)
    if "can't start new thread" in text or (number == errno.EAGAIN and isinstance(error, BlockingIOError)):
        return (
            f"cannot start another thread or process ({first_line(error)}): raise the limit (ulimit -u, or the"
            " container's), or end other processes of this user"
        )
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(words in text for words in NO_MEMORY):
        return f"out of memory ({first_line(error)}): raise the limit (ulimit -v, or the container's)"
    if number in (errno.EMFILE, errno.ENFILE):
        return f"too many files are open ({first_line(error)}): raise the limit (ulimit -n)"
    return None


class WriteError(UserError):
    """A file of the run could not be written: the disk is full, or its folder is gone or not writable."""
