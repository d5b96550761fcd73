"""Published weights of the papers' VGG16 models: wkentaro/pytorch-fcn's five ``.pth`` files, under our names.

They are Berkeley's Caffe weights, which expect its input (BGR, 0..255, minus the mean) and its padding. Names and
shapes of tensors show neither, and do not distinguish FCN-8s from FCN-8s at once. The user chooses the model; it is
compared with the file's md5 or with the record of its training.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fcnlab.files.reading import md5
from fcnlab.models.backbone import Backbone
from fcnlab.models.upsampling import Upsample, bilinear_kernel
from fcnlab.models.vgg import VGG16, VGG16_FROM_CAFFE, from_torchvision
from fcnlab.models.weights import StateDict, WeightsError, first_names


class Published(NamedTuple):
    """A model of pytorch-fcn: its levels, and the name and factor of the deconvolution after each level."""

    levels: tuple[int, ...]
    steps: tuple[tuple[str, int], ...]


NETS = {
    "FCN32s": Published((32,), (("upscore", 32),)),
    "FCN16s": Published((32, 16), (("upscore2", 2), ("upscore16", 16))),
    "FCN8s": Published((32, 16, 8), (("upscore2", 2), ("upscore_pool4", 2), ("upscore8", 8))),
}
NETS["FCN8sAtOnce"] = NETS["FCN8s"]  # the same tensors; its features of pool4 and pool3 are scaled
AT_ONCE = {16: 0.01, 8: 0.0001}  # voc-fcn8s-atonce/net.py
OPTIONS = {"FCN32s": "fcn32s", "FCN16s": "fcn16s", "FCN8s": "fcn8s", "FCN8sAtOnce": "fcn8s_atonce"}  # of model=
MD5 = {  # since the upload of August 2021, and before
    "d3eb467a80e7da0468a20dfcbc13e6c8": "FCN32s",
    "8acf386d722dc3484625964cbe2aba49": "FCN32s",
    "a2d4035f669f09483b39c9a14a0d6670": "FCN16s",
    "991ea45d30d632a01e5ec48002cac617": "FCN16s",
    "de93e540ec79512f8770033849c8ae89": "FCN8s",
    "dbd9bbb3829a3184913bccc74373afbb": "FCN8s",
    "bfed4437e941fef58932891217fe6464": "FCN8sAtOnce",
}
TRUNK = {  # their convolutions, and the indices of torchvision's that VGG16 has
    "conv1_1": 0, "conv1_2": 2, "conv2_1": 5, "conv2_2": 7, "conv3_1": 10, "conv3_2": 12, "conv3_3": 14,
    "conv4_1": 17, "conv4_2": 19, "conv4_3": 21, "conv5_1": 24, "conv5_2": 26, "conv5_3": 28,
}  # fmt: skip
HEADS = {32: "score_fr", 16: "score_pool4", 8: "score_pool3"}
TOLERANCE = 1e-5  # of each weight, or the rounding of the file's own type where that is coarser


def as_ours(
    state: StateDict,
    label: str | None,
    path: str,
    *,
    backbone: Backbone,
    scales: Mapping[int, float],
    steps: Sequence[Upsample],
    heads: bool = True,
) -> StateDict:
    """Convert a published state dict to our names; return any other one unchanged.

    Parameters
    ----------
    state, label, path
        The contents of a file, its label ("arch", if any) and its path; the file is hashed.
    backbone, scales, steps
        Those of the model: the factor of the features of each level; the upsampling steps, from coarse to fine.
    heads
        False: only the backbone is needed.

    Raises
    ------
    WeightsError
        It belongs to another model than the user chose, is incomplete, or has kernels for which the model has no place.

    Warns
    -----
    UserWarning
        The model pads images differently from the published ones.
    """
    if _is_classifier(state):
        label = "VGG16" if md5(path) == VGG16_FROM_CAFFE else None
        _checked(backbone, path, "VGG16", caffe=label is not None)
        return {f"backbone.{key}": value for key, value in from_torchvision(state).items()}
    if not is_published(state):
        return state
    kind = _kind(state, path)
    vgg = _checked(backbone, path, kind, caffe=True)
    renamed = from_pytorch_fcn(state)
    if not heads:
        return renamed
    _check_variant(kind, MD5.get(md5(path), label), path, scales, vgg.padding)
    return renamed | kernels(state, NETS[kind], steps, f"model.weights={path}")


def is_published(state: StateDict) -> bool:
    """Whether it has layers of pytorch-fcn's names; what else it has, or has not, is for :func:`as_ours` to tell."""
    layers = {key.partition(".")[0] for key in state}
    return not layers.isdisjoint({*TRUNK, *HEADS.values(), *(name for net in NETS.values() for name, _ in net.steps)})


def from_pytorch_fcn(state: StateDict) -> dict[str, Tensor]:
    """All but the deconvolutions, under our names: fc6 and fc7 are convolutions already."""
    names = {layer: f"backbone.features.{index}" for layer, index in TRUNK.items()}
    names |= {layer: f"backbone.{layer}" for layer in ("fc6", "fc7")}
    names |= {layer: f"heads.{level}" for level, layer in HEADS.items()}
    layers = {key: key.partition(".") for key in state}
    return {names[layer] + dot + rest: state[key] for key, (layer, dot, rest) in layers.items() if layer in names}


