"""What a W&B run contains, as plain values made of a run's records: config, curves, summary and tables.

A run and ``fcnlab wandb push`` use the same functions, so that a run that is rebuilt from its folder equals the logged
one. W&B makes a chart of every value that is logged at a step, so values that a run has only once are in the summary or
in tables.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from math import inf, isfinite
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from fcnlab.config.components import DIRECTIVES
from fcnlab.files.writing import number
from fcnlab.metrics.conventions import Matrices, class_areas
from fcnlab.metrics.scores import SCORES, scores
from fcnlab.runs.settings import identifying_values

STEP = "trainer/global_step"  # the x axis of all charts: optimiser steps
FINAL = ("final", "test")  # prefixes of the scores of an evaluation: see Segmenter.scored_as
VALIDATION = "val/miou"
CLASS_PREFIX, CLASS_SECTION = "val/iou/", "val_class/"  # of the IoU of a class, in metrics.csv and in W&B
MOST_CLASS_CHARTS = 21  # PASCAL VOC's classes: a run then has at most 40 charts
WITHOUT_CHARTS = (STEP, "epoch")
TABLE_IMAGES = 16  # default: images of the lowest mean IoU with masks in a table, and as many of the highest
TABLE_ROWS = 10_000  # W&B shows no more rows of a table
MOST_PLOTTED = int(TABLE_ROWS**0.5)  # classes of a whole confusion matrix
SHOWN_PROTOCOL = ("set", "images", "of", "inference", "postprocess", "precision")


class Table(NamedTuple):
    """Names of columns, and rows of plain values; None where a value is undefined."""

    columns: list[str]
    rows: list[list[Any]]


def settings(
    composed: Mapping[str, Any],
    config: Mapping[str, Any],
    options: Mapping[str, str],
    segments: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return the config: the settings on which a score can depend, and the chosen options of the config groups.

    ``composed`` contains interpolations (``.hydra/config.yaml``); ``config`` is resolved (``config.yaml``).
    Callbacks that are disabled, and Hydra's own keys such as ``_partial_``, are left out. ``segments`` are those of a
    run that was resumed with other settings.
    """
    shown = _pruned(config, set(identifying_values(composed, config)))
    callbacks = {
        name: values
        for name, values in shown.get("callbacks", {}).items()
        if not isinstance(values, Mapping) or values.get("enabled", True)
    }
    facts = {"seed": config.get("seed"), "options": dict(options)} | ({"callbacks": callbacks} if callbacks else {})
    facts |= {"segments": list(segments)} if len(segments) > 1 else {}
    return {key: value for key, value in shown.items() if key != "callbacks"} | facts


def _pruned(tree: Mapping[str, Any], kept: set[str], path: str = "") -> dict[str, Any]:
    """Return the values of a tree whose dotted paths are in ``kept``."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        below = f"{path}.{key}" if path else str(key)
        if key in DIRECTIVES.keys() - {"_target_"}:
            continue
        if below in kept:
            values[key] = value
        elif isinstance(value, Mapping) and (part := _pruned(value, kept, below)):
            values[key] = part
    return values


def numbers(row: Mapping[str, str]) -> dict[str, float]:
    """Return the finite numbers of a row of metrics.csv as it is read; other cells are left out."""
    values: dict[str, float] = {}
    for name, text in row.items():
        with suppress(ValueError, TypeError):  # an empty cell; a damaged file
            values[name] = float(text)
    return {name: value for name, value in values.items() if isfinite(value)}


def curves(row: Mapping[str, float]) -> dict[str, float]:
    """Return the values of a row of metrics.csv that W&B shows over the steps, without the step itself.

    The IoU of each class is in a section of its own. The scores of an evaluation are no curves; nan and infinite values
    are left out.
    """
    return {
        name.replace(CLASS_PREFIX, CLASS_SECTION, 1) if name.startswith(CLASS_PREFIX) else name: value
        for name, value in row.items()
        if isfinite(value) and name != "step" and not _is_final(name)
    }


def final_values(row: Mapping[str, float]) -> dict[str, float]:
    """Return the values of a row of metrics.csv that belong into the summary: those of an evaluation.

    The IoU of each class is in the table of the classes instead.
    """
    return {name: value for name, value in row.items() if isfinite(value) and _is_final(name) and "/iou/" not in name}


def _is_final(name: str) -> bool:
    return name.partition("/")[0] in FINAL


def best_validation(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return ``best/miou`` and ``best/step``, the first of the highest validation mIoU; empty without a validation."""
    best: dict[str, float] = {}
    for row in rows:
        if {VALIDATION, "step"} <= row.keys() and row[VALIDATION] > best.get("best/miou", -inf):
            best = {"best/miou": row[VALIDATION], "best/step": int(row["step"])}
    return best


