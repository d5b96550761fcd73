"""Optimisers over the model's parameter groups, and learning-rate schedules over the length of the run."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fcnlab.config.ranges import MOST_WARMUP, BelowOne, Meaning, NonNegative, Warmup
from fcnlab.errors import UserError
from fcnlab.library_internals.torch import BATCH_NORMS, leave_scaling_to_the_scaler, set_last_rates
from fcnlab.models import Network, unused_parameters
from fcnlab.models.frozen_norm import FrozenNorm

MOMENTUM = 0.9  # the default
Betas = Annotated[Sequence[BelowOne], Meaning("two numbers from 0 to less than 1", lambda betas: len(betas) == 2)]
RESTORED_KEYS = {"params", "lr", "initial_lr"}  # of a parameter group; all other keys keep the configured values


def parameter_groups(
    net: nn.Module,
    lr: float,
    weight_decay: float,
    bias_lr_scale: float,
    pretrained_lr_scale: float,
    plain_backbone: bool = False,
) -> list[dict[str, Any]]:
    """Return the parameter groups, by learning rate and weight decay; frozen parameters and buffers are in no group.

    Biases and norms have no weight decay, and the biases of convolutions have ``bias_lr_scale`` times the learning rate
    (voc-fcn*/train.prototxt); the biases of a ``plain_backbone`` are trained like its weights. A pretrained backbone
    has ``pretrained_lr_scale`` times the learning rate of the heads; with 0 it stays as it is, and :func:`freeze`
    avoids computing its gradients.
    """
    groups: dict[str, dict[str, Any]] = {}
    for module_name, module in net.named_modules():
        in_backbone = isinstance(net, Network) and net.in_backbone(module_name)
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            scale = pretrained_lr_scale if in_backbone and net.pretrained else 1.0
            kind = "weight" if parameter.ndim > 1 else "bias" if isinstance(module, nn.Conv2d) else "norm"
            as_weight = kind == "weight" or (kind == "bias" and in_backbone and plain_backbone)
            group = {
                "params": [],
                "name": f"{'backbone' if in_backbone else 'heads'}/{kind}",
                "lr": lr * scale * (1.0 if as_weight or kind == "norm" else bias_lr_scale),
                "weight_decay": weight_decay if as_weight else 0.0,
            }
            groups.setdefault(group["name"], group)["params"].append(parameter)
    return list(groups.values())


def freeze(net: Network, pretrained_lr_scale: float) -> None:
    """Freeze the parameters that are not trained: a pretrained backbone at learning rate 0, and unused parameters.

    Batch normalisation layers of a frozen backbone keep their statistics, too (Lightning does not change their mode).
    Call this before training is set up: DDP waits for the gradient of every parameter that requires one.
    """
    for parameter in unused_parameters(net):
        parameter.requires_grad_(False)
    if not net.pretrained and any(isinstance(module, FrozenNorm) for module in net.modules()):
        warnings.warn(
            "model.frozen_norm=true keeps the statistics of weights that no training has seen: it is for pretrained"
            " backbones (model.backbone.weights)",
            stacklevel=2,
        )
    if not net.pretrained and net.frozen_until is not None:
        warnings.warn(
            "model.frozen_until keeps layers that no training has seen as they are, at random: it is for pretrained"
            " backbones (model.backbone.weights)",
            stacklevel=2,
        )
    if net.pretrained and pretrained_lr_scale == 0:
        for name, module in net.named_modules():
            if net.in_backbone(name):
                module.requires_grad_(False)
            if net.in_backbone(name) and isinstance(module, BATCH_NORMS):
                module.eval()


def sgd(
    net: nn.Module,
    lr: NonNegative,
    momentum: BelowOne = MOMENTUM,
    weight_decay: NonNegative = 5e-4,
    nesterov: bool = False,
    bias_lr_scale: NonNegative = 2.0,
    pretrained_lr_scale: NonNegative = 1.0,
    plain_backbone: bool = False,
    fused: bool = False,
) -> Optimizer:
    """Return SGD over :func:`parameter_groups`; ``fused``: a step runs as one kernel."""
    groups = parameter_groups(net, lr, weight_decay, bias_lr_scale, pretrained_lr_scale, plain_backbone)
    return _with_safe_restore(torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, fused=fused))


def adamw(
    net: nn.Module,
    lr: NonNegative,
    betas: Betas = (0.9, 0.999),
    weight_decay: NonNegative = 0.01,
    bias_lr_scale: NonNegative = 1.0,
    pretrained_lr_scale: NonNegative = 1.0,
    fused: bool = False,
) -> Optimizer:
    """Return AdamW over :func:`parameter_groups`; ``fused``: a step runs as one kernel."""
    groups = parameter_groups(net, lr, weight_decay, bias_lr_scale, pretrained_lr_scale)
    # As floats, since torch refuses integers such as 0.
    return _with_safe_restore(torch.optim.AdamW(groups, betas=(float(betas[0]), float(betas[1])), fused=fused))


def _with_safe_restore(optimizer: Optimizer) -> Optimizer:
    """Return the optimiser with hooks that make restoring its state correct, and with clipping allowed when fused.

    torch's fused kernels walk through parameters and moments by address: if one is channels last and the other is not,
    as in a run that resumes with another ``speed.channels_last``, they silently update the wrong weights. So restored
    moments are copied to the memory format of their parameters. Settings such as the weight decay of a group, or
    ``fused``, keep their configured values, where torch would take them from the state; learning rates are left to
    :class:`Schedule`. Fused optimisers can also unscale half-precision gradients themselves, and Lightning then refuses
    to clip in any precision: here the gradient scaler does it.
    """
    leave_scaling_to_the_scaler(optimizer)

    def match_memory_formats(optimizer: Optimizer) -> None:
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if (
                    isinstance(value, Tensor)
                    and value.shape == parameter.shape
                    and value.stride() != parameter.stride()
                ):
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    def keep_configured_settings(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(state["param_groups"], optimizer.param_groups, strict=True)
        groups = [configured | {key: saved[key] for key in RESTORED_KEYS & saved.keys()} for saved, configured in pairs]
        return state | {"param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(keep_configured_settings)
    optimizer.register_load_state_dict_post_hook(match_memory_formats)
    return optimizer


class Schedule(LambdaLR):
    """Multiply the learning rate of each group by a factor that depends on the step alone, also after resuming.

    torch would restore the learning rates of the checkpoint, and so its ``optim.lr`` and schedule.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        configured = {"base_lrs": self.base_lrs, "lr_lambdas": [None] * len(self.lr_lambdas)}
        super().load_state_dict(state_dict | configured)
        rates = [base * factor(self.last_epoch) for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)]
        for group, base, rate in zip(self.optimizer.param_groups, self.base_lrs, rates, strict=True):
            group["initial_lr"], group["lr"] = base, rate
        set_last_rates(self, rates)


