"""A training step with batch normalisations and early layers frozen (model.frozen_norm, model.frozen_until).

python benchmarks/frozen.py                some four minutes; more --rounds for a smaller spread

FCN-8s on EfficientNet-Lite2 (timm's, random weights), a batch of four crops of 257x257, from uint8 to AdamW's new
weights. "not within convolutions" has the same frozen statistics in layers of their own, as torch's
evaluation mode has.
"""

import measuring  # first: it sets what the libraries read when they are loaded  # isort: skip

from collections.abc import Callable

import torch
from torch import nn

import ours

LITE2 = ("model/backbone=timm", "model.backbone.name=tf_efficientnet_lite2", "model.backbone.weights=none")
VARIANTS = {
    "nothing frozen": (),
    "frozen statistics, not within convolutions": (),
    "frozen_norm=true": ("model.frozen_norm=true",),
    "frozen_norm=true frozen_until=4": ("model.frozen_norm=true", "model.frozen_until=4"),
    "the same, channels_last=true": ("model.frozen_norm=true", "model.frozen_until=4", "speed.channels_last=true"),
}
IMAGES, SIDE = 4, 257


def training_step(title: str, device: torch.device) -> Callable[[int], None]:
    """Return a step of a variant."""
    built = ours.build(*LITE2, *VARIANTS[title], device=device)
    batch, optimizer = ours.batch(IMAGES, SIDE, SIDE, device), built.optimizer()
    built.segmenter.train()
    if "not within" in title:
        for module in built.segmenter.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    def once(number: int) -> None:
        optimizer.zero_grad()
        built.loss(batch).backward()
        optimizer.step()

    return once


def main() -> None:
    args = measuring.options(__doc__, rounds=5)
    measuring.on_cores(args.threads)
    device = measuring.chosen_device(args.device)
    torch.manual_seed(0)
    steps = {title: training_step(title, device) for title in VARIANTS}
    first = next(iter(VARIANTS))
    found = measuring.summary(measuring.in_turns(steps, args.rounds, measuring.clock(device)), first, IMAGES)
    measuring.report(f"FCN-8s on EfficientNet-Lite2, a training step; {device}", found, args.json)


if __name__ == "__main__":
    main()
