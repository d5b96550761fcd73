"""The config tree: where it lies, its root, and the check of every value before anything is built.

Nothing here imports torch until a config's targets are looked up.
"""

import difflib
import inspect
import math
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from fcnlab.config.components import (
    DIRECTIVES,
    Settings,
    dotted_name,
    holds_component,
    iter_components,
    iter_leaves,
    iter_strings,
    locate,
    to_plain,
)
from fcnlab.config.external_settings import EXTERNAL_CLASSES
from fcnlab.config.ranges import describe_type, description_of, is_valid
from fcnlab.errors import UserError, first_line

NOT_FOUND = object()  # by a path: it has a key with a dot in it
RESOLVER = re.compile(r"\$\{\s*[\w.]+\s*:")  # in a value: ${oc.env:HOME}, and not ${data.root}
# The first arguments of these components, and some of W&B's, come from fcnlab, which takes them from these settings.
POSITIONAL_ARGUMENTS_FROM_CODE = {
    "augment": ("data.crop_size",),
    "data.augment": ("data.crop_size",),
    "data.dataset": ("data.root", "data.train_list, data.val_list or data.test_list"),
    "optim": ("model",),
    "schedule": ("trainer.max_steps or trainer.max_epochs",),
}
KEYWORD_ARGUMENTS_FROM_CODE = {
    "logger.wandb": {
        "folder": "hydra.run.dir",
        "config": "the settings themselves",
        "job_type": "the verb",
        "run_id": "checkpoint=last with hydra.run.dir=FOLDER, which goes on with its W&B run",
    }
}


class ConfigError(UserError):
    """Settings that do not fit what they configure."""


class EnvironmentVariableNotSet(ConfigError):
    """A variable of the environment is asked for that this machine does not have."""


def looked_up(cfg: DictConfig) -> Settings:
    """What resolvers find for a config's settings (in the environment, say), here and now, by dotted path.

    Settings that cannot be computed here are left out.
    """
    found: Settings = {}
    for path, text in iter_leaves(OmegaConf.to_container(cfg, resolve=False)).items():
        if RESOLVER.search(str(text)):
            with suppress(OmegaConfBaseException):
                value = OmegaConf.select(cfg, path, default=NOT_FOUND)
                value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
                found |= {} if value is NOT_FOUND else iter_leaves(value, path)
    return found


def validate_config(cfg: DictConfig) -> None:
    """Bind every component's settings to its signature, check every value, and report all that does not fit at once.

    Raises
    ------
    ConfigError
        A value that must be given is not; a key that nothing reads, with the nearest that is read; a number that is
        not finite; a target cannot be imported; a required argument is missing; a value is not what fcnlab's own
        annotation says, of components, of roots, or of others' classes (:mod:`fcnlab.config.external_settings`).
    """
    if mistakes := config_mistakes(cfg):
        raise invalid_configuration(mistakes)


def config_mistakes(cfg: DictConfig) -> list[str]:
    """Return what :func:`validate_config` reports, a sentence for each mistake.

    Raises
    ------
    ConfigError
        An interpolation cannot be resolved.
    """
    raw = OmegaConf.to_container(cfg, resolve=False)
    mistakes = [f"{path} is not set. Set it as {path}=VALUE." for path in sorted(_missing_values(raw))]
    if mistakes:
        return mistakes
    values = _resolved(cfg)
    mistakes += [f"{path} must be a finite number, got {number}." for path, number in _non_finite_numbers(values)]
    root = OmegaConf.get_type(cfg)
    if is_dataclass(root):
        mistakes += _schema_errors(values, root, list(iter_strings(raw)))
    for path, node in iter_components(values):
        mistakes += _component_errors(path, node)
    return mistakes


def invalid_configuration(mistakes: Sequence[str]) -> ConfigError:
    """Return the error that lists all mistakes of a configuration, one on the line itself."""
    lines = [mistakes[0]] if len(mistakes) == 1 else ["", *(f"  {mistake}" for mistake in mistakes)]
    return ConfigError(
        f"Invalid configuration: {lines[0]}" if len(lines) == 1 else "Invalid configuration:" + "\n".join(lines)
    )


