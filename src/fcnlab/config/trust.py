"""Allowed contents of foreign files: overrides of a record, and components of a checkpoint or of a run's data.

A record is data. Everything that is not listed here is refused: Hydra would load any YAML that a group option leads to,
call anything that a ``_target_`` names, and replace ``${oc.env:X}`` by secrets of the environment.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fcnlab.config.components import iter_components, iter_strings, locate
from fcnlab.config.locations import group_of
from fcnlab.config.plugins import plugins
from fcnlab.errors import UserError
from fcnlab.files.reading import NUMBER
from fcnlab.library_internals.hydra import value_of

# Networks of libraries that a checkpoint may have, and their arguments. A value is a number, a plain word, or a list of
# these: with other characters, a name could lead to a place from which the library loads something.
SMP = (
    "activation", "classes", "decoder_aspp_dropout", "decoder_aspp_separable", "decoder_atrous_rates",
    "decoder_attention_type", "decoder_channels", "decoder_dropout", "decoder_interpolation", "decoder_merge_policy",
    "decoder_pyramid_channels", "decoder_segmentation_channels", "decoder_use_norm", "encoder_depth", "encoder_name",
    "encoder_output_stride", "encoder_weights", "in_channels", "psp_dropout", "psp_out_channels", "psp_use_norm",
    "upsampling",
)  # fmt: skip
TORCHVISION = ("aux_loss", "num_classes", "weights", "weights_backbone")
SMP_NETWORKS = (
    "DeepLabV3", "DeepLabV3Plus", "FPN", "Linknet", "MAnet", "PAN", "PSPNet", "Segformer", "UPerNet", "Unet",
    "UnetPlusPlus",
)  # fmt: skip
TORCHVISION_NETWORKS = (
    "deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "deeplabv3_resnet101", "fcn_resnet50", "fcn_resnet101",
    "lraspp_mobilenet_v3_large",
)  # fmt: skip
LIBRARY_NETWORKS = {f"segmentation_models_pytorch.{name}": SMP for name in SMP_NETWORKS} | {
    f"torchvision.models.segmentation.{name}": TORCHVISION for name in TORCHVISION_NETWORKS
}
FETCHING = ("encoder_weights", "weights", "weights_backbone")  # arguments with which a library downloads weights
WORD = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
# The components of a checkpoint's model and of a run's data, by the path where each is allowed.
MODEL_COMPONENTS = {
    "": ("fcnlab.models.FCN", "fcnlab.models.Architecture"),
    "backbone": (
        "fcnlab.models.AlexNet",
        "fcnlab.models.CaffeNet",
        "fcnlab.models.GoogLeNet",
        "fcnlab.models.GoogLeNetBN",
        "fcnlab.models.ResNet",
        "fcnlab.models.TimmBackbone",
        "fcnlab.models.Tiny",
        "fcnlab.models.TorchvisionBackbone",
        "fcnlab.models.VGG16",
    ),
    "network": tuple(LIBRARY_NETWORKS),
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
DEFERRED = ("dataset", "augment", "network")  # partials, which code calls later
Places = Mapping[str, Sequence[str]]

TYPED = ("hydra", "stages", "sweep", "trust")  # first parts of keys that a record must not set
# Last parts of keys that name a place to write to or to unpack from.
OUTPUT_PATH_KEYS = ("archive", "cache_dir", "dirpath", "folder", "save_dir")
SENT_TO = ("entity", "host", "workspace")  # last parts of logger keys that name a receiver of images and scores
ARTIFACT_PREFIX = "wandb:"  # of a checkpoint that is downloaded from W&B
WRITERS = ("callbacks", "logger", "trainer")  # they write files, and a name could lead out of the run's folder
KEY = re.compile(r"[A-Za-z0-9][\w-]*([./][A-Za-z0-9][\w-]*)*", re.ASCII)
DIGITS = re.compile(rf"[\d_]{{{NUMBER + 1}}}")
SCHEME = re.compile(r"^[A-Za-z][\w+.-]*:", re.ASCII)
DIRECTIVE = re.compile(r"_\w*_")  # _target_ and its kind
PLAIN = re.compile(r"\$\{(?!hydra\b)[A-Za-z_]\w*(\.\w+)*\}", re.ASCII)  # an interpolation that only looks up a key
LONGEST = 10_000  # characters of all overrides together, and Hydra takes seconds for them; 150 classes have 5,000
DEEPEST = 10  # brackets in brackets
MOST_INTERPOLATIONS = 8  # each may double the size of the one before
OWN_FOLDER = "--config-dir FOLDER (in Python: config_dir=FOLDER)"
GLOBAL_PACKAGE = re.compile(r"^# *@package +_global_ *$", re.MULTILINE)
LONGEST_SHOWN = 100
# W&B replaces these links and never writes through them; their absolute targets break when a folder is moved.
LINKS_OF_WANDB = ("latest-run", "debug.log", "debug-internal.log", "debug-core.log")


class UntrustedError(UserError):
    """A foreign file contains something that is not allowed."""


def check_overrides(overrides: Sequence[Any], folders: Sequence[Path]) -> None:
    """Check that the overrides of a record only set allowed settings of a run.

    ``folders`` contain the config groups: ``conf/``, and those that this command adds.

    Raises
    ------
    UntrustedError
        It names the override, and says why.
    """
    if are_long(overrides):
        raise UntrustedError(f"its record is refused: its overrides have more than {LONGEST} characters")
    for override in overrides:
        reason = override_rejection(override, folders)
        if reason:
            raise UntrustedError(f"its record is refused, because of the override {_shown(override)}: {reason}")
    if sum(override.count("${") for override in overrides) > MOST_INTERPOLATIONS:
        raise UntrustedError(f"its record is refused: it has more than {MOST_INTERPOLATIONS} interpolations")


def are_long(overrides: Sequence[Any]) -> bool:
    """Return whether Hydra would take more than seconds to parse overrides."""
    return sum(len(str(override)) + 1 for override in overrides) > LONGEST


def override_rejection(override: Any, folders: Sequence[Path]) -> str:
    """Return why a record must not contain an override; empty if it may."""
    if not isinstance(override, str):
        return "it is not a string"
    if are_long([override]):
        return f"it has {LONGEST} characters or more"
    if _depth(override) > DEEPEST:
        return f"its brackets are nested more than {DEEPEST} deep"
    if "$" in PLAIN.sub("", override):
        return "a record may contain no interpolation except a plain ${key.path}"
    if DIGITS.search(override):  # Python refuses to convert 4,300 digits, and no setting has so many
        return f"it contains a number of more than {NUMBER} digits"
    try:
        parsed = OverridesParser.create().parse_override(override)
        return _why_not_parsed(parsed, folders)
    except (HydraException, RecursionError, ValueError) as error:
        return f"Hydra cannot parse it ({type(error).__name__})"
    except OSError as error:
        return f"no option can have this name ({error.strerror})"


def _why_not_parsed(override: Override, folders: Sequence[Path]) -> str:
    key, value = override.key_or_group, value_of(override)
    if override.package is not None:
        return "a record must not set a package (@)"
    if override.type is not OverrideType.DEL and override.value_type is None:
        return "it has no value"
    if isinstance(value, dict) or not any((folder / key).is_dir() for folder in folders):
        return next(filter(None, (setting_rejection(path, leaf) for path, leaf in _leaves(value, key))), "")
    return setting_rejection(key, None) or next(
        filter(None, (_why_no_option(key, option, folders) for option in _options(value, key, folders))), ""
    )


def setting_rejection(path: str, value: Any) -> str:
    """Return why a record must not give a setting this value; empty if it may."""
    parts = re.split(r"[./]", path)
    if any(map(DIRECTIVE.fullmatch, parts)):
        return f"a record must not name code. Put it into a YAML file of your config folder, and add {OWN_FOLDER}"
    if not KEY.fullmatch(path):
        return "its key contains special characters"
    if parts[0] in TYPED:
        return f"a record must not set {parts[0]}"
    if parts[-1] in OUTPUT_PATH_KEYS:
        return "a record must not choose where files are written or unpacked"
    if parts[0] == "logger" and parts[-1] in SENT_TO and value is not None:
        return "a record must not choose who receives data"
    if parts[:2] == ["model", "named_weights"] or (parts[:2] == ["model", "network"] and parts[-1] in FETCHING):
        return "" if value is None else "a record must not choose what is downloaded"
    if parts[:2] == ["model", "network"] and isinstance(value, str) and not WORD.fullmatch(value):
        return "a library could load something from such a name"
    if parts[0] == "checkpoint" and isinstance(value, str) and value.startswith(ARTIFACT_PREFIX):
        return "a record must not choose what is downloaded"
    if parts[0] in WRITERS and isinstance(value, str) and "$" in value:
        return (
            "a record may contain no interpolation for what writes files: its value could lead out of the run's folder"
        )
    if parts[0] in WRITERS and isinstance(value, str) and _leads_out(value):
        return "a record must not lead out of the run's folder"
    if not isinstance(value, str | int | float | bool | None):
        return f"it contains a {type(value).__name__}"
    return ""


def _depth(text: str) -> int:
    return max(accumulate((char in "([{") - (char in ")]}") for char in text), default=0)


def _leads_out(value: str) -> bool:
    path = SCHEME.sub("", value, count=1)
    is_address = ":/" in value  # file:///etc is no absolute path, and neither is file:/etc
    return is_address or PurePath(path).is_absolute() or ".." in PurePath(path).parts or path.startswith("~")


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every scalar of a parsed value with the path of its setting; items of lists and sweeps share one path."""
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
    """Return the options of a group that an override chooses."""
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
        return f"{group} has no such option here; an option of your own needs {OWN_FOLDER}, or its plugin installed"
    if not all(any(path.is_relative_to(home) for home in homes) for path in found):
        return f"{group}/{name}.yaml leads out of its config folder"
    return ""


