"""What code computes a run: a hash of fcnlab's Python files and of each package that a ``_target_`` comes from.

Changed code is how people change a method, and no setting tells of it. A git commit would: but a commit of docs changes
nothing, and a method's code may lie in no repository.
"""

import hashlib
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fcnlab.config.components import iter_components
from fcnlab.runs.origins import UNKNOWN
from fcnlab.runs.settings import WITHOUT_EFFECT

INSTALLED = {"site-packages", "dist-packages"}
LENGTH = 8  # hexadecimal digits


def source_fingerprints(*trees: Any) -> dict[str, str]:
    """The state of the code by package: a hash of its Python files, or the version of one that was installed.

    Of fcnlab always the hash. A component on which no score depends (a logger, a progress bar) does not count, nor does
    Python's own library, nor what a record names anyway (torch).
    """
    targets = [
        str(node["_target_"])
        for tree in trees
        for path, node in iter_components(tree)
        if not WITHOUT_EFFECT.fullmatch(f"{path}._target_")
    ]
    packages = {"fcnlab", *(target.partition(".")[0] for target in targets)}
    return {name: _state(name) for name in sorted(packages - sys.stdlib_module_names - {"torch"})}


def _state(package: str) -> str:
    places = list(_places(package))
    version = _version(package) if any(INSTALLED & set(place.parts) for place in places) else None
    if version and package != "fcnlab":
        return version
    return _digest(places) if places else UNKNOWN


def _places(package: str) -> Iterator[Path]:
    """The folders of a package, or a module's file; it is not imported."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):  # such as __main__, which is a script's file
        spec = None
    script = getattr(sys.modules.get(package), "__file__", None)
    for place in (spec.submodule_search_locations or [spec.origin]) if spec else [script]:
        if place and Path(place).exists():
            yield Path(place)


def _version(package: str) -> str | None:
    """Of the distribution that a package was installed from; None for files that were copied there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a distribution of another name
        names = metadata.packages_distributions().get(package)
        return metadata.version(names[0]) if names else None


def _digest(places: list[Path]) -> str:
    """The same wherever the files lie, and whenever they were written."""
    found = hashlib.sha256()
    for place in places:
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            content = path.read_bytes() if path.is_file() else b""
            found.update(f"{path.relative_to(place.parent)}\0{len(content)}\0".encode() + content)
    return found.hexdigest()[:LENGTH]
