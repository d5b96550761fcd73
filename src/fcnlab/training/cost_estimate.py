"""What a training will cost, said before it starts, by a probe and by counting; and what it took.

The probe works on a copy of the net and with random states of its own, so that the run is the same to the last bit.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from fcnlab.cores import visible_cores
from fcnlab.data import DataModule, SegmentationDataset
from fcnlab.data.transforms import Augment
from fcnlab.errors import first_line
from fcnlab.library_internals.lightning import starts_processes_itself
from fcnlab.messages import log_info, log_warning
from fcnlab.metrics.confusion import ImageConfusions
from fcnlab.training.callbacks import EMA
from fcnlab.training.callbacks.ema import update_ema
from fcnlab.training.callbacks.resume import random_states, restore_random_states
from fcnlab.training.callbacks.time_left import duration, seconds_allowed, validations_between
from fcnlab.training.limits import steps_of_epoch
from fcnlab.training.memory import (
    AllocationTracker,
    MemoryMeter,
    _bytes,
    _give_gradients,
    optimizer_bytes,
)
from fcnlab.training.segmenter import Segmenter

# A part of the probe is repeated for a share of the time that this part takes in the run, in seconds between what
# nobody notices and what nobody wants to wait for.
SHARE, LEAST, MOST = 0.01, 0.3, 3.0
TOO_LONG, SELDOM = 10.0, 30  # what takes more seconds and is done fewer times in the run is not repeated
ENOUGH = 25  # samples
LOOKED_AT = 5  # images whose size and whose loading stand for all
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "bf16-true": torch.bfloat16, "16-true": torch.float16}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device.

    Of parameters and buffers, of what the optimiser keeps, of the weights' average, and of what a step holds at most:
    activations, their gradients and those of the parameters. ``workspace`` is what a step was seen to take beside its
    tensors (for convolutions, by the allocator, for kernels that are made at their first use), ``validation`` what a
    validation takes beside the first three. ``process`` is what the process of a CPU held before the training, the
    weights included; None on a GPU.
    """

    weights: int
    optimizer: int
    average: int
    step: int
    workspace: int = 0
    validation: int = 0
    process: int | None = None

    @property
    def total(self) -> int:
        before = self.weights if self.process is None else self.process
        return before + self.optimizer + self.average + max(self.step + self.workspace, self.validation)

    def __str__(self) -> str:
        total = f"{self.total / 2**30:.2f} GiB of"
        if self.process is None:
            return f"{total} the GPU's memory, as torch allocates it"
        return f"{total} memory for this process, which has {self.process / 2**30:.2f} now"


class Pace(NamedTuple):
    """Seconds of what is repeated: the median of so many samples behind a first one; with 0 samples that first one.

    ``images`` is how many were taken at a time.
    """

    seconds: float
    samples: int
    images: int = 1


@dataclass(frozen=True)
class CostEstimate:
    """A run's cost as far as it can be known before; ``step`` and ``validation`` in seconds, memory by device.

    ``samples`` is how many steps were measured behind a first one, with ``tried`` of the ``images`` of a batch;
    ``limit`` after how many seconds the training ends in any case.
    """

    steps: int
    step: float
    validations: int
    validation: float
    memory: MemoryEstimate
    samples: int = 2
    tried: int = 1
    images: int = 1
    limit: float = math.inf

    @property
    def minutes(self) -> float:
        return min(self.limit, self.steps * self.step + self.validations * self.validation) / 60

    def __str__(self) -> str:
        by = "; by a first step alone, which takes longer than the others" if self.samples == 0 else ""
        by += f"; by {self.tried} of the {self.images} images of a batch" if self.tried < self.images else ""
        return (
            f"about {duration(60 * self.minutes)} ({self.steps} steps of {duration(self.step)},"
            f" {self.validations} validations of {duration(self.validation)}{by}), {self.memory}"
        )


