"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """A mistake in what the user gave. Its message names the thing, its value, what is allowed and the next step.

    The command line shows the message without a traceback (``HYDRA_FULL_ERROR=1`` shows that too).
    """


class NotWritten(UserError):
    """A file of the run could not be written: the disk is full, or its folder is gone or not writable."""
