"""Fingerprint the code of a run: a hash of fcnlab's Python files and of each package with a ``_target_``.

A method can change by its code alone, without any setting. A git commit is not sufficient: a commit of docs changes
nothing, and the code of a method may be outside of any repository.
"""

import hashlib
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fcnlab.config.components import iter_components
from fcnlab.config.plugins import plugins
from fcnlab.runs.origins import UNKNOWN
from fcnlab.runs.settings import WITHOUT_EFFECT

INSTALLED = {"site-packages", "dist-packages"}
LENGTH = 8  # hexadecimal digits


def source_fingerprints(*trees: Any) -> dict[str, str]:
    """Return the state of the code by package: a hash of its Python files, or the version of an installed package.

    For fcnlab and plugins it is always the hash: the version of a plugin may not change with its code. Components
    without effect on scores (a logger, a progress bar) are excluded, and so are Python's standard library and torch,
    which records name separately.
    """
    targets = [
        str(node["_target_"])
        for tree in trees
        for path, node in iter_components(tree)
        if not WITHOUT_EFFECT.fullmatch(f"{path}._target_")
    ]
    packages = {"fcnlab", *(target.partition(".")[0] for target in targets)}
    hashed = {"fcnlab", *(plugin.top_package for plugin in plugins())}
    return {
        name: package_digest(name) if name in hashed else _state(name)
        for name in sorted(packages - sys.stdlib_module_names - {"torch"})
    }


def _state(package: str) -> str:
    installed = any(INSTALLED & set(place.parts) for place in _places(package))
    return (_version(package) if installed else None) or package_digest(package)


def package_digest(package: str) -> str:
    """Return a hash of a package's Python files, also of an installed one, whose version may not change with them."""
    places = list(_places(package))
    return _digest(places) if places else UNKNOWN


def _places(package: str) -> Iterator[Path]:
    """Yield the folders of a package, or a module's file, without importing it."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):  # such as __main__, the file of a script
        spec = None
    script = getattr(sys.modules.get(package), "__file__", None)
    for place in (spec.submodule_search_locations or [spec.origin]) if spec else [script]:
        if place and Path(place).exists():
            yield Path(place)


def _version(package: str) -> str | None:
    """Return the version of the distribution of a package; None if it has no distribution."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # the distribution has another name
        names = metadata.packages_distributions().get(package)
        return metadata.version(names[0]) if names else None


def _digest(places: list[Path]) -> str:
    """Return a hash of names and contents of files, independent of location and time."""
    digest = hashlib.sha256()
    for place in places:
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            content = path.read_bytes() if path.is_file() else b""
            digest.update(f"{path.relative_to(place.parent)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:LENGTH]
