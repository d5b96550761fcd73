"""Optimisers over the net's parameter groups, and schedules over the length of the run."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fcnlab.config.ranges import MOST_WARMUP, BelowOne, Meaning, NonNegative, Warmup
from fcnlab.errors import UserError
from fcnlab.library_internals.torch import leave_scaling_to_the_scaler, tell_rates
from fcnlab.models import FCN, unused_parameters

MOMENTUM = 0.9  # where none is given
Betas = Annotated[Sequence[BelowOne], Meaning("two numbers from 0 to less than 1", lambda betas: len(betas) == 2)]
OF_THE_STATE = {"params", "lr", "initial_lr"}  # what a group takes from a checkpoint; the rest is as built


def parameter_groups(
    net: nn.Module,
    lr: float,
    weight_decay: float,
    bias_lr_scale: float,
    pretrained_lr_scale: float,
    plain_backbone: bool = False,
) -> list[dict[str, Any]]:
    """Parameters by how they are trained; what is fixed (buffers, frozen parameters) is in no group.

    Biases and norms are not decayed, and the biases of convolutions learn at ``bias_lr_scale`` times the rate
    (voc-fcn*/train.prototxt); those of a ``plain_backbone`` are trained as its weights are. Where a backbone starts
    from weights, it learns at ``pretrained_lr_scale`` times the rate of the heads; 0 leaves it as it is, and
    :func:`freeze` saves the gradients that this takes.
    """
    groups: dict[str, dict[str, Any]] = {}
    for module_name, module in net.named_modules():
        in_backbone = module_name.startswith("backbone")
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


def freeze(net: FCN, pretrained_lr_scale: float) -> None:
    """Ask no gradient for what learns nothing: a pretrained backbone at rate 0, and what no score depends on.

    Batch normalisations of a resting backbone keep their statistics, too (Lightning leaves their mode as it finds it).
    Before the training is set up: DDP waits for the gradient of all that asks for one.
    """
    for parameter in unused_parameters(net):
        parameter.requires_grad_(False)
    if net.pretrained and pretrained_lr_scale == 0:
        for name, module in net.named_modules():
            if name.startswith("backbone."):
                module.requires_grad_(False)
            if name.startswith("backbone.") and isinstance(module, nn.BatchNorm2d):
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
    """Stochastic gradient descent over :func:`parameter_groups`; ``fused``: all of a step in one kernel."""
    groups = parameter_groups(net, lr, weight_decay, bias_lr_scale, pretrained_lr_scale, plain_backbone)
    return _laid_out(torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, fused=fused))


def adamw(
    net: nn.Module,
    lr: NonNegative,
    betas: Betas = (0.9, 0.999),
    weight_decay: NonNegative = 0.01,
    bias_lr_scale: NonNegative = 1.0,
    pretrained_lr_scale: NonNegative = 1.0,
    fused: bool = False,
) -> Optimizer:
    """Adam with decoupled weight decay over :func:`parameter_groups`; ``fused``: all of a step in one kernel."""
    groups = parameter_groups(net, lr, weight_decay, bias_lr_scale, pretrained_lr_scale)
    # As floats, since torch refuses whole numbers there, such as 0.
    return _laid_out(torch.optim.AdamW(groups, betas=(float(betas[0]), float(betas[1])), fused=fused))


def _laid_out(optimizer: Optimizer) -> Optimizer:
    """Let moments that are loaded lie in memory as their parameters do, and gradients be clipped before a fused step.

    torch's fused kernels walk through both by address: where one is channels last and the other is not, as after a run
    that goes on with another ``speed.channels_last``, they would update the wrong weights without a word. They can also
    undo the scaling of half-precision gradients themselves, for which Lightning refuses to clip them in any precision.
    And settings are those that the optimiser was built with, such as the weight decay of a group or whether a step is
    fused: torch would take them from the state. Rates are left to :class:`Schedule`.
    """
    leave_scaling_to_the_scaler(optimizer)

    def lay_out(optimizer: Optimizer) -> None:
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if (
                    isinstance(value, Tensor)
                    and value.shape == parameter.shape
                    and value.stride() != parameter.stride()
                ):
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    def as_built(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(state["param_groups"], optimizer.param_groups, strict=True)
        groups = [built | {key: saved[key] for key in OF_THE_STATE & saved.keys()} for saved, built in pairs]
        return state | {"param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(as_built)
    optimizer.register_load_state_dict_post_hook(lay_out)
    return optimizer


class Schedule(LambdaLR):
    """The rate of each group, times a factor that depends on the step alone; also after resuming.

    torch would take the rates from the checkpoint, and with them the ``optim.lr`` and the schedule of before.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        as_built = {"base_lrs": self.base_lrs, "lr_lambdas": [None] * len(self.lr_lambdas)}
        super().load_state_dict(state_dict | as_built)
        rates = [base * factor(self.last_epoch) for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)]
        for group, base, rate in zip(self.optimizer.param_groups, self.base_lrs, rates, strict=True):
            group["initial_lr"], group["lr"] = base, rate
        tell_rates(self, rates)


def poly(total_steps: int, power: NonNegative = 0.9, warmup: Warmup = 0.05) -> Callable[[int], float]:
    """(1 - step / total)^power (Liu et al., ParseNet, 2015), behind a linear warm-up over a share of the run."""
    return _warmed(warmup, total_steps, lambda done: (1 - done) ** power)


def cosine(total_steps: int, warmup: Warmup = 0.05) -> Callable[[int], float]:
    """Half a cosine from the full rate to 0 (Loshchilov & Hutter, ICLR 2017), behind a linear warm-up."""
    return _warmed(warmup, total_steps, lambda done: (1 + math.cos(math.pi * done)) / 2)


def constant(total_steps: int, warmup: Warmup = 0.0) -> Callable[[int], float]:
    """One rate from the first step to the last: the papers' way."""
    return _warmed(warmup, total_steps, lambda done: 1.0)


def _warmed(warmup: float, total_steps: int, factor: Callable[[float], float]) -> Callable[[int], float]:
    """The factor on the rate by optimiser step; ``factor`` takes the share of the run that is done, 0..1."""
    if not 0 <= warmup <= MOST_WARMUP:
        raise UserError(f"schedule.warmup={warmup}: a share of the run, from 0 to {MOST_WARMUP}")
    warmup_steps = warmup * total_steps

    def rate(step: int) -> float:
        rising = (step + 1) / warmup_steps if step + 1 < warmup_steps else 1.0
        return rising * factor(min(step / total_steps, 1.0))

    return rate
