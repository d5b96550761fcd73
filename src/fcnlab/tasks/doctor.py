"""``fcnlab doctor``."""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any

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
from fcnlab.runs.provenance import command
from fcnlab.runs.run_folder import RunFolder, check_report_folder

InspectedSplits = dict[str, ImageReports]  # by split name


def doctor(cfg: DictConfig, run: RunFolder) -> None:
    """Check every file of the splits, the loader and the machine, and report all findings.

    Raises
    ------
    UserError
        There are errors, which would cause wrong scores or make training fail.
    """
    folder = run.path
    check_report_folder(folder, ("doctor.json", "doctor.md", "samples.png"))
    validate_config(cfg)
    data: DataModule = instantiate(cfg.data, _convert_="all")
    inspected = inspect_all(data)
    run.accept(cfg)
    findings = [
        *inspect_data(data, inspected, cfg.alike_bits),
        *inspect_machine(folder, batch_bytes(data), data.num_workers, data.prefetch_factor),
    ]
    counts = {name: class_frequencies(*split) for name, split in inspected.items() if split[0].masks}
    weights = class_weights(class_frequencies(*inspected["train"]))
    write_report(folder, inspected, findings, counts, weights, command(run.context))
    print(terminal_report(inspected, findings, counts, weights))
    if cfg.samples and all(finding.check != "loading" for finding in findings):
        draw_samples(folder / "samples.png", data, *inspected["train"], count=cfg.samples)
    shown_folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    log_info(f"{summary(findings)}. All affected files and augmented samples: {shown_folder}")
    errors = [
        f"{finding.about.partition(':')[0]}: {finding.check}"
        for finding in findings
        if finding.verdict == Verdict.ERROR
    ]
    if errors:
        raise UserError(
            f"these errors would cause wrong scores or make training fail: {'; '.join(errors)}. See the table."
        )


def inspect_all(data: DataModule) -> InspectedSplits:
    """Inspect all files of train, val and test, each list once, with a progress bar."""
    names = ("train", "val") if data.lists["test"] == data.lists["val"] else ("train", "val", "test")
    report_splits(data, *names)
    inspected: InspectedSplits = {}
    for name in names:
        dataset = data.split(name)
        if not len(dataset):
            raise DataError(f"{dataset.title} is empty: set another list")
        earlier = next((split for split in inspected.values() if split[0] is dataset), None)
        if earlier is None:
            reports = inspect_images(dataset)
            bar = tqdm(reports, dataset.title, total=len(dataset), unit="images", leave=False, disable=None)
            inspected[name] = dataset, list(bar)
        else:
            inspected[name] = earlier
    return inspected


def inspect_data(data: DataModule, inspected: InspectedSplits, bits: int) -> Iterator[Finding]:
    """Yield the findings on splits, pairs of splits, settings and the training loader."""
    for name, (dataset, reports) in inspected.items():
        yield from inspect_split(name, dataset, reports, bits)
    for first, second in combinations(inspected, 2):
        yield from inspect_overlap((first, second), inspected[first], inspected[second], bits, data.allow_overlap)
    yield from inspect_settings(data, inspected)
    dataset, reports = inspected["train"]
    # All crops of a uniform image are equal.
    usable = [index for index in valid_indices(reports) if reports[index].code is not None]
    if usable:
        yield from inspect_streams(data, dataset, usable[0])
    else:
        yield Finding("augmentation", "draws", Verdict.WARNING, "not checked: there is no valid image to test it on")


def inspect_settings(data: DataModule, inspected: InspectedSplits) -> Iterator[Finding]:
    """Yield the findings on settings that must agree with the data set."""
    dataset, _ = inspected["train"]
    agree = len(dataset.classes) == data.num_classes
    equal = f"{len(dataset.classes)}, equal to data.num_classes"
    different = f"{len(dataset.classes)}, but data.num_classes={data.num_classes}"
    yield Finding("settings", "classes", *((Verdict.OK, equal) if agree else (Verdict.ERROR, different)))
    try:
        epoch = len(TrainingBatches(len(dataset), data.batch_size, data.seed))
        yield Finding(
            "settings", "batches", Verdict.OK, f"{epoch:,} batches of {data.batch_size} per epoch, on one device"
        )
    except DataError as error:
        yield Finding("settings", "batches", Verdict.ERROR, str(error))


