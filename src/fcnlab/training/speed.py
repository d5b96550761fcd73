"""What makes a step fast: TF32, memory format, blocks of rows, compilation."""

import os
import shutil
from typing import Any

import torch
from omegaconf import DictConfig

from fcnlab.errors import UserError
from fcnlab.models import FCN
from fcnlab.training.hardware import uses_gpu


def allow_tf32(allowed: bool) -> None:
    """Let a GPU round the factors of single-precision products to 10 bits; torch lets convolutions do so by default."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def evaluation_speed(cfg: DictConfig, net: FCN) -> dict[str, Any]:
    """What of ``speed=`` the Segmenter takes to evaluate: as in training, so that equal weights give equal scores."""
    return speed_of_net(cfg, net)


def speed_of_net(cfg: DictConfig, net: FCN) -> dict[str, Any]:
    """The memory format, by device and backbone, and whether scores are taken by rows."""
    wanted = cfg.speed.channels_last
    if wanted == "auto":  # a user's own backbone need not say
        wanted = uses_gpu(cfg.trainer.accelerator) or getattr(net.backbone, "channels_last_on_cpu", False)
    return {"channels_last": wanted, "row_blocks": cfg.speed.row_blocks}


def training_speed(cfg: DictConfig, net: FCN) -> dict[str, Any]:
    """What of ``speed=`` the Segmenter takes to train.

    Raises
    ------
    UserError
        Nothing is there to compile with.
    """
    if cfg.speed.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise UserError("speed.compile=true needs a C++ compiler, and finds none: install g++, or leave it out")
    return speed_of_net(cfg, net) | {"compiled": cfg.speed.compile}