def report_estimate(segmenter: Segmenter, data: DataModule, trainer: L.Trainer, done: int = 0) -> CostEstimate | None:
    """Say what the training will cost, and warn where that is more memory than the GPU has; None: nobody can tell.

    On rank 0 alone, and not where processes will be forked, since those could not use a GPU that was used before.
    """
    device = trainer.strategy.root_device
    forks = starts_processes_itself(trainer)
    if getattr(rank_zero_only, "rank", 0) or (forks and device.type == "cuda"):
        return None
    try:
        expected = estimate_cost(segmenter, data, trainer, done)
    except Exception as error:  # whatever a user's net or loss does, a run must not end by being guessed at
        log_info(f"Expected: nothing can be told ({type(error).__name__}: {first_line(error)})")
        return None
    workers = data.readers("train").workers
    of_workers = f"; its {'worker has its' if workers == 1 else f'{workers} workers have their'} own" if workers else ""
    log_info(f"Expected: {expected}{' on each device' if trainer.world_size > 1 else ''}{of_workers}")
    if device.type == "cuda":
        available = torch.cuda.get_device_properties(device).total_memory
        warn_about_memory(expected.memory, available, data.batch_size, trainer.accumulate_grad_batches)
    return expected


def warn_about_memory(memory: MemoryEstimate, available: int, batch_size: int, accumulated: int = 1) -> None:
    """Say what to set where a training will not fit; a step keeps its images."""
    if memory.total <= available:
        return
    ways = ["a smaller data.crop_size"]
    if batch_size > 1:
        part = max(count for count in range(1, batch_size) if batch_size % count == 0)
        ways.insert(
            0,
            f"data.batch_size={part} with trainer.accumulate_grad_batches={accumulated * batch_size // part} (a step"
            " takes as many images; its first lines say what of it changes)",
        )
    log_warning(
        f"the training needs some {memory.total / 2**30:.1f} GiB and the GPU has {available / 2**30:.1f}: set"
        f" {', or '.join(ways)}"
    )


def estimate_cost(segmenter: Segmenter, data: DataModule, trainer: L.Trainer, done: int = 0) -> CostEstimate:
    """What is left of the training after ``done`` steps, on the device and in the precision that the trainer has."""
    accumulated, last, device = trainer.accumulate_grad_batches, length(trainer, data), trainer.strategy.root_device
    steps, validations = max(0, last - done), validations_between(done, last, trainer)
    loading = data.batch_size * loading_seconds(data.decoded("train"), data.augment)
    found = probe(segmenter, data, trainer, steps, validations)
    batch = with_loading_time(found.step.seconds, loading, data.readers("train").workers, device)
    loading = loading_seconds(data.decoded("val"))
    image = with_loading_time(found.validation.seconds, loading, data.readers("val").workers, device)
    return CostEstimate(
        steps=steps,
        step=batch * accumulated + found.update.seconds,
        validations=validations,
        validation=image * validated(data, trainer),
        memory=found.memory,
        samples=found.step.samples,
        tried=found.step.images,
        images=data.batch_size,
        limit=seconds_allowed(trainer),
    )


class Probe(NamedTuple):
    """What was measured of a batch, of a validated image and of the optimiser's work, and all memory."""

    step: Pace
    validation: Pace
    update: Pace
    memory: MemoryEstimate


def probe(segmenter: Segmenter, data: DataModule, trainer: L.Trainer, steps: int, validations: int) -> Probe:
    """Try what a run of so many steps and validations will do."""
    device, context = trainer.strategy.root_device, trainer.precision_plugin.forward_context
    averaged, shape = _averages(trainer), (data.batch_size, *training_size(data))
    memory = training_memory(segmenter, shape, str(trainer.precision), averaged)
    process = MemoryMeter(device).held() if device.type == "cpu" else None
    images, validated_in_all = data.decoded("val"), validations * validated(data, trainer)
    with aside_of_the_run(segmenter, device) as net:
        with MemoryMeter(device) as stepping:
            step = step_pace(net, shape, context, steps * trainer.accumulate_grad_batches)
        with MemoryMeter(device) as validating:
            validation = validation_pace(net, images, data.eval_batch_size, context, validated_in_all)
        update = update_pace(net, segmenter.net if averaged else None, steps)
    counted = memory.step
    if step.images < shape[0]:
        counted = training_memory(segmenter, (step.images, shape[1], shape[2]), str(trainer.precision)).step
    gradients = _bytes([each for each in segmenter.net.parameters() if each.requires_grad])
    memory = replace(
        memory,
        workspace=max(0, stepping.grown - counted),
        validation=validating.grown + gradients,  # which stay until the next step
        process=process,
    )
    return Probe(step, validation, update, memory)


