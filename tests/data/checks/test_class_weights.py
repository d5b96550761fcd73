"""Class weights, compared with values computed by hand."""

import math

import numpy as np
import pytest

from fcnlab.data.checks.class_weights import bounded_log, frequencies, median_frequency


@pytest.fixture
def measured():
    """Three classes; the last is in neither image. A: 60 of class 0, 40 ignored. B: 20 and 20, nothing else."""
    labels = np.zeros((2, 256), np.int64)
    labels[0, [0, 255]] = 60, 40
    labels[1, [0, 1]] = 20, 20
    return frequencies(labels, 3)


def test_frequencies(measured):
    assert measured.pixels.tolist() == [80, 20, 0] and measured.images.tolist() == [2, 1, 0]
    assert measured.area.tolist() == [100, 40, 0]  # of the images that contain the class, without ignored pixels
    assert (measured.ignored_pixels, measured.images_with_ignored) == (40, 1)
    assert measured.share.tolist() == [0.8, 0.2, 0.0] and measured.ignored_share == pytest.approx(40 / 140)


def test_median_frequency(measured):
    """Frequencies are 80 / 100 and 20 / 40; their median is 0.65."""
    assert median_frequency(measured).tolist() == pytest.approx([0.65 / 0.8, 0.65 / 0.5, 1.0])


def test_bounded_log(measured):
    assert bounded_log(measured).tolist() == pytest.approx([1 / math.log(1.82), 1 / math.log(1.22), 1.0])


def test_weights_are_equal_without_images():
    nothing = frequencies([], 2)
    assert median_frequency(nothing).tolist() == bounded_log(nothing).tolist() == [1, 1]
    assert nothing.ignored_share == 0 and nothing.share.tolist() == [0, 0]
