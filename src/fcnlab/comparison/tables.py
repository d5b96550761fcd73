"""A comparison as text: for the terminal, as Markdown, as CSV."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fcnlab.comparison.comparison import Comparison, environments
from fcnlab.comparison.grouping import Group, GroupingRules
from fcnlab.comparison.intervals import Interval
from fcnlab.comparison.pairs import Pair
from fcnlab.comparison.runs import Run
from fcnlab.escaping import escape_csv, escape_line, escape_markdown
from fcnlab.files.writing import atomic_write
from fcnlab.metrics.scores import SCORES
from fcnlab.runs.origins import ENVIRONMENT, SCORING, UNKNOWN
from fcnlab.runs.selection import describe_selection

SHOWN = 20  # rows in the terminal; the files have all
NOTHING = "-"


class Cost(NamedTuple):
    """A column of what a group's runs took; ``scale`` turns the record's number into the shown one."""

    key: str
    title: str
    scale: float
    digits: int

    def of(self, found: Group) -> float | None:
        value = found.cost(self.key)
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
    """A ratio in percent; a dash for nothing and for nan."""
    return NOTHING if value is None or value != value else f"{100 * value:.{digits}f}"


def points(value: float) -> str:
    """A difference in percentage points, with its sign."""
    return f"{round(100 * value, 2) + 0.0:+.2f}"  # -0.0 + 0.0 is 0.0


def probability(p: float | None) -> str:
    """With as many digits as mean something."""
    if p is None:
        return NOTHING
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def interval(found: Interval | None) -> str:
    """Both ends, in percentage points."""
    return NOTHING if found is None else f"{points(found.low)} to {points(found.high)}"


def with_spread(found: Group, score: str) -> str:
    """Mean and standard deviation over seeds, in percent."""
    spread = found.spread(score)
    return percent(found.mean(score)) + (f" ± {percent(spread)}" if spread is not None else "")


def cost_text(cost: Cost, found: Group) -> str:
    value = cost.of(found)
    return NOTHING if value is None else f"{value:.{cost.digits}f}"


def group_table(comparison: Comparison) -> Table:
    head = ["group", "seeds", *SCORES, *(cost.title for cost in COSTS)]
    rows = [
        [
            titled(comparison, found),
            str(len(found.runs)),
            *(with_spread(found, score) for score in SCORES),
            *(cost_text(cost, found) for cost in COSTS),
        ]
        for found in comparison.groups
    ]
    return head, rows


def pair_table(comparison: Comparison) -> Table:
    level = f"{100 * comparison.confidence:g} %"
    head = ["pair", "mIoU", f"over images, {level}", "p (Holm)", f"over seeds, {level}", "p (Holm)", "the first is"]
    return head, [_pair_row(pair, comparison) for pair in comparison.pairs]


def _pair_row(pair: Pair, comparison: Comparison) -> list[str]:
    return [
        f"{comparison.label(pair.one)} - {comparison.label(pair.other)}, n = {pair.images}",
        points(pair.difference),
        interval(pair.over_images),
        probability(pair.p_images),
        interval(pair.over_seeds),
        probability(pair.p_seeds),
        f"{pair.verdict}; {pair.of_seeds}",
    ]


def titled(comparison: Comparison, found: Group) -> str:
    """A group's name, behind its label where that is another."""
    label = comparison.label(found)
    return found.name if label == found.name else f"{label} {found.name}"


def class_table(comparison: Comparison) -> Table:
    rows = [[titled(comparison, found), *map(percent, found.iou().tolist())] for found in comparison.groups]
    return ["group", *comparison.classes], rows


def published_table(comparison: Comparison) -> Table:
    """Without rows where the comparison is of a part of the set: published scores are of all of it."""
    rows = [
        [found.name, score, percent(found.mean(score)), f"{value:.2f}", f"{100 * found.mean(score) - value:+.2f}"]
        for found in comparison.groups
        for score, value in found.published().items()
        if comparison.images == comparison.of
    ]
    return ["group", "score", "measured", "published", "difference"], rows


def run_table(comparison: Comparison) -> Table:
    rows = [
        [
            str(run.folder),
            found.name,
            NOTHING if run.seed is None else str(run.seed),
            percent(run.scores.miou),
            str(comparison.scored[run.folder]),
            *(environment_text(run, key) for key in ENVIRONMENT),
        ]
        for found in comparison.groups
        for run in found.runs
    ]
    return ["folder", "group", "seed", "mIoU", "images in its record", *ENVIRONMENT], rows


