"""The tables of a comparison, for every output: page, terminal, Markdown, CSV and LaTeX."""

from collections.abc import Callable, Sequence
from math import isnan
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from fcnlab.comparison.classes import ClassDifference
from fcnlab.comparison.comparison import MOST_CLASS_PAIRS, Comparison, Curve
from fcnlab.comparison.formats import MINUS, MISSING, SCORE_TITLES, counted, interval, percent, points, probability
from fcnlab.comparison.grouping import Group, environments
from fcnlab.comparison.intervals import FEW_CLASS_IMAGES, Bounds, Interval
from fcnlab.comparison.names import short_values
from fcnlab.comparison.pairs import Pair
from fcnlab.comparison.ranking import ranks
from fcnlab.comparison.runs import Run
from fcnlab.metrics.fine_grained import FineGrainedScores
from fcnlab.metrics.scores import SCORES
from fcnlab.runs.origins import ENVIRONMENT, SCORING, UNKNOWN

ORDER = ("miou", *(score for score in SCORES if score != "miou"))


class Column(NamedTuple):
    """A column: its title, an explanation, and the group that it is about, if it is about one.

    LaTeX leaves out a column that is not ``printed``, because a page is narrow; the other formats have all.
    """

    title: str
    is_number: bool = True
    note: str = ""
    group: Group | None = None
    printed: bool = True


class Cell(NamedTuple):
    """A cell: its text, its number in the unit of the text, and the standard deviation over seeds.

    The number of an interval is its lower end, and ``high`` its upper end.

    ``best`` marks the best of the cells that it is compared with, which is bold in LaTeX. ``shade`` is a colour from -1
    (less) to 1 (more). ``verdict`` is that of a pair. ``groups`` are the groups that a row is about.
    """

    text: str
    value: float | None = None
    spread: float | None = None
    high: float | None = None
    best: bool = False
    shade: float | None = None
    verdict: str = ""
    groups: tuple[Group, ...] = ()


class Table(NamedTuple):
    """A table; ``name`` is that of its files."""

    name: str
    title: str
    caption: str
    columns: list[Column]
    rows: list[list[Cell]]


class Cost(NamedTuple):
    """A column of the table of costs; ``scale`` converts the recorded number to the displayed unit."""

    key: str
    title: str
    scale: float
    digits: int

    def of(self, group: Group) -> float | None:
        value = group.cost(self.key)
        return None if value is None else value * self.scale


COSTS = (
    Cost("parameters", "parameters, M", 1e-6, 2),
    Cost("gmacs_per_image", "GMACs per image", 1, 2),
    Cost("minutes", "minutes", 1, 1),
    Cost("images_per_second", "images/s", 1, 1),
    Cost("peak_memory_mib", "peak memory, MiB", 1, 0),
)


def result_tables(comparison: Comparison) -> list[Table]:
    """Return the tables of results that have rows, in the order of the page."""
    makers: tuple[Callable[[Comparison], Table], ...] = (
        difference_table,
        design_table,
        score_table,
        fine_grained_table,
        fine_grained_difference_table,
        class_table,
        cost_table,
        effect_table,
        published_table,
    )
    tables = [*(make(comparison) for make in makers), *class_difference_tables(comparison)]
    return [table for table in tables if table.rows]


def score_table(comparison: Comparison) -> Table:
    ranked = ranks(comparison)
    columns = [Column("group", False), *([Column("rank")] if ranked else []), Column("seeds")]
    columns += [Column(f"{SCORE_TITLES[score]}, %") for score in ORDER]
    scores = {score: _best_marked([_score_cell(group, score) for group in comparison.groups]) for score in ORDER}
    rows = [
        [
            group_cell(comparison, group),
            *([count_cell(ranked[group.name])] if ranked else []),
            count_cell(len(group.runs)),
            *(scores[score][place] for score in ORDER),
        ]
        for place, group in enumerate(comparison.groups)
    ]
    caption = f"Mean ± standard deviation over seeds, on {counted(comparison.images, 'image')}."
    if ranked:
        caption += " Groups that share a rank do not differ significantly from its first group."
    return Table("scores", "Scores", caption, columns, rows)


def _score_cell(group: Group, score: str) -> Cell:
    spread = group.spread(score)
    return Cell(with_spread(group, score), 100 * group.mean(score), None if spread is None else 100 * spread)