def class_curves(names: Iterable[str]) -> set[str]:
    """Return the names of the curves of single classes."""
    return {name for name in names if name.startswith(CLASS_SECTION)}


def without_charts(classes: set[str]) -> set[str]:
    """Return the curves of classes that get no chart of their own: all of them where there are many."""
    return classes if len(classes) > MOST_CLASS_CHARTS else set()


def results(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary of a score record (metrics.json): scores, cost, protocol and the selection of the weights."""
    name = scored_as(record)
    scored = {key: record.get(key) for key in SCORES} | _mapping(record, "fine_grained")
    cost = {key: value for key, value in _mapping(record, "cost").items() if not isinstance(value, list)}
    protocol = {key: value for key, value in _mapping(record, "protocol").items() if key in SHOWN_PROTOCOL}
    parts = {name: scored, "cost": cost, "protocol": protocol, "selection": _mapping(record, "selection")}
    values = {f"{part}/{key}": value for part, facts in parts.items() for key, value in facts.items()}
    return {key: value for key, value in values.items() if value is not None}


def _mapping(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a part of a record; empty where it is missing or has another form."""
    part = record.get(key)
    return part if isinstance(part, Mapping) else {}


def scored_as(record: Mapping[str, Any]) -> str:
    """Return the prefix of a record's scores: "final" if the images are the validation images, otherwise "test"."""
    if record.get("scored_as") in FINAL:
        return record["scored_as"]
    return "final" if _mapping(record, "selection").get("same_images") is True else "test"  # an older record


def class_table(matrices: Matrices, classes: Sequence[str]) -> Table:
    """Return IoU and accuracy in 0..1 of each class, its share of the scored pixels in 0..1, and its number of images.

    The images are those whose ground truth contains the class.
    """
    areas = class_areas(matrices.sum(axis=0))
    iou = scores(matrices.sum(axis=0)).iou
    accuracy, share = _ratio(areas.intersection, areas.target), _ratio(areas.target, areas.target.sum())
    images = (class_areas(matrices).target > 0).sum(axis=0)
    rows = zip(classes, map(number, iou), map(number, accuracy), map(number, share), images.tolist(), strict=True)
    return Table(["class", "iou", "accuracy", "pixel_share", "images"], [list(row) for row in rows])


def confusion_table(matrix: Int64[ndarray, "target prediction"], classes: Sequence[str]) -> Table:
    """Return the cells of a confusion matrix, in percent of the pixels of each ground-truth class.

    The columns have the names of W&B's plot. Of more than ``MOST_PLOTTED`` classes, only the largest cells are
    returned, as many as a table shows; a class without ground truth has 0 %.
    """
    percent = 100 * np.nan_to_num(_ratio(matrix, matrix.sum(axis=1, keepdims=True)))
    cells = [
        [target, prediction, round(float(value), 2)]
        for target, row in zip(classes, percent, strict=True)
        for prediction, value in zip(classes, row, strict=True)
    ]
    if len(cells) > TABLE_ROWS:
        cells = sorted(cells, key=lambda cell: -cell[2])[:TABLE_ROWS]
    return Table(["Actual", "Predicted", "nPredictions"], cells)


def image_table(names: Sequence[str], matrices: Matrices) -> Table:
    """Return the scores of every image, in 0..1, the lowest mean IoU first; runs are joined on the column ``image``.

    ``miou`` is the mean over the classes in the ground truth or the prediction of the image. Images of which all pixels
    are ignored have no scores and come last; of a larger set, the images with the lowest scores are returned.
    """
    rows = [
        [name, *map(number, (areas.miou(), areas.pixel_acc(), areas.mean_acc())), int(areas.target.sum())]
        for name, areas in zip(names, map(class_areas, matrices), strict=True)
    ]
    rows.sort(key=lambda row: (row[1] is None, row[1], row[0]))
    return Table(["image", "miou", "pixel_acc", "mean_acc", "pixels"], rows[:TABLE_ROWS])


def lowest_and_highest(ranked: Sequence[str], count: int) -> list[str]:
    """Return the first and the last ``count`` names, each once."""
    return list(dict.fromkeys([*ranked[:count], *ranked[max(0, len(ranked) - count) :]]))


def _ratio(part: Any, whole: Any) -> Any:
    """Return part / whole; nan where the whole is 0."""
    whole = np.broadcast_to(whole, np.shape(part))
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
