"""The other implementations, where they are installed: none of their code is copied or downloaded.

make rivals     torchfcn 1.9.7 (wkentaro/pytorch-fcn), segmentation_models.pytorch; torchvision is always there
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

NO_PYTORCH_FCN = "pytorch-fcn, which is not installed: make rivals, or pip install --no-deps torchfcn==1.9.7"
NO_SMP = "segmentation_models.pytorch, which is not installed: make rivals, or pip install 'fcnlab[rivals]'"
# torchfcn imports these for downloads, visualisation and time zones, which are not measured.
NOT_NEEDED = ("fcn", "pytz", "skimage", "skimage.io")


class PyTorchFCN(NamedTuple):
    """The parts of ``torchfcn`` that are measured."""

    net: type[nn.Module]
    cross_entropy: Callable[..., Tensor]
    count: Callable[[np.ndarray, np.ndarray, int], np.ndarray]
    data_set: type

    def images(self, images: Sequence[Path], masks: Sequence[Path]) -> Any:
        """Return its data set over some files: its processing of images, without its folders and lists."""
        data_set = object.__new__(self.data_set)
        files = [{"img": image, "lbl": mask} for image, mask in zip(images, masks, strict=True)]
        data_set.split, data_set.files, data_set._transform = "val", {"val": files}, True
        return data_set


def pytorch_fcn() -> PyTorchFCN | None:
    """Return its modules, without the many imports of its ``__init__``; None where it is not installed."""
    found = importlib.util.find_spec("torchfcn")
    if found is None:
        return None
    package = ModuleType("torchfcn")
    package.__path__ = list(found.submodule_search_locations or ())
    sys.modules["torchfcn"] = package
    for name in NOT_NEEDED:
        if name not in sys.modules and not _installed(name):
            sys.modules[name] = ModuleType(name)
    models, trainer, utils, voc = (
        importlib.import_module(f"torchfcn.{name}") for name in ("models", "trainer", "utils", "datasets.voc")
    )
    return PyTorchFCN(models.FCN8sAtOnce, trainer.cross_entropy2d, utils._fast_hist, voc.VOCClassSegBase)


def segmentation_models() -> ModuleType | None:
    """Return segmentation_models.pytorch; None where it is not installed."""
    return importlib.import_module("segmentation_models_pytorch") if _installed("segmentation_models_pytorch") else None


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):  # the parent is not a package, or is a stand-in
        return False


def torchvision_fcn() -> nn.Module:
    """Return torchvision's "FCN": a dilated ResNet-50 with its own head, without pretrained weights."""
    from torchvision.models.segmentation import fcn_resnet50

    return fcn_resnet50(weights=None, weights_backbone=None, num_classes=21)


def drawn(net: nn.Module) -> nn.Module:
    """Return the model with random weights: torchfcn's are initialised with zeros."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return net


def caffe_input(batch: int, rows: int, cols: int) -> Tensor:
    """Return images in the form that pytorch-fcn's models take: BGR minus a mean."""
    return torch.rand(batch, 3, rows, cols) * 255 - 115
