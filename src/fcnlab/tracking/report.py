"""A report of W&B on a comparison of runs."""

from collections.abc import Sequence
from typing import Any

from fcnlab.comparison.comparison import Comparison
from fcnlab.comparison.formats import percent
from fcnlab.comparison.grouping import Group
from fcnlab.comparison.markdown import bullets, result
from fcnlab.comparison.tables import pair_name
from fcnlab.escaping import escape_markdown
from fcnlab.tracking.accepted_values import MAX_NAME, sendable, shortened
from fcnlab.tracking.charts import curves, grouping, ids, library, only, settings_panels
from fcnlab.tracking.contents import scored_as

MOST_GROUPS, MOST_PAIRS = 10, 4  # with curves of their own, and with images
COLUMNS, ROWS = 24, 8  # of a grid, and of a panel in it


def report(comparison: Comparison, project: str, entity: str, title: str) -> Any:
    """Return the report, a ``wandb_workspaces.reports.v2.Report``, without saving it.

    Each group of the comparison is a run set of its own, with the group's name, so that its curve is the mean over its
    seeds whatever distinguishes the groups.

    Raises
    ------
    UserError
        wandb-workspaces is not installed.
    """
    reports = library("reports.v2")
    shown, keys = comparison.groups[:MOST_GROUPS], grouping(comparison).keys
    blocks = [
        _markdown(result(comparison)),
        reports.H2("Curves"),
        _markdown(_of_curves(comparison)),
        _grid(curves(), [_run_set(group, keys) for group in shown]),
        reports.H2("Settings"),
        _grid(settings_panels(), [_all_runs(comparison)]),
        reports.H2("Images"),
        _markdown(_of_images(comparison)),
        _grid(
            [reports.WeavePanelSummaryTable(table_name=name) for name in _image_tables(comparison)],
            [_all_runs(comparison)],
        ),
    ]
    return reports.Report(
        project=project,
        entity=entity,
        title=title,
        description="Written by fcnlab wandb report.",
        blocks=blocks,
        width="fluid",
    )


def _grid(panels: Sequence[Any], run_sets: Sequence[Any]) -> Any:
    """Return a row of panels for some run sets."""
    reports, width = library("reports.v2"), COLUMNS // len(panels)
    for place, panel in enumerate(panels):
        panel.layout = reports.Layout(x=place * width, y=0, w=width, h=ROWS)
    return reports.PanelGrid(runsets=list(run_sets), panels=list(panels))


def _run_set(group: Group, keys: Sequence[str]) -> Any:
    name = shortened(group.name, MAX_NAME)
    return library("reports.v2").Runset(name=name, filters=only(ids([group])), groupby=list(keys))


def _all_runs(comparison: Comparison) -> Any:
    return library("reports.v2").Runset(name="all runs", filters=only(ids(comparison.groups)))


def _of_curves(comparison: Comparison) -> str:
    count = len(comparison.groups)
    few = f" of the {MOST_GROUPS} groups with the highest mIoU, out of {count}" if count > MOST_GROUPS else ""
    return f"Mean and range from minimum to maximum over seeds{few}. Each group is a run set."


def _of_images(comparison: Comparison) -> str:
    """Return the images that differ most, by name: a report cannot contain the drawings of fcnlab compare."""
    lines = [
        "mIoU of the images on which two groups differ most. Their predictions are in the tables below, as far as the"
        " runs have logged them; the page of fcnlab compare draws them side by side."
    ]
    for pair in comparison.pairs[:MOST_PAIRS]:
        names = [f"{name}: {percent(first)} % and {percent(second)} %" for name, first, second in pair.apart]
        lines += [f"**{escape_markdown(pair_name(pair, comparison))}**", bullets(names)] if names else []
    return "\n\n".join(lines)


def _image_tables(comparison: Comparison) -> list[str]:
    """Return the names of the tables with scores and predictions of every image that the runs have in W&B."""
    runs = [run for group in comparison.groups for run in group.runs]
    return list(dict.fromkeys(f"{scored_as({'selection': run.selection})}/per_image" for run in runs))


def _markdown(text: str) -> Any:
    return library("reports.v2").MarkdownBlock(text=sendable(text))