def with_spread(group: Group, score: str) -> str:
    """Format a group's mean and standard deviation over seeds, in percent."""
    spread = group.spread(score)
    return percent(group.mean(score)) + (f" ± {percent(spread)}" if spread is not None else "")


def _best_marked(cells: Sequence[Cell]) -> list[Cell]:
    """Mark the cells with the highest number as it is displayed; none if all numbers are equal."""
    known = {_displayed(cell) for cell in cells if cell.value is not None}
    best = max(known) if len(known) > 1 else None
    return [cell._replace(best=cell.value is not None and _displayed(cell) == best) for cell in cells]


def _displayed(cell: Cell) -> float:
    return float(cell.text.split()[0])


def cost_table(comparison: Comparison) -> Table:
    columns = [Column("group", False), *(Column(cost.title) for cost in COSTS)]
    known = any(cost.of(group) is not None for cost in COSTS for group in comparison.groups)
    rows = [
        [group_cell(comparison, group), *(_cost_cell(cost, group) for cost in COSTS)] for group in comparison.groups
    ]
    caption = "Means over seeds. GMACs and images per second are those of one image; minutes are those of a whole run."
    return Table("costs", "Costs", caption, columns, rows if known else [])


def _cost_cell(cost: Cost, group: Group) -> Cell:
    value = cost.of(group)
    return Cell(MISSING if value is None else f"{value:.{cost.digits}f}", value)


def difference_table(comparison: Comparison) -> Table:
    level = f"{100 * comparison.confidence:g} %"
    of_first = "group" if comparison.baseline else "first group"
    against = f"the baseline, {comparison.baseline.name}" if comparison.baseline else "the second"
    columns = [
        _pair_column(comparison),
        Column("difference, points"),
        Column(f"{level} interval", note="sorted by the lower end"),
        *_p_columns(comparison),
        Column(f"the {of_first} is", False),
        Column("compared", False, printed=False),
        Column("over images only", note="sorted by the lower end", printed=False),
        Column("over seeds only", note="sorted by the lower end", printed=False),
    ]
    caption = (
        f"Percentage points of mIoU, on the same {counted(comparison.images, 'image')}; a positive value means that the"
        f" mIoU of the {of_first} is higher than that of {against}."
    )
    rows = [_pair_row(pair, comparison) for pair in comparison.pairs]
    return Table("differences", "Differences in mIoU", caption, columns, rows)


def _p_columns(comparison: Comparison) -> list[Column]:
    """Return the columns of p values: one without a correction if there is a single pair."""
    if len(comparison.pairs) == 1:
        return [Column("p")]
    return [
        Column("p (Holm)", note="corrected for the number of pairs by Holm's method"),
        Column("p (step-down)", note="corrected by the step-down method of Westfall and Young"),
    ]


def _pair_column(comparison: Comparison) -> Column:
    return Column("group" if comparison.baseline else "pair", False)


def _pair_cell(pair: Pair, comparison: Comparison) -> Cell:
    groups = (pair.first,) if comparison.baseline else (pair.first, pair.second)
    return Cell(pair_name(pair, comparison), groups=groups)


def _pair_row(pair: Pair, comparison: Comparison) -> list[Cell]:
    return [
        _pair_cell(pair, comparison),
        Cell(points(pair.difference), 100 * pair.difference),
        _interval_cell(pair.interval),
        Cell(probability(pair.p), pair.p),
        *([Cell(probability(pair.p_step_down), pair.p_step_down)] if len(comparison.pairs) > 1 else []),
        Cell(verdict(pair), verdict=pair.verdict),
        Cell(pair.of_seeds),
        _interval_cell(pair.over_images),
        _interval_cell(pair.over_seeds),
    ]


def verdict(pair: Pair) -> str:
    """Format the verdict on the first group, with what it is about."""
    if pair.interval is None:
        return f"no verdict: {pair.scope}"
    within = f" within {100 * pair.margin:g} points" if pair.equivalent and pair.margin else ""
    return f"{pair.verdict}{within}, over {pair.scope}"


