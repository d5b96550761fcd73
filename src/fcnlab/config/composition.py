"""Composition of a command's configuration, with all of its mistakes in one answer.

Hydra stops at the first override that it refuses. Only then does anything here run: the refused override is corrected
to the nearest valid one, or dropped, until the rest composes, and what was composed is validated.
"""

import copy
import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from fcnlab.config.hydra_values import hydra_values_of, register_resolvers
from fcnlab.config.locations import CONF, config_roots, files_of, group_and_option, group_of, options_in
from fcnlab.config.overrides import override_key
from fcnlab.errors import UserError, first_line
from fcnlab.library_internals.hydra import composed_through, config_files_kept, config_loader, version_base

MOST_RUNS_OF_SWEEP = 20  # that are composed to find mistakes
UNKNOWN_KEY = re.compile(r"Could not override '(?P<key>[^']+)'")
EXISTING_KEY = re.compile(r"Could not append to config\. An item is already at '(?P<key>[^']+)'")
ABSENT_KEY = re.compile(r"Could not delete (?:from config\. )?'(?P<key>[^']+)'")
INVALID_VALUE = re.compile(r"Error merging override (?P<word>.+)", re.DOTALL)
SWEEP_OF_RUN = re.compile(
    r"(?:Ambiguous value for argument|Sweep parameters) '(?P<word>.+?)'(?:\n| requires)", re.DOTALL
)
OF_PLUGIN = re.compile(r"hydra\.(?P<group>launcher|sweeper)\.(?P<key>.+)")

Load = Callable[..., DictConfig]


@dataclass(frozen=True)
class RefusedOverride:
    """An override that Hydra refuses, what to say of it once the rest is composed, and what may have been meant."""

    place: int
    describe: Callable[[DictConfig | None], str]
    corrected: str | None = None
    group: str | None = None  # whose option is unknown, so that settings inside it cannot be judged


@contextmanager
def mistakes_collected(verb: str) -> Iterator[None]:
    """While entered, a composition that fails raises a ConfigError that lists all mistakes of the command.

    This, and a sweep, compose many times, so the config files are read only once.
    """
    with config_files_kept(), composed_through(partial(_with_all_mistakes, verb), lambda config: config):
        yield


def _with_all_mistakes(verb: str, load: Load, arguments: dict[str, Any]) -> DictConfig:
    try:
        return load(**arguments)
    except (HydraException, OmegaConfBaseException) as error:
        if not arguments.get("validate_sweep_overrides", True):  # Hydra looks for hydra.mode, and ignores errors
            raise
        mistakes = find_mistakes(verb, load, arguments)
        if not mistakes:
            raise
        from fcnlab.config.validation import invalid_configuration

        raise invalid_configuration(mistakes) from error


def compose_command(verb: str, words: Sequence[str], config_dir: str | None = None) -> DictConfig:
    """Return the configuration of a single run with its ``hydra`` node, as the command line composes it.

    ``config_dir`` is the folder of ``--config-dir``. No global state of Hydra is used, and none is left changed.

    Raises
    ------
    UserError
        Overrides do not compose: the message lists all mistakes.
    """
    load = config_loader(CONF, config_dir).load_configuration
    register_resolvers()
    try:
        with version_base(), config_files_kept():
            return _with_all_mistakes(
                verb, load, {"config_name": verb, "overrides": list(words), "run_mode": RunMode.RUN}
            )
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(first_line(error)) from error


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Return a copy without ``hydra``; it keeps the root's schema, which a masked copy would lose."""
    task = copy.deepcopy(cfg)
    with open_dict(task):
        del task["hydra"]
    return task


def find_mistakes(verb: str, load: Load, arguments: Mapping[str, Any]) -> list[str]:
    """Return all mistakes of a command line that does not compose, in sentences, each once.

    Empty where Hydra's error is about no override.
    """
    words = list(arguments["overrides"])
    refused, words, cfg, last_error = _compose_without_refused(verb, load, arguments, words)
    mistakes = [override.describe(cfg) for override in sorted(refused, key=lambda override: override.place)]
    if last_error is not None:
        return [*mistakes, first_line(last_error)] if mistakes else []
    if cfg is not None and arguments["run_mode"] == RunMode.MULTIRUN:
        for run in _runs_of_sweep(words):
            mistakes += find_mistakes_of_run(verb, load, {**arguments, "run_mode": RunMode.RUN, "overrides": run})
    elif cfg is not None:
        typed = arguments["overrides"]
        mistakes += _invalid_values(cfg, {override_key(typed[override.place]) for override in refused})
    return list(dict.fromkeys(mistakes))


def find_mistakes_of_run(verb: str, load: Load, arguments: Mapping[str, Any]) -> list[str]:
    """Return the mistakes of a run, which may compose."""
    try:
        return _invalid_values(load(**arguments))
    except (HydraException, OmegaConfBaseException):
        return find_mistakes(verb, load, arguments)


