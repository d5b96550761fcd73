"""Evaluate a model on a data set and record the scores, at the end of training and in ``fcnlab eval``."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import lightning as L
from lightning.pytorch.loggers import WandbLogger

from fcnlab.config.run_context import RunContext
from fcnlab.data import DataModule
from fcnlab.evaluation.cost import cost
from fcnlab.files.reading import read_json_facts
from fcnlab.messages import log_info, log_warning
from fcnlab.metrics.scores import Scores
from fcnlab.runs.prediction_archive import NAME as ARCHIVE
from fcnlab.runs.prediction_archive import EncodedImage, readable, write_archive
from fcnlab.runs.provenance import command, machine
from fcnlab.runs.score_record import write_record
from fcnlab.runs.selection import (
    OPTIMISTIC,
    Facts,
    describe_selection,
    is_optimistic,
    selection_of_scored,
    validated_fingerprints,
)
from fcnlab.tracking.alerts import alert_about_end
from fcnlab.tracking.artifacts import log_results
from fcnlab.tracking.media import Evaluation, log_evaluation
from fcnlab.training.callbacks.kept_predictions import Keep, KeptPredictions
from fcnlab.training.segmenter import Segmenter


class ScoredRun(NamedTuple):
    """The scores on ``count`` images, and how the checkpoint was selected (None if unknown)."""

    scores: Scores
    selection: Facts | None
    count: int


def evaluate_and_record(
    trainer: L.Trainer,
    segmenter: Segmenter,
    data: DataModule,
    context: RunContext,
    seed: int,
    began: Mapping[str, Any],
    keep: Keep,
    training: Mapping[str, float] = MappingProxyType({}),
    selected: Facts | None = None,
    **facts: Mapping[str, Any] | None,
) -> ScoredRun | None:
    """Evaluate the test list and write the record to the run's folder; return the scores on rank 0, None on others.

    ``began`` has the commit and the source at the start of the run, because files may change after their import.
    ``keep`` says which predictions are kept. ``training`` is the cost of training, for the record's ``cost``;
    ``selected`` the selection that the checkpoint records; ``facts`` are further parts of the record.
    """
    segmenter.scored_as = scored_as(data, selected)
    kept = KeptPredictions(keep)
    callbacks: list = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    callbacks.append(kept)
    started = time.perf_counter()
    trainer.test(segmenter, datamodule=data, verbose=False)
    seconds = time.perf_counter() - started
    index, matrices = (values.cpu().numpy() for values in segmenter.confusions.compute())
    predictions = kept.collect(segmenter, data.split("test").names, index, matrices)
    if not trainer.is_global_zero:
        return None
    dataset = data.split("test")
    selection = selected and selection_of_scored(selected, [data.fingerprints("test")[position] for position in index])
    names = [dataset.names[position] for position in index]
    scores = write_record(
        context.folder,
        split=data.lists["test"],
        names=names,
        classes=dataset.classes,
        matrices=matrices,
        protocol=protocol(trainer, data, len(index), segmenter),
        cost=cost(segmenter, dataset, seconds, len(index)) | dict(training),
        provenance=provenance(segmenter, context, seed, began),
        selection=selection,
        scored_as=segmenter.scored_as,
        **facts,
    )
    save_predictions(context.folder / ARCHIVE, predictions, len(index))
    record = read_json_facts(context.folder, "metrics.json")
    evaluation = Evaluation(record, names, dataset.classes, matrices, context.folder, trainer.global_step)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            log_evaluation(logger, evaluation)
            alert_about_end(logger, segmenter.scored_as, scores.miou)
    log_results(trainer.loggers, context.folder)
    return ScoredRun(scores, selection, len(index))


def save_predictions(path: Path, predictions: Mapping[str, EncodedImage], count: int) -> None:
    """Write the kept predictions of ``count`` images in place of those of an earlier evaluation.

    They are written after the scores, and an error is only a warning: on a full disk, the results are complete.
    """
    try:
        path.unlink(missing_ok=True)
        if predictions:
            kept = readable(predictions)
            size = write_archive(path, kept)
            log_info(f"{path.name} keeps {len(kept)} of {count} predictions ({size / 1e6:.1f} MB)")
            if len(kept) < len(predictions):
                log_warning(
                    f"{path.name} keeps only the first {len(kept):,} images, because fcnlab compare reads no larger"
                    " archive. evaluation.keep_predictions=auto keeps the worst images and a random sample of all"
                )
    except OSError as error:
        log_warning(
            f"the predictions could not be saved: {path}: {error.strerror}. The scores are not affected. To get the"
            " predictions, repeat the evaluation with fcnlab eval"
        )


def scored_as(data: DataModule, selected: Facts | None) -> Literal["test", "final"]:
    """Return the log prefix of the scores: "final" if the images were used for validation, else "test"."""
    if data.lists["test"] == data.lists["val"]:
        return "final"
    return "final" if selected and set(data.fingerprints("test")) <= validated_fingerprints(selected) else "test"


def describe_scores(scored: ScoredRun, name: str, data: DataModule) -> str:
    """Return a line with the mIoU, the data set, and how the checkpoint was selected."""
    selection, dataset = scored.selection, data.split("test")
    subset = f"{scored.count} of {len(dataset)} images of " if scored.count < len(dataset) else ""
    title = f"{subset}{dataset.title}"
    line = f"{name} mIoU {100 * scored.scores.miou:.2f} % on {title}. The weights were {describe_selection(selection)}."
    return f"{line} {OPTIMISTIC}." if is_optimistic(selection) else line


def protocol(trainer: L.Trainer, data: DataModule, count: int, segmenter: Segmenter) -> dict[str, Any]:
    """Return the evaluation protocol, which defines what the scores mean.

    Held-out folds have the set and its number of images in common, because together they are one evaluation.
    """
    held_out = data.is_held_out("test")
    dataset = data.whole("test") if held_out else data.split("test")
    return {
        "set": f"{dataset.title}, cross-validation" if held_out else dataset.title,
        "images": count,
        "of": len(dataset),
        "folds": data.folds.count if held_out else None,
        "fold": data.folds.fold if held_out else None,
        "resolution": "native: each image and its labels at their own size",
        "ignored_pixels": "ignored pixels are not counted",
        "absent_classes": "a class in neither ground truth nor prediction has no IoU and is excluded from the mean",
        "inference": str(segmenter.inference),
        "postprocess": str(segmenter.postprocess),
        "precision": str(trainer.precision),
        "padded_samples": 0,
    }


def provenance(segmenter: Segmenter, context: RunContext, seed: int, began: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance of the scores: code, seed, machine and command."""
    began_with = {"commit": began["commit"], "source": began["source"], "seed": seed}
    return began_with | machine(segmenter.device) | {"command": command(context)}


def score_table(scores: Scores, classes: tuple[str, ...]) -> str:
    """Format the scores in percent for the terminal."""
    summary = "   ".join(f"{name} {100 * value:.2f}" for name, value in zip(scores._fields, scores[:4], strict=False))
    width = max(map(len, classes))
    rows = [f"  {name:<{width}}  {100 * value:6.2f}" for name, value in zip(classes, scores.iou, strict=True)]
    return "\n".join([summary, "IoU by class:", *rows])
