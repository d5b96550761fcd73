"""Tables, plots and images of a W&B run, made of plain values."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from fcnlab.data.dataset import IGNORE_INDEX, SegmentationDataset
from fcnlab.escaping import escape_line
from fcnlab.files.reading import Unreadable
from fcnlab.metrics.conventions import Matrices
from fcnlab.runs.prediction_archive import KeptImage, open_archive
from fcnlab.tracking.accepted_values import sendable
from fcnlab.tracking.contents import (
    STEP,
    TABLE_IMAGES,
    Table,
    class_table,
    confusion_table,
    image_table,
    lowest_and_highest,
    results,
    scored_as,
)
from fcnlab.tracking.folders import temporary_files_in_own_folder
from fcnlab.tracking.mirror import Mirror, attempt, errors_as_warnings

CONFUSION_PLOT = "wandb/confusion_matrix/v1"  # W&B's own
CONFUSION_TITLE = "Confusion matrix, % of the pixels of each ground-truth class"


class Evaluation(NamedTuple):
    """The records of an evaluation: metrics.json, and the names, classes and matrices of confusions.npz.

    ``folder`` is that of the run, for its predictions.zip. ``step`` is the last optimiser step of a training run, and 0
    for an evaluation.
    """

    record: Mapping[str, Any]
    names: Sequence[str]
    classes: Sequence[str]
    matrices: Matrices
    folder: Path
    step: int = 0


def log_evaluation(logger: WandbLogger, evaluation: Evaluation) -> None:
    """Log the summary and the tables of an evaluation: classes, confusion matrix, images."""
    attempt("facts", lambda: logger.experiment.summary.update(sendable(results(evaluation.record))))
    with errors_as_warnings("tables"), temporary_files_in_own_folder():
        # Drawing many images takes long, and is not W&B's time: only handing them over is limited.
        tables = _tables(evaluation, logger.table_images if isinstance(logger, Mirror) else TABLE_IMAGES)
        attempt("tables", lambda: logger.experiment.log(tables))


def _tables(evaluation: Evaluation, drawn: int | None) -> dict[str, Any]:
    import wandb

    name, classes = scored_as(evaluation.record), sendable(evaluation.classes)
    return {
        f"{name}/per_class": _table(class_table(evaluation.matrices, classes)),
        f"{name}/confusion": wandb.plot_table(
            CONFUSION_PLOT,
            _table(confusion_table(evaluation.matrices.sum(axis=0), classes)),
            {column: column for column in ("Actual", "Predicted", "nPredictions")},
            {"title": CONFUSION_TITLE},
        ),
        f"{name}/per_image": _table(_with_drawings(evaluation, drawn)),
        STEP: evaluation.step,
    }


def _table(table: Table) -> Any:
    import wandb

    return wandb.Table([*table.columns], sendable(table.rows))


def _with_drawings(evaluation: Evaluation, drawn: int | None) -> Table:
    """Return the table of the images, with a column "prediction" where images are drawn: None in the other rows."""
    table = image_table(evaluation.names, evaluation.matrices)
    kept = _kept_images(evaluation, [name for name, miou, *_ in table.rows if miou is not None], drawn)
    if not kept:
        return table
    drawings = {name: _drawing(name, each, evaluation.classes) for name, each in kept.items()}
    rows = [[name, drawings.get(name), *scored] for name, *scored in table.rows]
    return Table(["image", "prediction", *table.columns[1:]], rows)


def _kept_images(evaluation: Evaluation, ranked: Sequence[str], drawn: int | None) -> dict[str, KeptImage]:
    """Return the images to draw by name, with class maps of the size of the small copy; empty without an archive."""
    try:
        with open_archive(evaluation.folder, len(evaluation.classes)) as archive:
            kept = [name for name in ranked if name in archive]
            chosen = kept if drawn is None else lowest_and_highest(kept, drawn)
            return {name: _in_size_of_copy(archive.read(name)) for name in chosen}
    except (OSError, Unreadable):  # there is none, or it is damaged: the scores are complete without it
        return {}


def _in_size_of_copy(kept: KeptImage) -> KeptImage:
    rows, cols = kept.image.shape[:2]
    target, prediction = (
        np.asarray(Image.fromarray(labels).resize((cols, rows), Image.Resampling.NEAREST))
        for labels in (kept.target, kept.prediction)
    )
    return kept._replace(target=target, prediction=prediction)


def _drawing(name: str, kept: KeptImage, classes: Sequence[str]) -> Any:
    return _with_masks(kept.image, {"ground_truth": kept.target, "prediction": kept.prediction}, classes, name)


def _with_masks(image: np.ndarray, masks: Mapping[str, np.ndarray], classes: Sequence[str], name: str) -> Any:
    """Return an image with class maps as masks, which W&B turns on and off."""
    import wandb

    labels = dict(enumerate(sendable(classes))) | {IGNORE_INDEX: "ignored"}
    overlays: Any = {key: {"mask_data": mask, "class_labels": labels} for key, mask in masks.items()}
    return wandb.Image(image, masks=overlays, caption=escape_line(name))


def log_images(
    logger: WandbLogger, dataset: SegmentationDataset, predictions: Iterable[tuple[int, np.ndarray]], step: int
) -> None:
    """Log validation images with ground truth and prediction as masks; ``predictions`` are class maps by index."""
    with errors_as_warnings("images"):
        images = [
            _with_masks(
                dataset.image(index),
                {"ground_truth": dataset.mask(index), "prediction": prediction},
                dataset.classes,
                dataset.names[index],
            )
            for index, prediction in predictions
        ]
        attempt("images", lambda: logger.experiment.log({"val/images": images, STEP: step}))