def _compose_without_refused(
    verb: str, load: Load, arguments: Mapping[str, Any], words: Sequence[str]
) -> tuple[list[RefusedOverride], list[str], DictConfig | None, Exception | None]:
    """Compose what Hydra accepts; return what it refuses, the words that are left, and the error that remains."""
    left: dict[int, str] = dict(enumerate(words))
    refused: list[RefusedOverride] = []
    while True:
        try:
            cfg = load(**{**arguments, "overrides": list(left.values())})
            return refused, list(left.values()), cfg, None
        except (HydraException, OmegaConfBaseException) as error:
            override = _refused_by(verb, error, left)
            if override is None:
                return refused, list(left.values()), None, error
            is_corrected = left[override.place] != words[override.place]
            refused.append(override)
            if override.corrected is None or is_corrected:
                del left[override.place]
                if override.group:
                    inside = f"{override.group}."
                    left = {place: word for place, word in left.items() if not override_key(word).startswith(inside)}
            else:
                left[override.place] = override.corrected


def _refused_by(verb: str, error: Exception, words: Mapping[int, str]) -> RefusedOverride | None:
    """The override that an error of Hydra's is about; None where it is about none that can be named."""
    if isinstance(error, MissingConfigException):
        return _unknown_option(error, words)
    text = str(error)
    for pattern, describe in (
        (UNKNOWN_KEY, _unknown_key),
        (EXISTING_KEY, _existing_key),
        (ABSENT_KEY, _absent_key),
    ):
        if match := pattern.match(text):
            place = next((place for place, word in words.items() if override_key(word) == match["key"]), None)
            return None if place is None else describe(verb, error, place, words[place])
    for pattern, describe in ((INVALID_VALUE, _invalid_value), (SWEEP_OF_RUN, _sweep_of_run)):
        if match := pattern.match(text):
            place = next((place for place, word in words.items() if word == match["word"]), None)
            return None if place is None else describe(verb, error, place, words[place])
    return None


def _unknown_option(error: MissingConfigException, words: Mapping[int, str]) -> RefusedOverride | None:
    path = str(error.missing_cfg_file)
    for place, word in words.items():
        group, _, value = word.partition("=")
        prefix = "+" * (len(group) - len(group.lstrip("+")))
        group = group.lstrip("+")
        name = path.removeprefix(f"{group}/")
        if name == path or not re.search(rf"(?<![\w/.-]){re.escape(name)}(?![\w/-])", value):
            continue
        near = nearest_options(error)[1]
        corrected = f"{prefix}{group}={value.replace(name, near[0])}" if near else None
        return RefusedOverride(place, lambda _: describe_unknown_option(error), corrected, group.replace("/", "."))
    return None


def nearest_options(error: MissingConfigException) -> tuple[str, list[str], list[str]]:
    """Return ``GROUP=NAME`` of an option that does not exist, the nearest name that does, and all names."""
    group, name = group_and_option(str(error.missing_cfg_file))
    names = set(error.options or ()) | set(options_in(group))  # Hydra takes folders of options for other groups
    return f"{group}={name}", difflib.get_close_matches(name, sorted(names), n=1), sorted(names)


def describe_unknown_option(error: MissingConfigException) -> str:
    option, near, names = nearest_options(error)
    source = re.match(r"In '([^']+)': ", str(error))
    where = f" in {source[1]}.yaml" if source and "/" in source[1] else ""
    hint = f"Did you mean {option.partition('=')[0]}={near[0]}? " if near else ""
    available = f"Available options: {', '.join(names)}." if names else ""
    return f"Unknown option {option}{where}. {hint}{available}".rstrip()


def _unknown_key(verb: str, error: Exception, place: int, word: str) -> RefusedOverride:
    key = str(getattr(error.__cause__, "full_key", None) or override_key(word))  # of a dictionary the key inside
    if override_key(word).startswith(f"{key}."):  # a parent of it is unknown
        key = override_key(word)
    if "." not in key or "/" in key:
        groups = {group_of(path, root) for root in config_roots() for path in root.rglob("*.yaml")} - {"."}
        if key in groups and "/" in key:
            return RefusedOverride(place, lambda _: describe_unused_group(word, key))
        near = difflib.get_close_matches(key, sorted(groups), n=1)
        option = word.partition("=")[2]
        group, in_folder = group_and_option(f"{key}/{option}")
        if group != key and in_folder in options_in(group):  # loss/mylab=smoothed
            sentence = f"Unknown config group '{key}'. Did you mean {group}={in_folder}?"
            return RefusedOverride(place, lambda _: sentence, f"{group}={in_folder}")
        exists = bool(near) and near[0] != key and option in options_in(near[0])
        if exists or (near and "/" in key):
            sentence = f"Unknown config group '{key}'. Did you mean '{near[0]}'?"
            return RefusedOverride(place, lambda _: sentence, f"{near[0]}={option}" if exists else None)
    return RefusedOverride(place, lambda cfg: describe_unknown_key(verb, key, cfg))


def describe_unused_group(word: str, group: str) -> str:
    """Return why an option of a group inside another one cannot be chosen: the outer option does not use the group."""
    outer = group.rpartition("/")[0]
    users = [name for name, path in files_of(outer).items() if _uses(path, group.rpartition("/")[2])]
    others = f", or choose {' or '.join(f'{outer}={name}' for name in users)}" if users else ""
    return f"{word} has no effect, since the chosen option of {outer} has no {group}. Remove it{others}."


