# pyright: strict
"""Semantic segmentation with fully convolutional networks.

>>> model = fcnlab.load("RUN/checkpoints/best.ckpt")
>>> labels = model.predict("photo.jpg")
>>> run = fcnlab.train(["model=fcn16s", "data=shapes"])
>>> fcnlab.compare("outputs/train")
>>> cfg = fcnlab.compose(["model=fcn16s", "model/backbone=vgg16"])

These names are imported when they are used, so that ``import fcnlab`` itself is quick: see docs/how-to/python.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fcnlab.version import __version__

if TYPE_CHECKING:
    from fcnlab.api import TrainedRun, compare, compose, train
    from fcnlab.comparison.report import ComparisonReport
    from fcnlab.data import (
        DataModule,
        SegmentationDataset,
        open_camvid,
        open_folder,
        open_sbd,
        open_shapes,
        open_voc,
    )
    from fcnlab.errors import UserError
    from fcnlab.evaluation.trained_model import TrainedModel, load
    from fcnlab.metrics.confusion import confusion_matrix
    from fcnlab.metrics.fine_grained import FineGrainedScores, fine_grained_miou
    from fcnlab.metrics.scores import Scores, scores
    from fcnlab.models import FCN, VGG16, AlexNet, Architecture, CaffeNet, GoogLeNet, GoogLeNetBN, ResNet, Tiny
    from fcnlab.training.losses import OHEM, CrossEntropy, Dice, Focal, Lovasz
    from fcnlab.training.segmenter import Segmenter

__all__ = [
    "FCN",
    "OHEM",
    "VGG16",
    "AlexNet",
    "Architecture",
    "CaffeNet",
    "ComparisonReport",
    "CrossEntropy",
    "DataModule",
    "Dice",
    "FineGrainedScores",
    "Focal",
    "GoogLeNet",
    "GoogLeNetBN",
    "Lovasz",
    "ResNet",
    "Scores",
    "SegmentationDataset",
    "Segmenter",
    "Tiny",
    "TrainedModel",
    "TrainedRun",
    "UserError",
    "__version__",
    "compare",
    "compose",
    "confusion_matrix",
    "fine_grained_miou",
    "load",
    "open_camvid",
    "open_folder",
    "open_sbd",
    "open_shapes",
    "open_voc",
    "scores",
    "train",
]

_MODULES = {
    "fcnlab.api": ("TrainedRun", "compare", "compose", "train"),
    "fcnlab.comparison.report": ("ComparisonReport",),
    "fcnlab.data": (
        "DataModule",
        "SegmentationDataset",
        "open_camvid",
        "open_folder",
        "open_sbd",
        "open_shapes",
        "open_voc",
    ),
    "fcnlab.errors": ("UserError",),
    "fcnlab.evaluation.trained_model": ("TrainedModel", "load"),
    "fcnlab.metrics.confusion": ("confusion_matrix",),
    "fcnlab.metrics.fine_grained": ("FineGrainedScores", "fine_grained_miou"),
    "fcnlab.metrics.scores": ("Scores", "scores"),
    "fcnlab.models": (
        "FCN",
        "VGG16",
        "AlexNet",
        "Architecture",
        "CaffeNet",
        "GoogLeNet",
        "GoogLeNetBN",
        "ResNet",
        "Tiny",
    ),
    "fcnlab.training.losses": ("OHEM", "CrossEntropy", "Dice", "Focal", "Lovasz"),
    "fcnlab.training.segmenter": ("Segmenter",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


if not TYPE_CHECKING:  # so that type checkers report misspelt names

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'fcnlab' has no attribute '{name}'")
        return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
