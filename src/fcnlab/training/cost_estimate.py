"""Estimate the time and memory of a training run before it starts, and measure them at its end.

The estimate times a few steps on a copy of the model, with random states of its own, so that the run itself stays the
same to the last bit. Memory is counted without computing anything.
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
from fcnlab.training.memory import AllocationTracker, MemoryMeter, allocate_gradients, optimizer_bytes, total_bytes
from fcnlab.training.segmenter import Segmenter

# Each part of the probe is repeated for a fraction of the time that it will take in the run, within these limits in
# seconds: a wait that nobody notices, and the longest acceptable one.
PROBE_FRACTION, MIN_SECONDS, MAX_SECONDS = 0.01, 0.3, 3.0
SLOW_SECONDS, RARE_TIMES = 10.0, 30  # work that takes longer and occurs fewer times in the run is not repeated
MAX_SAMPLES = 25
SAMPLED_IMAGES = 5  # whose size and loading time represent the data set
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "bf16-true": torch.bfloat16, "16-true": torch.float16}


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory in bytes on each device.

    ``weights`` are parameters and buffers, ``optimizer`` is the optimiser's state, ``average`` the EMA weights, and
    ``step`` the peak of a step: activations, their gradients and those of the parameters. ``workspace`` is what a step
    was measured to use in addition to its tensors (convolution workspaces, allocator, kernels loaded at first use), and
    ``validation`` what a validation uses in addition to the first three. ``process`` is what the process used on a CPU
    before training, weights included; None on a GPU.
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
            return f"{total} GPU memory (allocated by torch)"
        return f"{total} memory for this process ({self.process / 2**30:.2f} GiB now)"


class Pace(NamedTuple):
    """Seconds that an operation takes: the median of ``samples`` after a first one; with 0 samples the first one.

    ``images`` is the number of images per operation.
    """

    seconds: float
    samples: int
    images: int = 1


@dataclass(frozen=True)
class CostEstimate:
    """The estimated cost of a run: ``step`` and ``validation`` in seconds, memory per device.

    ``samples`` is the number of steps that were timed after a first one, with ``tried`` of the ``images`` of a batch;
    ``limit`` is the time limit of the run in seconds.
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
        basis = "; timed on the first step only, which is slower than the others" if self.samples == 0 else ""
        basis += f"; timed on {self.tried} of the {self.images} images of a batch" if self.tried < self.images else ""
        return (
            f"about {duration(60 * self.minutes)} ({self.steps} steps of {duration(self.step)},"
            f" {self.validations} validations of {duration(self.validation)}{basis}), {self.memory}"
        )


def report_estimate(segmenter: Segmenter, data: DataModule, trainer: L.Trainer, done: int = 0) -> CostEstimate | None:
    """Report the estimated cost and return it, and warn where the memory of the GPU does not suffice.

    Return None where there is no estimate: on other ranks than 0, where the model or the loss fails, and on a GPU where
    processes will be forked, since these cannot use a GPU that was used before the fork.
    """
    device = trainer.strategy.root_device
    forks = starts_processes_itself(trainer)
    if getattr(rank_zero_only, "rank", 0) or (forks and device.type == "cuda"):
        return None
    try:
        expected = estimate_cost(segmenter, data, trainer, done)
    except Exception as error:  # a user's model or loss can raise anything, and the estimate must not end the run
        log_info(f"Estimated cost: unknown ({type(error).__name__}: {first_line(error)})")
        return None
    workers = data.readers("train").workers
    worker_memory = f", plus {workers} data loading worker{'s' * (workers > 1)}" if workers else ""
    log_info(f"Estimated cost: {expected}{' on each device' if trainer.world_size > 1 else ''}{worker_memory}")
    if device.type == "cuda":
        available = torch.cuda.get_device_properties(device).total_memory
        warn_about_memory(expected.memory, available, data.batch_size, trainer.accumulate_grad_batches)
    return expected


def warn_about_memory(memory: MemoryEstimate, available: int, batch_size: int, accumulated: int = 1) -> None:
    """Warn where a run does not fit into the GPU's memory, and suggest settings with as many images per step."""
    if memory.total <= available:
        return
    suggestions = ["a smaller data.crop_size"]
    if batch_size > 1:
        part = max(count for count in range(1, batch_size) if batch_size % count == 0)
        suggestions.insert(
            0,
            f"data.batch_size={part} with trainer.accumulate_grad_batches={accumulated * batch_size // part} (as many"
            " images per step; the run reports the differences when it starts)",
        )
    log_warning(
        f"training needs about {memory.total / 2**30:.1f} GiB, but the GPU has {available / 2**30:.1f} GiB: set"
        f" {', or '.join(suggestions)}"
    )


