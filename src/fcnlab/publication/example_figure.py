"""The figure of example segmentations: image, prediction of each run, ground truth; a row for each image.

It is figure 4 of the FCN paper (CVPR 2015), for any runs. All pixels come from the runs' predictions.zip, which
:class:`fcnlab.comparison.image_panels.Archives` checks against the recorded scores.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from fcnlab.comparison.comparison import Comparison
from fcnlab.comparison.formats import listed
from fcnlab.comparison.grouping import ONLY_GROUP, Group
from fcnlab.comparison.image_panels import Archives
from fcnlab.comparison.intervals import mean_iou
from fcnlab.comparison.runs import Run
from fcnlab.config.overrides import shell_join, shell_override
from fcnlab.errors import UserError
from fcnlab.escaping import escape_line
from fcnlab.metrics.scores import IGNORE_INDEX
from fcnlab.runs.drawing import IGNORE_COLOUR, RGB, Palette
from fcnlab.runs.prediction_archive import ClassMap

MOST_COLUMNS = 6  # runs beside each other: with more, an image at a page's width is less than an inch wide
LISTED = 8  # names in a message
IMAGE, GROUND_TRUTH = "image", "ground truth"  # titles of the first and the last column


class Column(NamedTuple):
    """A run, and the title of its column."""

    title: str
    run: Run


class Example(NamedTuple):
    """A row of the figure; class maps have the scored size, the image is the smaller copy of the archive."""

    name: str
    image: RGB
    predictions: list[ClassMap]
    target: ClassMap


class ExampleFigure(NamedTuple):
    """Columns, rows, and the name and the colour of each class that occurs."""

    columns: list[Column]
    rows: list[Example]
    legend: list[tuple[str, tuple[int, int, int]]]
    palette: Palette

    @property
    def titles(self) -> list[str]:
        return [IMAGE, *(column.title for column in self.columns), GROUND_TRUTH]


def run_columns(comparison: Comparison, folders: Sequence[Path]) -> list[Column]:
    """Return a column for each compared run, in the order of ``folders``.

    The title is the name of the run's group, with the seed where the group has several runs.

    Raises
    ------
    UserError
        There are more than ``MOST_COLUMNS`` runs.
    """
    groups = {run.folder: group for group in comparison.groups for run in group.runs}
    runs = {run.folder: run for group in comparison.groups for run in group.runs}
    ordered = [folder for folder in folders if folder in runs]
    if len(ordered) > MOST_COLUMNS:
        first = {id(groups[folder]): folder for folder in reversed(ordered)}
        some = [str(folder) for folder in ordered if folder in first.values()][:MOST_COLUMNS]
        raise UserError(
            f"runs= contains {len(ordered)} runs, but a figure has at most {MOST_COLUMNS} columns of predictions: name"
            f" the runs to draw, such as {shell_join(['runs=' + ','.join(some)])}"
        )
    return [Column(_title(groups[folder], runs[folder]), runs[folder]) for folder in ordered]


def _title(group: Group, run: Run) -> str:
    name = "prediction" if group.name == ONLY_GROUP else group.name
    return escape_line(f"{name} seed={run.seed}" if len(group.runs) > 1 else name)


def chosen_images(columns: Sequence[Column], requested: Sequence[str], count: int, archives: Archives) -> list[str]:
    """Return the requested images; without any, the ``count`` kept images on which the runs differ most.

    Raises
    ------
    UserError
        A requested image is not one of the scored images, or a run has not kept it; or no image is kept by all runs.
    """
    for name in requested:
        _check_scored(name, columns[0].run.names)
    for column in columns:
        kept = archives.names(column.run)
        missing = [name for name in requested if name not in kept]
        if missing or not kept:
            raise UserError(_not_kept(column.run, missing, archives))
    if requested:
        return list(requested)
    kept = frozenset.intersection(*(archives.names(column.run) for column in columns))
    if not kept:
        raise UserError(
            "images= is not set, and no image is kept by all runs: keep all predictions, as"
            f" {_keep_command(columns[0].run)} does, and give the folders of these evaluations as runs="
        )
    return images_that_differ_most([column.run for column in columns], kept, count)


def _check_scored(name: str, scored: Sequence[str]) -> None:
    if name not in scored:
        near = get_close_matches(name, scored, n=3, cutoff=0.5) or list(scored[:3])
        raise UserError(
            f"images={name} is not one of the {len(scored)} images that all runs have scored. Similar names are"
            f" {', '.join(near)}"
        )


def _not_kept(run: Run, missing: Sequence[str], archives: Archives) -> str:
    problem = archives.notes.get(run.folder)
    what = f"the prediction for {listed(list(missing), LISTED)}" if missing else "predictions"
    reason = f"{problem.rstrip('.')}" if problem else f"{run.folder} keeps no {what.removeprefix('the ')}"
    return (
        f"{reason}. To get {what}, type {_keep_command(run)} and give the folder of that evaluation in place of"
        f" {run.folder} as runs="
    )


def _keep_command(run: Run) -> str:
    """Return the command that scores a run's weights and keeps all predictions."""
    path = run.folder / "checkpoints" / f"{(run.selection or {}).get('checkpoint', 'best')}.ckpt"
    checkpoint = shell_override("checkpoint", path) if path.is_file() else "checkpoint=PATH"  # of an evaluation
    return f"fcnlab eval {checkpoint} evaluation.keep_predictions=all"