def valid_indices(reports: Sequence[ImageReport]) -> list[int]:
    """Return the indices of images without faults."""
    return [index for index, report in enumerate(reports) if not report.faults]


def batch_bytes(data: DataModule) -> int:
    """Return the bytes of a training batch: uint8, three channels and the mask."""
    return 4 * data.batch_size * data.crop_size**2


def class_columns(
    classes: Sequence[str], counts: Mapping[str, Frequencies], weights: Mapping[str, Sequence[float]]
) -> tuple[list[str], list[list[str]]]:
    """Return a header and a row for each class: its frequency in each split, and its weight by each rule."""
    header = ["class", *(f"{name} {unit}" for name in counts for unit in ("images", "pixels, %")), *weights]
    rows = []
    for index, title in enumerate(classes):
        pairs = (
            (f"{frequencies.images[index]:,}", f"{100 * frequencies.share[index]:.3f}")
            for frequencies in counts.values()
        )
        rows.append([title, *chain(*pairs), *(f"{values[index]:.3f}" for values in weights.values())])
    return header, rows


def class_weights(train: Frequencies) -> dict[str, list[float]]:
    """Return class weights by the name of their rule, to three digits; empty if no mask could be read."""
    if not train.pixels.any():
        return {}
    return {name: [round(float(weight), 3) for weight in rule(train)] for name, rule in WEIGHTINGS.items()}


def suggestions(weights: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the command line settings for each rule."""
    return [
        f"{name}: loss=weighted loss.class_weights=[{','.join(f'{weight:g}' for weight in values)}]"
        for name, values in weights.items()
    ]


def write_report(
    folder: Path,
    inspected: InspectedSplits,
    findings: Sequence[Finding],
    counts: Mapping[str, Frequencies],
    weights: dict,
    command: str,
) -> None:
    """Write ``doctor.json`` for programs and ``doctor.md`` for people, both with all affected files."""
    classes = inspected["train"][0].classes
    splits = {
        name: {"title": dataset.title, "images": len(dataset), **frequency_facts(classes, counts.get(name))}
        for name, (dataset, _) in inspected.items()
    }
    facts = {"verdict": worst_verdict(findings), "command": command, "splits": splits, "class_weights": weights}
    write_json(folder / "doctor.json", facts | {"findings": findings_facts(findings)})
    parts = [
        f"# {command}\n",
        findings_markdown(findings),
        "## Classes\n",
        markdown_columns(*class_columns(classes, counts, weights)),
        "".join(f"\n{line.replace(': ', ': `', 1)}`\n" for line in suggestions(weights)),
    ]
    with atomic_write(folder / "doctor.md") as part:
        part.write_text("\n".join(parts), encoding="utf-8", errors="replace")


def frequency_facts(classes: Sequence[str], frequencies: Frequencies | None) -> dict[str, Any]:
    """Return the images and pixels of each class, and those with ``ignore_index``; None for a split without masks."""
    if frequencies is None:
        return {"classes": None, "ignored": None}
    counts = zip(classes, frequencies.images.tolist(), frequencies.pixels.tolist(), strict=True)
    return {
        "classes": {name: {"images": images, "pixels": pixels} for name, images, pixels in counts},
        "ignored": {"images": frequencies.images_with_ignored, "pixels": frequencies.ignored_pixels},
    }


def terminal_report(
    inspected: InspectedSplits, findings: Sequence[Finding], counts: Mapping[str, Frequencies], weights: dict
) -> str:
    """Format the classes, settings for class weights, and the table of findings."""
    classes = text_columns(*class_columns(inspected["train"][0].classes, counts, weights))
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 120
    settings = ["Settings for class weights:", *(f"  {line}" for line in suggestions(weights)), ""] if weights else []
    return "\n".join([classes, "", *settings, findings_table(findings, in_colour(), columns), ""])


def in_colour() -> bool:
    """Return whether the terminal shows colours and NO_COLOR (https://no-color.org) is not set."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def draw_samples(
    path: Path, data: DataModule, dataset: SegmentationDataset, reports: Sequence[ImageReport], count: int
) -> None:
    """Draw a contact sheet of augmented training images with their ground truth."""
    samples = augmented_samples(data, dataset, valid_indices(reports), count)
    if samples:
        save_png(path, contact_sheet(samples, dataset.classes, dataset.palette))
