"""``from_run=``, ``sweep.resume=`` and ``sweep.extend=FOLDER``: overrides that a record adds to the command line."""

import re
import shlex
from collections.abc import Callable, Sequence
from itertools import chain
from os.path import isfile  # False for a name that no file can have, where Path's raises an OSError
from pathlib import Path
from typing import Any

from fcnlab.config.components import leaves_of
from fcnlab.config.locations import config_roots
from fcnlab.config.overrides import (
    COMBINATIONS,
    SEARCHPATH,
    combinations_override,
    format_override,
    format_path,
    override_key,
    searchpath_folders,
    sets_dictionary,
    shell_join,
    typed_combinations,
    typed_value,
    unquote_value,
)
from fcnlab.config.plugins import plugins
from fcnlab.config.trust import OWN_FOLDER, UntrustedError, are_long, check_links, check_overrides, override_rejection
from fcnlab.errors import UserError
from fcnlab.files.reading import Unreadable, display_path, read_json, read_yaml, texts
from fcnlab.library_internals.hydra import option_parser

FROM_RUN = "from_run="
RESUME, EXTEND, CONFIRM = "sweep.resume=", "sweep.extend=", "sweep.confirm="
RECORDED = "sweep.recorded=true"
SINGLE_RUN_KEYS = {"checkpoint", "from_run", "sweep"}  # first parts of settings that belong to the recorded run alone
NO_VALUES = "Add the override that you want behind it; a typed override wins"
OF_DATA = {"data", "experiment"}


def apply_from_run(argv: list[str], verb: str) -> None:
    """Insert the overrides of a run's record before ``from_run=FOLDER``; typed ones win.

    Raises
    ------
    UserError
        There is no record; it contains forbidden overrides; the run used config folders of the user, and this command
        has none.
    """
    place = next((place for place, word in enumerate(argv) if word.startswith(FROM_RUN)), None)
    if place is None:
        return
    folder = Path(unquote_value(argv[place].removeprefix(FROM_RUN)))
    record = read_record(argv[place], folder / "run.json")
    check_plugins(argv[place], record, argv)
    untyped = check_own_folders("run", record, argv, verb)
    typed = {override_key(word) for word in argv[1:] if not sets_dictionary(word)}  # a dictionary is merged
    overrides = [
        word
        for word in record["overrides"]
        if override_key(word) not in typed and _first_part(word) not in SINGLE_RUN_KEYS
    ]
    check_recorded_overrides(overrides, argv, lambda: untyped or _values_to_type(overrides, folder, argv))
    argv[place:place] = [*overrides, *read_only_data(overrides, argv)]


def apply_sweep_resume(argv: list[str], verb: str) -> None:
    """Resume the sweep of ``sweep.resume=FOLDER``, with the overrides of its record if none are typed.

    Its ``combinations`` are always those of the record, so that they are checked unless they are typed, too.

    The sweep of ``sweep.extend=FOLDER`` is resumed with the typed seeds in addition.

    Raises
    ------
    UserError
        As for :func:`apply_from_run`; a link leads out of the folder; there are no new seeds.
    """
    place = next((place for place, word in enumerate(argv) if word.startswith((RESUME, EXTEND))), None)
    if place is None:
        return
    folder = unquote_value(argv[place].partition("=")[2])
    record = read_record(argv[place], Path(folder) / "sweep.json")
    overrides = [*(record.get("params") or []), *record["overrides"]]
    combinations, typed = record.get("combinations", []), [*argv]
    if argv[place].startswith(EXTEND):
        _set_added_seeds(argv, place, verb, Path(folder))
        refuse_settings(argv[place], [word for word in typed_settings(argv) if word not in overrides])
    untyped = ""
    if typed_settings(argv):
        overrides = []
    else:
        untyped = check_own_folders("sweep", record, typed, verb)
    foreign, to_type = [*overrides], [*typed, *overrides]
    if combinations and typed_combinations(argv) != combinations:  # the sweep takes them from the record, in any case
        foreign += chain(*combinations)
        to_type = [word for word in to_type if override_key(word) != COMBINATIONS]
        to_type.append(combinations_override(combinations))
    advice = untyped or f"If the sweep is yours, type all of its settings: {command_line(verb, to_type)}"
    check_recorded_overrides(foreign, argv, lambda: advice)
    check_links(Path(folder))
    resumed = [*_search_settings(Path(folder) / "search.json", argv), format_override("hydra.sweep.dir", folder)]
    argv[place + 1 : place + 1] = [*overrides, *read_only_data(overrides, argv), *resumed]
    if not {"-m", "--multirun"} & set(argv):
        argv.insert(1, "--multirun")  # not among the overrides, which argparse expects in one block


