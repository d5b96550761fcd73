"""What a foreign file may name: settings of a recorded command, and components of a checkpoint or of a run's data.

A record is data. What may come back from one is listed here, and all else is refused: Hydra would load any YAML that a
group option leads to, call whatever a ``_target_`` names, and put secrets of the environment in the place of
``${oc.env:X}``.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path, PurePath
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    OverrideType,
    QuotedString,
    RangeSweep,
)
from hydra.errors import HydraException

from fcnlab.config.components import iter_components, iter_strings, locate
from fcnlab.errors import UserError
from fcnlab.library_internals.hydra import value_of

# What a checkpoint's model and a run's data are built of, by the places where it may stand.
MODEL_COMPONENTS = {
    "": ("fcnlab.models.FCN",),
    "backbone": (
        "fcnlab.models.AlexNet",
        "fcnlab.models.CaffeNet",
        "fcnlab.models.GoogLeNet",
        "fcnlab.models.GoogLeNetBN",
        "fcnlab.models.ResNet",
        "fcnlab.models.Tiny",
        "fcnlab.models.VGG16",
    ),
}
DATA_COMPONENTS = {
    "": ("fcnlab.data.DataModule",),
    "dataset": (
        "fcnlab.data.open_camvid",
        "fcnlab.data.open_folder",
        "fcnlab.data.open_sbd",
        "fcnlab.data.open_shapes",
        "fcnlab.data.open_voc",
    ),
    "augment": (
        "fcnlab.data.transforms.none",
        "fcnlab.data.transforms.patches",
        "fcnlab.data.transforms.standard",
        "fcnlab.data.transforms.strong",
    ),
}
DEFERRED = ("dataset", "augment")  # functions that code calls later, and that must not be called while building
Places = Mapping[str, Sequence[str]]

TYPED = ("hydra", "stages", "sweep", "trust")  # first parts that no record sets
OUTPUT_PATH_KEYS = (
    "archive",
    "cache_dir",
    "dirpath",
    "folder",
    "save_dir",
)  # last parts: where something is written or got
SENT_TO = ("entity", "host", "workspace")  # last parts of a logger's settings: whose dashboard gets images and scores
WRITERS = ("callbacks", "logger", "trainer")  # what writes files, and could be led out of the run's folder by a name
KEY = re.compile(r"[A-Za-z0-9][\w-]*([./][A-Za-z0-9][\w-]*)*", re.ASCII)
DIRECTIVE = re.compile(r"_\w*_")  # _target_ and its kind
PLAIN = re.compile(r"\$\{(?!hydra\b)[A-Za-z_]\w*(\.\w+)*\}", re.ASCII)  # an interpolation that only looks up a key
LONGEST = 10_000  # characters of all overrides together, and Hydra takes seconds for them; 150 classes have 5,000
DEEPEST = 10  # brackets in brackets
MOST_INTERPOLATIONS = 8  # each may double what the one before it stands for
LONGEST_SHOWN = 100
# It replaces them, and never writes through them; their targets are absolute, and stay behind when a folder is moved.
LINKS_OF_WANDB = ("latest-run", "debug.log", "debug-internal.log", "debug-core.log")


class UntrustedError(UserError):
    """A foreign file names what it may not."""


def check_overrides(overrides: Sequence[Any], folders: Sequence[Path]) -> None:
    """Refuse the overrides of a record unless all of them are settings of a run, and nothing else.

    ``folders`` hold the config groups: ``conf/``, and what was typed as ``--config-dir`` in this very command.

    Raises
    ------
    ForeignError
        It names the override, and says why.
    """
    if sum(len(str(override)) + 1 for override in overrides) > LONGEST:
        raise UntrustedError(f"its record has overrides of more than {LONGEST} characters; refused")
    for override in overrides:
        why = override_rejection(override, folders)
        if why:
            raise UntrustedError(f"{_shown(override)} in its record is no setting of a run; refused: {why}")
    if sum(override.count("${") for override in overrides) > MOST_INTERPOLATIONS:
        raise UntrustedError(f"its record has more than {MOST_INTERPOLATIONS} interpolations; refused")


def override_rejection(override: Any, folders: Sequence[Path]) -> str:
    """Why an override may not come from a record; empty where it may."""
    if not isinstance(override, str):
        return "it is no text"
    if _depth(override) > DEEPEST:
        return f"it has more than {DEEPEST} brackets in each other"
    if "$" in PLAIN.sub("", override):
        return "of interpolations only a plain ${key.path} may come from a record"
    try:
        parsed = OverridesParser.create().parse_override(override)
        return _why_not_parsed(parsed, folders)
    except (HydraException, RecursionError) as error:
        return f"Hydra cannot read it ({type(error).__name__})"


def _why_not_parsed(override: Override, folders: Sequence[Path]) -> str:
    key, value = override.key_or_group, value_of(override)
    if override.package is not None:
        return "a package (@) never comes from a record"
    if override.type is not OverrideType.DEL and override.value_type is None:
        return "it has no value"
    if isinstance(value, dict) or not any((folder / key).is_dir() for folder in folders):
        return next(filter(None, (setting_rejection(path, leaf) for path, leaf in _leaves(value, key))), "")
    return setting_rejection(key, None) or next(
        filter(None, (_why_no_option(key, option, folders) for option in _options(value, key, folders))), ""
    )


def setting_rejection(path: str, value: Any) -> str:
    """Why a setting may not get this value from a record; empty where it may."""
    parts = re.split(r"[./]", path)
    if any(map(DIRECTIVE.fullmatch, parts)):
        return "code is named by a YAML of your config folder: put it there, and give --config-dir FOLDER"
    if not KEY.fullmatch(path):
        return "it is no plain key"
    if parts[0] in TYPED:
        return f"{parts[0]} is only ever typed"
    if parts[-1] in OUTPUT_PATH_KEYS:
        return "a record does not say where files are written or unpacked"
    if parts[0] == "logger" and parts[-1] in SENT_TO and value is not None:
        return "a record does not say to whom anything is sent"
    if parts[0] in WRITERS and isinstance(value, str) and _leads_out(value):
        return "a record does not lead out of the run's folder"
    if not isinstance(value, str | int | float | bool | None):
        return f"it holds a {type(value).__name__}"
    return ""


def _depth(text: str) -> int:
    return max(accumulate((char in "([{") - (char in ")]}") for char in text), default=0)


def _leads_out(value: str) -> bool:
    is_address = "://" in value  # file:///etc is no absolute path
    return is_address or PurePath(value).is_absolute() or ".." in PurePath(value).parts or value.startswith("~")


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every scalar of a parsed value with the path of its setting; lists and sweeps count as values of one."""
    if isinstance(value, dict):
        for key, child in value.items():
            name = _text(key)
            free = re.fullmatch(r"data\.dataset\.\w+", path) and not DIRECTIVE.fullmatch(name)  # names of classes, say
            yield from _leaves(child, path if free else f"{path}.{name}")
        if not value:
            yield path, None
    elif isinstance(value, (list, ChoiceSweep)):
        for child in value if isinstance(value, list) else value.list:
            yield from _leaves(child, path)
        yield path, None
    elif isinstance(value, (RangeSweep, IntervalSweep)):
        yield path, None
    else:
        yield path, value.text if isinstance(value, QuotedString) else value


