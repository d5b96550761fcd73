"""Batch normalisation with frozen statistics, computed within the convolution before it.

A few images per step are too few to estimate statistics from, so a pretrained network keeps those of its weights, as
Mask R-CNN does (He et al., ICCV 2017). Then a normalisation is one factor and one shift per channel, and the
convolution before it can apply both: ``gamma / sigma * (w * x - mean) + beta`` is a convolution with the weights
``gamma / sigma * w``. Scores and the gradients of w, gamma and beta are the same but for rounding, and a pass over each
feature map is saved, forwards and backwards.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


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

    def forward(self, x: Tensor) -> Tensor:
        if not self.applied:
            factor, shift = self.factor_and_shift()
            x = x * factor[:, None, None] + shift[:, None, None]
        for child in self.children():
            x = child(x)
        return x

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


def freeze_norms(net: nn.Module, image: Tensor) -> int:
    """Freeze the statistics of all batch normalisations of a network, in place, and return how many there are.

    ``image`` is an input (batch, channels, rows, cols): passing it through shows which normalisation follows which
    convolution.
    """
    parents = {child: (parent, name) for parent in net.modules() for name, child in parent.named_children()}
    followed = {norm: conv for conv, norm in _pairs(net, image)}
    norms = [module for module in net.modules() if _has_statistics(module)]
    for norm in norms:
        conv = followed.get(norm)
        frozen = FrozenNorm(norm, applied=conv is not None)
        setattr(*parents[norm], frozen)
        if conv is not None:
            setattr(*parents[conv], NormalizedConv2d(conv, frozen))
    return len(norms)


def _pairs(net: nn.Module, image: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The plain convolutions whose result goes to a batch normalisation and nowhere else, and these normalisations."""
    made: dict[int, nn.Conv2d] = {}
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d, Tensor]] = []

    def after_conv(conv: Any, _: Any, result: Tensor) -> None:
        made[id(result)] = conv

    def before_norm(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        conv = made.get(id(inputs[0]))
        if conv is not None:
            found.append((conv, norm, inputs[0]))

    hooks = [module.register_forward_hook(after_conv) for module in net.modules() if _is_plain(module)]
    hooks += [module.register_forward_pre_hook(before_norm) for module in net.modules() if _has_statistics(module)]
    training = net.training
    try:
        with torch.no_grad(), _Uses() as uses:
            net.eval()(image)
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    return [(conv, norm) for conv, norm, result in found if uses.counts[id(result)] == 1]


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d and module.padding_mode == "zeros"


def _has_statistics(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    return isinstance(module, nn.BatchNorm2d) and module.track_running_stats


class _Uses(TorchFunctionMode):
    """How many operations take each tensor. All results are kept, so that no two have the same id."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self._kept: list[Any] = []

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):  # a look at a tensor's shape is no use of it
            self.counts.update(id(value) for value in args if isinstance(value, Tensor))
            self._kept.append(result)
        return result
