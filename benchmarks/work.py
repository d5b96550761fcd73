"""Work of a training step and of a forward pass, counted: FCN-8s on VGG16 against pytorch-fcn and torchvision.

python benchmarks/work.py                  about 10 seconds; counted, so there is no spread

Floating-point operations of convolutions and matrix products (two to a multiply-add), on meta tensors.
"""

import measuring  # first: it sets what the libraries read when they are loaded  # isort: skip

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import rivals
from fcnlab.models import FCN, VGG16, ResNet

SIZES = ((375, 500), (500, 500), (512, 512))
AS_THE_RIVAL = "fcnlab, padding=paper"
Net = Callable[[], nn.Module]

NETS: dict[str, Net] = {
    AS_THE_RIVAL: lambda: FCN(VGG16(padding="paper"), 21),
    "fcnlab": lambda: FCN(VGG16(), 21),
    "torchvision's fcn_resnet50": rivals.torchvision_fcn,
    "fcnlab on ResNet-50": lambda: FCN(ResNet(50), 21),
}


def flops(make: Net, size: tuple[int, int], step: bool) -> float:
    """Return the GFLOP of one image: of a forward pass, or of forward and backward pass."""
    with torch.device("meta"):
        net, image = make(), torch.empty(1, 3, *size)
    with FlopCounterMode(display=False) as counter:
        scores = net(image)
        scores = scores["out"] if isinstance(scores, dict) else scores
        if step:
            scores.sum().backward()
    return counter.get_total_flops() / 1e9


def measure(nets: Mapping[str, Net], reference: str, size: tuple[int, int]) -> dict[str, dict[str, float]]:
    """Return how many times less work a step of each model is than one of the reference."""
    steps = {name: flops(make, size, step=True) for name, make in nets.items()}
    return {
        f"{size[0]}x{size[1]}: {name}": {
            "ratio": round(steps[reference] / steps[name], 3),
            "GFLOP_of_a_step": round(steps[name], 1),
            "GMAC_forward": round(flops(make, size, step=False) / 2, 1),
        }
        for name, make in nets.items()
    }


def main() -> None:
    args = measuring.options(__doc__)
    rival = rivals.pytorch_fcn()
    nets = NETS if rival is None else {"pytorch-fcn": rival.net} | NETS
    reference = AS_THE_RIVAL if rival is None else "pytorch-fcn"
    found = {name: row for size in SIZES for name, row in measure(nets, reference, size).items()}
    absent = [] if rival else [f"{rivals.NO_PYTORCH_FCN}. {AS_THE_RIVAL} is the same network, and replaces it."]
    measuring.report("Work per image, 21 classes", found, args.json, "times less work", absent)


if __name__ == "__main__":
    main()