def estimate_cost(segmenter: Segmenter, data: DataModule, trainer: L.Trainer, done: int = 0) -> CostEstimate:
    """Estimate the cost of the steps after ``done``, on the trainer's device and in its precision."""
    accumulated, device = trainer.accumulate_grad_batches, trainer.strategy.root_device
    last = total_steps(trainer, data)
    steps, validations = max(0, last - done), validations_between(done, last, trainer)
    loading = data.batch_size * loading_seconds(data.decoded("train"), data.augment)
    measured = probe(segmenter, data, trainer, steps, validations)
    batch = with_loading_time(measured.step.seconds, loading, data.readers("train").workers, device)
    loading = loading_seconds(data.decoded("val"))
    image = with_loading_time(measured.validation.seconds, loading, data.readers("val").workers, device)
    return CostEstimate(
        steps=steps,
        step=batch * accumulated + measured.update.seconds,
        validations=validations,
        validation=image * validation_images(data, trainer),
        memory=measured.memory,
        samples=measured.step.samples,
        tried=measured.step.images,
        images=data.batch_size,
        limit=seconds_allowed(trainer),
    )


class Probe(NamedTuple):
    """The measured times of a training batch, of a validation image and of an optimiser update, and the memory."""

    step: Pace
    validation: Pace
    update: Pace
    memory: MemoryEstimate


def probe(segmenter: Segmenter, data: DataModule, trainer: L.Trainer, steps: int, validations: int) -> Probe:
    """Measure the operations of a run with this number of steps and validations."""
    device, context = trainer.strategy.root_device, trainer.precision_plugin.forward_context
    averaged, shape = _uses_ema(trainer), (data.batch_size, *training_size(data))
    memory = training_memory(segmenter, shape, str(trainer.precision), averaged)
    process = MemoryMeter(device).held() if device.type == "cpu" else None
    images, total_images = data.decoded("val"), validations * validation_images(data, trainer)
    with isolated_copy(segmenter, device) as copied:
        with MemoryMeter(device) as stepping:
            step = step_pace(copied, shape, context, steps * trainer.accumulate_grad_batches)
        with MemoryMeter(device) as validating:
            validation = validation_pace(copied, images, data.eval_batch_size, context, total_images)
        update = update_pace(copied, segmenter.net if averaged else None, steps)
    counted = memory.step
    if step.images < shape[0]:
        counted = training_memory(segmenter, (step.images, shape[1], shape[2]), str(trainer.precision)).step
    gradients = total_bytes([each for each in segmenter.net.parameters() if each.requires_grad])
    memory = replace(
        memory,
        workspace=max(0, stepping.grown - counted),
        validation=validating.grown + gradients,  # gradients are kept until the next step
        process=process,
    )
    return Probe(step, validation, update, memory)


def _uses_ema(trainer: L.Trainer) -> bool:
    return any(isinstance(callback, EMA) for callback in getattr(trainer, "callbacks", []))


@contextmanager
def isolated_copy(segmenter: Segmenter, device: torch.device) -> Iterator[Segmenter]:
    """Yield a copy of the segmenter for measurements, and restore all random states afterwards."""
    states = random_states()  # of python and numpy, too, which a user's own loss may use
    copied = copy.deepcopy(segmenter).to(device)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.compiler.set_stance("force_eager"):
            yield copied
    finally:
        restore_random_states(states)


def training_size(data: DataModule) -> tuple[int, int]:
    """Return rows and columns of the training crops; without crops, those of the first image."""
    return data.split("train").size(0) if data.augment is None else (data.crop_size, data.crop_size)


def total_steps(trainer: L.Trainer, data: DataModule) -> int:
    """Return the number of optimiser steps of the run: the smaller one of its limits in steps and in epochs."""
    by_epochs = (trainer.max_epochs or -1) * steps_of_epoch(trainer, data)
    return min(limit for limit in (trainer.max_steps, by_epochs) if limit >= 0)


def validation_images(data: DataModule, trainer: L.Trainer) -> int:
    """Return the number of images of a validation on each device."""
    limit, share = trainer.limit_val_batches, math.ceil(len(data.split("val")) / trainer.world_size)
    if isinstance(limit, int):
        return min(share, limit * data.eval_batch_size)
    return share if limit is None else math.ceil(share * limit)


