"""torch: kernels over many tensors, kinds of layers, and what happens inside operations and workers.

Seen to work with torch 2.15.0; pyproject.toml has >= 2.11.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._utils import ExceptionWrapper
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

__all__ = [
    "BATCH_NORMS",
    "DROPOUTS",
    "INSTANCE_NORMS",
    "TorchDispatchMode",
    "add_to_each",
    "each_tensor",
    "error_of_worker",
    "leave_scaling_to_the_scaler",
    "multiply_each",
    "storage_item_bytes",
    "subtract_each",
    "tell_rates",
]

# Layers of one, two and three dimensions have no public class in common.
BATCH_NORMS = nn.modules.batchnorm._BatchNorm
INSTANCE_NORMS = nn.modules.instancenorm._InstanceNorm
DROPOUTS = nn.modules.dropout._DropoutNd

# TorchDispatchMode: while one is entered, it gets every operation on tensors. torch documents it, in a private module.


def each_tensor(function: Callable[[Tensor], Any], tree: Any) -> None:
    """Call a function with each tensor in nested lists, tuples and dicts, as an operation has them."""
    tree_map_only(Tensor, function, tree)


def subtract_each(ones: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """``one - other`` of each pair, in a few kernels; torch uses these functions in its optimisers."""
    return list(torch._foreach_sub(ones, others))  # pyright: ignore[reportPrivateImportUsage]


def multiply_each(tensors: list[Tensor], factor: float | Tensor) -> None:
    """Multiply all tensors in place by one factor, in a few kernels."""
    torch._foreach_mul_(tensors, factor)  # pyright: ignore[reportPrivateImportUsage]


def add_to_each(tensors: list[Tensor], others: list[Tensor]) -> None:
    """Add to each tensor in place its other, in a few kernels."""
    torch._foreach_add_(tensors, others)  # pyright: ignore[reportPrivateImportUsage]


def leave_scaling_to_the_scaler(optimizer: Optimizer) -> None:
    """Let the scaler of half-precision gradients undo its scaling before a fused step, in place of that step.

    torch's scaler and Lightning read this mark, which fused optimisers set; Lightning refuses to clip gradients where
    it is set, in every precision.
    """
    optimizer._step_supports_amp_scaling = False  # pyright: ignore[reportAttributeAccessIssue]


def error_of_worker() -> Any:
    """The exception that is being handled, in the form in which a DataLoader takes it in the place of a batch."""
    return ExceptionWrapper(where="in a worker")


def storage_item_bytes(name: str) -> int:
    """Bytes of a number of a storage, by its class in ``torch``, such as FloatStorage; its public ``dtype`` warns."""
    return 1 if name == "UntypedStorage" else getattr(torch, name)._dtype.itemsize


def tell_rates(schedule: LRScheduler, rates: list[float | Tensor]) -> None:
    """Let ``get_last_lr()`` tell these rates: a schedule computes what that tells at its steps only, or loads it."""
    schedule._last_lr = rates
