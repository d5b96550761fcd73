"""Whether an exported file computes what its checkpoint does, measured on generated images of many sizes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from fcnlab.errors import UserError
from fcnlab.publication.exported_program import size_refused

SIZES = 20
RANGE = 224  # pixels: sides are from the smallest to this many more
STATIC_IMAGES = 3
TOLERANCE = 1e-4  # of the largest score; rounding in single precision is below 1e-5
Computed = Callable[[Tensor], tuple[Tensor, Tensor]]  # images in bytes to class map and scores


class Parity(NamedTuple):
    """How far a file and its checkpoint agree.

    ``equal`` is the share of pixels with the same class, ``largest_difference`` that of scores, and ``largest_margin``
    the largest gap between the two classes' scores at a pixel with different classes. ``largest_score`` is the largest
    absolute score, to compare them with.
    """

    images: int
    sizes: int
    pixels: int
    equal: float
    largest_difference: float
    largest_margin: float
    largest_score: float

    @property
    def tolerance(self) -> float:
        return TOLERANCE * self.largest_score

    @property
    def is_good(self) -> bool:
        """Whether the scores differ by rounding only, and the classes only where two scores are equal but for that."""
        return self.largest_difference <= self.tolerance and self.largest_margin <= 2 * self.tolerance

    def __str__(self) -> str:
        return (
            f"{100 * self.equal:.{4 if self.equal < 1 else 0}f} % of {self.pixels:,} pixels have the same class on"
            f" {self.images} images of {self.sizes} size{'s' * (self.sizes > 1)}; the largest difference of two scores"
            f" is {self.largest_difference:.2g}, and the largest score {self.largest_score:.3g}"
        )


def sizes_to_compare(smallest: int) -> list[tuple[int, int, int]]:
    """Return batch, rows and columns of 20 sizes, the smallest one first; the same ones each time.

    Some are multiples of 64 pixels: code that pads to a multiple often takes another way there.
    """
    random, even = np.random.default_rng(0), 64 * -(-smallest // 64)
    round_sizes = [(even, even + 64), (even + 128, even + 64), (even + 192, even + 192)]
    others = random.integers(smallest, smallest + RANGE, (SIZES - 1 - len(round_sizes), 2)).tolist()
    sizes = enumerate([*round_sizes, *others])
    return [(1, smallest, smallest), *((1 + place % 2, rows, cols) for place, (rows, cols) in sizes)]


def static_sizes(rows: int, cols: int) -> list[tuple[int, int, int]]:
    """Return batch, rows and columns of the images for a program of one size."""
    return [(1, rows, cols)] * STATIC_IMAGES


def images_to_compare(sizes: Sequence[tuple[int, int, int]]) -> list[UInt8[Tensor, "batch 3 rows cols"]]:
    """Return noise on coloured squares of 16 pixels: edges and areas, in all colours."""
    random = np.random.default_rng(1)
    return [torch.from_numpy(_image(random, *size)) for size in sizes]


def _image(random: np.random.Generator, batch: int, rows: int, cols: int) -> UInt8[np.ndarray, "batch 3 rows cols"]:
    squares = random.integers(0, 256, (batch, 3, -(-rows // 16), -(-cols // 16)))
    image = squares.repeat(16, axis=2).repeat(16, axis=3)[:, :, :rows, :cols]
    return (image + random.normal(0, 20, image.shape)).clip(0, 255).astype(np.uint8)


def measure(expected: Computed, actual: Computed, images: Sequence[UInt8[Tensor, "batch 3 rows cols"]]) -> Parity:
    """Compare two ways to compute class map and scores.

    Raises
    ------
    UserError
        An expected score is not finite.
    """
    pixels = equal = 0
    difference = margin = largest = 0.0
    for image in images:
        classes, scores = expected(image)
        try:
            own_classes, own_scores = actual(image)
        except AssertionError as error:
            raise size_refused(image.shape[2:], error) from error
        if not scores.isfinite().all():
            raise UserError("the checkpoint computes scores that are not finite, so there is nothing to export")
        if own_scores.shape != scores.shape or own_classes.shape != classes.shape:
            raise UserError(f"the exported file returns scores of {tuple(own_scores.shape)}, not {tuple(scores.shape)}")
        same = classes == own_classes
        pixels, equal = pixels + same.numel(), equal + int(same.sum())
        difference = max(difference, _largest(scores - own_scores))
        margin = max(margin, _margin(scores, classes, own_classes))
        largest = max(largest, _largest(scores))
    return Parity(
        images=sum(map(len, images)),
        sizes=len({image.shape[2:] for image in images}),
        pixels=pixels,
        equal=equal / pixels,
        largest_difference=difference,
        largest_margin=margin,
        largest_score=largest,
    )


def _largest(values: Tensor) -> float:
    """Return the largest absolute value; infinity where one is not a number, since no comparison holds for it."""
    return float(values.nan_to_num(nan=torch.inf).abs().max())


def _margin(
    scores: Float[Tensor, "batch classes rows cols"],
    classes: Integer[Tensor, "batch rows cols"],
    own_classes: Integer[Tensor, "batch rows cols"],
) -> float:
    """Return the largest difference of the scores of both classes; infinity where there is no such class."""
    if int(own_classes.max()) >= scores.shape[1]:
        return torch.inf
    chosen, own = (scores.gather(1, each.long()[:, None]) for each in (classes, own_classes))
    return float((chosen - own).abs().max())
