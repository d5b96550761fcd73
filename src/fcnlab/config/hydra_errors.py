"""Errors of Hydra and OmegaConf about a command line, as sentences without a traceback.

Hydra shows some of its errors in short. Others, such as that of an interpolation in ``hydra.run.dir``, it shows as a
traceback through its own code, or not at all.
"""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import omegaconf
from hydra.errors import CompactHydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from fcnlab.config.composition import describe_unknown_option, mistakes_collected, unknown_plugin_setting
from fcnlab.errors import LONGEST_MESSAGE, UserError, first_line, shortened, unusable_file_message
from fcnlab.escaping import escape_terminal
from fcnlab.library_internals.hydra import reported_by

HYDRA_FILES = tuple(f"{Path(package.__path__[0])}{os.sep}" for package in (hydra, omegaconf))
OWN_FILES = f"{Path(__file__).parents[1]}{os.sep}"  # the whole package


@contextmanager
def errors_explained(verb: str, task: Callable) -> Iterator[Callable[[Callable], Any]]:
    """While entered, Hydra's errors are reported as sentences; the yielded function does so where Hydra does not.

    Errors of ``task`` keep their traceback, from ``task`` on, except those of the user.
    """
    with mistakes_collected(verb), reported_by(lambda run: _run_and_explain(verb, run, task)) as run_and_report:
        yield run_and_report


def _run_and_explain(verb: str, run: Callable, task: Callable) -> Any:
    try:
        return run()
    except Exception as error:
        message = _message(verb, error, task)
        if message is None and (text := _traceback(error, task)) and os.environ.get("HYDRA_FULL_ERROR") != "1":
            sys.stderr.write(
                escape_terminal(text)
            )  # Hydra would advise how to get the traceback that it has just shown
            sys.exit(1)
        if message is None:
            raise
        message = shortened(message if message.startswith("fcnlab ") else f"fcnlab {verb}: {message}", LONGEST_MESSAGE)
        message = escape_terminal(message)
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise CompactHydraException(message) from error
        sys.stderr.write(f"{message}\n")  # Hydra would add OmegaConf's words, and how to get a traceback
        sys.exit(1)


def _message(verb: str, error: Exception, task: Callable) -> str | None:
    """Return the message that replaces a traceback; None if the traceback is wanted."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        return describe_unknown_option(error)
    if isinstance(error, CompactHydraException):
        return _of_plugin_setting(verb, str(error)) or str(error).strip() or first_line(error.__cause__ or error)
    if isinstance(error, UserError):  # of a sweeper, of a launcher, or of a composition
        return str(error)
    return _sentence(error) if _is_of_hydra(error, task) else None


def _traceback(error: Exception, task: Callable) -> str:
    """Return the traceback of an error inside the task; empty if it was raised before the task began."""
    inside = error.__traceback__
    while inside is not None and inside.tb_frame.f_code is not task.__code__:
        inside = inside.tb_next
    return "" if inside is None else "".join(traceback.format_exception(type(error), error, inside))


def _of_plugin_setting(verb: str, text: str) -> str | None:
    """Return the message for an unknown setting of a launcher or sweeper; None for other errors."""
    match = re.search(
        r"unexpected keyword argument '(?P<key>\w+)'.*^full_key: hydra\.(?P<group>launcher|sweeper)$",
        text,
        re.DOTALL | re.MULTILINE,
    )
    return unknown_plugin_setting(verb, match["group"], match["key"]) if match else None


def _is_of_hydra(error: Exception, task: Callable) -> bool:
    """Return whether Hydra or OmegaConf, or code that they called, raised an error before the task began."""
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    files = [code.co_filename for code in frames if code.co_filename.startswith((*HYDRA_FILES, OWN_FILES))]
    return task.__code__ not in frames and files[-1].startswith(HYDRA_FILES)


def _sentence(error: Exception) -> str:
    if isinstance(error, OmegaConfBaseException):
        key, reason = error.full_key, first_line(error)
        return f"{key} cannot be resolved: {reason}" if key else f"The configuration cannot be composed: {reason}"
    if isinstance(error, OSError) and error.filename:
        return unusable_file_message(error)
    kind = f"{type(error).__name__}: " if isinstance(error, LookupError) else ""  # its message is only a key
    return f"Hydra rejects these settings: {kind}{first_line(error)}"
