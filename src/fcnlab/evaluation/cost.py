"""Measure the cost of a model: parameters, multiply-accumulates, time and memory."""

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fcnlab.data import SegmentationDataset
from fcnlab.models.network import rehearse
from fcnlab.training.memory import largest_resident
from fcnlab.training.segmenter import Segmenter


def cost(segmenter: Segmenter, dataset: SegmentationDataset, seconds: float, count: int) -> dict[str, Any]:
    """Return the cost of an evaluation; GMACs are those of one forward pass on the first image, at its size.

    Of an ensemble, parameters and GMACs are those of all networks.
    """
    rows, cols = dataset.image(0).shape[:2]
    return {
        "parameters": sum(parameter.numel() for net in segmenter.nets for parameter in net.parameters()),
        "gmacs_per_image": round(sum(count_macs(net, rows, cols) for net in segmenter.nets) / 1e9, 6),
        "gmacs_at": [rows, cols],
        "seconds": round(seconds, 2),
        "images_per_second": round(count / seconds, 2),
        "peak_memory_mib": round(peak_memory() / 2**20),
    }


def describe_model(segmenter: Segmenter, dataset: SegmentationDataset) -> str:
    """Return a line on the model: architecture, parameters and GMACs."""
    net, (rows, cols) = segmenter.net, dataset.image(0).shape[:2]
    parameters = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    work = count_macs(net, rows, cols) / 1e9
    return f"Model: {net.description}, {parameters:.2f} M parameters, {work:.2f} GMACs for an image of {rows}x{cols}"


def count_macs(net: nn.Module, rows: int, cols: int) -> int:
    """Count the multiply-accumulates of convolutions and matrix products for one image."""

    def flops(shadow: nn.Module, image: torch.Tensor) -> int:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            shadow(image)
        return counter.get_total_flops()

    return rehearse(net, (rows, cols), flops) // 2


def peak_memory() -> int:
    """Return the peak memory in bytes: allocated on the GPU, or without a GPU the largest resident size."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else largest_resident()
