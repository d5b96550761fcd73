"""A comparison as CSV: a table as it is shown, and all facts with unrounded numbers."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcnlab.comparison.classes import ClassDifference
from fcnlab.comparison.comparison import Comparison
from fcnlab.comparison.grouping import Group, GroupingRules
from fcnlab.comparison.pairs import Pair, image_accuracies, image_scores
from fcnlab.comparison.tables import COSTS, Cell, Column, Table
from fcnlab.escaping import escape_csv
from fcnlab.files.writing import atomic_write
from fcnlab.metrics.fine_grained import FineGrainedScores
from fcnlab.metrics.scores import SCORES
from fcnlab.runs.selection import describe_selection

SCORE_KEYS = (*SCORES, *FineGrainedScores._fields)


def table_csv(table: Table) -> str:
    """Return a table with unrounded numbers in its units; an interval and a standard deviation have own columns."""
    parts = [_parts(column, [row[place] for row in table.rows]) for place, column in enumerate(table.columns)]
    head = [title for part in parts for title in part]
    rows = zip(*(values for part in parts for values in part.values()), strict=True)
    file = io.StringIO()
    csv.writer(file).writerows([map(escape_csv, head), *(map(_cell, row) for row in rows)])
    return file.getvalue()


def _parts(column: Column, cells: Sequence[Cell]) -> dict[str, list[Any]]:
    """Return the columns that one column of a table becomes, with the values of its cells."""
    title = column.title
    if not column.is_number:
        return {title: [cell.text for cell in cells]}
    values = [cell.value for cell in cells]
    if any(cell.high is not None for cell in cells):
        return {f"{title}, low": values, f"{title}, high": [cell.high for cell in cells]}
    spreads = [cell.spread for cell in cells]
    deviation = {f"{title}, standard deviation": spreads} if any(spread is not None for spread in spreads) else {}
    return {title: values} | deviation


def write_csv(folder: Path, comparison: Comparison) -> None:
    """Write five CSV files with unrounded numbers: of groups, pairs, classes of pairs, images and runs."""
    _write(folder / "groups.csv", [_group_facts(group, comparison) for group in comparison.groups])
    _write(folder / "pairs.csv", [_pair_facts(pair) for pair in comparison.pairs])
    classes = [(pair, each) for pair in comparison.pairs for each in pair.class_differences]
    _write(folder / "class_differences.csv", [_class_facts(pair, each) for pair, each in classes])
    _write(folder / "per_image.csv", _image_facts(comparison))
    runs = [(group, run) for group in comparison.groups for run in group.runs]
    iou = [dict(zip(run.classes, run.scores.iou.tolist(), strict=True)) for _, run in runs]
    _write(
        folder / "runs.csv",
        [
            {"group": group.name, "seed": run.seed, "folder": run.location, "images": len(run.names)}
            | {"images_of_record": comparison.scored[run.folder], "selected": describe_selection(run.selection)}
            | {score: run.score(score) for score in SCORE_KEYS}
            | {f"iou/{name}": value for name, value in per_class.items()}
            | {cost.key: run.cost.get(cost.key) for cost in COSTS}
            | run.environment
            | {key: value for key, value in run.settings.items() if GroupingRules.merges(key, "source")}
            for (group, run), per_class in zip(runs, iou, strict=True)
        ],
    )


def _group_facts(group: Group, comparison: Comparison) -> dict[str, Any]:
    facts: dict[str, Any] = {"group": group.name, **group.parts, "runs": len(group.runs)}
    facts |= {"seeds": " ".join(map(str, group.seeds))}
    for score in SCORE_KEYS:
        facts |= {score: group.mean(score), f"{score}_deviation": group.spread(score)}
    facts |= {f"iou/{name}": value for name, value in zip(comparison.classes, group.iou().tolist(), strict=True)}
    return facts | {cost.key: group.cost(cost.key) for cost in COSTS}


def _pair_facts(pair: Pair) -> dict[str, Any]:
    found, images, seeds, design = pair.interval, pair.over_images, pair.over_seeds, pair.design
    analysis = pair.two_factor
    return {
        "first": pair.first.name,
        "second": pair.second.name,
        "miou_difference": pair.difference,
        "low": found and found.low,
        "high": found and found.high,
        "p": found and found.p,
        "p_holm": pair.p,
        "p_step_down": pair.p_step_down,
        "p_equivalent_holm": pair.p_equivalent,
        "verdict": pair.verdict,
        "verdict_over": pair.scope,
        "first_seeds": pair.seeds[0],
        "second_seeds": pair.seeds[1],
        "of_seeds": pair.of_seeds,
        "images": pair.images,
        "standard_error": analysis and analysis.variance**0.5,
        "degrees_of_freedom": analysis and analysis.freedom,
        "variance_shared_by_seeds": analysis and analysis.shared,
        "detectable_difference": design and design.detectable,
        "seeds_needed": design and design.seeds,
        "images_needed": design and design.images,
        "images_low": images and images.low,
        "images_high": images and images.high,
        "images_p": images and images.p,
        "seeds_low": seeds and seeds.low,
        "seeds_high": seeds and seeds.high,
        "seeds_p": seeds and seeds.p,
    }


def _image_facts(comparison: Comparison) -> list[dict[str, Any]]:
    """Return for each image the number of classes in its ground truth, and the mean scores of each group."""
    first = comparison.groups[0].runs[0]
    columns: dict[str, Sequence[Any]] = {"image": first.names}
    columns["classes"] = np.count_nonzero(first.areas.target, axis=1).tolist()
    for group in comparison.groups:
        columns[f"miou/{group.name}"] = image_scores(group).tolist()
        columns[f"pixel_acc/{group.name}"] = image_accuracies(group).tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _class_facts(pair: Pair, each: ClassDifference) -> dict[str, Any]:
    return {
        "first": pair.first.name,
        "second": pair.second.name,
        "class": each.name,
        "images": each.images,
        "pixels": each.pixels,
        "first_iou": each.first,
        "second_iou": each.second,
        "iou_difference": each.difference,
        "low": each.interval and each.interval.low,
        "high": each.interval and each.interval.high,
        "interval_over": pair.scope,
        "images_found": each.found,
    }


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_write(path) as part, part.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(map(escape_csv, columns))
        writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)


def _cell(value: Any) -> Any:
    """Return a CSV cell: empty for None and nan, which not all readers know; text is escaped."""
    if value is None or value != value:
        return ""
    return value if isinstance(value, (bool, int, float)) else escape_csv(str(value))