def effect_table(comparison: Comparison) -> Table:
    rows = [
        [
            effect.key,
            effect.value,
            str(len(effect.groups)),
            percent(effect.miou),
            NOTHING if effect.difference is None else points(effect.difference),
            str(effect.matched),
        ]
        for effect in comparison.effects
    ]
    return ["setting", "value", "groups", "mean mIoU", "to the first value, all else equal", "matched groups"], rows


def counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


def headline(comparison: Comparison) -> str:
    groups, runs = counted(len(comparison.groups), "group"), counted(comparison.runs, "run")
    return f"{groups} of {runs} on {comparison.scope}; scores in percent, mean ± standard deviation over seeds"


def made_with(comparison: Comparison) -> list[str]:
    """The commits, torch versions and devices, and of how many runs each."""
    lines = []
    for key in ENVIRONMENT:
        found = environments(comparison.groups, key)
        lines.append(f"{key}: " + ", ".join(f"{value} ({counted(count, 'run')})" for value, count in found.items()))
    return lines


def environment_text(run: Run, key: str) -> str:
    """What it was trained with, and what an evaluation scored it with where that is another; of a commit the start."""
    trained = run.environment.get(key, UNKNOWN)
    scored = run.environment.get(SCORING + key, trained)
    known = [_short_commit(value) if key == "commit" else value for value in (trained, scored)]
    return known[0] if trained == scored else f"{known[0]}, scored with {known[1]}"


def _short_commit(value: str) -> str:
    head, plus, changes = value.partition("+")
    return head[:10] + plus + changes


def answers(comparison: Comparison) -> list[str]:
    """Which is better, in sentences; many pairs are counted."""
    pairs = comparison.pairs
    if not pairs:
        return ["There is one group: nothing to compare it with."]
    if len(pairs) <= 10:
        return [_answer(pair, comparison) for pair in pairs]
    assert comparison.baseline is not None
    ahead = [pair for pair in pairs if pair.better is pair.one]
    behind = [pair for pair in pairs if pair.better is pair.other]
    rest = len(pairs) - len(ahead) - len(behind)
    unknown = sum(pair.sure_of_seeds is None for pair in [*ahead, *behind])
    limit = f" ({unknown} of these over images only, seeds unknown)" if unknown else ""
    return [
        f"Against {comparison.label(comparison.baseline)}: {len(ahead)} better, {len(behind)} worse{limit}, {rest} of"
        " which neither can be said.",
        *(_answer(pair, comparison) for pair in ahead[:5]),
    ]


def _answer(pair: Pair, comparison: Comparison) -> str:
    """From the leader's side."""
    sign = 1 if pair.leader is pair.one else -1
    leader, other = (comparison.label(one) for one in (pair.one, pair.other)[::sign])
    if pair.over_images is None:
        said = f"{leader} and {other}: {pair.verdict}"
    elif pair.significant_over:
        said = f"{leader} is better than {other}, significant over {pair.significant_over}"
    else:
        said = f"No significant difference between {leader} and {other}"
    return f"{said}: {_size(pair, sign)}; {pair.of_seeds}."


def _size(pair: Pair, sign: int) -> str:
    """The difference with the interval over images, where there is one."""
    value, found = f"{points(sign * pair.difference)} points of mIoU", pair.over_images
    if found is None:
        return value
    low, high = sorted((sign * found.low, sign * found.high))
    return f"{value}, {points(low)} to {points(high)} over {pair.images} images"


def terminal(comparison: Comparison) -> str:
    """What is shown at once; tables that are long are cut."""
    parts = [escape_line(headline(comparison)), _aligned(group_table(comparison))]
    if comparison.pairs:
        parts += [
            f"Differences of mIoU in points on {counted(comparison.images, 'image')}, from {comparison.resamples}"
            " resamples",
            _aligned(pair_table(comparison)),
        ]
    if published_table(comparison)[1]:
        parts += ["Beside what was published", _aligned(published_table(comparison))]
    notes = map(escape_line, [*comparison.notes, *comparison.selection])
    return "\n\n".join([*parts, *notes, "\n".join(map(escape_line, answers(comparison)))])


