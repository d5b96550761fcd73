"""Evaluation of images in batches of equal size (data.eval_batch_size) against one by one.

python benchmarks/evaluation.py            a minute; more --rounds for a smaller spread

The time is that of an evaluation step: the model, the labels and the confusion matrices. The matrices must be equal,
except for pixels whose two best scores differ by rounding.
"""

import measuring  # first: it sets what the libraries read when they are loaded  # isort: skip

from collections.abc import Callable
from itertools import count

import torch

from fcnlab.metrics.confusion import ImageConfusions
from fcnlab.models import FCN
from fcnlab.models.googlenet import GoogLeNet
from fcnlab.models.tiny import Tiny
from fcnlab.training.segmenter import class_map

TOGETHER, SIZES = 8, (1, 2, 4, 8)


def evaluation(net: FCN, images: torch.Tensor, target: torch.Tensor, rounds: int, size: int) -> Callable[[int], object]:
    """Return an evaluation of all images in batches of ``size``."""
    confusions, places = ImageConfusions(TOGETHER * (rounds + 1), 21), count()

    @torch.inference_mode()
    def evaluate(number: int) -> None:
        for first in range(0, TOGETHER, size):
            part = slice(first, first + size)
            index = torch.tensor([next(places) for _ in range(size)])
            confusions.update(class_map(net(images[part].float() / 255)), target[part], index)

    return evaluate


def measure(net: FCN, rounds: int) -> dict[str, dict[str, float]]:
    images = torch.randint(256, (TOGETHER, 3, 375, 500), dtype=torch.uint8)
    target = torch.randint(21, (TOGETHER, 375, 500), dtype=torch.uint8)
    variants = {f"{size} at a time": evaluation(net.eval(), images, target, rounds, size) for size in SIZES}
    return measuring.summary(measuring.in_turns(variants, rounds), "1 at a time", TOGETHER)


def main() -> None:
    args = measuring.options(__doc__, rounds=2)
    measuring.on_cores(args.threads)
    torch.manual_seed(0)
    nets = {"tiny": FCN(Tiny(), 21, (32, 16, 8)), "googlenet": FCN(GoogLeNet(weights="none"), 21, (32, 16, 8))}
    found = {f"{name}, {how}": row for name, net in nets.items() for how, row in measure(net, args.rounds).items()}
    measuring.report("FCN-8s, images of 375x500, one core", found, args.json)


if __name__ == "__main__":
    main()
