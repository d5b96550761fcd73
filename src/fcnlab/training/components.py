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
from fcnlab.models import Network

# The errors with which components reject their settings, a missing package or a path.
REJECTIONS = (ValueError, TypeError, MisconfigurationException, ImportError, OSError)


def build_network(node: DictConfig) -> Network:
    """Build the network of a config.

    Raises
    ------
    UserError
        Its class is no :class:`~fcnlab.models.Network`.
    InstantiationException
        The class rejects its settings.
    """
    net = instantiate(node, _convert_="all")
    if not isinstance(net, Network):
        raise UserError(
            f"model._target_={node._target_} builds a {type(net).__name__}, which fcnlab cannot train: set"
            " model._target_=fcnlab.models.Architecture, and put your class below model.network, as"
            " conf/model/smp_unet.yaml does"
        )
    return net


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
