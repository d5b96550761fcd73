"""Semantic segmentation with fully convolutional networks.

>>> model = fcnlab.load("RUN/checkpoints/best.ckpt")
>>> labels = model.predict("photo.jpg")

These names are imported when they are used, so that ``import fcnlab`` itself is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fcnlab.version import __version__

if TYPE_CHECKING:
    from fcnlab.data import (
        DataModule,
        SegmentationDataset,
        open_camvid,
        open_folder,
        open_sbd,
        open_shapes,
        open_voc,
    )
    from fcnlab.evaluation.trained_model import TrainedModel, load
    from fcnlab.models import FCN, VGG16, AlexNet, CaffeNet, GoogLeNet, GoogLeNetBN, ResNet, Tiny
    from fcnlab.training.segmenter import Segmenter

__all__ = [
    "FCN",
    "VGG16",
    "AlexNet",
    "CaffeNet",
    "DataModule",
    "GoogLeNet",
    "GoogLeNetBN",
    "ResNet",
    "SegmentationDataset",
    "Segmenter",
    "Tiny",
    "TrainedModel",
    "__version__",
    "load",
    "open_camvid",
    "open_folder",
    "open_sbd",
    "open_shapes",
    "open_voc",
]

_MODULES = {
    "fcnlab.data": (
        "DataModule",
        "SegmentationDataset",
        "open_camvid",
        "open_folder",
        "open_sbd",
        "open_shapes",
        "open_voc",
    ),
    "fcnlab.evaluation.trained_model": ("TrainedModel", "load"),
    "fcnlab.models": ("FCN", "VGG16", "AlexNet", "CaffeNet", "GoogLeNet", "GoogLeNetBN", "ResNet", "Tiny"),
    "fcnlab.training.segmenter": ("Segmenter",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'fcnlab' has no attribute '{name}'")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULE_OF]
