"""Where fcnlab's own config files are."""

import re
from pathlib import Path


def package_data_folder(name: str) -> Path:
    """A folder that comes with the package: inside it in a wheel, else beside its sources in the checkout."""
    package = Path(__file__).resolve().parents[1]
    return next(path for path in (package / name, package.parents[1] / name) if path.is_dir())


CONF = package_data_folder("conf")


def experiment_command(name: str) -> str | None:
    """Return the command that an experiment of fcnlab is for, as its header states; None for other names."""
    path = CONF / "experiment" / f"{name}.yaml"
    stated = re.search(r"^# fcnlab (\w+) experiment=", path.read_text(), re.MULTILINE) if path.is_file() else None
    return stated[1] if stated else None
