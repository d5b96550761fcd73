"""Format a comparison for the terminal, as Markdown and as CSV."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fcnlab.comparison.comparison import Comparison, environments
from fcnlab.comparison.grouping import Group, GroupingRules
from fcnlab.comparison.intervals import Interval
from fcnlab.comparison.pairs import Pair, image_accuracies, image_scores
from fcnlab.comparison.plan import Plan
from fcnlab.comparison.runs import Run
from fcnlab.escaping import escape_csv, escape_line, escape_markdown
from fcnlab.files.writing import atomic_write
from fcnlab.metrics.scores import SCORES
from fcnlab.runs.origins import ENVIRONMENT, SCORING, UNKNOWN
from fcnlab.runs.selection import describe_selection

TERMINAL_ROWS = 20  # the files contain all rows
MOST_PLANS = 10  # pairs
MISSING = "-"
VERDICTS = ("better", "higher", "equivalent", "undecided", "lower", "worse", "none")


class Cost(NamedTuple):
    """A cost column of the table of groups; ``scale`` converts the recorded number to the displayed unit."""

    key: str
    title: str
    scale: float
    digits: int

    def of(self, group: Group) -> float | None:
        value = group.cost(self.key)
        return None if value is None else value * self.scale


COSTS = (
    Cost("parameters", "parameters, M", 1e-6, 2),
    Cost("gmacs_per_image", "GMACs", 1, 2),
    Cost("minutes", "minutes", 1, 1),
    Cost("images_per_second", "images/s", 1, 1),
    Cost("peak_memory_mib", "peak memory, MiB", 1, 0),
)
Table = tuple[list[str], list[list[str]]]


def percent(value: float | None, digits: int = 2) -> str:
    """Format a ratio in percent; a dash for None and nan."""
    return MISSING if value is None or value != value else f"{100 * value:.{digits}f}"


def points(value: float) -> str:
    """Format a difference in percentage points, with its sign."""
    return f"{round(100 * value, 2) + 0.0:+.2f}"  # -0.0 + 0.0 is 0.0


def probability(p: float | None) -> str:
    """Format a p value with its significant digits."""
    if p is None:
        return MISSING
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def interval(value: Interval | None) -> str:
    """Format the ends of an interval in percentage points."""
    return MISSING if value is None else f"{points(value.low)} to {points(value.high)}"


def with_spread(group: Group, score: str) -> str:
    """Format a group's mean and standard deviation over seeds, in percent."""
    spread = group.spread(score)
    return percent(group.mean(score)) + (f" ± {percent(spread)}" if spread is not None else "")


def cost_text(cost: Cost, group: Group) -> str:
    value = cost.of(group)
    return MISSING if value is None else f"{value:.{cost.digits}f}"


def group_table(comparison: Comparison) -> Table:
    head = ["group", "seeds", *SCORES, *(cost.title for cost in COSTS)]
    rows = [
        [
            titled(comparison, group),
            str(len(group.runs)),
            *(with_spread(group, score) for score in SCORES),
            *(cost_text(cost, group) for cost in COSTS),
        ]
        for group in comparison.groups
    ]
    return head, rows


def pair_table(comparison: Comparison) -> Table:
    level = f"{100 * comparison.confidence:g} %"
    head = [
        "pair",
        "mIoU",
        f"{level} interval",
        "p (Holm)",
        "p (step-down)",
        "over images",
        "over seeds",
        "the first is",
    ]
    return head, [_pair_row(pair, comparison) for pair in comparison.pairs]


def _pair_row(pair: Pair, comparison: Comparison) -> list[str]:
    return [
        f"{comparison.label(pair.first)} - {comparison.label(pair.second)}, n = {pair.images}",
        points(pair.difference),
        interval(pair.interval),
        probability(pair.p),
        probability(pair.p_step_down),
        interval(pair.over_images),
        interval(pair.over_seeds),
        f"{verdict(pair)}; {pair.of_seeds}",
    ]


def verdict(pair: Pair) -> str:
    """Format the verdict on the first group, with what it is about."""
    if pair.interval is None:
        return f"no verdict: {pair.scope}"
    within = f" within {100 * pair.margin:g} points" if pair.equivalent and pair.margin else ""
    return f"{pair.verdict}{within}, over {pair.scope}"


def titled(comparison: Comparison, group: Group) -> str:
    """Return a group's name, preceded by its label if the two differ."""
    label = comparison.label(group)
    return group.name if label == group.name else f"{label} {group.name}"