def with_loading_time(compute: float, loading: float, workers: int, device: torch.device) -> float:
    """Return the seconds of computing while workers load data: the slower of both, or the time on shared cores.

    ``compute`` is in seconds of wall time, ``loading`` in seconds of one core.
    """
    if workers == 0:
        return compute + loading
    cores = visible_cores()
    computing = 0.0 if device.type == "cuda" else compute * min(cores, torch.get_num_threads())
    return max(compute, loading / workers, (computing + loading) / cores)


# --------------------------------------------------------------------------------------------------------------- Time


def step_pace(segmenter: Segmenter, shape: tuple[int, int, int], context: Callable, times: int) -> Pace:
    """Time forward and backward pass of a batch (images, rows, columns).

    Where two batches would take long, and more than a fiftieth of the run, time one image instead: that overestimates,
    since a batch takes less time than its images one by one.
    """
    count = shape[0]
    few = _pace_of_few(segmenter, shape, context, times)
    batch = few.seconds / few.images * count
    run = times * batch
    limit = max(MIN_SECONDS, min(SLOW_SECONDS, 10 * PROBE_FRACTION * run), 2 * PROBE_FRACTION * run)
    if count > few.images and 2 * batch <= limit:
        return pace(training_step(segmenter, shape, context), segmenter.device, times)._replace(images=count)
    return few._replace(seconds=batch)


