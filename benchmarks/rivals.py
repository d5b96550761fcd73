"""What others have, where it is installed: nothing of theirs is copied here, and nothing is fetched.

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
# torchfcn asks for them for downloads, images of predictions and the time in Tokyo: nothing that is measured.
NOT_NEEDED = ("fcn", "pytz", "skimage", "skimage.io")


class PyTorchFCN(NamedTuple):
    """What is used of ``torchfcn``."""

    net: type[nn.Module]
    cross_entropy: Callable[..., Tensor]
    count: Callable[[np.ndarray, np.ndarray, int], np.ndarray]
    data_set: type

    def images(self, images: Sequence[Path], masks: Sequence[Path]) -> Any:
        """Its own data set over some files: what it does to a image, without its folders and lists."""
        data_set = object.__new__(self.data_set)
        files = [{"img": image, "lbl": mask} for image, mask in zip(images, masks, strict=True)]
        data_set.split, data_set.files, data_set._transform = "val", {"val": files}, True
        return data_set


def pytorch_fcn() -> PyTorchFCN | None:
    """Its modules without its ``__init__``, which imports much that nothing here needs; None: it is not installed."""
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
    """segmentation_models.pytorch; None: not installed."""
    return importlib.import_module("segmentation_models_pytorch") if _installed("segmentation_models_pytorch") else None


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):  # a parent that is none, or a stand-in
        return False


def torchvision_fcn() -> nn.Module:
    """Its "FCN": a dilated ResNet-50 with a head of its own, without weights."""
    from torchvision.models.segmentation import fcn_resnet50

    return fcn_resnet50(weights=None, weights_backbone=None, num_classes=21)


def drawn(net: nn.Module) -> nn.Module:
    """A net with weights as before a training: torchfcn's start at zero, and would compute with nothing but zeros."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return net


def caffe_input(batch: int, rows: int, cols: int) -> Tensor:
    """Images as pytorch-fcn's nets take them: BGR less a mean, of either sign."""
    return torch.rand(batch, 3, rows, cols) * 255 - 115
