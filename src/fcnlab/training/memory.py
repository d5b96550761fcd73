"""Count the memory of a step and of an optimiser, and measure that of a process."""

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
from fcnlab.models import Network


def largest_resident() -> int:
    """Return the peak resident memory of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class AllocationTracker(TorchDispatchMode):
    """Track the bytes of the tensors created inside its ``with`` block: those alive (``now``) and their ``peak``."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        each_tensor(self._ignore, (args, kwargs))
        result = func(*args, **(kwargs or {}))
        each_tensor(self._count, result)
        return result

    def _ignore(self, tensor: Tensor) -> None:
        """Do not count a tensor that existed before; an in-place operation returns it as its result."""
        self._known.setdefault(tensor.untyped_storage(), True)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known[storage] = True
            weakref.finalize(storage, self._freed, storage.nbytes())
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def _freed(self, count: int) -> None:
        self.now -= count


def optimizer_bytes(make: Callable[[Network], Optimizer], net: Network) -> tuple[int, int]:
    """Return the bytes of the optimiser's state, such as Adam's moments, and the additional peak of its step.

    The peak contains the gradients and the temporary tensors of the step.
    """
    optimizer = _unfused(make, net)
    allocate_gradients(net)
    optimizer.step()
    state = [each for moments in optimizer.state.values() for each in moments.values() if isinstance(each, Tensor)]
    net.zero_grad()
    with AllocationTracker() as tracker:
        allocate_gradients(net)
        optimizer.step()
    net.zero_grad()
    return total_bytes(state), tracker.peak


def _unfused(make: Callable[..., Optimizer], net: Network) -> Optimizer:
    """Return the optimiser without fused kernels, which torch lacks for the meta device; its state is the same."""
    optimizer = make(net)
    return make(net, fused=False) if optimizer.defaults.get("fused") else optimizer


def allocate_gradients(net: nn.Module) -> None:
    """Give each trained parameter a gradient of arbitrary values, and the others none."""
    for parameter in net.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None


def total_bytes(tensors: list[Tensor]) -> int:
    """Return the bytes of all elements of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# -------------------------------------------------------------------------------------------------------- Measurement


class MemoryMeter:
    """Measure the peak memory inside a ``with`` block, in bytes: resident on a CPU, allocated by torch on a GPU.

    Linux can reset the peak; elsewhere it is the peak of the whole process. On a CPU, memory that the process has freed
    before and uses again is not counted.
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


def _resident(field: str) -> int:
    """Return the resident memory in bytes by Linux's field, now (``VmRSS``) or peak (``VmHWM``); elsewhere the peak."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024
    except (OSError, StopIteration):
        return largest_resident()