def class_table(comparison: Comparison) -> Table:
    rows = [[titled(comparison, group), *map(percent, group.iou().tolist())] for group in comparison.groups]
    return ["group", *comparison.classes], rows


def plan_text(comparison: Comparison, plans: Sequence[Plan]) -> str:
    """Format which differences would be found with how many seeds and images."""
    parts = [
        "Plan: differences in mIoU, in percentage points, that would be found with a probability of 80 %, by number of"
        " seeds of each group and of images. The variances are those of these runs; from few seeds they are rough."
    ]
    for plan in plans[:MOST_PLANS]:
        head = ["seeds", *(counted(images, "image") for images in plan.images)]
        rows = [
            [str(seeds), *(f"{100 * value:.2f}" for value in values)]
            for seeds, values in zip(plan.seeds, plan.detectable, strict=True)
        ]
        parts += [f"{_plan_head(plan, comparison)}\n{_aligned((head, rows))}"]
    return "\n\n".join(parts)


def _plan_head(plan: Plan, comparison: Comparison) -> str:
    pair, names = plan.pair, (comparison.label(group) for group in (plan.pair.first, plan.pair.second))
    needs = _needs(pair)
    return escape_line(f"{' - '.join(names)}: observed {points(pair.difference)}, {pair.of_seeds}. {needs}")


def _needs(pair: Pair) -> str:
    """Return what the observed difference would need to be found."""
    assert pair.design is not None
    seeds, images = pair.design.seeds, pair.design.images
    with_seeds = f"{seeds} seeds on these images" if seeds else "more than 1,000 seeds on these images"
    with_images = f"{images:,} images with these seeds" if images else "more than a million images with these seeds"
    return f"The observed difference would need {with_seeds}, or {with_images}."


def published_table(comparison: Comparison) -> Table:
    """Return measured and published scores; no rows if the comparison covers only a part of the data set."""
    rows = [
        [group.name, score, percent(group.mean(score)), f"{value:.2f}", f"{100 * group.mean(score) - value:+.2f}"]
        for group in comparison.groups
        for score, value in group.published().items()
        if comparison.images == comparison.of
    ]
    return ["group", "score", "measured", "published", "difference"], rows


def run_table(comparison: Comparison) -> Table:
    rows = [
        [
            run.location,
            group.name,
            MISSING if run.seed is None else str(run.seed),
            percent(run.scores.miou),
            str(comparison.scored[run.folder]),
            *(environment_text(run, key) for key in ENVIRONMENT),
        ]
        for group in comparison.groups
        for run in group.runs
    ]
    return ["folder", "group", "seed", "mIoU", "images in record", *ENVIRONMENT], rows


def effect_table(comparison: Comparison) -> Table:
    rows = [
        [
            effect.key,
            effect.value,
            str(len(effect.groups)),
            percent(effect.miou),
            MISSING if effect.difference is None else points(effect.difference),
            str(effect.matched),
        ]
        for effect in comparison.effects
    ]
    difference = "difference to the first value, other settings equal"
    return ["setting", "value", "groups", "mean mIoU", difference, "matched groups"], rows


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def headline(comparison: Comparison) -> str:
    groups, runs = counted(len(comparison.groups), "group"), counted(comparison.runs, "run")
    return f"{groups}, {runs} on {comparison.scope}; scores in percent, mean ± standard deviation over seeds"


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


def answers(comparison: Comparison) -> list[str]:
    """Return the results as sentences; many pairs are summarised by counts."""
    pairs = comparison.pairs
    if not pairs:
        return ["Only one group: there is nothing to compare."]
    if len(pairs) <= 10:
        return [_answer(pair, comparison) for pair in pairs]
    assert comparison.baseline is not None
    counts = Counter(pair.verdict for pair in pairs)
    summary = ", ".join(f"{counts[word]} {word}" for word in VERDICTS if counts[word])
    ahead = [pair for pair in pairs if pair.verdict in ("better", "higher")]
    return [
        f"Compared with {comparison.label(comparison.baseline)}: {summary}.",
        *(_answer(pair, comparison) for pair in ahead[:5]),
    ]


def _answer(pair: Pair, comparison: Comparison) -> str:
    """Return the result of a pair as sentences, from the side of the leading group."""
    sign = 1 if pair.leader is pair.first else -1
    leader, trailing = (comparison.label(group) for group in (pair.first, pair.second)[::sign])
    size = _size(pair, sign)
    match pair.verdict:
        case "none":
            return f"No verdict on {leader} and {trailing}: {size}, on {pair.scope}."
        case "equivalent":
            margin = f"{100 * (pair.margin or 0):g}"
            return f"{leader} and {trailing} are equivalent within {margin} points of mIoU: {size}."
        case "undecided":
            return f"Undecided between {leader} and {trailing}: {size}.{_advice(pair)}"
        case "better" | "worse":
            return f"{leader} is better than {trailing}: {size}."
        case _:
            return f"{leader} has a higher mIoU than {trailing}, for these trained models: {size}; {pair.of_seeds}."


