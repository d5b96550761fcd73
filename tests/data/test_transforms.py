"""Augmentation moves image and mask together, pads with ignored pixels, and depends on the sample's key only."""

import runpy
import warnings
from functools import partial

import albumentations as A
import cv2
import numpy as np
import pytest

from fcnlab.data import transforms
from fcnlab.data.transforms import FILL, Augmentation, none, patches, standard, strong

AUGMENTS = [standard, strong]
KEYS = [(0, 0, index) for index in range(20)]


@pytest.fixture
def sample():
    """A random image and mask of 30x40."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (30, 40, 3), np.uint8), rng.choice(np.array([3, 17, 255], np.uint8), (30, 40))


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("shape", [(5, 7), (30, 40), (9, 120), (150, 100)])
def test_samples_have_the_crop_size(augment, shape):
    for key in KEYS[:5]:
        image, mask = augment(32)(np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8), key)
        assert image.shape == (32, 32, 3) and mask.shape == (32, 32) and image.dtype == mask.dtype == np.uint8


@pytest.mark.parametrize("augment", AUGMENTS)
def test_masks_get_no_new_labels(augment, sample):
    labels = [set(np.unique(augment(32)(*sample, key)[1])) for key in KEYS]
    assert set.union(*labels) == {3, 17, 255}


@pytest.mark.parametrize("augment", AUGMENTS)
def test_padding_is_ignored_and_has_one_colour(augment):
    """Colour changes follow the padding, so only some samples have exactly this colour."""
    white = np.full((20, 20, 3), 255, np.uint8), np.ones((20, 20), np.uint8)
    options = {"rotate": 0} if augment is strong else {}
    pipeline, colours = augment(64, scale=(0.5, 0.5), **options), set()
    for key in KEYS:
        image, mask = pipeline(*white, key)
        assert (mask == 1).sum() == 10 * 10 and (mask == 255).sum() == 64**2 - 10**2
        colours.add(tuple(np.median(image[mask == 255], axis=0)))
    assert FILL in colours


def test_rotation_fills_with_ignored_pixels():
    full = np.zeros((40, 40, 3), np.uint8), np.ones((40, 40), np.uint8)
    masks = [strong(40, scale=(1, 1), rotate=45)(*full, key)[1] for key in KEYS]
    assert set.union(*(set(np.unique(mask)) for mask in masks)) == {1, 255}


@pytest.mark.parametrize("augment", AUGMENTS)
def test_image_and_mask_move_together(augment):
    mask = np.zeros((60, 80), np.uint8)
    mask[10:35, 5:30] = mask[40:55, 50:75] = 1
    image = np.repeat(mask[..., None] * 255, 3, axis=2)
    for key in KEYS:
        moved, labels = augment(64)(image, mask, key)
        bright, known = moved.mean(axis=2) > 90, labels != 255  # brightness is at least 0.6 of the original
        assert (bright == labels)[known].mean() > 0.95


@pytest.mark.parametrize("augment", AUGMENTS)
def test_samples_depend_on_the_key_only(augment, sample):
    def draw(pipeline, key):
        return b"".join(part.tobytes() for part in pipeline(*sample, key))

    used = augment(32)
    drawn = {key: draw(used, key) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]}
    assert len(set(drawn.values())) == len(drawn)
    assert all(draw(augment(32), key) == drawn[key] == draw(used, key) for key in drawn)


@pytest.mark.parametrize(("factor", "pixels"), [(0.5, 15 * 20), (1, 30 * 40), (2, 60 * 80)])
def test_scale_is_a_factor(factor, pixels):
    """albumentations uses an offset from 1 instead."""
    image = np.zeros((30, 40, 3), np.uint8), np.ones((30, 40), np.uint8)
    assert (standard(99, scale=(factor, factor))(*image, KEYS[0])[1] == 1).sum() == pixels


def lags(step, length: int) -> np.ndarray:
    """Return the distance in source pixels between each label and its image pixel, over some draws of a step.

    Image and mask contain the column (and, transposed, the row) of each pixel; the interpolated image has fractions.
    Pixels near the padding and the border are left out, since they blend with the fill colour.
    """
    places = np.broadcast_to(np.arange(length), (length, length))
    pipeline, distances = Augmentation([step]).pipeline, []
    for source in (places, places.T):
        image, mask = np.repeat(source[..., None], 3, 2).astype(np.float32), source.astype(np.uint8)
        for seed in range(20):
            pipeline.set_random_seed(seed)  # used directly, since an Augmentation accepts no float images
            moved = pipeline(image=image, mask=mask)
            inside = cv2.erode((moved["mask"] != 255).astype(np.uint8), np.ones((5, 5)), borderValue=0) > 0
            distances.append((moved["mask"] - moved["image"][..., 0])[inside])
    return np.concatenate(distances)


def moving_steps(augment) -> list[A.DualTransform]:
    return [step for step in augment(32).pipeline.transforms if isinstance(step, A.DualTransform)]


@pytest.mark.parametrize(
    "step",
    [pytest.param(step, id=f"{augment.__name__} {type(step).__name__}") for augment in (*AUGMENTS, patches)
     for step in moving_steps(augment)],
)  # fmt: skip
def test_labels_stay_aligned_with_the_image(step):
    """Nearest neighbour is at most half a source pixel off, without bias. (Warps compute in 1/32 of a pixel.)"""
    offsets = lags(step, 101)
    assert np.abs(offsets).max() <= 0.5 + 1 / 32
    assert abs(offsets.mean()) < 0.02


@pytest.mark.parametrize("factor", [0.5, 0.73, 1.37, 2.0, 2.5])
def test_labels_of_a_scaled_image_are_centred(factor):
    """Each label is that of the source pixel nearest to the centre of the scaled pixel; ties may round down."""
    length = 101
    step = moving_steps(partial(standard, scale=(factor, factor)))[0]
    mask = np.broadcast_to(np.arange(length, dtype=np.uint8), (length, length))
    labels = Augmentation([step])(np.zeros((length, length, 3), np.uint8), mask.copy(), KEYS[0])[1][0]
    centres = ((np.arange(len(labels)) + 0.5) * length / len(labels) - 0.5).clip(0, length - 1)
    assert len(labels) == int(length * factor)
    assert np.abs(labels - centres).max() <= 0.5 + 1e-6


def test_colour_false_changes_colours_only(sample):
    """The crops are the same; colours differ in about half of the images."""
    image, mask = sample
    coloured, plain = standard(32), standard(32, colour=False)
    pairs = [(coloured(image, mask, key), plain(image, mask, key)) for key in KEYS]
    assert all((first[1] == second[1]).all() for first, second in pairs)
    assert 3 < sum((first[0] == second[0]).all() for first, second in pairs) < 17


def test_augment_none_returns_no_augmentation():
    assert none(32) is None


@pytest.mark.parametrize("augment", [*AUGMENTS, none])
def test_an_unknown_setting_is_an_error(augment):
    with pytest.raises(TypeError, match="color"):
        augment(32, color=1)


def test_an_unknown_argument_of_a_step_is_an_error():
    """albumentations only warns, so an old config would pad masks with background. The module is run again, since
    pytest turns all warnings into errors."""
    with warnings.catch_warnings():
        warnings.resetwarnings()
        runpy.run_path(transforms.__file__)
        with pytest.raises(UserWarning, match="'mask_value' are not valid"):
            A.PadIfNeeded(8, 8, mask_value=255)


def test_patches_are_centred_on_all_pixels_equally_often():
    """Each pixel has its own label: all labels occur at the centres of crops, about equally often."""
    labels = np.arange(20, dtype=np.uint8).reshape(4, 5)
    pipeline = patches(9)
    crops = [pipeline(np.repeat(labels[..., None], 3, 2), labels, (0, 0, index)) for index in range(2000)]
    middles = np.array([mask[4, 4] for _, mask in crops])
    counts = np.bincount(middles, minlength=20)[:20]
    assert set(middles) <= set(range(20)) and counts.min() > 60 and counts.max() < 145  # 100, or less, +- 4 deviations
    image, mask = crops[0]
    assert (image[mask == 255] == FILL).all() and (image[mask != 255][:, 0] == mask[mask != 255]).all()


@pytest.mark.parametrize(
    "augment", [*AUGMENTS, partial(standard, scale=(0.1, 1.0)), partial(strong, scale=(1 / 16, 1))]
)
def test_images_of_min_size_keep_a_pixel_at_every_scale(augment):
    steps = augment(8)
    least = steps.pipeline.transforms[0].scale_limit[0] + 1
    side = steps.min_size
    assert int(side * least) >= 1 > int((side - 1) * least)
    for key in KEYS:
        image, mask = steps(np.zeros((side, side, 3), np.uint8), np.zeros((side, side), np.uint8), key)
        assert image.shape == (8, 8, 3) and mask.shape == (8, 8)