def _non_finite_numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Numbers that are nan or infinite, with their paths: no setting means them."""
    if isinstance(value, (dict, list, tuple)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in pairs:
            yield from _non_finite_numbers(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, value


def _schema_errors(values: Mapping[str, Any], root: type, texts: Sequence[str], path: str = "") -> list[str]:
    """What a root of the config, or a part of it that has a schema, lacks the meaning for.

    ``+key=value`` adds any key to a root. One that an interpolation in ``texts`` reads has a use.
    """
    hints, problems = get_type_hints(root, include_extras=True), []
    for key, value in values.items():
        if key not in hints:
            if path or not any(re.search(rf"\$\{{.*\b{re.escape(key)}\b", text) for text in texts):
                problems.append(unknown_key(path, key, set(hints)))
        elif is_dataclass(hints[key]) and isinstance(value, dict):
            problems += _schema_errors(value, hints[key], texts, f"{path}{key}.")
        elif not is_valid(value, hints[key]):
            problems.append(type_error(f"{path}{key}", value, hints[key]))
    return problems


def _missing_values(value: Any, path: str = "") -> Iterator[str]:
    """The paths of "???". (OmegaConf's own search resolves interpolations, and fails at one that leads to a "???".)"""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _missing_values(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for place, child in enumerate(value):
            yield from _missing_values(child, f"{path}[{place}]")
    elif value == MISSING:
        yield path


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    try:
        return to_plain(cfg)
    except InterpolationResolutionError as error:  # of a key that is not there, or of count_classes
        what = first_line(error).rpartition("while resolving interpolation: ")[2]
        kind = EnvironmentVariableNotSet if what.startswith("Environment variable ") else ConfigError
        raise kind(f"{error.full_key} cannot be computed: {what}") from error


def check_requirements(cfg: DictConfig, words: Sequence[str]) -> None:
    """Refuse an experiment without the settings that it cannot give by itself, such as the path of a file.

    (A value of ``???`` would do nothing there: composing never replaces a value by it.)

    Raises
    ------
    ConfigError
        Some of ``cfg.needs`` is not among the words that were typed.
    """
    typed = {word.partition("=")[0].lstrip("+") for word in words}
    missing = [f"  {key}=VALUE: {what}" for key, what in cfg.needs.items() if key not in typed]
    if missing:
        raise ConfigError("the experiment needs to be given\n" + "\n".join(missing))


def _component_errors(path: str, node: dict[str, Any]) -> list[str]:
    try:
        target = locate(node["_target_"])
    except (ImportError, AttributeError, ValueError) as error:
        return [f"{path}._target_={node['_target_']} cannot be imported: {error}."]
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # some builtins have none: Hydra will tell
        return []
    switch = {"enabled": bool} if path.startswith("callbacks.") else {}  # read by tasks, not by the callback
    given = {key: value for key, value in node.items() if key not in DIRECTIVES.keys() | switch}
    annotations = {**DIRECTIVES, **switch, **_annotations(target, parameters)}
    names = {name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}
    anything = len(names) < len(parameters)
    unknown = [key for key in given if key not in names and not anything]
    ours = _arguments_from_code(path, parameters) if node.get("_partial_") else {}
    return [
        *(f"{path}.{key} is set by fcnlab. Remove it, and set {ours[key]} instead." for key in given if key in ours),
        *(
            type_error(f"{path}.{key}", value, annotations[key])
            for key, value in node.items()
            if key in annotations.keys() - ours and not holds_component(value) and not is_valid(value, annotations[key])
        ),
        *(unknown_key(f"{path}.", key, names, f"of {node['_target_']}") for key in unknown),
        *(
            f"{path}.{name} is not set, and {dotted_name(target)} requires it."
            for name in _missing_arguments(node, parameters)
        ),
        *(f"{path}.{conflict}" for conflict in _conflicts(target, given)),
    ]


def _arguments_from_code(path: str, parameters: Mapping[str, inspect.Parameter]) -> dict[str, str]:
    """The arguments of a component that no config can give, and which settings they come from."""
    return dict(
        zip(parameters, POSITIONAL_ARGUMENTS_FROM_CODE.get(path, ()), strict=False)
    ) | KEYWORD_ARGUMENTS_FROM_CODE.get(path, {})


def _annotations(target: Callable, parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """fcnlab's own annotations, of its classes and functions, and of others'; theirs are not always meant, but switches
    are: a text there, such as "no", would count as true."""
    if (target.__module__ or "").startswith("fcnlab."):
        return {name: parameter.annotation for name, parameter in parameters.items()}
    foreign = EXTERNAL_CLASSES.get(dotted_name(target))
    ours = get_type_hints(foreign.settings, include_extras=True) if foreign else {}
    return {name: hint for name, hint in _hints(target, parameters).items() if _is_switch(hint)} | ours


def _hints(target: Callable, parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """What each argument should be; a truth value where nothing but a default says so."""
    try:
        hints = get_type_hints(target.__init__ if isinstance(target, type) else target)
    except (NameError, TypeError, AttributeError):  # names that only a type checker imports
        hints = {}
    return {name: hints.get(name, type(parameter.default)) for name, parameter in parameters.items()}


def _is_switch(hint: Any) -> bool:
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return bool in kinds and all(
        kind in (bool, type(None)) or get_origin(kind) in (Literal, Union, types.UnionType) for kind in kinds
    )


def _conflicts(target: Callable, given: Mapping[str, Any]) -> list[str]:
    foreign = EXTERNAL_CLASSES.get(dotted_name(target))
    return list(foreign.conflicts(given)) if foreign else []


def _missing_arguments(node: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """The arguments that a component needs and is not given; of a part of one, code may give them."""
    if node.get("_partial_"):
        return []
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = (one.name for one in parameters.values() if one.default is one.empty and one.kind in kinds)
    return [name for name in needed if name not in node]


def unknown_key(path: str, key: str, names: set[str], owner: str = "", inside: str = "") -> str:
    """Return what is wrong with a key that is not among ``names``, with the nearest that is.

    ``path`` stands before the key, and ``inside`` behind it, in the setting that was typed.
    """
    near = difflib.get_close_matches(str(key), names, n=1)
    hint = f"Did you mean {path}{near[0]}{inside}?" if near else f"Available: {', '.join(sorted(names - {'self'}))}."
    return f"Unknown key {path}{key}{inside}{f' {owner}' if owner else ''}. {hint}"


def type_error(path: str, value: Any, annotation: Any) -> str:
    """Return what a setting must be, and what it is instead."""
    allowed, colon, reason = (description_of(annotation) or describe_type(annotation)).partition(": ")
    return f"{path} must be {allowed}, got {value!r}{colon}{reason}."
