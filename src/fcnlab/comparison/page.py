"""The comparison as one HTML page that needs nothing else: no network, no library, no file beside it.

Its parts lie in ``html/``. All text from run folders is escaped by jinja2 (autoescape), images are drawn anew.
"""

import base64
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from fcnlab.comparison import charts, tables
from fcnlab.comparison.charts import Axis, Line, Point
from fcnlab.comparison.comparison import Comparison, Curve, curve
from fcnlab.comparison.grouping import Group
from fcnlab.comparison.intervals import FEWEST_IMAGES
from fcnlab.comparison.pairs import Pair, image_scores
from fcnlab.escaping import escape_terminal
from fcnlab.files.reading import bytes_of
from fcnlab.files.writing import atomic_write
from fcnlab.metrics.scores import SCORES
from fcnlab.runs.origins import ENVIRONMENT

BAR = 160  # pixels: the width of a table's intervals
MOST_PANELS, MOST_SHOWN_GROUPS = 6, 4
PANEL_WIDTH = 960  # pixels
PANEL_BYTES, PANEL_PIXELS = 64 << 20, 60_000_000  # of a drawing; three images side by side
LEAST_RATIO = 1.05  # of the dearest to the cheapest group, where a chart is worth its room
SCALED = ("gmacs_per_image", "minutes", "parameters")  # the costs that are drawn


class Panel(NamedTuple):
    """A group's drawing of a image, and its mean IoU on it."""

    group: Group
    miou: float
    seed: int | None
    data: str


def write_page(path: Path, comparison: Comparison, command: str) -> None:
    """Write it, whole or not at all."""
    with atomic_write(path) as part:
        part.write_text(escape_terminal(page(comparison, command)), encoding="utf-8", errors="replace")


def page(comparison: Comparison, command: str) -> str:
    """The page's text; ``command`` is what was typed for it."""
    loader = PackageLoader("fcnlab.comparison", "html")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": tables.percent,
        "points": tables.points,
        "probability": tables.probability,
        "interval": tables.interval,
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
        panels=_panels(comparison),
        alpha=1 - comparison.confidence,
        fewest_images=FEWEST_IMAGES,
        made_with=tables.made_with(comparison),
        environment=ENVIRONMENT,
        environment_text=tables.environment_text,
        level=f"{100 * comparison.confidence:g} %",
    )


def _part(loader: PackageLoader, environment: Environment, name: str) -> Markup:
    """A file of ours, as it is."""
    return Markup(loader.get_source(environment, name)[0])


def _bars(pairs: Sequence[Pair]) -> list[Markup]:
    """The intervals of a table's rows, on one scale."""
    ends = [0.0]
    for pair in pairs:
        found = pair.over_images
        ends += [*((found.low, found.high) if found else ()), pair.difference, *pair.seed_differences.values()]
    scale = charts.axis([100 * end for end in ends], 6, BAR)
    return [_bar(pair, scale) for pair in pairs]


def _bar(pair: Pair, scale: Axis) -> Markup:
    found = pair.over_images
    seeds = [100 * value for value in pair.seed_differences.values()]
    text = f"{tables.points(pair.difference)} points" + (f", {tables.interval(found)} over images" if found else "")
    if seeds:
        text += f"; seeds {', '.join(f'{value:+.2f}' for value in seeds)}"
    ends = (100 * found.low, 100 * found.high) if found else None
    return charts.interval_bar(ends, 100 * pair.difference, seeds, scale, text)


def _seed_bars(groups: Sequence[Group]) -> list[Markup]:
    """The mIoU of each seed, as dots on one scale."""
    every = [100 * value for found in groups for value in found.values("miou")]
    scale = charts.axis(every, 6, BAR)
    return [charts.dots([100 * value for value in found.values("miou")], scale, _seeds_text(found)) for found in groups]


def _seeds_text(found: Group) -> str:
    values = zip(found.seeds, found.values("miou"), strict=True)
    return ", ".join(f"seed {seed}: {tables.percent(value)}" for seed, value in values)


def _curves(comparison: Comparison) -> list[tuple[str, Markup, list[Curve]]]:
    """Title, chart and what it shows, for the curves that the best groups have."""
    drawn = []
    for name, title, scale, log in (
        ("val/miou", "mIoU on the validation set", 100, False),
        ("train/loss", "Training loss", 1, True),
    ):
        found = [(place, curve(group, name)) for place, group in enumerate(comparison.groups[: charts.SERIES])]
        shown = [(place, one) for place, one in found if one]
        if shown:
            lines = [_line(place, one, scale) for place, one in shown]
            unit = "val mIoU, %" if scale == 100 else "loss"
            what = f"{title} over optimiser steps, of {len(lines)} groups; the last values are in the table below"
            chart = charts.line_chart(lines, what, "optimiser steps", unit, log)
            drawn.append((title, chart, [one for _, one in shown]))
    return drawn


