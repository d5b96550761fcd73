"""A saved view of W&B for the runs of a comparison."""

from typing import Any

from fcnlab.comparison.comparison import Comparison
from fcnlab.tracking.charts import MOST_LINES, SCORE, curves, grouping, ids, library, only, settings_panels
from fcnlab.tracking.contents import STEP


def workspace(comparison: Comparison, project: str, entity: str, title: str) -> Any:
    """Return the view, a ``wandb_workspaces.workspaces.Workspace``, without saving it.

    It contains the compared runs only, grouped by the settings that distinguish the groups of the comparison.

    Raises
    ------
    UserError
        wandb-workspaces is not installed.
    """
    views, expressions = library("workspaces"), library("expr")
    run_ids = ids(comparison.groups)
    runs = views.RunsetSettings(
        filters=only(run_ids),
        groupby=[_metric(key) for key in grouping(comparison).keys],
        order=[expressions.Ordering(expressions.Summary(SCORE), ascending=False)],
        pinned_columns=[f"summary:{SCORE}"],
    )
    settings = views.WorkspaceSettings(x_axis=STEP, max_runs=min(len(run_ids), MOST_LINES))
    sections = [
        views.Section(name="Curves", panels=curves(), is_open=True),
        views.Section(name="Settings", panels=settings_panels(), is_open=True),
    ]
    return views.Workspace(
        entity=entity, project=project, name=title, sections=sections, settings=settings, runset_settings=runs
    )


def _metric(key: str) -> Any:
    section, _, name = key.partition(".")
    expressions = library("expr")
    return (expressions.Config if section == "config" else expressions.Metric)(name)
