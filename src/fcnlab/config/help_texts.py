"""The config groups in the help of a command: ``${config_groups:}`` in its ``hydra.help.template``."""

from collections.abc import Iterator
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType

from fcnlab.config.locations import experiment_command
from fcnlab.library_internals.hydra import group_members

SWEEP_GROUPS = {"train": ("hydra/launcher", "hydra/sweeper"), "eval": ("hydra/launcher",)}  # a search is for train


def config_groups(hydra: Any) -> str:
    """Return a line for each group of a command's defaults, with its options, those of a user included.

    ``hydra`` is Hydra's node of the command's configuration.
    """
    verb, loader = str(hydra.job.config_name), GlobalHydra.instance().config_loader()
    groups = {str(group) for group in hydra.runtime.choices if not str(group).startswith("hydra/")}
    names = sorted({name for group in groups for name in _with_subgroups(loader, group)})
    lines = ((name, _options(loader, name, verb)) for name in [*names, *SWEEP_GROUPS.get(verb, ())])
    return "\n".join(f"{name}: {', '.join(options)}" for name, options in lines if options)


def _with_subgroups(loader: ConfigLoader, group: str) -> Iterator[str]:
    yield group
    for name in group_members(loader, group, ObjectType.GROUP):
        yield from _with_subgroups(loader, f"{group}/{name}")


def _options(loader: ConfigLoader, group: str, verb: str) -> list[str]:
    """Return the options of a group, without fcnlab's experiments for other commands."""
    options = sorted(group_members(loader, group, ObjectType.CONFIG))
    if not group.startswith("experiment"):
        return options
    folder = group.removeprefix("experiment").lstrip("/")
    return [name for name in options if experiment_command(f"{folder}/{name}") in (None, verb)]
