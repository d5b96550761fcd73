"""Test the comparison of an exported file with its checkpoint, with numbers derived by hand."""

import math

import pytest
import torch

from fcnlab.errors import UserError
from fcnlab.publication.parity import TOLERANCE, images_to_compare, measure, sizes_to_compare, static_sizes

IMAGES = [torch.zeros(1, 3, 2, 2, dtype=torch.uint8)]
SCORES = torch.tensor([[[[4.0, 0.0], [0.0, 8.0]], [[0.0, 2.0], [1.0, 0.0]]]])  # classes 0, 1, 1, 0


def computed(scores: torch.Tensor, classes: torch.Tensor | None = None):
    return lambda image: (scores.argmax(1) if classes is None else classes, scores)


def test_equal_results_are_good():
    parity = measure(computed(SCORES), computed(SCORES.clone()), IMAGES)
    assert parity == (1, 1, 4, 1.0, 0.0, 0.0, 8.0) and parity.is_good


def test_differences_and_margins_are_the_largest_ones():
    other = SCORES.clone()
    other[0, 1, 0, 0] = 4.5  # by 4.5, so that class 1 wins where class 0 leads by 4
    parity = measure(computed(SCORES), computed(other), IMAGES)
    assert parity == (1, 1, 4, 0.75, 4.5, 4.0, 8.0) and not parity.is_good
    assert str(parity).startswith("75.0000 % of 4 pixels have the same class on 1 images of 1 size; the largest")


@pytest.mark.parametrize(("share", "good"), [(0.5, True), (2.0, False)])
def test_rounding_is_good_and_more_is_not(share, good):
    other = SCORES + share * TOLERANCE * 8
    assert measure(computed(SCORES), computed(other), IMAGES).is_good == good


def test_another_class_is_good_only_where_two_scores_are_equal():
    tied = SCORES.clone()
    tied[0, 1, 0, 0] = 4.0
    other = torch.tensor([[[1, 1], [1, 0]]])
    assert measure(computed(tied), computed(tied, other), IMAGES).is_good
    assert not measure(computed(SCORES), computed(SCORES, other), IMAGES).is_good


@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_not_good(fault):
    assert not measure(computed(SCORES), computed(SCORES * fault, SCORES.argmax(1)), IMAGES).is_good


def test_a_class_that_does_not_exist_is_not_good():
    assert not measure(computed(SCORES), computed(SCORES, torch.full((1, 2, 2), 7)), IMAGES).is_good


@pytest.mark.parametrize(
    ("expected", "actual", "message"),
    [(SCORES * math.nan, SCORES, "not finite"), (SCORES, SCORES[:, :, :1], r"scores of \(1, 2, 1, 2\), not")],
)
def test_results_without_comparison_are_errors(expected, actual, message):
    with pytest.raises(UserError, match=message):
        measure(computed(expected), computed(actual), IMAGES)


def test_a_condition_on_the_size_in_a_program_is_an_error():
    def refuse(image):
        raise AssertionError("Guard failed: image.size()[2] % 16 != 0")

    with pytest.raises(UserError, match=r"no image of 2x2 pixels, because its code depends on the size: Guard failed"):
        measure(computed(SCORES), refuse, IMAGES)


def test_images_have_20_sizes_the_smallest_one_first():
    sizes = sizes_to_compare(33)
    assert len(set(sizes)) == 20 and sizes[0] == (1, 33, 33) and sizes == sizes_to_compare(33)
    assert {size[0] for size in sizes} == {1, 2} and min(min(size[1:]) for size in sizes) == 33
    assert [size[1:] for size in sizes[1:4]] == [(64, 128), (192, 128), (256, 256)]  # as programs often pad to
    images = images_to_compare(sizes[:3])
    assert [(len(image), *image.shape[2:]) for image in images] == sizes[:3]
    assert all(image.float().std() > 50 for image in images)
    assert static_sizes(40, 50) == [(1, 40, 50)] * 3
