"""torch: kernels over many tensors, base classes of layers, operations, and errors of workers.

Tested with torch 2.15.0; pyproject.toml has >= 2.13.
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
    "set_last_rates",
    "storage_item_bytes",
    "subtract_each",
]

# Layers of one, two and three dimensions have no common public base class.
BATCH_NORMS = nn.modules.batchnorm._BatchNorm
INSTANCE_NORMS = nn.modules.instancenorm._InstanceNorm
DROPOUTS = nn.modules.dropout._DropoutNd

# TorchDispatchMode: while one is entered, it intercepts every operation on tensors. torch documents it, but its module
# is private.


def each_tensor(function: Callable[[Tensor], Any], tree: Any) -> None:
    """Call a function with each tensor in nested lists, tuples and dicts, such as the arguments of an operation."""
    tree_map_only(Tensor, function, tree)


def detached(tree: Any) -> Any:
    """Return nested lists, tuples and dicts with all their tensors detached."""
    return tree_map_only(Tensor, Tensor.detach, tree)


def subtract_each(ones: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """Return the difference of each pair, in a few kernels; torch's optimisers use these functions."""
    return list(torch._foreach_sub(ones, others))  # pyright: ignore[reportPrivateImportUsage]


def multiply_each(tensors: list[Tensor], factor: float | Tensor) -> None:
    """Multiply all tensors in place by one factor, in a few kernels."""
    torch._foreach_mul_(tensors, factor)  # pyright: ignore[reportPrivateImportUsage]


def add_to_each(tensors: list[Tensor], others: list[Tensor]) -> None:
    """Add the other tensor of its pair to each tensor in place, in a few kernels."""
    torch._foreach_add_(tensors, others)  # pyright: ignore[reportPrivateImportUsage]


def leave_scaling_to_the_scaler(optimizer: Optimizer) -> None:
    """Make the gradient scaler of half precision undo its scaling before a fused step, instead of in it.

    Fused optimisers set this attribute, and torch's scaler and Lightning read it. If it is set, Lightning refuses to
    clip gradients, in every precision.
    """
    optimizer._step_supports_amp_scaling = False  # pyright: ignore[reportAttributeAccessIssue]


def error_of_worker() -> Any:
    """Return the exception that is being handled, in the form that a DataLoader accepts instead of a batch."""
    return ExceptionWrapper(where="in a worker")


def storage_item_bytes(name: str) -> int:
    """Return the bytes per element of a storage class of ``torch``, such as FloatStorage.

    The public ``dtype`` of such a class warns.
    """
    return 1 if name == "UntypedStorage" else getattr(torch, name)._dtype.itemsize


def set_last_rates(schedule: LRScheduler, rates: list[float | Tensor]) -> None:
    """Set the learning rates that ``get_last_lr()`` returns.

    A schedule otherwise changes them only in its steps, or takes them from a checkpoint.
    """
    schedule._last_lr = rates
