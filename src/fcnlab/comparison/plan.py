"""Plan a comparison from a pilot: which difference would be found with how many seeds and images?"""

from collections.abc import Sequence
from typing import NamedTuple

from fcnlab.comparison.design import Level, detectable_difference, with_numbers
from fcnlab.comparison.intervals import FEWEST_IMAGES, FEWEST_SEEDS
from fcnlab.comparison.pairs import Pair
from fcnlab.comparison.two_factor import TwoFactor
from fcnlab.errors import UserError

SEEDS = (3, 5, 10, 20)
IMAGE_RATIOS = (1, 2, 4)  # of the images of the pilot


class Plan(NamedTuple):
    """The differences in mIoU, in 0..1, that are found with a probability of 80 %, by number of seeds and of images."""

    pair: Pair
    seeds: tuple[int, ...]
    images: tuple[int, ...]
    detectable: list[list[float]]


def plans(pairs: Sequence[Pair]) -> list[Plan]:
    """Return a plan for each pair of a pilot that has enough seeds and images.

    Raises
    ------
    UserError
        No pair has three seeds of each group, and 30 images.
    """
    made = [_plan(pair, pair.two_factor) for pair in pairs if pair.two_factor]
    if not made:
        raise UserError(
            f"plan=true needs a pilot of two groups with at least {FEWEST_SEEDS} seeds each, whose scores differ, on at"
            f" least {FEWEST_IMAGES} images: train one with fcnlab train -m model=A,B seed=1,2,3, or set plan=false"
        )
    return made


def _plan(pair: Pair, pilot: TwoFactor) -> Plan:
    detectable = [
        [
            detectable_difference(
                with_numbers(pilot, seeds=seeds, image_ratio=ratio), Level(pair.alpha, pair.comparisons)
            )
            for ratio in IMAGE_RATIOS
        ]
        for seeds in SEEDS
    ]
    return Plan(pair, SEEDS, tuple(ratio * pair.images for ratio in IMAGE_RATIOS), detectable)