def model_components(folders: Sequence[Path] = ()) -> Places:
    """Return the components that the model of a checkpoint may have.

    They are those of fcnlab, and what the config files of installed plugins and of ``folders`` name at the same path:
    a checkpoint only chooses among classes that a plugin, or a folder that the user has typed, offers as options.
    """
    return _with_own(MODEL_COMPONENTS, {"model": ""}, folders)


def data_components(folders: Sequence[Path] = ()) -> Places:
    """Return the components that the data of a run may have, in the same way."""
    return _with_own(DATA_COMPONENTS, {"data": "", "augment": "augment"}, folders)


def _with_own(places: Places, groups: Mapping[str, str], folders: Sequence[Path]) -> Places:
    """Add the components of config files; ``groups`` maps a group to the path of its config."""
    merged = {path: list(names) for path, names in places.items()}
    for folder in [*folders, *(plugin.conf for plugin in plugins())]:
        for path, name in _named_components(folder, [*groups, "experiment"]):
            group, _, inside = path.partition(".")
            if group in groups:
                place = ".".join(filter(None, (groups[group], inside)))
                merged.setdefault(place, []).append(name)
    return merged


def _named_components(folder: Path, groups: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the path in a configuration and the ``_target_`` of each component of some groups of config files."""
    for file in (file for group in groups for file in sorted((folder / group).rglob("*.yaml"))):
        try:
            text = file.read_text(encoding="utf-8")
            tree = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException):
            continue  # Hydra reports it where the file is used
        package = "" if GLOBAL_PACKAGE.search(text) else group_of(file, folder).replace("/", ".")
        yield from ((path, str(node["_target_"])) for path, node in iter_components(tree, package))


def check_components(tree: Any, places: Places, packages: Sequence[str], source: str) -> None:
    """Check that every component of a foreign config is on a short list, and at its usual path.

    ``packages`` are those that the user trusts (``trust=``): their classes and functions may be anywhere, and contain
    any component of the list.

    Raises
    ------
    UntrustedError
        Another component, or one at another path; one with other directives, such as ``_args_``; one that a trusted
        package only imports; an interpolation.
    """
    for text in iter_strings(tree):
        if "$" in text:
            raise UntrustedError(
                f"{source} is refused: it contains the interpolation {text!r:.200}. A recorded config has none."
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
                f" {', '.join(allowed) or 'none'}. If you trust the package of that class, install it as a plugin, type"
                " the --config-dir whose files name the class, or add trust=[PACKAGE]."
            )
        _check_directives(path, node, source)
        if name in LIBRARY_NETWORKS:
            _check_arguments(path, node, source)


def _above(path: str) -> str | None:
    """Return the path of the component that contains the one at ``path``; None for the outermost."""
    return re.sub(r"(\[\d+\])+$", "", path).rpartition(".")[0] if path else None


def _check_directives(path: str, node: Mapping[str, Any], source: str) -> None:
    expected: dict[str, Any] = {"_target_": node["_target_"]}
    if path.rpartition(".")[2] in DEFERRED:
        expected["_partial_"] = True
    directives = {key: value for key, value in node.items() if isinstance(key, str) and DIRECTIVE.fullmatch(key)}
    if directives != expected or directives.get("_partial_", True) is not True:
        raise UntrustedError(
            f"{source} is refused: it calls {node['_target_']} with {', '.join(sorted(directives))}. Allowed:"
            f" {', '.join(sorted(expected))}."
        )


def _check_arguments(path: str, node: Mapping[str, Any], source: str) -> None:
    """Refuse arguments of a library's network with which it could load something, from a file or from a server."""
    for key, value in node.items():
        if not DIRECTIVE.fullmatch(key) and not _is_plain_argument(node["_target_"], key, value):
            raise UntrustedError(
                f"{source} is refused: it sets {path}.{key}={value!r:.200}, and {node['_target_']} could load something"
                f" with it. If you trust the file and this package, add trust=[{node['_target_'].partition('.')[0]}]."
            )


def _is_plain_argument(target: str, key: str, value: Any) -> bool:
    if key not in LIBRARY_NETWORKS[target]:
        return False
    if key in FETCHING:
        return value is None
    if key == "in_channels":
        return value == 3  # with others, smp makes real tensors even on the device meta, of any size
    return all(
        item is None or isinstance(item, int | float) or (isinstance(item, str) and WORD.fullmatch(item) is not None)
        for item in (value if isinstance(value, list) else [value])
    )


def without_fetching(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model of a checkpoint without what a library's network fetches, whatever its defaults are.

    ``named_weights`` are arguments of that network, which no list covers; the weights of a checkpoint need none.
    """
    network = model.get("network")
    nothing: dict[str, Any] = {}
    if isinstance(network, Mapping) and network.get("_target_") in LIBRARY_NETWORKS:
        fetching = set(FETCHING) & set(LIBRARY_NETWORKS[str(network["_target_"])])
        nothing["network"] = {**network, **dict.fromkeys(sorted(fetching))}
    if "named_weights" in model:
        nothing["named_weights"] = {}
    return {**model, **nothing}


def trusted_packages(tree: Any, places: Places = MODEL_COMPONENTS) -> list[str]:
    """Return the packages for ``trust=`` that make a config trusted; empty if none is needed."""
    listed = {name for names in places.values() for name in names}
    names = [str(node["_target_"]) for _, node in iter_components(tree) if not _is_listed(node, listed)]
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def _is_listed(node: Mapping[str, Any], listed: Collection[str]) -> bool:
    name = node["_target_"]
    arguments = [pair for pair in node.items() if not DIRECTIVE.fullmatch(str(pair[0]))]
    return name in listed and (
        name not in LIBRARY_NETWORKS or all(_is_plain_argument(name, key, value) for key, value in arguments)
    )


def _is_of(name: Any, packages: Sequence[str]) -> bool:
    """Return whether a class or function is defined in one of the packages, not only imported there."""
    inside = tuple(f"{package}." for package in packages)
    if not isinstance(name, str) or not name.startswith(inside):
        return False
    try:
        target = locate(name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name != name.partition(".")[0]:
            return False  # the package is there, and does not have this name
        raise UntrustedError(
            f"{name} is of a package that you trust, and cannot be imported: {error}. Install the package, or set"
            " PYTHONPATH to the folder that contains it"
        ) from error
    except (AttributeError, ValueError):
        return False
    return f"{getattr(target, '__module__', '')}.".startswith(inside)


def check_links(folder: Path) -> None:
    """Refuse a folder with a link that leads out of it, because files would be written elsewhere.

    Raises
    ------
    UntrustedError
        It names the link.
    """
    home = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and path.name not in LINKS_OF_WANDB and not path.resolve().is_relative_to(home):
            raise UntrustedError(
                f"{_shown(str(path))} is a link that leads out of the folder. Remove it. Nothing was run"
            )


def _shown(value: Any) -> str:
    """Return a foreign text for a message, without control characters and shortened."""
    text = repr(value) if not str(value).isprintable() else str(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
