"""A forward pass: FCN-8s on VGG16 against pytorch-fcn's, FCN-8s on ResNet-50 against other libraries' models on it.

python benchmarks/forward.py               some two minutes; more --rounds for a smaller spread

The models run in evaluation mode on one image, in single precision and with autocast to bfloat16; ours in both memory
formats. The models on ResNet-50 do not all do the same work, so the table lists GMACs next to the ratios.
"""

import measuring  # first: it sets what the libraries read when they are loaded  # isort: skip

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import rivals
from fcnlab.models import FCN, VGG16, ResNet
from work import Net, flops

VGG_SIZE, RESNET_SIZE = (375, 500), (384, 512)  # smp's models take multiples of 32 only
Variants = dict[str, Callable[[int], object]]


def passes(name: str, net: nn.Module, image: Tensor) -> Variants:
    """Return a model in both precisions."""
    return {
        f"{name}, fp32": forward(net, image, torch.float32),
        f"{name}, bf16": forward(net, image, torch.bfloat16),
    }


def forward(net: nn.Module, image: Tensor, precision: torch.dtype) -> Callable[[int], object]:
    """Return a forward pass of a model over an image."""

    @torch.inference_mode()
    def once(number: int) -> object:
        with torch.autocast(image.device.type, torch.bfloat16, enabled=precision is torch.bfloat16):
            return net(image)

    return once


def variants(theirs: Mapping[str, Net], ours: Mapping[str, Net], image: Tensor) -> Variants:
    """Return every model in both precisions, fcnlab's in both memory formats."""
    last = image.contiguous(memory_format=torch.channels_last)
    found: Variants = {}
    for name, make in (theirs | ours).items():
        found |= passes(name, rivals.drawn(make()).eval().to(image.device), image)
    for name, make in ours.items():
        net = rivals.drawn(make()).eval().to(image.device, memory_format=torch.channels_last)
        found |= passes(f"{name}, channels_last", net, last)
    return found


def measure(
    theirs: Mapping[str, Net], ours: Mapping[str, Net], size: tuple[int, int], rounds: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Return the speed of each model relative to the first of the others in single precision."""
    image = torch.rand(1, 3, *size, device=device)
    times = measuring.in_turns(variants(theirs, ours, image), rounds, measuring.clock(device))
    work = {name: flops(make, size, step=False) / 2 for name, make in (theirs | ours).items()}
    return {
        name: row | {"GMAC": round(work[name.partition(",")[0]], 1)}
        for name, row in measuring.summary(times, f"{next(iter(theirs))}, fp32", items=1).items()
    }


def main() -> None:
    args = measuring.options(__doc__, rounds=3)
    measuring.on_cores(args.threads)
    device, absent = measuring.chosen_device(args.device), []
    torch.manual_seed(0)
    rival, smp = rivals.pytorch_fcn(), rivals.segmentation_models()
    if rival is None:
        vgg: dict[str, Net] = {"FCN-8s with padding=paper": lambda: FCN(VGG16(padding="paper"), 21)}
        absent.append(f"{rivals.NO_PYTORCH_FCN}. FCN-8s with padding=paper is the same network, and stands in for it.")
    else:
        vgg = {"pytorch-fcn": rival.net}
    resnet: dict[str, Net] = {"torchvision's fcn_resnet50": rivals.torchvision_fcn}
    if smp is None:
        absent.append(rivals.NO_SMP)
    else:
        for decoder in (smp.FPN, smp.Unet):
            resnet[f"smp's {decoder.__name__}"] = lambda make=decoder: make(
                "resnet50", encoder_weights=None, classes=21
            )
    found = measure(vgg, {"fcnlab on VGG16": lambda: FCN(VGG16(), 21)}, VGG_SIZE, args.rounds, device)
    found |= measure(
        resnet,
        {
            "fcnlab on ResNet-50": lambda: FCN(ResNet(50), 21),
            "fcnlab on ResNet-50 of output_stride=8": lambda: FCN(ResNet(50, output_stride=8), 21),
        },
        RESNET_SIZE,
        args.rounds,
        device,
    )
    title = f"One image, VGG16 at {VGG_SIZE[0]}x{VGG_SIZE[1]}, ResNet-50 at {RESNET_SIZE[0]}x{RESNET_SIZE[1]}; {device}"
    measuring.report(title, found, args.json, not_measured=absent)


if __name__ == "__main__":
    main()
