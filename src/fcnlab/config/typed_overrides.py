"""Checks of overrides as they are typed, before Hydra composes them: where Hydra's own messages mislead."""

import re
from collections.abc import Iterable, Iterator, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from fcnlab.config.locations import experiment_command, options_in
from fcnlab.config.overrides import check_interpolations, in_quotes, shell_join
from fcnlab.errors import UserError, first_line

OPTIONAL = {"train": ("experiment",), "eval": ("model", "data", "experiment"), "predict": ("data",)}  # null by default


def without_null(verb: str, words: Iterable[str]) -> Iterator[str]:
    """Replace ``logger=null`` by ``logger=none``; Hydra ends in a traceback where a group is null.

    Raises
    ------
    UserError
        The group has no such option.
    """
    for word in words:
        group, _, value = word.partition("=")
        value = "null" if value.lower() == "null" else value  # for Hydra the same
        among = "null" in re.split(r"[,()]", value.lower()) and not value.startswith(("{", "["))
        if not among or not re.fullmatch(r"[a-z/]+", group) or not (options := options_in(group)):
            yield word
        elif value != "null":
            raise UserError(f"{word}: a sweep cannot include null. Choose from: {', '.join(options)}")
        elif "none" in options:
            yield f"{group}=none"
        elif group not in OPTIONAL.get(verb, ()):
            raise UserError(f"{group}=null: null is not an option. Choose from: {', '.join(options)}")


def check_grammar(words: Iterable[str], is_sweep: bool) -> None:
    """Refuse an override that Hydra cannot parse, and show how to type it: Hydra shows its lexer's error.

    Raises
    ------
    UserError
        An override cannot be parsed.
    """
    parser = OverridesParser.create()
    for word in words:
        try:
            parser.parse_override(word)
            check_interpolations(word)
        except HydraException as error:
            readable = in_quotes(word, is_sweep)
            reason = f"quote its value: {shell_join([readable])}" if readable else f"{first_line(error)} (key=value)"
            raise UserError(f"{word} cannot be parsed: {reason}") from error


def check_groups(verb: str, words: Sequence[str]) -> None:
    """Refuse settings of a group that has no default and is not chosen.

    Raises
    ------
    UserError
        There is such a setting.
    """
    for group in {"eval": ("data", "model"), "predict": ("data",)}.get(verb, ()):
        settings = [word for word in words if word.startswith(f"{group}.")]
        if settings and not any(word.startswith((f"{group}=", "experiment=")) for word in words):
            raise UserError(f"{settings[0]} has no effect, because no {group} is chosen. Add {group}=OPTION")


def check_experiment(verb: str, words: Sequence[str]) -> None:
    """Refuse an experiment of another verb, which its header names.

    Raises
    ------
    UserError
        The experiment is of another command.
    """
    chosen = next((word.removeprefix("experiment=") for word in words if word.startswith("experiment=")), "")
    for name in chosen.split(","):
        command = experiment_command(name)
        if command not in (None, verb):
            raise UserError(f"experiment={name} is for fcnlab {command}. Type fcnlab {command} experiment={name}")