def kernels(state: StateDict, net: Published, steps: Sequence[Upsample], source: str) -> dict[str, Tensor]:
    """Return the deconvolutions that our model learns, under our names; the others must equal its fixed upsampling.

    If the model has more levels than the file, its own steps replace the last deconvolution of the file.

    Raises
    ------
    WeightsError
        A deconvolution is not bilinear for each class separately, but the upsampling of our model is.
    """
    kept = {}
    for place, (name, factor) in enumerate(net.steps):
        kernel, step = state[f"{name}.weight"], steps[place]
        if step.factor == factor and step.learned:
            kept[f"upsample.{place}.kernel"] = kernel
        elif not is_bilinear(kernel, factor):
            last = place == len(net.steps) - 1
            if last and len(steps) > len(net.steps):
                then = f"a model with more levels has no place for it: choose model={_option(net)}"
            else:
                then = f"the model's is fixed: set model.upsampling={'learned_all' if last else 'learned'} to keep it"
            raise WeightsError(f"{source}: {name} is not a bilinear kernel per class, and {then}")
    return kept


def is_bilinear(kernel: Tensor, factor: int) -> bool:
    """Whether a dense deconvolution interpolates each class linearly and mixes none, to :data:`TOLERANCE`."""
    size, taps = len(kernel) if kernel.ndim else 0, 2 * factor
    if kernel.shape != (size, size, taps, taps) or not kernel.is_floating_point():
        return False
    wanted = torch.eye(size)[:, :, None, None] * bilinear_kernel(factor, taps)
    rounding = torch.finfo(kernel.dtype).eps
    return torch.allclose(kernel.float(), wanted, rtol=max(TOLERANCE, rounding), atol=1e-9)


def _is_classifier(state: StateDict) -> bool:
    return {"features.0.weight", "classifier.0.weight", "classifier.6.weight"} <= set(state)


def _kind(state: StateDict, path: str) -> str:
    """Return the published model that has these tensors.

    Raises
    ------
    WeightsError
        No published model has them.
    """
    ends = {net.steps[-1][0]: kind for kind, net in reversed(NETS.items())}
    found = [kind for last, kind in ends.items() if f"{last}.weight" in state]
    if len(found) != 1:
        raise WeightsError(
            f"model.weights={path} has {len(found)} of the layers {', '.join(ends)}; a pytorch-fcn network has exactly"
            " one. It is damaged, or of another architecture."
        )
    wanted = _keys(NETS[found[0]])
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    if missing or unexpected:
        problems = {f"lacks {len(missing)}": missing, f"has {len(unexpected)} unexpected": unexpected}
        message = " and ".join(f"{problem}: {first_names(keys)}" for problem, keys in problems.items() if keys)
        raise WeightsError(
            f"model.weights={path} is not pytorch-fcn's {found[0]} on VGG16: of its {len(wanted)} tensors it {message}."
            " It is damaged, or of another architecture."
        )
    return found[0]


def _keys(net: Published) -> list[str]:
    layers = [*TRUNK, "fc6", "fc7", *(HEADS[level] for level in net.levels)]
    pairs = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    return [*pairs, *(f"{name}.weight" for name, _ in net.steps)]


def _checked(backbone: Backbone, path: str, kind: str, caffe: bool) -> VGG16:
    """Return the backbone if it is that of a published model; raise an error otherwise."""
    if not isinstance(backbone, VGG16) or backbone.batch_norm:
        bn = ", batch-normalised" if isinstance(backbone, VGG16) else ""
        raise WeightsError(
            f"model.weights={path} is {kind} on the plain VGG16, but the model's backbone is {type(backbone).__name__}"
            f"{bn}: choose model/backbone=vgg16_caffe"
        )
    if caffe and backbone.convention != "caffe":
        raise WeightsError(
            f"model.weights={path} is Caffe's {kind}, which takes BGR in 0..255 less a mean, and"
            f" model.backbone.convention={backbone.convention} gives it another input: set it to caffe, or choose"
            " model/backbone=vgg16_caffe"
        )
    return backbone


def _check_variant(kind: str, label: str | None, path: str, scales: Mapping[int, float], padding: str) -> None:
    """Compare levels, factors and padding with those of the model in the file."""
    net = NETS[kind]
    known = label if label in NETS and NETS[label] is net else None
    offered = [OPTIONS[name] for name in NETS if NETS[name] is net and known in (name, None)]
    levels = tuple(scales)
    if levels[: len(net.levels)] != net.levels:
        raise WeightsError(
            f"model.weights={path} is pytorch-fcn's {known or kind}, of levels {list(net.levels)}, but the model's are"
            f" {list(levels)}: choose model={' or model='.join(offered)}"
        )
    found = {level: scales[level] for level in net.levels}
    one = dict.fromkeys(net.levels, 1.0)
    wanted = {"fcn8s_atonce": one | AT_ONCE}
    if found not in [wanted.get(option, one) for option in offered]:
        raise WeightsError(
            f"model.weights={path} is pytorch-fcn's {known or kind}, and model.skip_scales={found} is not what its"
            f" heads were trained with: choose model={' or model='.join(offered)}"
        )
    if padding != "paper":
        warnings.warn(
            f"model.weights={path} was trained with model.backbone.padding=paper. With padding={padding}, cells lie"
            " elsewhere and borders look different: train it further, but expect other scores than the published ones",
            stacklevel=5,
        )


def _option(net: Published) -> str:
    return next(OPTIONS[kind] for kind in NETS if NETS[kind] is net)
