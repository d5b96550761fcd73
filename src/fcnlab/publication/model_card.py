"""A model card: Markdown with the metadata that the Hugging Face Hub reads.

The metadata follow the Hub's specification (hub-docs/modelcard.md): ``model-index`` lists the scores, as ratios,
because the Hub's metric ``mean_iou`` is one. What no record contains is marked with ``TO_FILL_IN``.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import yaml

from fcnlab.comparison.formats import MISSING, SCORE_TITLES, counted, percent, significant
from fcnlab.comparison.intervals import FEW_CLASS_IMAGES, FEWEST_IMAGES, Bounds
from fcnlab.comparison.notes import of_rare_classes
from fcnlab.comparison.runs import Run
from fcnlab.comparison.score_intervals import ScoreIntervals
from fcnlab.escaping import escape_line, escape_markdown, escape_terminal, without_secrets
from fcnlab.metrics.scores import SCORES
from fcnlab.publication.card_records import CardRecords
from fcnlab.runs.selection import OPTIMISTIC, is_optimistic
from fcnlab.runs.selection import notes as selection_notes

TO_FILL_IN = "**To fill in**"
PROTOCOL = ("set", "resolution", "ignored_pixels", "absent_classes", "inference", "postprocess", "precision")
# The metrics of the Hub. Frequency-weighted IoU has no name there.
METRICS = {"miou": "mean_iou", "pixel_acc": "accuracy", "mean_acc": "mean_accuracy", "fw_iou": "frequency_weighted_iou"}
OPTIONS = ("data", "model", "model/backbone", "optim", "schedule", "loss", "augment", "experiment")
TASK = {"type": "image-segmentation", "name": "Semantic segmentation"}


class Model(NamedTuple):
    """The network of a checkpoint.

    ``file`` is the name of the checkpoint's file; ``title`` names the network, such as "FCN-8s on Tiny"; ``trust`` are
    the packages that it needs; ``smallest`` is the least number of pixels on each side of an image.
    """

    file: str
    title: str
    is_fcn: bool
    parameters: int
    classes: Sequence[str]
    smallest: int
    version: str | None
    trust: Sequence[str]


class Publication(NamedTuple):
    """What the user states: a title, the licence as an identifier of the Hub, and data sets of the Hub."""

    name: str | None
    license: str | None
    datasets: Sequence[str]


def model_card(
    model: Model,
    records: CardRecords,
    intervals: Sequence[ScoreIntervals],
    publication: Publication,
    confidence: float,
) -> str:
    """Return the card; ``intervals`` are those of ``records.evaluations``."""
    name = publication.name or _name(model, records)
    header = yaml.safe_dump(
        metadata(name, model, records.evaluations, publication), sort_keys=False, allow_unicode=True, width=1_000_000
    )
    sections = [
        _introduction(name, model, records),
        _use(model),
        _scores(records, intervals, confidence),
        _training(model, records),
        _limits(model, records),
        _licence(publication),
    ]
    return f"---\n{header}---\n\n" + "\n\n".join("\n".join(section) for section in sections) + "\n"


def _name(model: Model, records: CardRecords) -> str:
    data = records.trained.options.get("data") if records.trained else None
    return model.title + (f", trained on {data}" if data else "")


# Metadata


def metadata(name: str, model: Model, evaluations: Sequence[Run], publication: Publication) -> dict[str, Any]:
    """Return the metadata of the Hub; a key without a known value is absent, except for the licence."""
    licence = {"license": publication.license or "other"}
    if publication.license is None:
        licence |= {"license_name": "to-fill-in"}
    results = [_result(run) for run in evaluations]
    facts: dict[str, Any] = {
        **licence,
        "library_name": "fcnlab",
        "pipeline_tag": TASK["type"],
        "tags": ["semantic-segmentation", *["fully-convolutional-network"] * model.is_fcn, "pytorch"],
        "datasets": list(publication.datasets),
        "metrics": [METRICS[score] for score in ("miou", "pixel_acc")],
        "model-index": [{"name": escape_line(name), "results": results}] if results else [],
    }
    return {key: value for key, value in facts.items() if value != []}


def _result(run: Run) -> dict[str, Any]:
    title = escape_line(without_secrets(str(run.protocol["set"])))
    method = {key: escape_line(without_secrets(str(run.protocol.get(key)))) for key in ("inference", "postprocess")}
    metrics = [
        {"type": METRICS[score], "value": round(run.score(score), 6), "name": SCORE_TITLES[score], "args": dict(method)}
        for score in ("miou", *(score for score in SCORES if score != "miou"))
        if not math.isnan(run.score(score))
    ]
    return {"task": dict(TASK), "dataset": {"type": _slug(title), "name": title}, "metrics": metrics}


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "unknown"


# Text


def _introduction(name: str, model: Model, records: CardRecords) -> Iterator[str]:
    yield f"# {escape_markdown(name)}"
    yield ""
    yield (
        f"{escape_markdown(model.title)} with"
        f" {significant(model.parameters / 1e6)} million parameters. It assigns each pixel of an image to one of"
        f" {len(model.classes)} classes. It was trained with fcnlab {escape_markdown(model.version or '')}".rstrip()
        + "; `fcnlab card` has written this card from the records of the run."
    )
    yield ""
    yield f"- {TO_FILL_IN}: authors, contact, intended use, and a link to the paper or the code."


def _use(model: Model) -> Iterator[str]:
    trust = f", trust={list(map(escape_line, model.trust))!r}" if model.trust else ""
    code = (
        "import fcnlab\n\n"
        f"model = fcnlab.load({escape_line(model.file)!r}{trust})\n"
        'class_map = model.predict("photo.jpg")  # class ids, uint8, (rows, cols); also of arrays and PIL images\n'
        "names = [model.classes[label] for label in sorted(set(class_map.ravel().tolist()))]"
    )
    yield "## Use"
    yield ""
    yield _fenced(code, "python")


def _scores(records: CardRecords, intervals: Sequence[ScoreIntervals], confidence: float) -> Iterator[str]:
    yield "## Scores"
    if not records.evaluations:
        yield ""
        yield f"- {TO_FILL_IN}: no record contains scores of these weights, because {_text(records.without_scores)}."
    for run, found in zip(records.evaluations, intervals, strict=True):
        yield ""
        yield from _evaluation(run, found, confidence)


def _evaluation(run: Run, intervals: ScoreIntervals, confidence: float) -> Iterator[str]:
    fold = f" ({fold_of(run)})" if run.fold else ""
    count = counted(len(run.names), "image")
    of = run.protocol.get("of")
    part = f"{count} of {of}" if isinstance(of, int) and of > len(run.names) else count
    yield f"### {_text(run.protocol['set'])}, {part}{fold}"
    yield ""
    yield f"| score | % | {100 * confidence:g} % interval |"
    yield "|---|---:|---:|"
    for score in ("miou", *(score for score in SCORES if score != "miou")):
        bold = "**" if score == "miou" else ""
        yield (
            f"| {bold}{SCORE_TITLES[score]}{bold} | {bold}{percent(run.score(score))}{bold} |"
            f" {_interval(intervals.scores[score])} |"
        )
    yield ""
    yield from (f"{_text(note)}" for note in selection_notes([run.selection]))
    yield (
        "The intervals are those of a bootstrap over the images: they cover other images of this kind, for these"
        " weights. Retraining would change the scores, too."
    )
    if len(run.names) < FEWEST_IMAGES:
        yield f"With fewer than {FEWEST_IMAGES} images, the intervals are unreliable."
    if rare := of_rare_classes(run.classes, (run.areas.union > 0).sum(axis=0)):
        yield f"{_text(rare)} So a mean over such classes has no interval."
    yield ""
    yield "How it was scored:"
    yield ""
    yield from (
        f"- {key.replace('_', ' ')}: {_text(run.protocol[key])}"
        for key in PROTOCOL
        if run.protocol.get(key) is not None
    )
    yield ""
    yield f"| class | IoU, % | {100 * confidence:g} % interval | images with it |"
    yield "|---|---:|---:|---:|"
    images = (run.areas.target > 0).sum(axis=0)
    for name, iou, bounds, count in zip(run.classes, run.scores.iou, intervals.iou, images, strict=True):
        yield f"| {_text(name)} | {percent(float(iou))} | {_interval(bounds)} | {count} |"
    if any(bounds is None and iou == iou for bounds, iou in zip(intervals.iou, run.scores.iou, strict=True)):
        yield ""
        yield f"A class without an interval is found in fewer than {FEW_CLASS_IMAGES} images."


def fold_of(run: Run) -> str | None:
    """Describe the fold that was scored; None without folds."""
    return f"fold {run.fold.number} of {run.fold.count}, counted from 0" if run.fold else None


def _interval(bounds: Bounds | None) -> str:
    return MISSING if bounds is None else f"{percent(bounds.low)} to {percent(bounds.high)}"


def _training(model: Model, records: CardRecords) -> Iterator[str]:
    yield "## Training"
    yield ""
    yield "| setting | value |"
    yield "|---|---|"
    yield from (f"| {_text(name)} | {_text(value)} |" for name, value in _training_facts(records))
    yield ""
    if records.command is None:
        yield f"- {TO_FILL_IN}: the command of the training run."
    else:
        yield "The command:"
        yield ""
        yield _fenced(without_secrets(escape_terminal(records.command)), "bash")


def _training_facts(records: CardRecords) -> Iterator[tuple[str, str]]:
    """Yield names and values of what is known about the training run and its cost."""
    trained, cost = records.trained, records.cost
    settings = trained.settings if trained else {}
    options = trained.options if trained else {}
    yield from ((option, options[option]) for option in OPTIONS if options.get(option, "null") != "null")
    lists = {
        "training images": ("images.train", "data.train_list"),
        "validation images": ("images.val", "data.val_list"),
    }
    for title, (images, name) in lists.items():
        if images in settings:
            yield title, f"{str(settings[images]).partition(' ')[0]}, list {settings.get(name)}"
    yield "initial weights", _initial_weights(records)
    if records.step is not None:
        yield "step of these weights", f"{records.step:,}"
    if settings.get("callbacks.ema.enabled") is True:
        yield "weights", f"exponential moving average, decay {settings.get('callbacks.ema.decay')}"
    if trained and trained.seed is not None:
        yield "seed", str(trained.seed)
    if "training_minutes" in cost:
        yield "time of training", f"{significant(cost['training_minutes'])} minutes"
    if "training_peak_memory_mib" in cost:
        yield "peak memory of training", f"{cost['training_peak_memory_mib']:,.0f} MiB"
    if "gmacs_per_image" in cost:
        yield "cost of one image", f"{significant(cost['gmacs_per_image'])} GMACs, for the first scored image"
    if "images_per_second" in cost:
        yield "speed of the evaluation", f"{significant(cost['images_per_second'])} images per second"
    yield from ((name, value) for name, value in (trained.environment if trained else {}).items() if value != "unknown")


def _initial_weights(records: CardRecords) -> str:
    trained = records.trained
    if trained is None:
        return f"{TO_FILL_IN}: not recorded"
    values = {
        path: str(value)
        for path, value in trained.settings.items()
        if path.startswith("model.") and path.endswith("weights")
    }
    return ", ".join(f"{path}={value}" for path, value in values.items() if value != "none") or "none (random)"


def _limits(model: Model, records: CardRecords) -> Iterator[str]:
    yield "## Limits"
    yield ""
    yield (
        f"- Each pixel gets one of the {len(model.classes)} classes: {', '.join(map(_text, model.classes))}. An object"
        " of any other class is assigned to one of these, without a warning."
    )
    yield (
        f"- An image is 8-bit RGB and has at least {counted(model.smallest, 'pixel')} on each side. Objects may be"
        " segmented worse if they are larger or smaller than in the training images. Orientation in EXIF data is"
        " ignored."
    )
    sets = " and ".join(dict.fromkeys(_text(run.protocol["set"]) for run in records.evaluations))
    yield (
        f"- It was evaluated on {sets} only. Scores on images from other cameras, places or times are unknown."
        if sets
        else "- Its scores are unknown."
    )
    if any(is_optimistic(run.selection) for run in records.evaluations):
        yield f"- {OPTIMISTIC}. This applies to the scores above whose text says so."
    yield "- These are the weights of one training run. Retraining with another seed gives other scores."
    yield "- It segments classes and not instances: objects of one class that touch are one area."
    yield f"- {TO_FILL_IN}: uses that are out of scope, and known biases of the training images."


def _licence(publication: Publication) -> Iterator[str]:
    yield "## Licence"
    yield ""
    if publication.license is None:
        yield (
            f"- {TO_FILL_IN}: the licence of the weights, here and as `license` in the metadata. The licences of the"
            " training images and of the initial weights may restrict it."
        )
    else:
        yield f"{_text(publication.license)}"
    if not publication.datasets:
        yield f"- {TO_FILL_IN}: `datasets` in the metadata, the names of the training data on the Hub."


def _text(value: object) -> str:
    """Return foreign text for one line of Markdown, without secrets; our own mark stays."""
    text = without_secrets(str(value))
    head, mark, tail = text.partition(TO_FILL_IN)
    return f"{escape_markdown(head)}{mark}{escape_markdown(tail)}"


def _fenced(text: str, language: str) -> str:
    """Return a block of code, whose fence is longer than any in the text."""
    longest = max(map(len, re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
