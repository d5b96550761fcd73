"""The confusion matrix of an image: against numpy's bincount and torchmetrics.

python benchmarks/confusion.py             some 10 seconds

The time is that of the whole update of the metric, on labels from a model (int64) and from a mask (uint8); rivals get
the mask as int64, which they require. Each rival is measured in turns with ours, with no other rival between.
"""

import measuring  # first: it sets what the libraries read when they are loaded  # isort: skip

from functools import partial

import numpy as np
import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from fcnlab.data.formats.shapes import draw
from fcnlab.metrics.confusion import ImageConfusions

CLASSES, IGNORE_INDEX = 21, 255
Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def numpy_bincount(target: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Count like the FCN repositories (``fast_hist``)."""
    known = (target >= 0) & (target < CLASSES)
    cells = CLASSES * target[known].astype(int) + prediction[known]
    return np.bincount(cells, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def images(number: int) -> Pairs:
    """Return masks of VOC's size, and predictions: the same shapes shifted slightly, with some noise."""
    found = []
    for index in range(number):
        rng = np.random.default_rng(index)
        target = draw(rng, 430)[1]
        prediction = np.roll(np.where(target == IGNORE_INDEX, 0, target), (5, 5), (0, 1)).astype(np.int64)
        noise = rng.random(target.shape) < 0.02
        prediction[noise] = rng.integers(0, CLASSES, noise.sum())
        found.append((torch.from_numpy(prediction)[None], torch.from_numpy(target)[None]))
    return found


class ByNumpy:
    def __init__(self):
        self.total = np.zeros((CLASSES, CLASSES), np.int64)

    def update(self, prediction: torch.Tensor, target: torch.Tensor) -> None:
        self.total += numpy_bincount(target.numpy(), prediction.numpy())

    def compute(self) -> torch.Tensor:
        return torch.from_numpy(self.total)


RIVALS = {
    "numpy's bincount": ByNumpy,
    "torchmetrics, validated": partial(MulticlassConfusionMatrix, CLASSES, ignore_index=IGNORE_INDEX),
    "torchmetrics, not validated": partial(
        MulticlassConfusionMatrix, CLASSES, ignore_index=IGNORE_INDEX, validate_args=False
    ),
}


def measure(rounds: int, pairs: Pairs) -> dict[str, dict[str, float]]:
    """Return fcnlab's speed relative to each other implementation; all must count the same integers."""
    found, batches = {}, [(prediction, target, target.long()) for prediction, target in pairs]
    for name, make in RIVALS.items():
        rival, ours = make(), ImageConfusions(len(pairs) * (rounds + 1), CLASSES)
        places = iter(torch.arange(len(pairs) * (rounds + 1))[:, None])

        def by_rival(number: int, rival=rival) -> None:
            for prediction, _, target in batches:
                rival.update(prediction, target)

        def by_ours(number: int, ours=ours, places=places) -> None:
            for prediction, target, _ in batches:
                ours.update(prediction, target, next(places))

        times = measuring.in_turns({name: by_rival, "fcnlab": by_ours}, rounds)
        np.testing.assert_array_equal(ours.compute()[1].sum(0), rival.compute())
        found[f"fcnlab, beside {name}"] = measuring.summary(times, name, items=len(pairs))["fcnlab"]
    return found


def main() -> None:
    args = measuring.options(__doc__, rounds=40)
    measuring.on_cores(args.threads)
    title = f"20 images of about 430x430, {CLASSES} classes, ignored pixels; {args.rounds} rounds; equal integers"
    measuring.report(title, measure(args.rounds, images(20)), args.json)


if __name__ == "__main__":
    main()
