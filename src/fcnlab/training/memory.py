"""How much memory a step and an optimiser hold."""

import resource
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from fcnlab.library_internals.torch import TorchDispatchMode, each_tensor
from fcnlab.models import FCN


def largest_resident() -> int:
    """Bytes that this process has held at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class AllocationTracker(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is entered, and that live at a time at the ``most``."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        each_tensor(self._pass_over, (args, kwargs))
        result = func(*args, **(kwargs or {}))
        each_tensor(self._count, result)
        return result

    def _pass_over(self, tensor: Tensor) -> None:
        """What was there before, and is the result too where it is changed in its place."""
        self._known.setdefault(tensor.untyped_storage(), True)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known[storage] = True
            weakref.finalize(storage, self._freed, storage.nbytes())
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)

    def _freed(self, count: int) -> None:
        self.now -= count


def optimizer_bytes(make: Callable[[FCN], Optimizer], net: FCN) -> tuple[int, int]:
    """What the optimiser keeps beside the parameters, such as Adam's two moments, and the most that its step holds
    beside that: gradients and what it makes of them."""
    optimizer = _made(make, net)
    _give_gradients(net)
    optimizer.step()
    state = [each for kept in optimizer.state.values() for each in kept.values() if isinstance(each, Tensor)]
    net.zero_grad()
    with AllocationTracker() as held:
        _give_gradients(net)
        optimizer.step()
    net.zero_grad()
    return _bytes(state), held.most


def _made(make: Callable[..., Optimizer], net: FCN) -> Optimizer:
    """torch has fused kernels for no device without contents; what is kept is the same without them."""
    optimizer = make(net)
    return make(net, fused=False) if optimizer.defaults.get("fused") else optimizer


def _give_gradients(net: nn.Module) -> None:
    for parameter in net.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# ------------------------------------------------------------------------------------------------------- What it took


class MemoryMeter:
    """The most that a process holds inside a ``with``, in bytes: resident on a CPU, allocated by torch on a GPU.

    Linux forgets its peak when it is asked to; elsewhere the peak is that of the whole process.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._before = 0

    def __enter__(self) -> "MemoryMeter":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # proc(5)
        self._before = self.held()
        return self

    def __exit__(self, *error: object) -> None:
        self.grown = max(0, self.peak() - self._before)

    def held(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else _resident("VmRSS")

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _resident("VmHWM")


def _resident(what: str) -> int:
    """Bytes by Linux's name for them, now (``VmRSS``) or at most (``VmHWM``); elsewhere the most so far."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) * 1024
    except (OSError, StopIteration):
        return largest_resident()
