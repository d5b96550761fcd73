"""A training step of FCN-8s on VGG16, from the batch to the new weights, against pytorch-fcn's.

python benchmarks/step.py                  some five minutes and 8 GB; more --rounds for a smaller spread

Theirs is what its trainer does to a batch: its net, its loss, SGD with momentum over its convolutions, the loss read to
see that it is a number (without the training scores that it computes from every batch besides, in its favour). Ours is
``fcnlab train optim=sgd``, from uint8 on. On a GPU, the step's FLOPs over its time are shown as a share of what a
product of large bfloat16 matrices reaches on the same card.
"""

import measuring  # first: it sets what the libraries read when they are loaded  # isort: skip

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

import ours
import rivals
from work import Net, flops

RATE = 1e-10  # pytorch-fcn's learning rate: random weights hardly change
SGD = ("optim=sgd", f"optim.lr={RATE}")
Step = Callable[[int], object]


class Size(NamedTuple):
    """Of a batch."""

    images: int
    rows: int
    cols: int


SIZES = (Size(1, 375, 500), Size(4, 321, 321))


def their_step(rival: rivals.PyTorchFCN, size: Size, device: torch.device) -> Step:
    """Return pytorch-fcn's step, with random weights."""
    net = rivals.drawn(rival.net(21)).to(device).train()
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers if layer.bias is not None]
    groups = [{"params": weights}, {"params": biases, "lr": 2 * RATE, "weight_decay": 0}]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=0.99, weight_decay=5e-4)
    image = rivals.caffe_input(*size).to(device)
    target = torch.randint(21, (size.images, size.rows, size.cols), device=device)

    def once(number: int) -> None:
        optimizer.zero_grad()
        loss = rival.cross_entropy(net(image), target, size_average=False) / len(image)
        assert loss.item() == loss.item()
        loss.backward()
        optimizer.step()

    return once


def our_steps(words: Sequence[str], size: Size, device: torch.device) -> dict[str, Step]:
    """Return fcnlab's steps, with random weights, in each precision."""
    built, batch = ours.build(*words, *SGD, device=device), ours.batch(*size, device)
    built.segmenter.train()
    optimizer = built.optimizer()

    def step(precision: torch.dtype) -> Step:
        def once(number: int) -> None:
            optimizer.zero_grad()
            built.loss(batch, precision).backward()
            optimizer.step()

        return once

    return {f"fcnlab, {name}": step(precision) for name, precision in ours.PRECISIONS.items()}


def measure(
    rival: rivals.PyTorchFCN, words: Sequence[str], size: Size, rounds: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Return fcnlab's speed relative to pytorch-fcn."""
    steps = {"pytorch-fcn, fp32": their_step(rival, size, device)} | our_steps(words, size, device)
    found = measuring.summary(
        measuring.in_turns(steps, rounds, measuring.clock(device)), "pytorch-fcn, fp32", size.images
    )
    if device.type == "cuda":
        add_utilization(
            found, {"pytorch-fcn": rival.net, "fcnlab": lambda: ours.net_of(ours.composed(*words))}, size, device
        )
    return {f"{size.images} x {size.rows}x{size.cols}: {name}": row for name, row in found.items()}


def add_utilization(found: dict, nets: Mapping[str, Net], size: Size, device: torch.device) -> None:
    """Return the fraction of the GPU's peak performance that the model uses."""
    card = product_speed(device)
    for name, row in found.items():
        work = 1e9 * flops(nets[name.partition(",")[0]], (size.rows, size.cols), step=True)
        row["percent_of_the_card"] = round(100 * work * row["per_second"] / card, 1)


def product_speed(device: torch.device, side: int = 8192) -> float:
    """Return the best FLOP per second of a product of bfloat16 matrices."""
    a = torch.randn(side, side, dtype=torch.bfloat16, device=device)
    times = measuring.in_turns({"product": lambda number: a @ a}, 20, measuring.clock(device))
    return 2 * side**3 / times["product"].min()


def main() -> None:
    args = measuring.options(__doc__, rounds=3)
    measuring.on_cores(args.threads)
    device, rival = measuring.chosen_device(args.device), rivals.pytorch_fcn()
    torch.manual_seed(0)
    found: dict[str, dict[str, float]] = {}
    if rival:
        for size in SIZES:
            found |= measure(rival, ours.VGG16, size, args.rounds, device)
    absent = [] if rival else [rivals.NO_PYTORCH_FCN]
    measuring.report(f"FCN-8s on VGG16, SGD with momentum; {device}", found, args.json, not_measured=absent)


if __name__ == "__main__":
    main()