def _aligned(table: Table) -> str:
    head, rows = table
    shown = [list(map(escape_line, row)) for row in rows[:SHOWN]]
    widths = [max(map(len, column)) for column in zip(head, *shown, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *shown)]
    more = [f"({len(rows) - SHOWN} more in the files)"] if len(rows) > SHOWN else []
    return "\n".join(f"  {line.rstrip()}" for line in [*lines, *more])


def markdown(comparison: Comparison) -> str:
    """All of it, for a page of one's own."""
    parts = ["# Comparison", escape_markdown(headline(comparison)) + ".", _bullets(answers(comparison))]
    parts += [_bullets([*comparison.notes, *comparison.selection])]
    titled = {
        "Differences of mIoU, in points": pair_table,
        "Scores and costs": group_table,
        "IoU by class": class_table,
        "What each setting does": effect_table,
        "Beside what was published": published_table,
    }
    for title, make in titled.items():
        if make(comparison)[1]:
            parts += [f"## {title}", _pipes(make(comparison))]
    parts += ["## Runs", _pipes(run_table(comparison))]
    parts += ["Trained and scored with", _bullets(made_with(comparison))]
    if comparison.left_out:
        parts += ["## Left out", _bullets([f"{out.folder}: {out.reason}" for out in comparison.left_out])]
    return "\n\n".join(parts) + "\n"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)


def _pipes(table: Table) -> str:
    head, rows = table
    align = ["---", *["---:"] * (len(head) - 1)]
    lines = [list(map(escape_markdown, head)), align, *(list(map(escape_markdown, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_csv(folder: Path, comparison: Comparison) -> None:
    """Numbers as they are, unrounded: ``groups.csv``, ``pairs.csv`` and ``runs.csv``."""
    _write(folder / "groups.csv", [_group_facts(found, comparison) for found in comparison.groups])
    _write(folder / "pairs.csv", [_pair_facts(pair) for pair in comparison.pairs])
    runs = [(found, run) for found in comparison.groups for run in found.runs]
    iou = [dict(zip(run.classes, run.scores.iou.tolist(), strict=True)) for _, run in runs]
    _write(
        folder / "runs.csv",
        [
            {"group": found.name, "seed": run.seed, "folder": run.folder, "images": len(run.names)}
            | {"images_of_record": comparison.scored[run.folder], "selected": describe_selection(run.selection)}
            | {score: getattr(run.scores, score) for score in SCORES}
            | {f"iou/{name}": value for name, value in per_class.items()}
            | {cost.key: run.cost.get(cost.key) for cost in COSTS}
            | run.environment
            | {key: value for key, value in run.settings.items() if GroupingRules.merges(key, "source")}
            for (found, run), per_class in zip(runs, iou, strict=True)
        ],
    )


def _group_facts(found: Group, comparison: Comparison) -> dict[str, Any]:
    facts: dict[str, Any] = {"group": found.name, **found.parts, "runs": len(found.runs)}
    facts |= {"seeds": " ".join(map(str, found.seeds))}
    for score in SCORES:
        facts |= {score: found.mean(score), f"{score}_deviation": found.spread(score)}
    facts |= {f"iou/{name}": value for name, value in zip(comparison.classes, found.iou().tolist(), strict=True)}
    return facts | {cost.key: found.cost(cost.key) for cost in COSTS}


def _pair_facts(pair: Pair) -> dict[str, Any]:
    images, seeds = pair.over_images, pair.over_seeds
    return {
        "one": pair.one.name,
        "other": pair.other.name,
        "miou_difference": pair.difference,
        "images": pair.images,
        "images_low": images and images.low,
        "images_high": images and images.high,
        "images_p": images and images.p,
        "images_p_holm": pair.p_images,
        "seeds": len(pair.seed_differences),
        "seeds_low": seeds and seeds.low,
        "seeds_high": seeds and seeds.high,
        "seeds_p": seeds and seeds.p,
        "seeds_p_holm": pair.p_seeds,
        "verdict": pair.verdict,
        "of_seeds": pair.of_seeds,
    }


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_write(path) as part, part.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(map(escape_csv, columns))
        writer.writerows([_known(row.get(column)) for column in columns] for row in rows)


def _known(value: Any) -> Any:
    """CSV has no nan that all read; text stays text."""
    if value is None or value != value:
        return ""
    return value if isinstance(value, (bool, int, float)) else escape_csv(str(value))
