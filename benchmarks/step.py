"""A training step of FCN-8s on VGG16, from the batch to the new weights, against pytorch-fcn's.

python benchmarks/step.py                  some five minutes and 8 GB; more --rounds for a smaller spread

Theirs is what its trainer does to a batch: its net, its loss, SGD with momentum over its convolutions, the loss read to
see that it is no nan (without the training score that it computes from every batch besides, in its favour). Ours is what
``fcnlab train optim=sgd`` does to one, from uint8 on. On a GPU, the step's FLOPs over its time are shown as a share of
what a product of large bfloat16 matrices reaches on the same card.
"""

import measuring  # first: it sets what the libraries read when they are loaded  # isort: skip

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import rivals
from fcnlab.losses import CrossEntropy
from fcnlab.models import FCN, VGG16
from fcnlab.optim import sgd
from fcnlab.segmenter import Segmenter
from work import flops

BATCHES = ((1, 375, 500), (4, 321, 321))
RATE = 1e-10  # small, so that drawn weights stay as they are; pytorch-fcn's own
Step = Callable[[int], object]


@dataclass(frozen=True)
class Batch:
    """The size of a batch, and where its tensors lie."""

    pictures: int
    rows: int
    cols: int
    device: torch.device

    def truth(self) -> torch.Tensor:
        return torch.randint(21, (self.pictures, self.rows, self.cols), device=self.device)


def their_step(rival: rivals.PyTorchFCN, net: nn.Module, batch: Batch) -> Step:
    """``net`` is one of theirs, drawn."""
    layers = [layer for layer in net.to(batch.device).train().modules() if isinstance(layer, nn.Conv2d)]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    groups = [{"params": [layer.weight for layer in layers]}, {"params": biases, "lr": 2 * RATE, "weight_decay": 0}]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=0.99, weight_decay=5e-4)
    image = rivals.caffe_input(batch.pictures, batch.rows, batch.cols).to(batch.device)
    truth = batch.truth()

    def once(number: int) -> None:
        optimizer.zero_grad()
        loss = rival.cross_entropy(net(image), truth, size_average=False) / len(image)
        assert loss.item() == loss.item()
        loss.backward()
        optimizer.step()

    return once


def our_step(net: FCN, batch: Batch, reduced: bool = False, channels_last: bool = False) -> Step:
    """``reduced``: under autocast to bfloat16, as ``trainer.precision=bf16-mixed`` does."""
    segmenter = Segmenter(net, ["class"] * 21, CrossEntropy(), channels_last=channels_last).to(batch.device).train()
    optimizer = sgd(net, lr=RATE)
    image = torch.randint(256, (batch.pictures, 3, batch.rows, batch.cols), dtype=torch.uint8, device=batch.device)
    sample = {"image": image, "mask": batch.truth().to(torch.uint8)}

    def once(number: int) -> None:
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=reduced):
            loss = segmenter._step(sample, "train")["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return once


def measure(
    rival: rivals.PyTorchFCN, make: Callable[[], FCN], batch: Batch, rounds: int
) -> dict[str, dict[str, float]]:
    """How many times as fast as theirs ours is."""
    steps = {
        "pytorch-fcn": their_step(rival, rivals.drawn(rival.net(21)), batch),
        "fcnlab, fp32": our_step(rivals.drawn(make()), batch),
        "fcnlab, bf16, channels_last": our_step(rivals.drawn(make()), batch, reduced=True, channels_last=True),
    }
    times = measuring.in_turns(steps, rounds, measuring.clock(batch.device))
    found = measuring.summary(times, "pytorch-fcn", batch.pictures)
    if batch.device.type == "cuda":
        peak = largest_product(batch.device)
        for name, row in found.items():
            work = flops(rival.net if name == "pytorch-fcn" else make, (batch.rows, batch.cols), step=True)
            row["percent_of_the_card"] = round(100 * work * 1e9 * row["per_second"] / peak, 1)
    return {f"{batch.pictures} x {batch.rows}x{batch.cols}: {name}": row for name, row in found.items()}


def largest_product(device: torch.device, side: int = 8192) -> float:
    """FLOP per second that bfloat16 matrices of ``side`` reach, at best."""
    a = torch.randn(side, side, dtype=torch.bfloat16, device=device)
    return (
        2
        * side**3
        / measuring.in_turns({"product": lambda number: a @ a}, 20, measuring.clock(device))["product"].min()
    )


def main() -> None:
    asked = measuring.options(__doc__, rounds=3)
    measuring.on_cores(asked.threads)
    device, rival = measuring.chosen_device(asked.device), rivals.pytorch_fcn()
    torch.manual_seed(0)
    found: dict[str, dict[str, float]] = {}
    for size in BATCHES if rival else ():
        found |= measure(rival, lambda: FCN(VGG16(), 21), Batch(*size, device), asked.rounds)
    absent = [] if rival else [rivals.NO_PYTORCH_FCN]
    measuring.report(f"FCN-8s on VGG16, SGD with momentum; {device}", found, asked.json, not_measured=absent)


if __name__ == "__main__":
    main()
