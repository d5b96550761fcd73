"""The figures of a comparison, for the page and for papers."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from fcnlab.comparison import charts
from fcnlab.comparison.charts import HeatCell, Line, Point, Row
from fcnlab.comparison.comparison import Comparison, Curve, curve
from fcnlab.comparison.confusions import Confusions
from fcnlab.comparison.drawing import SERIES, Drawing
from fcnlab.comparison.formats import MINUS, interval, percent, points
from fcnlab.comparison.grouping import Group
from fcnlab.comparison.names import short_values
from fcnlab.comparison.pairs import Pair
from fcnlab.comparison.tables import COSTS, pair_name, with_spread

MOST_ROWS = 60  # of a chart with a row for each pair or group; the table has all of them
MOST_VALUES = 12  # of a setting that has a chart
LEAST_RATIO = 1.05  # smallest ratio of highest to lowest cost for which a chart is drawn
SCALED = ("gmacs_per_image", "minutes", "parameters")  # the costs with a chart


class Figure(NamedTuple):
    """A figure; ``name`` is that of its files."""

    name: str
    title: str
    drawing: Drawing


class CurveFigure(NamedTuple):
    """A figure of learning curves, with its curves and the factor from their values to the displayed ones."""

    figure: Figure
    curves: list[Curve]
    scale: int


def difference_figure(comparison: Comparison) -> Figure | None:
    """Draw the interval of each pair, and its seeds."""
    rows = [_pair_row(pair, comparison) for pair in comparison.pairs[:MOST_ROWS]]
    if not rows:
        return None
    title = "Differences in mIoU" + _only(len(comparison.pairs), "pairs")
    description = f"{title}, with intervals, and seeds as small dots; the table has the numbers"
    against = "difference to the baseline" if comparison.baseline else "difference"
    drawing = charts.row_chart(rows, description, f"{against}, points of mIoU", zero=True)
    return Figure("differences", title, drawing)


def _only(count: int, noun: str) -> str:
    return f": the first {MOST_ROWS} of {count} {noun}" if count > MOST_ROWS else ""


def _pair_row(pair: Pair, comparison: Comparison) -> Row:
    seeds = [100 * value for value in pair.seed_differences.values()]
    found = pair.interval
    text = f"{pair.first.name} {MINUS} {pair.second.name}: {points(pair.difference)} points"
    text += f", {interval(found)} over {pair.scope}" if found else ""
    text += f"; seeds {', '.join(f'{value:+.2f}' for value in seeds)}" if seeds else ""
    ends = (100 * found.low, 100 * found.high) if found else None
    return Row(pair_name(pair, comparison), 100 * pair.difference, ends, seeds, text)


def score_figure(comparison: Comparison) -> Figure:
    """Draw the mean mIoU of each group, and its seeds."""
    rows = [_group_row(group, comparison) for group in comparison.groups[:MOST_ROWS]]
    title = "mIoU of each group" + _only(len(comparison.groups), "groups")
    description = f"{title}, with seeds as small dots; the table has the numbers"
    return Figure("scores", title, charts.row_chart(rows, description, "mIoU, %", zero=False))


def _group_row(group: Group, comparison: Comparison) -> Row:
    values = group.values("miou").tolist()
    seeds = zip(group.seeds, values, strict=True)
    text = f"{group.name}: " + ", ".join(f"seed {seed}: {percent(value)}" for seed, value in seeds)
    dots = [100 * value for value in values] if len(values) > 1 else []
    return Row(comparison.label(group), 100 * group.mean(), None, dots, text)


def curve_figures(comparison: Comparison) -> list[CurveFigure]:
    """Draw the learning curves of the best groups."""
    drawn = []
    for key, name, title, scale, log in (
        ("val/miou", "val_miou", "mIoU on the validation set", 100, False),
        ("train/loss", "train_loss", "training loss", 1, True),
    ):
        known = [(place, curve(group, key)) for place, group in enumerate(comparison.groups[:SERIES])]
        shown = [(place, found) for place, found in known if found]
        if shown:
            lines = [_line(place, found, scale, comparison) for place, found in shown]
            description = f"{title} over optimiser steps for {len(lines)} groups; the table has some of the values"
            unit = "validation mIoU, %" if scale == 100 else "training loss"
            drawing = charts.line_chart(lines, description, "optimiser steps", unit, log)
            drawn.append(CurveFigure(Figure(name, title, drawing), [found for _, found in shown], scale))
    return drawn


def _line(series: int, found: Curve, scale: int, comparison: Comparison) -> Line:
    arrays = (found.steps, scale * found.mean, scale * found.low, scale * found.high)
    steps, mean, low, high = (values.tolist() for values in arrays)
    return Line(steps, mean, low, high, series, comparison.label(found.group))


def cost_figures(comparison: Comparison) -> list[Figure]:
    """Draw mIoU against each cost that differs between groups."""
    drawn = []
    names = [(place, comparison.label(group)) for place, group in enumerate(comparison.groups)]
    for cost in COSTS:
        known = [(place, group, cost.of(group)) for place, group in enumerate(comparison.groups)]
        costs = [(place, group, value) for place, group, value in known if value is not None]
        values = [value for *_, value in costs]
        if cost.key in SCALED and values and max(values) > LEAST_RATIO * min(values):
            dots = [_point(value, group, place, f"at {value:.4g}") for place, group, value in costs]
            title = f"mIoU against {cost.title}"
            description = f"{title} of {len(dots)} groups; the tables have the numbers"
            drawing = charts.scatter(dots, names, description, cost.title, "mIoU, %")
            drawn.append(Figure(f"cost_{cost.key}", title, drawing))
    return drawn


def _point(x: float, group: Group, series: int | None, text: str) -> Point:
    mean, spread = 100 * group.mean(), 100 * (group.spread() or 0)
    tooltip = f"{group.name}: {with_spread(group, 'miou')} {text}".rstrip()
    return Point(x, mean, mean - spread, mean + spread, series, tooltip)


def setting_figures(comparison: Comparison) -> list[Figure]:
    """Draw mIoU by each setting with two values or more, but not too many."""
    drawn = []
    for key in dict.fromkeys(effect.key for effect in comparison.effects):
        values = [effect for effect in comparison.effects if effect.key == key]
        if not 1 < len(values) <= MOST_VALUES:
            continue
        names = list(short_values(key, [effect.value for effect in values]).values())
        dots = [_point(place, group, None, "") for place, effect in enumerate(values) for group in effect.groups]
        title = f"mIoU by {key}"
        description = f"{title}: groups, and the mean of each value; the table has the numbers"
        means = [100 * effect.miou for effect in values]
        drawing = charts.categories(dots, names, means, description, key, "mIoU, %")
        drawn.append(Figure(_file_name(f"setting_{key}", [figure.name for figure in drawn]), title, drawing))
    return drawn


def _file_name(text: str, taken: Sequence[str]) -> str:
    """Return a plain name that is not taken; settings may have any characters."""
    plain = re.sub(r"[^a-z0-9]+", "_", text.lower(), flags=re.ASCII)[:60].strip("_")
    return plain if plain not in taken else f"{plain}_{len(taken)}"


def confusion_figures(comparison: Comparison, found: Confusions) -> list[Figure]:
    """Draw the matrices of two groups and their difference, in percent of the pixels of a class."""
    known = [(group, matrix) for group, matrix in zip(found.groups, found.matrices, strict=True) if matrix is not None]
    if len(comparison.classes) > charts.MOST_CLASSES:
        return []
    drawn = []
    for place, (group, matrix) in enumerate(known, start=1):
        title = f"Confusion matrix of {comparison.label(group)}"
        drawn.append(Figure(f"confusion_{place}", title, _heat_map(matrix, 1, comparison, title, "")))
    if len(known) == 2:
        difference = known[0][1] - known[1][1]
        largest = float(np.nanmax(np.abs(difference), initial=0))
        title = (
            f"Difference of the confusion matrices: {f' {MINUS} '.join(comparison.label(group) for group, _ in known)}"
        )
        drawing = _heat_map(difference, largest, comparison, title, "+")
        drawn.append(Figure("confusion_difference", title, drawing))
    return drawn


def _heat_map(matrix: ndarray, largest: float, comparison: Comparison, title: str, sign: str) -> Drawing:
    """Draw a matrix; ``sign`` "+" gives positive numbers a sign, too."""
    classes = comparison.classes
    cells = [
        [
            HeatCell(
                _percent(value, f"{sign}.1f"),
                _shade(value, largest),
                f"{true} predicted as {predicted}: {_percent(value, f'{sign}.1f')} %",
                _percent(value, f"{sign}.0f"),
            )
            for predicted, value in zip(classes, row, strict=True)
        ]
        for true, row in zip(classes, matrix.tolist(), strict=True)
    ]
    description = f"{title}, percent of the pixels of each class of the ground truth"
    return charts.heat_map(cells, classes, description, "prediction", "ground truth")


def _percent(value: float, form: str) -> str:
    """Format a cell; nothing for zero and nan, so that the numbers that matter stand out."""
    text = "" if value != value else format(100 * value, form)
    return text if text.strip("+-.0") else ""


def _shade(value: float, largest: float) -> float:
    return 0.0 if value != value or not largest else value / largest


def paper_figures(comparison: Comparison, found: Confusions) -> list[Figure]:
    """Return all figures, in the order of the page."""
    differences = difference_figure(comparison)
    return [
        *([differences] if differences else []),
        score_figure(comparison),
        *confusion_figures(comparison, found),
        *(each.figure for each in curve_figures(comparison)),
        *cost_figures(comparison),
        *setting_figures(comparison),
    ]
