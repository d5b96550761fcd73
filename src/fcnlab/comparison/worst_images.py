"""The worst images of each group for a paper: ground truth and prediction, from the runs' predictions.zip."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fcnlab.comparison import tables
from fcnlab.comparison.comparison import Comparison
from fcnlab.comparison.formats import listed, percent
from fcnlab.comparison.grouping import Group
from fcnlab.comparison.image_panels import Archives, ordered_images
from fcnlab.comparison.pairs import image_scores
from fcnlab.comparison.runs import Run
from fcnlab.comparison.tables import Cell, Column, Table
from fcnlab.runs.drawing import Drawing, overlay_panel
from fcnlab.runs.prediction_archive import NAME

MOST_NAMED = 5  # images or groups in a sentence
ADVICE = "fcnlab eval checkpoint=PATH evaluation.keep_predictions=all keeps those of all images."


class WorstImage(NamedTuple):
    """One of the images on which a group has the lowest mean IoU.

    ``file`` is the name of its overlay without suffix, ``place`` counts from 1, and ``miou`` is the mean over seeds in
    0..1. ``run`` is the first run that keeps a usable prediction; None if no run does.
    """

    file: str
    group: Group
    place: int
    image: str
    miou: float
    run: Run | None

    @property
    def title(self) -> str:
        """What the overlay shows, in words."""
        seed = "the only seed" if self.run is None or self.run.seed is None else f"seed {self.run.seed}"
        return (
            f"image {self.image}, mIoU {percent(self.miou)} %, number {self.place} of the worst of {self.group.name}:"
            f" the image, ground truth, and prediction of {seed}"
        )


def worst_images(comparison: Comparison, count: int, archives: Archives) -> list[WorstImage]:
    """Return up to ``count`` images of each group, those with the lowest mean IoU first."""
    return [
        WorstImage(f"worst_of_{rank}_{place}", group, place, image, scores[image], _keeping(image, group, archives))
        for rank, group in enumerate(comparison.groups, start=1)
        for scores in [dict(zip(group.runs[0].names, image_scores(group).tolist(), strict=True))]
        for place, image in enumerate(ordered_images(group, best_first=False)[:count], start=1)
    ]


def _keeping(image: str, group: Group, archives: Archives) -> Run | None:
    return next((run for run in group.runs if image in archives.names(run) and archives.images(run, [image])), None)


def overlays(images: Sequence[WorstImage], comparison: Comparison, archives: Archives) -> Iterator[tuple[str, Drawing]]:
    """Yield the name of each overlay and its drawing."""
    for each in images:
        kept = archives.images(each.run, [each.image]) if each.run else {}
        for found in kept.values():
            drawing = overlay_panel(found.image, found.target, found.prediction, comparison.classes, found.palette)
            yield each.file, drawing


def not_kept(images: Sequence[WorstImage], comparison: Comparison) -> list[str]:
    """Return a sentence on each group of which some images are not drawn, and one on those of which none are."""
    of_groups = [[each for each in images if each.group is group] for group in comparison.groups]
    missing = [[each.image for each in own if each.run is None] for own in of_groups]
    labelled = list(zip(map(comparison.label, comparison.groups), of_groups, missing, strict=True))
    without = [label for label, own, names in labelled if names and len(names) == len(own)]
    why = f"no run keeps a usable prediction in {NAME}"
    whole = [f"The worst images of {listed(without, MOST_NAMED)} are not drawn, because {why}. {ADVICE}"]
    return (whole if without else []) + [
        f"{len(names)} of the {len(own)} worst images of {label} are not drawn, because {why}:"
        f" {listed(names, MOST_NAMED)}. {ADVICE}"
        for label, own, names in labelled
        if 0 < len(names) < len(own)
    ]


def worst_table(images: Sequence[WorstImage], comparison: Comparison) -> Table:
    """Return a row for each of the images."""
    columns = [
        Column("group", False),
        Column("number"),
        Column("image", False),
        Column("mIoU, %"),
        Column("file", False),
    ]
    rows = [
        [
            tables.group_cell(comparison, each.group),
            tables.count_cell(each.place),
            Cell(each.image),
            Cell(percent(each.miou), 100 * each.miou),
            Cell(f"{each.file}.png" if each.run else ""),
        ]
        for each in images
    ]
    caption = "The images with the lowest mIoU, mean over the classes of the image and over seeds."
    return Table("worst_images", "Worst images of each group", caption, columns, rows)
