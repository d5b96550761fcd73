"""Draw the images on which two groups differ most, and the best and worst of each group.

All pixels come from the runs' predictions.zip, which is foreign: :mod:`fcnlab.runs.prediction_archive` checks it, and
here the class maps must give the areas that the run recorded, so that a page never shows the predictions of another
evaluation. Images are encoded again.
"""

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from fcnlab.comparison import tables
from fcnlab.comparison.comparison import Comparison
from fcnlab.comparison.grouping import Group
from fcnlab.comparison.intervals import mean_iou
from fcnlab.comparison.pairs import Pair, image_scores
from fcnlab.comparison.runs import Run
from fcnlab.errors import first_line
from fcnlab.files.reading import Unreadable
from fcnlab.metrics.conventions import class_areas
from fcnlab.metrics.scores import IGNORE_INDEX
from fcnlab.runs.drawing import IGNORE_COLOUR, Palette, with_palette
from fcnlab.runs.prediction_archive import NAME, SIDE, ClassMap, KeptImage, PredictionArchive, open_archive

MOST_PAIRS, MOST_GROUPS = 4, 4  # that have panels: a row of five has some 50 kB
OF_A_PAIR, OF_A_GROUP = 3, 2  # images in each direction
QUALITY = 80  # of JPEG
NO_PREDICTIONS = (
    f"No run of {{groups}} has usable predictions ({NAME}), so no images are shown. fcnlab eval checkpoint=PATH keeps"
    " predictions: compare the folder of that evaluation alone, without its training run's."
)
Result = TypeVar("Result")


class Agreement(NamedTuple):
    """A kind of pixel where two predictions are compared, in a colour-blind safe colour (Okabe and Ito)."""

    title: str
    colour: tuple[int, int, int]


# The ground truth is ignored, both are right, only one is, and both are wrong in the same way or in different ways.
AGREEMENT = (
    Agreement("ignored", IGNORE_COLOUR),
    Agreement("both right", (240, 240, 240)),
    Agreement("only A right", (0, 114, 178)),
    Agreement("only B right", (230, 159, 0)),
    Agreement("both wrong, same class", (153, 153, 153)),
    Agreement("both wrong, different classes", (0, 0, 0)),
)


class Panel(NamedTuple):
    """A drawing as a data URL, its title, and its content in words."""

    title: str
    text: str
    data: str


class Row(NamedTuple):
    """The panels of one image, and the name and colour of each class in them."""

    name: str
    text: str
    panels: list[Panel]
    legend: list[tuple[str, str]]


class Series(NamedTuple):
    """Rows of one pair or one group."""

    title: str
    note: str
    rows: list[Row]


class ImagePanels(NamedTuple):
    """What the page shows, and why some runs have no panels; ``legend`` explains the maps of disagreement."""

    pairs: list[Series]
    groups: list[Series]
    notes: list[str]
    legend: list[tuple[str, str]]


class Archives:
    """The kept predictions of runs; ``notes`` are the reasons why some cannot be used."""

    def __init__(self) -> None:
        self.notes: dict[Path, str] = {}
        self._names: dict[Path, frozenset[str]] = {}

    def names(self, run: Run) -> frozenset[str]:
        """Return the names of the images that a run keeps; those of a pooled run are in its folds."""
        if run.folds:
            return frozenset().union(*(self.names(fold) & set(fold.names) for fold in run.folds))
        if run.folder not in self._names:
            read = self._read(run, lambda archive: frozenset(name for name in run.names if name in archive))
            self._names[run.folder] = read or frozenset()
        return self._names[run.folder]

    def images(self, run: Run, names: Sequence[str]) -> dict[str, KeptImage]:
        """Return kept images; none if any of them cannot be used."""
        if run.folds:
            parts = [(fold, [name for name in names if name in fold.names]) for fold in run.folds]
            found = {name: kept for fold, own in parts if own for name, kept in self.images(fold, own).items()}
            return found if len(found) == len(names) else {}
        return self._read(run, lambda archive: {name: _checked(archive.read(name), run, name) for name in names}) or {}

    def _read(self, run: Run, action: Callable[[PredictionArchive], Result]) -> Result | None:
        try:
            with open_archive(run.folder, len(run.classes)) as archive:
                return action(archive)
        except FileNotFoundError:
            return None
        except (OSError, Unreadable) as error:
            self.notes[run.folder] = f"The predictions in {run.folder} are not shown: {first_line(error)}."
        return None


