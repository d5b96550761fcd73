"""Averages over forward passes, against sums written out and nets whose answer is known."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fcnlab.errors import UserError
from fcnlab.inference import Flip, MultiScale, SlidingWindow, WholeImage
from fcnlab.models import FCN, Tiny


@pytest.fixture(scope="module")
def net() -> FCN:
    """A small net whose heads are not zero, so that its scores differ from place to place."""
    torch.manual_seed(0)
    net = FCN(Tiny(width=4), 5).eval()
    for head in net.heads.values():
        torch.nn.init.normal_(head.weight)
    return net


@pytest.fixture
def pointwise(net_that_scores):
    """Scores that are the pixel's own colours: whatever is done around it, nothing may move."""
    return partial(net_that_scores, lambda image: torch.cat([image, 1 - image], 1), 6)


@pytest.fixture
def image():
    return torch.rand(2, 3, 45, 70, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_the_whole_image_is_one_pass_of_the_net(net, image):
    assert torch.equal(WholeImage()(net, image), net(image)) and str(WholeImage()) == "whole"


@torch.inference_mode()
def test_flip_is_the_mean_of_both_and_symmetric(net, image):
    found = Flip()(net, image)
    mirrored = net(torch.flip(image, [-1])).softmax(1)
    torch.testing.assert_close(found, 0.5 * (net(image).softmax(1) + torch.flip(mirrored, [-1])))
    torch.testing.assert_close(Flip()(net, image.flip(3)).flip(3), found)


@torch.inference_mode()
def test_one_scale_is_a_plain_look_and_several_are_their_mean(net, image):
    torch.testing.assert_close(MultiScale((1.0,), flip=False)(net, image), net(image).softmax(1))
    torch.testing.assert_close(MultiScale((1.0,), flip=True)(net, image), Flip()(net, image))
    double = F.interpolate(image, (90, 140), mode="bilinear", antialias=True)
    looked = F.interpolate(net(double).softmax(1), (45, 70), mode="bilinear")
    torch.testing.assert_close(MultiScale((1.0, 2.0), flip=False)(net, image), (net(image).softmax(1) + looked) / 2)


def test_scales_keep_things_in_their_place(pointwise):
    """A smooth ramp of probabilities comes back from any scale where it was."""
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    found = MultiScale((0.5, 1.0, 1.5), flip=True)(pointwise(), ramp)
    torch.testing.assert_close(found, torch.cat([ramp, 1 - ramp], 1).softmax(1), atol=2e-3, rtol=0)


def test_a_scale_that_the_net_cannot_take_is_named(pointwise, image):
    with pytest.raises(UserError, match=r"at scale 0.5, an image of 45x70 pixels is smaller .* minimum of 31"):
        MultiScale((0.5,))(pointwise(min_size=31), image)


@pytest.mark.parametrize("scales", [(), (1.0, 0.0), (-1.0,)])
def test_scales_are_above_zero(scales):
    with pytest.raises(ValueError, match=r"inference\.scales="):
        MultiScale(scales)


@pytest.mark.parametrize(("window", "step"), [(16, 16), (16, 7), (16, 1), (45, 45), (44, 3), (100, 50)])
def test_windows_cover_every_pixel_in_its_place(pointwise, image, window, step):
    torch.testing.assert_close(SlidingWindow(window, step)(pointwise(), image), torch.cat([image, 1 - image], 1))


@torch.inference_mode()
def test_two_windows_by_hand(net):
    image = torch.rand(1, 3, 64, 96)
    left, right = net(image[..., :64]), net(image[..., 32:])
    expected = torch.cat([left[..., :32], (left[..., 32:] + right[..., :32]) / 2, right[..., 32:]], 3)
    torch.testing.assert_close(SlidingWindow(64, 40)(net, image), expected)


@torch.inference_mode()
def test_a_window_larger_than_the_image_is_the_image(net, image):
    torch.testing.assert_close(SlidingWindow(512, 341)(net, image), net(image))


@pytest.mark.parametrize(("window", "step"), [(16, 17), (16, 0)])
def test_windows_leave_nothing_out(window, step):
    with pytest.raises(ValueError, match=rf"inference\.step={step}"):
        SlidingWindow(window, step)


@pytest.mark.parametrize("needed", [1, 2, 15, 31])
@pytest.mark.parametrize("scales", [(0.5, 1.0), (0.3,), (0.25, 2), (1.75,), (2.5,)])
def test_the_smallest_image_is_the_first_that_all_scales_leave_large_enough(pointwise, needed, scales):
    net = pointwise(min_size=needed)
    expected = next(side for side in range(1, 999) if all(round(side * scale) >= needed for scale in scales))
    assert MultiScale(scales).minimum_image_size(net) == expected
    assert WholeImage().minimum_image_size(net) == SlidingWindow().minimum_image_size(net) == needed


def test_windows_that_the_net_does_not_take_are_refused_before_any_work(pointwise):
    with pytest.raises(UserError, match=r"inference\.window=30 is too small for the model: set at least 31"):
        SlidingWindow(30, 20).minimum_image_size(pointwise(min_size=31))