def _uses(option: Path, group: str) -> bool:
    text = option.read_text(encoding="utf-8", errors="replace")  # it may be of a plugin
    return re.search(rf"^  - {group}:|^defaults: *\[.*\b{group}:", text, re.MULTILINE) is not None


def describe_unknown_key(verb: str, key: str, cfg: DictConfig | None) -> str:
    """Return what is wrong with a key that a configuration does not have, with the nearest that it has."""
    from fcnlab.config.validation import unknown_key

    if plugin := OF_PLUGIN.match(key):
        return unknown_plugin_setting(verb, plugin["group"], plugin["key"])
    node, parent, left = cfg, "", key.split(".")
    while len(left) > 1 and isinstance(node, DictConfig) and left[0] in node:
        node = None if OmegaConf.is_missing(node, left[0]) else node[left[0]]
        parent, left = f"{parent}{left[0]}.", left[1:]
    if not isinstance(node, DictConfig):
        return f"Unknown key {key}." if cfg is None else f"Unknown key {key}: {parent[:-1]} has no keys."
    return unknown_key(
        parent,
        left[0],
        {str(name) for name in node},
        f"of fcnlab {verb}" if not parent else "",
        ".".join(["", *left[1:]]),
    )


def unknown_plugin_setting(verb: str, group: str, key: str) -> str:
    """Return what to do about a setting of another launcher or sweeper: Hydra advises a plus, which fails as well."""
    return (
        f"hydra.{group}.{key} is not a setting of the chosen hydra/{group}. Remove it, or choose the {group} that has"
        f" it. To see the settings of one: fcnlab {verb} hydra/{group}=OPTION --cfg hydra -p hydra.{group}"
    )


def _existing_key(verb: str, error: Exception, place: int, word: str) -> RefusedOverride:
    sentence = f"{word} adds a key that exists already. Type {word.lstrip('+')}."
    return RefusedOverride(place, lambda _: sentence, word.lstrip("+"))


def _absent_key(verb: str, error: Exception, place: int, word: str) -> RefusedOverride:
    return RefusedOverride(place, lambda _: f"{word} removes a key that does not exist.")


def _invalid_value(verb: str, error: Exception, place: int, word: str) -> RefusedOverride:
    key, reason = override_key(word), first_line(error.__cause__ or error)

    def describe(cfg: DictConfig | None) -> str:
        from fcnlab.config.validation import type_error

        annotation = annotation_at(OmegaConf.get_type(cfg), key) if cfg is not None else None
        value = value_of_word(word)
        return f"{word} is invalid: {reason}." if annotation is None else type_error(key, value, annotation)

    return RefusedOverride(place, describe)


def annotation_at(schema: Any, key: str) -> Any:
    """Return the annotation of a setting in the schema of a root; None where the schema has none."""
    for name in key.split("."):
        if not is_dataclass(schema):
            return None
        schema = get_type_hints(schema, include_extras=True).get(name)
    return schema


def value_of_word(word: str) -> Any:
    return OverridesParser.create().parse_override(word).value()


def _sweep_of_run(verb: str, error: Exception, place: int, word: str) -> RefusedOverride:
    key, _, values = word.partition("=")
    sentence = f"{word} lists several values. Add -m to run a sweep over them, or type '{key}=[{values}]' for one list."
    return RefusedOverride(place, lambda _: sentence)


def _runs_of_sweep(words: Sequence[str]) -> Iterator[list[str]]:
    """The words of a few runs of a sweep, in which each listed value occurs at least once."""
    values = [_single_words(override) for override in OverridesParser.create().parse_overrides(list(words))]
    count = max(map(len, values), default=0)
    for number in range(count):
        yield [each[min(number, len(each) - 1)] for each in values if each]


def _single_words(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep() or isinstance(override.value(), Glob):
        return []
    return [
        f"{override.get_key_element()}={value}"
        for value in islice(override.sweep_string_iterator(), MOST_RUNS_OF_SWEEP)
    ]


def _invalid_values(cfg: DictConfig, refused: Collection[str] = ()) -> list[str]:
    """What validation finds in a configuration that composes; nothing where the task completes it first.

    ``refused`` are settings that it lacks because their values are reported already.
    """
    from fcnlab.config.validation import ConfigError, config_mistakes

    task = without_hydra(cfg)
    if is_completed_later(task):
        return []
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.runtime.output_dir = "."
        cfg.hydra.job.id, cfg.hydra.job.num = "0", 0
    try:
        with hydra_values_of(cfg):
            return config_mistakes(task, refused)
    except ConfigError:  # an interpolation that cannot be resolved; perhaps of a dropped override
        return []


def is_completed_later(task: DictConfig) -> bool:
    """Return whether the verb completes a configuration before it checks it."""
    return bool(
        task.get("stages") or task.get("from_run") or (task.get("data") is None and task.get("model") is not None)
    )
