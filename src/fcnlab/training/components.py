"""Build components of a config: data, callbacks and everything else with a ``_target_``."""

from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from fcnlab.config.trust import DATA_COMPONENTS
from fcnlab.data import DataModule
from fcnlab.errors import UserError, first_line

# The errors with which components reject their settings, a missing package or a path.
REJECTIONS = (ValueError, TypeError, MisconfigurationException, ImportError, OSError)


def open_data(node: DictConfig, named_by_record: bool, folder: Path) -> DataModule:
    """Build the data of a config; a data set named by a record alone is read-only, with its cache in ``folder``."""
    if not named_by_record or node._target_ not in DATA_COMPONENTS[""]:
        return instantiate(node, _convert_="all")
    return instantiate(node, _convert_="all", read_only=True, cache_dir=str(folder / "cache"))


def instantiate_checked(settings: DictConfig | dict[str, Any], path: str, **further: Any) -> Any:
    """Build a component of a config; raise a UserError with its class's message where it rejects its settings."""
    try:
        return instantiate(settings, **further, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, REJECTIONS):
            raise UserError(f"{path}: {first_line(cause)}") from error
        raise
