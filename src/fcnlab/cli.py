"""``fcnlab VERB [group=option] [key=value] [-m]``: each verb is a primary config and a function of tasks/."""

import errno
import logging
import os
import re
import sys
from typing import NoReturn

VERBS = {
    "train": "train a network; leaves checkpoints, scores, curves and pictures in outputs/",
    "eval": "score a checkpoint: four scores, per class, per picture",
    "predict": "segment pictures: palette PNGs and overlays",
    "doctor": "what is wrong with a data set, and with this machine",
    "compare": "say which runs are better, and how sure that is: a page, tables, intervals",
    "bench": "how fast and how small it is, against others in the same run",
}
CONFIG_NAME = "--config-name="
FROM_RUN = "from_run="
ONLY_SHOWN = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i"}  # words by which nothing runs
NOT_FOR_US = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
LISTS = {"compare": ("runs", "baseline"), "bench": ("claims",)}  # a list that is typed as A,B, and a name as it is
RESUME = "sweep.resume="
HELP = """\
fcnlab: fully convolutional networks for segmentation, as experiments.

  fcnlab train   [group=option] [key=value] [-m]       {train}
  fcnlab eval    checkpoint=PATH [data=...]            {eval}
  fcnlab predict checkpoint=PATH input=... output=...  {predict}
  fcnlab doctor  data=... [key=value]                  {doctor}
  fcnlab compare runs=FOLDER[,FOLDER] [baseline=NAME]  {compare}
  fcnlab bench   [claims=NAME,NAME] [key=value]        {bench}

  fcnlab VERB --help       its groups and settings, with examples
  fcnlab VERB --cfg job    the whole configuration as it would run
  fcnlab --version         of fcnlab

Start with: fcnlab train
"""


def main() -> None:
    """The console script."""
    if {"-sc", "--shell-completion"} & set(sys.argv):
        verb = _completed_verb()
        if verb is not None:
            sys.argv.append(f"--config-name={verb}")
            _run(verb)
        return
    words = [word.removeprefix(CONFIG_NAME) for word in sys.argv]
    place = next((place for place, word in enumerate(words) if place and word in VERBS), None)
    if place is None:
        _no_verb()
    verb = words[place]
    started_by_lightning = sys.argv[place] != verb
    # Rewritten in place and not cut out: Lightning starts the other ranks of a DDP run with this very argv.
    sys.argv[place] = CONFIG_NAME + verb
    if verb in LISTS:
        sys.argv[1:] = [_as_list(word, *LISTS[verb]) for word in sys.argv[1:]]
    _bring_back(verb, started_by_lightning)
    _check_groups(verb)
    _check_experiment(verb)
    _check_output(verb)
    _run(verb)


def _bring_back(verb: str, started_by_lightning: bool) -> None:
    """``from_run=FOLDER`` and ``sweep.resume=FOLDER``: let their records give the settings that are not typed."""
    if not any(word.startswith((FROM_RUN, RESUME)) for word in sys.argv):
        return
    from fcnlab.errors import UserError
    from fcnlab.repeat import repeat_run, resume_sweep

    try:
        if verb == "train" and not started_by_lightning:  # whose words have them
            repeat_run(sys.argv, verb)
        resume_sweep(sys.argv, verb)
    except UserError as error:
        sys.exit(f"fcnlab {verb}: {error}")


def _as_list(word: str, lists: str, name: str = "") -> str:
    """``runs=A,B`` as the list that is meant, and names as they are: commas and ``=`` have meanings for Hydra."""
    key, _, value = word.partition("=")
    if key not in (lists, name) or value.startswith(("[", "'", '"')) or value in ("", "null"):
        return word
    from fcnlab.launching import quoted

    return f"{key}=[{','.join(map(quoted, value.split(',')))}]" if key == lists else f"{key}={quoted(value)}"


def _check_groups(verb: str) -> None:
    """Some verbs choose no data by themselves, and Hydra's words for a setting of what is not there mislead."""
    for group in {"eval": ("data", "model"), "predict": ("data",)}.get(verb, ()):
        settings = [word for word in sys.argv if word.startswith(f"{group}.")]
        if settings and not any(word.startswith((f"{group}=", "experiment=")) for word in sys.argv):
            sys.exit(f"fcnlab {verb}: {settings[0]} sets nothing, since no {group} is chosen: add {group}=OPTION")


