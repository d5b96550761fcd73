"""Any classification net of torchvision that computes feature maps."""

import difflib
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fcnlab.errors import UserError
from fcnlab.models.backbone import InputConvention
from fcnlab.models.measured_backbone import MeasuredBackbone, grids_of
from fcnlab.models.measured_grids import MeasuredGrids
from fcnlab.models.weights import load_backbone, with_batch_counters

ROWS, COLS = 1024, 2048  # pixels of an image on the device meta, where only sizes are computed
TENSORFLOW = InputConvention((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# The files of densenets are older than the names of the layers: torchvision.models.densenet._load_state_dict.
OLD_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")


class TorchvisionBackbone(MeasuredBackbone):
    """The net ``name`` of torchvision without its classifier, with a level for each stride of 2 pixels and more.

    A level is the output of the last layer or block with its stride.

    ``weights`` is ``"none"``, ``"imagenet"`` (torchvision's default for this net) or the path of a file with
    torchvision's layer names.

    Raises
    ------
    UserError
        torchvision has no such net, or its layers cannot be traced.
    GridError
        Its features lie on no regular grid, or it takes images of one size only.
    WeightsError
        The weights cannot be fetched or read, or do not fit.
    """

    def __init__(self, name: str, weights: str = "none"):
        from torchvision import models  # here: other backbones do without

        _check_name(name)
        default = models.get_model_weights(name)["DEFAULT"]
        super().__init__(_convention(name, default.transforms()), _measured(name))
        self.name = name
        self.net = _extractor(name)
        self.pretrained = load_backbone(self.net, weights, self._without_classifier, str(default))

    def features(self, image: Tensor) -> Mapping[int, Tensor]:
        return _maps(self.net, image, self.name)

    def _without_classifier(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own, whole = self.net.state_dict(), _whole(self.name).state_dict()
        renamed = {OLD_DENSE_LAYER.sub(r"\1", key): value for key, value in state.items()}
        return {key: value for key, value in with_batch_counters(renamed).items() if key in own or key not in whole}


def _convention(name: str, transforms: Any) -> InputConvention:
    """Return the input that the weights of a net were trained on.

    torchvision's ports of TensorFlow's nets convert from ImageNet's mean and deviation in their first line, if they are
    built with weights. Our extractor is built without, so it takes what that line returns.
    """
    converts = hasattr(_whole(name), "transform_input")
    return TENSORFLOW if converts else InputConvention(tuple(transforms.mean), tuple(transforms.std))


class _FeatureMaps(nn.Module):
    """A feature extractor as measure_grids takes it."""

    def __init__(self, name: str):
        super().__init__()
        self.name, self.net = name, _extractor(name)

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        return _maps(self.net, image, self.name)


def _extractor(name: str) -> nn.Module:
    """Return the layers of a net up to its last level, under their own names."""
    from torchvision.models.feature_extraction import create_feature_extractor

    nodes = {layer.path: str(stride) for stride, layer in _last_layers(name).items()}
    return create_feature_extractor(_build(name), nodes, suppress_diff_warning=True)


def _maps(net: nn.Module, image: Tensor, name: str) -> dict[int, Tensor]:
    """Return maps by stride, channels second."""
    maps = net(image)
    return {
        stride: maps[str(stride)].permute(0, 3, 1, 2) if layer.channels_last else maps[str(stride)]
        for stride, layer in _last_layers(name).items()
    }


class _Layer(NamedTuple):
    """The path of a layer whose output is a map, and the order of the map's dimensions."""

    path: str
    channels_last: bool


@functools.cache
def _measured(name: str) -> MeasuredGrids:
    return grids_of(name, lambda: _FeatureMaps(name))


@functools.cache
def _last_layers(name: str) -> dict[int, _Layer]:
    """Return the last layer of each stride, by the sizes of their outputs."""
    found: dict[int, _Layer] = {}

    def note(path: str, _: nn.Module, __: Any, output: Any) -> None:
        shape = output.shape if isinstance(output, Tensor) and output.ndim == 4 else (1, 1, 1, 1)
        for channels_last, (rows, cols) in ((False, shape[2:]), (True, shape[1:3])):
            if abs(math.log2(cols / rows) - math.log2(COLS / ROWS)) < 0.2:
                stride = 2 ** round(math.log2(COLS / cols))
                if stride > 1:
                    found[stride] = _Layer(path, channels_last)
                return

    net = _whole(name).eval()
    for path, layer in _layers(net):
        layer.register_forward_hook(functools.partial(note, path))
    with torch.inference_mode():
        net(torch.empty(1, 3, ROWS, COLS, device="meta"))
    if not found:
        raise RuntimeError("no layer returns a map")
    return found


def _layers(net: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers and blocks that follow one another."""
    for name, child in net.named_children():
        if name == "classifier":  # SqueezeNet's is convolutions
            return
        if type(child) is nn.Sequential:  # subclasses are blocks
            yield from _layers(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _whole(name: str) -> nn.Module:
    """The classifier, without numbers."""
    with torch.device("meta"):
        return _build(name)


def _build(name: str) -> nn.Module:
    from torchvision.models import get_model

    settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}  # theirs take a minute
    try:
        return get_model(name, weights=None, **settings)
    except NotImplementedError:  # on the device meta: RegNets compute their widths with tensors
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            net = get_model(name, weights=None, **settings)
        return net.to("meta")


def _check_name(name: str) -> None:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else "torchvision.models.list_models() lists them."
        raise UserError(
            f"Invalid configuration: model.backbone.name={name!r} is no classification net of torchvision. {hint}"
        )
