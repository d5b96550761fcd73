"""Check before training that the optimiser, the schedule, the batch size and the loss work."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from fcnlab.data import DataModule
from fcnlab.errors import UserError, first_line
from fcnlab.library_internals.torch import BATCH_NORMS, INSTANCE_NORMS

NORMALISATIONS = (BATCH_NORMS, INSTANCE_NORMS)


def check_optimizer_and_schedule(net: nn.Module, optimizer: Callable, schedule: Callable) -> None:
    """Raise a UserError now where the optimiser or the schedule rejects its settings, not when training begins."""
    try:
        optimizer(net)
        schedule(1)(0)
    except (TypeError, ValueError) as error:
        raise UserError(f"optim or schedule: {first_line(error)}") from error


def check_smallest_batch(net: nn.Module, data: DataModule) -> None:
    """Check on the meta device that the normalisation layers accept the smallest batch.

    A network of another library that cannot run there is not checked.

    Raises
    ------
    UserError
        A normalisation layer would get one value per channel, which has no variance.
    """
    if not any(isinstance(layer, NORMALISATIONS) and layer.training for layer in net.modules()):
        return
    if data.augment is not None:
        (rows, cols), source = (data.crop_size,) * 2, f"data.crop_size={data.crop_size}"
    else:
        dataset = data.split("train")
        smallest = min(range(len(dataset)), key=lambda index: max(dataset.size(index)))
        (rows, cols), source = dataset.size(smallest), f"augment=none, {dataset.images[smallest]}"
    try:
        copy.deepcopy(net).to("meta")(torch.empty(data.batch_size, 3, rows, cols, device="meta"))
    except ValueError as error:
        raise UserError(
            f"data.batch_size={data.batch_size} is too small for images of {rows}x{cols} pixels ({source}): a"
            f" normalisation layer rejects them ({first_line(error)}). Set data.batch_size=2 or more, or use larger"
            " images"
        ) from error
    except (NotImplementedError, RuntimeError):
        return


def check_loss(loss: nn.Module, num_classes: int, data: DataModule) -> None:
    """Check on the meta device that the loss accepts this crop size and number of classes.

    A loss that depends on the values of its inputs cannot be checked this way.

    Raises
    ------
    UserError
        The loss rejects them.
    """
    rows, cols = (data.crop_size,) * 2 if data.augment is not None else data.split("train").mask(0).shape
    shadow = copy.deepcopy(loss).to("meta")
    scores = torch.empty(1, num_classes, rows, cols, device="meta")
    target = torch.empty(1, rows, cols, dtype=torch.int64, device="meta")
    try:
        shadow(scores, target)
    except ValueError as error:
        raise UserError(first_line(error)) from error
    except (RuntimeError, NotImplementedError):
        return
