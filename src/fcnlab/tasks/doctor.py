"""``fcnlab doctor``."""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from tqdm import tqdm

from fcnlab.config.validation import validate_config
from fcnlab.data import DataError, DataModule, SegmentationDataset
from fcnlab.data.checks.augmentation import augmented_samples, inspect_streams
from fcnlab.data.checks.class_weights import WEIGHTINGS, Frequencies
from fcnlab.data.checks.files import (
    ImageReport,
    ImageReports,
    class_frequencies,
    inspect_images,
    inspect_overlap,
    inspect_split,
)
from fcnlab.data.checks.machine import inspect_machine
from fcnlab.data.checks.report import (
    Finding,
    Verdict,
    findings_facts,
    findings_markdown,
    findings_table,
    markdown_columns,
    summary,
    text_columns,
    worst_verdict,
)
from fcnlab.data.samplers import TrainingBatches
from fcnlab.errors import UserError
from fcnlab.evaluation.splits import report_splits
from fcnlab.files.writing import atomic_write, write_json
from fcnlab.messages import log_info
from fcnlab.runs.drawing import contact_sheet, save_png
from fcnlab.runs.output_folder import check_report
from fcnlab.runs.provenance import command
from fcnlab.runs.run_folder import RunFolder

Seen = dict[str, ImageReports]  # by the split's name


def doctor(cfg: DictConfig, run: RunFolder) -> None:
    """Look at every file of the splits, at the loader and the machine; the whole table comes before the exit code.

    Raises
    ------
    UserError
        What makes a number wrong or training fail, in a line.
    """
    folder = run.path
    check_report(folder, ("doctor.json", "doctor.md", "samples.png"))
    validate_config(cfg)
    data: DataModule = instantiate(cfg.data, _convert_="all")
    seen = inspect_all(data)
    run.accept(cfg)
    findings = [
        *inspect_data(data, seen, cfg.alike_bits),
        *inspect_machine(folder, batch_bytes(data), data.num_workers, data.prefetch_factor),
    ]
    counted = {name: class_frequencies(*one) for name, one in seen.items() if one[0].masks}
    weights = class_weights(class_frequencies(*seen["train"]))
    write_report(folder, seen, findings, counted, weights)
    print(terminal_report(seen, findings, counted, weights))
    if cfg.samples and all(one.check != "loading" for one in findings):
        draw_samples(folder / "samples.png", data, *seen["train"], count=cfg.samples)
    here = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    log_info(f"{summary(findings)}. Every file by name, and augmented samples: {here}")
    errors = [f"{one.about.partition(':')[0]}: {one.check}" for one in findings if one.verdict == Verdict.ERROR]
    if errors:
        raise UserError(f"this would make a number wrong or training fail: {'; '.join(errors)}. The table says how.")


def inspect_all(data: DataModule) -> Seen:
    """Every file of train, val and, where its list is not val's, test, with a progress bar; each list once."""
    names = ("train", "val") if data.lists["test"] == data.lists["val"] else ("train", "val", "test")
    report_splits(data, *names)
    seen: Seen = {}
    for name in names:
        dataset = data.split(name)
        if not len(dataset):
            raise DataError(f"{dataset.title} is empty: name another list")
        before = next((one for one in seen.values() if one[0] is dataset), None)
        if before is None:
            bar = tqdm(
                inspect_images(dataset),
                desc=dataset.title,
                total=len(dataset),
                unit="images",
                leave=False,
                disable=None,
            )
            seen[name] = dataset, list(bar)
        else:
            seen[name] = before
    return seen


def inspect_data(data: DataModule, seen: Seen, bits: int) -> Iterator[Finding]:
    """The findings about each split, about each two of them, the settings and the training loader."""
    for name, (images, found) in seen.items():
        yield from inspect_split(name, images, found, bits)
    for first, second in combinations(seen, 2):
        yield from inspect_overlap((first, second), seen[first], seen[second], bits, data.allow_overlap)
    yield from inspect_settings(data, seen)
    images, found = seen["train"]
    telling = [place for place in sound(found) if found[place].code is not None]  # crops of a flat one are all alike
    if telling:
        yield from inspect_streams(data, images, telling[0])
    else:
        yield Finding("augmentation", "draws", Verdict.WARNING, "not looked at: there is no sound image to try it on")


