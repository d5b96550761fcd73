"""What a workspace and a report share: run sets, the settings that group runs, and the charts."""

import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from fcnlab.comparison.comparison import Comparison
from fcnlab.comparison.grouping import Group
from fcnlab.errors import UserError
from fcnlab.runs.origins import ENVIRONMENT, SCORING
from fcnlab.tracking.contents import STEP
from fcnlab.tracking.run_ids import run_id

CURVES = {  # by metric
    "val/miou": "mIoU on the validation set",
    "val/loss": "loss on the validation set",
    "train/loss": "training loss",
}
SCORE = "best/miou"  # the score that the importance of settings is about
MOST_LINES = 100  # W&B draws at most so many in a chart
# Facts that distinguish groups, but are not in the config of a W&B run.
NOT_IN_CONFIG, PREFIXES_NOT_IN_CONFIG = ("ensemble", "resumed", *ENVIRONMENT), (SCORING, "source.", "images.")


@cache
def library(name: str) -> ModuleType:
    """Return a module of wandb-workspaces, which is optional, slow to import, and warns of its own code.

    Raises
    ------
    UserError
        The package is not installed.
    """
    if find_spec("wandb_workspaces") is None:
        raise UserError(
            "the package wandb-workspaces, which describes views and reports, is not installed. Type"
            " pip install 'fcnlab[workspaces]'"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module(f"wandb_workspaces.{name}")


class Grouping(NamedTuple):
    """The keys by which W&B groups runs, and the settings that distinguish groups but are not in W&B."""

    keys: list[str]
    missing: list[str]


def grouping(comparison: Comparison) -> Grouping:
    """Return the settings that distinguish the groups, as W&B names them; the kind of run if W&B has none of them."""
    names = dict.fromkeys(key for group in comparison.groups for key in group.parts)
    options = set().union(*(run.options for group in comparison.groups for run in group.runs))
    missing = [name for name in names if name in NOT_IN_CONFIG or name.startswith(PREFIXES_NOT_IN_CONFIG)]
    keys = [_key(name, name in options) for name in names if name not in missing]
    return Grouping(keys or ["run.jobType"], missing)


def _key(name: str, is_option: bool) -> str:
    """Return a setting as W&B stores it: ``optim.lr`` is in ``{"optim": {"value": {"lr": ...}}}``.

    The option ``model/backbone=vgg16`` is in the config as ``options.backbone``.
    """
    first, _, rest = (f"options.{name.rpartition('/')[2]}" if is_option else name).partition(".")
    return ".".join(filter(None, ["config", first, "value", rest]))


def ids(groups: Iterable[Group]) -> list[str]:
    """Return the ids of the W&B runs of some groups; a pooled run has one for each fold."""
    folders: list[Path] = [each.folder for group in groups for run in group.runs for each in run.folds or (run,)]
    return list(dict.fromkeys(run_id(folder).text for folder in folders))


def only(run_ids: Sequence[str]) -> Any:
    """Return the filter of a run set that contains these runs and no others."""
    expressions = library("expr")
    return expressions.And(expressions.Metric("ID").isin(list(run_ids)))


def curves() -> list[Any]:
    """Return a chart for each curve: the mean of a group over its seeds, and the range from minimum to maximum."""
    return [
        library("reports.v2").LinePlot(
            title=title,
            x=STEP,
            y=[metric],
            title_x="optimiser steps",
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            max_runs_to_show=MOST_LINES,
        )
        for metric, title in CURVES.items()
    ]


def settings_panels() -> list[Any]:
    """Return the table of differing settings, and how much each setting matters for the score."""
    reports = library("reports.v2")
    return [
        reports.ParameterImportancePlot(with_respect_to=SCORE),
        reports.RunComparer(diff_only="split"),
    ]
