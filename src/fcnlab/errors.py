"""The one kind of error that is the user's to mend."""

import errno
import os
from pathlib import Path


class UserError(ValueError):
    """A mistake in what the user gave. Its message names the thing, its value, what is allowed and the next step.

    The command line shows the message without a traceback (``HYDRA_FULL_ERROR=1`` shows that too). A DataLoader makes
    such an error anew from one of a worker, with the worker's traceback before the message: it is cut off.
    """

    def __init__(self, message: str = ""):
        kind = f"{type(self).__module__}.{type(self).__qualname__}: "
        super().__init__(message.rpartition(kind)[2] if str(message).startswith("Caught ") else message)


CHDIR_REFUSED = (
    "hydra.job.chdir=true: relative paths would mean folders inside the run's, where no data and no checkpoints are."
    " Leave it out; ${hydra:runtime.output_dir} is the run's folder"
)


NO_MEMORY = ("failed to map segment", "annot allocate memory", "DefaultCPUAllocator: can't allocate memory")


def first_line(error: BaseException) -> str:
    """What an error says, for a message of ours; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def why_not_used(error: OSError) -> str:
    """What the system says of a file that was to be used."""
    return f"{os.fsdecode(error.filename)}: {error.strerror}. Name another file or folder"


def unwritable_reason(folder: Path) -> str | None:
    """Why no file can be made in a folder, which need not be there yet; None where nothing speaks against it."""
    for place in (folder.absolute(), *folder.absolute().parents):
        try:
            os.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            return f"{place}: {getattr(error, 'strerror', None) or error}"
        if not place.is_dir():
            return f"{place} is no folder" if place.exists() else f"{place} is a link to what is not there"
        return None if os.access(place, os.W_OK | os.X_OK) else f"{place} cannot be written to"
    return None


def limit_of_process(error: BaseException) -> str | None:
    """What to say of an error that comes from a limit on this process; None where it comes from something else."""
    number, text = getattr(error, "errno", None), str(error)
    if "can't start new thread" in text or (number == errno.EAGAIN and isinstance(error, BlockingIOError)):
        return (
            f"no further thread or process can be started ({first_line(error)}): raise the limit (ulimit -u, or the"
            " container's), or end other processes of this user"
        )
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(words in text for words in NO_MEMORY):
        return f"there is too little memory ({first_line(error)}): raise the limit (ulimit -v, or the container's)"
    if number in (errno.EMFILE, errno.ENFILE):
        return f"too many files are open ({first_line(error)}): raise the limit (ulimit -n)"
    return None


class WriteError(UserError):
    """A file of the run could not be written: the disk is full, or its folder is gone or not writable."""