def _text(value: Any) -> str:
    return value.text if isinstance(value, QuotedString) else str(value)


def _options(value: Any, group: str, folders: Sequence[Path]) -> Iterable[Any]:
    """The options of a group that an override chooses."""
    if isinstance(value, Glob):
        return value.filter([path.stem for folder in folders for path in (folder / group).glob("*.yaml")])
    chosen = value.list if isinstance(value, ChoiceSweep) else value if isinstance(value, list) else [value]
    return [option.text if isinstance(option, QuotedString) else option for option in chosen]


def _why_no_option(group: str, option: Any, folders: Sequence[Path]) -> str:
    if option is None:
        return ""
    if isinstance(option, Glob):
        return next(
            filter(None, (_why_no_option(group, name, folders) for name in _options(option, group, folders))), ""
        )
    name = str(option)
    if "$" in name or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        return f"{group} has no such option"
    files = [folder / group / (name if name.endswith(".yaml") else f"{name}.yaml") for folder in folders]
    found = [path.resolve() for path in files if path.is_file()]
    homes = [folder.resolve() for folder in folders]
    if not found:
        return f"{group} has no such option here; one of your own needs --config-dir FOLDER"
    if not all(any(path.is_relative_to(home) for home in homes) for path in found):
        return f"{group}/{name}.yaml leads out of its config folder"
    return ""


