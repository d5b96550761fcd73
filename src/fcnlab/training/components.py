"""Components of a config, built: data, callbacks and whatever has a ``_target_``."""

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from fcnlab.config.overrides import run_folder
from fcnlab.config.trust import DATA_COMPONENTS
from fcnlab.data import DataModule
from fcnlab.errors import UserError, first_line

REFUSALS = (ValueError, TypeError, MisconfigurationException, ImportError, OSError)  # of settings, packages and places


def open_data(node: DictConfig, named_by_record: bool) -> DataModule:
    """The data of a config; what only a record names is only read, and keeps its cache in this run's folder."""
    if not named_by_record or node._target_ not in DATA_COMPONENTS[""]:
        return instantiate(node, _convert_="all")
    return instantiate(node, _convert_="all", read_only=True, cache_dir=str(run_folder() / "cache"))


def instantiate_checked(settings: dict[str, Any], path: str, **further: Any) -> Any:
    """What a config describes; what its class refuses is the user's mistake, in the class's own words."""
    try:
        return instantiate(settings, **further, _convert_="all")
    except InstantiationException as error:
        refused = error.__cause__
        if isinstance(refused, REFUSALS):
            raise UserError(f"{path}: {first_line(refused)}") from error
        raise
