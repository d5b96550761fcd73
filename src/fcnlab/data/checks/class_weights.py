"""Count class frequencies and compute class weights for a loss."""

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
    """Pixels and images of a data set by class.

    Attributes
    ----------
    pixels
        Pixels of each class.
    images
        Images that contain the class.
    area
        Pixels of these images, without ignored pixels.
    ignored_pixels
        Ignored pixels in the whole set.
    images_with_ignored
        Images with ignored pixels.
    """

    pixels: ClassVector
    images: ClassVector
    area: ClassVector
    ignored_pixels: int
    images_with_ignored: int

    @property
    def share(self) -> Float[ndarray, " classes"]:
        """Share of each class in all pixels that are not ignored, 0 to 1."""
        return self.pixels / max(1, self.pixels.sum())

    @property
    def ignored_share(self) -> float:
        """Share of ignored pixels in all pixels, 0 to 1."""
        return self.ignored_pixels / max(1, self.ignored_pixels + int(self.pixels.sum()))


def frequencies(labels: Iterable[Int64[ndarray, " 256"]], classes: int) -> Frequencies:
    """Return frequencies from the pixels of each label in each image; label 255 is ignored."""
    counts = np.array(list(labels), np.int64).reshape(-1, 256)
    known = counts[:, :classes]
    present = known > 0
    return Frequencies(
        pixels=known.sum(0),
        images=present.sum(0),
        area=(present * known.sum(1, keepdims=True)).sum(0),
        ignored_pixels=int(counts[:, IGNORE_INDEX].sum()),
        images_with_ignored=int((counts[:, IGNORE_INDEX] > 0).sum()),
    )


def median_frequency(counts: Frequencies) -> Weights:
    """Return the median frequency over the frequency of each class; 1 for an absent class.

    The frequency of a class is its share of the pixels of images that contain it, without ignored pixels (Eigen &
    Fergus, ICCV 2015, section 4.3.2).
    """
    present = counts.pixels > 0
    frequency = counts.pixels[present] / counts.area[present]
    weights = np.ones(len(present))
    weights[present] = np.median(frequency) / frequency if present.any() else 1
    return weights


def bounded_log(counts: Frequencies) -> Weights:
    """Return 1 / ln(1.02 + p) for the share p of each class in all pixels, 1.4 to 50.5; 1 for an absent class.

    Paszke et al., ENet, 2016, section 5.2.
    """
    return np.where(counts.pixels > 0, 1 / np.log(1.02 + counts.share), 1.0)


WEIGHTINGS = {"median frequency": median_frequency, "bounded log": bounded_log}