def _size(pair: Pair, sign: int) -> str:
    """Format the difference and, if available, its interval and what that is over."""
    value, found = f"{points(sign * pair.difference)} points of mIoU", pair.interval
    if found is None:
        return value
    low, high = sorted((sign * found.low, sign * found.high))
    over = f"{pair.of_seeds} and {pair.images} images" if pair.two_factor else f"{pair.images} images"
    return f"{value}, {points(low)} to {points(high)} over {over}"


def _advice(pair: Pair) -> str:
    """Return what an undecided comparison could have found, and what would decide it."""
    if pair.design is None:
        return f" {pair.of_seeds.capitalize()}."
    return (
        f" These seeds and images find differences of {100 * pair.design.detectable:.1f} points or more. {_needs(pair)}"
    )


def terminal(comparison: Comparison) -> str:
    """Format the comparison for the terminal; long tables are truncated."""
    parts = [escape_line(headline(comparison)), _aligned(group_table(comparison))]
    if comparison.pairs:
        parts += [
            f"Differences in mIoU, in percentage points, on {counted(comparison.images, 'image')},"
            f" {comparison.resamples} bootstrap resamples",
            _aligned(pair_table(comparison)),
        ]
    if published_table(comparison)[1]:
        parts += ["Measured and published scores", _aligned(published_table(comparison))]
    notes = map(escape_line, [*comparison.notes, *comparison.selection])
    return "\n\n".join([*parts, *notes, "\n".join(map(escape_line, answers(comparison)))])


def _aligned(table: Table) -> str:
    head, rows = table
    shown = [list(map(escape_line, row)) for row in rows[:TERMINAL_ROWS]]
    widths = [max(map(len, column)) for column in zip(head, *shown, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *shown)]
    more = [f"({len(rows) - TERMINAL_ROWS} more in the files)"] if len(rows) > TERMINAL_ROWS else []
    return "\n".join(f"  {line.rstrip()}" for line in [*lines, *more])


def markdown(comparison: Comparison) -> str:
    """Format the whole comparison as Markdown."""
    parts = ["# Comparison", escape_markdown(headline(comparison)) + ".", _bullets(answers(comparison))]
    parts += [_bullets([*comparison.notes, *comparison.selection])]
    titled = {
        "Differences in mIoU, in percentage points": pair_table,
        "Scores and costs": group_table,
        "IoU by class": class_table,
        "Effect of each setting": effect_table,
        "Measured and published scores": published_table,
    }
    for title, make in titled.items():
        if make(comparison)[1]:
            parts += [f"## {title}", _pipes(make(comparison))]
    parts += ["## Runs", _pipes(run_table(comparison))]
    parts += ["Software and devices of training and evaluation:", _bullets(made_with(comparison))]
    if comparison.left_out:
        parts += ["## Excluded", _bullets([f"{out.folder}: {out.reason}" for out in comparison.left_out])]
    return "\n\n".join(parts) + "\n"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)


def _pipes(table: Table) -> str:
    head, rows = table
    align = ["---", *["---:"] * (len(head) - 1)]
    lines = [list(map(escape_markdown, head)), align, *(list(map(escape_markdown, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_csv(folder: Path, comparison: Comparison) -> None:
    """Write ``groups.csv``, ``pairs.csv``, ``runs.csv`` and ``per_image.csv``, with unrounded numbers."""
    _write(folder / "groups.csv", [_group_facts(group, comparison) for group in comparison.groups])
    _write(folder / "pairs.csv", [_pair_facts(pair) for pair in comparison.pairs])
    _write(folder / "per_image.csv", _image_facts(comparison))
    runs = [(group, run) for group in comparison.groups for run in group.runs]
    iou = [dict(zip(run.classes, run.scores.iou.tolist(), strict=True)) for _, run in runs]
    _write(
        folder / "runs.csv",
        [
            {"group": group.name, "seed": run.seed, "folder": run.location, "images": len(run.names)}
            | {"images_of_record": comparison.scored[run.folder], "selected": describe_selection(run.selection)}
            | {score: getattr(run.scores, score) for score in SCORES}
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
    for score in SCORES:
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