def poly(total_steps: int, power: NonNegative = 0.9, warmup: Warmup = 0.05) -> Callable[[int], float]:
    """Return (1 - step / total)^power (Liu et al., ParseNet, 2015), after a linear warm-up over a part of the run."""
    return _with_warmup(warmup, total_steps, lambda done: (1 - done) ** power)


def cosine(total_steps: int, warmup: Warmup = 0.05) -> Callable[[int], float]:
    """Return half a cosine from 1 to 0 (Loshchilov & Hutter, ICLR 2017), after a linear warm-up."""
    return _with_warmup(warmup, total_steps, lambda done: (1 + math.cos(math.pi * done)) / 2)


def constant(total_steps: int, warmup: Warmup = 0.0) -> Callable[[int], float]:
    """Return a constant learning-rate factor of 1, as in the papers."""
    return _with_warmup(warmup, total_steps, lambda done: 1.0)


def _with_warmup(warmup: float, total_steps: int, factor: Callable[[float], float]) -> Callable[[int], float]:
    """Return the learning-rate factor by optimiser step; ``factor`` takes the completed fraction of the run, 0..1."""
    if not 0 <= warmup <= MOST_WARMUP:
        raise UserError(f"schedule.warmup={warmup} must be a fraction of the run, from 0 to {MOST_WARMUP}")
    warmup_steps = warmup * total_steps

    def lr_factor(step: int) -> float:
        warmup_factor = (step + 1) / warmup_steps if step + 1 < warmup_steps else 1.0
        return warmup_factor * factor(min(step / total_steps, 1.0))

    return lr_factor
