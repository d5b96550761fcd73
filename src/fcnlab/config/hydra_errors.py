"""What Hydra and OmegaConf say of a command line that they cannot use: a sentence for each, in place of a traceback.

Hydra shows some of its errors in short, and others, as those of an interpolation in ``hydra.run.dir``, as a traceback
through its own code, or not at all.
"""

import difflib
import os
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import omegaconf
from hydra.errors import CompactHydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from fcnlab.errors import UserError, first_line, why_not_used
from fcnlab.escaping import escape_terminal
from fcnlab.library_internals.hydra import reported_by

THEIRS = tuple(f"{Path(package.__path__[0])}{os.sep}" for package in (hydra, omegaconf))
OURS = f"{Path(__file__).parent}{os.sep}"


@contextmanager
def told_in_sentences(verb: str, task: Callable) -> Iterator[Callable[[Callable], Any]]:
    """While entered, Hydra reports errors of its own as sentences; what is yielded does so for what Hydra forgets.

    Errors of ``task`` are the task's own.
    """
    with reported_by(lambda run: _plainly(verb, run, task)) as run_and_report:
        yield run_and_report


def _plainly(verb: str, run: Callable, task: Callable) -> Any:
    try:
        return run()
    except Exception as error:
        if isinstance(error, MissingConfigException) and error.options is not None:
            sentence = _of_missing_option(error)
        elif isinstance(error, CompactHydraException):
            sentence = _of_other_option(verb, str(error))
        elif isinstance(error, UserError):  # of a sweeper's or a launcher's
            sentence = str(error)
        else:
            sentence = _sentence(error) if _is_theirs(error, task) else None
        if sentence is None:
            raise
        told = CompactHydraException(escape_terminal(f"fcnlab {verb}: {sentence}"))
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise told from error
        raise told from None  # Hydra would show OmegaConf's words behind ours


def _of_missing_option(error: MissingConfigException) -> str:
    """What to say of an option that no file is: the nearest that is there, and all of its group."""
    from fcnlab.config.locations import CONF

    group, _, name = str(error.missing_cfg_file).rpartition("/")
    names = set(error.options or ())
    if group.partition("/")[0] == "experiment":  # the only ones in folders, which Hydra takes for other groups
        group, name = "experiment", str(error.missing_cfg_file).removeprefix("experiment/")
        names |= {str(path.relative_to(CONF / group).with_suffix("")) for path in (CONF / group).rglob("*.yaml")}
    near = difflib.get_close_matches(name, sorted(names), n=1)
    hint = f"did you mean {group}={near[0]}? There are" if near else "there are"
    return f"{first_line(error)}: {hint} {', '.join(sorted(names))}"


def _of_other_option(verb: str, text: str) -> str | None:
    """What to say of a setting that another launcher or sweeper has: Hydra advises a plus, with which it fails, too."""
    found = re.match(r"Could not override 'hydra\.(?P<group>launcher|sweeper)\.(?P<key>[^']+)'", text) or re.search(
        r"unexpected keyword argument '(?P<key>\w+)'.*^full_key: hydra\.(?P<group>launcher|sweeper)$",
        text,
        re.DOTALL | re.MULTILINE,
    )
    if found is None:
        return None
    group = found["group"]
    return (
        f"hydra.{group}.{found['key']} is no setting of the hydra/{group} that is chosen: leave it out, or choose the"
        f" one that has it; fcnlab {verb} hydra/{group}=OPTION --cfg hydra -p hydra.{group} shows what OPTION has"
    )


def _is_theirs(error: Exception, task: Callable) -> bool:
    """Whether Hydra or OmegaConf raised it, or what they called, before the task began."""
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    files = [code.co_filename for code in frames if code.co_filename.startswith((*THEIRS, OURS))]
    return task.__code__ not in frames and files[-1].startswith(THEIRS)


def _sentence(error: Exception) -> str:
    if isinstance(error, OmegaConfBaseException):
        key, reason = error.full_key, first_line(error)
        return f"{key} cannot be computed: {reason}" if key else f"the configuration cannot be composed: {reason}"
    if isinstance(error, OSError) and error.filename:
        return why_not_used(error)
    kind = f"{type(error).__name__}: " if isinstance(error, LookupError) else ""  # which says a key alone
    return f"Hydra cannot use this command line: {kind}{first_line(error)}"
