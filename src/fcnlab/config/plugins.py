"""Plugins: installed packages whose folder ``conf/`` contains further options of fcnlab's config groups.

A package declares itself by an entry point in its pyproject.toml::

    [project.entry-points."fcnlab.plugins"]
    mylab = "mylab"

Finding a plugin reads names of files only. Its code runs when a configuration names it as a ``_target_``, so a plugin
with an error does not affect commands that do not use it.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, distributions
from importlib.util import find_spec
from pathlib import Path

from fcnlab.errors import first_line

GROUP = "fcnlab.plugins"
PACKAGE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
NAME = re.compile(r"[\w.-]+", re.ASCII)
MOST_NAMED = 3  # files in a message


@dataclass(frozen=True)
class Plugin:
    """An installed package with config files.

    Attributes
    ----------
    name
        The name of its entry point.
    package
        The dotted name of the package that contains ``conf/``.
    version
        The version of its distribution; None if that is unknown.
    conf
        The folder of its config groups.
    """

    name: str
    package: str
    version: str | None
    conf: Path

    @property
    def top_package(self) -> str:
        return self.package.partition(".")[0]

    @property
    def options(self) -> list[Path]:
        """The config files, relative to ``conf``."""
        return sorted(path.relative_to(self.conf) for path in self.conf.rglob("*.yaml"))


class UnusablePlugin(Exception):
    """A plugin is left out; the message says why."""


def plugins() -> Sequence[Plugin]:
    """Return the installed plugins, sorted by name."""
    return _search(tuple(sys.path))[0]


def unusable_plugins() -> Sequence[str]:
    """Return a sentence for each plugin that is left out: which, and why."""
    return _search(tuple(sys.path))[1]


@cache
def _search(path: Sequence[str]) -> tuple[Sequence[Plugin], Sequence[str]]:
    """Search the folders of ``sys.path``, once for each value of it, since this takes 20 ms."""
    found: dict[str, Plugin] = {}
    entries, problems = _entry_points()
    for entry in sorted(entries, key=lambda entry: (entry.name, entry.value)):
        try:
            if entry.name in found:
                raise UnusablePlugin(f"{found[entry.name].package} has declared a plugin of this name")
            found[entry.name] = _plugin(entry)
        except UnusablePlugin as reason:
            problems.append(f"The plugin {entry.name!r:.100} is left out: {reason}")
    return tuple(found.values()), tuple(problems)


def _entry_points() -> tuple[Sequence[EntryPoint], list[str]]:
    """Return the entry points of plugins, and a sentence for each distribution whose file of them cannot be read."""
    found: dict[tuple[str, str], EntryPoint] = {}  # a folder of sys.path may be there twice
    problems = []
    for distribution in distributions():
        try:
            for entry in distribution.entry_points.select(group=GROUP):
                found.setdefault((entry.name, entry.value), entry)
        except Exception as error:  # of any package, whether or not it has to do with fcnlab
            place = distribution.locate_file("")
            problems.append(f"The entry points of a package in {place} cannot be read: {first_line(error)}")
    return list(found.values()), list(dict.fromkeys(problems))


def _plugin(entry: EntryPoint) -> Plugin:
    if not NAME.fullmatch(entry.name) or not PACKAGE.fullmatch(entry.value):
        raise UnusablePlugin(
            f"its entry point must be NAME = PACKAGE, with letters, digits and underscores, got {entry.value!r:.100}"
        )
    top, *inside = entry.value.split(".")
    try:
        spec = find_spec(top)  # of the outermost package, which imports nothing
    except Exception as error:  # finders of other packages run here
        raise UnusablePlugin(f"looking for its package failed ({type(error).__name__}: {error})") from error
    if spec is None:
        raise UnusablePlugin(f"its package {entry.value} cannot be found. Install it again")
    folders = (Path(place, *inside, "conf") for place in spec.submodule_search_locations or ())
    conf = next((folder for folder in folders if folder.is_dir()), None)
    if conf is None:
        raise UnusablePlugin(f"its package {entry.value} contains no folder conf/ with config files")
    plugin = Plugin(entry.name, entry.value, entry.dist.version if entry.dist else None, conf)
    outside = [str(path) for path in plugin.options if len(path.parts) == 1 or path.parts[0] == "hydra"]
    if outside:
        raise UnusablePlugin(
            f"its conf/{outside[0]} would replace settings of fcnlab or Hydra. Only files conf/GROUP/OPTION.yaml of"
            " other groups are allowed"
        )
    return plugin


def config_file_conflicts(sources: Mapping[str, Path], typed: Mapping[str, Path]) -> Iterator[str]:
    """Yield a sentence for each folder with config files that have no effect.

    ``sources`` and then ``typed`` are the folders in the order in which they are searched, by what to call them: Hydra
    takes a file from the first folder that has it. Typed folders may contain much else, so they are not searched.
    """
    owners: dict[Path, str] = {}
    for source, folder in [*sources.items(), *typed.items()]:
        taken = {path: owner for path, owner in owners.items() if (folder / path).is_file()}
        for owner in dict.fromkeys(taken.values()):
            if not folder.samefile(sources[owner]):
                yield _without_effect(source, [path for path, name in taken.items() if name == owner], owner)
        if source in sources:
            files = (path.relative_to(folder) for path in folder.glob("*/**/*.yaml"))
            owners |= {path: source for path in files if path not in owners}


def _without_effect(source: str, files: Sequence[Path], owner: str) -> str:
    named = ", ".join(map(str, files[:MOST_NAMED])) + (", …" if len(files) > MOST_NAMED else "")
    have = "have" if len(files) > 1 else "has"
    return f"{named} of {source} {have} no effect, because {owner} has an option of the same name. Choose another name"