def typed_settings(argv: Sequence[str]) -> list[str]:
    """Return the overrides on a command line, without options and without those of Hydra and of the sweep itself."""
    own = ("-", "hydra.", "hydra/", "sweep.")
    return [word for word in argv[1:] if ("=" in word or word.startswith("~")) and not word.startswith(own)]


def refuse_settings(request: str, settings: Sequence[str]) -> None:
    """Raise a UserError for settings that a command cannot have, since it repeats those of a sweep."""
    if settings:
        raise UserError(
            f"{request}: {' '.join(settings)} cannot be set, since all settings but the seed are repeated from the"
            " sweep. Leave it out"
        )


def _set_added_seeds(argv: list[str], place: int, verb: str, folder: Path) -> None:
    """Put ``sweep.added_seeds=`` in place of the last typed ``seed=``."""
    request = argv[place]
    typed = [index for index, word in enumerate(argv) if override_key(word) == "seed"]
    if verb != "train":
        raise UserError(f"{request}: only training runs have seeds. Use fcnlab train")
    if (folder / "search.json").is_file():
        confirm = shell_join(["fcnlab", verb, "-m", f"sweep.confirm={format_path(folder)}"])
        raise UserError(
            f"{request}: the folder contains a search, whose settings were selected by their scores. Train its best"
            f" settings with new seeds: {confirm} sweep.best=3 seed=101,102,103"
        )
    if not typed:
        raise UserError(f"{request} needs new seeds. Add, for example, seed=4,5")
    argv[typed[-1]] = format_override("sweep.added_seeds", argv[typed[-1]].partition("=")[2])


