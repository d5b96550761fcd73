"""What a training will cost, said before it starts: minutes by a probe, memory by counting; and what it took.

The probe works on a copy of the net and with random states of its own, so that the run is the same to the last bit.
"""

import copy
import math
import resource
import statistics
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import cv2
import lightning as L
import torch
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from fcnlab.callbacks import EMA
from fcnlab.callbacks.resume import random_states, restore_random_states
from fcnlab.data import DataModule, Pictures
from fcnlab.data.transforms import Augment
from fcnlab.errors import first_line
from fcnlab.models import FCN
from fcnlab.segmenter import Segmenter, labels
from fcnlab.tasks.building import say, warn
from fcnlab.tasks.scoring import largest_resident

ENOUGH = 0.05  # seconds: what took less is measured again, and a whole batch where that takes no more than twice this
LOOKED_AT = 5  # pictures whose size and whose loading stand for all
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "bf16-true": torch.bfloat16, "16-true": torch.float16}


@dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Of parameters and buffers, of what the optimiser keeps, of the weights' average, and of what a step holds at most:
    activations, their gradients and those of the parameters.
    """

    weights: int
    optimizer: int
    average: int
    step: int

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.average + self.step


@dataclass(frozen=True)
class Expected:
    """A run's cost as far as it can be known before; ``step`` and ``validation`` in seconds, memory by device."""

    steps: int
    step: float
    validations: int
    validation: float
    memory: Memory

    @property
    def minutes(self) -> float:
        return (self.steps * self.step + self.validations * self.validation) / 60

    def __str__(self) -> str:
        return (
            f"about {_duration(60 * self.minutes)} ({self.steps} steps of {_duration(self.step)},"
            f" {self.validations} validations of {_duration(self.validation)}),"
            f" {self.memory.total / 2**30:.2f} GiB of memory"
        )


def announce(segmenter: Segmenter, data: DataModule, trainer: L.Trainer, done: int = 0) -> Expected | None:
    """Say what the training will cost, and warn where that is more memory than the GPU has; None: nobody can tell.

    On rank 0 alone, and not where processes will be forked, since those could not use a GPU that was used before.
    """
    device = trainer.strategy.root_device
    forks = isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
    if getattr(rank_zero_only, "rank", 0) or (forks and device.type == "cuda"):
        return None
    try:
        expected = expect(segmenter, data, trainer, done)
    except Exception as error:  # whatever a user's net or loss does, a run must not end by being guessed at
        say(f"Expected: nothing can be told ({type(error).__name__}: {first_line(error)})")
        return None
    say(f"Expected: {expected}{' on each device' if trainer.world_size > 1 else ''}")
    if device.type == "cuda":
        available = torch.cuda.get_device_properties(device).total_memory
        warn_of_memory(expected.memory, available, data.batch_size, trainer.accumulate_grad_batches)
    return expected


def warn_of_memory(memory: Memory, available: int, batch_size: int, accumulated: int = 1) -> None:
    """Say what to set where a training will not fit; a step keeps its pictures."""
    if memory.total <= available:
        return
    ways = ["a smaller data.crop_size"]
    if batch_size > 1:
        part = max(count for count in range(1, batch_size) if batch_size % count == 0)
        ways.insert(
            0,
            f"data.batch_size={part} with trainer.accumulate_grad_batches={accumulated * batch_size // part} (a step"
            " takes as many pictures; its first lines say what of it changes)",
        )
    warn(
        f"the training needs some {memory.total / 2**30:.1f} GiB and the GPU has {available / 2**30:.1f}: set"
        f" {', or '.join(ways)}"
    )


def expect(segmenter: Segmenter, data: DataModule, trainer: L.Trainer, done: int = 0) -> Expected:
    """What is left of the training after ``done`` steps, on the device and in the precision that the trainer has."""
    shape = (data.batch_size, *training_size(data))
    device, context = trainer.strategy.root_device, trainer.precision_plugin.forward_context
    every, accumulated = int(trainer.val_check_interval), trainer.accumulate_grad_batches
    steps = max(0, length(trainer, data) - done)
    net = copy.deepcopy(segmenter).to(device)
    states = random_states()  # of python and numpy, too, from which a user's own loss may draw
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.compiler.set_stance("force_eager"):
        batch = step_seconds(net, shape, context)
        validation = validation_seconds(net, data.decoded("val"), context, trainer)
    loading = shape[0] * loading_seconds(data.decoded("train"), data.augment)
    workers = data.readers("train").workers
    batch = beside(batch, loading / max(1, workers), apart=device.type == "cuda" and workers > 0)
    averaged = any(isinstance(callback, EMA) for callback in getattr(trainer, "callbacks", []))
    memory = training_memory(segmenter, shape, str(trainer.precision), averaged)
    restore_random_states(states)
    return Expected(
        steps=steps,
        step=batch * accumulated,
        validations=math.ceil(steps * accumulated / every),
        validation=validation,
        memory=memory,
    )


