"""``fcnlab VERB [group=option] [key=value] [-m]``: each verb is a primary config and a function of tasks/."""

import errno
import logging
import os
import re
import sys
from pathlib import Path
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
    if verb == "train" and not started_by_lightning:
        _repeat_record(place)
    if verb in LISTS:
        sys.argv[1:] = [_as_list(word, *LISTS[verb]) for word in sys.argv[1:]]
    _resume_sweep(verb)
    _check_groups(verb)
    _check_experiment(verb)
    _run(verb)


def _repeat_record(place: int) -> None:
    """``from_run=FOLDER``: put the overrides of its record before those that were typed, which win."""
    typed = sys.argv[place + 1 :]
    folder = next((word.removeprefix(FROM_RUN) for word in typed if word.startswith(FROM_RUN)), None)
    if folder is None:
        return
    overrides = _recorded_overrides("train", f"{FROM_RUN}{folder}", Path(folder) / "run.json")
    ours = {_key(word) for word in typed} | {"checkpoint", "from_run", "sweep.folder", "sweep.name"}
    sys.argv[place + 1 : place + 1] = [word for word in overrides if _key(word) not in ours]


def _resume_sweep(verb: str) -> None:
    """``sweep.resume=FOLDER``: work in that folder, with the settings of its record where none are typed."""
    place = next((place for place, word in enumerate(sys.argv) if word.startswith(RESUME)), None)
    if place is None:
        return
    from fcnlab.launching import setting, unquoted

    folder = unquoted(sys.argv[place].removeprefix(RESUME))
    overrides = _recorded_overrides(verb, f"{RESUME}{folder}", Path(folder) / "sweep.json")
    own = ("-", "hydra.", "hydra/", "sweep.")
    typed = any(("=" in word or word.startswith("~")) and not word.startswith(own) for word in sys.argv[1:])
    goes_on = [*_search_settings(Path(folder) / "search.json"), setting("hydra.sweep.dir", folder)]
    sys.argv[place + 1 : place + 1] = [*([] if typed else overrides), *goes_on]
    if not {"-m", "--multirun"} & set(sys.argv):
        sys.argv.insert(1, "--multirun")  # not among the settings, which argparse wants to be one block


def _search_settings(path: Path) -> list[str]:
    """What made a sweep a search, where it was one, but for what is typed anew."""
    from fcnlab.results.reading import read_json

    if not path.is_file():
        return []
    try:
        kept = {str(name): value for name, value in (read_json(path.parent, path.name) or {})["settings"].items()}
    except (OSError, ValueError, KeyError, AttributeError):
        kept = {}  # Optuna's storage knows the trials
    words = ["hydra/sweeper=optuna", *(f"hydra.sweeper.{name}={value}" for name, value in kept.items())]
    typed = {_key(word) for word in sys.argv}
    plain = re.compile(r"hydra/sweeper=optuna|hydra\.sweeper\.(n_trials|n_jobs|direction|seed)=\w+")
    return [word for word in words if plain.fullmatch(word) and _key(word) not in typed]


def _recorded_overrides(verb: str, asked: str, path: Path) -> list[str]:
    """What was typed for a recorded run or sweep, and nothing that could make the command do anything else."""
    from fcnlab.results.escaping import in_line
    from fcnlab.results.reading import read_json

    try:
        found = read_json(path.parent, path.name)
        if found is None:
            raise ValueError(f"there is no {path.name}")
        overrides = [str(word) for word in found["overrides"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        kind = "run" if path.name == "run.json" else "sweep"
        sys.exit(f"fcnlab {verb}: {asked}: no record of a {kind} there ({error}). Give a folder with {path.name}.")
    foreign = [word for word in overrides if word.startswith("-") or re.search(r"^[+~]*hydra|_target_|\$\{oc\.", word)]
    if foreign:
        sys.exit(f"fcnlab {verb}: {asked}: {in_line(foreign[0])} in its record is no setting of a run; refused.")
    return overrides


def _as_list(word: str, lists: str, name: str = "") -> str:
    """``runs=A,B`` as the list that is meant, and names as they are: commas and ``=`` have meanings for Hydra."""
    key, _, value = word.partition("=")
    if key not in (lists, name) or value.startswith(("[", "'", '"')) or value in ("", "null"):
        return word
    from fcnlab.launching import quoted

    return f"{key}=[{','.join(map(quoted, value.split(',')))}]" if key == lists else f"{key}={quoted(value)}"


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


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


def _no_verb() -> NoReturn:
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
            raise
        except InstantiationException as error:
            if isinstance(error.__cause__, ValueError):
                raise CompactHydraException(in_terminal(f"fcnlab {verb}: {error.__cause__}")) from error
            raise

    register_schemas()
    register_launchers()
    logging.getLogger("fcnlab").addFilter(_only_shown)
    hydra.main(version_base="1.3", config_path=str(CONF))(task)()
