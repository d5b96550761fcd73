"""Evaluation of an image by an ensemble of networks (fcnlab eval checkpoint=[A,B]) against one network.

python benchmarks/ensemble.py              a minute; more --rounds for a smaller spread

An evaluation step, from an image of 375x500 pixels to its confusion matrix, by FCN-8s on GoogLeNet with random weights.
The memory is the peak of building the networks and of a step, in a process of its own; Linux, on a CPU.
"""

import measuring  # first: it sets what the libraries read when they are loaded  # isort: skip

import platform
from collections.abc import Callable, Sequence

import torch

import ours
from fcnlab.metrics.confusion import ImageConfusions
from fcnlab.training.segmenter import Segmenter
from fcnlab.training.speed import evaluation_speed

GOOGLENET = ("model/backbone=googlenet", "model.backbone.weights=none", "trainer=cpu")
CLASSES, SIZES = 21, (1, 2, 3, 5)


def evaluation(words: Sequence[str], networks: int) -> Callable[[int], torch.Tensor]:
    """Return an evaluation step of an ensemble; the result is the confusion matrix of its image."""
    cfg = ours.composed(*words)
    first, *others = (ours.net_of(cfg).eval() for _ in range(networks))
    segmenter = Segmenter(first, ["class"] * CLASSES, ensemble=others, **evaluation_speed(cfg, first)).eval()
    batch = ours.batch(1, 375, 500, torch.device("cpu"))

    @torch.inference_mode()
    def once(number: int) -> torch.Tensor:
        segmenter.confusions = ImageConfusions(1, CLASSES)
        segmenter._step(batch, "test")
        return segmenter.confusions.matrices[0]

    return once


def peak(words: Sequence[str], networks: int) -> float:
    """Return the memory of an ensemble and of a step in MiB, at its peak, in a fresh process."""
    ours.composed(*words)  # imports do not count
    return measuring.peak_mib(lambda: evaluation(words, networks)(0))


def measure(words: Sequence[str], rounds: int, memory: Callable[[str], float] | None) -> dict[str, dict[str, float]]:
    """Return the speed relative to one network, and the memory in MiB if ``memory`` returns that of a variant."""
    titles = {number: f"{number} network{'s'[: number > 1]}" for number in SIZES}
    steps = {title: evaluation(words, number) for number, title in titles.items()}
    found = measuring.summary(measuring.in_turns(steps, rounds), titles[1], items=1)
    for number, title in titles.items():
        found[title] |= {"MiB": round(memory(str(number)))} if memory else {}
    return found


def main() -> None:
    args = measuring.options(__doc__, rounds=5, variant="")
    measuring.on_cores(args.threads)
    torch.manual_seed(0)
    if args.variant:
        print(peak(GOOGLENET, int(args.variant)))
        return
    is_linux = platform.system() == "Linux"
    memory = (lambda networks: measuring.in_child(__file__, networks, args.threads)) if is_linux else None
    absent = [] if is_linux else ["memory: peaks are read from Linux's /proc"]
    title = "Evaluation of an image of 375x500, FCN-8s on GoogLeNet; cpu"
    measuring.report(title, measure(GOOGLENET, args.rounds, memory), args.json, not_measured=absent)


if __name__ == "__main__":
    main()
