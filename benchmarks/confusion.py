"""Counting a picture's pixels by (truth, prediction): against numpy's bincount and torchmetrics.

python benchmarks/confusion.py             some 10 seconds

What is timed is the whole update of the metric, on the labels as they come from a net (int64) and from a mask (uint8).
"""

import measuring  # first: it sets what the libraries read when they are loaded  # isort: skip

import numpy as np
import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from fcnlab.data.shapes import draw
from fcnlab.metrics import PictureConfusions

CLASSES, VOID, PICTURES = 21, 255, 20
REFERENCE = "numpy's bincount"


def numpy_bincount(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """As the FCN repositories count (``fast_hist``)."""
    known = (truth >= 0) & (truth < CLASSES)
    cells = CLASSES * truth[known].astype(int) + prediction[known]
    return np.bincount(cells, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def pictures() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Masks of VOC's size, and predictions: the same shapes a little displaced, with some noise."""
    found = []
    for index in range(PICTURES):
        rng = np.random.default_rng(index)
        truth = draw(rng, 430)[1]
        prediction = np.roll(np.where(truth == VOID, 0, truth), (5, 5), (0, 1)).astype(np.int64)
        noise = rng.random(truth.shape) < 0.02
        prediction[noise] = rng.integers(0, CLASSES, noise.sum())
        found.append((torch.from_numpy(prediction)[None], torch.from_numpy(truth)[None]))
    return found


class Totals:
    """Each way's sum over all that it was given, so that they can be compared."""

    def __init__(self, rounds: int):
        self.pairs = [(*pair, pair[1].long()) for pair in pictures()]
        self.ours = PictureConfusions(rounds + 1, CLASSES)
        self.validated = MulticlassConfusionMatrix(CLASSES, ignore_index=VOID)
        self.unvalidated = MulticlassConfusionMatrix(CLASSES, ignore_index=VOID, validate_args=False)
        self.numpy = np.zeros((CLASSES, CLASSES), np.int64)
        self.places = iter(range(rounds + 1))  # the first is the one that is not timed

    def variants(self) -> dict:
        return {
            REFERENCE: self.count_by_numpy,
            "fcnlab": self.count_by_fcnlab,
            "torchmetrics, validated": lambda number: self._torchmetrics(self.validated, number),
            "torchmetrics, not validated": lambda number: self._torchmetrics(self.unvalidated, number),
        }

    def count_by_numpy(self, number: int) -> None:
        prediction, _, truth = self.pairs[number % PICTURES]
        self.numpy += numpy_bincount(truth.numpy(), prediction.numpy())

    def count_by_fcnlab(self, number: int) -> None:
        prediction, truth, _ = self.pairs[number % PICTURES]
        self.ours.update(prediction, truth, torch.tensor([next(self.places)]))

    def _torchmetrics(self, metric: MulticlassConfusionMatrix, number: int) -> None:
        prediction, _, truth = self.pairs[number % PICTURES]
        metric.update(prediction, truth)

    def check_equal(self) -> None:
        """All ways counted the same integers."""
        for found in (self.ours.compute()[1].sum(0), self.validated.compute(), self.unvalidated.compute()):
            np.testing.assert_array_equal(found.numpy(), self.numpy)


def measure(rounds: int) -> dict[str, dict[str, float]]:
    totals = Totals(rounds)
    times = measuring.in_turns(totals.variants(), rounds)
    totals.check_equal()
    return measuring.summary(times, REFERENCE, items=1)


def main() -> None:
    asked = measuring.options(__doc__, rounds=400)
    measuring.on_one_core()
    title = f"{asked.rounds} pictures of some 430x430, {CLASSES} classes, void; equal integers"
    measuring.report(title, measure(asked.rounds), REFERENCE, asked.json)


if __name__ == "__main__":
    main()