def inspect_settings(data: DataModule, seen: Seen) -> Iterator[Finding]:
    """Whether the data set and what is set for it agree."""
    images, _ = seen["train"]
    agree = len(images.classes) == data.num_classes
    found = f"{len(images.classes)}, as data.num_classes says"
    wrong = f"{len(images.classes)}, but data.num_classes={data.num_classes}"
    yield Finding("settings", "classes", *((Verdict.OK, found) if agree else (Verdict.ERROR, wrong)))
    try:
        epoch = len(TrainingBatches(len(images), data.batch_size, data.seed))
        yield Finding("settings", "batches", Verdict.OK, f"{epoch:,} of {data.batch_size} to an epoch, on one device")
    except DataError as error:
        yield Finding("settings", "batches", Verdict.ERROR, str(error))


def sound(found: Sequence[ImageReport]) -> list[int]:
    """The places of images that nothing is wrong with."""
    return [place for place, one in enumerate(found) if not one.faults]


def batch_bytes(data: DataModule) -> int:
    """Of a training batch on its way from a worker: uint8, three channels and the mask."""
    return 4 * data.batch_size * data.crop_size**2


def class_columns(
    classes: Sequence[str], counted: Mapping[str, Frequencies], weights: Mapping[str, Sequence[float]]
) -> tuple[list[str], list[list[str]]]:
    """A header and a row for each class: how often it is in each split, and its weight by each rule."""
    header = ["class", *(f"{name} {what}" for name in counted for what in ("images", "pixels, %")), *weights]
    rows = []
    for place, title in enumerate(classes):
        pairs = ((f"{one.images[place]:,}", f"{100 * one.share[place]:.3f}") for one in counted.values())
        rows.append([title, *chain(*pairs), *(f"{values[place]:.3f}" for values in weights.values())])
    return header, rows


def class_weights(train: Frequencies) -> dict[str, list[float]]:
    """By the name of their rule, to three digits, as they are typed; none where no mask could be read."""
    if not train.pixels.any():
        return {}
    return {name: [round(float(weight), 3) for weight in rule(train)] for name, rule in WEIGHTINGS.items()}


def suggestions(weights: Mapping[str, Sequence[float]]) -> list[str]:
    """What to type for each rule."""
    return [
        f"{name}: loss=weighted loss.class_weights=[{','.join(f'{weight:g}' for weight in values)}]"
        for name, values in weights.items()
    ]


def write_report(
    folder: Path, seen: Seen, findings: Sequence[Finding], counted: Mapping[str, Frequencies], weights: dict
) -> None:
    """``doctor.json`` for programs, ``doctor.md`` for people: both with every file by name."""
    classes = seen["train"][0].classes
    splits = {
        name: {
            "title": images.title,
            "images": len(images),
            "classes": counts_by_name(classes, counted[name]) if name in counted else None,
        }
        for name, (images, _) in seen.items()
    }
    facts = {"verdict": worst_verdict(findings), "command": command(), "splits": splits, "class_weights": weights}
    write_json(folder / "doctor.json", facts | {"findings": findings_facts(findings)})
    parts = [
        f"# {command()}\n",
        findings_markdown(findings),
        "## Classes\n",
        markdown_columns(*class_columns(classes, counted, weights)),
        "".join(f"\n{line.replace(': ', ': `', 1)}`\n" for line in suggestions(weights)),
    ]
    with atomic_write(folder / "doctor.md") as part:
        part.write_text("\n".join(parts), encoding="utf-8", errors="replace")


def counts_by_name(classes: Sequence[str], one: Frequencies) -> dict[str, dict[str, int]]:
    """Images and pixels of each class, and of void."""
    pairs = zip(classes, one.images.tolist(), one.pixels.tolist(), strict=True)
    named = {name: {"images": images, "pixels": pixels} for name, images, pixels in pairs}
    return named | {"void": {"images": one.voided, "pixels": one.ignore_index}}


def terminal_report(seen: Seen, findings: Sequence[Finding], counted: Mapping[str, Frequencies], weights: dict) -> str:
    """The classes, what to type to weigh them, and the table, whose end is what stays in sight."""
    classes = text_columns(*class_columns(seen["train"][0].classes, counted, weights))
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 120
    typed = ["To weigh classes by", *(f"  {line}" for line in suggestions(weights)), ""] if weights else []
    return "\n".join([classes, "", *typed, findings_table(findings, in_colour(), columns), ""])


def in_colour() -> bool:
    """Whether a terminal shows it, and nobody asked for none (https://no-color.org)."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def draw_samples(
    path: Path, data: DataModule, dataset: SegmentationDataset, found: Sequence[ImageReport], count: int
) -> None:
    """The contact sheet: what the net will see, with its truth."""
    samples = augmented_samples(data, dataset, sound(found), count)
    if samples:
        save_png(path, contact_sheet(samples, dataset.classes, dataset.palette))
