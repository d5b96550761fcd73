"""Colours that look alike, compared with palettes whose property is known."""

import numpy as np
import pytest

from fcnlab.publication.colour_vision import COLOUR_BLINDNESS, confusable

# Okabe and Ito (2008): black, orange, sky blue, bluish green, yellow, blue, vermillion.
SAFE = ((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0))


def named(*colours):
    return [(f"c{place}", colour) for place, colour in enumerate(colours)]


def test_a_palette_for_any_colour_vision_has_no_confusable_colours():
    assert confusable(named(*SAFE)) == []


def test_red_and_green_of_equal_lightness_are_confusable():
    assert confusable(named((200, 50, 50), (100, 110, 30), (0, 0, 255))) == [("c0", "c1")]


@pytest.mark.parametrize("matrix", COLOUR_BLINDNESS.values(), ids=COLOUR_BLINDNESS)
def test_grey_looks_the_same_to_everyone(matrix):
    np.testing.assert_allclose(np.array(matrix).sum(axis=1), 1, atol=1e-5)