def _averages(trainer: L.Trainer) -> bool:
    return any(isinstance(callback, EMA) for callback in getattr(trainer, "callbacks", []))


@contextmanager
def aside_of_the_run(segmenter: Segmenter, device: torch.device) -> Iterator[Segmenter]:
    """A copy to try things with, while random states are those of nobody."""
    states = random_states()  # of python and numpy, too, from which a user's own loss may draw
    net = copy.deepcopy(segmenter).to(device)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.compiler.set_stance("force_eager"):
            yield net
    finally:
        restore_random_states(states)


def training_size(data: DataModule) -> tuple[int, int]:
    """Rows and columns of what is trained on; where nothing is cropped, those of the first image."""
    return data.split("train").size(0) if data.augment is None else (data.crop_size, data.crop_size)


def length(trainer: L.Trainer, data: DataModule) -> int:
    """The run's optimiser steps, by whichever of steps and epochs ends it first."""
    by_epochs = (trainer.max_epochs or -1) * steps_of_epoch(trainer, data)
    return min(limit for limit in (trainer.max_steps, by_epochs) if limit >= 0)


def validated(data: DataModule, trainer: L.Trainer) -> int:
    """How many images a validation takes on each device."""
    limit, share = trainer.limit_val_batches, math.ceil(len(data.split("val")) / trainer.world_size)
    if isinstance(limit, int):
        return min(share, limit * data.eval_batch_size)
    return share if limit is None else math.ceil(share * limit)


def with_loading_time(compute: float, loading: float, workers: int, device: torch.device) -> float:
    """Seconds of work whose data are loaded by others meanwhile: those of the slower, or of the cores that both share.

    ``compute`` is in seconds by the clock, ``loading`` in those of a core.
    """
    if workers == 0:
        return compute + loading
    cores = visible_cores()
    computing = 0.0 if device.type == "cuda" else compute * min(cores, torch.get_num_threads())
    return max(compute, loading / workers, (computing + loading) / cores)


# ------------------------------------------------------------------------------------------------------------ Minutes


def step_pace(segmenter: Segmenter, shape: tuple[int, int, int], context: Callable, times: int) -> Pace:
    """Forward and backward of a batch (images, rows, columns).

    By one image where two batches would take long, and more than a fiftieth of the run: a batch takes less than its
    images one by one.
    """
    count, rows, cols = shape
    one = pace(training_step(segmenter, (1, rows, cols), context), segmenter.device, times * count)
    whole = one.seconds * count
    run = times * whole
    if count > 1 and 2 * whole <= max(LEAST, min(TOO_LONG, 10 * SHARE * run), 2 * SHARE * run):
        return pace(training_step(segmenter, shape, context), segmenter.device, times)._replace(images=count)
    return one._replace(seconds=whole)


def training_step(segmenter: Segmenter, shape: tuple[int, int, int], context: Callable) -> Callable[[], None]:
    """What goes forward and backward with a blank batch (images, rows, columns)."""
    segmenter.train()
    batch = blank_batch(*shape, segmenter.device)

    def step() -> None:
        with context():
            loss = segmenter._step(batch, "train")["loss"]
        segmenter.zero_grad()  # in Lightning's order
        loss.backward()

    return step


