"""Validation of a configuration: every value is checked against its annotation before anything is built.

Nothing here imports torch until the targets of a config are imported.
"""

import difflib
import inspect
import math
import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from fcnlab.config.components import (
    DIRECTIVES,
    Settings,
    dotted_name,
    holds_component,
    iter_components,
    iter_strings,
    leaves_of,
    locate,
    to_plain,
)
from fcnlab.config.external_settings import external_class
from fcnlab.config.overrides import quote_value, shell_join
from fcnlab.config.ranges import describe_type, description_of, has_meaning, is_valid
from fcnlab.errors import UserError, first_line

NOT_FOUND = object()  # for a path with a key that contains a dot
RESOLVER = re.compile(r"\$\{\s*[\w.]+\s*:")  # in a value: ${oc.env:HOME}, and not ${data.root}
FROM_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:[^{}]*\}")  # a value that is nothing but a variable
EXTRAS = {"segmentation_models_pytorch": "baselines"}  # of fcnlab, by the package that they install
# fcnlab itself passes the first arguments of these components, and some of W&B's; it takes them from these settings.
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
        "run_id": "checkpoint=last with hydra.run.dir=FOLDER, which resumes the W&B run",
        "recorded_host": "fcnlab wandb push",
    }
}


class ConfigError(UserError):
    """Settings are unknown, missing or invalid."""


class EnvironmentVariableNotSet(ConfigError):
    """A setting reads an environment variable that is not set."""


def looked_up(cfg: DictConfig) -> Settings:
    """Return the current values of settings that use a resolver, such as ``${oc.env:HOME}``, by dotted path.

    Settings that cannot be resolved here are omitted.
    """
    found: Settings = {}
    for path, text in leaves_of(OmegaConf.to_container(cfg, resolve=False)).items():
        if RESOLVER.search(str(text)):
            with suppress(OmegaConfBaseException):
                value = OmegaConf.select(cfg, path, default=NOT_FOUND)
                value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
                found |= {} if value is NOT_FOUND else leaves_of(value, path)
    return found


def validate_config(cfg: DictConfig) -> None:
    """Check every value and every component's arguments, and report all mistakes at once.

    Raises
    ------
    ConfigError
        A required value is missing; a key is unknown, reported with the nearest known one; a number is not finite; a
        target cannot be imported; a value does not match the annotation of a component, of a root schema, or of an
        external class (:mod:`fcnlab.config.external_settings`).
    """
    if mistakes := config_mistakes(cfg):
        raise invalid_configuration(mistakes)


def config_mistakes(cfg: DictConfig, refused: Collection[str] = ()) -> list[str]:
    """Return what :func:`validate_config` reports, a sentence for each mistake.

    ``refused`` are settings that were typed with values that do not compose: they are not reported as missing.

    Raises
    ------
    ConfigError
        An interpolation cannot be resolved.
    """
    raw = OmegaConf.to_container(cfg, resolve=False)
    missing = set(_missing_values(raw))
    if missing:
        return [f"{path} is not set. Set it as {path}=VALUE." for path in sorted(missing - set(refused))]
    values = _resolved(cfg)
    mistakes = [f"{path} must be a finite number, got {number}." for path, number in _non_finite_numbers(values)]
    root = OmegaConf.get_type(cfg)
    if is_dataclass(root):
        mistakes += _schema_errors(values, root, list(iter_strings(raw)))
    for path, node in iter_components(values):
        mistakes += _component_errors(path, node)
    texts, resolved = leaves_of(raw), leaves_of(values)
    return [f"{mistake}{_decoding_hint(mistake.partition(' must be ')[0], texts, resolved)}" for mistake in mistakes]


def _decoding_hint(path: str, texts: Settings, values: Settings) -> str:
    """Return how to read a value from the environment as what it looks like; empty unless it is a number, say."""
    text, value = str(texts.get(path)), values.get(path)
    if not FROM_ENVIRONMENT.fullmatch(text) or not isinstance(value, str):
        return ""
    with suppress(HydraException):
        decoded = OverridesParser.create().parse_override(f"x={value}").value()
        if isinstance(decoded, int | float | list | dict | None):
            decoding = f"${{oc.decode:{text}}}"  # quoted, since Hydra does not parse one interpolation inside another
            quoted = quote_value(decoding) if '"' in text else f'"{decoding}"'
            return f" A value of the environment is a text. Type {shell_join([f'{path}={quoted}'])}"
    return ""


def invalid_configuration(mistakes: Sequence[str]) -> ConfigError:
    """Return the error that lists all mistakes of a configuration, one on the line itself."""
    lines = [mistakes[0]] if len(mistakes) == 1 else ["", *(f"  {mistake}" for mistake in mistakes)]
    return ConfigError(
        f"Invalid configuration: {lines[0]}" if len(lines) == 1 else "Invalid configuration:" + "\n".join(lines)
    )


