"""Overrides as they are typed: reading them, and printing commands that work when typed."""

import re
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from fcnlab.files.reading import display_path


def run_folder() -> Path:
    """Where this run leaves its files."""
    return Path(HydraConfig.get().runtime.output_dir)


def was_set_on_command_line(key: str) -> bool:
    """Whether a setting was typed."""
    return any(word.lstrip("+").startswith(f"{key}=") for word in plain_overrides(HydraConfig.get().overrides.task))


def chosen_options() -> dict[str, str]:
    """Which option of each group was chosen."""
    return {group: str(option) for group, option in HydraConfig.get().runtime.choices.items()}


def identifying_options_of_run() -> dict[str, str]:
    """The options of fcnlab's own groups by the group's last word: what runs are told apart by."""
    chosen = {
        group.rpartition("/")[2]: option for group, option in chosen_options().items() if not group.startswith("hydra/")
    }
    return {group: option for group, option in chosen.items() if option != "None"}


def resume_override(folder: Path) -> str:
    """The word to type to go on with a sweep."""
    return format_override("sweep.resume", display_path(folder))


SEARCHPATH = "hydra.searchpath"


def format_override(key: str, value: object) -> str:
    """``key='value'``, quoted so that a path is one whatever characters it holds; a plain path needs no quotes."""
    plain = re.fullmatch(r"[\w.-]*/[\w./-]+", str(value), re.ASCII)
    return f"{key}={value if plain else quote_value(value)}"


def typed_value(value: Any) -> str:
    """A scalar as it is typed behind the equals sign: ``null``, ``true``, ``0.1``, and text in quotes."""
    if isinstance(value, str):
        return quote_value(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def quote_value(value: object) -> str:
    """A value as Hydra takes it for text, whatever characters it holds: a backslash counts before a quote alone."""
    text = re.sub(r"(\\+)(?='|\Z)", r"\1\1", str(value)).replace("'", "\\'")
    return f"'{text}'"


def in_quotes(word: str, is_list: bool) -> str | None:
    """A word that Hydra cannot read, with those of its values in quotes that need them; None where that is no help.

    ``is_list``: a comma separates the values of a sweep.
    """

    def reads(text: str) -> bool:
        try:
            return bool(OverridesParser.create().parse_override(text))
        except HydraException:
            return False

    key, separator, value = word.partition("=")
    values = value.split(",") if is_list else [value]
    safe = [each if reads(f"x={each}") else quote_value(each) for each in values]
    repaired = f"{key}={','.join(safe)}"
    return repaired if separator and not value.startswith(("'", '"', "[", "{")) and reads(repaired) else None


def unquote_value(text: str) -> str:
    """What Hydra takes a word's value for; what it could not read stays as it is."""

    try:
        return str(OverridesParser.create().parse_override(f"x={text}").value()) if text[:1] in "'\"" else text
    except HydraException:
        return text


def override_key(override: str) -> str:
    """The setting of an override, or the group."""
    return override.partition("=")[0].lstrip("+~")


def sets_dictionary(override: str) -> bool:
    """Whether an override sets some values inside its key, and leaves the others there."""
    return override.partition("=")[2].startswith("{")


def shell_join(words: Sequence[str]) -> str:
    """Words as a shell takes them, in quotes that can be read, and by characters that can be shown."""
    return " ".join(map(_as_shell_word, words))


def _as_shell_word(word: str) -> str:
    if not word.isprintable():  # it would be shown in another way than it is typed
        return f"$'{''.join(map(_in_ansi_quotes, word))}'"
    return f'"{word}"' if "'" in word and not re.search(r'["$`\\!]', word) else quote(word)


def _in_ansi_quotes(character: str) -> str:
    """A character inside ``$'...'``, as bash, zsh and ksh have it: what cannot be shown by its bytes."""
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    errors = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in character.encode(errors=errors))


def shell_override(key: str, value: object) -> str:
    """A setting as it is typed in a shell."""
    return shell_join([format_override(key, value)])


def plain_overrides(words: Any) -> list[str]:
    """A command's overrides, ``hydra.overrides.task`` or ``.hydra``, as a plain list.

    Iterating over the node itself would resolve their interpolations: here and now, whoever they are for.
    """
    plain: Any = OmegaConf.to_container(words, resolve=False) if OmegaConf.is_config(words) else words
    return list(plain)


def config_dir(hydra: Any) -> str | None:
    """The folder that the user's --config-dir added."""
    sources = hydra.runtime.config_sources
    return next((source.path for source in sources if source.provider == "command-line"), None)


def command_options(hydra: Any) -> list[str]:
    """What is typed before the words of a command, and what a record only shows: where further options are found."""
    folder = config_dir(hydra)
    return [*(["--config-dir", folder] if folder else []), *searchpath(hydra)]


def searchpath(hydra: Any) -> list[str]:
    """The words that say where further options are found."""
    return [word for word in plain_overrides(hydra.overrides.hydra) if override_key(word) == SEARCHPATH]