def check_components(tree: Any, places: Places, packages: Sequence[str], source: str) -> None:
    """Refuse a config from a file unless every component in it is one of a short list, and stands where it belongs.

    ``packages`` are those that the user trusts (``trust=``): their classes and functions may stand anywhere, and hold
    any of the list.

    Raises
    ------
    ForeignError
        Another component, or one of the list at another place; one that would be called in another way than it is meant
        to be; one that a trusted package merely imports; an interpolation.
    """
    for text in iter_strings(tree):
        if "$" in text:
            raise UntrustedError(
                f"{source} holds {text!r:.200}: a recorded config has no interpolation. It is refused."
            )
    nodes = list(iter_components(tree))
    own = {path for path, node in nodes if _is_of(node["_target_"], packages)}
    for path, node in nodes:
        name = node["_target_"]
        if _is_of(name, packages):
            continue
        allowed = [each for names in places.values() for each in names] if _above(path) in own else places.get(path, ())
        if name not in allowed:
            raise UntrustedError(
                f"{source} names {path or 'it'}._target_={name!r:.200}, and building that would run code. Allowed here:"
                f" {', '.join(allowed) or 'none'}. If you trust the file and the package of a class of your own, add"
                " trust=[PACKAGE]."
            )
        _check_directives(path, node, source)


def _above(path: str) -> str | None:
    """The path of the component that has another one among its arguments; None for the outermost."""
    return re.sub(r"(\[\d+\])+$", "", path).rpartition(".")[0] if path else None


def _check_directives(path: str, node: Mapping[str, Any], source: str) -> None:
    wanted: dict[str, Any] = {"_target_": node["_target_"]}
    if path.rpartition(".")[2] in DEFERRED:
        wanted["_partial_"] = True
    given = {key: value for key, value in node.items() if isinstance(key, str) and DIRECTIVE.fullmatch(key)}
    if given != wanted or given.get("_partial_", True) is not True:
        raise UntrustedError(
            f"{source} would call {node['_target_']} by {', '.join(sorted(given))}, and may only by"
            f" {', '.join(sorted(wanted))}. It is refused."
        )


def trusted_packages(tree: Any, places: Places = MODEL_COMPONENTS) -> list[str]:
    """What to type so that a config of one's own is trusted: ``trust=[PACKAGE]``, or nothing."""
    listed = {name for names in places.values() for name in names}
    names = [str(node["_target_"]) for _, node in iter_components(tree)]
    packages = dict.fromkeys(name.partition(".")[0] for name in names if name not in listed)
    return [f"trust=[{','.join(packages)}]"] if packages else []


def _is_of(name: Any, packages: Sequence[str]) -> bool:
    """Whether a class or function of this name is defined in one of the packages, and not merely imported there."""
    inside = tuple(f"{package}." for package in packages)
    if not isinstance(name, str) or not name.startswith(inside):
        return False
    try:
        target = locate(name)
    except (ImportError, AttributeError, ValueError):
        return False
    return f"{getattr(target, '__module__', '')}.".startswith(inside)


def check_links(folder: Path) -> None:
    """Refuse to write into a folder in which a link leads out of it: what is written there would be written elsewhere.

    Raises
    ------
    ForeignError
        It names the link.
    """
    home = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and path.name not in LINKS_OF_WANDB and not path.resolve().is_relative_to(home):
            raise UntrustedError(
                f"{_shown(str(path))} is a link that leads out of the folder: remove it. Nothing is run"
            )


def _shown(value: Any) -> str:
    """A foreign text as it may stand in a message: no control characters, not endless."""
    text = repr(value) if not str(value).isprintable() else str(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
