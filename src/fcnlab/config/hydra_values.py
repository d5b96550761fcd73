"""``${hydra:...}`` in a configuration, also where Hydra runs nothing: in Python, or to check a command line."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import DictConfig, OmegaConf

_node: ContextVar[Any] = ContextVar("hydra_node", default=None)


@contextmanager
def hydra_values_of(cfg: DictConfig) -> Iterator[None]:
    """While entered, ``${hydra:...}`` refers to the ``hydra`` node of this config, in this thread only.

    Hydra's own HydraConfig stays as it is, since another thread, or the caller's own Hydra app, may use it.
    """
    register_resolvers()
    token = _node.set(cfg.hydra)
    try:
        yield
    finally:
        _node.reset(token)


def register_resolvers() -> None:
    """Register Hydra's resolvers where there are none, and ``${hydra:...}`` of this module in place of Hydra's."""
    if not OmegaConf.has_resolver("now"):
        setup_globals()
    OmegaConf.register_new_resolver("hydra", _value, replace=True)


def _value(path: str) -> Any:
    node = _node.get()
    return OmegaConf.select(HydraConfig.get() if node is None else node, path)  # pyright: ignore[reportArgumentType]


def fill_in_hydra_values(node: Any) -> None:
    """Replace each ``${hydra:...}`` in a config by its value, in place."""
    raw: Any = OmegaConf.to_container(node, resolve=False)
    for key in list(raw) if isinstance(raw, dict) else range(len(raw)):
        if "${hydra:" in str(raw[key]):
            if OmegaConf.is_interpolation(node, key):
                node[key] = node[key]
            else:
                fill_in_hydra_values(node[key])
