"""Where fcnlab's own config files are."""

from pathlib import Path


def package_data_folder(name: str) -> Path:
    """A folder that comes with the package: inside it in a wheel, else beside its sources in the checkout."""
    package = Path(__file__).resolve().parents[1]
    return next(path for path in (package / name, package.parents[1] / name) if path.is_dir())


CONF = package_data_folder("conf")
