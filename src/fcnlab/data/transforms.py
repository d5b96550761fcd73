"""Augmentation: what happens to a training image and its mask. The one file that imports albumentations.

It does so where a pipeline is made: evaluation and ``augment=none`` do without, and it takes a third of a second.
albumentations 2.0.8 is the last release under the MIT licence. It keeps a random state of its own, which forked workers
copy: two workers would draw the same crops, in every epoch again. So each sample gets its own seed here.
"""

import math
import os
import warnings
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from fcnlab.config.ranges import Degrees, Scales
from fcnlab.data.dataset import IGNORE_INDEX

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it looks for updates over the network when imported

# It only warns of an argument that it does not know, when a step is made: old ones would pad masks with background.
warnings.filterwarnings("error", r"Argument\(s\) .* are not valid", UserWarning)

FILL = (124, 116, 104)  # the padding's colour: ImageNet's mean, near zero behind every net's own normalisation

# How a step that resizes must take masks (``mask_interpolation=``): from the nearest pixel, where the image's bilinear
# interpolation has its centres. OpenCV's resize with INTER_NEAREST, the default here, rounds down instead: labels then
# lie up to a pixel beside what the image shows. Rotate and Affine, which warp, round by themselves and refuse this one.
NEAREST_WHEN_RESIZED = cv2.INTER_NEAREST_EXACT

Image = UInt8[ndarray, "rows cols 3"]
Mask = UInt8[ndarray, "rows cols"]
Crop = tuple[UInt8[ndarray, "crop_rows crop_cols 3"], UInt8[ndarray, "crop_rows crop_cols"]]


@runtime_checkable  # by make test-slow, which checks annotations
class Augment(Protocol):
    """The contract of an augmentation, of a user's own too: ``seed`` alone decides what is drawn.

    ``seed`` is a few whole numbers that name the sample: (run's seed, epoch, index). One that takes no smaller images
    says so by an attribute ``min_size``, as :class:`Augmentation` does.
    """

    def __call__(self, image: Image, mask: Mask, seed: Sequence[int]) -> Crop: ...


class Augmentation:
    """A pipeline that draws from the seed of the sample alone, not from the worker or from what it drew before.

    ``steps`` are albumentations' transforms; one that resizes needs ``mask_interpolation=NEAREST_WHEN_RESIZED``.
    ``min_size`` is the shorter side, in pixels, of the smallest image that they take.
    """

    def __init__(self, steps: Sequence[Any], min_size: int = 1):
        import albumentations as A

        self.min_size = min_size
        self.pipeline = A.Compose(list(steps))  # its mask_interpolation would replace that of each step

    def __call__(self, image: Image, mask: Mask, seed: Sequence[int]) -> Crop:
        self.pipeline.set_random_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        sample = self.pipeline(image=image, mask=mask)
        return sample["image"], sample["mask"]


def none(crop_size: int) -> None:
    """Whole images, unchanged: the papers' way; those of a batch are padded to the largest. No ``crop_size``."""
    return None


def patches(crop_size: int) -> Augmentation:
    """Crops around every pixel alike, those at the border too, and nothing else: for classifiers of patches."""
    import albumentations as A

    border = A.Pad(crop_size // 2, border_mode=cv2.BORDER_CONSTANT, fill=FILL, fill_mask=IGNORE_INDEX)
    return Augmentation([border, A.RandomCrop(crop_size, crop_size)])


def standard(crop_size: int, scale: Scales = (0.5, 2.0), colour: bool = True) -> Augmentation:
    """Scale, crop (padding what is too small), flip, and mild changes of colour."""
    import albumentations as A

    jitter = A.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.03, p=0.5)
    places = [_random_scale(scale), *_random_crop(crop_size), A.HorizontalFlip(p=0.5)]
    return Augmentation([*places, jitter] if colour else places, _smallest(scale))


def strong(crop_size: int, scale: Scales = (0.4, 2.5), rotate: Degrees = 15.0) -> Augmentation:
    """As standard, wider; with rotation (degrees either way), blur, grey and gamma."""
    import albumentations as A

    return Augmentation(
        [
            _random_scale(scale),
            A.Rotate(limit=rotate, border_mode=cv2.BORDER_CONSTANT, fill=FILL, fill_mask=IGNORE_INDEX, p=0.5),
            *_random_crop(crop_size),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
            A.RandomGamma(gamma_limit=(70, 140), p=0.3),
            A.GaussianBlur(blur_limit=(3, 5), p=0.2),
            A.ToGray(p=0.1),
        ],
        _smallest(scale),
    )


def _random_scale(scale: Sequence[float]) -> Any:
    import albumentations as A

    low, high = scale
    return A.RandomScale(
        scale_limit=(low - 1, high - 1),  # it adds 1
        interpolation=cv2.INTER_LINEAR,
        mask_interpolation=NEAREST_WHEN_RESIZED,
        p=1.0,
    )


def _smallest(scale: Sequence[float]) -> int:
    """The side in pixels that the least factor leaves a pixel of; albumentations cuts sizes off to whole pixels."""
    least = (scale[0] - 1) + 1  # as it comes to there
    side = math.ceil(1 / least)
    return side if int(side * least) else side + 1


def _random_crop(size: int) -> list[Any]:
    import albumentations as A

    padding = A.PadIfNeeded(
        size, size, border_mode=cv2.BORDER_CONSTANT, fill=FILL, fill_mask=IGNORE_INDEX, position="random"
    )
    return [padding, A.RandomCrop(size, size)]
