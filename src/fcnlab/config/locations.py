"""Where config files are: fcnlab's own, and those of plugins."""

import re
from pathlib import Path

from fcnlab.config.plugins import plugins


def package_data_folder(name: str) -> Path:
    """A folder that comes with the package: inside it in a wheel, else beside its sources in the checkout."""
    package = Path(__file__).resolve().parents[1]
    return next(path for path in (package / name, package.parents[1] / name) if path.is_dir())


CONF = package_data_folder("conf")


def config_roots() -> list[Path]:
    """Return the folders whose config groups every command has, in the order in which they are searched."""
    return [CONF, *(plugin.conf for plugin in plugins())]


def group_of(file: Path, root: Path) -> str:
    """Return the group of a config file in one of these folders: ``loss`` of ``loss/mylab/smoothed.yaml`` in mylab.

    A folder inside a group is a group as well, except those with the name of the package that contains ``conf/``, and
    those of experiments: they are a part of the option's name.
    """
    folder = file.relative_to(root).parent
    if folder.parts[:1] == ("experiment",):
        return "experiment"
    in_package = len(folder.parts) > 1 and folder.name == root.absolute().parent.name and not (CONF / folder).is_dir()
    return (folder.parent if in_package else folder).as_posix()


def files_of(group: str) -> dict[str, Path]:
    """Return the file of each option of a group in these folders, by the option's name."""
    found: dict[str, Path] = {}
    for folder, root in ((root / group, root) for root in config_roots()):
        for path in sorted(folder.rglob("*.yaml")):
            if group_of(path, root) == group:
                found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return found


def options_in(group: str) -> list[str]:
    """Return the options of a group in these folders."""
    return sorted(files_of(group))


def group_and_option(path: str) -> tuple[str, str]:
    """Return the group and the name of an option, which need not exist: ``loss/mylab/x`` is ``mylab/x`` of ``loss``."""
    *folders, option = path.split("/")
    for depth in range(len(folders), 0, -1):
        group = "/".join(folders[:depth])
        if any((root / group).is_dir() and group_of(root / group / option, root) == group for root in config_roots()):
            return group, "/".join([*folders[depth:], option])
    return "/".join(folders), option


def experiment_command(name: str) -> str | None:
    """Return the command that an experiment is for, as its header states; None for other names."""
    paths = (root / "experiment" / f"{name}.yaml" for root in config_roots())
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    text = path.read_text(encoding="utf-8", errors="replace")  # it may be of a plugin
    stated = re.search(r"^# fcnlab (\w+) experiment=", text, re.MULTILINE)
    return stated[1] if stated else None
