"""What a W&B run contains besides the curves: scores of the final evaluation, and images with masks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.loggers import WandbLogger

from fcnlab.data.dataset import IGNORE_INDEX, SegmentationDataset
from fcnlab.escaping import escape_line
from fcnlab.metrics.scores import Scores
from fcnlab.tracking.accepted_values import sendable
from fcnlab.tracking.connection import temporary_files_in_own_folder
from fcnlab.tracking.mirror import attempt, errors_as_warnings


def log_scores(
    logger: WandbLogger, scores: Scores, matrix, classes: Sequence[str], name: str, selection: Mapping[str, Any] | None
) -> None:
    """Log the per-class IoU and the confusion matrix (rows: ground truth) of the final evaluation, below ``name``.

    The summary contains how the scored weights were selected; their score on the validation images is logged, so that
    W&B's sweeps can maximise it.
    """
    import wandb

    classes = sendable(classes)
    table = wandb.Table(["class", "iou"], [[name, float(iou)] for name, iou in zip(classes, scores.iou, strict=True)])
    cells = [[target, *map(int, row)] for target, row in zip(classes, matrix, strict=True)]
    confusion = wandb.Table(["ground truth \\ prediction", *classes], cells)
    facts = {f"selection/{key}": sendable(value) for key, value in (selection or {}).items() if value is not None}
    validated = {key: value for key, value in facts.items() if key == "selection/val_miou"}

    def log_tables() -> None:
        with temporary_files_in_own_folder():
            logger.experiment.log({f"{name}/per_class": table, f"{name}/confusion": confusion, **validated})

    attempt("tables", log_tables)
    attempt("facts", lambda: logger.experiment.summary.update(facts))


def log_images(
    logger: WandbLogger, dataset: SegmentationDataset, predictions: Iterable[tuple[int, np.ndarray]], step: int
) -> None:
    """Log validation images with ground truth and prediction as masks; ``predictions`` are class maps by index."""
    import wandb

    names = dict(enumerate(sendable(dataset.classes))) | {IGNORE_INDEX: "ignored"}
    with errors_as_warnings("images"):
        images = []
        for index, prediction in predictions:
            masks = {"ground_truth": dataset.mask(index), "prediction": prediction}
            overlays = {key: {"mask_data": mask, "class_labels": names} for key, mask in masks.items()}
            images.append(wandb.Image(dataset.image(index), masks=overlays, caption=escape_line(dataset.names[index])))
        attempt("images", lambda: logger.experiment.log({"val/images": images, "trainer/global_step": step}))