def _line(series: int, one: Curve, scale: int) -> Line:
    steps, mean, low, high = (
        values.tolist() for values in (one.steps, scale * one.mean, scale * one.low, scale * one.high)
    )
    return Line(steps, mean, low, high, series, one.group.name)


def _scatters(comparison: Comparison) -> list[tuple[str, Markup]]:
    """Accuracy against each cost that differs by more than a trifle."""
    drawn = []
    for cost in tables.COSTS:
        known = [(place, found, cost.of(found)) for place, found in enumerate(comparison.groups)]
        costs = [(place, found, value) for place, found, value in known if value is not None]
        values = [value for *_, value in costs]
        if cost.key in SCALED and values and max(values) > LEAST_RATIO * min(values):
            dots = [_point(value, found, place, f"at {value:.4g}") for place, found, value in costs]
            what = f"mIoU against {cost.title} of {len(dots)} groups; the numbers are in the table of scores"
            drawn.append((f"mIoU against {cost.title}", charts.scatter(dots, what, cost.title, "mIoU, %")))
    return drawn


def _point(x: float, found: Group, series: int, text: str) -> Point:
    mean, spread = 100 * found.mean(), 100 * (found.spread() or 0)
    said = f"{found.name}: {tables.with_spread(found, 'miou')} {text}".rstrip()
    return Point(x, mean, mean - spread, mean + spread, series, said)


def _settings(comparison: Comparison) -> list[tuple[str, Markup | None, list[Any]]]:
    """For each setting that differs: its chart, where it has no more values than one can read, and its values."""
    series = {found.name: place for place, found in enumerate(comparison.groups)}
    found = []
    for key in dict.fromkeys(effect.key for effect in comparison.effects):
        values = [effect for effect in comparison.effects if effect.key == key]
        names = [effect.value for effect in values]
        dots = [
            _point(place, member, series[member.name], "")
            for place, effect in enumerate(values)
            for member in effect.groups
        ]
        what = f"mIoU by {key}; the numbers are in the table below"
        means = [100 * effect.miou for effect in values]
        chart = charts.categories(dots, names, means, what, "mIoU, %") if 1 < len(names) <= 12 else None
        found.append((key, chart, values))
    return found


def _apart(comparison: Comparison) -> list[Pair]:
    """The pairs whose images are named."""
    return [pair for pair in comparison.pairs if pair.apart][:MOST_PANELS]


def _panels(comparison: Comparison) -> list[tuple[str, list[Panel]]]:
    """The images that several groups drew, those first on which they differ most, and each one's drawing."""
    drawing = [(found, shown) for found in comparison.groups if (shown := _drawn(found))][:MOST_SHOWN_GROUPS]
    if len(drawing) < 2:
        return []
    names = [name for name in drawing[0][1] if all(name in shown for _, shown in drawing)]
    by_name = [_by_image(found) for found, _ in drawing]
    scored = [(name, [mious[name] for mious in by_name]) for name in names]
    scored.sort(key=lambda entry: min(entry[1]) - max(entry[1]))
    panels = []
    for name, mious in scored[:MOST_PANELS]:
        row = [
            Panel(found, miou, found.runs[0].seed, data)
            for (found, shown), miou in zip(drawing, mious, strict=True)
            if (data := _image(shown[name]))
        ]
        if len(row) > 1:
            panels.append((name, row))
    return panels


def _drawn(found: Group) -> dict[str, Path]:
    """The images that a group's first run drew."""
    run = found.runs[0]
    paths = {name: run.panel(name) for name in run.names} if (run.folder / "predictions").is_dir() else {}
    return {name: path for name, path in paths.items() if path}


def _by_image(found: Group) -> dict[str, float]:
    """The mean IoU of the group's first run on each image."""
    first = Group(found.parts, found.runs[:1])
    return dict(zip(first.runs[0].names, image_scores(first).tolist(), strict=True))


def _image(path: Path) -> str | None:
    """As a data address, no wider than is shown; None for what is no image, or larger than a drawing is."""
    try:
        with Image.open(io.BytesIO(bytes_of(path, PANEL_BYTES)), formats=["PNG"]) as image:
            if image.width * image.height > PANEL_PIXELS:
                return None
            image.thumbnail((PANEL_WIDTH, PANEL_WIDTH))
            file = io.BytesIO()
            image.convert("RGB").save(file, "JPEG", quality=88, subsampling=0)
    except Exception:  # PIL's plugins end in a dozen kinds
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
