"""A loss: cross-entropy with label smoothing."""

import torch.nn.functional as F
from fcnlab.config.ranges import Fraction
from fcnlab.metrics.scores import IGNORE_INDEX
from fcnlab.training.losses import PixelLoss
from torch import Tensor


class Smoothed(PixelLoss):
    """The mean over the pixels that are not ignored; ``smoothing`` is the probability given to all classes alike."""

    def __init__(self, smoothing: Fraction = 0.1):
        super().__init__()
        self.smoothing = smoothing

    def total(self, scores: Tensor, target: Tensor) -> Tensor:
        settings = {"ignore_index": IGNORE_INDEX, "label_smoothing": self.smoothing, "reduction": "none"}
        return F.cross_entropy(scores, target, **settings).sum()

    def count(self, target: Tensor) -> Tensor:
        return (target != IGNORE_INDEX).sum()
