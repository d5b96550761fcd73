"""How often classes are, and the weights of a loss that make up for it."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from numpy import ndarray

from fcnlab.metrics.scores import IGNORE_INDEX

ClassVector = Int64[ndarray, " classes"]
Weights = Float[ndarray, " classes"]


@dataclass(frozen=True)
class Frequencies:
    """Pixels and images of a set, counted.

    Attributes
    ----------
    pixels
        Of each class.
    images
        That hold some of it.
    area
        Pixels of these images, those of void left out.
    void
        Pixels of void in the whole set.
    voided
        Images that hold some void.
    """

    pixels: ClassVector
    images: ClassVector
    area: ClassVector
    ignore_index: int
    voided: int

    @property
    def share(self) -> Float[ndarray, " classes"]:
        """Of all pixels that are not void, 0 to 1."""
        return self.pixels / max(1, self.pixels.sum())

    @property
    def void_share(self) -> float:
        """Of all pixels, 0 to 1."""
        return self.ignore_index / max(1, self.ignore_index + int(self.pixels.sum()))


def frequencies(labels: Iterable[Int64[ndarray, " 256"]], classes: int) -> Frequencies:
    """From the pixels of each label in each image, 255 being void."""
    counts = np.array(list(labels), np.int64).reshape(-1, 256)
    known = counts[:, :classes]
    present = known > 0
    return Frequencies(
        pixels=known.sum(0),
        images=present.sum(0),
        area=(present * known.sum(1, keepdims=True)).sum(0),
        ignore_index=int(counts[:, IGNORE_INDEX].sum()),
        voided=int((counts[:, IGNORE_INDEX] > 0).sum()),
    )


def median_frequency(found: Frequencies) -> Weights:
    """Median frequency over a class's own, that being its share of the images that hold it; 1 for an absent class.

    Eigen & Fergus, ICCV 2015, section 4.3.2; void counts in neither.
    """
    present = found.pixels > 0
    frequency = found.pixels[present] / found.area[present]
    weights = np.ones(len(present))
    weights[present] = np.median(frequency) / frequency if present.any() else 1
    return weights


def bounded_log(found: Frequencies) -> Weights:
    """1 / ln(1.02 + p) of a class's share p of all pixels, so between 1.4 and 50.5; 1 for an absent class.

    Paszke et al., ENet, 2016, section 5.2.
    """
    return np.where(found.pixels > 0, 1 / np.log(1.02 + found.share), 1.0)


WEIGHTINGS = {"median frequency": median_frequency, "bounded log": bounded_log}
