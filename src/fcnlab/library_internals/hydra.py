"""Hydra: values of overrides, groups of configs, how configs are composed, and how errors are reported.

Tested with Hydra 1.3.8, the first 1.3.x that pyproject.toml allows being 1.3.4.
"""

import copy
import pickle
import threading
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from hydra._internal import utils
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.version import VersionBase, setbase
from omegaconf import DictConfig

__all__ = [
    "BasicLauncher",
    "composed_through",
    "config_files_kept",
    "config_loader",
    "copy_below_its_parent",
    "folder_name",
    "group_members",
    "option_parser",
    "reported_by",
    "value_of",
    "value_text",
    "version_base",
]

# BasicLauncher: Hydra's launcher that runs jobs one after the other in this process. No public module exports it.


def value_of(override: Override) -> Any:
    """Return the parsed value of an override: sweeps are kept, and quoted text is a ``QuotedString``.

    The public ``value()`` fails for sweeps and loses the quotes.
    """
    return override._value


def value_text(value: Any) -> str:
    """Return a parsed value as Hydra's own sweeper writes it after the equals sign.

    The public methods only write complete overrides.
    """
    return Override._get_value_element_as_str(value)


def folder_name(overrides: Sequence[Override], exclude: Sequence[str], item_sep: str, kv_sep: str) -> str:
    """Return ``hydra.job.override_dirname`` for some overrides.

    Hydra itself computes it only once, from the command line.
    """
    return get_overrides_dirname(list(overrides), list(exclude), item_sep, kv_sep)


def group_members(loader: ConfigLoader, group: str, kind: ObjectType) -> list[str]:
    """Return the options (``CONFIG``) or the subgroups (``GROUP``) of a config group.

    The public methods of the loader copy all configs at each call, which makes a help text a fifth slower.
    """
    assert isinstance(loader, ConfigLoaderImpl)
    return loader.repository.get_group_options(group, kind)


def option_parser() -> ArgumentParser:
    """Return the parser of Hydra's own options, such as ``--config-dir``; ``hydra.main`` does not expose it."""
    return utils.get_args_parser()


@contextmanager
def reported_by(run: Callable[[Callable], Any]) -> Iterator[Callable[[Callable], Any]]:
    """While entered, make Hydra call functions that may fail through ``run``; yield the function that does so.

    Hydra reports the errors that ``run`` raises. Without ``run`` no ``except`` of a caller would see an error, since
    Hydra prints its own traceback and ends the process. While this is entered, Hydra also does not print the overrides
    of a job before an error that it shows without a traceback.
    """
    report, return_value = utils.run_and_report, JobReturn.return_value
    value_with_heading = return_value.fget  # pyright: ignore[reportAttributeAccessIssue]
    assert value_with_heading

    def run_and_report(function: Callable) -> Any:
        return report(lambda: run(function))

    def value_without_heading(job: JobReturn) -> Any:
        if job.status == JobStatus.FAILED and isinstance(job._return_value, CompactHydraException):
            raise job._return_value
        return value_with_heading(job)

    utils.run_and_report = run_and_report
    JobReturn.return_value = return_value.getter(value_without_heading)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield run_and_report
    finally:
        utils.run_and_report, JobReturn.return_value = report, return_value


@contextmanager
def composed_through(
    compose: Callable[[Callable[..., DictConfig], dict[str, Any]], DictConfig],
    of_plugin: Callable[[DictConfig], DictConfig],
) -> Iterator[None]:
    """While entered, make Hydra compose with ``compose(load, arguments)`` and build plugins from ``of_plugin(config)``.

    Hydra has no hook between reading the command line and composing the config, nor between that and its sweeper.
    """
    load, instantiate = ConfigLoaderImpl.load_configuration, Plugins._instantiate

    def load_configuration(self: ConfigLoaderImpl, **given: Any) -> DictConfig:
        return compose(lambda **again: load(self, **again), given)

    def instantiate_plugin(self: Plugins, config: DictConfig) -> Any:
        return instantiate(self, of_plugin(config))

    ConfigLoaderImpl.load_configuration = load_configuration  # pyright: ignore[reportAttributeAccessIssue]
    Plugins._instantiate = instantiate_plugin
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration, Plugins._instantiate = load, instantiate


_kept: dict[tuple[str, ...], tuple[tuple[str | int, ...], bytes]] = {}  # of each config file: its state and its content
_load_config = ConfigRepository.load_config


@contextmanager
def config_files_kept() -> Iterator[None]:
    """While entered, Hydra reads a config file again only if it has changed.

    Reading the files takes 40 % of the time of a composition. A sweep composes each of its jobs, and Hydra keeps the
    files within one composition only.
    """
    before = ConfigRepository.load_config
    ConfigRepository.load_config = _load_kept_config
    try:
        yield
    finally:
        ConfigRepository.load_config = before


def _load_kept_config(self: ConfigRepository, config_path: str) -> ConfigResult | None:
    source = self._find_object_source(config_path, ObjectType.CONFIG)
    state = None if source is None else _file_state(source, config_path)
    if source is None or state is None:
        return _load_config(self, config_path)
    key = (source.scheme(), source.path, source.provider, config_path)
    if key not in _kept or _kept[key][0] != state:
        _kept[key] = state, pickle.dumps(_load_config(self, config_path))
    return pickle.loads(_kept[key][1])  # a copy, since Hydra changes it; six times as fast as deepcopy


def _file_state(source: ConfigSource, config_path: str) -> tuple[str | int, ...] | None:
    """Return what changes when a config file is written.

    None for a config that is no file: a schema, which Hydra keeps itself, or a part of a zip archive.
    """
    with suppress(OSError, ImportError):
        path = _config_folder(source) / source._normalize_file_name(config_path)
        if isinstance(path, Path):
            stat = path.stat()
            return str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns
    return None


def _config_folder(source: ConfigSource) -> Traversable:
    """Return the folder of a source; an OSError says that it has none."""
    if source.scheme() == "file":
        return Path(source.path)
    if source.scheme() == "pkg":
        return resources.files(source.path)
    raise FileNotFoundError(source.path)


def config_loader(conf: Path, config_dir: str | None) -> ConfigLoader:
    """Return a loader for configs in ``conf`` and in the folder of ``--config-dir``, without ``GlobalHydra``.

    Hydra's ``compose`` works inside ``initialize`` only, once per process.
    """
    search_path = utils.create_config_search_path(str(conf))
    if config_dir is not None:
        folder = f"file://{Path(config_dir).absolute()}"
        search_path.prepend(provider="command-line", path=folder, anchor=SearchPathQuery(provider="schema"))
    return ConfigLoaderImpl(search_path)


_version_lock = threading.RLock()


@contextmanager
def version_base(version: str = "1.3") -> Iterator[None]:
    """While entered, Hydra composes as ``hydra.main(version_base=...)`` does; one thread at a time.

    A caller's own Hydra app may use another version.
    """
    with _version_lock:
        instance = VersionBase.instance()
        before = instance.version_base
        setbase(version)
        try:
            yield
        finally:
            instance.version_base = before


def copy_below_its_parent(config: DictConfig) -> DictConfig:
    """Return a copy of a part of a config that has the same parent, so that its interpolations still resolve."""
    copied = copy.deepcopy(config)
    copied._set_parent(config._get_parent())
    return copied
