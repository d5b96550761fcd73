"""What Hydra has to know before it composes: schemas, resolvers, launchers."""

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from fcnlab.config.schemas import BenchConfig, CompareConfig, DoctorConfig, EvalConfig, PredictConfig, TrainConfig


def register_schemas() -> None:
    """Make known to Hydra the roots, by the names that the primary configs use, and what files of conf/ compute by."""
    store = ConfigStore.instance()
    roots = {
        "train": TrainConfig,
        "eval": EvalConfig,
        "predict": PredictConfig,
        "doctor": DoctorConfig,
        "compare": CompareConfig,
        "bench": BenchConfig,
    }
    for name, schema in roots.items():
        store.store(name=f"{name}_schema", node=schema)
    OmegaConf.register_new_resolver("count_classes", _count_classes, replace=True)


def _count_classes(classes: Any, root: str) -> int:
    """``${count_classes:...}`` in a data set's file: how many classes it lists, or the file has that it names."""
    from fcnlab.data.formats.folder import count_classes

    return count_classes(classes, root)


def register_launchers() -> None:
    """Let ``hydra/launcher=basic`` and ``hydra/sweeper=basic`` be ours, which do not what Hydra's do wrong; in this
    process alone.

    ``slots`` is a file of conf/, but one named as a config of Hydra's own would be merged with that. What its official
    plugins have stored under the names of ours is dropped, where they are installed, too.
    """
    Plugins.instance()  # which makes Hydra's known, and must not do so behind ours
    launcher = {"_target_": "hydra_plugins.fcnlab_slots.InProcessLauncher"}
    sweeper = {"_target_": "hydra_plugins.fcnlab_search.GridSweeper", "max_batch_size": None, "params": None}
    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name="basic", node=launcher, provider="fcnlab")
    store.store(group="hydra/sweeper", name="basic", node=sweeper, provider="fcnlab")
    for group, name in (("launcher", "submitit_slurm"), ("sweeper", "optuna")):
        store.repo["hydra"][group].pop(f"{name}.yaml", None)
