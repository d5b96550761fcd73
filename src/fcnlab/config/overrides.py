"""Overrides as they are typed: parsing them, and printing commands that can be typed."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fcnlab.errors import UserError, first_line
from fcnlab.files.reading import display_path


def resume_override(folder: Path) -> str:
    """Return the override that resumes a sweep."""
    return f"sweep.resume={format_path(folder)}"


SEARCHPATH = "hydra.searchpath"
COMBINATIONS = "sweep.combinations"
ESCAPED_DOUBLE = re.compile(r'''(?<!\\)"([^\\"']*(?:\\"[^\\"']*)+)"''')  # a text with escaped quotes, and no others
ESCAPED_SINGLE = re.compile(r"""(?<!\\)'([^\\"']*(?:\\'[^\\"']*)+)'""")
KEY_ENDS, BACKSLASH = re.compile(r"[\\()\[\]{}:=, ]"), r"\\\g<0>"
INTERPOLATION_START = re.compile(r"(\\*)\$\{")  # with backslashes, of which OmegaConf keeps half
ESCAPED_START = re.compile(r"((?:\\\\)*)\\\$\{")
PLAIN_NAMES = re.compile(r"\[('?)[\w./~-]+\1(,('?)[\w./~-]+\3)*\]", re.ASCII)  # a list of names that need no quotes
PLAIN_ENTRY = re.compile(r"(file://)?/[\w./-]+", re.ASCII)  # of a searchpath, which needs no quotes


def format_override(key: str, value: object) -> str:
    """Return ``key='value'``."""
    return f"{key}={format_value(value)}"


def format_value(value: object) -> str:
    """Return a text quoted so that it stays one value, taken literally; a plain path needs no quotes."""
    plain = re.fullmatch(r"[\w.-]*/[\w./-]+", str(value), re.ASCII)
    return str(value) if plain else quote_value(INTERPOLATION_START.sub(r"\1\1\\${", str(value)))


def format_path(path: Path) -> str:
    """Return a path as a value, without quotes if Hydra reads it as it is."""
    text = display_path(path)
    is_plain = re.fullmatch(r"[\w./-]+", text, re.ASCII) and _unquoted_value(text) == text
    return text if is_plain else format_value(text)


def format_mapping(values: Mapping[str, str]) -> str:
    """Return a mapping of texts as Hydra reads it: a backslash before each character that ends a key."""
    entries = (f"{re.sub(KEY_ENDS, BACKSLASH, key)}: {format_value(value)}" for key, value in values.items())
    return f"{{{', '.join(entries)}}}"


