"""The memory that a training is expected to take before it starts, beside what it took: a process for each net.

python benchmarks/expecting.py            some two minutes

Two steps on a CPU; what counts is by how much the process's resident memory grew at most, and the weights.
"""

import measuring  # first: it sets what the libraries read when they are loaded  # isort: skip

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch
from torch import nn

from fcnlab.losses import CrossEntropy
from fcnlab.models import FCN, VGG16, GoogLeNet, Tiny
from fcnlab.optim import adamw, constant, sgd
from fcnlab.segmenter import Segmenter
from fcnlab.tasks.expecting import Took, blank_batch, training_memory

CASES: dict[str, tuple[Callable[..., nn.Module], Callable, tuple[int, int, int]]] = {
    "tiny, 1 picture of 160x160, adamw": (Tiny, adamw, (1, 160, 160)),
    "tiny, 16 of 160x160, adamw": (Tiny, adamw, (16, 160, 160)),
    "googlenet, 1 of 320x320, adamw": (GoogLeNet, adamw, (1, 320, 320)),
    "googlenet, 4 of 320x320, adamw": (GoogLeNet, adamw, (4, 320, 320)),
    "vgg16, 1 of 256x256, sgd": (VGG16, sgd, (1, 256, 256)),
    "vgg16, 4 of 256x256, sgd": (VGG16, sgd, (4, 256, 256)),
}


def took(name: str, steps: int) -> dict[str, float]:
    backbone, optimizer, shape = CASES[name]
    net = FCN(backbone(), 21, (32, 16, 8))
    segmenter = Segmenter(net, [str(each) for each in range(21)], CrossEntropy(), partial(optimizer, lr=1e-3), constant)
    expected = training_memory(segmenter, shape).total
    measured = Took(torch.device("cpu"), net)
    train(segmenter, shape, steps)
    peak = measured.peak()
    return {
        "ratio": round(peak / expected, 3),
        "expected_mib": round(expected / 2**20),
        "took_mib": round(peak / 2**20),
    }


def train(segmenter: Segmenter, shape: tuple[int, int, int], steps: int) -> None:
    """In Lightning's order: the last gradients are dropped behind the forward pass."""
    assert segmenter.make_optimizer
    optimizer, batch = segmenter.make_optimizer(segmenter.net), blank_batch(*shape, "cpu")
    for _ in range(steps):
        loss = segmenter.train()._step(batch, "train")["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    asked = measuring.options(__doc__, steps=2)
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        found = dict(zip(CASES, pool.map(partial(took, steps=asked.steps), CASES), strict=True))
    measuring.report("Memory of a training, FCN-8s", found, asked.json, against="took / expected")


if __name__ == "__main__":
    main()