def design_table(comparison: Comparison) -> Table:
    """Return what the comparison can detect, and what it would need for the observed differences."""
    columns = [_pair_column(comparison), Column("difference, points"), Column("detectable, points")]
    columns += [Column("seeds needed"), Column("images needed")]
    rows = [
        [
            _pair_cell(pair, comparison),
            Cell(points(pair.difference), 100 * pair.difference),
            Cell(percent(pair.design.detectable), 100 * pair.design.detectable),
            _needed_cell(pair.design.seeds),
            _needed_cell(pair.design.images),
        ]
        for pair in comparison.pairs
        if pair.design
    ]
    caption = (
        "Detectable: the smallest difference that these seeds and images find with a probability of 80 %. Needed: the"
        " number of seeds of each group with these images, or of images with these seeds, for the observed difference."
        " A dash: no number suffices. These numbers are rough, because they are estimated from few seeds."
    )
    return Table("design", "Seeds and images needed", caption, columns, rows)


def _needed_cell(count: int | None) -> Cell:
    return Cell(MISSING) if count is None else Cell(f"{count:,}", count)


def _interval_cell(value: Interval | Bounds | None) -> Cell:
    return Cell(MISSING) if value is None else Cell(interval(value), 100 * value.low, high=100 * value.high)


def pair_name(pair: Pair, comparison: Comparison) -> str:
    """Return the names of both groups; only the first where all are compared with one baseline."""
    if comparison.baseline:
        return comparison.label(pair.first)
    return f"{comparison.label(pair.first)} {MINUS} {comparison.label(pair.second)}"


def titled(comparison: Comparison, group: Group) -> str:
    """Return a group's name, preceded by its label if the two differ."""
    label = comparison.label(group)
    return group.name if label == group.name else f"{label} {group.name}"


def group_cell(comparison: Comparison, group: Group) -> Cell:
    return Cell(titled(comparison, group), groups=(group,))


def count_cell(count: int) -> Cell:
    return Cell(str(count), count)


def class_table(comparison: Comparison) -> Table:
    """Return the IoU of each class: a row for each class, a column for each group."""
    cells = [_class_cells(group) for group in comparison.groups]
    columns = [Column("class", False)]
    columns += [Column(comparison.label(group), note=group.name, group=group) for group in comparison.groups]
    rows = [
        [Cell(name), *_best_marked([of_group[place] for of_group in cells])]
        for place, name in enumerate(comparison.classes)
    ]
    means = [_iou_cell(group.mean(), group.spread()) for group in comparison.groups]
    rows.append([Cell("mIoU"), *_best_marked(means)])
    caption = (
        f"Percent, mean ± standard deviation over seeds, on {counted(comparison.images, 'image')}. A dash: the class is"
        " neither in the ground truth nor in a prediction."
    )
    return Table("classes", "IoU by class", caption, columns, rows)


def _class_cells(group: Group) -> list[Cell]:
    """Return the IoU of each class; the deviation is that over the seeds with the class, if these are two or more."""
    by_seed = np.array([run.scores.iou for run in group.runs])
    cells = []
    for value, values in zip(group.iou().tolist(), by_seed.T, strict=True):
        known = values[~np.isnan(values)]
        cells.append(_iou_cell(value, float(known.std(ddof=1)) if len(known) > 1 else None))
    return cells


def _iou_cell(value: float, spread: float | None) -> Cell:
    if value != value:
        return Cell(MISSING)
    text = percent(value, 1) + (f" ± {percent(spread, 1)}" if spread is not None else "")
    return Cell(text, 100 * value, None if spread is None else 100 * spread, shade=value)


def fine_grained_table(comparison: Comparison) -> Table:
    names = ("miou", *FineGrainedScores._fields)
    columns = [Column("group", False), *(Column(f"{SCORE_TITLES[name]}, %") for name in names)]
    scores = [_best_marked([_score_cell(group, name) for group in comparison.groups]) for name in names]
    named = [group_cell(comparison, group) for group in comparison.groups]
    rows = [list(cells) for cells in zip(named, *scores, strict=True)]
    caption = (
        "From the IoU of single images, mean ± standard deviation over seeds. mIoU-I: the mean over images of the"
        " mean over their classes. mIoU-C: the mean over classes of the mean over the images with the class. Worst:"
        " those of the worst 10 % of the images, and of the images of each class."
    )
    return Table("fine_grained", "Fine-grained mIoU", caption, columns, rows)


