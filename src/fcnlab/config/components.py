"""Components of a config, which have a ``_target_``, and their values."""

import importlib
import traceback
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Literal

from omegaconf import OmegaConf

from fcnlab.errors import first_line

DIRECTIVES = {  # Hydra's own keys and their types
    "_target_": str,
    "_partial_": bool,
    "_recursive_": bool,
    "_convert_": Literal["none", "partial", "object", "all"],
    "_args_": list,
}


def is_component(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def to_plain(node: Any) -> dict[str, Any]:
    """Return a config node as plain values with resolved interpolations, as objects and checkpoints store it."""
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def iter_components(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every node with a ``_target_``, with its path; deeper nodes come first."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from iter_components(child, f"{path}.{key}" if path else str(key))
        if "_target_" in value:
            yield path, value
    elif isinstance(value, (list, tuple)):  # Hydra builds what is in a tuple, too
        for place, child in enumerate(value):
            yield from iter_components(child, f"{path}[{place}]")


def locate(name: Any) -> Callable:
    """Return the class or function of a dotted name.

    Raises
    ------
    ImportError, AttributeError, ValueError
        The name is not dotted, or it names no class or function, or the code of its module fails.
    """
    module, _, attribute = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    if not module or module.startswith("."):
        raise ValueError(f"{name!r} is not a dotted name")
    target = getattr(_imported(module), attribute)
    if not callable(target):
        raise ValueError(f"it is a {type(target).__name__}, not a class or function")
    return target


def _imported(module: str) -> ModuleType:
    """Import a module; whatever its code raises, SystemExit included, is an ImportError that says where."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise
    except (Exception, SystemExit) as error:
        raise ImportError(f"its code fails: {_place_of(error)}{type(error).__name__}: {first_line(error)}") from error


def _place_of(error: BaseException) -> str:
    """Return the file and line of an error while a module is imported; a syntax error states its own."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    return "" if isinstance(error, SyntaxError) else f"{frames[-1].filename}:{frames[-1].lineno}: "


def dotted_name(target: Callable) -> str:
    return f"{target.__module__}.{getattr(target, '__qualname__', target)}"


def iter_strings(value: Any) -> Iterator[str]:
    """Yield every string in a tree, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from iter_strings(key)
            yield from iter_strings(child)
    elif isinstance(value, (list, tuple)):
        for child in value:
            yield from iter_strings(child)


def holds_component(value: Any) -> bool:
    return next(iter_components(value), None) is not None


Settings = dict[str, Any]


def leaves_of(tree: Any, path: str = "") -> Settings:
    """Return every value of a tree by its dotted path; lists count as values."""
    if not isinstance(tree, dict) or not tree:
        return {path: tree} if path else {}
    subtrees = [leaves_of(value, f"{path}.{key}" if path else str(key)) for key, value in tree.items()]
    return {name: value for leaves in subtrees for name, value in leaves.items()}
