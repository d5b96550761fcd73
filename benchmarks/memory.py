"""Peak memory of training FCN-8s on VGG16, four images of 321x321, against pytorch-fcn.

python benchmarks/memory.py                some two minutes; Linux, on a CPU

Two steps (step.py's) in a process for each variant: the peak of its resident set, over what was held once everything
was imported. Weights, gradients and momentum, 1.5 GiB, are in it.
"""

import measuring  # first: it sets what the libraries read when they are loaded  # isort: skip

import platform
from collections.abc import Callable, Sequence

import torch

import ours
import rivals
from step import Size, Step, our_steps, their_step

SIZE = Size(4, 321, 321)
THEIRS = "pytorch-fcn, fp32"
VARIANTS = (THEIRS, "fcnlab, fp32", "fcnlab, bf16")


def step(rival: rivals.PyTorchFCN, variant: str, words: Sequence[str], size: Size) -> Step:
    """Return a training step of a variant."""
    device = torch.device("cpu")
    return their_step(rival, size, device) if variant == THEIRS else our_steps(words, size, device)[variant]


def peak(rival: rivals.PyTorchFCN, variant: str, words: Sequence[str], size: Size) -> float:
    """Return the peak memory of a variant in MiB, in a fresh process."""

    def two_steps() -> None:
        once = step(rival, variant, words, size)
        for number in range(2):  # momentum exists after the first step
            once(number)

    ours.composed(*words)  # imports count for neither
    return measuring.peak_mib(two_steps)


def measure(memory: Callable[[str], float]) -> dict[str, dict[str, float]]:
    """Return how many times less memory fcnlab takes; ``memory`` returns the MiB of a variant."""
    found = {name: memory(name) for name in VARIANTS}
    return {name: {"ratio": round(found[THEIRS] / mib, 3), "MiB": round(mib)} for name, mib in found.items()}


def main() -> None:
    args = measuring.options(__doc__, variant="")
    measuring.on_cores(args.threads)
    rival = rivals.pytorch_fcn()
    if rival and args.variant:
        print(peak(rival, args.variant, ours.VGG16, SIZE))
        return
    absent = [] if rival else [rivals.NO_PYTORCH_FCN]
    if platform.system() != "Linux":
        absent.append("anything: peaks are read from Linux's /proc")
    found = {} if absent else measure(lambda name: measuring.in_child(__file__, name, args.threads))
    title = f"Two steps of {SIZE.images} x {SIZE.rows}x{SIZE.cols}, SGD with momentum; cpu"
    measuring.report(title, found, args.json, "times less memory", absent)


if __name__ == "__main__":
    main()