def fine_grained_difference_table(comparison: Comparison) -> Table:
    """Return the differences of the first pairs; no rows on few images."""
    titles = [SCORE_TITLES[name] for name in FineGrainedScores._fields]
    level = f"{100 * comparison.confidence:g} %"
    columns = [_pair_column(comparison)]
    for title in titles:
        columns += [Column(f"{title}, points"), Column(f"{title}, {level} interval", note="sorted by the lower end")]
    rows = []
    for pair, found in zip(comparison.pairs, comparison.fine_grained, strict=False):
        cells = [(Cell(points(each.value), 100 * each.value), _interval_cell(each)) for each in found.values()]
        rows += [[_pair_cell(pair, comparison), *(cell for both in cells for cell in both)]] if found else []
    caption = (
        "Percentage points. The intervals are over images only, for these trained models: a paired bootstrap, as for"
        " mIoU. They are not corrected for the number of scores and pairs."
    )
    return Table("fine_grained_differences", "Differences in fine-grained mIoU", caption, columns, rows)


def class_difference_tables(comparison: Comparison) -> list[Table]:
    """Return a table for each of the first pairs, which have the best groups."""
    pairs = comparison.pairs[:MOST_CLASS_PAIRS]
    return [_class_difference_table(place, pair, comparison) for place, pair in enumerate(pairs, start=1)]


def _class_difference_table(place: int, pair: Pair, comparison: Comparison) -> Table:
    level = f"{100 * comparison.confidence:g} %"
    first, second = (comparison.label(group) for group in (pair.first, pair.second))
    columns = [Column("class", False), Column("images"), Column("pixels")]
    columns += [Column(f"{first}, %"), Column(f"{second}, %"), Column("difference, points")]
    columns += [Column(f"{level} interval", note="sorted by the lower end"), Column("note", False)]
    rows = [
        [
            Cell(each.name),
            count_cell(each.images),
            Cell(f"{each.pixels:,}", each.pixels),
            *_best_marked([_iou_cell(each.first, None), _iou_cell(each.second, None)]),
            Cell(MISSING) if isnan(each.difference) else Cell(points(each.difference), 100 * each.difference),
            _interval_cell(each.interval),
            Cell(_why_no_interval(each, pair)),
        ]
        for each in pair.class_differences
    ]
    scope = f"The intervals are over {pair.scope} and hold for all classes at once." if pair.interval else ""
    caption = (
        f"Images and pixels of the ground truth that have the class; IoU, mean over {pair.of_seeds}. {scope} A dash:"
        f" the class is found in fewer than {FEW_CLASS_IMAGES} images, or neither group finds it with all seeds."
    )
    return Table(f"class_differences_{place}", f"IoU by class: {first} {MINUS} {second}", caption, columns, rows)


def _why_no_interval(each: ClassDifference, pair: Pair) -> str:
    if each.found < FEW_CLASS_IMAGES:
        return f"found in {counted(each.found, 'image')}"
    # Classes with equal IoU, as of one model that is evaluated twice, have no variance.
    is_missed = pair.interval and each.interval is None and each.difference != 0
    return "not found with all seeds" if is_missed and len(pair.first.runs) + len(pair.second.runs) > 2 else ""


def published_table(comparison: Comparison) -> Table:
    """Return measured and published scores; no rows if the comparison covers only a part of the data set."""
    columns = [Column("group", False), Column("score", False), Column("measured, %"), Column("published, %")]
    rows = [
        [
            group_cell(comparison, group),
            Cell(SCORE_TITLES[score]),
            Cell(percent(group.mean(score)), 100 * group.mean(score)),
            Cell(f"{value:.2f}", value),
            Cell(f"{100 * group.mean(score) - value:+.2f}", 100 * group.mean(score) - value),
        ]
        for group in comparison.groups
        for score, value in group.published().items()
        if comparison.images == comparison.of
    ]
    caption = "Published scores are those that the experiment quotes."
    title = "Measured and published scores"
    return Table("published", title, caption, [*columns, Column("difference, points")], rows)


def effect_table(comparison: Comparison) -> Table:
    columns = [Column("setting", False), Column("value", False), Column("groups"), Column("mean mIoU, %")]
    columns += [Column("difference to the first value, points"), Column("matched groups")]
    shown = {
        effect.key: short_values(effect.key, [other.value for other in comparison.effects if other.key == effect.key])
        for effect in {effect.key: effect for effect in comparison.effects}.values()
    }
    rows = [
        [
            Cell(effect.key),
            Cell(shown[effect.key][effect.value]),
            count_cell(len(effect.groups)),
            Cell(percent(effect.miou), 100 * effect.miou),
            Cell(MISSING) if effect.difference is None else Cell(points(effect.difference), 100 * effect.difference),
            count_cell(effect.matched),
        ]
        for effect in comparison.effects
    ]
    caption = (
        "The difference is relative to the first value of the setting, averaged over groups that agree in all other"
        f" settings, on the seeds that are compared and the same {counted(comparison.images, 'image')}."
    )
    return Table("settings", "Effect of each setting", caption, columns, rows)


