"""Augmentation of training images and masks. This is the only file that imports albumentations.

It imports it only when a pipeline is built, because the import takes a third of a second, and evaluation and
``augment=none`` do not need it. albumentations 2.0.8 is the last release under the MIT licence. It has its own random
state, which forked workers copy, so that all workers and epochs would draw the same crops. So each sample has its own
seed here.
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

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # disable its check for updates on import

# albumentations only warns about unknown arguments; with outdated ones, it would pad masks with background.
warnings.filterwarnings("error", r"Argument\(s\) .* are not valid", UserWarning)

FILL = (124, 116, 104)  # colour of padding: ImageNet's mean, close to zero after normalisation

# The ``mask_interpolation=`` of steps that resize: the nearest pixel at the centres of the image's bilinear
# interpolation. OpenCV's INTER_NEAREST, albumentations' default, rounds down instead, which shifts labels by up to a
# pixel. Rotate and Affine, which warp, round correctly and do not support this value.
NEAREST_WHEN_RESIZED = cv2.INTER_NEAREST_EXACT

Image = UInt8[ndarray, "rows cols 3"]
Mask = UInt8[ndarray, "rows cols"]
Crop = tuple[UInt8[ndarray, "crop_rows crop_cols 3"], UInt8[ndarray, "crop_rows crop_cols"]]


@runtime_checkable  # for make test-slow, which checks annotations
class Augment(Protocol):
    """The interface of augmentations, also of the user's own: random numbers depend only on ``seed``.

    ``seed`` contains integers that identify the sample: (seed of the run, epoch, index). An optional attribute
    ``min_size`` is the minimum image size, as in :class:`Augmentation`.
    """

    def __call__(self, image: Image, mask: Mask, seed: Sequence[int]) -> Crop: ...


class Augmentation:
    """A pipeline whose random numbers depend only on the seed of the sample, not on the worker or earlier samples.

    ``steps`` are albumentations' transforms; those that resize need ``mask_interpolation=NEAREST_WHEN_RESIZED``.
    ``min_size`` is the minimum of the shorter image side in pixels.
    """

    def __init__(self, steps: Sequence[Any], min_size: int = 1):
        import albumentations as A

        self.min_size = min_size
        self.pipeline = A.Compose(list(steps))  # its own mask_interpolation would override that of each step

    def __call__(self, image: Image, mask: Mask, seed: Sequence[int]) -> Crop:
        self.pipeline.set_random_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        sample = self.pipeline(image=image, mask=mask)
        return sample["image"], sample["mask"]


def none(crop_size: int) -> None:
    """Return None: whole, unchanged images as in the papers, padded to the largest of a batch."""
    return None


def patches(crop_size: int) -> Augmentation:
    """Return random crops only, also around border pixels with equal probability, for patch classifiers."""
    import albumentations as A

    border = A.Pad(crop_size // 2, border_mode=cv2.BORDER_CONSTANT, fill=FILL, fill_mask=IGNORE_INDEX)
    return Augmentation([border, A.RandomCrop(crop_size, crop_size)])


def standard(crop_size: int, scale: Scales = (0.5, 2.0), colour: bool = True) -> Augmentation:
    """Return random scale, crop (with padding), flip, and mild changes of colour."""
    import albumentations as A

    jitter = A.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.03, p=0.5)
    places = [_random_scale(scale), *_random_crop(crop_size), A.HorizontalFlip(p=0.5)]
    return Augmentation([*places, jitter] if colour else places, _smallest(scale))


def strong(crop_size: int, scale: Scales = (0.4, 2.5), rotate: Degrees = 15.0) -> Augmentation:
    """Return a stronger variant of ``standard`` with rotation (± degrees), blur, grey and gamma."""
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
    """Return the smallest side that keeps a pixel at the smallest scale; albumentations rounds sizes down."""
    least = (scale[0] - 1) + 1  # rounded as in albumentations
    side = math.ceil(1 / least)
    return side if int(side * least) else side + 1


def _random_crop(size: int) -> list[Any]:
    import albumentations as A

    padding = A.PadIfNeeded(
        size, size, border_mode=cv2.BORDER_CONSTANT, fill=FILL, fill_mask=IGNORE_INDEX, position="random"
    )
    return [padding, A.RandomCrop(size, size)]