def images_that_differ_most(runs: Sequence[Run], kept: frozenset[str], count: int) -> list[str]:
    """Return the names of the images whose mean IoU differs most between the runs, the largest difference first.

    Of a single run, images from its best to its worst one are returned, evenly spaced by rank.
    """
    scores = np.array([mean_iou(run.areas.intersection, run.areas.union) for run in runs])
    known = [place for place, name in enumerate(runs[0].names) if name in kept and not np.isnan(scores[:, place]).any()]
    difference = scores.max(axis=0) - scores.min(axis=0) if len(runs) > 1 else scores[0]
    order = sorted(known, key=lambda place: -difference[place])
    if len(runs) == 1:
        places = np.unique(np.linspace(0, len(order) - 1, count).round().astype(int)) if order else []
        return [runs[0].names[order[place]] for place in places]
    return [runs[0].names[place] for place in order[:count]]


def example_figure(columns: Sequence[Column], names: Sequence[str], archives: Archives) -> ExampleFigure:
    """Return the figure of some images, which all runs keep.

    Raises
    ------
    UserError
        Predictions are damaged or of another evaluation, or two runs have different ground truth for an image.
    """
    kept = [archives.images(column.run, names) for column in columns]
    for column, images in zip(columns, kept, strict=True):
        if not images:
            raise UserError(_not_kept(column.run, names, archives))
    rows = []
    for name in names:
        first, *others = (images[name] for images in kept)
        if not all(np.array_equal(first.target, other.target) for other in others):
            raise UserError(
                f"images={name}: the runs have different ground truth for this image. Evaluate their checkpoints on the"
                " same data with fcnlab eval, and give the folders of these evaluations as runs="
            )
        rows.append(Example(name, first.image, [images[name].prediction for images in kept], first.target))
    palette, classes = next(iter(kept[0].values())).palette, columns[0].run.classes
    return ExampleFigure(list(columns), rows, _legend(rows, classes, palette), palette)


def _legend(
    rows: Sequence[Example], classes: Sequence[str], palette: Palette
) -> list[tuple[str, tuple[int, int, int]]]:
    """Return the name and the colour of each class that occurs, and of ignored pixels."""
    labels = {int(label) for row in rows for shown in (row.target, *row.predictions) for label in np.unique(shown)}
    named = [(escape_line(classes[label]), _colour(palette[label])) for label in sorted(labels - {IGNORE_INDEX})]
    return [*named, *([("ignored", IGNORE_COLOUR)] if IGNORE_INDEX in labels else [])]


def _colour(values: ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in values)
    return red, green, blue