def typed_value(value: Any) -> str:
    """A scalar as it is typed behind the equals sign: ``null``, ``true``, ``0.1``, and text in quotes."""
    if isinstance(value, str):
        return quote_value(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def quote_value(value: object) -> str:
    """Return a value quoted as text for Hydra, with any characters: a backslash escapes only before a quote."""
    text = re.sub(r"(\\+)(?='|\Z)", r"\1\1", str(value)).replace("'", "\\'")
    return f"'{text}'"


def in_quotes(word: str, is_list: bool) -> str | None:
    """Return an override that Hydra cannot parse with quotes where its values need them; None if quotes do not help.

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


def check_interpolations(word: str) -> None:
    """Check that OmegaConf can read the interpolations of an override, which Hydra keeps in its configuration.

    Raises
    ------
    UserError
        It cannot, as with escaped quotes in an interpolation.
    """
    if "${" not in word:
        return
    try:
        OmegaConf.create([word])
    except OmegaConfBaseException as error:
        readable = _without_escaped_quotes(word)
        hint = f"Type it without escaped quotes: {shell_join([readable])}" if readable else "Check its ${...}"
        raise UserError(f"{word} cannot be parsed: {first_line(error)}. {hint}") from error


def _without_escaped_quotes(word: str) -> str | None:
    """Return an override whose texts need no escaped quotes; None if Hydra or OmegaConf would not read it either."""
    repaired = ESCAPED_DOUBLE.sub(lambda match: _requoted(match[1].replace('\\"', '"'), "'"), word)
    repaired = ESCAPED_SINGLE.sub(lambda match: _requoted(match[1].replace("\\'", "'"), '"'), repaired)
    try:
        OmegaConf.create([repaired])
        OverridesParser.create().parse_override(repaired)
    except (HydraException, OmegaConfBaseException):
        return None
    return repaired


def _requoted(text: str, quote_mark: str) -> str:
    """Return a text as a value: without quotes if it is an interpolation that needs none."""
    return text if _unquoted_value(text) == text else f"{quote_mark}{text}{quote_mark}"


def _unquoted_value(text: str) -> object:
    """Return the value that Hydra reads from a text without quotes; None if it cannot parse it."""
    try:
        return OverridesParser.create().parse_override(f"x={text}").value()
    except HydraException:
        return None


def unquote_value(text: str) -> str:
    """Return the text that is read from a value, without interpolating it.

    A value without quotes, or one that Hydra cannot parse, is returned unchanged.
    """
    if text[:1] not in "'\"":
        return text
    try:
        value = str(OverridesParser.create().parse_override(f"x={text}").value())
    except HydraException:
        return text
    return ESCAPED_START.sub(lambda match: f"{match[1][::2]}${{", value)


def override_key(override: str) -> str:
    """Return the key, or the config group, of an override."""
    return override.partition("=")[0].lstrip("+~")


def sets_dictionary(override: str) -> bool:
    """Return whether an override sets a dictionary, which is merged into the values at its key."""
    return override.partition("=")[2].startswith("{")


def list_as_typed(override: str, keys: Sequence[str]) -> str:
    """Return ``runs=['A','B']`` as ``runs=A,B``, if its key is in ``keys`` and its names need no quotes."""
    key, _, value = override.partition("=")
    names = value[1:-1].replace("'", "")
    return f"{key}={names}" if key in keys and PLAIN_NAMES.fullmatch(value) and names != "null" else override


def shell_join(words: Sequence[str]) -> str:
    """Return words quoted for a shell, in printable characters."""
    return " ".join(map(_as_shell_word, words))


def _as_shell_word(word: str) -> str:
    if not word.isprintable():  # it would not be printed as it is typed
        return f"$'{''.join(map(_in_ansi_quotes, word))}'"
    return f'"{word}"' if "'" in word and not re.search(r'["$`\\!]', word) else quote(word)


def _in_ansi_quotes(character: str) -> str:
    """Return a character for ``$'...'`` of bash, zsh and ksh; an unprintable one as its bytes."""
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    errors = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in character.encode(errors=errors))


def combinations_override(combinations: Sequence[Sequence[str]]) -> str:
    """Return the override that repeats a sweep with each of some lists of overrides."""
    lists = ",".join(f"[{','.join(map(quote_value, words))}]" for words in combinations)
    return f"{COMBINATIONS}=[{lists}]"


def typed_combinations(words: Sequence[str]) -> Any:
    """Return the value of ``sweep.combinations=`` on a command line; None without one, or if Hydra cannot parse it."""
    word = next((word for word in reversed(words) if override_key(word) == COMBINATIONS), f"{COMBINATIONS}=null")
    try:
        return OverridesParser.create().parse_override(word).value()
    except HydraException:
        return None


def shell_override(key: str, value: object) -> str:
    """Return a setting as it is typed in a shell."""
    return shell_join([format_override(key, value)])


def plain_overrides(words: Any) -> list[str]:
    """Return a command's overrides, ``hydra.overrides.task`` or ``.hydra``, as a plain list.

    Iterating over the node itself would resolve their interpolations too early.
    """
    plain: Any = OmegaConf.to_container(words, resolve=False) if OmegaConf.is_config(words) else words
    return list(plain)


def config_dir(hydra: Any) -> str | None:
    """Return the folder that --config-dir added."""
    sources = hydra.runtime.config_sources
    return next((source.path for source in sources if source.provider == "command-line"), None)


def command_options(hydra: Any) -> list[str]:
    """Return the options of a command that say where more config files are."""
    folder = config_dir(hydra)
    return [*(["--config-dir", folder] if folder else []), *searchpath(hydra)]


def searchpath(hydra: Any) -> list[str]:
    """Return the overrides of ``hydra.searchpath`` in Hydra's node."""
    return searchpath_overrides(plain_overrides(hydra.overrides.hydra))


def searchpath_overrides(words: Sequence[str]) -> list[str]:
    """Return the overrides of ``hydra.searchpath`` among words."""
    return [word for word in words if override_key(word) == SEARCHPATH]


def searchpath_folders(words: Sequence[str]) -> list[Path]:
    """Return the folders of ``hydra.searchpath`` on a command line. Hydra uses its first override only."""
    word = next((word for word in words if word.startswith(f"{SEARCHPATH}=")), "")
    return [Path(folder) for entry in _searchpath_entries(word) if (folder := _folder_of_entry(entry))]


def absolute_searchpath(word: str) -> str:
    """Return an override of ``hydra.searchpath`` with absolute folders, as Hydra has that of --config-dir.

    Any other word is returned unchanged.
    """
    entries = _searchpath_entries(word)
    absolute = [
        f"{entry.removesuffix(folder)}{Path(folder).absolute()}" if (folder := _folder_of_entry(entry)) else entry
        for entry in entries
    ]
    if absolute == entries:
        return word
    return f"{SEARCHPATH}=[{','.join(each if PLAIN_ENTRY.fullmatch(each) else quote_value(each) for each in absolute)}]"


def _searchpath_entries(word: str) -> list[str]:
    """Return the entries of an override of ``hydra.searchpath``; none for another word, or one that Hydra refuses."""
    try:
        value = OverridesParser.create().parse_override(word).value() if word.startswith(f"{SEARCHPATH}=") else []
    except HydraException:
        return []
    return value if isinstance(value, list) and all(isinstance(entry, str) for entry in value) else []


def _folder_of_entry(entry: str) -> str:
    """Return the folder that an entry of ``hydra.searchpath`` names; empty if it is none, such as ``pkg://PACKAGE``."""
    folder = entry.removeprefix("file://")
    return "" if "://" in folder or "$" in folder else folder