def validation_pace(
    segmenter: Segmenter, dataset: SegmentationDataset, together: int, context: Callable, times: int
) -> Pace:
    """To evaluate one image of those that are taken ``together``, of the middle one of a few sizes."""
    segmenter.eval()
    segmenter.confusions = ImageConfusions(len(dataset), len(segmenter.classes)).to(segmenter.device)
    places = _places(len(dataset))
    rows, cols = sorted((dataset.size(place) for place in places), key=math.prod)[len(places) // 2]
    batch = blank_batch(together, rows, cols, segmenter.device)

    def evaluate() -> None:
        with torch.inference_mode(), context():
            segmenter._step(batch, "val")

    found = pace(evaluate, segmenter.device, max(1, times // together))
    return Pace(found.seconds / together, found.samples, together)


def update_pace(segmenter: Segmenter, averaged_with: nn.Module | None, times: int) -> Pace:
    """The optimiser's own work, and that of the weights' average; the weights are others afterwards."""
    assert segmenter.make_optimizer
    optimizer = segmenter.make_optimizer(segmenter.net)
    for parameter in segmenter.net.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    if averaged_with is not None and segmenter.device.type == "cuda":
        averaged_with = copy.deepcopy(segmenter.net)

    def update() -> None:
        optimizer.step()
        if averaged_with is not None:
            update_ema(segmenter.net, averaged_with, 0.5)

    return pace(update, segmenter.device, times)


def loading_seconds(dataset: SegmentationDataset, augment: Augment | None = None) -> float:
    """To read, decode and augment a image with its mask, on one thread as workers do: the median of a few."""
    threads, times = cv2.getNumThreads(), []
    cv2.setNumThreads(0)
    for place in [0, *_places(len(dataset))]:
        begun = time.perf_counter()
        _load(dataset, augment, place)
        times.append(time.perf_counter() - begun)
    cv2.setNumThreads(threads)
    return statistics.median(times[1:])  # the first of all takes longer


def _load(dataset: SegmentationDataset, augment: Augment | None, place: int) -> None:
    image, mask = dataset.image(place), dataset.mask(place)
    if augment is not None:
        augment(image, mask, seed=(0, 0, place))  # which leaves the pipeline as any other sample does


def pace(work: Callable[[], None], device: torch.device, times: int) -> Pace:
    """What work that a run does so many times takes by the clock.

    The first time is not counted: kernels are chosen and made then. One more is measured, and others for a small share
    of the run.
    """
    first, samples = timed(work, device), []
    if first > TOO_LONG and times < SELDOM:
        return Pace(first, 0)
    enough = max(LEAST, min(MOST, SHARE * times * first))
    while not samples or (len(samples) < ENOUGH and sum(samples) + samples[-1] <= enough):
        samples.append(timed(work, device))
    return Pace(statistics.median(samples), len(samples))


def timed(work: Callable[[], None], device: torch.device) -> float:
    """Seconds by the clock, until the device has done it."""
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def blank_batch(count: int, rows: int, cols: int, device: torch.device | str) -> dict[str, Tensor]:
    """Images without content, whose truth is class 0: what is computed does not depend on it."""
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
) -> MemoryEstimate:
    """Counted on the device ``meta``, where tensors have sizes and lives but no contents: nothing is computed.

    A step in half precision is counted as one of half numbers; where weights stay single (mixed), so do gradients, and
    a half copy of the weights comes on top. What no tensor holds, such as the workspaces of convolutions, is measured
    by the probe.
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
    return MemoryEstimate(weights, kept, weights if averaged else 0, max(step, updating))


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
    with AllocationTracker() as held, torch.compiler.set_stance("force_eager"):
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


class CostMeter:
    """Of a training, from here to :meth:`facts`: its minutes, and its largest memory, of the GPU or resident."""

    def __init__(self, device: torch.device):
        self.begun, self.meter = time.perf_counter(), MemoryMeter(device).__enter__()

    def minutes(self) -> float:
        return (time.perf_counter() - self.begun) / 60

    def facts(self, expected: CostEstimate | None) -> dict[str, float]:
        """What ``cost`` in metrics.json says of it."""
        memory = round(self.meter.peak() / 2**20)
        took = {"training_minutes": round(self.minutes(), 3), "training_peak_memory_mib": memory}
        if expected is None:
            return took
        memory = round(expected.memory.total / 2**20)
        return took | {"expected_minutes": round(expected.minutes, 3), "expected_memory_mib": memory}


def compare_with_estimate(facts: dict[str, float]) -> str:
    """What a training took, for its last lines."""
    minutes, memory = facts["training_minutes"], facts["training_peak_memory_mib"] / 1024
    if "expected_minutes" not in facts:
        return f"The training took {minutes:.1f} min and {memory:.2f} GiB"
    return (
        f"The training took {minutes:.1f} min and {memory:.2f} GiB;"
        f" expected were {facts['expected_minutes']:.1f} min and {facts['expected_memory_mib'] / 1024:.2f} GiB"
    )