def _check_experiment(verb: str) -> None:
    """Hydra's words for an experiment of another verb mislead; its file says in its second line whose it is."""
    from fcnlab.config import CONF

    chosen = next((word.removeprefix("experiment=") for word in sys.argv if word.startswith("experiment=")), "")
    for name in chosen.split(","):
        path = CONF / "experiment" / f"{name}.yaml"
        used = re.search(r"^# fcnlab (\w+) experiment=", path.read_text(), re.MULTILINE) if path.is_file() else None
        if used and used[1] != verb:
            sys.exit(f"fcnlab {verb}: experiment={name} is one of fcnlab {used[1]}")


def _check_output(verb: str) -> None:
    """Hydra makes the run's folder before anything of ours runs, and shows a traceback where it cannot."""
    from pathlib import Path

    from fcnlab.errors import why_not_written

    words = [word.partition("=") for word in sys.argv[1:]]
    typed = [(key, value.strip("'\"")) for key, _, value in words if key in ("hydra.run.dir", "hydra.sweep.dir")]
    for key, value in typed or [("hydra.run.dir", "outputs")]:
        reason = None if "${" in value or ONLY_SHOWN & set(sys.argv) else why_not_written(Path(value))
        if reason:
            sys.exit(f"fcnlab {verb}: {key}={value}: {reason}. Name another folder by {key}=FOLDER")


def _no_verb() -> NoReturn:
    if "--version" in sys.argv:
        from importlib.metadata import version

        print(f"fcnlab {version('fcnlab')}")
        sys.exit(0)
    wanted = [word for word in sys.argv[1:] if not word.startswith("-")]
    if wanted:
        sys.exit(f"fcnlab: no verb {wanted[0]!r}; there are {', '.join(VERBS)}. See fcnlab --help.")
    print(HELP.format(**VERBS), end="")
    sys.exit(0)


def _completed_verb() -> str | None:
    """The verb whose settings Hydra is to complete; None where the verb itself was to be completed, and was."""
    line = os.environ.get("COMP_LINE")
    if line is None:  # -sc install=bash
        return "train"
    words = line.split()
    verb = next((word for word in words if word in VERBS), None)
    if verb is None or line.endswith(verb):
        typed = "" if line.endswith(" ") else words[-1]
        print(" ".join(name for name in VERBS if name.startswith(typed) or len(words) == 1))
        return None
    os.environ["COMP_LINE"] = line.replace(f" {verb}", "", 1)  # Hydra expects the line of an app without verbs
    return verb


def _no_space(verb: str, error: OSError) -> str:
    where = f" for {error.filename}" if error.filename else ""
    goes_on = "go on with checkpoint=last and hydra.run.dir set to this run's folder"
    then = goes_on if verb == "train" else "repeat the command"
    return f"fcnlab {verb}: no space left on the device{where}. What was saved before is whole: make room, then {then}."


def _not_for_us(error: OSError) -> str:
    file = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    return f"{file}: {error.strerror}. Name another file or folder, or give this process the right to use it"


def _only_shown(record: logging.LogRecord) -> bool:
    """Names of files and what records say may be anybody's: they are shown, and move no cursor."""
    from fcnlab.results.escaping import in_terminal

    record.msg, record.args = in_terminal(record.getMessage()), ()
    return True


def _run(verb: str) -> None:
    import hydra
    from hydra.errors import CompactHydraException, InstantiationException

    from fcnlab.config import CONF, register_launchers, register_schemas
    from fcnlab.errors import UserError
    from fcnlab.results.escaping import in_terminal
    from fcnlab.starting import imported

    def task(cfg):
        module = {"eval": "evaluate"}.get(verb, verb)  # eval is Python's
        try:
            return getattr(imported(f"fcnlab.tasks.{module}"), module)(cfg)
        except UserError as error:
            raise CompactHydraException(
                in_terminal(f"fcnlab {verb}: {error}")
            ) from error  # Hydra shows these without a traceback
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise CompactHydraException(_no_space(verb, error)) from error
            if error.errno in NOT_FOR_US and error.filename is not None:
                raise CompactHydraException(in_terminal(f"fcnlab {verb}: {_not_for_us(error)}")) from error
            raise
        except InstantiationException as error:
            if isinstance(error.__cause__, ValueError):
                raise CompactHydraException(in_terminal(f"fcnlab {verb}: {error.__cause__}")) from error
            raise

    register_schemas()
    register_launchers()
    logging.getLogger("fcnlab").addFilter(_only_shown)
    hydra.main(version_base="1.3", config_path=str(CONF))(task)()
