"""Apply the ``speed`` settings: TF32, memory format, row blocks, compilation."""

import os
import shutil
from typing import Any

import torch
from omegaconf import DictConfig

from fcnlab.errors import UserError
from fcnlab.models import Network
from fcnlab.training.hardware import uses_gpu


def allow_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 in single-precision matrix products and convolutions on a GPU."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def prefers_channels_last(net: Network, on_gpu: bool) -> bool:
    """Return whether a model computes faster in the memory format "channels last"."""
    return on_gpu or net.channels_last_on_cpu


def evaluation_speed(cfg: DictConfig, net: Network) -> dict[str, Any]:
    """Return the Segmenter's speed arguments for evaluation: those of training, so that scores are the same.

    They are the memory format, by device and network, and whether to compute in blocks of rows.
    """
    channels_last = cfg.speed.channels_last
    if channels_last == "auto":
        channels_last = prefers_channels_last(net, uses_gpu(cfg.trainer.accelerator))
    return {"channels_last": channels_last, "row_blocks": cfg.speed.row_blocks}


def training_speed(cfg: DictConfig, net: Network) -> dict[str, Any]:
    """Return the Segmenter's speed arguments for training.

    Raises
    ------
    UserError
        ``speed.compile=true`` without a C++ compiler.
    """
    if cfg.speed.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise UserError("speed.compile=true needs a C++ compiler, but there is none: install g++, or leave it out")
    return evaluation_speed(cfg, net) | {"compiled": cfg.speed.compile}