def run_table(comparison: Comparison) -> Table:
    columns = [Column("folder", False), Column("group", False), Column("seed"), Column("mIoU, %")]
    columns += [Column("images in record"), Column("minutes"), *(Column(key, False) for key in ENVIRONMENT)]
    rows = [
        [
            Cell(run.location, groups=(group,)),
            Cell(group.name),
            Cell(MISSING) if run.seed is None else count_cell(run.seed),
            Cell(percent(run.scores.miou), 100 * run.scores.miou),
            count_cell(comparison.scored[run.folder]),
            Cell(f"{run.cost['minutes']:.1f}", run.cost["minutes"]) if "minutes" in run.cost else Cell(MISSING),
            *(Cell(environment_text(run, key)) for key in ENVIRONMENT),
        ]
        for group in comparison.groups
        for run in group.runs
    ]
    caption = (
        f"mIoU on the {counted(comparison.images, 'image')} of this comparison; images in record: the number in the"
        " run's own record."
    )
    return Table("runs", "Runs", caption, columns, rows)


def excluded_table(comparison: Comparison) -> Table:
    rows = [[Cell(str(out.folder)), Cell(out.reason)] for out in comparison.left_out]
    caption = "Folders that are not part of this comparison."
    return Table("excluded", "Excluded", caption, [Column("folder", False), Column("reason", False)], rows)


def curve_table(name: str, title: str, curves: Sequence[Curve], scale: int, comparison: Comparison) -> Table:
    """Return the first, middle and last value of learning curves."""
    columns = [Column("group", False)]
    columns += [Column(f"{which}{part}") for which in ("first", "middle", "last") for part in ("", ", step")]
    rows = []
    for curve in curves:
        places = (0, len(curve.steps) // 2, -1)
        known = [(scale * float(curve.mean[place]), float(curve.steps[place])) for place in places]
        cells = [(Cell(f"{value:.4g}", value), Cell(f"{step:.0f}", step)) for value, step in known]
        rows.append([group_cell(comparison, curve.group), *(cell for pair in cells for cell in pair)])
    return Table(name, title, "Mean over seeds.", columns, rows)


def headline(comparison: Comparison) -> str:
    groups, runs = counted(len(comparison.groups), "group"), counted(comparison.runs, "run")
    return f"{groups}, {runs} on {comparison.scope}"


def made_with(comparison: Comparison) -> list[str]:
    """Return a line for commits, torch versions and devices each, with the number of runs."""
    lines = []
    for key in ENVIRONMENT:
        counts = environments(comparison.groups, key)
        lines.append(f"{key}: " + ", ".join(f"{value} ({counted(count, 'run')})" for value, count in counts.items()))
    return lines


def environment_text(run: Run, key: str) -> str:
    """Return the environment of training, and that of evaluation if different; commits are abbreviated."""
    trained = run.environment.get(key, UNKNOWN)
    scored = run.environment.get(SCORING + key, trained)
    known = [_short_commit(value) if key == "commit" else value for value in (trained, scored)]
    return known[0] if trained == scored else f"{known[0]}, scored with {known[1]}"


def _short_commit(value: str) -> str:
    head, plus, changes = value.partition("+")
    return head[:10] + plus + changes


def confusion_table(comparison: Comparison, name: str, group: Group, matrix: ndarray) -> Table:
    """Return a row-normalised confusion matrix in percent."""
    columns = [Column("ground truth", False), *(Column(predicted) for predicted in comparison.classes)]
    rows = [
        [Cell(true), *(Cell(percent(value, 1), 100 * value if value == value else None) for value in row)]
        for true, row in zip(comparison.classes, matrix.tolist(), strict=True)
    ]
    caption = "Percent of the pixels of each class of the ground truth, by predicted class; all seeds together."
    return Table(name, f"Confusion matrix of {group.name}", caption, columns, rows)
