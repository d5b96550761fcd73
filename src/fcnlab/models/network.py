"""What training, inference and evaluation need of a network, whatever its architecture."""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fcnlab.models.upsampling import CoarseScores

SMALL_IMAGE = 64  # pixels
Result = TypeVar("Result")


class Network(nn.Module):
    """A network that scores every pixel of RGB images in 0..1: the base of :class:`FCN` and :class:`Architecture`.

    Attributes
    ----------
    num_classes
        With background, without the ignore index.
    pretrained
        Whether the backbone starts from trained weights.
    backbone_path
        Where the backbone is among the modules, such as ``"backbone"``; empty where the network names none. Its
        parameters have a learning rate of their own where they are pretrained, and can be frozen.
    frozen_until
        The level up to which the layers of the backbone are not trained; None where all are.
    min_size
        Pixels: the shorter side of the smallest image that the network takes.
    scores_rows_alone
        Whether :meth:`coarse` leaves upsampling to be done, which then needs less memory for some rows at a time.
    channels_last_on_cpu
        Whether the network trains faster in that memory format on a CPU (docs/explanation/performance.md).
    """

    num_classes: int
    pretrained = False
    backbone_path = ""
    frozen_until: int | None = None
    min_size = 1
    scores_rows_alone = False
    channels_last_on_cpu = False

    @property
    def title(self) -> str:
        """A short name for readers, such as "FCN-8s on Tiny"."""
        return type(self).__name__

    @property
    def description(self) -> str:
        """The title with more details, for the log of a run."""
        return self.title

    @property
    def compiled_part(self) -> nn.Module:
        """The part that ``speed.compile=true`` compiles."""
        return self

    def forward(self, image: Float[Tensor, "batch 3 rows cols"]) -> Float[Tensor, "batch classes rows cols"]:
        """Return scores of every pixel."""
        return self.coarse(image).full()

    def coarse(self, image: Float[Tensor, "batch 3 rows cols"]) -> CoarseScores:
        """Return the scores before the last upsampling, or of every pixel where there is none."""
        raise NotImplementedError

    def in_backbone(self, module: str) -> bool:
        """Return whether the module of this dotted name is the backbone or a part of it."""
        return bool(self.backbone_path) and f"{module}.".startswith(f"{self.backbone_path}.")


def unused_parameters(net: Network) -> list[nn.Parameter]:
    """Return the parameters that no score depends on.

    Examples are the coarser parts of a backbone, where only finer levels are scored, and auxiliary classifiers.
    """

    def gradients(shadow: nn.Module, image: Tensor) -> set[str]:
        shadow(image).sum().backward()
        return {name for name, parameter in shadow.named_parameters() if parameter.grad is not None}

    side = max(net.min_size, SMALL_IMAGE)
    used = rehearse(net, (side, side), gradients)
    return [value for name, value in net.named_parameters() if value.requires_grad and name not in used]


def rehearse(net: nn.Module, size: tuple[int, int], work: Callable[[nn.Module, Tensor], Result]) -> Result:
    """Return what ``work`` finds with a copy of a network in evaluation mode and a blank image of (rows, columns).

    Both are on the device ``meta``, which computes nothing, or on the CPU if the network cannot run there.
    """
    try:
        return work(copy.deepcopy(net).to("meta").eval(), torch.empty(1, 3, *size, device="meta"))
    except (NotImplementedError, RuntimeError):  # a network of a library may read numbers, which are not there
        return work(copy.deepcopy(net).to("cpu").eval(), torch.zeros(1, 3, *size))
