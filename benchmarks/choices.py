"""Each optimisation of speed=auto against speed=off.

python benchmarks/choices.py               about two minutes and 6 GB; minutes more with --compiled 1 (torch.compile)

Memory formats: forward and backward pass of FCN-8s in training, by backbone; auto uses the faster format. Fused
optimisers: a step over the weights of FCN-8s on GoogLeNet. Row blocks: a loss with its gradient, and predictions, at
stride 8. The results are equal up to rounding, which tests check.
"""

import measuring  # first: it sets what the libraries read when they are loaded  # isort: skip

from collections.abc import Callable

import torch
from torch import nn

import ours
from fcnlab.models import FCN, CoarseScores, FeatureMap, Grid, Upsample
from fcnlab.models.geometry import IMAGE
from fcnlab.training.losses import CrossEntropy
from fcnlab.training.segmenter import class_map

IMAGES = {"tiny": 8}  # in a batch; 2 of the others
SIDE, CLASSES = 256, 21
BACKBONES = ("tiny", "caffenet", "alexnet", "googlenet", "googlenet_bn", "resnet50", "vgg16", "vgg16_bn")
Found = dict[str, dict[str, float]]
Step = Callable[[int], object]


def net_on(backbone: str, device: torch.device) -> FCN:
    words = (f"model/backbone={backbone}", "model.backbone.weights=none")
    return ours.build(*words, device=device).segmenter.net.train()


def passes(net: FCN, image: torch.Tensor) -> Step:
    """Return a forward and backward pass, up to the coarse scores."""

    def once(number: int) -> None:
        net.zero_grad()
        net.fused(image).data.sum().backward()

    return once


def memory_formats(backbone: str, rounds: int, device: torch.device) -> Found:
    image = torch.rand(IMAGES.get(backbone, 2), 3, SIDE, SIDE, device=device)
    variants = {}
    for name, kept in (("off", torch.contiguous_format), ("channels last", torch.channels_last)):
        variants[name] = passes(net_on(backbone, device).to(memory_format=kept), image.contiguous(memory_format=kept))
    return against_off(variants, rounds, device, f"{backbone}, forward and backward", len(image))


def compiled(backbone: str, rounds: int, device: torch.device) -> Found:
    image = torch.rand(IMAGES.get(backbone, 2), 3, SIDE, SIDE, device=device)
    image = image.contiguous(memory_format=torch.channels_last)
    nets = {name: net_on(backbone, device).to(memory_format=torch.channels_last) for name in ("off", "compiled")}
    assert isinstance(nets["compiled"].backbone, nn.Module)
    nets["compiled"].backbone.compile()
    variants = {name: passes(net, image) for name, net in nets.items()}
    return against_off(variants, rounds, device, f"{backbone}, forward and backward, channels last", len(image))


def optimisers(name: str, rounds: int, device: torch.device) -> Found:
    variants = {}
    for variant, fused in (("off", "false"), ("fused", "true")):
        words = (f"optim={name}", f"optim.fused={fused}", "model/backbone=googlenet", "model.backbone.weights=none")
        built = ours.build(*words, device=device)
        for parameter in built.segmenter.net.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
        optimizer = built.optimizer()
        variants[variant] = lambda number, optimizer=optimizer: optimizer.step()
    return against_off(variants, 5 * rounds, device, f"{name}, 6 million weights", 1)


def rows(images: int, side: int, rounds: int, device: torch.device) -> Found:
    grid, loss = Grid(8, 3.5), CrossEntropy()
    data = torch.randn(images, CLASSES, side // 8, side // 8, device=device, requires_grad=True)
    target = torch.randint(CLASSES, (images, side, side), dtype=torch.uint8, device=device)
    image = FeatureMap(torch.empty(images, 3, side, side, device="meta"), *IMAGE)
    scores = CoarseScores(FeatureMap(data, *grid), Upsample(CLASSES, grid, IMAGE), image)

    @torch.inference_mode()
    def best(scores: Callable[[], object]) -> None:
        class_map(scores())

    losses = {
        "off": lambda number: loss(scores.full(), target.long()).backward(),
        "rows": lambda number: loss(scores, target).backward(),
    }
    found = {"off": lambda number: best(scores.full), "rows": lambda number: best(lambda: scores)}
    title = f"{images} x {side}x{side}"
    return against_off(losses, 3 * rounds, device, f"loss and gradient, {title}", images) | against_off(
        found, 3 * rounds, device, f"predictions, {title}", images
    )


def against_off(variants: dict[str, Step], rounds: int, device: torch.device, title: str, items: int) -> Found:
    times = measuring.in_turns(variants, rounds, measuring.clock(device))
    found = measuring.summary(times, "off", items)
    return {f"{title}: {name}": row for name, row in found.items() if name != "off"}


def main() -> None:
    args = measuring.options(__doc__, rounds=3, compiled=0)
    measuring.on_cores(args.threads)
    device = measuring.chosen_device(args.device)
    torch.manual_seed(0)
    found: Found = {}
    for backbone in BACKBONES:
        found |= memory_formats(backbone, args.rounds, device)
    for name in ("adamw", "sgd"):
        found |= optimisers(name, args.rounds, device)
    for images, side in ((1, 384), (4, 512)):
        found |= rows(images, side, args.rounds, device)
    for backbone in ("tiny", "googlenet") if args.compiled else ():
        found |= compiled(backbone, args.rounds, device)
    measuring.report(f"Each choice of speed=auto against speed=off; {device}", found, args.json)


if __name__ == "__main__":
    main()