def _checked(kept: KeptImage, run: Run, name: str) -> KeptImage:
    """Return an image if its class maps give the areas in the run's record.

    Raises
    ------
    ValueError
        They do not.
    """
    scored, size = kept.target != IGNORE_INDEX, len(run.classes)
    cells = kept.target[scored].astype(np.int64) * size + kept.prediction[scored]
    areas = class_areas(np.bincount(cells, minlength=size * size).reshape(size, size))
    position = run.names.index(name)
    if any((part != recorded[position]).any() for part, recorded in zip(areas, run.areas, strict=True)):
        raise ValueError("its class maps do not give the recorded scores, so they are of another evaluation")
    return kept


def image_panels(comparison: Comparison) -> ImagePanels:
    """Return the panels of the first pairs and groups of a comparison."""
    archives = Archives()
    pairs = [_of_pair(pair, comparison, archives) for pair in comparison.pairs[:MOST_PAIRS]]
    groups = [_of_group(group, comparison, archives) for group in comparison.groups[:MOST_GROUPS]]
    shown = [[series for series in kind if series is not None] for kind in (pairs, groups)]
    without = [
        comparison.label(group) for group, series in zip(comparison.groups, groups, strict=False) if series is None
    ]
    notes = [NO_PREDICTIONS.format(groups=", ".join(without))] if without else []
    legend = [(kind.title, _css(kind.colour)) for kind in AGREEMENT]
    return ImagePanels(*shown, notes=[*archives.notes.values(), *notes], legend=legend)


# Pairs


def _of_pair(pair: Pair, comparison: Comparison, archives: Archives) -> Series | None:
    """Return the images on which each group is better than the other by most; None without predictions."""
    first, second = pair.compared
    runs = next((both for both in _paired_runs(first, second) if _common(both, archives)), None)
    if runs is None:
        return None
    scores = image_scores(first), image_scores(second)
    names = _furthest_apart(runs[0].names, scores[0] - scores[1], _common(runs, archives))
    kept = [archives.images(run, names) for run in runs]
    if not all(kept):
        return None
    rows = [_pair_row(name, kept[0][name], kept[1][name], runs, scores) for name in names]
    seeds = " and ".join(dict.fromkeys(str(run.seed) for run in runs))
    order = " The images are chosen by the mean over seeds." if len(first.runs) > 1 else ""
    return Series(
        f"A: {comparison.label(pair.first)}. B: {comparison.label(pair.second)}",
        f"First the images on which A is better, then those on which B is better. Predictions of seed {seeds}.{order}"
        + _part_of(len(_common(runs, archives)), comparison),
        [row for row in rows if row],
    )


def _paired_runs(first: Group, second: Group) -> Iterator[tuple[Run, Run]]:
    """Yield runs of equal seed; all pairs of runs if the groups share no seed."""
    by_seed = {run.seed: run for run in second.runs if run.seed is not None}
    same_seed = [(run, by_seed[run.seed]) for run in first.runs if run.seed in by_seed]
    yield from same_seed or product(first.runs, second.runs)


def _common(runs: Sequence[Run], archives: Archives) -> frozenset[str]:
    return frozenset.intersection(*(archives.names(run) for run in runs))


def _furthest_apart(names: Sequence[str], difference: ndarray, kept: frozenset[str]) -> list[str]:
    """Return the names of the largest differences in each direction."""
    known = [place for place, name in enumerate(names) if name in kept and difference[place]]
    order = sorted((place for place in known if difference[place] == difference[place]), key=lambda p: -difference[p])
    ahead = [place for place in order if difference[place] > 0][:OF_A_PAIR]
    behind = [place for place in reversed(order) if difference[place] < 0][:OF_A_PAIR]
    return [names[place] for place in [*ahead, *behind]]


def _pair_row(
    name: str, first: KeptImage, second: KeptImage, runs: tuple[Run, Run], scores: tuple[ndarray, ndarray]
) -> Row | None:
    """Return the panels of an image; None if the runs have other ground truth for it."""
    if not np.array_equal(first.target, second.target):
        return None
    place = runs[0].names.index(name)
    own = [_miou(run, place) for run in runs]
    text = f"mIoU on this image: A {tables.percent(own[0], 1)} %, B {tables.percent(own[1], 1)} %"
    mean = scores[0][place] - scores[1][place]
    if abs(mean - (own[0] - own[1])) > 1e-9:
        text += f"; difference of the means over seeds {tables.points(mean)} points"
    kinds = agreement(first.target, first.prediction, second.prediction)
    drawn = [
        *_image_and_target(name, first),
        _class_panel("A", name, first.prediction, first.palette),
        _class_panel("B", name, second.prediction, first.palette),
        Panel("agreement", f"{name}: {_shares(kinds)}", _png(kinds, _agreement_palette())),
    ]
    shown = (first.target, first.prediction, second.prediction)
    return Row(name, text, drawn, _legend(shown, runs[0].classes, first.palette))


