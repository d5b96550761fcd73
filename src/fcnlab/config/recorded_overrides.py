"""``from_run=FOLDER`` and ``sweep.resume=FOLDER``: what a record brings back to the command line."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fcnlab.config.components import iter_leaves
from fcnlab.config.locations import CONF
from fcnlab.config.overrides import format_override, override_key, sets_dictionary, shell_join, unquote_value
from fcnlab.config.trust import UntrustedError, check_links, check_overrides, override_rejection
from fcnlab.errors import UserError
from fcnlab.files.reading import Unreadable, display_path, read_json, read_yaml, texts
from fcnlab.library_internals.hydra import option_parser

FROM_RUN = "from_run="
RESUME = "sweep.resume="
RECORDED = "sweep.recorded=true"
SINGLE_RUN_KEYS = {"checkpoint", "from_run", "sweep"}  # first parts of settings that were that one run's
NO_VALUES = "Type what you mean by it behind it, where it wins"
OF_DATA = {"data", "experiment"}


def apply_from_run(argv: list[str], verb: str) -> None:
    """Put the overrides of a run's record before ``from_run=FOLDER``; those that were typed win.

    Raises
    ------
    UserError
        There is no record; it holds what no record may; the run had a config folder, and this command has none.
    """
    place = next((place for place, word in enumerate(argv) if word.startswith(FROM_RUN)), None)
    if place is None:
        return
    folder = Path(unquote_value(argv[place].removeprefix(FROM_RUN)))
    record = read_record(argv[place], folder / "run.json")
    check_config_dir("run", record, argv, verb)
    ours = {override_key(word) for word in argv[1:] if not sets_dictionary(word)}  # which adds to what is there
    overrides = [
        word
        for word in record["overrides"]
        if override_key(word) not in ours and _first_part(word) not in SINGLE_RUN_KEYS
    ]
    check_recorded_overrides(overrides, argv, lambda: _values_to_type(overrides, folder, argv))
    argv[place:place] = [*overrides, *_reading_alone(overrides, argv)]


def apply_sweep_resume(argv: list[str], verb: str) -> None:
    """``sweep.resume=FOLDER``: work in that folder, with the settings of its record where none are typed.

    Raises
    ------
    UserError
        As for :func:`repeat_run`; a link leads out of the folder.
    """
    place = next((place for place, word in enumerate(argv) if word.startswith(RESUME)), None)
    if place is None:
        return
    folder = unquote_value(argv[place].removeprefix(RESUME))
    record = read_record(argv[place], Path(folder) / "sweep.json")
    overrides = [*(record.get("params") or []), *record["overrides"]]
    own = ("-", "hydra.", "hydra/", "sweep.")
    if any(("=" in word or word.startswith("~")) and not word.startswith(own) for word in argv[1:]):
        overrides = []
    else:
        check_config_dir("sweep", record, argv, verb)
        line = _line(verb, [*argv, *overrides])
        check_recorded_overrides(overrides, argv, lambda: f"If the sweep is yours, type all of its settings: {line}")
    check_links(Path(folder))
    goes_on = [*_search_settings(Path(folder) / "search.json", argv), format_override("hydra.sweep.dir", folder)]
    argv[place + 1 : place + 1] = [*overrides, *_reading_alone(overrides, argv), *goes_on]
    if not {"-m", "--multirun"} & set(argv):
        argv.insert(1, "--multirun")  # not among the settings, which argparse wants to be one block


def read_record(asked: str, path: Path) -> dict[str, Any]:
    """A record whose ``overrides`` are a list of texts.

    Raises
    ------
    UserError
        There is none.
    """
    try:
        record = read_json(path.parent, path.name)
        if record is None:
            raise ValueError(f"there is no {path.name}")
        for name in {"overrides", "params"} & record.keys():
            texts(record[name], name)
        return {**record, "overrides": list(record["overrides"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        kind = "run" if path.name == "run.json" else "sweep"
        raise UserError(f"{asked}: no record of a {kind} there ({error}). Give a folder with {path.name}.") from error


def config_folders(argv: Sequence[str]) -> list[Path]:
    """Where this command's config groups are: what was typed as ``--config-dir``, and ``conf/``."""
    own = option_parser().parse_known_args(argv[1:])[0].config_dir
    return [*([Path(own)] if own else []), CONF]


def check_config_dir(kind: str, record: dict[str, Any], argv: Sequence[str], verb: str) -> None:
    """A config folder of a record is only shown: who wants its files used types it, since they can name any code."""
    folder = record.get("config_dir")
    if isinstance(folder, str) and len(config_folders(argv)) == 1:
        option = ["--config-dir", display_path(Path(folder))]
        raise UntrustedError(
            f"This {kind} used {_printable(' '.join(option))}. Type: {_line(verb, [argv[0], *option, *argv[1:]])}\n"
            "(Its files can name any code: only if that folder is one that you trust.)"
        )


def check_recorded_overrides(overrides: Sequence[str], argv: Sequence[str], advice: Callable[[], str]) -> None:
    """Raise a ForeignError, with some advice, unless a record may bring these overrides back."""
    try:
        check_overrides(overrides, config_folders(argv))
    except UntrustedError as error:
        word = next(word for word in argv if word.startswith((FROM_RUN, RESUME)))
        raise UntrustedError(f"{_printable(word)}: {error}. {advice()}") from error


def _values_to_type(overrides: Sequence[str], folder: Path, argv: Sequence[str]) -> str:
    """What to type in the place of refused words, such as a job's number: the values that the run had."""
    folders = config_folders(argv)
    refused = [word for word in overrides if override_rejection(word, folders)]
    try:
        values = iter_leaves(read_yaml(folder, "config.yaml"))
    except (OSError, Unreadable):
        values = {}
    had = {word: values[override_key(word)] for word in refused if override_key(word) in values}
    words = [f"{word.partition('=')[0]}={_as_word(value)}" for word, value in had.items()]
    words = [word for word in words if not override_rejection(word, folders)]
    return f"Type the values that it had behind it: {shell_join(words)}" if words else NO_VALUES


def _as_word(value: Any) -> str:
    if isinstance(value, str):
        return format_override("", value).removeprefix("=")
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _first_part(override: str) -> str:
    return re.split(r"[./@]", override_key(override))[0]


def _reading_alone(overrides: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Data that only a record names are opened for reading alone: see :class:`fcnlab.data.DataModule`."""
    named = any(_first_part(word) in OF_DATA for word in overrides)
    return (
        [RECORDED] if named and not {"data.root", "sweep.recorded"} & {override_key(word) for word in argv[1:]} else []
    )


def _line(verb: str, argv: Sequence[str]) -> str:
    """What to type: this command, whose verb cli.py has rewritten."""
    words = [word for word in argv[1:] if not word.startswith("--config-name=")]
    return shell_join(["fcnlab", verb, *words])


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)


def _search_settings(path: Path, argv: Sequence[str]) -> list[str]:
    """What made a sweep a search, where it was one, but for what is typed anew."""
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
