"""Averages over forward passes, compared with explicit sums and models whose scores are known."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fcnlab.errors import UserError
from fcnlab.inference import Flip, MultiScale, SlidingWindow, WholeImage
from fcnlab.models import FCN, Tiny


@pytest.fixture(scope="module")
def model() -> FCN:
    """A small model whose heads are not zero, so that its scores differ between pixels."""
    torch.manual_seed(0)
    model = FCN(Tiny(width=4), 5).eval()
    for head in model.heads.values():
        torch.nn.init.normal_(head.weight)
    return model


@pytest.fixture
def pointwise(model_from_scores):
    """A model whose scores are the pixel's colours, which no inference method may move."""
    return partial(model_from_scores, lambda image: torch.cat([image, 1 - image], 1), 6)


@pytest.fixture
def image():
    return torch.rand(2, 3, 45, 70, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_whole_image_is_one_forward_pass(model, image):
    assert torch.equal(WholeImage()(model, image), model(image)) and str(WholeImage()) == "whole"


@torch.inference_mode()
def test_flip_is_symmetric_and_the_mean_of_both_directions(model, image):
    probabilities = Flip()(model, image)
    mirrored = model(torch.flip(image, [-1])).softmax(1)
    torch.testing.assert_close(probabilities, 0.5 * (model(image).softmax(1) + torch.flip(mirrored, [-1])))
    torch.testing.assert_close(Flip()(model, image.flip(3)).flip(3), probabilities)


@torch.inference_mode()
def test_several_scales_are_averaged(model, image):
    torch.testing.assert_close(MultiScale((1.0,), flip=False)(model, image), model(image).softmax(1))
    torch.testing.assert_close(MultiScale((1.0,), flip=True)(model, image), Flip()(model, image))
    double = F.interpolate(image, (90, 140), mode="bilinear", antialias=True)
    resized = F.interpolate(model(double).softmax(1), (45, 70), mode="bilinear")
    torch.testing.assert_close(
        MultiScale((1.0, 2.0), flip=False)(model, image), (model(image).softmax(1) + resized) / 2
    )


def test_multiscale_does_not_shift_the_scores(pointwise):
    """A smooth ramp of probabilities is unchanged at any scale."""
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    probabilities = MultiScale((0.5, 1.0, 1.5), flip=True)(pointwise(), ramp)
    torch.testing.assert_close(probabilities, torch.cat([ramp, 1 - ramp], 1).softmax(1), atol=2e-3, rtol=0)


def test_a_scale_too_small_for_the_model_is_an_error(pointwise, image):
    with pytest.raises(UserError, match=r"at scale 0.5, an image of 45x70 pixels is smaller .* minimum of 31"):
        MultiScale((0.5,))(pointwise(min_size=31), image)


@pytest.mark.parametrize("scales", [(), (1.0, 0.0), (-1.0,)])
def test_scales_that_are_not_positive_are_errors(scales):
    with pytest.raises(ValueError, match=r"inference\.scales="):
        MultiScale(scales)


@pytest.mark.parametrize(("window", "step"), [(16, 16), (16, 7), (16, 1), (45, 45), (44, 3), (100, 50)])
def test_windows_cover_every_pixel_without_a_shift(pointwise, image, window, step):
    torch.testing.assert_close(SlidingWindow(window, step)(pointwise(), image), torch.cat([image, 1 - image], 1))


@torch.inference_mode()
def test_two_windows_equal_a_computation_by_hand(model):
    image = torch.rand(1, 3, 64, 96)
    left, right = model(image[..., :64]), model(image[..., 32:])
    expected = torch.cat([left[..., :32], (left[..., 32:] + right[..., :32]) / 2, right[..., 32:]], 3)
    torch.testing.assert_close(SlidingWindow(64, 40)(model, image), expected)


@torch.inference_mode()
def test_a_window_larger_than_the_image_is_one_forward_pass(model, image):
    torch.testing.assert_close(SlidingWindow(512, 341)(model, image), model(image))


@pytest.mark.parametrize(("window", "step"), [(16, 17), (16, 0)])
def test_steps_that_leave_gaps_are_errors(window, step):
    with pytest.raises(ValueError, match=rf"inference\.step={step}"):
        SlidingWindow(window, step)


@pytest.mark.parametrize("needed", [1, 2, 15, 31])
@pytest.mark.parametrize("scales", [(0.5, 1.0), (0.3,), (0.25, 2), (1.75,), (2.5,)])
def test_minimum_image_size_is_large_enough_at_all_scales(pointwise, needed, scales):
    model = pointwise(min_size=needed)
    expected = next(side for side in range(1, 999) if all(round(side * scale) >= needed for scale in scales))
    assert MultiScale(scales).minimum_image_size(model) == expected
    assert WholeImage().minimum_image_size(model) == SlidingWindow().minimum_image_size(model) == needed


def test_windows_too_small_for_the_model_are_refused_early(pointwise):
    with pytest.raises(UserError, match=r"inference\.window=30 is too small for the model: set at least 31"):
        SlidingWindow(30, 20).minimum_image_size(pointwise(min_size=31))