def agreement(target: ClassMap, first: ClassMap, second: ClassMap) -> UInt8[ndarray, "rows cols"]:
    """Return for each pixel its place in ``AGREEMENT``."""
    first_right, second_right = first == target, second == target
    conditions = [target == IGNORE_INDEX, first_right & second_right, first_right, second_right, first == second]
    return np.select(conditions, range(5), default=5).astype(np.uint8)


def _shares(kinds: UInt8[ndarray, "rows cols"]) -> str:
    counts = np.bincount(kinds.ravel(), minlength=len(AGREEMENT))[1:]  # without ignored pixels
    shares = counts / max(1, counts.sum())
    return ", ".join(
        f"{kind.title} {tables.percent(share, 1)} %" for kind, share in zip(AGREEMENT[1:], shares, strict=True)
    )


def _agreement_palette() -> Palette:
    return np.array([kind.colour for kind in AGREEMENT], np.uint8)


# Groups


def _of_group(group: Group, comparison: Comparison, archives: Archives) -> Series | None:
    """Return the images with the highest and the lowest mean IoU of a group; None without predictions."""
    run = next((run for run in group.runs if archives.names(run)), None)
    if run is None:
        return None
    best, worst = _best_and_worst(group, archives.names(run))
    kept = archives.images(run, [*best, *worst])
    if not kept:
        return None
    rows = [
        _group_row(f"{kind}: {name}", name, kept[name], run)
        for kind, names in (("best", best), ("worst", worst))
        for name in names
    ]
    order = ", chosen by the mean over seeds" if len(group.runs) > 1 else ""
    note = f"The images with the highest and the lowest mIoU{order}. Predictions of seed {run.seed}."
    return Series(comparison.label(group), note + _part_of(len(archives.names(run)), comparison), rows)


def _best_and_worst(group: Group, kept: frozenset[str]) -> tuple[list[str], list[str]]:
    """Return the images with the highest and the lowest scores; of equal scores, first those with more classes."""
    best = [name for name in ordered_images(group, best_first=True) if name in kept][:OF_A_GROUP]
    worst = [name for name in ordered_images(group, best_first=False) if name in kept and name not in best]
    return best, worst[:OF_A_GROUP]


def ordered_images(group: Group, best_first: bool) -> list[str]:
    """Return the names of the images by their mean IoU; of equal ones, first those with more classes.

    Images with only ignored pixels are left out.
    """
    names, scores = group.runs[0].names, image_scores(group)
    classes, sign = (group.runs[0].areas.target > 0).sum(axis=1), -1 if best_first else 1
    known = [place for place in range(len(names)) if scores[place] == scores[place]]
    return [names[place] for place in sorted(known, key=lambda place: (sign * scores[place], -classes[place]))]


def _group_row(title: str, name: str, kept: KeptImage, run: Run) -> Row:
    text = f"mIoU on this image: {tables.percent(_miou(run, run.names.index(name)), 1)} %"
    drawn = [*_image_and_target(name, kept), _class_panel("prediction", name, kept.prediction, kept.palette)]
    return Row(title, text, drawn, _legend((kept.target, kept.prediction), run.classes, kept.palette))


# Drawing


def _part_of(kept: int, comparison: Comparison) -> str:
    return f" {kept} of {comparison.images} images are kept." if kept < comparison.images else ""


def _miou(run: Run, place: int) -> float:
    return float(mean_iou(run.areas.intersection[place], run.areas.union[place]))


def _image_and_target(name: str, kept: KeptImage) -> list[Panel]:
    image = Panel("image", f"{name}: image", _data_url(Image.fromarray(kept.image), "JPEG", quality=QUALITY))
    return [image, _class_panel("ground truth", name, kept.target, kept.palette)]


def _class_panel(title: str, name: str, labels: ClassMap, palette: Palette) -> Panel:
    return Panel(title, f"{name}: {title}", _png(labels, palette))


def _png(labels: ClassMap, palette: Palette) -> str:
    image = with_palette(labels, palette)
    image.thumbnail((SIDE, SIDE), Image.Resampling.NEAREST)
    return _data_url(image, "PNG", optimize=True)


def _data_url(image: Image.Image, kind: str, **settings: Any) -> str:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _legend(shown: Sequence[ClassMap], classes: Sequence[str], palette: Palette) -> list[tuple[str, str]]:
    """Return the name and the colour of each class that occurs, and of ignored pixels."""
    present: list[int] = np.unique(np.concatenate([np.unique(labels) for labels in shown])).tolist()
    colours = palette.tolist()
    named = [(classes[label], _css(colours[label])) for label in present if label != IGNORE_INDEX]
    return [*named, *([("ignored", _css(IGNORE_COLOUR))] if IGNORE_INDEX in present else [])]


def _css(colour: Sequence[int]) -> str:
    red, green, blue = colour
    return f"#{red:02x}{green:02x}{blue:02x}"
