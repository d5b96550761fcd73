"""From coarse scores to the loss and back: upsampling x8 and cross-entropy against pytorch-fcn's operations.

python benchmarks/loss_head.py             about a minute

The rival is a dense transposed convolution (a parameter whose gradient is computed), the crop and ``cross_entropy2d``,
on coarse scores of our size; those of its own model are larger, so this is in its favour. Ours is fcnlab's code, with
the scores of every pixel (``speed.row_blocks=false``) and directly from the coarse scores. Losses and gradients must be
equal. Memory is the peak of the resident set minus its size before, each in its own process.
"""

import measuring  # first: it sets what the libraries read when they are loaded  # isort: skip

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import rivals
from fcnlab.models import CoarseScores, FeatureMap, Grid, Upsample
from fcnlab.models.geometry import IMAGE
from fcnlab.models.upsampling import bilinear_kernel
from fcnlab.training.losses import CrossEntropySum

CLASSES, IGNORE_INDEX, FACTOR = 21, 255, 8
GRID = Grid(FACTOR, (FACTOR - 1) / 2)  # VGG16's, padding=same
THEIRS, AT_ONCE, BY_ROWS = "pytorch-fcn's operations", "fcnlab, every pixel's scores", "fcnlab, from coarse scores"
Head = Callable[[], tuple[Tensor, Tensor]]  # the loss, and the gradient of the coarse scores


class Size(NamedTuple):
    """Of a batch."""

    images: int
    rows: int
    cols: int


SIZES = (Size(1, 375, 500), Size(4, 512, 512))


def heads(rival: rivals.PyTorchFCN, size: Size, device: torch.device) -> dict[str, Head]:
    """Return every variant, on the same scores and target."""
    generator = torch.Generator().manual_seed(0)
    cells = [-(-length // FACTOR) for length in size[1:]]
    coarse = torch.randn(size.images, CLASSES, *cells, generator=generator).to(device).requires_grad_()
    target = torch.randint(CLASSES, size, generator=generator).to(device)
    target[:, :20] = IGNORE_INDEX
    return {
        THEIRS: their_head(rival, coarse, target.where(target != IGNORE_INDEX, -1)),
        AT_ONCE: our_head(coarse, target, by_rows=False),
        BY_ROWS: our_head(coarse, target.to(torch.uint8), by_rows=True),
    }


def their_head(rival: rivals.PyTorchFCN, coarse: Tensor, target: Tensor) -> Head:
    dense = nn.ConvTranspose2d(CLASSES, CLASSES, 2 * FACTOR, stride=FACTOR, bias=False, device=coarse.device)
    kernel = bilinear_kernel(FACTOR, 2 * FACTOR).to(coarse.device)
    dense.weight.data = torch.eye(CLASSES, device=coarse.device)[:, :, None, None] * kernel
    first, (rows, cols) = FACTOR // 2, target.shape[1:]

    def once() -> tuple[Tensor, Tensor]:
        dense.weight.grad = coarse.grad = None
        scores = dense(coarse)[:, :, first : first + rows, first : first + cols].contiguous()
        return _backward(rival.cross_entropy(scores, target, size_average=False) / len(target), coarse)

    return once


def our_head(coarse: Tensor, target: Tensor, by_rows: bool) -> Head:
    loss, upsample = CrossEntropySum(), Upsample(CLASSES, GRID, IMAGE)
    image = FeatureMap(coarse.new_empty(1).expand(len(target), 3, *target.shape[1:]), *IMAGE)

    def once() -> tuple[Tensor, Tensor]:
        coarse.grad = None
        scores = CoarseScores(FeatureMap(coarse, *GRID), upsample, image)
        return _backward(loss(scores if by_rows else scores.full(), target), coarse)

    return once


def _backward(loss: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
    loss.backward()
    assert coarse.grad is not None
    return loss.detach(), coarse.grad


def check(found: dict[str, Head]) -> None:
    """Raise an AssertionError where a variant differs from pytorch-fcn's loss or gradient."""
    loss, gradient = found[THEIRS]()
    for head in found.values():
        torch.testing.assert_close(head()[0], loss, rtol=1e-4, atol=0)
        torch.testing.assert_close(head()[1], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())


def measure(
    rival: rivals.PyTorchFCN, size: Size, rounds: int, device: torch.device, memory: Callable[[str], float]
) -> dict[str, dict[str, float]]:
    """Return fcnlab's speed relative to pytorch-fcn; ``memory`` returns the MiB of a variant of this size."""
    found = heads(rival, size, device)
    check(found)
    variants: dict[str, Callable[[int], object]] = {
        name: (lambda number, head=head: head()) for name, head in found.items()
    }
    times = measuring.in_turns(variants, rounds, measuring.clock(device))
    rows = measuring.summary(times, THEIRS, size.images)
    extra = {name: memory(name) for name in rows}
    for name, row in rows.items():
        row |= {"extra_MiB": round(extra[name], 1), "times_less_memory": round(extra[THEIRS] / extra[name], 1)}
    return {f"{size.images} x {size.rows}x{size.cols}: {name}": row for name, row in rows.items()}


def extra_mib(rival: rivals.PyTorchFCN, variant: str) -> float:
    """Run a variant in its own process: "NUMBER/NAME" is the index of the size and the variant's name."""
    number, _, name = variant.partition("/")
    device = torch.device("cpu")
    heads(rival, Size(1, 32, 32), device)[name]()  # the first call loads libraries, which stay
    return measuring.peak_mib(heads(rival, SIZES[int(number)], device)[name])


def main() -> None:
    args = measuring.options(__doc__, rounds=8, variant="")
    measuring.on_cores(args.threads)
    device, rival = measuring.chosen_device(args.device), rivals.pytorch_fcn()
    if rival and args.variant:
        print(extra_mib(rival, args.variant))
        return
    found: dict[str, dict[str, float]] = {}
    for number, size in enumerate(SIZES if rival else ()):

        def memory(name: str, number: int = number) -> float:
            return measuring.in_child(__file__, f"{number}/{name}", args.threads)

        found |= measure(rival, size, args.rounds, device, memory)
    absent = [] if rival else [rivals.NO_PYTORCH_FCN]
    measuring.report(
        f"{CLASSES} classes, x{FACTOR}, forward and backward; {device}", found, args.json, not_measured=absent
    )


if __name__ == "__main__":
    main()
