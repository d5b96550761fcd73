"""In which precision a training computes: decided once, and recorded as what it was."""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from omegaconf import DictConfig

from fcnlab.data import DataModule
from fcnlab.errors import first_line
from fcnlab.messages import log_info, log_warning
from fcnlab.training.callbacks.time_left import duration
from fcnlab.training.cost_estimate import aside_of_the_run, timed, training_size, training_step
from fcnlab.training.hardware import BY_DEVICE, FASTEST, device_of, precision
from fcnlab.training.resume_point import ResumePoint, precision_of
from fcnlab.training.segmenter import Segmenter
from fcnlab.training.speed import allow_tf32

SINGLE, HALF = "32-true", "bf16-mixed"
MARGIN = 1.05  # so many times as fast half precision has to be: what is less may be the machine's other work
SAMPLES, MOST = 5, 6.0  # of each at most; seconds for all, where two of each do not take longer


def settle_precision(cfg: DictConfig, start: ResumePoint) -> None:
    """Put in the place of ``auto`` what it is on this device, and of ``fastest`` what a resumed run has computed in.

    So that the record, and what compares or repeats it, has the precision itself.
    """
    wanted = cfg.trainer.precision
    if wanted == BY_DEVICE:
        cfg.trainer.precision = precision(cfg)
    elif wanted == FASTEST and start.checkpoint and (before := precision_of(start)):
        cfg.trainer.precision = before
        log_info(f"trainer.precision={FASTEST}: {before}, as the run had it before")


class Times(NamedTuple):
    """Seconds of steps in turns, and of how many images."""

    single: list[float]
    half: list[float]
    images: int

    @property
    def chosen(self) -> str:
        """By the least of each, which other work on the machine has disturbed least."""
        return HALF if min(self.single) >= MARGIN * min(self.half) else SINGLE

    def __str__(self) -> str:
        single, half = (duration(min(times)) for times in (self.single, self.half))
        of = f"forward and backward of {self.images} image{'s' * (self.images > 1)}"
        if self.chosen == HALF:
            return f"{of} took {half} in it and {single} in {SINGLE}"
        return f"{of} took {single} in it and {half} in {HALF}, which has to be {100 * (MARGIN - 1):.0f} % faster"


def choose_fastest(cfg: DictConfig, segmenter: Segmenter, data: DataModule) -> str:
    """Time some steps in either precision, say which is faster on this device, and give that one's name."""
    device = device_of(cfg)
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        log_info(f"trainer.precision={FASTEST}: {SINGLE}, since this GPU does not compute in bf16")
        return SINGLE
    allow_tf32(cfg.speed.tf32)
    try:
        times = step_times(segmenter, (data.batch_size, *training_size(data)), device)
    except Exception as error:  # a user's net or loss may do anything
        log_warning(f"trainer.precision={FASTEST}: {SINGLE}, since no step could be timed ({first_line(error)})")
        return SINGLE
    log_info(
        f"trainer.precision={FASTEST}: {times.chosen}, since {times}. Another run may choose otherwise: for runs that"
        f" are compared, type trainer.precision={times.chosen}"
    )
    return times.chosen


def step_times(segmenter: Segmenter, shape: tuple[int, int, int], device: torch.device) -> Times:
    """Of forward and backward in turns; of one image where those of a batch would take long."""
    contexts = {SINGLE: nullcontext, HALF: lambda: torch.autocast(device.type, torch.bfloat16)}
    times: dict[str, list[float]] = {SINGLE: [], HALF: []}

    def turn(images: int) -> dict[str, float]:
        batch = (images, shape[1], shape[2])
        return {name: timed(training_step(net, batch, context), device) for name, context in contexts.items()}

    with aside_of_the_run(segmenter, device) as net:
        turn(1)  # kernels are made
        images = shape[0] if 3 * shape[0] * sum(turn(1).values()) <= MOST else 1
        if images > 1:
            turn(images)
        while len(times[SINGLE]) < 2 or (len(times[SINGLE]) < SAMPLES and sum(map(sum, times.values())) < MOST / 2):
            for name, seconds in turn(images).items():
                times[name].append(seconds)
    return Times(times[SINGLE], times[HALF], images)