def read_record(request: str, path: Path) -> dict[str, Any]:
    """Return a record whose ``overrides`` are a list of strings.

    Raises
    ------
    UserError
        There is no such record.
    """
    try:
        record = read_json(path.parent, path.name)
        if record is None:
            raise ValueError(f"there is no {path.name}")
        for name in {"overrides", "params"} & record.keys():
            texts(record[name], name)
        for words in record.get("combinations", []):
            texts(words, "combinations")
        return {**record, "overrides": list(record["overrides"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        kind = "run" if path.name == "run.json" else "sweep"
        advice = f"Give a folder with {path.name}."
        if kind == "sweep" and isfile(path.with_name("multirun.yaml")):  # noqa: PTH113
            advice = (
                "A sweep with hydra/launcher=basic writes none. Type its settings again, with the seeds that you need"
                " and without that launcher; fcnlab compare runs=A,B takes the folders of both sweeps."
            )
        raise UserError(f"{request}: no record of a {kind} there ({error}). {advice}") from error


def config_folders(argv: Sequence[str]) -> list[Path]:
    """Return the folders of this command's config groups: typed ones, ``conf/``, and those of installed plugins."""
    return [*typed_folders(argv), *config_roots()]


def typed_folders(argv: Sequence[str]) -> list[Path]:
    """Return --config-dir and the folders of ``hydra.searchpath``: the user's own, since no record may set either."""
    own = _typed_config_dir(argv)
    return [*([Path(own)] if own else []), *searchpath_folders(argv)]


def check_own_folders(kind: str, record: dict[str, Any], argv: Sequence[str], verb: str) -> str:
    """Check that the config folders of a record, if any, were typed again: their files can name any code.

    Return which of them this command does not have, and what to type; empty if it has all.

    Raises
    ------
    UntrustedError
        This command has none at all.
    """
    folder, searchpath = record.get("config_dir"), _recorded_searchpath(record)
    typed = [bool(_typed_config_dir(argv)), any(word.startswith(f"{SEARCHPATH}=") for word in argv)]
    option = ["--config-dir", display_path(Path(folder))] if isinstance(folder, str) and not typed[0] else []
    untyped = [*option, *([] if typed[1] else searchpath)]
    if not untyped:
        return ""
    in_python = "In Python, add config_dir=FOLDER. " if option else ""
    message = (
        f"This {kind} used {_printable(' '.join(untyped))}."
        f" Type: {command_line(verb, [argv[0], *untyped, *argv[1:]])}\n"
        f"({in_python}Its files can run any code: do so only if you trust that folder.)"
    )
    if not any(typed):
        raise UntrustedError(message)
    return message


def check_plugins(request: str, record: dict[str, Any], argv: Sequence[str]) -> None:
    """Check that the plugins of a recorded run are installed; a typed folder may have their config files instead.

    Raises
    ------
    UserError
        A plugin is missing.
    """
    recorded = record.get("plugins")
    missing = set(recorded if isinstance(recorded, dict) else ()) - {plugin.name for plugin in plugins()}
    if missing and not typed_folders(argv):
        names = _printable(", ".join(sorted(map(str, missing))))
        raise UserError(
            f"{_printable(request)}: this run used a plugin that is not installed here: {names:.200}. Install it, if"
            f" you trust it, or type {OWN_FOLDER} with its config files"
        )


def _typed_config_dir(argv: Sequence[str]) -> str | None:
    return option_parser().parse_known_args(argv[1:])[0].config_dir


def _recorded_searchpath(record: dict[str, Any]) -> list[str]:
    """Return the ``hydra.searchpath`` in the command of a record: one override, or none."""
    try:
        words = shlex.split(str(record.get("command")))
    except ValueError:
        return []
    return [word for word in words if word.startswith(f"{SEARCHPATH}=")][:1]


def check_recorded_overrides(overrides: Sequence[str], argv: Sequence[str], advice: Callable[[], str]) -> None:
    """Raise an UntrustedError, with advice, unless a record may contain these overrides."""
    try:
        check_overrides(overrides, config_folders(argv))
    except UntrustedError as error:
        word = next(word for word in argv if word.startswith((FROM_RUN, RESUME, EXTEND, CONFIRM)))
        raise UntrustedError(f"{_printable(word)}: {error}. {advice()}") from error


def _values_to_type(overrides: Sequence[str], folder: Path, argv: Sequence[str]) -> str:
    """Return what to type in place of refused overrides, such as a job's number: the values of the run."""
    if are_long(overrides):
        return NO_VALUES
    folders = config_folders(argv)
    refused = [word for word in overrides if override_rejection(word, folders)]
    try:
        values = leaves_of(read_yaml(folder, "config.yaml"))
    except (OSError, Unreadable):
        values = {}
    had = {word: values[override_key(word)] for word in refused if override_key(word) in values}
    words = [f"{word.partition('=')[0]}={typed_value(value)}" for word, value in had.items()]
    words = [word for word in words if not override_rejection(word, folders)]
    return f"Add the values of the run behind it: {shell_join(words)}" if words else NO_VALUES


def _first_part(override: str) -> str:
    return re.split(r"[./@]", override_key(override))[0]


def read_only_data(overrides: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Return the override that opens data which only a record names read-only: see :class:`fcnlab.data.DataModule`."""
    named = any(_first_part(word) in OF_DATA for word in overrides)
    return (
        [RECORDED] if named and not {"data.root", "sweep.recorded"} & {override_key(word) for word in argv[1:]} else []
    )


def command_line(verb: str, argv: Sequence[str]) -> str:
    """Return this command as it is typed; cli.py has rewritten its verb."""
    words = [word for word in argv[1:] if not word.startswith("--config-name=")]
    return shell_join(["fcnlab", verb, *words])


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)


def _search_settings(path: Path, argv: Sequence[str]) -> list[str]:
    """Return the overrides that made a sweep an Optuna search, except those that are typed again."""
    if not path.is_file():
        return []
    try:
        kept = {str(name): value for name, value in (read_json(path.parent, path.name) or {})["settings"].items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        kept = {}  # Optuna's storage knows the trials
    words = ["hydra/sweeper=optuna", *(f"hydra.sweeper.{name}={value}" for name, value in kept.items())]
    own = {override_key(word) for word in argv}
    plain = re.compile(r"hydra/sweeper=optuna|hydra\.sweeper\.(n_trials|n_jobs|direction|seed)=\w+", re.ASCII)
    return [word for word in words if plain.fullmatch(word) and override_key(word) not in own]
