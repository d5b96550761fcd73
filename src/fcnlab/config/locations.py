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


def options_in(group: str) -> list[str]:
    """Return the options of a group in these folders. Experiments may be in subfolders; other subfolders are groups."""
    pattern = "**/*.yaml" if group == "experiment" else "*.yaml"
    folders = [root / group for root in config_roots()]
    return sorted(
        {str(path.relative_to(folder).with_suffix("")) for folder in folders for path in folder.glob(pattern)}
    )


def experiment_command(name: str) -> str | None:
    """Return the command that an experiment is for, as its header states; None for other names."""
    paths = (root / "experiment" / f"{name}.yaml" for root in config_roots())
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    text = path.read_text(encoding="utf-8", errors="replace")  # it may be of a plugin
    stated = re.search(r"^# fcnlab (\w+) experiment=", text, re.MULTILINE)
    return stated[1] if stated else None