def _pace_of_few(segmenter: Segmenter, shape: tuple[int, int, int], context: Callable, times: int) -> Pace:
    """Time a step of one image of a batch, or of two where a batch of one is refused.

    Batch normalisation behind a mean over the whole image, as in DeepLab, needs two values per channel.
    """
    count, rows, cols = shape
    device, times = segmenter.device, times * count
    try:
        return pace(training_step(segmenter, (1, rows, cols), context), device, times)
    except ValueError:
        return pace(training_step(segmenter, (2, rows, cols), context), device, times // 2)._replace(images=2)


def training_step(segmenter: Segmenter, shape: tuple[int, int, int], context: Callable) -> Callable[[], None]:
    """Return a function that runs forward and backward pass on a blank batch (images, rows, columns)."""
    segmenter.train()
    batch = blank_batch(*shape, segmenter.device)

    def step() -> None:
        with context():
            loss = segmenter._step(batch, "train")["loss"]
        segmenter.zero_grad()  # in Lightning's order
        loss.backward()

    return step


def validation_pace(
    segmenter: Segmenter, dataset: SegmentationDataset, batch_size: int, context: Callable, times: int
) -> Pace:
    """Time the evaluation of one image of a batch, with the median of a few image sizes."""
    segmenter.eval()
    segmenter.confusions = ImageConfusions(len(dataset), len(segmenter.classes)).to(segmenter.device)
    indices = _sample_indices(len(dataset))
    rows, cols = sorted((dataset.size(index) for index in indices), key=math.prod)[len(indices) // 2]
    batch = blank_batch(batch_size, rows, cols, segmenter.device)

    def evaluate() -> None:
        with torch.inference_mode(), context():
            segmenter._step(batch, "val")

    batch_pace = pace(evaluate, segmenter.device, max(1, times // batch_size))
    return Pace(batch_pace.seconds / batch_size, batch_pace.samples, batch_size)


def update_pace(segmenter: Segmenter, averaged_with: nn.Module | None, times: int) -> Pace:
    """Time the optimiser's update and that of the EMA weights; this changes the segmenter's weights."""
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
    """Return the median time to read, decode and augment an image with its mask, on one thread as in workers."""
    threads, times = cv2.getNumThreads(), []
    cv2.setNumThreads(0)
    for index in [0, *_sample_indices(len(dataset))]:
        begun = time.perf_counter()
        _load(dataset, augment, index)
        times.append(time.perf_counter() - begun)
    cv2.setNumThreads(threads)
    return statistics.median(times[1:])  # the first load is slower


def _load(dataset: SegmentationDataset, augment: Augment | None, index: int) -> None:
    image, mask = dataset.image(index), dataset.mask(index)
    if augment is not None:
        augment(image, mask, seed=(0, 0, index))  # seeded, so that the pipeline's state is the same afterwards


def pace(work: Callable[[], None], device: torch.device, times: int) -> Pace:
    """Time an operation that the run does this number of times.

    The first time is not counted, since kernels are selected and compiled then. At least one more is timed, and further
    ones for a small fraction of the run.
    """
    first, samples = timed(work, device), []
    if first > SLOW_SECONDS and times < RARE_TIMES:
        return Pace(first, 0)
    budget = max(MIN_SECONDS, min(MAX_SECONDS, PROBE_FRACTION * times * first))
    while not samples or (len(samples) < MAX_SAMPLES and sum(samples) + samples[-1] <= budget):
        samples.append(timed(work, device))
    return Pace(statistics.median(samples), len(samples))


def timed(work: Callable[[], None], device: torch.device) -> float:
    """Return the wall time in seconds until the device has completed the work."""
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def blank_batch(count: int, rows: int, cols: int, device: torch.device | str) -> dict[str, Tensor]:
    """Return blank images whose target is class 0: the cost of a step does not depend on the content."""
    return {
        "image": torch.zeros(count, 3, rows, cols, dtype=torch.uint8, device=device),
        "mask": torch.zeros(count, rows, cols, dtype=torch.uint8, device=device),
        "index": torch.zeros(count, dtype=torch.int64, device=device),
    }


def _sample_indices(count: int) -> list[int]:
    return sorted({sample * count // SAMPLED_IMAGES for sample in range(SAMPLED_IMAGES)})


# ------------------------------------------------------------------------------------------------------------- Memory


def training_memory(
    segmenter: Segmenter, shape: tuple[int, int, int], precision: str = "32-true", averaged: bool = False
) -> MemoryEstimate:
    """Count the memory of training on the ``meta`` device, where tensors have sizes but no contents.

    A step in half precision is counted with half-precision tensors; in mixed precision weights and gradients stay in
    single precision, with a half-precision copy of the weights in addition. Memory outside of tensors, such as the
    workspaces of convolutions, is measured by the probe.
    """
    with isolated_copy(segmenter, torch.device("meta")) as shadow:
        shadow.train()
        weights = total_bytes([*shadow.net.parameters(), *shadow.net.buffers()])
        assert shadow.make_optimizer
        state, update = optimizer_bytes(shadow.make_optimizer, shadow.net)
        if precision in HALF:
            halve(shadow, HALF[precision])
        step = step_bytes(shadow, blank_batch(*shape, "meta"))
    if precision in ("bf16-mixed", "16-mixed"):
        step += weights  # the half-precision copy of the weights, and the second half of single-precision gradients
    return MemoryEstimate(weights, state, weights if averaged else 0, max(step, update))


def halve(segmenter: Segmenter, kind: torch.dtype) -> None:
    """Make convolutions and linear layers compute in half precision, as under autocast."""

    def cast(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(each.to(kind) for each in inputs)

    segmenter.net.to(kind)
    for module in segmenter.net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.register_forward_pre_hook(cast)


def step_bytes(segmenter: Segmenter, batch: dict[str, Tensor]) -> int:
    """Return the peak memory of a step; the previous step's gradients exist until the forward pass is complete."""
    with AllocationTracker() as tracker, torch.compiler.set_stance("force_eager"):
        allocate_gradients(segmenter.net)
        loss = loss_of(segmenter, batch)
        segmenter.zero_grad()
        loss.backward()
    return tracker.peak


def loss_of(segmenter: Segmenter, batch: dict[str, Tensor]) -> Tensor:
    """Return a step's loss, or the cross-entropy where the loss depends on contents, such as the classes present."""
    with suppress(NotImplementedError, RuntimeError):
        return segmenter._step(batch, "train")["loss"]
    return nn.functional.cross_entropy(segmenter(batch["image"]).float(), batch["mask"].long())


class CostMeter:
    """Measure the minutes and the peak memory (of the GPU, or resident) of training, until :meth:`facts`."""

    def __init__(self, device: torch.device):
        self.begun, self.meter = time.perf_counter(), MemoryMeter(device).__enter__()

    def minutes(self) -> float:
        return (time.perf_counter() - self.begun) / 60

    def facts(self, expected: CostEstimate | None) -> dict[str, float]:
        """Return the training's entries of ``cost`` in metrics.json."""
        memory = round(self.meter.peak() / 2**20)
        cost = {"training_minutes": round(self.minutes(), 3), "training_peak_memory_mib": memory}
        if expected is None:
            return cost
        memory = round(expected.memory.total / 2**20)
        return cost | {"expected_minutes": round(expected.minutes, 3), "expected_memory_mib": memory}


def compare_with_estimate(facts: dict[str, float]) -> str:
    """Return a sentence on the measured and the estimated cost."""
    minutes, memory = facts["training_minutes"], facts["training_peak_memory_mib"] / 1024
    measured = f"Training took {minutes:.1f} min and {memory:.2f} GiB"
    if "expected_minutes" not in facts:
        return measured
    expected_memory = facts["expected_memory_mib"] / 1024
    return f"{measured} (estimated: {facts['expected_minutes']:.1f} min and {expected_memory:.2f} GiB)"