def _non_finite_numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield numbers that are nan or infinite, with their paths."""
    if isinstance(value, (dict, list, tuple)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in pairs:
            yield from _non_finite_numbers(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, value


def _schema_errors(values: Mapping[str, Any], root: type, texts: Sequence[str], path: str = "") -> list[str]:
    """Return the unknown keys and invalid values of a root schema, or of a part of it that has a schema.

    ``+key=value`` may add any key to a root if an interpolation in ``texts`` reads it.
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
    """Yield the paths of "???". (OmegaConf's own search fails at an interpolation that leads to a "???".)"""
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
        reason = first_line(error).rpartition("while resolving interpolation: ")[2]
        kind = EnvironmentVariableNotSet if reason.startswith("Environment variable ") else ConfigError
        raise kind(f"{error.full_key} cannot be resolved: {reason}") from error


def check_requirements(cfg: DictConfig, words: Sequence[str]) -> None:
    """Check that the settings which an experiment requires, such as the path of a file, were typed.

    (A value of ``???`` in its file has no effect: composition never replaces a value by it.)

    Raises
    ------
    ConfigError
        A key of ``cfg.needs`` is not among the overrides that were typed.
    """
    typed = {word.partition("=")[0].lstrip("+") for word in words}
    missing = [f"  {key}=VALUE: {description}" for key, description in cfg.needs.items() if key not in typed]
    if missing:
        raise ConfigError("The experiment requires settings that were not given:\n" + "\n".join(missing))


def _component_errors(path: str, node: dict[str, Any]) -> list[str]:
    try:
        target = locate(node["_target_"])
    except (ImportError, AttributeError, ValueError) as error:
        return [f"{path}._target_={node['_target_']} cannot be imported: {error}.{_installation_hint(error)}"]
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # some builtins have none: Hydra reports a wrong argument
        return []
    switch = {"enabled": bool} if path.startswith("callbacks.") else {}  # read by tasks, not by the callback
    given = {key: value for key, value in node.items() if key not in DIRECTIVES.keys() | switch}
    annotations = {**DIRECTIVES, **switch, **_annotations(target, parameters)}
    names = {name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}
    takes_any = len(names) < len(parameters)
    unknown = [key for key in given if key not in names and not takes_any]
    from_code = _arguments_from_code(path, parameters) if node.get("_partial_") else {}
    return [
        *(
            f"{path}.{key} is set by fcnlab. Remove it, and set {from_code[key]} instead."
            for key in given
            if key in from_code
        ),
        *(
            type_error(f"{path}.{key}", value, annotations[key])
            for key, value in node.items()
            if key in annotations.keys() - from_code
            and not holds_component(value)
            and not is_valid(value, annotations[key])
        ),
        *(unknown_key(f"{path}.", key, names, f"of {node['_target_']}") for key in unknown),
        *(
            f"{path}.{name} is not set, and {dotted_name(target)} requires it."
            for name in _missing_arguments(node, parameters)
        ),
        *(f"{path}.{conflict}" for conflict in _conflicts(target, given)),
    ]


def _installation_hint(error: Exception) -> str:
    """Return how to install an optional package that is not there; empty for packages that fcnlab does not know."""
    extra = EXTRAS.get(error.name or "") if isinstance(error, ModuleNotFoundError) else None
    return f" Install it: pip install 'fcnlab[{extra}]'." if extra else ""


def _arguments_from_code(path: str, parameters: Mapping[str, inspect.Parameter]) -> dict[str, str]:
    """Return the arguments of a component that fcnlab passes, and the settings that they come from."""
    return dict(
        zip(parameters, POSITIONAL_ARGUMENTS_FROM_CODE.get(path, ()), strict=False)
    ) | KEYWORD_ARGUMENTS_FROM_CODE.get(path, {})


def _annotations(target: Callable, parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Return the annotations that values are checked against.

    Of external classes these are fcnlab's own, those with a ``Meaning`` of fcnlab, and those of booleans, where a
    string such as "no" would count as true; their other annotations are not always exact.
    """
    if (target.__module__ or "").startswith("fcnlab."):
        return {name: parameter.annotation for name, parameter in parameters.items()}
    foreign = external_class(target)
    own_hints = get_type_hints(foreign.settings, include_extras=True) if foreign else {}
    hints = _hints(target, parameters).items()
    return {name: hint for name, hint in hints if _is_switch(hint) or has_meaning(hint)} | own_hints


def _hints(target: Callable, parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Return the type hint of each argument, or the type of its default where it has none."""
    try:
        hints = get_type_hints(target.__init__ if isinstance(target, type) else target, include_extras=True)
    except (NameError, TypeError, AttributeError):  # names that only a type checker imports
        hints = {}
    return {name: hints.get(name, type(parameter.default)) for name, parameter in parameters.items()}


def _is_switch(hint: Any) -> bool:
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return bool in kinds and all(
        kind in (bool, type(None)) or get_origin(kind) in (Literal, Union, types.UnionType) for kind in kinds
    )


def _conflicts(target: Callable, given: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with settings together; a class of fcnlab may have a static method ``conflicts``."""
    foreign = external_class(target)
    conflicts = foreign.conflicts if foreign else getattr(target, "conflicts", None)
    return list(conflicts(given)) if conflicts else []


def _missing_arguments(node: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """Return the required arguments that are missing; code may pass those of a partial."""
    if node.get("_partial_"):
        return []
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    required = (each.name for each in parameters.values() if each.default is each.empty and each.kind in kinds)
    return [name for name in required if name not in node]


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
