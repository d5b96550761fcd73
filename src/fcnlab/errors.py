"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """A mistake in what the user gave. Its message names the thing, its value, what is allowed and the next step.

    The command line shows the message without a traceback (``HYDRA_FULL_ERROR=1`` shows that too).
    """


CHDIR = (
    "hydra.job.chdir=true: relative paths would mean folders inside the run's, where no data and no checkpoints are."
    " Leave it out; ${hydra:runtime.output_dir} is the run's folder"
)


def first_line(error: BaseException) -> str:
    """What an error says, for a message of ours; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class NotWritten(UserError):
    """A file of the run could not be written: the disk is full, or its folder is gone or not writable."""
