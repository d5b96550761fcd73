"""The interval over images of one run's mean IoU."""

import math
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from numpy import ndarray

from fcnlab.comparison.intervals import FEW_CLASS_IMAGES, draws, mean_iou
from fcnlab.comparison.runs import Unusable, read_confusions
from fcnlab.comparison.score_intervals import miou_interval
from fcnlab.files.reading import Unreadable

CONFUSIONS = "confusions.npz"
RESAMPLES = 1000  # enough for a view: the ends move by a tenth of the interval's width with other random numbers
CONFIDENCE = 0.95
MOST_IMAGES = 50_000  # whose resamples have 200 MB


class ScoreInterval(NamedTuple):
    """The ends of a percentile interval of a mean IoU, and the number of images."""

    low: float
    high: float
    images: int


def score_interval(folder: Path, miou: float) -> ScoreInterval | str:
    """Return the interval over images of the mean IoU that a run has recorded, or why there is none.

    It is about other images only: another seed would give another score.
    """
    try:
        _, _, areas, _ = read_confusions(folder)
    except (OSError, Unreadable, Unusable, TypeError, ValueError):
        return f"{CONFUSIONS} cannot be used"
    images = len(areas.intersection)
    computed = float(mean_iou(areas.intersection.sum(axis=0), areas.union.sum(axis=0)))
    if images > MOST_IMAGES:
        return f"more than {MOST_IMAGES:,} images"
    if not math.isclose(computed, miou):
        return f"{CONFUSIONS} belongs to another score"
    found = miou_interval(areas, _draws(images), CONFIDENCE)
    return (
        ScoreInterval(*found, images) if found else f"fewer than {FEW_CLASS_IMAGES} images contain one of its classes"
    )


@lru_cache(maxsize=2)
def _draws(images: int) -> Float[ndarray, "resamples images"]:
    return draws(images, RESAMPLES)
