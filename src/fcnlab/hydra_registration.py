"""Registration of schemas, resolvers, launchers, sweepers and plugins with Hydra, before it composes."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from fcnlab.config.locations import CONF
from fcnlab.config.plugins import config_file_conflicts, plugins, unusable_plugins
from fcnlab.config.schemas import (
    BenchConfig,
    CardConfig,
    CompareConfig,
    DoctorConfig,
    EvalConfig,
    ExportConfig,
    FigureConfig,
    NewConfig,
    PredictConfig,
    TrainConfig,
    WandbConfig,
    WatchConfig,
)


def register_schemas() -> None:
    """Register the root schemas, by the names that the primary configs use, and the resolvers of conf/."""
    store = ConfigStore.instance()
    roots = {
        "train": TrainConfig,
        "eval": EvalConfig,
        "predict": PredictConfig,
        "doctor": DoctorConfig,
        "compare": CompareConfig,
        "watch": WatchConfig,
        "figure": FigureConfig,
        "export": ExportConfig,
        "card": CardConfig,
        "bench": BenchConfig,
        "wandb": WandbConfig,
        "new": NewConfig,
    }
    for name, schema in roots.items():
        store.store(name=f"{name}_schema", node=schema)
    OmegaConf.register_new_resolver("count_classes", _count_classes, replace=True)
    OmegaConf.register_new_resolver("config_groups", _config_groups, replace=True)


def _count_classes(classes: Any, root: str) -> int:
    """Return the value of ``${count_classes:...}``: the number of classes in a list, or in the file that is named."""
    from fcnlab.data.formats.folder import count_classes

    return count_classes(classes, root)


def _config_groups(_root_: Any) -> str:
    """Return the value of ``${config_groups:}``: the config groups of the command, for its help."""
    from fcnlab.config.help_texts import config_groups

    return config_groups(_root_.hydra)


class PluginConfigs(SearchPathPlugin):
    """Add the config folders of plugins to the search path of fcnlab's commands, and of no other Hydra app."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        main = [each.path.removeprefix("file://") for each in search_path.get_path() if each.provider == "main"]
        if main == [str(CONF)]:
            for plugin in plugins():
                search_path.append(provider=f"plugin {plugin.name}", path=f"file://{plugin.conf}")


def register_plugins(typed_folders: Sequence[Path] = ()) -> None:
    """Add the options of plugins to the config groups; warn about plugins that are left out.

    Warn also about options of plugins and of the user's folders that have no effect: fcnlab's own options come first,
    then those of plugins by name, then ``typed_folders``.
    """
    Plugins.instance().register(PluginConfigs)
    sources = {"fcnlab": CONF} | {f"the plugin {plugin.name}": plugin.conf for plugin in plugins()}
    typed = {f"the folder {folder}": folder for folder in typed_folders}
    for problem in (*unusable_plugins(), *config_file_conflicts(sources, typed)):
        logging.getLogger("fcnlab").warning("Warning: %s", problem)


def register_launchers() -> None:
    """Replace Hydra's ``hydra/launcher=basic`` and ``hydra/sweeper=basic`` by fcnlab's, in this process.

    ``slots`` is a file of conf/; a file with the name of one of Hydra's own configs would be merged with that config.
    Configs that Hydra's official plugins, if installed, store under the same names are removed.
    """
    Plugins.instance()  # registers Hydra's own plugins, which must come first
    launcher = {"_target_": "hydra_plugins.fcnlab_slots.InProcessLauncher"}
    sweeper = {"_target_": "hydra_plugins.fcnlab_search.GridSweeper", "max_batch_size": None, "params": None}
    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name="basic", node=launcher, provider="fcnlab")
    store.store(group="hydra/sweeper", name="basic", node=sweeper, provider="fcnlab")
    for group, name in (("launcher", "submitit_slurm"), ("sweeper", "optuna")):
        store.repo["hydra"][group].pop(f"{name}.yaml", None)
