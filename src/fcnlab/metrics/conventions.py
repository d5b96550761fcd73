"""The same predictions under five conventions of mean IoU: why two papers' numbers are not the same number.

Everything comes from the matrices of ``confusions.npz``. They hold no pixel whose truth is void, so that no convention
here sees what was predicted on void; each of the five agrees with that, or has to be fed so (torchmetrics). What sets
the conventions apart is which areas are summed before the division, and which classes the mean leaves out. Read from
the sources that each one names; libraries change, so each names its version too.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from fcnlab.files.writing import number

BATCH_SIZE = 8  # images; an average of batches means nothing without it
Matrices = Int64[ndarray, "image truth prediction"]


class Convention(NamedTuple):
    """Scores in 0..1, None where the convention has no such score, nan where no pixel was counted."""

    name: str
    miou: float
    mean_acc: float | None
    pixel_acc: float | None
    differs: str
    source: str


class ClassAreas(NamedTuple):
    """Pixels of each class: rightly labelled, in the truth, in truth or prediction."""

    intersection: ndarray
    target: ndarray
    union: ndarray

    def miou(self) -> float:
        """Mean over what occurs at all: what is predicted only has IoU 0."""
        seen = self.union > 0
        return _mean(self.intersection[seen] / self.union[seen])

    def mean_acc(self) -> float:
        """Mean over what is in the truth."""
        true = self.target > 0
        return _mean(self.intersection[true] / self.target[true])

    def pixel_acc(self) -> float:
        """Of all pixels."""
        total = self.target.sum()
        return float(self.intersection.sum() / total) if total else float("nan")


def class_areas(matrices: Int64[ndarray, "*images truth prediction"]) -> ClassAreas:
    """The areas of one matrix, or a row of them for each image."""
    intersection, target, predicted = (
        np.diagonal(matrices, axis1=-2, axis2=-1),
        matrices.sum(axis=-1),
        matrices.sum(axis=-2),
    )
    return ClassAreas(intersection, target, target + predicted - intersection)


def all_conventions(matrices: Matrices, batch_size: int = BATCH_SIZE) -> list[Convention]:
    """All five, the project's own first; images are in the order of their list."""
    return [
        fcn(matrices),
        mmsegmentation(matrices),
        detectron2(matrices),
        torchmetrics(matrices),
        average_of_batches(matrices, batch_size),
    ]


def fcn(matrices: Matrices) -> Convention:
    """What the FCN release prints, and :func:`fcnlab.metrics.scores.scores`.

    For SIFT Flow the paper itself left out the three classes that its test set lacks, as detectron2 does.
    """
    total = class_areas(matrices.sum(axis=0))
    return Convention(
        "FCN paper",
        total.miou(),
        total.mean_acc(),
        total.pixel_acc(),
        "one histogram over the set; a class that is predicted only counts 0, one that is nowhere is left out",
        "shelhamer/fcn.berkeleyvision.org score.py (1305c73); the scores of this record",
    )


def mmsegmentation(matrices: Matrices) -> Convention:
    """Areas are float32 there (``torch.histc``) and added image by image: whole numbers up to 2^24 only."""
    zeros = np.zeros(matrices.shape[-1], np.float32)
    total = ClassAreas(*(sum(area.astype(np.float32), start=zeros) for area in class_areas(matrices)))
    return Convention(
        "mmsegmentation",
        total.miou(),
        total.mean_acc(),
        total.pixel_acc(),
        "the FCN paper's, but areas are added in single precision: other digits once a class has 2^24 pixels",
        "mmsegmentation 1.x mmseg/evaluation/metrics/iou_metric.py, IoUMetric",
    )


def detectron2(matrices: Matrices) -> Convention:
    """Its ``pos_pred`` leaves out predictions on void, as the others do; its mask is ``pos_gt > 0``, for IoU too.

    Until July 2022, so in v0.6, the last release, it divided by all classes that occur: the FCN paper's number.
    """
    total = class_areas(matrices.sum(axis=0))
    true = total.target > 0
    return Convention(
        "detectron2",
        ClassAreas(*(area[true] for area in total)).miou(),
        total.mean_acc(),
        total.pixel_acc(),
        "a class that is absent from the truth is left out, even where it was predicted (v0.6 still counted it 0)",
        "detectron2 evaluation/sem_seg_evaluation.py, SemSegEvaluator, since f3c1bc19 (July 2022)",
    )


def torchmetrics(matrices: Matrices) -> Convention:
    """Sum and count run over (image, class) pairs with a union, so it is no mean of the images' means either.

    Its ``functional.mean_iou`` gives those. A class that is absent from an image is in no pair; up to 1.7.0 it counted
    0 there. Void cannot be told to it: among ``"index"`` labels 255 is an error.
    """
    return Convention(
        "torchmetrics MeanIoU",
        class_areas(matrices).miou(),
        None,
        None,
        "the mean over all pairs of an image and a class that it has or was given; background is a class too",
        "torchmetrics 1.9.0 (since 1.7.1) segmentation/mean_iou.py, MeanIoU(include_background=True)",
    )


def average_of_batches(matrices: Matrices, batch_size: int) -> Convention:
    """The FCN paper's scores of each batch, averaged; the last batch may be smaller and weighs as much as the others.

    A batch that is all void has no score and is left out.
    """
    starts = range(0, len(matrices), batch_size)
    batches = [class_areas(matrices[start : start + batch_size].sum(axis=0)) for start in starts]
    batches = [batch for batch in batches if batch.target.any()]
    return Convention(
        f"average of batches of {batch_size}",
        _mean([batch.miou() for batch in batches]),
        _mean([batch.mean_acc() for batch in batches]),
        _mean([batch.pixel_acc() for batch in batches]),
        f"the scores of each batch of {batch_size} images in list order, averaged: another number for another size",
        "segmentation_models.pytorch utils/train.py, Epoch, averages so; IvLabs/stagewise-knowledge-distillation#12",
    )


def _mean(values: Sequence[float] | ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def as_facts(conventions: Sequence[Convention]) -> dict[str, dict[str, Any]]:
    """What ``metrics.json`` says of them, by name; null where a score is not defined."""
    return {
        convention.name: {
            key: number(value) if isinstance(value, float) else value
            for key, value in convention._asdict().items()
            if key != "name"
        }
        for convention in conventions
    }


def conventions_table(conventions: Sequence[Convention]) -> str:
    """As the terminal shows them, in percent; then what each one does, and where that is written."""
    width = max(len(convention.name) for convention in conventions)
    head = f"  {'':<{width}}{'miou':>11}{'mean_acc':>11}{'pixel_acc':>11}"
    rows = [f"  {row.name:<{width}}{''.join(map(_percent, row[1:4]))}" for row in conventions]
    notes = [f"  {row.name}: {row.differs}\n    [{row.source}]" for row in conventions]
    return "\n".join(["The same predictions under other conventions:", head, *rows, *notes])


def _percent(value: float | None) -> str:
    return f"{'-':>11}" if value is None else f"{100 * value:11.2f}"
