"""Scoring a net on a set, the same way at the end of a training and in ``fcnlab eval``, and the record of it."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import lightning as L
from lightning.pytorch.loggers import WandbLogger

from fcnlab.data import DataModule, SegmentationDataset
from fcnlab.evaluation.cost import cost
from fcnlab.metrics.scores import Scores
from fcnlab.runs.provenance import command, machine
from fcnlab.runs.score_record import write_record
from fcnlab.runs.selection import (
    OPTIMISTIC,
    Facts,
    count_validated,
    describe_selection,
    is_optimistic,
    selection_of_scored,
)
from fcnlab.training.callbacks.wandb import log_scores
from fcnlab.training.segmenter import Segmenter


class ScoredRun(NamedTuple):
    """The scores of ``count`` images, and how the weights were selected; None: nobody knows."""

    scores: Scores
    selection: Facts | None
    count: int


def evaluate_and_record(
    trainer: L.Trainer,
    segmenter: Segmenter,
    data: DataModule,
    folder: Path,
    seed: int,
    began: Mapping[str, Any],
    training: Mapping[str, float] = MappingProxyType({}),
    selected: Facts | None = None,
    **facts: Mapping[str, Any] | None,
) -> ScoredRun | None:
    """Evaluate the test list and leave the record in ``folder``; the scores, on the process that writes (rank 0).

    ``began`` has the commit and the source when the run began, since files may have been edited after they were
    imported. ``training`` is what the training took, for the record's ``cost``; ``selected`` what the checkpoint says
    of its selection; ``facts`` are further parts of the record.
    """
    segmenter.scored_as = scored_as(data, selected)
    started = time.perf_counter()
    trainer.test(segmenter, datamodule=data, verbose=False)
    seconds = time.perf_counter() - started
    index, matrices = (values.cpu().numpy() for values in segmenter.confusions.compute())
    if not trainer.is_global_zero:
        return None
    dataset = data.split("test")
    selection = selected and selection_of_scored(selected, [data.fingerprints("test")[place] for place in index])
    found = write_record(
        folder,
        split=data.lists["test"],
        names=[dataset.names[place] for place in index],
        classes=dataset.classes,
        matrices=matrices,
        protocol=protocol(trainer, dataset, len(index), segmenter),
        cost=cost(segmenter, dataset, seconds, len(index)) | dict(training),
        provenance=provenance(segmenter, seed, began),
        selection=selection,
        **facts,
    )
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            log_scores(logger, found, matrices.sum(axis=0), dataset.classes, segmenter.scored_as, selection)
    return ScoredRun(found, selection, len(index))


def scored_as(data: DataModule, selected: Facts | None) -> Literal["test", "final"]:
    """What scores are logged under: nothing that was validated on is called a test."""
    if data.lists["test"] == data.lists["val"]:
        return "final"
    return "final" if selected and set(data.fingerprints("test")) <= count_validated(selected) else "test"


def describe_scores(found: ScoredRun, name: str, data: DataModule) -> str:
    """The score, what it is of, and how the weights were selected, in a line."""
    selection, images = found.selection, data.split("test")
    part = f"{found.count} of {len(images)} images of " if found.count < len(images) else ""
    title = f"{part}{images.title}"
    line = f"{name} mIoU {100 * found.scores.miou:.2f} % on {title}. The weights were {describe_selection(selection)}."
    return f"{line} {OPTIMISTIC}." if is_optimistic(selection) else line


def protocol(trainer: L.Trainer, dataset: SegmentationDataset, count: int, segmenter: Segmenter) -> dict[str, Any]:
    """What the numbers mean."""
    return {
        "set": dataset.title,
        "images": count,
        "of": len(dataset),
        "resolution": "native: each image and its labels at their own size",
        "void": "pixels whose truth is void are in no sum",
        "absent_classes": "a class in neither truth nor prediction has no IoU and is left out of the mean",
        "inference": str(segmenter.inference),
        "postprocess": str(segmenter.postprocess),
        "precision": str(trainer.precision),
        "padded_samples": 0,
    }


def provenance(segmenter: Segmenter, seed: int, began: Mapping[str, Any]) -> dict[str, Any]:
    """Where the numbers come from."""
    began_with = {"commit": began["commit"], "source": began["source"], "seed": seed}
    return began_with | machine(segmenter.device) | {"command": command()}


def score_table(found: Scores, classes: tuple[str, ...]) -> str:
    """The scores as the terminal shows them, in percent."""
    four = "   ".join(f"{name} {100 * value:.2f}" for name, value in zip(found._fields, found[:4], strict=False))
    width = max(map(len, classes))
    rows = [f"  {name:<{width}}  {100 * value:6.2f}" for name, value in zip(classes, found.iou, strict=True)]
    return "\n".join([four, "IoU by class:", *rows])
