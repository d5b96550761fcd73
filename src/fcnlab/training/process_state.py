"""Global state of a process that a training run changes, and that is restored for a caller in Python."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng

LIGHTNING_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.profilers")


@contextmanager
def process_state_restored() -> Iterator[None]:
    """Restore on exit what a run sets for the whole process.

    That is: random states of Python, numpy and torch; torch's flags for determinism, cuDNN and TF32, and its number of
    threads; environment variables; filters of warnings; Lightning's loggers.
    """
    environment, restore = dict(os.environ), [_flags_of_torch(), *map(_logger_state, LIGHTNING_LOGGERS)]
    try:
        with isolate_rng(), warnings.catch_warnings():
            yield
    finally:
        for each in restore:
            each()
        os.environ.clear()
        os.environ.update(environment)


def _flags_of_torch() -> Callable[[], None]:
    cudnn: Any = torch.backends.cudnn
    flags = {name: getattr(cudnn, name) for name in ("benchmark", "deterministic", "allow_tf32")}
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()

    def restore() -> None:
        for name, value in flags.items():
            setattr(cudnn, name, value)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic, warn_only=warns)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    return restore


def _logger_state(name: str) -> Callable[[], None]:
    logger = logging.getLogger(name)
    handlers, propagate, level = list(logger.handlers), logger.propagate, logger.level

    def restore() -> None:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)

    return restore
