"""The interval over images of one run's mean IoU."""

import math
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from numpy import ndarray

from fcnlab.comparison.intervals import draws, mean_iou
from fcnlab.comparison.runs import Unusable, read_confusions
from fcnlab.comparison.score_intervals import miou_interval
from fcnlab.files.reading import Unreadable

RESAMPLES = 1000  # enough for a view: the ends move by a tenth of the interval's width with other random numbers
CONFIDENCE = 0.95
MOST_IMAGES = 50_000  # whose resamples have 200 MB


class ScoreInterval(NamedTuple):
    """The ends of a percentile interval of a mean IoU, and the number of images."""

    low: float
    high: float
    images: int


def score_interval(folder: Path, miou: float) -> ScoreInterval | None:
    """Return the interval over images of the mean IoU that a run has recorded.

    It is about other images only: another seed would give another score. None if confusions.npz cannot be used, if it
    belongs to another score, or if a class is rare.
    """
    try:
        _, _, areas, _ = read_confusions(folder)
    except (OSError, Unreadable, Unusable, TypeError, ValueError):
        return None
    images = len(areas.intersection)
    computed = float(mean_iou(areas.intersection.sum(axis=0), areas.union.sum(axis=0)))
    if images > MOST_IMAGES or not math.isclose(computed, miou):
        return None
    found = miou_interval(areas, _draws(images), CONFIDENCE)
    return found and ScoreInterval(*found, images)


@lru_cache(maxsize=2)
def _draws(images: int) -> Float[ndarray, "resamples images"]:
    return draws(images, RESAMPLES)