def training_size(data: DataModule) -> tuple[int, int]:
    """Rows and columns of what is trained on; where nothing is cropped, those of the first picture."""
    return data.split("train").size(0) if data.augment is None else (data.crop_size, data.crop_size)


def length(trainer: L.Trainer, data: DataModule) -> int:
    """The run's optimiser steps, by whichever of steps and epochs ends it first."""
    together = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
    by_epochs = (trainer.max_epochs or -1) * (len(data.split("train")) // together)
    return min(limit for limit in (trainer.max_steps, by_epochs) if limit >= 0)


def beside(compute: float, loading: float, apart: bool) -> float:
    """Seconds of a step whose batch is loaded by other processes meanwhile; on a CPU they share its cores."""
    return max(compute, loading) if apart else compute + loading


# ------------------------------------------------------------------------------------------------------------ Minutes


def step_seconds(segmenter: Segmenter, shape: tuple[int, int, int], context: Callable) -> float:
    """Forward and backward of a batch (pictures, rows, columns); by one picture where a batch would take long."""
    segmenter.train()
    count, rows, cols = shape

    def step(pictures: int) -> Callable[[], None]:
        batch = blank_batch(pictures, rows, cols, segmenter.device)

        def run() -> None:
            with context():
                loss = segmenter._step(batch, "train")["loss"]
            loss.backward()

        return run

    one = seconds(step(1), segmenter.device)
    return seconds(step(count), segmenter.device) if count > 1 and one * count < 2 * ENOUGH else one * count


def validation_seconds(segmenter: Segmenter, pictures: Pictures, context: Callable, trainer: L.Trainer) -> float:
    """An evaluation of the set on so many devices, by a picture of the middle one of a few sizes."""
    segmenter.eval()
    places = _places(len(pictures))
    rows, cols = sorted((pictures.size(place) for place in places), key=math.prod)[len(places) // 2]
    batch = blank_batch(1, rows, cols, segmenter.device)

    def evaluate() -> None:
        with torch.inference_mode(), context():
            labels(segmenter._scores(batch["image"]))

    once = seconds(evaluate, segmenter.device) + loading_seconds(pictures)
    limit, share = trainer.limit_val_batches, math.ceil(len(pictures) / trainer.world_size)
    count = min(share, limit) if isinstance(limit, int) else share * (1.0 if limit is None else limit)
    return once * count


def loading_seconds(pictures: Pictures, augment: Augment | None = None) -> float:
    """To read, decode and augment a picture with its mask, on one thread as workers do: the median of a few."""
    threads, times = cv2.getNumThreads(), []
    cv2.setNumThreads(0)
    for place in [0, *_places(len(pictures))]:
        begun = time.perf_counter()
        _load(pictures, augment, place)
        times.append(time.perf_counter() - begun)
    cv2.setNumThreads(threads)
    return statistics.median(times[1:])  # the first of all takes longer


def _load(pictures: Pictures, augment: Augment | None, place: int) -> None:
    image, mask = pictures.image(place), pictures.mask(place)
    if augment is not None:
        augment(image, mask, seed=(0, 0, place))  # which leaves the pipeline as any other sample does


def seconds(work: Callable[[], None], device: torch.device) -> float:
    """What the work takes by the clock: the least of three times, or of as many as ``ENOUGH`` allows."""
    times: list[float] = []
    while len(times) < 3 and sum(times) < ENOUGH:
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return min(times)


def blank_batch(count: int, rows: int, cols: int, device: torch.device | str) -> dict[str, Tensor]:
    """Pictures without content, whose truth is class 0: what is computed does not depend on it."""
    return {
        "image": torch.zeros(count, 3, rows, cols, dtype=torch.uint8, device=device),
        "mask": torch.zeros(count, rows, cols, dtype=torch.uint8, device=device),
        "index": torch.zeros(count, dtype=torch.int64, device=device),
    }


def _places(count: int) -> list[int]:
    return sorted({place * count // LOOKED_AT for place in range(LOOKED_AT)})


# ------------------------------------------------------------------------------------------------------------- Memory


def training_memory(
    segmenter: Segmenter, shape: tuple[int, int, int], precision: str = "32-true", averaged: bool = False
) -> Memory:
    """Counted on the device ``meta``, where tensors have sizes and lives but no contents: nothing is computed.

    A step in half precision is counted as one of half numbers; where weights stay single (mixed), so do gradients, and
    a half copy of the weights comes on top. Left out is what no tensor holds: the workspaces of convolutions.
    """
    shadow = copy.deepcopy(segmenter).to("meta").train()
    weights = _bytes([*shadow.net.parameters(), *shadow.net.buffers()])
    assert shadow.make_optimizer
    kept, updating = optimizer_bytes(shadow.make_optimizer, shadow.net)
    if precision in HALF:
        halve(shadow, HALF[precision])
    step = step_bytes(shadow, blank_batch(*shape, "meta"))
    if precision in ("bf16-mixed", "16-mixed"):
        step += weights  # half of the weights, and the other half of the gradients
    return Memory(weights, kept, weights if averaged else 0, max(step, updating))


def halve(segmenter: Segmenter, kind: torch.dtype) -> None:
    """Let convolutions take and give half numbers, as under autocast."""

    def cast(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(each.to(kind) for each in inputs)

    segmenter.net.to(kind)
    for module in segmenter.net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.register_forward_pre_hook(cast)


def step_bytes(segmenter: Segmenter, batch: dict[str, Tensor]) -> int:
    """The most that forward and backward pass hold; the last step's gradients are there until the first has ended."""
    with Held() as held, torch.compiler.set_stance("force_eager"):
        _give_gradients(segmenter.net)
        loss = loss_of(segmenter, batch)
        segmenter.zero_grad()
        loss.backward()
    return held.most


def loss_of(segmenter: Segmenter, batch: dict[str, Tensor]) -> Tensor:
    """A step's loss; where it looks at contents (for the classes that are there, say), cross-entropy in its place."""
    with suppress(NotImplementedError, RuntimeError):
        return segmenter._step(batch, "train")["loss"]
    return nn.functional.cross_entropy(segmenter(batch["image"]).float(), batch["mask"].long())


class Held(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is entered, and that live at a time at the ``most``."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tree_map_only(Tensor, self._pass_over, (args, kwargs))
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, result)
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
    with Held() as held:
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


class Took:
    """Of a training, from here to :meth:`facts`: its minutes, and its largest memory, of the GPU or resident."""

    def __init__(self, device: torch.device, net: nn.Module):
        self.device, self.begun, self.before = device, time.perf_counter(), _resident()
        self.weights = _bytes([*net.parameters(), *net.buffers()])  # which are there before
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def minutes(self) -> float:
        return (time.perf_counter() - self.begun) / 60

    def peak(self) -> int:
        """Bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return max(0, largest_resident() - self.before) + self.weights

    def facts(self, expected: Expected | None) -> dict[str, float]:
        """What ``cost`` in metrics.json says of it."""
        took = {"training_minutes": round(self.minutes(), 3), "training_peak_memory_mib": round(self.peak() / 2**20)}
        if expected is None:
            return took
        memory = round(expected.memory.total / 2**20)
        return took | {"expected_minutes": round(expected.minutes, 3), "expected_memory_mib": memory}


def beside_expected(facts: dict[str, float]) -> str:
    """What a training took, for its last lines."""
    minutes, memory = facts["training_minutes"], facts["training_peak_memory_mib"] / 1024
    if "expected_minutes" not in facts:
        return f"The training took {minutes:.1f} min and {memory:.2f} GiB"
    return (
        f"The training took {minutes:.1f} min and {memory:.2f} GiB;"
        f" expected were {facts['expected_minutes']:.1f} min and {facts['expected_memory_mib'] / 1024:.2f} GiB"
    )


def _resident() -> int:
    """Bytes now, where the system says so; else the most so far."""
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return largest_resident()


def _duration(seconds: float) -> str:
    """In the unit that a person would choose."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
