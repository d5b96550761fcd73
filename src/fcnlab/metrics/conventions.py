"""Score the same predictions under five conventions of mean IoU: papers compute it in different ways.

All scores are computed from the matrices of ``confusions.npz``, which do not count ignored pixels. All five conventions
ignore them, too, or need input without them (torchmetrics). The conventions differ in which areas are summed before the
division, and in which classes the mean excludes. Each convention names its source and version.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from fcnlab.files.writing import number

BATCH_SIZE = 8  # images; the average over batches depends on it
Matrices = Int64[ndarray, "image target prediction"]


class Convention(NamedTuple):
    """Scores in 0..1; None if the convention does not define a score, nan if no pixel was counted."""

    name: str
    miou: float
    mean_acc: float | None
    pixel_acc: float | None
    differs: str
    source: str


class ClassAreas(NamedTuple):
    """Pixels of each class: correct, in the ground truth, in ground truth or prediction."""

    intersection: ndarray
    target: ndarray
    union: ndarray

    def miou(self) -> float:
        """Return the mean over classes in ground truth or prediction; a class that is only predicted has IoU 0."""
        seen = self.union > 0
        return _mean(self.intersection[seen] / self.union[seen])

    def mean_acc(self) -> float:
        """Return the mean over classes in the ground truth."""
        true = self.target > 0
        return _mean(self.intersection[true] / self.target[true])

    def pixel_acc(self) -> float:
        """Return the accuracy over all pixels."""
        total = self.target.sum()
        return float(self.intersection.sum() / total) if total else float("nan")


def class_areas(matrices: Int64[ndarray, "*images target prediction"]) -> ClassAreas:
    """Return the areas of one matrix, or a row of areas for each image."""
    intersection = np.diagonal(matrices, axis1=-2, axis2=-1)
    target = matrices.sum(axis=-1)
    predicted = matrices.sum(axis=-2)
    return ClassAreas(intersection, target, target + predicted - intersection)


def all_conventions(matrices: Matrices, batch_size: int = BATCH_SIZE) -> list[Convention]:
    """Return all five conventions, the project's own first; the images must be in the order of their list."""
    return [
        fcn(matrices),
        mmsegmentation(matrices),
        detectron2(matrices),
        torchmetrics(matrices),
        average_of_batches(matrices, batch_size),
    ]


def fcn(matrices: Matrices) -> Convention:
    """Score as the FCN release and :func:`fcnlab.metrics.scores.scores` do.

    For SIFT Flow, the paper excludes the three classes that are absent from the test set, as detectron2 does.
    """
    total = class_areas(matrices.sum(axis=0))
    return Convention(
        "FCN paper",
        total.miou(),
        total.mean_acc(),
        total.pixel_acc(),
        "one confusion matrix over the set; a class that is only predicted has IoU 0, an absent one is excluded",
        "shelhamer/fcn.berkeleyvision.org score.py (1305c73); the scores of this record",
    )


def mmsegmentation(matrices: Matrices) -> Convention:
    """Score as mmsegmentation: float32 areas (``torch.histc``), added image by image, are exact only up to 2^24."""
    zeros = np.zeros(matrices.shape[-1], np.float32)
    total = ClassAreas(*(sum(area.astype(np.float32), start=zeros) for area in class_areas(matrices)))
    return Convention(
        "mmsegmentation",
        total.miou(),
        total.mean_acc(),
        total.pixel_acc(),
        "as the FCN paper, but areas are added in single precision: inexact from 2^24 pixels of a class",
        "mmsegmentation 1.x mmseg/evaluation/metrics/iou_metric.py, IoUMetric",
    )


def detectron2(matrices: Matrices) -> Convention:
    """Score as detectron2: ``pos_pred`` excludes predictions on ignored pixels, IoU uses the mask ``pos_gt > 0``.

    Until July 2022, also in v0.6, the last release, it divided by all classes that occur, as the FCN paper.
    """
    total = class_areas(matrices.sum(axis=0))
    true = total.target > 0
    return Convention(
        "detectron2",
        ClassAreas(*(area[true] for area in total)).miou(),
        total.mean_acc(),
        total.pixel_acc(),
        "a class that is absent from the ground truth is excluded, even if it is predicted (v0.6: IoU 0)",
        "detectron2 evaluation/sem_seg_evaluation.py, SemSegEvaluator, since f3c1bc19 (July 2022)",
    )


def torchmetrics(matrices: Matrices) -> Convention:
    """Score as torchmetrics: the mean over all (image, class) pairs with a union, not the mean of the means of images.

    Its ``functional.mean_iou`` returns the latter. A class that is absent from an image is in no pair; up to 1.7.0 its
    IoU there was 0. It has no ignore index: among ``"index"`` labels 255 is an error.
    """
    return Convention(
        "torchmetrics MeanIoU",
        class_areas(matrices).miou(),
        None,
        None,
        "the mean over all pairs of an image and a class in its ground truth or prediction, with background",
        "torchmetrics 1.9.0 (since 1.7.1) segmentation/mean_iou.py, MeanIoU(include_background=True)",
    )


def average_of_batches(matrices: Matrices, batch_size: int) -> Convention:
    """Average the FCN paper's scores over batches; a smaller last batch has the same weight as the others.

    A batch with only ignored pixels has no score and is excluded.
    """
    starts = range(0, len(matrices), batch_size)
    batches = [class_areas(matrices[start : start + batch_size].sum(axis=0)) for start in starts]
    batches = [batch for batch in batches if batch.target.any()]
    return Convention(
        f"average of batches of {batch_size}",
        _mean([batch.miou() for batch in batches]),
        _mean([batch.mean_acc() for batch in batches]),
        _mean([batch.pixel_acc() for batch in batches]),
        f"the average of the scores of batches of {batch_size} images in list order; depends on the batch size",
        "segmentation_models.pytorch utils/train.py, Epoch; IvLabs/stagewise-knowledge-distillation#12",
    )


def _mean(values: Sequence[float] | ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def as_facts(conventions: Sequence[Convention]) -> dict[str, dict[str, Any]]:
    """Return the entries of ``metrics.json`` by name; null where a score is undefined."""
    return {
        convention.name: {
            key: number(value) if isinstance(value, float) else value
            for key, value in convention._asdict().items()
            if key != "name"
        }
        for convention in conventions
    }


def conventions_table(conventions: Sequence[Convention]) -> str:
    """Format the scores in percent, followed by the definition and the source of each convention."""
    width = max(len(convention.name) for convention in conventions)
    head = f"  {'':<{width}}{'miou':>11}{'mean_acc':>11}{'pixel_acc':>11}"
    rows = [f"  {row.name:<{width}}{''.join(map(_percent, row[1:4]))}" for row in conventions]
    notes = [f"  {row.name}: {row.differs}\n    [{row.source}]" for row in conventions]
    return "\n".join(["The same predictions under five metric conventions:", head, *rows, *notes])


def _percent(value: float | None) -> str:
    return f"{'-':>11}" if value is None else f"{100 * value:11.2f}"
