"""Write a comparison as one self-contained HTML page: no network, no library, no other files.

Its template, style and script are in ``html/``. jinja2 escapes all text from run folders (autoescape).
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fcnlab.comparison import charts, tables
from fcnlab.comparison.charts import Axis, Line, Point
from fcnlab.comparison.comparison import Comparison, Curve, curve
from fcnlab.comparison.grouping import Group
from fcnlab.comparison.intervals import FEWEST_IMAGES
from fcnlab.comparison.pairs import Pair
from fcnlab.comparison.pictures import pictures
from fcnlab.escaping import escape_terminal
from fcnlab.files.writing import atomic_write
from fcnlab.metrics.scores import SCORES
from fcnlab.runs.origins import ENVIRONMENT

BAR = 160  # width of the intervals in tables, pixels
MOST_LISTED_PAIRS = 6  # with a list of the images on which they differ most
LEAST_RATIO = 1.05  # smallest ratio of highest to lowest cost for which a chart is drawn
SCALED = ("gmacs_per_image", "minutes", "parameters")  # the costs with a chart


def write_page(path: Path, comparison: Comparison, command: str) -> None:
    """Write the page atomically."""
    with atomic_write(path) as part:
        part.write_text(escape_terminal(page(comparison, command)), encoding="utf-8", errors="replace")


def page(comparison: Comparison, command: str) -> str:
    """Return the HTML text; ``command`` is the command line that made the comparison."""
    loader = PackageLoader("fcnlab.comparison", "html")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": tables.percent,
        "points": tables.points,
        "probability": tables.probability,
        "interval": tables.interval,
        "verdict": tables.verdict,
    }
    return environment.get_template("page.html").render(
        it=comparison,
        command=command,
        made=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        style=_part(loader, environment, "page.css"),
        script=_part(loader, environment, "page.js"),
        answers=tables.answers(comparison),
        headline=tables.headline(comparison),
        titled=tables.titled,
        scores=SCORES,
        costs=tables.COSTS,
        series={found.name: place for place, found in enumerate(comparison.groups)},
        swatch=charts.swatch,
        most_series=charts.SERIES,
        bars=_bars(comparison.pairs),
        seeds=_seed_bars(comparison.groups),
        curves=_curves(comparison),
        scatters=_scatters(comparison),
        settings=_settings(comparison),
        published=tables.published_table(comparison),
        apart=_apart(comparison),
        pictures=pictures(comparison),
        alpha=1 - comparison.confidence,
        fewest_images=FEWEST_IMAGES,
        made_with=tables.made_with(comparison),
        environment=ENVIRONMENT,
        environment_text=tables.environment_text,
        level=f"{100 * comparison.confidence:g} %",
    )


def _part(loader: PackageLoader, environment: Environment, name: str) -> Markup:
    """Return a file of the package, unescaped."""
    return Markup(loader.get_source(environment, name)[0])


def _bars(pairs: Sequence[Pair]) -> list[Markup]:
    """Draw the intervals of all rows of a table on one scale."""
    ends = [0.0]
    for pair in pairs:
        interval = pair.interval
        ends += [*((interval.low, interval.high) if interval else ()), pair.difference, *pair.seed_differences.values()]
    scale = charts.axis([100 * end for end in ends], 6, BAR)
    return [_bar(pair, scale) for pair in pairs]


def _bar(pair: Pair, scale: Axis) -> Markup:
    interval = pair.interval
    seeds = [100 * value for value in pair.seed_differences.values()]
    text = f"{tables.points(pair.difference)} points" + (
        f", {tables.interval(interval)} over {pair.scope}" if interval else ""
    )
    if seeds:
        text += f"; seeds {', '.join(f'{value:+.2f}' for value in seeds)}"
    ends = (100 * interval.low, 100 * interval.high) if interval else None
    return charts.interval_bar(ends, 100 * pair.difference, seeds, scale, text)


def _seed_bars(groups: Sequence[Group]) -> list[Markup]:
    """Draw the mIoU of each seed as dots on one scale."""
    every = [100 * value for group in groups for value in group.values("miou")]
    scale = charts.axis(every, 6, BAR)
    return [charts.dots([100 * value for value in group.values("miou")], scale, _seeds_text(group)) for group in groups]


def _seeds_text(group: Group) -> str:
    values = zip(group.seeds, group.values("miou"), strict=True)
    return ", ".join(f"seed {seed}: {tables.percent(value)}" for seed, value in values)


def _curves(comparison: Comparison) -> list[tuple[str, Markup, list[Curve]]]:
    """Return title, chart and curves of each learning curve, for the best groups."""
    drawn = []
    for name, title, scale, log in (
        ("val/miou", "mIoU on the validation set", 100, False),
        ("train/loss", "Training loss", 1, True),
    ):
        curves = [(place, curve(group, name)) for place, group in enumerate(comparison.groups[: charts.SERIES])]
        shown = [(place, group_curve) for place, group_curve in curves if group_curve]
        if shown:
            lines = [_line(place, group_curve, scale) for place, group_curve in shown]
            unit = "val mIoU, %" if scale == 100 else "loss"
            description = (
                f"{title} over optimiser steps for {len(lines)} groups; the table below contains the last values"
            )
            chart = charts.line_chart(lines, description, "optimiser steps", unit, log)
            drawn.append((title, chart, [group_curve for _, group_curve in shown]))
    return drawn


def _line(series: int, group_curve: Curve, scale: int) -> Line:
    steps, mean, low, high = (
        values.tolist()
        for values in (group_curve.steps, scale * group_curve.mean, scale * group_curve.low, scale * group_curve.high)
    )
    return Line(steps, mean, low, high, series, group_curve.group.name)


def _scatters(comparison: Comparison) -> list[tuple[str, Markup]]:
    """Return title and chart of mIoU against each cost that differs between groups."""
    drawn = []
    for cost in tables.COSTS:
        known = [(place, group, cost.of(group)) for place, group in enumerate(comparison.groups)]
        costs = [(place, group, value) for place, group, value in known if value is not None]
        values = [value for *_, value in costs]
        if cost.key in SCALED and values and max(values) > LEAST_RATIO * min(values):
            dots = [_point(value, group, place, f"at {value:.4g}") for place, group, value in costs]
            description = f"mIoU against {cost.title} of {len(dots)} groups; the table of scores contains the numbers"
            drawn.append((f"mIoU against {cost.title}", charts.scatter(dots, description, cost.title, "mIoU, %")))
    return drawn


def _point(x: float, group: Group, series: int, text: str) -> Point:
    mean, spread = 100 * group.mean(), 100 * (group.spread() or 0)
    tooltip = f"{group.name}: {tables.with_spread(group, 'miou')} {text}".rstrip()
    return Point(x, mean, mean - spread, mean + spread, series, tooltip)


def _settings(comparison: Comparison) -> list[tuple[str, Markup | None, list[Any]]]:
    """Return for each differing setting its name, its chart (None if there are too many values) and its effects."""
    series = {group.name: place for place, group in enumerate(comparison.groups)}
    settings = []
    for key in dict.fromkeys(effect.key for effect in comparison.effects):
        values = [effect for effect in comparison.effects if effect.key == key]
        names = [effect.value for effect in values]
        dots = [
            _point(place, group, series[group.name], "")
            for place, effect in enumerate(values)
            for group in effect.groups
        ]
        description = f"mIoU by {key}; the table below contains the numbers"
        means = [100 * effect.miou for effect in values]
        chart = charts.categories(dots, names, means, description, "mIoU, %") if 1 < len(names) <= 12 else None
        settings.append((key, chart, values))
    return settings


def _apart(comparison: Comparison) -> list[Pair]:
    """Return the pairs for which the page lists images."""
    return [pair for pair in comparison.pairs if pair.apart][:MOST_LISTED_PAIRS]
