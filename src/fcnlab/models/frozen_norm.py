"""Batch normalisation with frozen statistics, computed within the convolution before it.

A few images per step are too few to estimate statistics from, so a pretrained network keeps those of its weights, as
Mask R-CNN does (He et al., ICCV 2017). Then a normalisation is one factor and one shift per channel, and the
convolution before it can apply both: ``gamma / sigma * (w * x - mean) + beta`` is a convolution with the weights
``gamma / sigma * w``. Scores and the gradients of w, gamma and beta are the same but for rounding, and a pass over each
feature map is saved, forwards and backwards.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fcnlab.library_internals.torch import BATCH_NORMS, each_tensor

ROUNDING = 1e-2  # of a level's largest feature: the most that float32 makes of it in a deep net


class FrozenNorm(nn.Module):
    """A batch normalisation with frozen statistics; its tensors have the names of the module that it replaces.

    Parameters
    ----------
    norm
        What it replaces. Modules within it, such as the activation of timm's ``BatchNormAct2d``, follow it.
    applied
        Whether the convolution before it normalises.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d, applied: bool):
        super().__init__()
        self.eps, self.applied = norm.eps, applied
        self.register_parameter("weight", norm.weight)
        self.register_parameter("bias", norm.bias)
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, child in norm.named_children():
            self.add_module(name, child)

    def forward(self, input: Tensor) -> Tensor:
        if not self.applied:
            factor, shift = self.factor_and_shift()
            input = input * factor[:, None, None] + shift[:, None, None]
        for child in self.children():
            input = child(input)
        return input

    def factor_and_shift(self) -> tuple[Tensor, Tensor]:
        """What each channel is multiplied by, and what is added to it then: (channels,) each."""
        factor = torch.rsqrt(self.running_var + self.eps)
        if self.weight is not None:
            factor = factor * self.weight
        shift = -self.running_mean * factor
        return factor, shift if self.bias is None else shift + self.bias

    def extra_repr(self) -> str:
        return f"{len(self.running_mean)}, applied={self.applied}"


class NormalizedConv2d(nn.Conv2d):
    """A convolution that applies the frozen normalisation behind it."""

    def __init__(self, conv: nn.Conv2d, norm: FrozenNorm):
        nn.Module.__init__(self)
        self.__dict__.update(conv.__dict__)
        self.norm = (norm,)  # in a tuple: its tensors belong to the network's module of that place, not to this one

    def forward(self, input: Tensor) -> Tensor:
        factor, shift = self.norm[0].factor_and_shift()
        bias = shift if self.bias is None else self.bias * factor + shift
        weight = self.weight * factor[:, None, None, None]
        return F.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def freeze_norms(backbone: nn.Module, image: Tensor) -> int:
    """Freeze the statistics of all batch normalisations of a backbone, in place, and return how many there are.

    ``image`` is an input (batch, 3, rows, cols): passing it through shows which normalisation follows which
    convolution.

    Raises
    ------
    ValueError
        A batch normalisation of a library does more than normalising, or is none of images, so it cannot be replaced;
        or the features would change.
    """
    norms = [_checked(module) for module in backbone.modules() if has_statistics(module)]
    followed, before = _followed(backbone, image)
    replaced: dict[nn.Module, nn.Module] = {}
    for norm in norms:
        conv = followed.get(norm)
        frozen = replaced[norm] = FrozenNorm(norm, applied=conv is not None)
        if conv is not None:
            replaced[conv] = NormalizedConv2d(conv, frozen)
    places = [(path, each) for path, each in backbone.named_modules(remove_duplicate=False) if each in replaced]
    for path, each in places:
        parent, _, name = path.rpartition(".")
        setattr(backbone.get_submodule(parent), name, replaced[each])
    if norms and not image.is_meta:
        _check_features(before, _features(backbone, image))
    return len(norms)


def has_statistics(module: nn.Module) -> bool:
    """Return whether a module is a batch normalisation, of any dimension, that training changes the statistics of."""
    return isinstance(module, BATCH_NORMS) and module.track_running_stats


def _checked(norm: nn.Module) -> nn.BatchNorm2d:
    if isinstance(norm, nn.BatchNorm2d):
        is_torch = type(norm).forward is nn.BatchNorm2d.forward
        if is_torch or [name for name, _ in norm.named_children()] == ["drop", "act"]:  # those of timm's
            return norm
    raise ValueError(
        f"frozen_norm=true cannot freeze a {type(norm).__name__}, which is no plain batch normalisation of images"
        " (BatchNorm2d). Choose frozen_norm=false or another backbone."
    )


def _features(backbone: nn.Module, image: Tensor) -> dict[int, Tensor]:
    training = backbone.training
    try:
        with torch.no_grad():
            return {level: features.data for level, features in backbone.eval()(image).items()}
    finally:
        backbone.train(training)


def _check_features(before: dict[int, Tensor], after: dict[int, Tensor]) -> None:
    """A net can also use a result in a way that :class:`_Uses` does not see, such as an array of numpy."""
    for level, expected in before.items():
        largest, difference = expected.abs().max(), (after[level] - expected).abs().max()
        if largest.isfinite() and not difference <= ROUNDING * largest:
            raise ValueError(
                f"frozen_norm=true would change the features of level {level}, by up to {float(difference):.2g} of"
                f" {float(largest):.2g}: the backbone changes or uses the result of a convolution before it is"
                " normalised. Choose frozen_norm=false or another backbone."
            )


def _followed(backbone: nn.Module, image: Tensor) -> tuple[dict[nn.BatchNorm2d, nn.Conv2d], dict[int, Tensor]]:
    """Return the normalisations whose input is the result of a plain convolution that nothing else uses, and the
    features by level.

    Both run once: what runs twice may follow, or be followed by, different layers. Whether it does is seen by its
    tensors, because a call of ``forward`` runs no hook.
    """
    results: dict[int, nn.Conv2d] = {}
    pairs: list[tuple[nn.BatchNorm2d, nn.Conv2d, int]] = []
    passed: Counter[int] = Counter()

    def after_conv(conv: Any, _: Any, result: Tensor) -> None:
        results[id(result)] = conv

    def before_norm(norm: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        (source,) = map(id, (*args, *kwargs.values()))
        if source in results:
            pairs.append((norm, results[source], source))

    def after_any(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        if type(module) is not nn.Identity and any(result is each for each in args):
            passed[id(result)] += 1  # in training, it may return something else: stochastic depth does

    modules = list(backbone.modules())
    hooks = [module.register_forward_hook(after_any) for module in modules]
    hooks += [module.register_forward_hook(after_conv) for module in modules if _is_plain(module)]
    hooks += [
        module.register_forward_pre_hook(before_norm, with_kwargs=True) for module in filter(has_statistics, modules)
    ]
    try:
        with _Uses() as uses:
            levels = _features(backbone, image)
    finally:
        for hook in hooks:
            hook.remove()
    uses.counts.update(passed)
    uses.counts.update(id(values) for values in levels.values())
    followed = {
        norm: conv
        for norm, conv, source in pairs
        if all(uses.counts[each] == 1 for each in (source, id(norm.running_mean), id(conv.weight)))
    }
    return followed, levels


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d and module.padding_mode == "zeros"


class _Uses(TorchFunctionMode):
    """How many operations take each tensor. All results are kept, so that no two have the same id."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self._kept: list[Tensor] = []

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made: list[Tensor] = []
        each_tensor(made.append, result)
        if made or result is None:  # an assignment returns nothing; a look at a tensor's shape is no use of it
            self._kept += made
            each_tensor(lambda tensor: self.counts.update([id(tensor)]), (args, kwargs))
        return result
