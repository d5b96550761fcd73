"""``fcnlab new``: a package of the user's own, written from the package in template/. Nothing here imports torch."""

import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from fcnlab.config.locations import package_data_folder
from fcnlab.config.overrides import shell_join
from fcnlab.config.validation import ConfigError, validate_config
from fcnlab.errors import UserError, unwritable_reason
from fcnlab.runs.run_folder import RunFolder

TEMPLATE_NAME = "mylab"  # of the package in the folder TEMPLATE
TEMPLATE = "template"
SUFFIXES = (".md", ".py", ".toml", ".yaml")  # of its files
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*", re.ASCII)


def new(cfg: DictConfig, run: RunFolder) -> None:
    """Write a package to a new or empty folder, and print what to type next."""
    validate_config(cfg)
    folder = Path(cfg.folder)
    name = package_name(folder)
    check_empty(folder)
    write_package(folder, name)
    print(f"Package {name}: {folder}. Next:")
    print(f"  {shell_join(['pip', 'install', '-e', str(folder)])}")
    print(f"  fcnlab train experiment={name}/first")
    print(f"  {shell_join(['pytest', str(folder)])}")


def package_name(folder: Path) -> str:
    """Return the name of the package in a folder: the folder's, with underscores for hyphens.

    Raises
    ------
    ConfigError
        A package cannot have this name, or an installed one has it.
    """
    last = folder.absolute().name
    name = last.replace("-", "_").lower()
    if not NAME.fullmatch(last) or keyword.iskeyword(name):
        raise ConfigError(
            f"folder={folder}: the name of the folder is that of the package, so it must be letters, digits and"
            f" underscores after a letter, and no word of Python, got {last!r}"
        )
    if name in sys.stdlib_module_names or _is_installed(name, folder):
        raise ConfigError(f"folder={folder}: Python has a package {name} already. Choose another name")
    return name


def _is_installed(name: str, folder: Path) -> bool:
    """Return whether Python finds a package elsewhere than in the current folder or around ``folder``.

    Python takes any folder on its path for a package without a file, such as a new ``folder`` itself.
    """
    spec = find_spec(name)
    if spec is None or spec.origin is not None:
        return spec is not None
    here = {Path(name).resolve(), folder.resolve()}
    return not {Path(place).resolve() for place in spec.submodule_search_locations or ()} <= here


def check_empty(folder: Path) -> None:
    """Raise a UserError unless files can be written to a folder that is new or empty."""
    if reason := unwritable_reason(folder):
        raise UserError(f"folder={folder}: {reason}. Choose another folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"folder={folder}: the folder contains files. Choose a new or an empty folder")


def write_package(folder: Path, name: str) -> None:
    """Write the files of the template under the name of another package."""
    template = package_data_folder(TEMPLATE)
    for file in sorted(path for suffix in SUFFIXES for path in template.rglob(f"*{suffix}")):
        path = folder / str(file.relative_to(template)).replace(TEMPLATE_NAME, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.read_text(encoding="utf-8").replace(TEMPLATE_NAME, name), encoding="utf-8")
