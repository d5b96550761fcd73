"""Choose the precision of a training run, once; the record contains the chosen value."""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from omegaconf import DictConfig

from fcnlab.data import DataModule
from fcnlab.errors import first_line
from fcnlab.messages import log_info, log_warning
from fcnlab.training.callbacks.time_left import duration
from fcnlab.training.cost_estimate import isolated_copy, timed, training_size, training_step
from fcnlab.training.hardware import BY_DEVICE, FASTEST, device_of, precision
from fcnlab.training.resume_point import ResumePoint, precision_of
from fcnlab.training.segmenter import Segmenter
from fcnlab.training.speed import allow_tf32

SINGLE, HALF = "32-true", "bf16-mixed"
MARGIN = 1.05  # half precision must be faster by this factor: a smaller difference may be noise
MAX_SAMPLES, MAX_SECONDS = 5, 6.0  # per precision; in total, unless two samples of each take longer


def settle_precision(cfg: DictConfig, start: ResumePoint) -> None:
    """Replace ``auto`` by this device's precision, and ``fastest`` by the precision of the run that is resumed.

    The record, and whatever compares or repeats the run, then contains the precision itself.
    """
    requested = cfg.trainer.precision
    if requested == BY_DEVICE:
        cfg.trainer.precision = precision(cfg)
    elif requested == FASTEST and start.checkpoint and (before := precision_of(start)):
        cfg.trainer.precision = before
        log_info(f"trainer.precision={FASTEST}: using {before}, as before in this run")


class Times(NamedTuple):
    """Seconds of alternating steps in both precisions, and the number of images per step."""

    single: list[float]
    half: list[float]
    images: int

    @property
    def chosen(self) -> str:
        """The faster precision by the minimum of each, which is the least noisy statistic."""
        return HALF if min(self.single) >= MARGIN * min(self.half) else SINGLE

    def __str__(self) -> str:
        single, half = (duration(min(times)) for times in (self.single, self.half))
        passes = f"forward and backward pass of {self.images} image{'s' * (self.images > 1)}"
        if self.chosen == HALF:
            return f"{passes} took {half} in {HALF} and {single} in {SINGLE}"
        return (
            f"{passes} took {single} in {SINGLE} and {half} in {HALF}, which must be {100 * (MARGIN - 1):.0f} % faster"
        )


def choose_fastest(cfg: DictConfig, segmenter: Segmenter, data: DataModule) -> str:
    """Time some steps in both precisions, report the faster one on this device and return its name."""
    device = device_of(cfg)
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        log_info(f"trainer.precision={FASTEST}: using {SINGLE}, since this GPU does not support bf16")
        return SINGLE
    allow_tf32(cfg.speed.tf32)
    try:
        times = step_times(segmenter, (data.batch_size, *training_size(data)), device)
    except Exception as error:  # a user's model or loss can raise anything
        log_warning(f"trainer.precision={FASTEST}: using {SINGLE}, since no step could be timed ({first_line(error)})")
        return SINGLE
    log_info(
        f"trainer.precision={FASTEST}: using {times.chosen}, since {times}. Another run may choose differently: set"
        f" trainer.precision={times.chosen} in runs that you compare"
    )
    return times.chosen


def step_times(segmenter: Segmenter, shape: tuple[int, int, int], device: torch.device) -> Times:
    """Time forward and backward passes in alternating precision; with one image where a batch would take long."""
    contexts = {SINGLE: nullcontext, HALF: lambda: torch.autocast(device.type, torch.bfloat16)}
    times: dict[str, list[float]] = {SINGLE: [], HALF: []}

    def turn(images: int) -> dict[str, float]:
        batch = (images, shape[1], shape[2])
        return {name: timed(training_step(copied, batch, context), device) for name, context in contexts.items()}

    def enough() -> bool:
        count = len(times[SINGLE])
        return count >= MAX_SAMPLES or (count >= 2 and sum(map(sum, times.values())) >= MAX_SECONDS / 2)

    with isolated_copy(segmenter, device) as copied:
        turn(1)  # selects and compiles kernels
        images = shape[0] if 3 * shape[0] * sum(turn(1).values()) <= MAX_SECONDS else 1
        if images > 1:
            turn(images)
        while not enough():
            for name, seconds in turn(images).items():
                times[name].append(seconds)
    return Times(times[SINGLE], times[HALF], images)
